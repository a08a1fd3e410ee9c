"""aiosmtpd 1.4.4 as the server, smtplib and hands as the clients: two implementations nobody here wrote."""

import smtplib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from aiosmtpd.controller import Controller

from smtpproxy.config import parse_endpoint
from tests.net.rig import End, Rig, rig
from tests.net.test_against_smtplib import BODIES as MORE
from tests.net.test_against_smtplib import in_thread

EHLO = b"EHLO me.example\r\n"


class Keeper:
    """What aiosmtpd hands its mails to."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - its name
        """Kept."""
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.original_content))
        return f"250 2.0.0 kept as {len(self.mails)}"


class OnAnyPort(Controller):
    """Says which port the kernel gave it before it looks whether it can be reached there."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def proxied(folder: Path, **options: Any) -> AsyncIterator[tuple[Rig, Keeper]]:
    """aiosmtpd behind a proxy."""
    keeper = Keeper()
    controller = OnAnyPort(keeper, hostname="127.0.0.1", port=0, ready_timeout=10, decode_data=False, **options)
    controller.start()  # type: ignore[no-untyped-call]
    try:
        async with rig(folder) as r:
            r.destination.endpoint = parse_endpoint(f"127.0.0.1:{controller.port}")
            r.destination.addresses = [(socket.AF_INET, ("127.0.0.1", controller.port))]
            yield r, keeper
    finally:
        controller.stop()


# aiosmtpd takes lines of up to 998 octets.
BODIES = {name: body for name, body in MORE.items() if max(map(len, body.split(b"\r\n"))) <= 998}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_content_is_equal_octet_for_octet(tmp_path: Path, body: bytes) -> None:
    async with proxied(tmp_path) as (r, keeper):
        await in_thread(r, lambda client: client.sendmail("a@x.example", ["b@y.example", "c@y.example"], body))
        assert keeper.mails == [("a@x.example", ["b@y.example", "c@y.example"], body)]
        assert (await r.record("tx-commit"))["octets"] == len(body)


async def test_smtputf8_and_8bitmime(tmp_path: Path) -> None:
    async with proxied(tmp_path, enable_SMTPUTF8=True) as (r, keeper):
        body = "Subject: ä\r\n\r\nGrüße\r\n".encode()

        def talk(client: smtplib.SMTP) -> None:
            client.ehlo_or_helo_if_needed()
            client.sendmail("ä@x.example", ["ö@y.example"], body, ["SMTPUTF8", "BODY=8BITMIME"])

        await in_thread(r, talk)
        assert keeper.mails == [("ä@x.example", ["ö@y.example"], body)]


async def _replies(client: End, count: int) -> list[bytes]:
    return [(await client.reply())[:3] for _ in range(count)]


async def test_groups_sent_by_hand(tmp_path: Path) -> None:
    """RFC 2920: envelope and DATA in one write, content and the next envelope in another."""
    async with proxied(tmp_path) as (r, keeper):
        client = await r.connect()
        await client.reply()
        await client.send(EHLO)
        await client.reply()
        envelope = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nRCPT TO:<c@y.example>\r\nDATA\r\n"
        await client.send(b"NOOP\r\nRSET\r\n" + envelope)
        assert await _replies(client, 6) == [b"250"] * 5 + [b"354"]
        await client.send(b"one\r\n..\r\n.\r\n" + envelope)
        assert await _replies(client, 5) == [b"250"] * 4 + [b"354"]
        await client.send(b"two\r\n.\r\nQUIT\r\n")
        assert await _replies(client, 2) == [b"250", b"221"]
        assert await client.rest() == b""
        assert [content for _, _, content in keeper.mails] == [b"one\r\n.\r\n", b"two\r\n"]


async def test_everything_in_one_write_and_then_no_more(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (r, keeper):
        client = await r.connect()
        group = EHLO + b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n"
        await client.send(group)
        client.shut()
        assert await _replies(client, 7) == [b"220", b"250", b"250", b"250", b"354", b"250", b"221"]
        assert await client.rest() == b""
        assert [content for _, _, content in keeper.mails] == [b"hi\r\n"]


async def test_a_refusal_of_the_server_is_told_as_it_is(tmp_path: Path) -> None:
    async with proxied(tmp_path, data_size_limit=1000) as (r, keeper):

        def talk(client: smtplib.SMTP) -> None:
            client.sendmail("a@x.example", ["b@y.example"], b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n")

        with pytest.raises(smtplib.SMTPResponseException, match="552"):
            await in_thread(r, talk)
        assert not keeper.mails
        assert not r.records("tx-commit")


async def test_what_this_server_would_take_for_an_end_does_not_reach_it(tmp_path: Path) -> None:
    """1.4.4 ends a mail on LF . CRLF (CVE-2024-27305): one mail in must be one mail out."""
    async with proxied(tmp_path) as (r, keeper):
        client = await r.connect()
        await client.reply()
        await client.send(EHLO)
        await client.reply()
        await client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
        assert await _replies(client, 3) == [b"250", b"250", b"354"]
        smuggled = b"MAIL FROM:<admin@x.example>\r\nRCPT TO:<c@y.example>\r\nDATA\r\nsmuggled\r\n"
        await client.send(b"hi\n.\r\n" + smuggled + b".\r\nQUIT\r\n")
        assert await _replies(client, 2) == [b"250", b"221"]
        with trio.fail_after(5):
            assert await client.rest() == b""
        assert [content for _, _, content in keeper.mails] == [b"hi\r\n.\r\n" + smuggled]

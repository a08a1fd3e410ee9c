"""smtplib as the client, a store as the server: what a client nobody here wrote makes of the proxy."""

import smtplib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.net.rig import Rig, Store, rig

BODIES: dict[str, bytes] = {
    "plain": b"Subject: x\r\n\r\nhello\r\n",
    "one blank line": b"\r\n",
    "dots": b"Subject: x\r\n\r\n.\r\n..\r\n.a\r\n...\r\nend.\r\n",
    "8-bit": b"Subject: x\r\n\r\n" + bytes(range(128, 256)) + b"\r\n",
    "UTF-8": "Subject: ä\r\n\r\nGrüße\r\n".encode(),
    "long lines": b"Subject: x\r\n\r\n" + b"y" * 998 + b"\r\n" + b"z" * 20_000 + b"\r\n",
    "one mebibyte": b"Subject: x\r\n\r\n" + b"0123456789" * 7 + b"\r\n" + (b"." + b"a" * 68 + b"\r\n") * 14_800,
}
bodies = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)


def stuffed(body: bytes) -> bytes:
    """As it is on the wire."""
    return (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:]


@asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[tuple[Rig, Store]]:
    """A store behind a proxy."""
    store = Store()
    async with rig(folder, server=store.server) as r, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield r, store
        nursery.cancel_scope.cancel()


async def in_thread(r: Rig, talk: Callable[[smtplib.SMTP], Any]) -> Any:
    """What smtplib does, in a thread of its own."""

    def whole() -> Any:
        with smtplib.SMTP(r.address[0], r.address[1], timeout=5) as client:
            return talk(client)

    with trio.fail_after(10):
        return await trio.to_thread.run_sync(whole)


@bodies
async def test_content_is_equal_octet_for_octet(tmp_path: Path, body: bytes) -> None:
    async with proxied(tmp_path) as (r, store):
        refused = await in_thread(r, lambda client: client.sendmail("a@x.example", ["b@y.example"], body))
        assert refused == {}
        assert store.mails == [stuffed(body)]
        commit = await r.record("tx-commit")
        assert commit["octets"] == len(body)
        await r.over()


async def test_many_mails_in_one_session(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (r, store):

        def talk(client: smtplib.SMTP) -> None:
            for number in range(50):
                client.sendmail("a@x.example", ["b@y.example", "c@y.example"], b"%d\r\n" % number)

        await in_thread(r, talk)
        assert store.mails == [b"%d\r\n" % number for number in range(50)]
        await r.over()
        (farewell,) = r.records("link-close")
        assert farewell["transactions"] == 50


async def test_every_command_smtplib_has(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (r, _):

        def talk(client: smtplib.SMTP) -> list[int]:
            codes = [client.ehlo("me.example")[0], client.helo("me.example")[0], client.noop()[0]]
            codes += [client.verify("b@y.example")[0], client.docmd("HELP")[0], client.rset()[0]]
            codes += [client.mail("a@x.example")[0], client.rcpt("b@y.example")[0], client.docmd("RSET")[0]]
            return codes

        codes = await in_thread(r, talk)
        assert codes == [250, 250, 250, 250, 250, 250, 250, 250, 250]


async def test_the_server_is_gone(tmp_path: Path) -> None:
    """smtplib reads 421 as a refusal to connect and raises what it should."""
    async with proxied(tmp_path) as (r, _):
        r.destination.addresses = []
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            await in_thread(r, lambda client: client.noop())


async def test_ten_clients_at_once(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (r, store):

        async def one(number: int) -> None:
            body = b"Subject: %d\r\n\r\n" % number + b"x" * 5000 + b"\r\n"
            await in_thread(r, lambda client: client.sendmail("a@x.example", ["b@y.example"], body))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
        assert len(set(store.mails)) == 10

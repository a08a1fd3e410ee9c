"""Each pair of postures once from end to end, with real TLS and a mail; what a posture does when TLS can't be had."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from smtpproxy.session.postures import ClientTLS, ServerTLS
from tests.net.rig import End, Rig, rig
from tests.net.tls_rig import (
    BAD,
    EHLO,
    GO,
    GREETING,
    INSIDE,
    NAME,
    OFFER,
    PLAIN,
    STARTTLS,
    TLSEnd,
    as_client,
    as_server,
    good,
    greet,
    leave,
    other,
    send_mail,
    serving,
    table,
    within,
)
from tests.tls.maker import Made

BODY = b"Subject: x\r\n\r\n..dot\r\n" + b"".join(
    b"%06d " % number + bytes(range(128, 200)) + b"\r\n" for number in range(2000)
)
RESULTS = {
    "wrong name": "certificate-host-mismatch",
    "expired": "certificate-expired",
    "not yet valid": "certificate-not-trusted",  # RFC 8460 §4.3.2.1 has no better name
    "untrusted": "certificate-not-trusted",
    "self-signed": "certificate-not-trusted",
    "CN only": "certificate-host-mismatch",
    "clientAuth only": "certificate-not-trusted",
}
OWN_EHLO = b"EHLO proxy.example\r\n"


def _pairs() -> Iterator[tuple[str, str]]:
    for client in ClientTLS:
        for server in ServerTLS:
            if client is ClientTLS.PASSTHROUGH and server is not ServerTLS.MIRROR:
                continue  # the configuration takes neither of these two
            if client is ClientTLS.MIRROR and server is ServerTLS.NEVER:
                continue
            yield client.value, server.value


class Row(NamedTuple):
    """One pair of postures, and what it means."""

    client: str
    server: str

    @property
    def early(self) -> bool:
        """The server's link is encrypted by our own STARTTLS."""
        return self.server in ("upgrade", "require") or (self.server == "mirror" and self.client == "implicit")

    @property
    def encrypted(self) -> bool:
        """The server's link is before the client has said anything."""
        return self.early or self.server == "implicit"

    @property
    def with_client(self) -> bool:
        """The client's STARTTLS is forwarded."""
        return self.server == "mirror" and self.client in ("mirror", "offer", "require")


async def _server_first(row: Row, server: End) -> End:
    """What happens on the server's link before the greeting is told."""
    if row.server == "implicit":
        server = await as_server(server)
    await server.send(GREETING)
    if row.early:
        await server.expect(OWN_EHLO)
        await server.send(OFFER)
        await server.expect(STARTTLS)
        await server.send(GO)
        server = await as_server(server)
    return server


async def _client_asks(row: Row, client: End, server: End) -> tuple[End, End]:
    """The client's EHLO in clear, and its STARTTLS if it is offered that."""
    listed = INSIDE if row.encrypted else OFFER
    await client.send(EHLO)
    await server.expect(EHLO)
    await server.send(listed)
    told = await client.reply()
    offered = b"STARTTLS" in told
    assert offered is (row.client != "refuse"), told
    if not offered:
        await client.send(STARTTLS)
        assert (await client.reply())[:1] == b"5"
        await client.send(EHLO)
        await server.expect(EHLO)
        await server.send(listed)
        await client.reply()
        return client, server
    if row.client == "require":
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"530")
    await client.send(STARTTLS)
    if row.with_client or row.client == "passthrough":
        await server.expect(STARTTLS)
        await server.send(GO)
    return client, server


async def _whole(r: Rig, row: Row) -> None:
    client, server = await r.both()
    server = await _server_first(row, server)
    if row.client == "implicit":
        client = await as_client(client)
    await client.expect(GREETING)
    if row.client != "implicit":
        client, server = await _client_asks(row, client, server)
    if row.client == "passthrough":
        await client.expect(GO)
        async with trio.open_nursery() as nursery:
            inside = TLSEnd(server, serving(good()), server_side=True)
            nursery.start_soon(inside.handshake)
            client = await as_client(client)
        server = inside
        assert client.shown == good().der
    elif row.client not in ("implicit", "refuse"):
        if row.with_client:
            server = await as_server(server)
            await client.expect(GO)
        else:
            assert (await client.reply()).startswith(b"220 ")
        client = await as_client(client)
    if row.client != "refuse":
        assert isinstance(client, TLSEnd)
        assert row.client == "passthrough" or client.shown == other().der
        if row.client not in ("implicit", "passthrough"):
            await client.send(b"MAIL FROM:<a@x.example>\r\n")  # hello comes first, whatever was said in clear
            if row.with_client:
                await server.expect(b"MAIL FROM:<a@x.example>\r\n")
                await server.send(b"503 5.5.1 hello first\r\n")
            assert (await client.reply()).startswith(b"503")
        await client.send(EHLO)
        await server.expect(EHLO)
        await server.send(INSIDE if isinstance(server, TLSEnd) else OFFER)
        assert b"STARTTLS" not in await client.reply()
    await send_mail(client, server, BODY)
    if row.client == "passthrough":  # QUIT means nothing to who is blind: the peers end it
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        server.close()
        assert await client.rest() == b""
        client.close()
    else:
        await leave(client, server)
    await r.over()
    if row.client == "passthrough":
        assert r.records("link-tls", passthrough=True)
        assert not (await r.record("link-close"))["inspected"]
        return
    last = r.records("link-tls")[-1:]
    legs = last[0] if last else {"client": None, "server": None}
    assert (legs["client"] is not None) is (row.client != "refuse")
    assert (legs["server"] is not None) is (row.encrypted or row.with_client)
    if legs["client"]:
        assert legs["client"]["shown"] == "given"
        assert legs["client"]["sni"] == NAME
    if legs["server"]:
        assert legs["server"]["verified"] is True
        assert legs["server"]["sni"] == NAME


@pytest.mark.parametrize(("client", "server"), list(_pairs()))
async def test_a_mail_from_end_to_end(tmp_path: Path, client: str, server: str) -> None:
    async with rig(tmp_path, tls=table(tmp_path, client, server)) as r:
        await _whole(r, Row(client, server))


# ------------------------------------------------------------------------------------- the server's certificate is bad


async def _refused(server: End, which: Made) -> None:
    """The proxy's handshake with this server fails, its link is reset, and nothing was said on it in clear."""
    inside = TLSEnd(server, serving(which), server_side=True)
    with contextlib.suppress(ssl.SSLError, ConnectionResetError):  # TLS 1.3: it is done before the proxy has looked
        await inside.handshake()
    assert await inside.ending() == "reset"


@pytest.mark.parametrize("why", BAD)
async def test_a_server_that_does_not_verify_is_refused(tmp_path: Path, why: str) -> None:
    """B61-B75: 454, the reason on record, the server's link reset; the client's goes on in clear, to no purpose."""
    async with rig(tmp_path, tls=table(tmp_path, verify="verify")) as r:
        client, server = await r.both()
        await greet(client, server)
        await client.send(STARTTLS)
        await server.expect(STARTTLS)
        await server.send(GO)
        await _refused(server, BAD[why])
        assert (await client.reply()).startswith(b"454 ")
        note = await r.record("note", anomaly="tls-failed")
        assert (note["side"], note["result"]) == ("server", RESULTS[why])
        assert note["why"]
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"421")
        assert await client.rest() == b""
        assert not r.records("link-tls")


@pytest.mark.parametrize("why", BAD)
async def test_a_server_that_does_not_verify_is_recorded(tmp_path: Path, why: str) -> None:
    async with rig(tmp_path, tls=table(tmp_path, verify="record", certificates=())) as r:
        pair = await within(r, which=BAD[why])
        await send_mail(*pair, b"x\r\n")
        found = (await r.record("link-tls"))["server"]
        assert (found["verified"], found["result"]) == (False, RESULTS[why])
        assert found["why"]
        # H2, H11: what the client is shown does not verify either.
        assert (await r.record("link-tls"))["client"]["shown"] == "self-signed"


@pytest.mark.parametrize("how", ["require", "implicit"])
async def test_before_the_greeting_it_is_421(tmp_path: Path, how: str) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "mirror", how, verify="verify")) as r:
        client, server = await r.both()
        if how == "require":
            await server.send(GREETING)
            await server.expect(OWN_EHLO)
            await server.send(OFFER)
            await server.expect(STARTTLS)
            await server.send(GO)
        await _refused(server, BAD["expired"])
        assert (await client.reply()).startswith(b"421 TLS to the mail server")
        assert await client.rest() == b""
        assert (await r.record("note", anomaly="tls-failed"))["result"] == "certificate-expired"


async def test_where_the_clients_tls_is_implicit_nothing_is_told(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "implicit", "implicit", verify="verify")) as r:
        client, server = await r.both()
        await _refused(server, BAD["wrong name"])
        assert await client.rest() == b""
        client.close()
        await r.over()


# ---------------------------------------------------------------------------------------- the server has no TLS for us

REFUSALS = [b"454 4.7.0 no\r\n", b"502 no\r\n", b"501 no\r\n", b"421 4.3.0 no\r\n"]


@pytest.mark.parametrize("answer", REFUSALS)
@pytest.mark.parametrize("posture", ["require", "upgrade"])
async def test_a_server_that_refuses_starttls(tmp_path: Path, answer: bytes, posture: str) -> None:
    """B24-B36: it was offered, so somebody may want it in clear; nothing of the mail goes there."""
    async with rig(tmp_path, tls=table(tmp_path, "offer", posture)) as r:
        client, server = await r.both()
        await server.send(GREETING)
        await server.expect(OWN_EHLO)
        await server.send(OFFER)
        await server.expect(STARTTLS)
        await server.send(answer)
        assert (await client.reply()).startswith(b"421")
        assert await client.rest() == b""
        assert await server.ending() == "reset"
        assert (await r.record("note", anomaly="tls-failed"))["result"] == "starttls-not-supported"


@pytest.mark.parametrize(
    ("posture", "goes_on"), [("require", False), ("upgrade", True), ("mirror", False)]
)  # of the server's link; the client's is implicit
async def test_a_server_that_does_not_offer_it(tmp_path: Path, posture: str, goes_on: bool) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "implicit", posture)) as r:
        client, server = await r.both()
        await server.send(GREETING)
        await server.expect(OWN_EHLO)
        await server.send(PLAIN)
        if not goes_on:
            assert await client.rest() == b""
            assert await server.ending() == "reset"
            return
        client = await as_client(client)
        await client.expect(GREETING)
        await client.ask(EHLO, server, PLAIN)
        await send_mail(client, server, b"x\r\n")
        await leave(client, server)


async def test_where_the_server_has_none_the_mirror_offers_none(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both()
        await greet(client, server, PLAIN)
        await client.send(STARTTLS)
        assert (await client.reply())[:1] in b"45"
        await server.nothing()


async def test_the_client_may_have_tls_where_the_server_has_none(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "offer")) as r:
        client, server = await r.both()
        await server.send(GREETING)
        await client.expect(GREETING)
        await client.send(EHLO)
        await server.expect(EHLO)
        await server.send(PLAIN)
        assert b"STARTTLS" in await client.reply()
        await client.send(STARTTLS)
        assert (await client.reply()).startswith(b"220")
        inside = await as_client(client)
        assert inside.shown == other().der
        await inside.send(EHLO)
        await server.expect(EHLO)
        await server.send(PLAIN)
        assert b"STARTTLS" not in await inside.reply()
        await send_mail(inside, server, b"x\r\n")
        await leave(inside, server)
        assert (await r.record("link-tls"))["server"] is None


async def test_a_client_that_must_have_tls_gets_454_where_the_server_has_none(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "require")) as r:
        client, server = await r.both()
        await server.send(GREETING)
        await client.expect(GREETING)
        await client.send(EHLO)
        await server.expect(EHLO)
        await server.send(PLAIN)
        await client.reply()
        await client.send(STARTTLS)
        assert (await client.reply()).startswith(b"454 ")
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"530")
        await server.nothing()


async def test_x_anonymoustls_is_a_second_starttls(tmp_path: Path) -> None:
    """Exchange's own: both links under TLS, and a mail inspected inside."""
    offers, command = b"250-mx.example\r\n250 X-ANONYMOUSTLS\r\n", b"X-ANONYMOUSTLS\r\n"
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both()
        await greet(client, server, offers)
        await client.send(command)
        await server.expect(command)
        await server.send(GO)
        inside = await as_server(server)
        await client.expect(GO)
        encrypted = await as_client(client)
        await encrypted.send(b"EHLO me.example\r\n")
        await inside.expect(b"EHLO me.example\r\n")
        await inside.send(offers)
        await encrypted.expect(b"250 mx.example\r\n")  # not told a second time
        await send_mail(encrypted, inside, BODY)
        await leave(encrypted, inside)
        record = await r.record("link-tls")
        assert record["client"]["version"] == record["server"]["version"] == "TLSv1.3"
        assert len(r.records("tx-commit")) == 1

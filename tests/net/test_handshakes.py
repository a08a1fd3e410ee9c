"""The TLS boundary on sockets: what may not cross it, what is bounded, what is put on record (attacks.md B01-B60)."""

import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from smtpproxy.net.handshakes import ListenerTLS
from smtpproxy.net.identities import Done
from smtpproxy.session.limits import PATIENCE
from smtpproxy.smtp.errors import Side
from smtpproxy.tls.authority import create
from tests.net.rig import DEADLINE, End, Rig, rig, settled, until
from tests.net.tls_rig import (
    ALTERNATE,
    BAD,
    EHLO,
    GO,
    GREETING,
    INSIDE,
    NAME,
    OFFER,
    STARTTLS,
    TLSEnd,
    aged,
    as_client,
    as_server,
    asking,
    good,
    greet,
    leave,
    other,
    put,
    send_mail,
    serving,
    start_tls,
    table,
    within,
)
from tests.tls.maker import made, root

BODY = b"Subject: x\r\n\r\n..dot\r\n\x80\xff\r\n"
OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]


async def _asked(r: Rig) -> tuple[End, TLSEnd]:
    """Everything up to the client's 220: its handshake is next."""
    client, server = await r.both()
    await greet(client, server)
    await client.send(STARTTLS)
    await server.expect(STARTTLS)
    await server.send(GO)
    inside = await as_server(server)
    await client.expect(GO)
    return client, inside


async def _server_asked(r: Rig) -> tuple[End, End]:
    """Everything up to the server's 220, which is still to be sent."""
    client, server = await r.both()
    await greet(client, server)
    await client.send(STARTTLS)
    await server.expect(STARTTLS)
    return client, server


async def _closed_without_a_clear_word(client: End) -> None:
    """The end, perhaps behind an alert."""
    try:
        rest = await client.rest()
    except ConnectionResetError:
        return
    assert rest[:1] in (b"", b"\x15"), rest
    assert len(rest) <= 7


# ------------------------------------------------------------------------------------------------------- on record


async def test_what_is_on_record_of_both_links(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r, hostname=ALTERNATE)
        await leave(*pair)
        found = await r.record("link-tls")
        client, server = found["client"], found["server"]
        for link in (client, server):
            assert link["version"] == "TLSv1.3"
            assert "GCM" in link["cipher"]
            assert link["resumed"] is False
            assert 0 < link["seconds"] < DEADLINE
            assert "keylog" not in link
        assert (client["sni"], server["sni"]) == (ALTERNATE, NAME)
        assert client["ja4"].startswith("t13d")
        assert client["shown"] == "given"
        assert "verified" not in client
        assert server["alpn"] == "smtp"
        assert server["verified"] is True
        assert server["certificate"]["names"] == [NAME, "127.0.0.1"]
        assert server["certificate"]["issuer"] == "CN=Root"


async def test_a_conversation_fed_one_octet_at_a_time(tmp_path: Path) -> None:
    """TLS records cut at every octet, on both links and both ways, and the clear octets before them."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both()
        await greet(client, server)
        for octet in STARTTLS:
            await client.send(bytes([octet]))
            await trio.sleep(0)
        await server.expect(STARTTLS)
        for octet in GO:
            await server.send(bytes([octet]))
            await trio.sleep(0)
        inside = await as_server(server, drip=True)
        await client.expect(GO)
        outside = await as_client(client, drip=True)
        await outside.ask(EHLO, inside, INSIDE)
        await send_mail(outside, inside, BODY)
        await leave(outside, inside)


# ------------------------------------------------------------------------------------------- octets across the boundary


@pytest.mark.parametrize(
    "tail", [b"R", b"RCPT TO:<b@y.example>\r\n", b"EHLO x\r\n", b"\r\n", b"\x00", b"\x16\x03\x01\x02\x00\x01"]
)
async def test_octets_behind_starttls_in_one_segment(tmp_path: Path, tail: bytes) -> None:
    """B01-B15: both links are cut, and the server sees nothing of them; a ClientHello there is no better."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both()
        await greet(client, server)
        await client.send(STARTTLS + tail)
        await server.expect(STARTTLS)
        await server.send(GO)
        inside = TLSEnd(server, serving(good()), server_side=True)
        with contextlib.suppress(ConnectionResetError):
            await inside.handshake()
        assert await inside.ending() == "reset"
        assert b"220" not in await client.rest()
        assert (await r.record("violation"))["anomaly"] == "octets-behind-starttls"
        assert not r.records("exchange", verb="RCPT")


async def test_a_whole_client_hello_glued_to_starttls(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "offer", "never")) as r:
        client, server = await r.both()
        await greet(client, server)
        eager = TLSEnd(client, asking())
        with pytest.raises(ssl.SSLWantReadError):
            eager.object.do_handshake()
        await client.send(STARTTLS + eager._out.read())
        await _closed_without_a_clear_word(client)
        assert (await r.record("violation"))["anomaly"] == "octets-behind-starttls"
        assert await server.ending() == "reset"


@pytest.mark.parametrize("tail", [b"RCPT TO:<b@y.example>\r\n", b"QUIT\r\n", b"\x16\x03\x01\x02\x00\x01"])
async def test_octets_in_the_next_segment(tmp_path: Path, tail: bytes) -> None:
    """B16, B18: before the 220 was told; a ClientHello is no better than clear text."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _server_asked(r)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Nagle would keep it until the 220
        await client.send(tail)
        await settled()
        await server.send(GO)
        inside = await as_server(server)
        await _closed_without_a_clear_word(client)
        violation = await r.record("violation")
        assert (violation["anomaly"], violation["why"]) == ("octets-behind-starttls", "before the 220")
        assert await inside.ending() == "reset"


NO_HELLO = {
    "clear text": b"EHLO me.example\r\n",
    "HTTP": b"POST / HTTP/1.1\r\nHost: mx\r\n\r\n",
    "SSLv2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37),
    "noise": bytes(range(200, 256)),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "an empty record": b"\x16\x03\x01\x00\x00",
    "a record too large": b"\x16\x03\x01\xff\xff" + bytes(100),
    "another message": b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
    "too long": b"\x16\x03\x01\x00\x04\x01\x00\xff\xff",
}


@pytest.mark.parametrize("what", NO_HELLO)
@pytest.mark.parametrize("implicit", [True, False])
async def test_what_is_no_client_hello(tmp_path: Path, what: str, implicit: bool) -> None:
    """B16-B18, B59: closed, and nothing of it parsed or answered."""
    async with rig(tmp_path, tls=table(tmp_path, "implicit", "never") if implicit else table(tmp_path)) as r:
        if implicit:
            client, server = await r.both()
            await server.send(GREETING)
        else:
            client, server = await _asked(r)
        await client.send(NO_HELLO[what])
        await _closed_without_a_clear_word(client)
        note = await r.record("note", anomaly="tls-failed")
        assert note["side"] == "client"
        assert note["why"].startswith("no handshake: ")
        assert "result" not in note
        assert [record["verb"] for record in r.records("exchange")][2:] in ([], ["STARTTLS"])
        await server.ending()


@pytest.mark.parametrize("tail", [b"2", b"250-mx\r\n250 STARTTLS\r\n", b"\r\n", b"\x16\x03\x03"])
async def test_octets_of_the_server_behind_its_220(tmp_path: Path, tail: bytes) -> None:
    """B37-B46 in one segment: the server's link is cut, and nothing of them reaches the client."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _server_asked(r)
        await server.send(GO + tail)
        told = await client.rest()
        assert told.startswith((b"421", b"454"))
        assert b"250" not in told
        assert await server.ending() == "reset"
        assert (await r.record("violation"))["anomaly"] == (
            "reply-malformed" if tail == b"\r\n" else "octets-behind-220"
        )


async def test_octets_of_the_server_behind_its_220_in_the_next_segment(tmp_path: Path) -> None:
    """They are read as TLS, and are none."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _server_asked(r)
        await server.send(GO)
        while not server.received:  # the ClientHello: the 220 was read
            assert await server._more()
        await server.send(b"250-mx.example\r\n250 STARTTLS\r\n")
        assert (await client.reply()).startswith(b"454")
        await client.send(b"NOOP\r\n")
        assert (await client.rest()).startswith(b"421")
        note = await r.record("note", anomaly="tls-failed")
        assert (note["side"], note["why"]) == ("server", "clear text, and no TLS, came from the peer")


async def test_a_server_that_speaks_within_the_clients_handshake(tmp_path: Path) -> None:
    """Its link is encrypted and not read: what it says stands in line, and is an answer to nothing."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, inside = await _asked(r)
        await inside.send(b"250 injected\r\n")
        await settled()
        outside = await as_client(client)
        await outside.send(EHLO)
        told = await outside.rest()
        assert b"injected" not in told
        assert await r.record("violation")


# ------------------------------------------------------------------------------------------------- versions, ALPN


@pytest.mark.parametrize("version", OLD)
async def test_an_old_client_is_refused_and_taken_by_a_legacy_listener(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, inside = await _asked(r)
        with pytest.raises(ssl.SSLError):
            await as_client(client, aged(asking(), version))
        assert (await r.record("note", anomaly="tls-failed"))["why"] == "unsupported protocol"
        assert await inside.ending() == "reset"
    async with rig(tmp_path, tls=table(tmp_path, legacy=True)) as r:
        pair = await within(r, context=aged(asking(), version))
        await send_mail(*pair, BODY)
        assert (await r.record("link-tls"))["client"]["version"] == version.name.replace("_", ".")


@pytest.mark.parametrize("version", OLD)
async def test_an_old_server_is_refused_and_taken_by_a_legacy_listener(tmp_path: Path, version: ssl.TLSVersion) -> None:
    which = made(NAME, root(), names=(NAME,))
    file = put(tmp_path, "old.pem", which)

    def old() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return aged(context, version)

    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _server_asked(r)
        await server.send(GO)
        with pytest.raises(ssl.SSLError):
            await as_server(server, context=old())
        assert (await client.reply()).startswith(b"454")
        assert (await r.record("note", anomaly="tls-failed"))["side"] == "server"
    async with rig(tmp_path, tls=table(tmp_path, legacy=True)) as r:
        await send_mail(*await within(r, serves=old()), BODY)
        assert (await r.record("link-tls"))["server"]["version"] == version.name.replace("_", ".")


async def test_another_protocol_is_told_so_and_goes_no_further(tmp_path: Path) -> None:
    """B56, ALPACA: no_application_protocol, RFC 7301 §3.2."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, inside = await _asked(r)
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await as_client(client, asking(alpn=["h2", "http/1.1"]))
        assert "ALPN" in (await r.record("note", anomaly="tls-failed"))["why"]
        assert await inside.ending() == "reset"


@pytest.mark.parametrize(("offered", "agreed"), [(("smtp",), "smtp"), (("h2", "smtp"), "smtp"), ((), None)])
async def test_smtp_or_no_word_of_it_is_served(tmp_path: Path, offered: tuple[str, ...], agreed: str | None) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r, context=asking(alpn=offered))
        assert pair.client.object.selected_alpn_protocol() == agreed
        await send_mail(*pair, BODY)


# ------------------------------------------------------------------------------------------------------ what is bounded


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_handshake_that_stalls(tmp_path: Path, side: str, said: bytes) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        if side == "client":
            client, server = await _asked(r)
            await client.send(said)
        else:
            client, plain = await _server_asked(r)
            await plain.send(GO)
            while not plain.received:
                assert await plain._more()
            await plain.send(said.replace(b"\x01\x00", b"\x02\x00"))
        await settled()
        r.wait(PATIENCE.tls - 1)
        await client.nothing()
        assert not r.records("note", anomaly="tls-failed")
        r.wait(2)
        note = await r.record("note", anomaly="tls-failed")
        assert (note["side"], note["why"]) == (side, "not done within 60 s")
        if side == "client":
            await _closed_without_a_clear_word(client)
            assert await server.ending() == "reset"
        else:
            assert (await client.reply()).startswith(b"454")
            assert await plain.ending() == "reset"


async def test_a_handshake_that_trickles_has_no_more_time(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, _ = await _asked(r)
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)
        for at in range(62):
            await client.send(hello[at : at + 1])
            await settled()
            r.wait(1)
        assert (await r.record("note", anomaly="tls-failed"))["why"] == "not done within 60 s"


async def test_a_handshake_without_end(tmp_path: Path) -> None:
    """A server that sends HelloRequests for ever, which OpenSSL would read for ever."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _server_asked(r)
        await server.send(GO)
        while not server.received:
            assert await server._more()
        record = b"\x16\x03\x03" + (16_384).to_bytes(2) + bytes(16_384)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - at which one is the kernel's
            for _ in range(1000):
                await server.send(record)
        assert (await client.reply()).startswith(b"454")
        assert "131072 octets" in (await r.record("note", anomaly="tls-failed"))["why"]


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_peer_that_goes_within_the_handshake(tmp_path: Path, side: str, how: str) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await _asked(r) if side == "client" else await _server_asked(r)
        if side == "client":
            await client.send(b"\x16\x03\x01")
            await settled()
            getattr(client, how)()
            assert await server.ending() == "reset"
        else:
            await server.send(GO)
            while not server.received:
                assert await server._more()
            await settled()
            getattr(server, how)()
            assert (await client.reply()).startswith(b"454")
            client.close()
        assert (await r.record("note", anomaly="tls-failed"))["side"] == side
        await r.over()
        assert not r.sessions.relays


# ------------------------------------------------------------------------------------------------------ resumption


async def test_a_client_resumes_and_the_record_says_so(tmp_path: Path) -> None:
    """The server's link is a new one every time."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        context, serves = asking(), serving(good())
        first = await within(r, context=context, serves=serves)
        session = first.client.object.session
        await leave(*first)
        await r.over()
        second = await within(r, context=context, serves=serves, session=session)
        assert second.client.object.session_reused
        assert not second.server.object.session_reused
        await send_mail(*second, BODY)
        await leave(*second)
        again = r.records("link-tls")[1]
        assert (again["client"]["resumed"], again["server"]["resumed"]) == (True, False)
        assert again["server"]["verified"] is True


async def test_a_ticket_of_one_listener_is_nothing_to_another(tmp_path: Path) -> None:
    """B76, with the same certificate and the same posture."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        assert r.materials is not None
        context, serves = asking(), serving(good())
        first = await within(r, context=context, serves=serves)
        session = first.client.object.session
        await leave(*first)
        await r.over()
        r.address, r.family = r.listen(r.materials.listener(r.entry))
        second = await within(r, context=context, serves=serves, session=session)
        assert not second.client.object.session_reused
        assert not second.server.object.session_reused


# ------------------------------------------------------------------------------------------------------- certificates


async def test_a_certificate_is_chosen_by_sni(tmp_path: Path) -> None:
    files = [{"chain": put(tmp_path, "1.pem", good())}, {"chain": put(tmp_path, "2.pem", other())}]
    async with rig(tmp_path, tls=table(tmp_path, certificates=files)) as r:
        for name, which in ((NAME, good()), (ALTERNATE, other()), ("unknown.example", good()), (None, good())):
            pair = await within(r, hostname=name)
            assert pair.client.shown == which.der
            await leave(*pair)
            await r.over()


async def test_a_certificate_is_reloaded_while_it_runs(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        before = await within(r)
        put(tmp_path, "given.pem", good())
        with capture_logs() as logs:
            r.wait(1)
        assert [entry["event"] for entry in logs] == ["certificates reloaded"]
        await send_mail(*before, BODY)
        await leave(*before)
        await r.over()
        assert (await within(r)).client.shown == good().der
        (tmp_path / "given.pem").write_text("nothing")
        with capture_logs() as logs:
            r.wait(1)
        assert logs[0]["log_level"] == "error"
        assert (await within(r)).client.shown == good().der


async def test_one_is_minted_by_the_ca_for_who_verified(tmp_path: Path) -> None:
    authority = create(tmp_path / "ca", "Test", 100)
    async with rig(tmp_path, tls=table(tmp_path, certificates=()), ca=tmp_path / "ca") as r:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(cadata=authority.certificate.public_bytes(Encoding.PEM).decode())
        shown = set()
        for _ in range(2):
            pair = await within(r, context=trusting, hostname=NAME)
            shown.add(pair.client.shown)
            await send_mail(*pair, BODY)
            await leave(*pair)
            await r.over()
        assert len(shown) == 1
        assert shown != {good().der}
        assert [record["client"]["shown"] for record in r.records("link-tls")] == ["minted"] * 2


@pytest.mark.parametrize("why", ["expired", "untrusted", "self-signed"])
async def test_none_is_minted_where_the_server_does_not_verify(tmp_path: Path, why: str) -> None:
    """The client that trusts the CA must see it (H2, H11)."""
    authority = create(tmp_path / "ca", "Test", 100)
    async with rig(tmp_path, tls=table(tmp_path, certificates=()), ca=tmp_path / "ca") as r:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(cadata=authority.certificate.public_bytes(Encoding.PEM).decode())
        client, server = await r.both()
        await greet(client, server)
        with pytest.raises(ssl.SSLCertVerificationError):
            await start_tls(client, server, which=BAD[why], context=trusting, hostname=NAME)
        assert (await r.record("note", anomaly="tls-failed"))["side"] == "client"


async def test_an_answer_that_comes_too_late_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first certificate was given up; why it can't be had is nothing to who asked again."""
    held: list[Done] = []
    monkeypatch.setattr(ListenerTLS, "identify", lambda *arguments: held.append(arguments[-1]))
    async with rig(tmp_path, tls=table(tmp_path, "offer", "never")) as r:
        client, server = await r.both()
        await greet(client, server)
        for count in (1, 2):
            await client.send(STARTTLS)
            with trio.fail_after(DEADLINE):
                while len(held) < count:
                    await settled()
            if count == 1:
                r.wait(PATIENCE.tls + 1)
                assert (await client.reply()).startswith(b"454")
        held[0]("too late")
        await client.nothing()
        held[1]("in time")
        assert (await client.reply()).startswith(b"454")
        whys = [record["why"] for record in r.records("note", anomaly="tls-failed")]
        assert whys == ["not done within 60 s", "in time"]


async def test_the_handshake_waits_until_the_220_is_sent(tmp_path: Path) -> None:
    """The client's window is full, and its ClientHello is there already: 220 is told in clear, then it is read."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both(receive=4096)
        await greet(client, server)
        r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(b"NOOP\r\n" + STARTTLS)
        await server.expect(b"NOOP\r\n" + STARTTLS)
        long = (b"250-" + b"x" * 4000 + b"\r\n") * 40 + b"250 end\r\n"
        await server.send(long + GO)
        await as_server(server)
        await until(lambda: r.session.securing is not None and r.session.securing.side is Side.CLIENT, "no 220")
        end = TLSEnd(client, asking())
        with pytest.raises(ssl.SSLWantReadError):
            end.object.do_handshake()
        await end._flush()
        await settled()
        assert r.session.to_client
        await client.expect(long + GO)
        end._in.write(client.received)
        await end.handshake()
        await until(lambda: r.session.client.tls is not None, "no handshake")


async def test_the_signer_is_gone(tmp_path: Path) -> None:
    """454, and the session lives on without TLS only as far as its server does."""
    create(tmp_path / "ca", "Test", 100)
    async with rig(tmp_path, tls=table(tmp_path, certificates=()), ca=tmp_path / "ca") as r:
        assert r.materials is not None
        assert r.materials.signer is not None
        r.materials.signer.close()
        client, server = await _server_asked(r)
        await server.send(GO)
        inside = await as_server(server)
        assert (await client.reply()).startswith(b"454")
        assert "no certificate from the CA" in (await r.record("note", anomaly="tls-failed"))["why"]
        assert await inside.ending() == "reset"


async def test_a_client_certificate_is_shown_to_the_server(tmp_path: Path) -> None:
    ours = put(tmp_path, "ours.pem", other())
    serves = serving(made(NAME, root(), names=(NAME,)))
    serves.load_verify_locations(cadata=root().pem.decode())
    serves.verify_mode = ssl.CERT_REQUIRED
    async with rig(tmp_path, tls=table(tmp_path, client_certificate={"chain": ours})) as r:
        pair = await within(r, serves=serves)
        assert pair.server.shown == other().der
        await send_mail(*pair, BODY)


async def test_a_key_log_marks_the_records(tmp_path: Path) -> None:
    with capture_logs():
        async with rig(tmp_path, tls=table(tmp_path), keylog=tmp_path / "keys") as r:
            await within(r)
            found = await r.record("link-tls")
    assert found["client"]["keylog"] is found["server"]["keylog"] is True
    assert (tmp_path / "keys").read_text().count("CLIENT_TRAFFIC_SECRET_0") == 2
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


# ----------------------------------------------------------------------------- implicit: not a word in clear, ever


async def test_too_many_connections_are_closed_in_silence(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path, "implicit", "never"), connections=0) as r:
        client = await r.connect()
        assert await client.rest() == b""


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("what", ["drain", "stop", "fault", "unreachable"])
async def test_whatever_ends_it_no_clear_octet(
    tmp_path: Path, when: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the client's handshake."""
    async with rig(tmp_path, tls=table(tmp_path, "implicit", "never"), faults=what == "fault") as r:
        client, server = await r.both()
        if when != "before":
            await server.send(GREETING)
            await until(lambda: r.session.securing is not None, "no handshake")
            await client.send(b"\x16\x03\x01")
            await settled()
        if when == "after":
            hello = TLSEnd(client, asking())
            with pytest.raises(ssl.SSLWantReadError):
                hello.object.do_handshake()
            await client.send(hello._out.read()[3:])
            while not client.received:  # the server's side of it: the client's last octets are not sent
                assert await client._more()
        if what == "unreachable":
            server.reset()
            await settled()
            r.wait(PATIENCE.tls + 1)  # within the client's handshake the server is not looked at
        elif what == "fault":
            monkeypatch.delattr(r.session, "securing")
            await (server.send(GREETING) if when == "before" else client.send(b"\x01"))
        else:
            getattr(r.relay, what)()
            r.reactor.wake()
            if what == "drain":  # waits for what is under way
                client.reset()
                await r.over()
                return
        assert b"421" not in client.received
        try:
            rest = await client.rest()
        except ConnectionResetError:
            rest = b""
        assert b"421" not in rest
        assert b"220" not in rest


# --------------------------------------------------------------------------------------- renegotiation, key updates


class Tool:
    """`openssl s_client` behind the proxy, whose command letters are typed when it is ready for them."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.said = b""

    async def until(self, text: bytes) -> None:
        """It has said this."""
        assert self.process.stdout is not None
        with trio.fail_after(DEADLINE):
            while text not in self.said:
                said = await self.process.stdout.receive_some()
                assert said, self.said
                self.said += said

    async def type(self, text: bytes) -> None:
        """Into its standard input."""
        assert self.process.stdin is not None
        with trio.fail_after(DEADLINE):
            await self.process.stdin.send_all(text)


@asynccontextmanager
async def _tool(r: Rig, *options: str) -> AsyncIterator[tuple[Tool, End]]:
    """It under TLS, its hello said; and the server, whose link is in clear."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{r.address[1]}", "-starttls", "smtp", "-crlf", *options]
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
    tool = Tool(process)
    try:
        server = await r.server.accept()
        await server.send(GREETING)
        assert (await server.line()).startswith(b"EHLO ")
        await server.send(OFFER)
        await tool.until(b"250 STARTTLS")  # which it says when its handshake is done
        await tool.type(b"EHLO me.example\n")
        await server.expect(EHLO)
        await server.send(INSIDE)
        await tool.until(b"SIZE")
        yield tool, server
    finally:
        process.kill()
        await process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                await stream.aclose()


@pytest.mark.parametrize("letter", [b"K", b"k"])
async def test_a_key_update_of_tls_1_3(tmp_path: Path, letter: bytes) -> None:
    """RFC 8446 §4.6.3: taken, answered where asked for, and the conversation goes on."""
    async with rig(tmp_path, tls=table(tmp_path, "offer", "never")) as r, _tool(r, "-tls1_3") as (tool, server):
        for number in (b"1", b"2"):
            await tool.type(letter + b"\n")
            await tool.until(b"KEYUPDATE")
            tool.said = b""
            await tool.type(b"NOOP\n")
            await server.expect(b"NOOP\r\n")
            await server.send(b"250 number " + number + b"\r\n")
            await tool.until(b"250 number " + number)


async def test_renegotiation_is_refused(tmp_path: Path) -> None:
    """RFC 9325 §3.5."""
    async with rig(tmp_path, tls=table(tmp_path, "offer", "never")) as r, _tool(r, "-tls1_2") as (tool, _):
        await tool.type(b"R\n")
        await tool.until(b"no renegotiation")

"""DANE and MTA-STS from the configuration to the reply: what the resolver and the policy's server say decides."""

import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smtpproxy.net import materials
from smtpproxy.net.trust import Trust
from tests.net.authority_rig import Authority, PolicyServer, http, running
from tests.net.rig import Rig, rig
from tests.net.tls_rig import GO, NAME, STARTTLS, as_client, as_server, good, greet, leave, other, send_mail, table
from tests.tls.maker import Made, root

DOMAIN = "example"
LATER = b"454 TLS not available\r\n"
BODY = b"Subject: x\r\n\r\ny\r\n"


def _fits(which: Made) -> str:
    """The TLSA record of a certificate's key."""
    key = x509.load_der_x509_certificate(which.der).public_key()
    return "3 1 1 " + sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _bogus(authority: Authority, name: str) -> None:
    authority.put(name, "TLSA", _fits(good()))
    authority.failing = ("TLSA",)


def _unsigned(authority: Authority, name: str) -> None:
    authority.put(name, "TLSA", _fits(good()))
    authority.ad = False


DANE: dict[str, tuple[Callable[[Authority, str], None], str]] = {
    "valid": (lambda a, name: a.put(name, "TLSA", _fits(good())), ""),
    "valid anchor": (lambda a, name: a.put(name, "TLSA", f"2 0 0 {root().der.hex()}"), ""),
    "wrong": (lambda a, name: a.put(name, "TLSA", _fits(other())), "tlsa-invalid"),
    "missing": (lambda a, name: None, "dane-required"),
    "unsigned": (_unsigned, "dane-required"),
    "unusable": (lambda a, name: a.put(name, "TLSA", _fits(good()).replace("3 1 1", "1 1 1")), "tlsa-invalid"),
    "bogus": (_bogus, "dnssec-invalid"),
}


@pytest.fixture
async def authority() -> AsyncIterator[Authority]:
    made = Authority()
    async with running(made):
        yield made


async def _session(r: Rig, result: str, *, asked: bool) -> dict[str, Any]:
    """A session up to a mail inside TLS, or up to 454; `asked`: the server's handshake is come to."""
    client, server = await r.both()
    await greet(client, server)
    await client.send(STARTTLS)
    await server.expect(STARTTLS)
    await server.send(GO)
    if result:
        if asked:
            with pytest.raises((ssl.SSLError, ConnectionResetError, AssertionError)):
                await (await as_server(server)).expect(b"never")
        await client.expect(LATER)
        note = await r.record("note", anomaly="tls-failed")
        assert (note["side"], note["result"]) == ("server", result)
        assert note["why"]
        assert not r.records("link-tls")
        return note
    inside = await as_server(server)
    await client.expect(GO)
    encrypted = await as_client(client)
    await encrypted.ask(b"EHLO me.example\r\n", inside, b"250 mx.example\r\n")
    await send_mail(encrypted, inside, BODY)
    await leave(encrypted, inside)
    return await r.record("link-tls")


@pytest.mark.parametrize("case", DANE)
async def test_dane(tmp_path: Path, authority: Authority, case: str) -> None:
    """RFC 7672: no fallback, whatever the reason is."""
    say, result = DANE[case]
    tls = table(tmp_path, verify="dane")
    async with rig(tmp_path, tls=tls, dns={"servers": [f"127.0.0.1:{authority.port}"]}) as r:
        say(authority, f"_{r.server.port}._tcp.{NAME}")
        record = await _session(r, result, asked=case == "wrong")
        if not result:
            assert record["server"]["verified"] is True
            assert record["client"]["broken"] == ["dane"]  # the client is shown another certificate, and may look


async def test_dane_where_the_resolver_is_gone(tmp_path: Path) -> None:
    gone = Authority()
    gone.udp.close()
    await gone.tcp.aclose()
    tls = table(tmp_path, verify="dane")
    async with rig(tmp_path, tls=tls, dns={"servers": [f"127.0.0.1:{gone.port}"]}) as r:
        await _session(r, "dnssec-invalid", asked=False)


STS: dict[str, tuple[bytes, str]] = {  # policy; why TLS is refused
    "enforced": (b"mode: enforce\r\nmx: mx.example\r\n", ""),
    "enforced, by a wildcard": (b"mode: enforce\r\nmx: *.example\r\n", ""),
    "another mx": (b"mode: enforce\r\nmx: mail.example\r\n", "certificate-host-mismatch"),
    "testing, another mx": (b"mode: testing\r\nmx: mail.example\r\n", ""),
    "none": (b"mode: none\r\n", ""),
    "no policy": (b"", ""),
}


@pytest.mark.parametrize("case", STS)
async def test_mta_sts(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """RFC 8461 §4, §5: enforce decides, testing is recorded, and without a policy there is opportunistic TLS."""
    policy, result = STS[case]
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "policy-roots.pem")
    web = PolicyServer(ca)
    web.show(ca, f"mta-sts.{DOMAIN}")
    web.answer = http(b"version: STSv1\r\n" + policy + b"max_age: 86400\r\n") if policy else http(b"", b"404 Not Found")
    authority.put(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv1; id=1;"')
    authority.put(f"mta-sts.{DOMAIN}", "A", "127.0.0.1")
    monkeypatch.setattr(materials, "Trust", partial(Trust, https_port=web.port, roots=tmp_path / "policy-roots.pem"))
    tls = table(tmp_path, verify="mta-sts", policy_domain=DOMAIN)
    async with running(web), rig(tmp_path, tls=tls, dns={"servers": [f"127.0.0.1:{authority.port}"]}) as r:
        record = await _session(r, result, asked=False)
        if result:
            return
        server = record["server"]
        if case == "testing, another mx":
            assert (server["verified"], server["result"]) == (False, "certificate-host-mismatch")
        elif case == "no policy":
            assert server["verified"] is True
            assert server["policy"].startswith("sts-policy-fetch-error: ")
        else:
            assert server["verified"] is True
            assert "result" not in server


async def test_mta_sts_where_the_certificate_is_wrong(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enforced, and the server shows another name's: 454; OpenSSL says so within the handshake."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "policy-roots.pem")
    web = PolicyServer(ca)
    web.show(ca, f"mta-sts.{DOMAIN}")
    web.answer = http(b"version: STSv1\r\nmode: enforce\r\nmx: mx.example\r\nmax_age: 86400\r\n")
    authority.put(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv1; id=1;"')
    authority.put(f"mta-sts.{DOMAIN}", "A", "127.0.0.1")
    monkeypatch.setattr(materials, "Trust", partial(Trust, https_port=web.port, roots=tmp_path / "policy-roots.pem"))
    tls = table(tmp_path, verify="mta-sts", policy_domain=DOMAIN)
    async with running(web), rig(tmp_path, tls=tls, dns={"servers": [f"127.0.0.1:{authority.port}"]}) as r:
        client, server = await r.both()
        await greet(client, server)
        await client.send(STARTTLS)
        await server.expect(STARTTLS)
        await server.send(GO)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await (await as_server(server, other())).expect(b"never")
        await client.expect(LATER)
        assert (await r.record("note", anomaly="tls-failed"))["result"] == "certificate-host-mismatch"

"""What testssl.sh finds at the client's side of the proxy: nothing weak, whichever kind of key is shown.

A listener that was told `legacy` is the counter-check: there the same scan does find something.
"""

from __future__ import annotations

import json
import subprocess
from typing import NamedTuple

import pytest

from tests.peers import PeerError, PeerUnavailable, unavailable
from tests.peers.conftest import Servers
from tests.peers.process import Scratch, find
from tests.peers.proxy import DIRECT, Proxy, smtpproxy
from tests.peers.servers import Postfix

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(DIRECT, reason="there is no proxy to test with SMTPPROXY_PEERS_DIRECT=1"),
    pytest.mark.timeout(300),
]

SECONDS = 240.0
HARMLESS = ("OK", "INFO", "DEBUG")
NO_FINDING = frozenset({"engine_problem"})  # about testssl.sh's own openssl


class Finding(NamedTuple):
    severity: str
    text: str


def scan(scratch: Scratch, proxy: Proxy, *checks: str, starttls: bool = True) -> dict[str, Finding]:
    """What `testssl` says of the proxy, by the names of its checks."""
    result = scratch.path / "findings.json"
    how = ["--quiet", "--warnings", "batch", "--color", "0", "--nodns", "none", "--jsonfile", str(result)]
    how += ["--starttls", "smtp"] if starttls else []
    try:
        done = subprocess.run(
            [find("testssl"), *how, *checks, f"{proxy.host}:{proxy.port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"testssl took more than {SECONDS} s") from None
    if not result.exists():
        raise PeerError(f"testssl found nothing:\n{done.stdout.decode(errors='replace')}")
    found = {entry["id"]: Finding(entry["severity"], entry["finding"]) for entry in json.loads(result.read_text())}
    return {name: finding for name, finding in found.items() if name not in NO_FINDING}


def settings(servers: Servers, scratch: Scratch, **more: object) -> dict[str, object]:
    """A proxy with a certificate of its own, whose key is RSA: with that, RSA key exchange would be possible."""
    chain, key = servers.authority.identity(Postfix.hostname, rsa=True).write(scratch.path)
    return {"certificates": [{"chain": chain, "key": key}], **more}


def assert_strong(found: dict[str, Finding]) -> None:
    assert {name: finding for name, finding in found.items() if finding.severity not in HARMLESS} == {}
    versions = {name: found[name].text.split(" with ")[0] for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1")}
    assert set(versions.values()) == {"not offered"}, versions
    assert all(found[name].text.startswith("offered") for name in ("TLS1_2", "TLS1_3"))
    weak = ("NULL", "aNULL", "EXPORT", "LOW", "3DES_IDEA", "AVERAGE")  # the last one: CBC, and no forward secrecy
    assert {found[f"cipherlist_{name}"].text for name in weak} == {"not offered"}
    assert found["cipherlist_STRONG"].text == "offered"


def test_nothing_weak_by_starttls(servers: Servers) -> None:
    server = servers.starttls("postfix")
    scratch = Scratch("testssl")
    try:
        with Proxy(server.host, server.port, tls=settings(servers, scratch)) as proxy:
            found = scan(scratch, proxy, "-p", "-s", "-f", "-U")
    except PeerUnavailable as error:
        unavailable(error)
    finally:
        scratch.remove()
    assert_strong(found)
    assert found["PFS"].text == "offered"
    assert found["secure_client_renego"].text == "not vulnerable"


def test_nothing_weak_by_implicit_tls(servers: Servers) -> None:
    """And with a minted certificate: its key is P-256."""
    server = servers.starttls("postfix")
    scratch = Scratch("testssl")
    ca = scratch.path / "ca"
    try:
        smtpproxy("ca", "init", "--directory", str(ca))
        tls: dict[str, object] = {
            "client": "implicit",
            "roots": servers.authority.roots,
            "server_name": server.hostname,
        }
        with Proxy(server.host, server.port, tls=tls, ca=ca) as proxy:
            found = scan(scratch, proxy, "-p", "-s", starttls=False)
    except PeerUnavailable as error:
        unavailable(error)
    finally:
        scratch.remove()
    assert_strong(found)


def test_the_scan_finds_what_legacy_offers(servers: Servers) -> None:
    server = servers.starttls("postfix")
    scratch = Scratch("testssl")
    try:
        with Proxy(server.host, server.port, tls=settings(servers, scratch, legacy=True)) as proxy:
            found = scan(scratch, proxy, "-p")
    except PeerUnavailable as error:
        unavailable(error)
    finally:
        scratch.remove()
    assert {name: found[name].text.startswith("offered") for name in ("SSLv3", "TLS1", "TLS1_1", "TLS1_2")} == {
        "SSLv3": False,
        "TLS1": True,
        "TLS1_1": True,
        "TLS1_2": True,
    }
    with pytest.raises(AssertionError):
        assert_strong(found)

"""OpenSSL has DANE too: shown the same chain and the same record by a real server, it must say what we say.

One difference is known, and left out: with a bare key (2 1 0) OpenSSL needs no certificate of the issuer.
"""

import itertools
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha512
from pathlib import Path

import pytest
import trustme

from smtpproxy.tls.dane import TLSA, check_dane, key_of

OPENSSL = shutil.which("openssl")
DEADLINE = 20.0
NAME = "mx.example.com"
NOW = datetime.now(UTC)
CA = trustme.CA()
MIDDLE = CA.create_child_ca()
OTHER = trustme.CA()

CHAINS = {  # authority, name, dates in days from now
    "good": (MIDDLE, NAME, 0, 9),
    "expired": (MIDDLE, NAME, -9, -2),
    "early": (MIDDLE, NAME, 2, 9),
    "other-name": (MIDDLE, "other.example", 0, 9),
    "wildcard": (MIDDLE, "*.example.com", 0, 9),
    "stranger": (OTHER, NAME, 0, 9),
}

Form = tuple[int, int]  # selector, matching type
FORMS: tuple[Form, ...] = ((1, 1), (0, 0), (1, 0), (0, 2))
DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: lambda data: sha256(data).digest(),
    2: lambda data: sha512(data).digest(),
}


def der(pem: trustme.Blob) -> bytes:
    """PEM to DER."""
    return ssl.PEM_cert_to_DER_cert(pem.bytes().decode())


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS server; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                connection.settimeout(DEADLINE)
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        secured.recv(1)
                except OSError:  # who does not like the certificate goes
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)


def openssl_accepts(port: int, record: TLSA) -> bool:
    """Whether s_client is content with the server."""
    data = f"{record.usage} {record.selector} {record.matching} {record.data.hex()}"
    command = ["s_client", "-connect", f"127.0.0.1:{port}", "-brief", "-verify_return_error"]
    dane = ["-dane_tlsa_domain", NAME, "-dane_ee_no_namechecks", "-dane_tlsa_rrdata", data]
    done = subprocess.run(
        [OPENSSL or "", *command, *dane], stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE
    )
    return done.returncode == 0 and b"Verification: OK" in done.stderr


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
@pytest.mark.parametrize(
    ("kind", "root_shown", "forms"),
    [("good", True, FORMS), ("good", False, FORMS), *((kind, True, FORMS[:1]) for kind in list(CHAINS)[1:])],
)
def test_openssl_says_the_same(kind: str, root_shown: bool, forms: tuple[Form, ...], tmp_path: Path) -> None:
    authority, name, since, until = CHAINS[kind]
    issued = authority.issue_cert(name, not_before=NOW + timedelta(days=since), not_after=NOW + timedelta(days=until))
    shown = [*issued.cert_chain_pems, *([CA.cert_pem] if root_shown else [])]
    file = tmp_path / "server.pem"
    file.write_bytes(b"".join(blob.bytes() for blob in (issued.private_key_pem, *shown)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    chain = [der(blob) for blob in shown]
    named = [chain[0], der(MIDDLE.cert_pem), der(CA.cert_pem)]
    differing = []
    with serving(context) as port:
        for certificate, (selector, matching), usage in itertools.product(named, forms, (2, 3)):
            if (usage, selector, matching) == (2, 1, 0):
                continue
            data = key_of(certificate) if selector else certificate
            record = TLSA(usage, selector, matching, DIGESTS[matching](data))
            verdict = check_dane([record], chain, NAME, NOW.timestamp())
            if verdict.verified is not openssl_accepts(port, record):
                differing.append((named.index(certificate), str(record), verdict))
    assert not differing

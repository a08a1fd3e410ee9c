"""Certificates for the peers: a CA of the tests' own, what it gives to a server, and what a client holds against it.

The CA is of somebody else's making (trustme), so that nothing of the project vouches for itself. Every client that
has a `Trust` insists: TLS or no mail, the certificate is from these roots and, where the client can tell, for this
name.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import trustme


class Identity(NamedTuple):
    """What a server shows: PEM, the leaf first, and the leaf's key."""

    chain: bytes
    key: bytes

    def write(self, directory: Path, name: str = "tls", owner: int = 0) -> tuple[Path, Path]:
        """Both as files, the key for `owner` only."""
        chain, key = directory / f"{name}.crt", directory / f"{name}.key"
        chain.write_bytes(self.chain)
        chain.chmod(0o644)
        key.touch(0o600)
        key.write_bytes(self.key)
        key.chmod(0o600)
        if owner and os.geteuid() == 0:
            os.chown(key, owner, owner)
        return chain, key


class Trust(NamedTuple):
    """What a client wants of the other side; `implicit`: TLS from the first octet."""

    roots: Path
    name: str
    implicit: bool = False


class Authority:
    """A CA, and the file that a client believes it by."""

    def __init__(self, directory: Path, name: str = "roots") -> None:
        self._ca = trustme.CA(organization_name="The peers' tests", organization_unit_name=name)
        self.roots = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.roots)
        self.roots.chmod(0o644)  # the peers have users of their own

    def identity(self, *names: str, rsa: bool = False) -> Identity:
        leaf = self._ca.issue_cert(*names, key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA)
        return Identity(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


class Named(ssl.SSLContext):
    """Verifies for `name`, whatever was connected to: smtplib knows the address only."""

    name: str

    def wrap_socket(self, sock: socket.socket, *_args: Any, **_kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, server_hostname=self.name)


def strict_context(trust: Trust) -> Named:
    """Python's ssl at its strictest: RFC 5280 to the letter, and no name but those of the SAN."""
    context = Named(ssl.PROTOCOL_TLS_CLIENT)
    context.name = trust.name
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    context.load_verify_locations(trust.roots)
    return context


def careless_context() -> ssl.SSLContext:
    """For a look at a server, of which nothing is believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

"""TLS settings: those of RFC 9325, the same for both links.

- TLS 1.2 and 1.3, forward-secret AEAD suites only, no compression, no renegotiation, ALPN `smtp` and nothing else.
  `legacy` adds TLS 1.0 and 1.1 and the suites of their time, for one listener's old devices; nothing else does.
- A context belongs to one listener and one certificate. Its ticket keys and its session cache are its own, so no
  session made under one posture is resumed under another (Postfix's and nginx's lesson, 2025 and 2026).
- The server's name is looked for in subjectAltName only: OpenSSL would take a CN (RFC 9525 §6.3).
"""

import os
import ssl
from pathlib import Path

ALPN = "smtp"
_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good
_LEGACY_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:DHE+AES:RSA+AESGCM:RSA+AES:!aNULL:!eNULL:@SECLEVEL=0"


class CertificateError(ValueError):
    """A certificate or its key can't be used; the text names the file."""


def for_client(chain: bytes, key: bytes, *, legacy: bool = False, keylog: str = "") -> ssl.SSLContext:
    """A context for the client's link, where we are the TLS server.

    Args:
        chain: PEM, the certificate first.
        key: PEM, without passphrase.
        legacy: TLS 1.0 and 1.1 too.
        keylog: a file that session keys are written to; "" for none.

    Raises:
        CertificateError: they are no certificate and key that belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _settle(context, legacy, keylog)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_DH_USE | ssl.OP_SINGLE_ECDH_USE
    context.num_tickets = 1  # a client that keeps connections needs no more, and each costs a signature's worth
    _load(context, chain, key)
    return context


def for_server(
    *,
    verify: bool,
    roots: str = "",
    chain: bytes = b"",
    key: bytes = b"",
    legacy: bool = False,
    keylog: str = "",
) -> ssl.SSLContext:
    """A context for the server's link, where we are the TLS client.

    Args:
        verify: chain and name, by OpenSSL, in the handshake. Otherwise every certificate is taken, and looked at later.
        roots: a file of PEM certificates; "" for the system's.
        chain, key: PEM, our own certificate for a server that asks for one.
        legacy, keylog: as in `for_client`.

    Raises:
        CertificateError: our own certificate, or the roots, can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _settle(context, legacy, keylog)
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_TICKET  # none is used on this link (net/towards.py)
    if verify:
        if roots:
            try:
                context.load_verify_locations(cafile=roots)
            except ssl.SSLError as error:
                raise CertificateError(f"{roots}: no certificates: {_reason(error)}") from None
            except OSError as error:
                raise CertificateError(f"{roots}: {error.strerror}") from None
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if chain:
        _load(context, chain, key)
    return context


def _settle(context: ssl.SSLContext, legacy: bool, keylog: str) -> None:
    # The lowest there is: SSL 3.0 is off by an option in all contexts, and naming 1.0 is a warning to Python.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED if legacy else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_LEGACY_SUITES if legacy else _SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python's default, by which a cut link looks like an ended one
    context.set_alpn_protocols([ALPN])
    if keylog:
        context.keylog_filename = keylog


def _load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """OpenSSL reads files only, as Python has it: this one is in memory and has no name."""
    try:
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            for octets in (key, b"\n", chain):
                os.write(descriptor, octets)
            # An empty passphrase: a key that has one fails, where OpenSSL would ask for it at the terminal.
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")
        finally:
            os.close(descriptor)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise CertificateError("certificate and key do not belong together") from None
        raise CertificateError(f"not a certificate and its key: {_reason(error)}") from None
    except OSError as error:  # no descriptor is left
        raise CertificateError(f"a certificate can't be loaded: {error.strerror}") from None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def read_pair(chain: str, key: str = "") -> tuple[bytes, bytes]:
    """A certificate and its key, from two files or one.

    Raises:
        CertificateError: they can't be read, or do not belong together.
    """
    found = []
    for path in (chain, key or chain):
        try:
            found.append(Path(path).read_bytes())
        except OSError as error:
            raise CertificateError(f"{path}: {error.strerror}") from None
    try:
        for_client(found[0], found[1])
    except CertificateError as error:
        where = chain if not key or key == chain else f"{chain} and {key}"
        raise CertificateError(_lacking(chain, key, *found) or f"{where}: {error}") from None
    return found[0], found[1]


def _lacking(chain: str, key: str, certificates: bytes, keys: bytes) -> str:
    """What is not in the files, by the labels of PEM (RFC 7468): OpenSSL's word for all of it is "pem lib"."""
    if b"CERTIFICATE-----" not in certificates:
        return f"{chain}: no certificate in it"
    if b"PRIVATE KEY-----" not in keys:
        return f"{key or chain}: no private key in it" + ("" if key else "; say `key` where it is in a file of its own")
    if b"ENCRYPTED" in keys:
        return f"{key or chain}: the key is encrypted: `openssl pkey -in {key or chain}` writes it without passphrase"
    return ""

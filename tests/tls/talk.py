"""Two ends of a TLS connection in memory."""

import ssl

from cryptography import x509

from tests.tls.maker import Extra

TURNS = 12  # of a handshake, more than any takes


def purpose(*oids: x509.ObjectIdentifier) -> Extra:
    """An extendedKeyUsage."""
    return x509.ExtendedKeyUsage(oids), False


def converse(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    name: str | None = "mx.example",
    *,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake, and an octet each way; the two ends. ssl.SSLError if it fails, the client's if both do."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(back, there, server_hostname=name, session=session)
    serves = server.wrap_bio(there, back, server_side=True)
    failed: ssl.SSLError | None = None
    for _ in range(TURNS):
        for end in (asks, serves):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                raise
            except ssl.SSLError as error:
                failed = failed or error
        if failed is not None:
            raise failed
    for one, other in ((serves, asks), (asks, serves)):
        one.write(b"x")
        assert other.read(1) == b"x"
    return asks, serves

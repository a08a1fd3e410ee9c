"""A TLS connection without I/O: octets of a link go in, octets for the link come out.

Driven by hand because that is by far the cheapest (bench/README.md has the figures). What it sees to:

- a handshake takes a bounded number of octets, and says why it failed;
- what is inside ends for good by close_notify: nothing behind it is ever read, whatever it is;
- an end without close_notify is known as such (`truncated`): who asks decides what it means.
"""

import contextlib
import ssl
from typing import Any

from smtpproxy.tls.verdict import FAILED

HANDSHAKE = 131_072  # octets of a peer's handshake; OpenSSL's own bound for a chain alone is 100 KiB
RECORD = 16_384  # octets of one record's content
_DER = 2  # OpenSSL's X509_FILETYPE_ASN1


class HandshakeError(Exception):
    """A handshake failed. `result` is a result type of RFC 8460 §4.3, `refused` OpenSSL's error about a certificate."""

    def __init__(self, why: str, result: str = "", refused: ssl.SSLCertVerificationError | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.result = result
        self.refused = refused


class Channel:
    """One end of a TLS connection."""

    __slots__ = ("_first", "_in", "_out", "_taken", "broken", "finished", "object", "truncated")

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        hostname: str | None = None,
    ) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=hostname)
        self._taken = 0
        self._first = b""  # octet of the peer
        self.broken: ssl.SSLError | None = None  # what the next `receive` raises
        self.finished = False  # the peer sent close_notify: nothing more is read
        self.truncated = False  # the link ended without it

    # ---------------------------------------------------------------------------------------------- the handshake

    def handshake(self, octets: bytes = b"") -> bool:
        """Go on with what came; True when it is done. What `outgoing` gives then is to be sent either way.

        Raises:
            HandshakeError: it failed. What `outgoing` gives then is the alert.
        """
        self._taken += len(octets)
        if self._taken > HANDSHAKE:
            raise HandshakeError(f"more than {HANDSHAKE} octets of handshake", FAILED)
        if octets:
            self._first = self._first or octets[:1]
            self._in.write(octets)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise HandshakeError(error.verify_message, FAILED, error) from None
        except ssl.SSLError as error:
            clear = self._first.isascii() and self._first.isalnum()  # as "220 …" or "GET …" begins, and no TLS record
            raise HandshakeError(
                "clear text, and no TLS, came from the peer" if clear else _reason(error), FAILED
            ) from None
        return True

    @property
    def facts(self) -> tuple[str, str, str, bool]:
        """Version, cipher suite, ALPN, resumed."""
        cipher = self.object.cipher()
        return (
            self.object.version() or "",
            cipher[0] if cipher else "",
            self.object.selected_alpn_protocol() or "",
            bool(self.object.session_reused),
        )

    def leaf(self) -> bytes:
        """The peer's certificate, DER; b"" if it showed none."""
        return self.object.getpeercert(binary_form=True) or b""

    def chain(self) -> list[bytes]:
        """All the peer showed, DER, its own first. Nothing here is verified."""
        public: Any = getattr(self.object, "get_unverified_chain", None)
        if public is not None:  # Python 3.13
            return list(public())
        inner: Any = self.object._sslobj  # type: ignore[attr-defined]  # the same, not public before 3.13
        return [certificate.public_bytes(_DER) for certificate in inner.get_unverified_chain() or ()]

    # ------------------------------------------------------------------------------------------------- the content

    def receive(self, octets: bytes) -> bytes:
        """What came, in clear; b"" if it is no whole record yet, or if nothing will be read any more (`finished`).

        Records in front of one that is broken are given first, so that it does not matter in what pieces they came.

        Raises:
            ssl.SSLError: it is no TLS, or was changed on its way.
        """
        if self.finished:
            return b""
        if self.broken is not None:
            raise self.broken
        incoming = self._in
        if octets:
            incoming.write(octets)
        inner = self.object
        pieces = []
        try:
            while incoming.pending:
                piece = inner.read(RECORD)
                if not piece:  # close_notify, as Python has it; whatever stands behind it stays where it is
                    self.finished = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.finished = True
        except ssl.SSLError as error:
            if not pieces:
                raise
            self.broken = error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def ended(self) -> None:
        """The link ended. Without close_notify before it, somebody may have cut it."""
        if not self.finished:
            self.finished = True
            self.truncated = True

    @property
    def waiting(self) -> bool:
        """Octets came that have not been looked at: behind the handshake's last ones."""
        return self._in.pending > 0 and not self.finished

    def send(self, octets: bytes | bytearray | memoryview) -> None:
        """Encrypt all of it; `outgoing` gives it.

        Raises:
            ssl.SSLError: the connection is in no state to.
        """
        inner = self.object
        size = len(octets)
        done = inner.write(octets)
        if done < size:
            with memoryview(octets) as view:
                while done < size:
                    with view[done:] as rest:
                        done += inner.write(rest)

    def outgoing(self) -> bytes:
        """What is to be sent to the peer; b"" if there is nothing."""
        return self._out.read()

    @property
    def pending(self) -> int:
        """Octets that are to be sent."""
        return self._out.pending

    def close(self) -> bytes:
        """close_notify: what is to be sent last. b"" if the connection is in no state to."""
        with contextlib.suppress(ssl.SSLError, ValueError):  # the peer's own is not waited for
            self.object.unwrap()
        return self._out.read()


def _reason(error: ssl.SSLError) -> str:
    """What OpenSSL calls it, in small letters and without its numbers."""
    return (error.reason or "").lower().replace("_", " ") or "the handshake failed"

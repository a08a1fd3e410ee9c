"""The Message-ID of a mail (RFC 5322 §3.6.4), found while its header section comes by in pieces."""

import re
from typing import Final

MOST: Final = 65_536  # octets of a header section that are looked at
_FIELD: Final = re.compile(rb"(?:\A|\n)message-id[ \t]*+:[ \t\r\n]*+(<[^<>\r\n\0]{1,996}>)", re.IGNORECASE)


class MessageId:
    """Takes the octets of a mail until it has seen enough of them.

    Attributes:
        found: the first Message-ID of the header section; b"" if there is none in its first `MOST` octets; None as
            long as more of them are needed.
    """

    __slots__ = ("_seen", "found")

    def __init__(self) -> None:
        self._seen = bytearray()
        self.found: bytes | None = None

    def take(self, piece: bytes) -> None:
        """The next octets, without dot-stuffing; not asked once it is found."""
        seen = self._seen
        looked = max(len(seen) - 3, 0)
        seen += piece
        end = 0 if seen.startswith(b"\r\n") else seen.find(b"\r\n\r\n", looked)
        if end < 0 and len(seen) < MOST:
            return
        match = _FIELD.search(seen, 0, min(end, MOST) if end >= 0 else MOST)
        self.found = bytes(match[1]) if match else b""
        self._seen = bytearray()

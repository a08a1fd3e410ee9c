"""Content that the next reader may see otherwise than a rule does: CR, LF or NUL alone in it.

By DATA such octets never get here; they are replaced, or the mail is refused, before. BDAT carries them. In a header
section some readers end it at an LF, and some do not; so nothing can be said of it, and rules on it have failed. In the
body they are content under BINARYMIME (RFC 3030 §3), and nothing that may be sent without.
"""

from typing import Any, Final

WHY: Final = "CR, LF or NUL alone in it: the next reader may see another mail"
ANOMALY: Final = "stray-newline-refused"
_PIECE: Final = 262_144


def astray(octets: bytes) -> bool:
    """One of them stands in these whole lines."""
    rest = octets.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest or b"\0" in rest


def ambiguous(file: Any, header: int, *, binary: bool) -> bool:
    """Readers may differ about the content of this file, whose first `header` octets are its header section.

    Args:
        file: readable and seekable; it is at its start afterwards.
        header: octets.
        binary: its body may have any octets.
    """
    file.seek(0)
    found = astray(file.read(header))
    tail = b""
    while not found and not binary and (piece := file.read(_PIECE)):
        piece = tail + piece
        tail = b"\r" if piece.endswith(b"\r") else b""  # its LF may come with the next piece
        found = astray(piece.removesuffix(tail))
    file.seek(0)
    return found or (bool(tail) and not binary)

"""Content-transfer-encodings (RFC 2045 §6) and uuencode, as lenient readers undo them.

Nothing is refused: what is no base64 is skipped, a padding in the middle begins anew. Where two readers would come to
different octets, both are given.
"""

import binascii
import re
from collections.abc import Iterator
from typing import Final

from smtpproxy.smtp.encodedwords import base64

PLAIN: Final = "plain"
BASE64: Final = "base64"
QUOTED: Final = "quoted-printable"

_UU_BEGIN: Final = re.compile(rb"^begin(-base64)? [0-7]{3,4} ([^\r\n]{1,1000})\r?\n", re.MULTILINE)
_UU_END: Final = re.compile(rb"^(?:end|====)[ \t]*\r?$", re.MULTILINE)
_SIX_BITS: Final = bytes(
    32 + ((octet - 32) & 63) for octet in range(256)
)  # of uuencode, as those read it who don't ask
_NEITHER: Final = bytes(
    octet for octet in range(256) if octet not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)


def encodings(values: list[bytes]) -> list[str]:
    """What these values of Content-Transfer-Encoding could mean; [PLAIN] if there is none."""
    found: dict[str, None] = {}
    for value in values:
        word = value.lower()
        if b"base64" in word or word.strip() == b"b":
            found[BASE64] = None
        elif b"quoted" in word or word.strip() == b"q":
            found[QUOTED] = None
        else:
            found[PLAIN] = None
        if word.strip() not in (b"base64", b"quoted-printable", b"7bit", b"8bit", b"binary"):
            found[PLAIN] = None  # misspelt: some readers know it all the same, and some don't
    return list(found) or [PLAIN]


def undone(octets: bytes, encoding: str) -> list[bytes]:
    """What the octets say: one reading, or more where readers differ."""
    if encoding == PLAIN:
        return [octets]
    if encoding == QUOTED:
        return [binascii.a2b_qp(octets)]
    plain = octets.translate(None, _NEITHER)
    inside = plain.rstrip(b"=")
    if b"=" not in inside:
        return [base64(plain)]
    readings = [b"".join(map(base64, inside.split(b"="))), base64(inside)]
    return readings if readings[0] != readings[1] else readings[:1]


def uuencoded(octets: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and octets of each file that stands in a text in uuencode (or what POSIX made of it with base64)."""
    at = 0
    while (begin := _UU_BEGIN.search(octets, at)) is not None:
        end = _UU_END.search(octets, begin.end())
        at = end.end() if end is not None else len(octets)
        body = octets[begin.end() : end.start() if end is not None else len(octets)]
        if begin[1]:
            yield begin[2].strip(), base64(body)
        else:
            yield begin[2].strip(), b"".join(map(_uu_line, body.splitlines()))


def _uu_line(line: bytes) -> bytes:
    if not 0x20 <= line[:1].ljust(1)[0] <= 0x60:
        return b""
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:  # characters that are none, or more than its count says
        needed = -(-4 * ((line[0] - 32) & 63) // 3)
        return binascii.a2b_uu(line[: 1 + needed].translate(_SIX_BITS))

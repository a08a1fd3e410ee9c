"""Text in header fields: encoded words (RFC 2047), charsets, raw UTF-8 (RFC 6532).

Reading is lenient, because mail readers are: an encoded word is decoded wherever it stands, with blanks in it too, and
octets that are not what their charset says still come out as something. What must never happen: an exception for what
a stranger wrote; time that grows faster than the octets (Python's `punycode`, `idna` and e-mail parser do, so none of
them is used); a line break in what is given.
"""

import binascii
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

# Charsets by the names mail has for them → Python's codec. A closed list: Python has codecs that take quadratic time,
# and a name it does not know makes it search the file system.
_SAME: Final = """
    utf-8 utf-7 utf-16 utf-16be utf-16le utf-32 iso-8859-1 iso-8859-2 iso-8859-3 iso-8859-4 iso-8859-5 iso-8859-6
    iso-8859-7 iso-8859-8 iso-8859-9 iso-8859-10 iso-8859-11 iso-8859-13 iso-8859-14 iso-8859-15 iso-8859-16
    windows-1250 windows-1251 windows-1252 windows-1253 windows-1254 windows-1255 windows-1256 windows-1257
    windows-1258 koi8-r koi8-u gb2312 gbk gb18030 hz-gb-2312 big5 big5-hkscs shift_jis euc-jp iso-2022-jp
    iso-2022-jp-2 iso-2022-kr euc-kr tis-620 macintosh cp437 cp850 cp852 cp866 cp932 cp949 cp950 johab
"""
CHARSETS: Final = MappingProxyType(
    {
        **{name: name for name in _SAME.split()},
        **{f"iso8859-{part}": f"iso-8859-{part}" for part in range(1, 17) if part != 12},
        **{f"cp{page}": f"cp{page}" for page in range(1250, 1259)},
        "us-ascii": "ascii",
        "ascii": "ascii",
        "utf8": "utf-8",
        "latin1": "iso-8859-1",
        "latin-1": "iso-8859-1",
        "iso-8859-8-i": "iso-8859-8",
        "iso-8859-6-i": "iso-8859-6",
        "windows-874": "cp874",
        "windows-31j": "cp932",
        "windows-936": "gbk",
        "windows-949": "cp949",
        "windows-950": "cp950",
        "ks_c_5601-1987": "cp949",
        "cp936": "gbk",
        "x-gbk": "gbk",
        "x-sjis": "cp932",
        "sjis": "cp932",
        "ibm850": "cp850",
        "x-mac-roman": "macintosh",
    }
)

# Charset (perhaps with a language, RFC 2231 §5), B or Q, text. Each part ends at a `?`, so that an attempt ends early.
_WORD: Final = re.compile(rb"=\?([^?*]{1,64}+)(?:\*[^?]{0,64}+)?\?([bBqQ])\?([^?]*+)\?=")
_BLANKS: Final = re.compile(rb"[ \t\r\n]*+").fullmatch
_BREAKS: Final = re.compile(r"[\r\n\0]")
_NO_BASE64: Final = bytes(
    octet for octet in range(256) if octet not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)
_CONTROLS: Final = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_QUOTED: Final = re.compile(r'[ \t]*+"(?:[^"\\]++|\\.)*+"').match
_PLAIN: Final = re.compile(r'[ \t]*+(?:[^ \t"]++|")').match
_LONGEST_WORD: Final = 900  # octets without a blank; a line has 998 (RFC 5322 §2.1.1)
_ENCODED: Final = 36  # octets in one encoded word: 48 in base64, 60 with what is around them; 75 are allowed


def text(octets: bytes, charset: str = "") -> str:
    """Octets of a charset (its name in any case) as text.

    What is not in that charset, or in none we know, is UTF-8 if it can be, else ISO 8859-1, which everything can be.
    """
    for name in (CHARSETS.get(charset.strip().lower(), "utf-8"), "utf-8"):
        try:
            return _SURROGATES.sub("?", octets.decode(name))  # UTF-7 can spell halves of characters
        except UnicodeError:
            continue
    return octets.decode("iso-8859-1")


def base64(octets: bytes) -> bytes:
    """The meaning of base64 as lenient readers see it: what is no base64 is skipped, an incomplete end is left out."""
    plain = octets.translate(None, _NO_BASE64)
    rest = len(plain) % 4
    return binascii.a2b_base64(plain + b"==="[rest - 1 :] if rest > 1 else plain[: len(plain) - rest])


def decoded(value: bytes) -> str:
    """A field's value (unfolded or not) as text: encoded words are decoded, CR, LF and NUL are blanks."""
    if b"=?" not in value:
        return _BREAKS.sub(" ", text(value))
    return _BREAKS.sub(" ", "".join(_pieces(value)))


def _pieces(value: bytes) -> Iterator[str]:
    at = 0
    charset = b""
    run: list[bytes] = []  # octets of words of one charset: a character may begin in one and end in the next
    for word in _WORD.finditer(value):
        between = value[at : word.start()]
        if not run or not _BLANKS(between):  # blanks between encoded words are not text (RFC 2047 §6.2)
            yield from _run(run, charset)
            yield text(between)
        elif word[1].lower() != charset:
            yield from _run(run, charset)
        charset = word[1].lower()
        coded = word[3]
        run.append(base64(coded) if word[2] in b"bB" else binascii.a2b_qp(coded, header=True))
        at = word.end()
    yield from _run(run, charset)
    yield text(value[at:])


def _run(run: list[bytes], charset: bytes) -> Iterator[str]:
    if run:
        yield text(b"".join(run), charset.decode("latin-1"))
        run.clear()


def printable(value: str) -> str:
    """A value nothing can be broken with: control characters and line ends of any kind are question marks."""
    return _CONTROLS.sub("?", value).strip(" \t")


def encoded(value: str, *, utf8: bool) -> list[bytes]:
    """A value as pieces between which it may be folded, each with the blanks before it.

    What is not ASCII is in encoded words, but with `utf8`, where the section may hold UTF-8 (RFC 6532). So is a piece
    that would not fit into a line, and what reads as an encoded word without being meant as one.
    """
    pieces: list[bytes] = []
    coded: list[str] = []  # neighbours that need encoding, with the blanks between them
    for token in _tokens(printable(value)):
        octets = token.encode()
        if (octets.isascii() or utf8) and b"=?" not in octets and len(octets.lstrip()) <= _LONGEST_WORD:
            if coded:
                _encode(coded, pieces)
                octets = octets if octets[0] in b" \t" else b" " + octets  # an encoded word stands alone (RFC 2047 §5)
            pieces.append(octets)
        else:
            coded.append(token)
    if coded:
        _encode(coded, pieces)
    return pieces


def _tokens(value: str) -> Iterator[str]:
    """Words and quoted strings, each with the blanks before it; together they are the value."""
    at = 0
    quoted = True  # once a quoted string does not end, none behind it does
    while at < len(value):
        found = _QUOTED(value, at) if quoted else None
        if found is None:
            found = _PLAIN(value, at)
            if found is None:
                raise AssertionError(value)
            quoted = quoted and not found[0].endswith('"')
        yield found[0]
        at = found.end()


def _encode(coded: list[str], pieces: list[bytes]) -> None:
    together = "".join(coded)
    words = together.lstrip(" \t")
    blanks = together[: len(together) - len(words)].encode() or (b" " if pieces else b"")
    if len(coded) == 1 and len(words) > 1 and words[0] == words[-1] == '"':  # within quotes it would be no word (§5)
        words = re.sub(r"\\(.)", r"\1", words[1:-1])
    coded.clear()
    octets = words.encode()
    at = 0
    while at < len(octets):
        end = at + _ENCODED
        while end < len(octets) and octets[end] & 0xC0 == 0x80:  # a character is never cut (§5)
            end -= 1
        pieces.append(blanks + b"=?utf-8?b?" + binascii.b2a_base64(octets[at:end], newline=False) + b"?=")
        blanks = b" "
        at = end

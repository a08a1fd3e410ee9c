"""Parameters of Content-Type and Content-Disposition (RFC 2045 §5.1, RFC 2231), and names of files, leniently.

Where readers differ, all that one of them could understand is given: a parameter written twice, in the form of RFC 2231
and in the old one, quoted or with encoded words in it.
"""

import re
from collections.abc import Iterator
from typing import Final

from smtpproxy.policy.mimelimits import MimeLimit
from smtpproxy.smtp import encodedwords
from smtpproxy.smtp.message import Header

_PARAMETER: Final = re.compile(
    rb'[;\s]*+([^\s=;"]{1,80}+)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)("?)|([^;]*+))|[;\s]*+(?:"[^"]*+"?|[^;\s]++)|[;\s]++',
    re.DOTALL,
)
_QUOTED_PAIR: Final = re.compile(rb"\\(.)", re.DOTALL)
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_SECTION: Final = re.compile(rb"([^*]++)\*(\d{1,4})?+(\*)?\Z")
_COMMENT: Final = re.compile(rb"\([^()]*+\)")
_HIDDEN: Final = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u061c\u00ad\0-\x1f\x7f-\x9f]")
_LONGEST: Final = 1024  # characters of a name
_MANY: Final = 64  # values of one parameter in one field


class Value:
    """A field's value: what comes first, in small letters, and its parameters, each with all its readings."""

    __slots__ = ("first", "parameters")

    def __init__(self, first: str, parameters: dict[str, list[bytes]]) -> None:
        self.first = first
        self.parameters = parameters


def parsed(octets: bytes) -> Value:
    """A field's unfolded value: `text/plain; name="x"`.

    Raises:
        MimeLimit: one parameter has too many values.
    """
    bare = _COMMENT.sub(b" ", octets)
    first = re.sub(r"\s+", "", bare.partition(b";")[0].split(b'"')[0].decode("latin-1")).lower()
    if "=" in first:  # multipart/mixed boundary=x, without the semicolon
        first = (bare.split() or [b""])[0].decode("latin-1").lower()
    parameters: dict[str, list[bytes]] = {}
    pieces: dict[bytes, dict[int, tuple[bytes, bool]]] = {}
    for text in (octets, bare) if bare != octets else (octets,):
        _read(text, parameters, pieces)
    for name, numbered in pieces.items():
        _add(parameters, name, _joined(numbered))
    return Value(first, parameters)


def _read(
    octets: bytes, parameters: dict[str, list[bytes]], pieces: dict[bytes, dict[int, tuple[bytes, bool]]]
) -> None:
    for found in _PARAMETER.finditer(octets):
        name, quoted, ended, plain = found.groups()
        if name is None:
            continue
        if plain is None:
            value = _QUOTED_PAIR.sub(rb"\1", quoted)
            if not ended:  # the quote does not end: some read to the next semicolon
                _add(parameters, name.lower(), value.partition(b";")[0].rstrip())
            if b"\\" in quoted:  # as the backslash of a file's path
                _add(parameters, name.lower(), quoted)
        else:
            value = plain.strip(b" \t\"'")
            if len(words := value.split()) > 1:
                _add(parameters, name.lower(), words[0].strip(b"\"'"))
        section = _SECTION.match(name.lower())
        if section is None:
            _add(parameters, name.lower(), value)
        else:
            number = int(section[2]) if section[2] else 0
            pieces.setdefault(section[1], {}).setdefault(number, (value, section[3] is not None or section[2] is None))


def _add(parameters: dict[str, list[bytes]], name: bytes, value: bytes) -> None:
    values = parameters.setdefault(name.decode("latin-1"), [])
    if value not in values:
        values.append(value)
        if len(values) > _MANY:
            raise MimeLimit("readings")


def _joined(numbered: dict[int, tuple[bytes, bool]]) -> bytes:
    """The sections of a value in their order, as UTF-8 (RFC 2231 §3, §4)."""
    charset = b""
    whole: list[bytes] = []
    for place, number in enumerate(sorted(numbered)):
        value, coded = numbered[number]
        if coded:
            if place == 0 and value.count(b"'") >= 2:
                charset, _, value = value.split(b"'", 2)
            value = _PERCENT.sub(lambda found: bytes([int(found[1], 16)]), value)
        whole.append(value)
    return encodedwords.text(b"".join(whole), charset.decode("latin-1")).encode()


def values(header: Header, name: str) -> list[Value]:
    """All values of a field that are parameters' fields."""
    return [parsed(field.body) for field in header.all(name)]


def file_names(dispositions: list[Value], types: list[Value]) -> list[str]:
    """The names a reader could give a file, the likeliest first: each once."""
    found: dict[str, None] = {}
    for fields, parameters in ((dispositions, ("filename", "name")), (types, ("name", "filename"))):
        for parameter in parameters:
            for field in fields:
                for value in reversed(field.parameters.get(parameter, [])):  # the form of RFC 2231 was put last
                    found.update(dict.fromkeys(_spelt(value)))
    return list(found)


def _spelt(value: bytes) -> Iterator[str]:
    name = tidy(encodedwords.decoded(value))
    if name:
        yield name
    if b"%" in value and (octets := _PERCENT.sub(lambda found: bytes([int(found[1], 16)]), value)) != value:
        name = tidy(encodedwords.text(octets))  # not as RFC 2231 wants it; some readers decode it all the same
        if extension(name) != extension(tidy(encodedwords.decoded(value))):
            yield name


def tidy(name: str) -> str:
    """A name without control characters, of bounded length; its end, where the extension is, is kept."""
    return re.sub("[\0-\x1f\x7f]", " ", name[:_LONGEST] if len(name) <= _LONGEST else name[:500] + name[-500:]).strip()


def extensions(name: str) -> tuple[str, ...]:
    """What stands between and behind the dots of a name, in small letters: ("pdf", "exe") of `invoice.pdf.exe`.

    Characters that turn writing round or are not seen, and dots and blanks at the end, which some systems leave out
    when they make the file, don't count; neither does an alternate stream's name.
    """
    shown = _HIDDEN.sub("", name).replace("\\", "/").rpartition("/")[2]
    shown = re.sub(r"(?i)::?\$data\Z", "", shown).rstrip(" .\t\"'\u00a0\u3000")
    _, *behind = shown.lower().split(".")
    return tuple(part.strip() for part in behind[-5:])


def extension(name: str) -> str:
    """The last of `extensions`; "" if there is none."""
    found = extensions(name)
    return found[-1] if found else ""

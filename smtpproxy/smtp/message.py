"""The header section of a mail (RFC 5322 §2.2, RFC 6532): read, looked up, edited.

What must never happen: a field that some reader behind us sees and `get` does not; an edit that makes more than the
fields it names, or changes an octet of another one; an exception or more than linear time for what a stranger wrote.

Readers differ about what is no header line. Some take the section to end there, some read on; so everything up to the
empty line is looked up here, every place where a reader might stop is in `Header.stops`, what was odd is in
`Header.anomalies`, and a field that is added is put where all of them see it. In the same way a bare CR, a bare LF and
CRLF all end a line here, and what lenient readers take for a name (`Subject :`, ` Subject:` in the first line, one with
a NUL in it) is that name.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final

from smtpproxy.smtp import encodedwords

PREPEND: Final = "prepend"
ADD: Final = "add"
REPLACE: Final = "replace"
REMOVE: Final = "remove"

_END: Final = re.compile(rb"\A\r\n|\r\n\r\n")
_LINE: Final = re.compile(rb"[^\r\n]*+(\r\n|\r|\n|\Z)")
_NAME: Final = re.compile(rb"([!-9;-~]++):")  # RFC 5322 §2.2; with nothing between name and colon
_LENIENT: Final = re.compile(rb"[ \t\0]*+([^:\r\n]*+):")
_IS_WORD: Final = re.compile(rb"[!-9;-~]+").fullmatch
_IS_NAME: Final = re.compile(rb"[!-9;-~]{1,70}").fullmatch
_FOLD: Final = 78  # characters of a line, without CRLF (§2.1.1)
_LONGEST: Final = 998

# Fields that stand once at most (RFC 5322 §3.6, RFC 2045): of two, readers take the first or the last.
_ONCE: Final = frozenset(
    b"date from sender reply-to to cc bcc message-id in-reply-to references subject mime-version content-type "
    b"content-transfer-encoding content-disposition content-id".split()
)


class HeaderField:
    """One field as it stands in the section.

    Attributes:
        name: as written, without blanks around it.
        raw: all its octets: name, colon, value, folds and line end.
        start: where in the section it begins.
    """

    __slots__ = ("_colon", "_value", "name", "raw", "start")

    def __init__(self, name: bytes, raw: bytes, colon: int, start: int) -> None:
        self.name = name
        self.raw = raw
        self.start = start
        self._colon = colon
        self._value: str | None = None

    def __repr__(self) -> str:
        return f"HeaderField({self.name!r}, {self.raw!r})"

    @property
    def body(self) -> bytes:
        """The value's octets: unfolded (its line ends taken out, RFC 5322 §2.2.3), blanks around it taken off."""
        return self.raw[self._colon + 1 :].replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")

    @property
    def value(self) -> str:
        """The value as text: unfolded, encoded words decoded, without line breaks."""
        if self._value is None:
            self._value = encodedwords.decoded(self.body)
        return self._value

    @property
    def key(self) -> bytes:
        """The name as it is looked up: small letters, without NUL."""
        return self.name.replace(b"\0", b"").lower()


class Header:
    """A header section. Make one with `Header.parse`.

    Attributes:
        octets: the section with its empty line, as it came.
        fields: in their order.
        anomalies: names from the catalogue, each once.
        stops: where, beside the empty line, a reader might take the section to end; offsets of lines, ascending.
    """

    __slots__ = ("__dict__", "anomalies", "fields", "octets", "stops")

    def __init__(self, octets: bytes, fields: list[HeaderField], anomalies: list[str], stops: list[int]) -> None:
        self.octets = octets
        self.fields = fields
        self.anomalies: tuple[str, ...] = tuple(anomalies)
        self.stops = tuple(stops)

    @classmethod
    def parse(cls, octets: bytes) -> "Header":
        """The header section these octets begin with, up to the first CRLF CRLF (or a CRLF at once), else all of them.

        Never raises; takes linear time.
        """
        end = _END.search(octets)
        return _Parser(octets[: end.end()] if end else octets).parse()

    @cached_property
    def _index(self) -> dict[bytes, list[HeaderField]]:
        index: dict[bytes, list[HeaderField]] = {}
        for field in self.fields:
            index.setdefault(field.key, []).append(field)
        return index

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """All values by name in small letters, decoded."""
        return {key.decode("latin-1"): [field.value for field in fields] for key, fields in self._index.items()}

    def all(self, name: bytes | str) -> list[HeaderField]:
        """Every field of this name, in any case."""
        key = name.encode("latin-1", "replace") if isinstance(name, str) else name
        return self._index.get(key.lower(), [])

    def get(self, name: bytes | str) -> list[str]:
        """The decoded values of every field of this name, in any case; [] if there is none."""
        return [field.value for field in self.all(name)]

    def edited(self, edits: Iterable[tuple[str, bytes, bytes]], *, utf8: bool = False) -> bytes:
        """The section with these edits made in their order: octets of whole lines, the empty line last.

        Args:
            edits: PREPEND, ADD, REPLACE (all of a name by one, where the first stood; added if there was none) or
                REMOVE; a name; a value in UTF-8, in which control characters become "?".
            utf8: the section may hold UTF-8 (SMTPUTF8); else what is not ASCII is written in encoded words.

        Fields that no edit names stay as they are octet for octet. What is no CRLF at the end of a line becomes one, a
        NUL a question mark (a blank could make a line continue the one before it).

        Raises:
            ValueError: a name that is none, or an unknown kind of edit.
        """
        pieces = self._pieces()
        stop = self.stops[0] if self.stops else len(self.octets)
        where = next((i for i, (_, octets, start) in enumerate(pieces) if start + len(octets) > stop), len(pieces))
        before = [(key, octets) for key, octets, _ in pieces[:where]]
        behind = [(key, octets) for key, octets, _ in pieces[where:]]
        for how, name, value in edits:
            if not is_field_name(name):
                raise ValueError(f"no header field name: {name!r}")
            new = (name.lower(), made(name, value, utf8=utf8))
            if how == PREPEND:
                before.insert(0, new)
            elif how == ADD:
                before.append(new)
            elif how in (REPLACE, REMOVE):
                place = next((i for i, (key, _) in enumerate(before) if key == new[0]), len(before))
                before = [piece for piece in before if piece[0] != new[0]]
                behind = [piece for piece in behind if piece[0] != new[0]]
                if how == REPLACE:
                    before.insert(place, new)
            else:
                raise ValueError(f"no edit of a header section: {how!r}")
        whole = [_whole(octets) for _, octets in (*before, *behind)]
        whole.sort(key=lambda octets: octets[:1] not in (b" ", b"\t"))  # else it would be folded into what we prepend
        return b"".join(whole) + b"\r\n"

    def _pieces(self) -> list[tuple[bytes, bytes, int]]:
        """Fields and what is between them: key, octets, start; b"" is the key of what is no field."""
        pieces: list[tuple[bytes, bytes, int]] = []
        at = 0
        for field in self.fields:
            if field.start > at:
                pieces.append((b"", self.octets[at : field.start], at))
            pieces.append((field.key, field.raw, field.start))
            at = field.start + len(field.raw)
        pieces.append((b"", self.octets[at:], at))
        return pieces


def is_field_name(name: bytes) -> bool:
    """A field name we would write: RFC 5322 §2.2, no more than 70 octets."""
    return _IS_NAME(name) is not None


def made(name: bytes, value: bytes, *, utf8: bool = False) -> bytes:
    """A whole field, folded at 78 octets where it has blanks, with its CRLF. No line of it is over 998 octets."""
    line = name + b":"
    lines: list[bytes] = []
    for index, piece in enumerate(encodedwords.encoded(encodedwords.text(value), utf8=utf8)):
        word = piece.lstrip(b" \t")
        blanks = piece[: len(piece) - len(word)] if len(piece) - len(word) < _FOLD else b" "
        if index == 0:
            line += b" " + word
        elif len(line) + len(blanks) + len(word) <= (_FOLD if blanks else _LONGEST):
            line += blanks + word
        else:
            lines.append(line)
            line = (blanks or b" ") + word
    lines.append(line)
    return b"\r\n".join(lines) + b"\r\n"


def _whole(octets: bytes) -> bytes:
    """Octets as whole lines with CRLF, without NUL and without empty ones."""
    lines = octets.replace(b"\0", b"?").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(line + b"\r\n" for line in lines if line)


class _Parser:
    """One section, line by line."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._over = len(octets) - (2 if octets.endswith(b"\r\n\r\n") or octets == b"\r\n" else 0)
        self._fields: list[HeaderField] = []
        self._odd: dict[str, None] = {}
        self._stops: dict[str, int] = {}  # where, by kind
        self._first = True  # no line yet that was not folded
        self._name = b""
        self._colon = -1  # of the field being read, counted from its start; -1: none is
        self._start = 0

    def parse(self) -> Header:
        octets = self._octets
        for start, end, ends in self._lines():
            if ends != b"\r\n" and ends:
                self._note("header-bare-newline")
            if start == end - len(ends):
                self._note("header-blank-line", start)  # an empty line, but not by CRLF
            elif octets[start] in b" \t":
                self._folded(start, end)
            else:
                self._first = False
                self._field_over(start)
                self._begin(octets[start:end], start)
            if end - len(ends) - start > _LONGEST:
                self._odd["header-line-too-long"] = None
        self._field_over(self._over)
        if b"\0" in octets:
            self._odd["header-nul"] = None
        names = [field.key for field in self._fields if field.key in _ONCE]
        if len(set(names)) < len(names):
            self._odd["header-repeated"] = None
        return Header(octets, self._fields, list(self._odd), sorted(set(self._stops.values())))

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Start, end with its line end, and that, of each line but the empty one by CRLF that ends the section."""
        for line in _LINE.finditer(self._octets, 0, self._over):
            if line.start() < self._over:  # at the end it matches nothing
                yield line.start(), line.end(), line[1]

    def _note(self, anomaly: str, stop: int = -1, kind: str = "") -> None:
        """A reader that stops at a line of one kind has stopped at the first: only that is a stop."""
        self._odd[anomaly] = None
        if stop >= 0:
            self._stops.setdefault(kind or anomaly, stop)

    def _folded(self, start: int, end: int) -> None:
        line = self._octets[start:end]
        if not line.strip(b" \t\r\n\0"):
            self._note("header-blank-line", start)
        if self._first and self._colon < 0:
            self._note("header-first-line-folded", start)
            self._begin(line, start)

    def _begin(self, line: bytes, start: int) -> None:
        """A line that continues nothing: a field begins, or it is no header line."""
        found = _NAME.match(line)
        if found is not None:
            name = found[1]
        else:
            found = _LENIENT.match(line)
            name = found[1].rstrip(b" \t\0") if found is not None else b""
            if not _IS_WORD(name.replace(b"\0", b"")):
                kind = "no colon" if found is None else "odd name" if name else "no name"
                self._note("header-line-malformed", start, kind)
            elif found is not None and found[1].endswith((b" ", b"\t")):
                self._note("header-blank-before-colon", start)
            else:
                self._stops.setdefault("NUL", start)  # or blanks before it, which were noted
        if found is None or not name:
            return
        self._name = name
        self._colon = found.end() - 1
        self._start = start

    def _field_over(self, end: int) -> None:
        if self._colon >= 0:
            raw = self._octets[self._start : end]
            self._fields.append(HeaderField(self._name, raw, self._colon, self._start))
            self._colon = -1

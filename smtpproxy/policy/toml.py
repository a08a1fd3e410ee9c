"""TOML files with places: what stands in a file, at which line and column it stands, and what is wrong with it.

`tomllib` parses and alone decides what is TOML. It tells no places, so the file is read a second time by tree-sitter,
which only locates: `Positions` maps a key path such as `("rule", 1, "then", "limit")` to the place of the key and to
the place of its value. Where tree-sitter knows no place, the place of what surrounds it is told.

A `Problem` is one mistake in one file: where, what, what was expected, and the nearest names that would have been
right. Lines and columns count from 1, columns in characters; line 0 is a problem of the file as a whole.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

KeyPath = tuple[str | int, ...]
Severity = Literal["error", "warning"]

_AT = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_ARRAY = re.compile(r"\s*\[\[\s*([A-Za-z0-9_-]+)\s*\]\]")
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)((?:\.[A-Za-z0-9_-]+)*)\s*\]")
_KEYS = frozenset({"bare_key", "quoted_key", "dotted_key"})
_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,20}) ?([A-Za-z]*)")
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}) ?([A-Za-z]*)")
_NEWLINE = re.compile(r"\r?\n")
# In a string in double quotes: a backslash and blanks over the end of a line, which are nothing; or an escape.
_ESCAPE = re.compile(r"\\(?:(?P<blank>[ \t]*\r?\n[ \t\r\n]*)|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")
_LONGEST_STRING = 10_000  # lines
_SHOWN = 60  # characters of a wrong value that a problem repeats
_WIDE = 100  # characters of a source line that `show` prints


class Place(NamedTuple):
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `where` says what it is about in the words of the file: `rule 2 "size-25m": then.limit`."""

    file: str
    line: int
    column: int
    where: str
    message: str
    expected: str = ""
    nearest: tuple[str, ...] = ()
    severity: Severity = "error"
    text: str = ""  # the line it is about

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        hints = [f"expected {self.expected}"] if self.expected else []
        if self.nearest:
            hints.append(f"nearest: {', '.join(self.nearest)}")
        return "".join(
            (
                f"{place}: ",
                "warning: " if self.severity == "warning" else "",
                f"{self.where}: " if self.where else "",
                self.message,
                f" ({'; '.join(hints)})" if hints else "",
            )
        )

    def show(self) -> str:
        """The problem, and below it the line it is about with a caret under the column."""
        if not self.text:
            return str(self)
        start = max(0, self.column - _WIDE // 2) if len(self.text) > _WIDE else 0
        line = "".join(c if c.isprintable() else " " for c in self.text[start : start + _WIDE])
        margin = " " * len(str(self.line))
        return f"{self}\n  {self.line} | {line.rstrip()}\n  {margin} | {' ' * (self.column - 1 - start)}^"

    def as_json(self) -> dict[str, Any]:
        """The problem for a program."""
        return {key: value for key, value in asdict(self).items() if key != "text"}


class TomlError(Exception):
    """A file that can't be read or is not TOML."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Positions:
    """Where the keys and values of one file stand."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._lines = text.split("\n")
        self._octets = [line.encode() for line in self._lines]
        self._keys: dict[KeyPath, Place] = {}
        self._values: dict[KeyPath, Place] = {}
        self._elements: dict[KeyPath, int] = {}  # how many [[…]] of a path there were so far
        self._unread: dict[KeyPath, Node] = {}  # tables whose keys nobody has asked for: mostly it stays so
        table: KeyPath = ()
        for node in _parser().parse(text.encode()).root_node.named_children:
            if node.type == "pair":
                self._pair(table, node)
            elif node.type in ("table", "table_array_element"):
                self._table(node, repeated=node.type == "table_array_element")

    def key(self, path: KeyPath) -> Place:
        """The place of the last key of `path`."""
        self._read_to(path)
        return self._nearest(self._keys, path)

    def value(self, path: KeyPath) -> Place:
        """The place of what `path` leads to; of a table, that of its header."""
        if path not in self._values:
            self._read_to(path)
        return self._nearest(self._values, path)

    def problem(
        self,
        path: KeyPath,
        message: str,
        *,
        where: str,
        key: bool = False,
        expected: str = "",
        nearest: Sequence[str] = (),
        severity: Severity = "error",
        inside: Place | None = None,
    ) -> Problem:
        """A problem with the value at `path`, or with its key, or with a place inside the string that stands there.

        Args:
            inside: a line and a column of the string's value, both counted from 1.
        """
        if inside is not None:
            line, column = self.inside(path, inside)
        else:
            line, column = self.key(path) if key else self.value(path)
        text = self._lines[line - 1].rstrip("\r")
        return Problem(self.file, line, column, where, message, expected, tuple(nearest), severity, text)

    def inside(self, path: KeyPath, place: Place) -> Place:
        """Where a character of the string at `path` stands in the file; the string's own place where it is none."""
        start = self.value(path)
        return _within(self._lines, start, place) or start

    @staticmethod
    def _nearest(places: dict[KeyPath, Place], path: KeyPath) -> Place:
        while path and path not in places:
            path = path[:-1]
        return places.get(path, Place(1, 1))

    def _place(self, node: Node) -> Place:
        line, octets = node.start_point
        return Place(line + 1, len(self._octets[line][:octets].decode("utf-8", "replace")) + 1)

    def _table(self, node: Node, *, repeated: bool) -> None:
        header = next(child for child in node.named_children if child.type in _KEYS)
        path: KeyPath = ()
        *parents, last = _segments(header)
        for segment in parents:
            path = self._step(path, segment)
        path += (_name(last),)
        self._keys.setdefault(path, self._place(last))
        self._values.setdefault(path, self._place(node))
        if repeated:
            index = self._elements.get(path, 0)
            self._elements[path] = index + 1
            path += (index,)
            self._keys[path] = self._place(last)
            self._values[path] = self._place(node)
        self._unread[path] = node

    def _read_to(self, path: KeyPath) -> None:
        """Look at the keys of the tables that `path` leads through."""
        for length in range(len(path) + 1):
            node = self._unread.pop(path[:length], None) if self._unread else None
            for child in node.named_children if node is not None else ():
                if child.type == "pair":
                    self._pair(path[:length], child)

    def _step(self, path: KeyPath, segment: Node) -> KeyPath:
        """One key of a header further: into the last element, where the key names several."""
        path += (_name(segment),)
        self._keys.setdefault(path, self._place(segment))
        self._values.setdefault(path, self._place(segment))
        elements = self._elements.get(path)
        return path if elements is None else (*path, elements - 1)

    def _pair(self, table: KeyPath, node: Node) -> None:
        key, *_, value = [child for child in node.named_children if child.type != "comment"]
        path = table
        for segment in _segments(key):
            path += (_name(segment),)
            self._keys.setdefault(path, self._place(segment))
            self._values.setdefault(path, self._place(segment))
        self._value(path, value)

    def _value(self, path: KeyPath, node: Node) -> None:
        self._values[path] = self._place(node)
        children = [child for child in node.named_children if child.type != "comment"]
        if node.type == "inline_table":
            for child in children:
                self._pair(path, child)
        elif node.type == "array":
            for index, child in enumerate(children):
                self._keys[*path, index] = self._place(child)
                self._value((*path, index), child)


def parse(path: Path) -> tuple[dict[str, Any], Positions]:
    """What a file holds, and where.

    Raises:
        TomlError: it can't be read or is not TOML.
    """
    file = str(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TomlError(Problem(file, 0, 0, "", f"can't be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - (error.object.rfind(b"\n", 0, error.start) + 1) + 1
        raise TomlError(Problem(file, line, column, "", "not TOML: not UTF-8", "a file in UTF-8")) from None
    if text.startswith("\ufeff"):
        raise TomlError(Problem(file, 1, 1, "", "not TOML: a byte order mark", "UTF-8 without one"))
    try:
        return tomllib.loads(text), Positions(file, text)
    except ValueError as error:  # TOMLDecodeError, and what Python says of numbers of thousands of digits
        raise TomlError(_syntax_problem(file, text, str(error))) from None
    except RecursionError:
        raise TomlError(Problem(file, 0, 0, "", "nested too deeply")) from None


def parse_size(size: str | int) -> int:
    """Octets from `"25 MiB"`, `"10MB"`, `"1000000"` or a number.

    Raises:
        ValueError: not a size.
    """
    if isinstance(size, int):
        return size
    found = _SIZE.fullmatch(size)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{shown(size)} is not a size")
    return int(found[1]) * _UNITS[found[2]]


def nearest_sizes(size: str) -> list[str]:
    """What was perhaps meant: the same number with the units most like the one written."""
    found = _SIZE.match(size.strip())
    if found is None:
        return []
    units = [unit for unit in _UNITS if unit and unit[0].lower() == found[2][:1].lower()]
    return [f"{found[1]} {unit}" for unit in units]


def parse_duration(duration: str | float) -> float:
    """Seconds from `"500ms"`, `"5s"`, `"10m"`, `"1h"`, `"7d"` or a number of seconds.

    Raises:
        ValueError: not a duration.
    """
    if not isinstance(duration, str):
        if not 0 <= duration < 10**12:
            raise ValueError(f"{shown(duration)} is not a duration")
        return float(duration)
    found = _DURATION.fullmatch(duration)
    if found is None or found[2] not in _DURATIONS:
        raise ValueError(f"{shown(duration)} is not a duration")
    return int(found[1]) * _DURATIONS[found[2]]


def nearest_durations(duration: str) -> list[str]:
    """What was perhaps meant: the same number with the units that begin like the one written."""
    found = _DURATION.match(duration.strip())
    if found is None:
        return []
    word = found[2].lower()
    units = [unit for unit in _DURATIONS if word[:1] == unit[0]] if word else ["s"]
    return [f"{found[1]}{unit}" for unit in units]


def nearest(word: str, words: Iterable[str], n: int = 3) -> list[str]:
    """The names most like `word`, in whatever case it is written."""
    folded = {known.casefold(): known for known in words}
    return [folded[match] for match in difflib.get_close_matches(word.casefold(), folded, n=n)]


def shown(value: object) -> str:
    """A wrong value as TOML would write it, short and safe to print."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if not isinstance(value, str):
        return str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    short = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f'"{"".join(map(_safe, short))}"'


def _safe(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _within(lines: Sequence[str], start: Place, wanted: Place) -> Place | None:
    """Walks a string of any of TOML's four kinds from its first quote, and counts what its value would count."""
    text = "\n".join((lines[start.line - 1][start.column - 1 :], *lines[start.line : start.line + _LONGEST_STRING]))
    if text[:1] not in ("'", '"'):
        return None
    quote = text[:3] if text[:3] in ("'''", '"""') else text[0]
    literal, position = quote[0] == "'", len(quote)
    if len(quote) == 3 and (newline := _NEWLINE.match(text, position)):  # it is not of the string
        position = newline.end()
    line = column = 1
    while position < len(text) and (line, column) < wanted:
        if text.startswith(quote, position):
            break
        found = None if literal else _ESCAPE.match(text, position)
        if found is not None:
            position = found.end()
            if found["blank"] is None:
                line, column = (line + 1, 1) if found[0] == "\\n" else (line, column + 1)
        elif newline := _NEWLINE.match(text, position):
            position, line, column = newline.end(), line + 1, 1
        else:
            position, column = position + 1, column + 1
    if not literal:  # what is skipped stands before the character, not behind the one before it
        while (found := _ESCAPE.match(text, position)) and found["blank"] is not None:
            position = found.end()
    before = text[:position]
    down = before.count("\n")
    return Place(start.line + down, position - before.rfind("\n") if down else start.column + position)


def _syntax_problem(file: str, text: str, message: str) -> Problem:
    lines = text.split("\n")
    found = _AT.search(message)
    if found is None:
        return Problem(file, 0, 0, "", f"not TOML: {message}")
    if found["line"] is None:  # at the end of the document
        line = len(lines) if lines[-1] or len(lines) == 1 else len(lines) - 1
        column = len(lines[line - 1].rstrip("\r")) + 1
    else:
        line, column = int(found["line"]), int(found["column"])
    message = f"not TOML: {message[: found.start()]}"
    return Problem(file, line, column, "", message, _before_its_list(lines, line), text=lines[line - 1].rstrip("\r"))


def _before_its_list(lines: Sequence[str], line: int) -> str:
    """The right order, where the first `[[x]]` stands behind an `[x.y]` of it."""
    if array := _ARRAY.match(lines[line - 1]):
        name = array[1]
        for number, text in enumerate(lines[: line - 1], 1):
            table = _HEADER.match(text)
            if table and table[1] == name:
                return f"[[{name}]] before its [{name}{table[2]}], which stands in line {number}"
    return ""


def _parser() -> Parser:
    return Parser(Language(tree_sitter_toml.language()))


def _segments(key: Node) -> Iterator[Node]:
    """The single keys of a dotted one. Tree-sitter nests them to the left, as deep as there are dots."""
    tail: list[Node] = []
    while key.type == "dotted_key":
        key, last = key.named_children
        tail.append(last)
    yield key
    yield from reversed(tail)


def _name(key: Node) -> str:
    text = (key.text or b"").decode()
    if key.type == "quoted_key":
        return next(iter(tomllib.loads(f"{text} = 0")))
    return text

"""Lists: what rules look values up in, hundreds of thousands of entries if need be.

    [lists.blocked-domains]
    kind = "domains"
    file = "lists/blocked-domains.txt"    # relative to the rule file; one a line, # comments
    why = "Domains that never wrote to us for good."

`entries = ["…"]` stands in place of `file` where there are few. Entries are checked when they are read, and what is no
entry of the list's kind is told with its line and column: half a list is no list.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from smtpproxy.policy.membership import Kind, Network, fold
from smtpproxy.policy.rules import Source
from smtpproxy.policy.toml import KeyPath, Positions, Problem, nearest, shown

_NOWHERE: Final = Source("", 0)
_KEYS: Final = ("kind", "file", "entries", "why")
_KINDS: Final = {kind.value: kind for kind in Kind}
_A_KIND: Final = ", ".join(f'"{word}"' for word in _KINDS)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHOWN: Final = 20  # problems of one list that are told
_COMMENT: Final = re.compile(r"(?:^|(?<=[ \t]))#.*", re.DOTALL)

_DOMAIN: Final = re.compile(r"(?=.{1,255}\Z)[\w-]{1,63}(?:\.[\w-]{1,63})*")
_DOMAIN_IN: Final = re.compile(r"(?:[a-z]+://|[^@]*@|\*?\.)?([\w-]+(?:\.[\w-]+)*)\.?(?:[:/].*)?", re.IGNORECASE)
_ADDRESS: Final = re.compile(r'[^\s<>@]+|(?:[^\s<>]*|"(?:[^"\\]|\\.)*")@(?:[\w-]+(?:\.[\w-]+)*|\[[0-9A-Za-z.:]+\])')
_ADDRESS_IN: Final = re.compile(r".*<(?:mailto:)?([^\s<>]+)>|mailto:([^\s<>]+)", re.IGNORECASE)
_DIGEST: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")
_IPV4: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?:/([0-9]{1,2}))?")


class EntryError(ValueError):
    """What is no entry of a kind; `nearest` is what was perhaps meant."""

    def __init__(self, message: str, expected: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.expected = expected
        self.nearest = nearest


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class List:
    """One list. `file` is where its entries stand, if that is not the rule file (`source`) itself."""

    name: str
    kind: Kind
    entries: frozenset[str | Network]
    source: Source = _NOWHERE
    why: str = ""
    file: Path | None = None

    def __repr__(self) -> str:
        return f"List({self.name!r}, {self.kind.value}, {len(self.entries)} entries)"

    def __len__(self) -> int:
        return len(self.entries)


class _Line(NamedTuple):
    """An entry of a file, and where it stands."""

    text: str
    line: int
    column: int
    whole: str


def list_of(name: str, kind: str, entries: Iterable[str]) -> List:
    """A list made in code (tests, the demo).

    Raises:
        ValueError: no such kind, or what is no entry of it.
    """
    read = _READ[_KINDS[kind]] if kind in _KINDS else None
    if read is None:
        raise ValueError(f"{shown(kind)} is not a kind of list")
    return List(name, _KINDS[kind], frozenset(map(read, entries)))


def load_list(name: str, kind: Kind, file: Path, source: Source = _NOWHERE, why: str = "") -> List | list[Problem]:
    """The list whose entries stand in `file`, one a line; or what is wrong with the file.

    Blank lines are nothing, nor is what stands behind a # at the beginning of a line or behind a blank.
    """
    try:
        octets = file.read_bytes()
    except OSError as error:
        return [Problem(str(file), 0, 0, "", f"can't be read: {error.strerror}")]
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = octets[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        return [Problem(str(file), before.count(b"\n") + 1, column, f"list {name}", "not UTF-8", "a file in UTF-8")]
    read = _READ[kind]
    entries: set[str | Network] = set()
    problems: list[Problem] = []
    wrong = 0
    for at in _lines(text):
        try:
            entries.add(read(at.text))
        except EntryError as error:
            wrong += 1
            if wrong <= _SHOWN:
                where = f"list {name}"
                near = error.nearest
                problems.append(
                    Problem(str(file), at.line, at.column, where, str(error), error.expected, near, text=at.whole)
                )
    if wrong > _SHOWN:
        problems.append(Problem(str(file), 0, 0, f"list {name}", f"{wrong - _SHOWN} entries more are wrong"))
    return problems or List(name, kind, frozenset(entries), source, why, file)


def read_lists(tables: object, positions: Positions, problems: list[Problem]) -> dict[str, List]:
    """The lists of a rule file: what stands under its key `lists`. What is wrong goes into `problems`."""
    if not isinstance(tables, dict):
        problems.append(positions.problem(("lists",), "lists have names", where="", expected="[lists.NAME]"))
        return {}
    found: dict[str, List] = {}
    for name, table in tables.items():
        path: KeyPath = ("lists", name)
        where = f"list {shown(name)}"
        if not _NAME.fullmatch(name):
            problems.append(
                positions.problem(
                    path, f"{shown(name)} is not a name", where="", key=True, expected="letters a-z, digits and -"
                )
            )
        elif not isinstance(table, dict):
            problems.append(
                positions.problem(path, f"{shown(table)} is not a list", where=where, expected="[lists.NAME]")
            )
        else:
            made = _Reader(name, table, positions, problems).read()
            if made is not None:
                found[name] = made
    return found


class _Reader:
    """Reads one `[lists.NAME]`."""

    def __init__(self, name: str, table: Mapping[str, Any], positions: Positions, problems: list[Problem]) -> None:
        self._name = name
        self._table = table
        self._positions = positions
        self._problems = problems
        self._path: KeyPath = ("lists", name)

    def _bad(
        self, key: KeyPath, message: str, expected: str = "", near: Iterable[str] = (), *, of: bool = False
    ) -> None:
        self._problems.append(
            self._positions.problem(
                (*self._path, *key),
                message,
                where=": ".join((f"list {shown(self._name)}", *(map(str, key[:1]) if not of else ()))),
                key=of,
                expected=expected,
                nearest=tuple(near),
            )
        )

    def read(self) -> List | None:
        before = len(self._problems)
        for key in self._table:
            if key not in _KEYS:
                near = nearest(key, _KEYS)
                self._bad((key,), f"unknown key {shown(key)}", "" if near else ", ".join(_KEYS), near, of=True)
        kind = self._kind()
        why = self._table.get("why", "")
        if not isinstance(why, str):
            self._bad(("why",), f"{shown(why)} is not a string", "a sentence")
        source = Source(self._positions.file, self._positions.value(self._path).line)
        made: List | None = None
        if ("file" in self._table) == ("entries" in self._table):
            said = "file and entries are both there" if "file" in self._table else "there are no entries"
            self._bad((), said, "file, or entries")
        elif kind is not None and "file" in self._table:
            made = self._from_file(kind, source, str(why))
        elif kind is not None:
            made = List(self._name, kind, frozenset(self._entries(kind)), source, str(why))
        return made if len(self._problems) == before else None

    def _kind(self) -> Kind | None:
        word = self._table.get("kind")
        if isinstance(word, str) and word in _KINDS:
            return _KINDS[word]
        if word is None:
            self._bad((), "kind is missing", _A_KIND)
        else:
            near = nearest(word, _KINDS) if isinstance(word, str) else ()
            self._bad(("kind",), f"{shown(word)} is not a kind of list", _A_KIND, near)
        return None

    def _from_file(self, kind: Kind, source: Source, why: str) -> List | None:
        name = self._table["file"]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            self._bad(("file",), f"{shown(name)} is not a file", "a path, relative to this file")
            return None
        found = load_list(self._name, kind, Path(self._positions.file).parent / name, source, why)
        if isinstance(found, List):
            return found
        for problem in found:
            if problem.line == 0 and problem.message.startswith("can't"):
                self._bad(("file",), f"{problem.file} {problem.message}")
            else:
                self._problems.append(problem)
        return None

    def _entries(self, kind: Kind) -> Iterator[str | Network]:
        entries = self._table["entries"]
        if not isinstance(entries, list):
            self._bad(("entries",), f"{shown(entries)} is not an array", 'entries = ["…", "…"]')
            return
        for number, entry in enumerate(entries):
            if not isinstance(entry, str):
                self._bad(("entries", number), f"{shown(entry)} is not a string", "a string")
                continue
            try:
                yield _READ[kind](entry)
            except EntryError as error:
                self._bad(("entries", number), str(error), error.expected, error.nearest)


def _lines(text: str) -> Iterator[_Line]:
    """The entries of a file."""
    for number, whole in enumerate(text.split("\n"), 1):
        said = whole
        if "#" in said:
            said = _COMMENT.sub("", said)
        entry = said.strip()
        if entry:
            yield _Line(entry, number, len(said) - len(said.lstrip()) + 1, whole.rstrip("\r"))


# ------------------------------------------------------------------------------------------------ entries, by kind


def network(text: str) -> Network:
    """A network, or an address, which is a network of one.

    Raises:
        EntryError: it is none.
    """
    found = _IPV4.fullmatch(text)
    if found is not None:
        a, b, c, d = (int(part) for part in found.groups()[:4])
        length = 32 if found[5] is None else int(found[5])
        number = a << 24 | b << 16 | c << 8 | d
        plain = not any(part[:1] == "0" and len(part) > 1 for part in found.groups()[:4])
        if max(a, b, c, d) < 256 and length <= 32 and plain and not number & ((1 << (32 - length)) - 1):
            return 4, length, number >> (32 - length)
    try:
        parsed = ip_network(text)
    except ValueError as error:
        near: tuple[str, ...] = ()
        said = f"{shown(text)} is not a network"
        if "host bits" in str(error):
            said += ": bits are set behind its prefix"
            near = (str(ip_network(text, strict=False)),)
        raise EntryError(said, 'an address or a network, e.g. "192.0.2.0/24"', near) from None
    version, length, number = parsed.version, parsed.prefixlen, int(parsed.network_address)
    if version == 6 and length >= 96 and number >> 32 == 0xFFFF:  # IPv4 within IPv6 is IPv4
        version, length, number = 4, length - 96, number & 0xFFFF_FFFF
    width = 32 if version == 4 else 128
    return version, length, number >> (width - length)


def _domain(text: str) -> str:
    if _DOMAIN.fullmatch(text):
        return text.lower()
    meant = _DOMAIN_IN.fullmatch(text)
    near = (meant[1],) if meant and _DOMAIN.fullmatch(meant[1]) else ()
    raise EntryError(f"{shown(text)} is not a domain", "a domain, e.g. example.com", near)


def _address(text: str) -> str:
    if _ADDRESS.fullmatch(text):
        return fold(Kind.ADDRESSES, text)
    meant = _ADDRESS_IN.fullmatch(text)
    near = (meant[1] or meant[2],) if meant else ()
    raise EntryError(f"{shown(text)} is not an address", "a mail address, or @ and a domain", near)


def _digest(text: str) -> str:
    folded = text.lower()
    if _DIGEST.fullmatch(folded):
        return folded
    raise EntryError(f"{shown(text)} is not a digest", "hexadecimal digits, e.g. the 64 of SHA-256")


def _word(text: str) -> str:
    if text.strip():
        return fold(Kind.WORDS, text.strip())
    raise EntryError("a word that is empty", "a word")


_READ: Final[Mapping[Kind, Callable[[str], str | Network]]] = MappingProxyType(
    {
        Kind.DOMAINS: _domain,
        Kind.ADDRESSES: _address,
        Kind.NETWORKS: network,
        Kind.DIGESTS: _digest,
        Kind.WORDS: _word,
    }
)

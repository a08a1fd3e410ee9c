"""The variables that conditions are evaluated with: fields, entries of maps, and what was looked up beforehand.

Which lists a value is in and which patterns it matches is found out once for each value, before CEL is asked, and CEL
is given the short answer: the names of those lists, the numbers of those patterns. That is nearly always none.

What must never happen: more given to CEL than it can be trusted with. It has neither a clock nor a bound on memory of
its own, so what is larger than the bounds here is not cut (what is cut off could be what a rule is looking for) but an
error, and the condition fails closed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from smtpproxy.policy.functions import PatternError, compiled, searching
from smtpproxy.policy.lists import List, network
from smtpproxy.policy.membership import Index, Kind, index_of
from smtpproxy.policy.tokens import readable
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field, Known, Type

LONGEST: Final = 262_144  # characters of one text; the header section that is held back has as many octets
ITEMS: Final = 10_000  # entries of a list; CEL's own bound on the turns of its loops
TOGETHER: Final = 1_048_576  # characters of a list or a map together
_STABLE: Final = ("client.", "server.", "listener", "match")


class TooMuchError(Exception):
    """A value that is too large to be looked at."""


class Slot(NamedTuple):
    """One variable. `stable`: once a mail's content comes, it stays as it is until the mail's end."""

    name: str
    type: Type
    get: Callable[[View], Any]
    stable: bool


class _Patterns:
    """Regular expressions that are looked for in one value."""

    def __init__(self, get: Callable[[View], Any]) -> None:
        self._get = get
        self._numbers: dict[str, str] = {}
        self._any: Callable[[str], Any] | None = None

    def add(self, expression: str) -> str:
        """Its number, as text."""
        self._any = None
        return self._numbers.setdefault(expression, str(len(self._numbers)))

    def find(self, view: View) -> list[str]:
        """The numbers of those that are found in the value."""
        value = self._get(view)
        if self._any is None:
            self._any = self._one()
        if not self._any(value):
            return []
        return [number for expression, number in self._numbers.items() if searching(expression)(value)]

    def _one(self) -> Callable[[str], Any]:
        """One expression for all, so that what matches none is looked at once."""
        try:
            return compiled("|".join(f"(?:{expression})" for expression in self._numbers))
        except PatternError:  # too large together
            return lambda value: True


class Slots:
    """All variables of a set of rules. Equal ones are one, whatever condition they stand in."""

    def __init__(self, lists: Mapping[str, List]) -> None:
        self.lists = lists
        self.all: dict[str, Slot] = {}
        self._keyed: dict[Any, Slot] = {}
        self._patterns: dict[str, _Patterns] = {}
        self._indexes: dict[Kind, Index] = {}
        self._taken: set[str] = set()

    def field(self, field: Field) -> Slot:
        """A field."""
        if field.name in self.all:
            return self.all[field.name]
        stable = field.known is Known.MAIL or field.name.startswith(_STABLE)
        get = _bounded(field.type, field.get)
        if readable(field.name) != field.name:
            return self._keyed_slot(field.name, field.type, get, stable)
        return self._add(field.name, Slot(field.name, field.type, get, stable))

    def entry(self, field: Field, key: str) -> Slot:
        """One entry of a map; empty where the map has none."""
        folded, entry = field.fold(key), field.entry
        if entry is None:
            raise AssertionError(f"{field.name} has no entries")
        kind = Type.STRINGS if field.type is Type.LISTS else Type.STRING
        return self._keyed_slot(
            (field.name, folded),
            kind,
            _bounded(kind, lambda view: entry(view, folded)),
            field.known is Known.MAIL,
        )

    def member(self, kind: Kind, operand: Slot) -> Slot:
        """The names of the lists of this kind that a value is in, or one of several values."""
        index, get = self.index(kind), operand.get
        if operand.type is Type.STRINGS:
            return self._keyed_slot(
                (kind, operand.name),
                Type.STRINGS,
                lambda view: list({name for value in get(view) for name in index.find(value)}),
                operand.stable,
            )
        return self._keyed_slot(
            (kind, operand.name), Type.STRINGS, lambda view: list(index.find(get(view))), operand.stable
        )

    def pattern(self, operand: Slot, expression: str) -> tuple[Slot, str]:
        """Which patterns a value matches, and the number of this one."""
        patterns = self._patterns.setdefault(operand.name, _Patterns(operand.get))
        slot = self._keyed_slot(("pattern", operand.name), Type.STRINGS, patterns.find, operand.stable)
        return slot, patterns.add(expression)

    # --------------------------------------------------------------------------------------------------- lists

    def index(self, kind: Kind) -> Index:
        """The index of all lists of a kind that conditions name."""
        if kind not in self._indexes:
            self._indexes[kind] = index_of(kind)
        return self._indexes[kind]

    def take(self, name: str) -> Kind:
        """Have a list looked up from here on.

        Raises:
            KeyError: there is none of this name.
        """
        found = self.lists[name]
        if name not in self._taken:
            self._taken.add(name)
            self.index(found.kind).add(name, found.entries)
        return found.kind

    def take_network(self, text: str) -> None:
        """Have a network looked up from here on that is written in a condition. It has no capital, a name has no dot.

        Raises:
            EntryError: it is none.
        """
        if text not in self._taken:
            entry = network(text)
            self._taken.add(text)
            self.index(Kind.NETWORKS).add(text, [entry])

    # ------------------------------------------------------------------------------------------------ variables

    def _keyed_slot(self, key: Any, kind: Type, get: Callable[[View], Any], stable: bool) -> Slot:
        found = self._keyed.get(key)
        if found is None:
            name = f"_{len(self._keyed)}"
            found = self._keyed[key] = self._add(name, Slot(name, kind, get, stable))
        return found

    def _add(self, name: str, slot: Slot) -> Slot:
        self.all[name] = slot
        return slot


def _bounded(kind: Type, get: Callable[[View], Any]) -> Callable[[View], Any]:
    """The value, if it is not too large."""
    if kind is Type.BOOL or kind is Type.INT:
        return get
    check: Callable[[Any], None] = _text if kind is Type.STRING else _list if kind is Type.STRINGS else _map

    def bounded(view: View) -> Any:
        value = get(view)
        check(value)
        return value

    return bounded


def _text(value: str) -> None:
    if len(value) > LONGEST:
        raise TooMuchError(f"a text of {len(value)} characters")


def _list(value: list[str]) -> None:
    if len(value) > ITEMS:
        raise TooMuchError(f"a list of {len(value)} entries")
    lengths = [*map(len, value)]
    if max(lengths, default=0) > LONGEST:
        raise TooMuchError(f"a text of {max(lengths)} characters")
    if sum(lengths) > TOGETHER:
        raise TooMuchError(f"a list of {sum(lengths)} characters")


def _map(value: Mapping[str, Any]) -> None:
    if len(value) > ITEMS:
        raise TooMuchError(f"a map of {len(value)} entries")
    texts = [*value, *value.values()] if all(isinstance(one, str) for one in value.values()) else _flat(value)
    _list(texts)


def _flat(value: Mapping[str, list[str]]) -> list[str]:
    """Every text in a map of lists."""
    return [text for key, texts in value.items() for text in (key, *texts)]

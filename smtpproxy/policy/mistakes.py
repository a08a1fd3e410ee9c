"""What is wrong with a condition, in our words: what CEL says told again, with places and the names that were meant."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from smtpproxy.policy.fields import FIELDS
from smtpproxy.policy.functions import FUNCTIONS, OTHERS
from smtpproxy.policy.tokens import Kind, Token, offset, place
from smtpproxy.policy.toml import nearest, shown

ROOTS: Final = frozenset(name.partition(".")[0] for name in FIELDS)
DEPTH: Final = 32  # CEL's limit
TOO_DEEP: Final = f"nested more than {DEPTH} deep"

_ERROR: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*?)(?=\n \||\nERROR: |\s\[[A-Z_]+\]\Z|\Z)", re.DOTALL)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'")
_OVERLOAD: Final = re.compile(r"found no matching overload for '([^']*)' applied to '\((.*)\)'", re.DOTALL)
_PARTS: Final = re.compile(r"expression of type '([^']*)' cannot be the operand of a select")
_RANGE: Final = re.compile(r"expression of type '([^']*)' cannot be the range of a comprehension")
_SYNTAX: Final = re.compile(
    r"Syntax error: (token recognition error at|mismatched input|extraneous input|missing)(.*)", re.DOTALL
)
_QUOTED: Final = re.compile(r"'(.*?)'(?= expecting| at |\Z)", re.DOTALL)
_OPERATOR: Final = re.compile(r"_?([-!=<>+*/%&|]+|@in|\?_:|\[_\])_?")
_OF_BOOL: Final = frozenset({"&&", "||", "!"})
_MEANT: Final = MappingProxyType(
    {
        "and": "&&",
        "or": "||",
        "not": "!",
        "=": "==",
        "&": "&&",
        "|": "||",
        "<>": "!=",
        "=>": ">=",
        "=<": "<=",
        "xor": "!=",
    }
)
_OURS: Final = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration", "null_type": "null"}


class Mistake(NamedTuple):
    """One mistake in a condition. Line and column count its characters from 1."""

    line: int
    column: int
    message: str
    nearest: tuple[str, ...] = ()


def at(source: str, position: int, message: str, near: Iterable[str] = ()) -> Mistake:
    """A mistake at an offset of the source."""
    return Mistake(*place(source, position), message, tuple(near))


def of_cel(said: str, source: str, words: Sequence[Token], known: Mapping[str, object], subject: str) -> list[Mistake]:
    """The mistakes in a message of CEL's.

    Args:
        known: the vocabulary of the subject.
        subject: its name.
    """
    found: list[Mistake] = []
    syntax = False
    for error in _ERROR.finditer(said):
        line, column, message = int(error[1]), int(error[2]), error[3].strip()
        if line < 1 or "*error*" in message or "of type 'dyn'" in message:  # follows from another one
            if "recursion depth" in message:
                found.append(Mistake(1, 1, TOO_DEEP))
            continue
        position = offset(source, line, column)
        told = _Told(source, words, position, known, subject)
        if message.startswith("Syntax error"):
            if not syntax:  # those behind the first follow from it
                found.append(told.syntax(message))
            syntax = True
        else:
            found.append(told.other(message))
    if not found:
        found.append(Mistake(1, 1, TOO_DEEP if "recursion limit" in said else _plain(said)))
    return list(dict.fromkeys(found))


class _Told:
    """One error of CEL's, told again."""

    def __init__(
        self, source: str, words: Sequence[Token], position: int, known: Mapping[str, object], subject: str
    ) -> None:
        self._source = source
        self._words = words
        self._position = position
        self._known = known
        self._subject = subject
        self._index = next((i for i, word in enumerate(words) if word.start >= position), len(words))

    def _at(self, message: str, near: Iterable[str] = (), position: int | None = None) -> Mistake:
        return at(self._source, self._position if position is None else position, message, near)

    def _word(self, index: int) -> str:
        return self._words[index].text if 0 <= index < len(self._words) else ""

    # ----------------------------------------------------------------------------------------- names and types

    def other(self, message: str) -> Mistake:
        """What is no error of syntax."""
        if found := _UNDECLARED.search(message):
            return self._function(found[1]) if self._word(self._index) == "(" else self._name(found[1])
        if found := _OVERLOAD.search(message):
            return self._overload(found[1], _types(found[2]))
        if found := _PARTS.search(message):
            return self._at(f"{_type(found[1])} has no part {self._word(self._index + 1)}")
        if found := _RANGE.search(message):
            return self._at(f"{_type(found[1])} has no entries: it is no list and no map")
        if message.startswith("reserved identifier"):
            return self._at(f"{message.rpartition(' ')[2]} is a word of CEL's own")
        if "int literal" in message:
            return self._at("a number beyond 64 bits")
        return self._at(_plain(message))

    def _function(self, name: str) -> Mistake:
        position = self._words[self._index - 1].start if self._index else 0
        if name in FUNCTIONS:
            return self._at(f"{name} is called so: {FUNCTIONS[name].signature}", (), position)
        if name in OTHERS:
            return self._at(f"{name} is not called so", (), position)
        near = nearest(name, (*FUNCTIONS, *OTHERS))
        return self._at(f"no function {shown(name)}", near, position)

    def _name(self, name: str) -> Mistake:
        first = self._index if self._words[self._index : self._index + 1] else len(self._words) - 1
        if self._word(first) == ".":
            first -= 1
        while first >= 2 and self._word(first - 1) == "." and self._words[first - 2].kind is Kind.NAME:
            first -= 2
        position = self._words[first].start if self._words else 0
        field = FIELDS.get(name)
        if field is not None:
            return self._at(f"{name} is not known at {self._subject}, only at {field.known.value}", (), position)
        if name in ROOTS:
            parts = [one for one in self._known if one.startswith(f"{name}.")]
            return self._at(f"{name} alone is no field", parts[:3], position)
        near = nearest(name, (*self._known, "true", "false")) or nearest(name, FIELDS)
        if not near and name.rpartition(".")[0] in ROOTS:
            near = [one for one in self._known if one.startswith(f"{name.rpartition('.')[0]}.")][:3]
        return self._at(f"no field {shown(name)}", near, position)

    def _overload(self, name: str, types: list[str]) -> Mistake:
        operator = _OPERATOR.fullmatch(name)
        given = " and ".join(types)
        if operator is None:
            position = self._words[self._index - 1].start if self._word(self._index) == "(" else None
            called = f": it is called so: {FUNCTIONS[name].signature}" if name in FUNCTIONS else ""
            return self._at(f"{name} does not take {given}{called}", (), position)
        sign = operator[1]
        if sign == "?_:" and types and types[0] == "bool":
            return self._at(f"both branches of ? : are of one type, not {' and '.join(types[1:])}")
        if sign == "?_:":
            return self._at(f"? : takes bool, not {types[0]}")
        if sign in _OF_BOOL:
            return self._at(f"{sign} takes bool, not {given}")
        if sign == "@in":
            return self._at(f"in takes a value and a list of such, not {given}")
        if sign == "[_]":
            return self._at(f"{types[0]} has no entry under {types[-1]}")
        lists = [one for one in types if one.startswith("list(")]
        if len(types) == 2 and len(lists) == 1 and sign in ("==", "!="):
            return self._at(f"{sign} takes two of the same type, not {given}: say …exists(x, x {sign} …)")
        return self._at(
            f"{sign} takes two of the same type, not {given}" if len(types) == 2 else f"{sign} does not take {given}"
        )

    # -------------------------------------------------------------------------------------------------- syntax

    def syntax(self, message: str) -> Mistake:
        """The first error of syntax."""
        found = _SYNTAX.fullmatch(message)
        quoted = _QUOTED.search(found[2]) if found else None
        if found is None or quoted is None:
            return self._at(_plain(message))
        text = quoted[1]
        if found[1] == "missing":
            return self._at(f"{text} is missing here")
        if found[1].startswith("token"):
            return self._unreadable(text)
        before = self._words[self._index - 1] if self._index else None
        if before is not None and before.text.lower() in ("not", "and", "or"):
            return self._at(f"{before.text} is no operator", (_MEANT[before.text.lower()],), before.start)
        if text == "<EOF>":
            return self._at("it ends where more is expected")
        if before is not None and f"{before.text}{text}" in _MEANT and before.end == self._position:
            return self._at(f"{before.text}{text} is no operator", (_MEANT[f"{before.text}{text}"],), before.start)
        if text.lower() in _MEANT:
            return self._at(f"{text} is no operator", (_MEANT[text.lower()],))
        if before is not None and before.kind is Kind.NUMBER and before.end == self._position:
            return self._at(f"a number has no unit: {before.text}{text}", (), before.start)
        return self._at(f"{shown(text)} is not expected here")

    def _unreadable(self, text: str) -> Mistake:
        sign = text.strip()
        if sign in _MEANT:
            return self._at(f"{sign} is no operator", (_MEANT[sign],))
        if sign.lstrip("rRbB")[:1] in ("'", '"'):
            word = next((word for word in self._words if word.start == self._position), None)
            if word is not None and word.kind is Kind.STRING:
                return self._at('no such escape in a string; in a raw one, r"…", a backslash stands for itself')
            return self._at("a string that does not end")
        return self._at(f"{shown(sign)} is not expected here")


def _types(text: str) -> list[str]:
    """The types of a list of them: a comma within brackets is no end."""
    found, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            found.append(text[begin:index])
            begin = index + 1
    return [_type(one.strip()) for one in (*found, text[begin:])]


def _type(name: str) -> str:
    for theirs, ours in _OURS.items():
        name = name.replace(theirs, ours)
    return name


def _plain(said: str) -> str:
    """A message that is not known: without its frame, in one line."""
    text = re.sub(r"^[A-Z_]+: |\s*\[[A-Z_]+\]$|ERROR: <input>:\S+ ", "", said.strip())
    return " ".join(text.split()) or "not an expression"

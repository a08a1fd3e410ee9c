"""A condition read: which fields, lists and patterns it names, what is wrong with those, and what CEL is given for it.

CEL parses and checks what was written. What it is given to evaluate is that text with some calls replaced, each by what
was looked up beforehand (slots.py): `in_list("spammers", mail.domain)` is `("spammers" in _3)`, `header["Subject"]` is
`_4`. Only calls about a field as it stands are; of any other value, the function is called.
"""

from collections.abc import Collection
from typing import Final

from smtpproxy.policy.fields import FIELDS, is_map
from smtpproxy.policy.functions import COPYING, LOOPS, OWN, PatternError, glob_expression, searching
from smtpproxy.policy.lists import EntryError
from smtpproxy.policy.membership import Kind as ListKind
from smtpproxy.policy.mistakes import ROOTS, Mistake, at
from smtpproxy.policy.slots import Slot, Slots
from smtpproxy.policy.tokens import Kind, Token, arguments, dotted, quoted, tokens, value
from smtpproxy.policy.toml import nearest, nearest_durations, parse_duration, shown
from smtpproxy.policy.vocabulary import Field, Type

_GROWING: Final = frozenset({"lower", "string", "bytes", "domain"})  # functions that make a text

_OURS: Final = frozenset(function.name for function in OWN)

Span = tuple[int, int]  # of tokens: the first, and behind the last


class Reading:
    """What is found in a source.

    Attributes:
        mistakes: what CEL does not know of: lists, patterns, networks, times.
        program: what CEL is given.
        fields: names of fields, and what stands for each (`header["Subject"]`) with its slot.
        lists: names of lists.
        counts: it has `rate`, so asking changes something.
        asks: it has `rate` or `locked`, so the answer is not in the view alone.
        calls: it has functions of ours.
        loops, copies, grows: how many `exists` and so on; how many of them make lists; how many places make texts.
    """

    def __init__(self, source: str, slots: Slots, limits: Collection[str], count: str) -> None:
        """`count` is what the counts of `rate` are kept under."""
        self._source = source
        self._slots = slots
        self._limits = limits
        self._count = count
        self._edits: list[tuple[int, int, str]] = []
        self.words = tokens(source)
        self.mistakes: list[Mistake] = []
        self.fields: dict[str, Field] = {}
        self.shown: dict[str, Slot] = {}
        self.used: dict[str, Slot] = {}
        self.lists: set[str] = set()
        self.counts = 0
        self.asks = False
        self.loops = self.copies = self.grows = 0
        self.calls = False
        index = 0
        while index < len(self.words):
            index = self._read(index)
        self.program = self._edited()

    # ------------------------------------------------------------------------------------------------- the walk

    def _text(self, index: int) -> str:
        return self.words[index].text if 0 <= index < len(self.words) else ""

    def _read(self, index: int) -> int:
        """What stands at `index`; where to go on."""
        word = self.words[index]
        if word.text == "+":
            self.grows += 1
        if word.kind is not Kind.NAME:
            return index + 1
        if self._text(index - 1) == "." and index > 1 and self._is_operand(self.words[index - 2]):
            return self._member(index)
        if self._text(index + 1) == "(":
            return self._call(index)
        found = self._field(index)
        return index + 1 if found is None else self._mention(*found)

    @staticmethod
    def _is_operand(word: Token) -> bool:
        return word.text in (")", "]", "}") or word.kind is not Kind.MARK

    def _member(self, index: int) -> int:
        """`.name` behind a value that is no field."""
        name = self._text(index)
        if self._text(index + 1) != "(":
            return index + 1
        if name in LOOPS:
            self.loops += 1
            self.copies += name in COPYING
            variable = self.words[index + 2] if index + 2 < len(self.words) else None
            if variable is not None and variable.text in ROOTS and self._text(index + 3) == ",":
                self._bad(variable, f"{variable.text} is the name of fields: call it another name")
        elif name == "matches":
            given = arguments(self.words, index + 1)
            if given is not None and len(given) == 1 and self._pattern(given[0], glob=False) is not None:
                self._edits.append((self.words[index].start, self.words[index].end, "_matches"))
        return index + 1

    def _field(self, index: int) -> tuple[Slot, int, int] | None:
        """The field that begins at `index`, with where it begins and where what is behind it does."""
        end = dotted(self.words, index)
        if self._text(end) == "(":
            end -= 2  # the last name is a function's
        while end > index:
            name = "".join(word.text for word in self.words[index:end])
            field = FIELDS.get(name)
            if field is not None:
                return self._found(field, index, end)
            end -= 2
        return None

    def _found(self, field: Field, index: int, end: int) -> tuple[Slot, int, int]:
        if is_map(field):
            key = self.words[end + 1] if end + 1 < len(self.words) else None
            if self._text(end) == "[" and self._text(end + 2) == "]" and key is not None and key.kind is Kind.STRING:
                text = value(key)
                if text is not None:
                    slot = self._slots.entry(field, text)
                    self.fields[field.name] = field
                    self.shown[f"{field.name}[{quoted(text)}]"] = slot
                    return slot, index, end + 3
            elif self._text(end) == "." and key is not None and self._text(end + 2) != "(":
                parts = [name for name in FIELDS if name.startswith(f"{field.name}.")]
                near = nearest(f"{field.name}.{key.text}", parts)
                self._bad(key, f'no field "{field.name}.{key.text}"; an entry is {field.name}["{key.text}"]', near)
        slot = self._slots.field(field)
        self.fields[field.name] = field
        self.shown[field.name] = slot
        return slot, index, end

    def _mention(self, slot: Slot, index: int, end: int) -> int:
        """A field by itself, or `field.matches("…")`."""
        if self._text(end) == "." and self._text(end + 1) == "matches" and self._text(end + 2) == "(":
            given = arguments(self.words, end + 2)
            if given is not None and len(given) == 1 and slot.type is Type.STRING:
                expression = self._pattern(given[0], glob=False)
                if expression is not None:
                    self._replace_by_pattern(slot, expression, index, given[0][1])
                return given[0][1] + 1
        self._use(slot)
        if slot.name.startswith("_"):
            self._edits.append((self.words[index].start, self.words[end - 1].end, slot.name))
        return end

    def _operand(self, span: Span) -> Slot | None:
        """The field that is all of an argument."""
        first, behind = span
        if first >= behind or self.words[first].kind is not Kind.NAME or self._text(first + 1) == "(":
            return None
        before = len(self.mistakes)
        found = self._field(first)
        del self.mistakes[before:]  # it is looked at again
        if found is None or found[2] != behind or found[0].type not in (Type.STRING, Type.STRINGS):
            return None
        return found[0]

    # --------------------------------------------------------------------------------------------------- calls

    def _call(self, index: int) -> int:
        """`name(…)`; where to go on: behind it where it was replaced, else within."""
        name = self._text(index)
        self.calls = self.calls or name in _OURS
        if name in _GROWING:
            self.grows += 1
        given = arguments(self.words, index + 1)
        if given is None:
            return index + 1
        if name == "in_list" and len(given) == 2:
            return self._in_list(index, given)
        if name == "in_network" and len(given) == 2:
            return self._in_network(index, given)
        if name in ("matches", "glob") and len(given) == 2:
            return self._matches(index, given, glob=name == "glob")
        if name == "rate" and len(given) == 3:
            self._rate(index, given[2])
        elif name == "locked" and len(given) == 2:
            self._locked(given[0])
        return index + 1

    def _in_list(self, index: int, given: list[Span]) -> int:
        name = self._literal(given[0], "the name of a list is written out, in quotes")
        if name is None:
            return index + 1
        if name not in self._slots.lists:
            self._bad(self.words[given[0][0]], f"no list {shown(name)}", nearest(name, self._slots.lists))
            return index + 1
        self.lists.add(name)
        kind = self._slots.take(name)
        return self._looked_up(index, given[1], kind, [name])

    def _in_network(self, index: int, given: list[Span]) -> int:
        first, behind = given[1]
        words = self.words[first:behind]
        if words and words[0].text == "[" and words[-1].text == "]":
            words = [word for word in words[1:-1] if word.text != ","]
        names: list[str] = []
        for word in words:
            name = value(word) if word.kind is Kind.STRING else None
            if word.kind is not Kind.STRING:
                self._bad(word, "networks are written out, in quotes, or a list of them is named")
                break
            if name is not None and self._network(word, name):
                names.append(name)
        if len(names) != len(words) or not names:
            return index + 1
        return self._looked_up(index, given[0], ListKind.NETWORKS, names)

    def _network(self, word: Token, name: str) -> bool:
        found = self._slots.lists.get(name)
        if found is not None:
            if found.kind is not ListKind.NETWORKS:
                self._bad(word, f"the list {name} is of {found.kind.value}, not of networks")
                return False
            self.lists.add(name)
            self._slots.take(name)
            return True
        try:
            self._slots.take_network(name)
        except EntryError as error:
            networks = [one.name for one in self._slots.lists.values() if one.kind is ListKind.NETWORKS]
            self._bad(word, str(error), error.nearest or nearest(name, networks))
            return False
        return True

    def _looked_up(self, index: int, about: Span, kind: ListKind, names: list[str]) -> int:
        """The call is replaced by what was looked up, if it is about a field."""
        operand = self._operand(about)
        if operand is None:
            return index + 1
        slot = self._slots.member(kind, operand)
        self._use(slot)
        self._replace(index, " || ".join(f"{quoted(name)} in {slot.name}" for name in names))
        return self._behind(index)

    def _matches(self, index: int, given: list[Span], *, glob: bool) -> int:
        expression = self._pattern(given[1], glob=glob)
        if expression is None:
            return index + 1
        operand = self._operand(given[0])
        if operand is not None and operand.type is Type.STRING:
            self._replace_by_pattern(operand, expression, index, self._behind(index) - 1)
            return self._behind(index)
        if not glob:
            self._edits.append((self.words[index].start, self.words[index].end, "_matches"))
        return index + 1

    def _pattern(self, span: Span, *, glob: bool) -> str | None:
        """The regular expression that an argument is."""
        text = self._literal(span, "a pattern is written out, in quotes")
        if text is None:
            return None
        expression = glob_expression(text) if glob else text
        try:
            searching(expression)
        except PatternError as error:
            self._bad(self.words[span[0]], f"not a regular expression: {error}" if not glob else str(error))
            return None
        return expression

    def _rate(self, index: int, window: Span) -> None:
        self.counts += 1
        self.asks = True
        text = self._literal(window, 'a window is written out, in quotes, e.g. "1h"')
        if text is None:
            return
        word = self.words[window[0]]
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self._bad(word, str(error), nearest_durations(text))
            return
        if seconds <= 0:
            self._bad(word, f"{shown(text)} is no time at all")
            return
        key = quoted(f"{self._count}\0{self.counts}")
        self._edits.append((self.words[index].start, self.words[index + 1].end, f"_rate({key}, "))
        self._edits.append((word.start, word.end, f"{seconds!r}"))

    def _locked(self, span: Span) -> None:
        self.asks = True
        name = self._literal(span, "the name of a rule is written out, in quotes")
        if name is not None and name not in self._limits:
            self._bad(self.words[span[0]], f"no rule {shown(name)} that has a limit", nearest(name, self._limits))

    # -------------------------------------------------------------------------------------------------- helpers

    def _literal(self, span: Span, otherwise: str) -> str | None:
        """The text that is all of an argument."""
        first, behind = span
        if behind == first:
            return None  # CEL says what is missing
        word = self.words[first]
        text = value(word) if behind == first + 1 and word.kind is Kind.STRING else None
        if word.kind is not Kind.STRING or behind > first + 1:
            self._bad(word, otherwise)
        return text

    def _bad(self, word: Token, message: str, near: Collection[str] = ()) -> None:
        self.mistakes.append(at(self._source, word.start, message, near))

    def _use(self, slot: Slot) -> None:
        self.used[slot.name] = slot

    def _behind(self, index: int) -> int:
        """Behind the closing bracket of the call at `index`."""
        given = arguments(self.words, index + 1)
        return (given[-1][1] if given else index + 2) + 1

    def _replace(self, index: int, by: str) -> None:
        self._edits.append((self.words[index].start, self.words[self._behind(index) - 1].end, f"({by})"))

    def _replace_by_pattern(self, operand: Slot, expression: str, first: int, last: int) -> None:
        slot, number = self._slots.pattern(operand, expression)
        self._use(slot)
        self._edits.append((self.words[first].start, self.words[last].end, f"({quoted(number)} in {slot.name})"))

    def _edited(self) -> str:
        parts, position = [], 0
        for start, end, text in sorted(self._edits):
            parts += [self._source[position:start], text]
            position = end
        return "".join((*parts, self._source[position:]))

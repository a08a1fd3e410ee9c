"""Texts with fields in them: `550 5.7.1 {rcpt.domain} is not here`.

`{field}` stands for a field of the subject's vocabulary, `{map.key}` for one entry of a field that is a map (a header
field, a parameter), and `{{` for a brace. What a field is called is checked when rules are loaded.

What must never happen: that what a peer said ends a line. Whatever is filled in has lost its CR, LF, NUL and other
controls, and a reply is printable ASCII and one line long, whoever wrote what is in it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from smtpproxy.policy.fields import fields_of, is_map
from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.toml import nearest, shown
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field
from smtpproxy.smtp.replies import OwnReply, own

_LONGEST_REPLY = 510  # RFC 5321 §4.5.3.1.5, without CRLF
_FIELD = re.compile(r"\{\{|\{([^{}]*)(\}?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_own = own.__wrapped__  # what peers said is not remembered

Part = str | Callable[[View], Any]


class TemplateMistake(NamedTuple):
    """What is wrong with a text: `column` counts its characters from 1."""

    column: int
    message: str
    expected: str = ""
    nearest: tuple[str, ...] = ()


class Template:
    """A text, compiled. `fields` are the names in it, `constant` is the text where there are none."""

    __slots__ = ("_parts", "constant", "fields", "text")

    def __init__(self, text: str, parts: Sequence[Part], fields: Iterable[str]) -> None:
        self.text = text
        self.fields = frozenset(fields)
        self._parts = tuple(parts)
        self.constant: str | None = None if self.fields else "".join(map(str, parts))

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def parse(cls, text: str, subjects: Sequence[Subject]) -> "Template | list[TemplateMistake]":
        """The template of a text, or all that is wrong with it: a field that not every one of `subjects` has."""
        known = vocabulary(subjects)
        parts: list[Part] = []
        fields: list[str] = []
        mistakes: list[TemplateMistake] = []
        end = 0
        for found in _FIELD.finditer(text):
            parts.append(text[end : found.start()])
            end = found.end()
            name = (found[1] or "").strip()
            column = found.start() + 1
            if found[1] is None:
                parts.append("{")
            elif not found[2]:
                mistakes.append(TemplateMistake(column, "{ without }", "{{ for a brace"))
            elif isinstance(part := _part(name, known), TemplateMistake):
                mistakes.append(part._replace(column=column + 1, message=part.message + _elsewhere(name, subjects)))
            else:
                fields.append(name)
                parts.append(part)
        parts.append(text[end:])
        return mistakes or cls(text, [part for part in parts if part != ""], fields)

    def fill(self, view: View) -> str:
        """The text with what the fields say now; controls in that are "?"."""
        if self.constant is not None:
            return self.constant
        return "".join(part if isinstance(part, str) else _CONTROL.sub("?", _said(part(view))) for part in self._parts)

    def sample(self, word: str = "x") -> str:
        """The text with `word` in every field's place, to see whether it would do."""
        return "".join(part if isinstance(part, str) else word for part in self._parts)


def fill_reply(text: Template, view: View) -> OwnReply:
    """The reply that a text makes: printable ASCII (anything else is "?"), cut to 510 octets. Where what is filled in
    stands where an enhanced status code would and is none that fits, a "?" stands before it."""
    said = _NOT_PRINTABLE.sub("?", text.fill(view))[:_LONGEST_REPLY]
    try:
        return _own(said)
    except ValueError:
        return _own(f"{said[:3]} ? {said[4:]}"[:_LONGEST_REPLY].rstrip())


def vocabulary(subjects: Sequence[Subject]) -> Mapping[str, Field]:
    """The fields that every one of these subjects has."""
    if len(subjects) == 1:
        return fields_of(subjects[0])
    known = [fields_of(subject) for subject in subjects]
    return {name: field for name, field in known[0].items() if all(name in other for other in known[1:])}


def _part(name: str, known: Mapping[str, Field]) -> Callable[[View], Any] | TemplateMistake:
    field = known.get(name)
    if field is not None:
        if is_map(field):
            return TemplateMistake(0, f"{name} has entries, and one is to be named", f"e.g. {{{name}.subject}}")
        return field.get
    parent, _, key = name.partition(".")
    while key:
        field = known.get(parent)
        if field is not None and is_map(field):
            return _entry(field, key)
        more, _, key = key.partition(".")
        parent = f"{parent}.{more}"
    return TemplateMistake(0, f"no field {shown(name)} here", "", tuple(nearest(name, known)))


def _entry(field: Field, key: str) -> Callable[[View], Any]:
    """One entry of a map; empty where the map has none."""
    name, entry = field.fold(key), field.entry
    return lambda view: "" if entry is None else entry(view, name)


def _elsewhere(name: str, subjects: Sequence[Subject]) -> str:
    """Where a field is known that is not known everywhere."""
    if len(subjects) < 2:
        return ""
    without = [str(subject) for subject in subjects if name not in fields_of(subject)]
    return f": {', '.join(without)} has none" if 0 < len(without) < len(subjects) else ""


def _said(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return "" if value is None else str(value)

"""One table of a rule file while it is read: its values, and what is wrong with them, said in its place.

Whoever reads a table goes on after a mistake, so that all of them are told at once; what could not be read is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.templates import Template
from smtpproxy.policy.toml import (
    KeyPath,
    Place,
    Positions,
    Problem,
    Severity,
    nearest,
    nearest_durations,
    parse_duration,
    shown,
)

A_DURATION = 'a duration, e.g. "5s", "10m", "1h" or "7d"'


class Table:
    """A table that stands at `path` of a file; its mistakes go into `problems`.

    Args:
        where: what it is in the words of the file: `rule 2 "size-25m"`.
    """

    def __init__(
        self, positions: Positions, path: KeyPath, values: Mapping[str, Any], problems: list[Problem], where: str
    ) -> None:
        self.positions = positions
        self.path = path
        self.values = values
        self.problems = problems
        self.where = where

    def bad(
        self,
        path: KeyPath,
        message: str,
        *,
        key: bool = False,
        expected: str = "",
        near: Sequence[str] = (),
        severity: Severity = "error",
        inside: Place | None = None,
    ) -> None:
        """Put an error about the value at `path` of the table on the list, or about its key, or about a place inside
        the string that stands there."""
        where = self.where
        if path and not key:
            where += f": {dotted(path)}"
        self.problems.append(
            self.positions.problem(
                (*self.path, *path),
                message,
                where=where,
                key=key,
                expected=expected,
                nearest=near,
                severity=severity,
                inside=inside,
            )
        )

    def unknown(self, path: KeyPath, known: Sequence[str]) -> None:
        """A key that is none of `known`."""
        near = nearest(str(path[-1]), known)
        self.bad(
            path, f"unknown key {shown(dotted(path))}", key=True, expected="" if near else either(known), near=near
        )

    def unknown_keys(self, path: KeyPath, table: Mapping[str, Any], known: Sequence[str]) -> None:
        """Tell of every key of the table at `path` that is none of `known`."""
        for key in table:
            if key not in known:
                self.unknown((*path, key), known)

    def text(self, key: str, expected: str) -> str:
        """A text that must be there, or "" where it is not right."""
        value = self.values.get(key)
        if value is None:
            self.bad((), f"{key} is missing", expected=expected)
            return ""
        return self.string((key,), value, expected) or ""

    def string(self, path: KeyPath, value: object, expected: str) -> str | None:
        """A string that is not blank."""
        if not isinstance(value, str):
            self.bad(path, f"{shown(value)} is not a string", expected=expected)
        elif not value.strip():
            self.bad(path, "is empty", expected=expected)
        else:
            return value
        return None

    def strings(self, path: KeyPath, value: object, expected: str) -> list[tuple[KeyPath, str]]:
        """Strings with their paths, of an array or of one string alone."""
        if not isinstance(value, list):
            alone = self.string(path, value, expected)
            return [] if alone is None else [(path, alone)]
        if not value:
            self.bad(path, "is empty", expected=expected)
        found = [((*path, number), self.string((*path, number), item, expected)) for number, item in enumerate(value)]
        return [(place, text) for place, text in found if text is not None]

    def template(self, path: KeyPath, text: str, subjects: Sequence[Subject]) -> Template | None:
        """A text whose fields every one of `subjects` has."""
        found = Template.parse(text, subjects)
        if isinstance(found, Template):
            return found
        for mistake in found:
            before = text[: mistake.column - 1]
            place = Place(before.count("\n") + 1, mistake.column - before.rfind("\n") - 1)
            self.bad(path, mistake.message, expected=mistake.expected, near=mistake.nearest, inside=place)
        return None

    def duration(self, path: KeyPath, value: object, *, least: float = 0.0, most: float = 0.0) -> float | None:
        """Seconds, more than `least` and at most `most` (0: as many as you like)."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            self.bad(path, f"{shown(value)} is not a duration", expected=A_DURATION)
            return None
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            near = nearest_durations(value) if isinstance(value, str) else []
            self.bad(path, str(error), expected=A_DURATION, near=near)
            return None
        if seconds <= least:
            self.bad(path, f"{shown(value)} is no time at all", expected=A_DURATION)
            return None
        if most and seconds > most:
            self.bad(path, f"{shown(value)} is too long", expected=f"at most {most:g} seconds")
            return None
        return seconds


def dotted(path: KeyPath) -> str:
    """`then.limit` and `then.0.answer`."""
    return ".".join(map(str, path))


def either(words: Sequence[str], last: str = "or") -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def near(value: object, words: Iterable[str]) -> list[str]:
    """The words most like a value, if that is a string."""
    return nearest(value, words) if isinstance(value, str) else []

"""Rules as they were found in their files, with those that are off or replaced: for warnings, and for `rules list`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from smtpproxy.policy.rules import AnyRule, Source
from smtpproxy.policy.toml import KeyPath, Positions, Problem

SHIPPED = "shipped"
SITE = "site"
SET = "set:"  # and its name


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One `[[rule]]` that is right in itself, and where it stands. `rule` is None where it is off.

    Attributes:
        origin: "shipped", "set:NAME" or "site".
        where: in the words of the file: `rule 2 "size-25m"`.
        bare: it says nothing of what it is about: it is there to switch another one off.
    """

    name: str
    rule: AnyRule | None
    origin: str
    positions: Positions
    path: KeyPath
    where: str
    why: str = ""
    mode: str = "enforce"
    bare: bool = False

    @property
    def shipped(self) -> bool:
        """It came with smtpproxy: nobody here wrote it."""
        return self.origin != SITE

    @property
    def source(self) -> Source:
        """Where it stands."""
        return Source(self.positions.file, self.positions.value(self.path).line)

    def warning(
        self, key: str, message: str, expected: str = "", near: Sequence[str] = (), more: KeyPath = ()
    ) -> Problem:
        """A warning about the value of `key`, or about what `more` leads to in it."""
        return self.positions.problem(
            (*self.path, key, *more), message, where=self.where, expected=expected, nearest=near, severity="warning"
        )


class Listed(NamedTuple):
    """One rule as `smtpproxy rules list` shows it.

    Attributes:
        rule: None where it is off.
        origin: "shipped", "set:NAME" or "site".
        mode: "enforce", "observe" or "off".
        replaces: the rules of the same name whose place it takes (or that it switches off), the nearest first.
        replaced: the rule of the same name that takes its place; such a one is not in force, nor is one that is off.
        shadowed: the name of a rule that always decides in its place, or "": of rules on subjects an earlier one, of
            rules on extensions a later one.
    """

    name: str
    rule: AnyRule | None
    origin: str
    mode: str
    why: str
    source: Source
    replaces: tuple[Source, ...] = ()
    replaced: Source | None = None
    shadowed: str = ""

    @property
    def in_force(self) -> bool:
        """It is of the rules that are asked."""
        return self.rule is not None and self.replaced is None


def listed(entries: Sequence[Entry], order: Iterable[AnyRule], shadowed: Mapping[str, str]) -> tuple[Listed, ...]:
    """All entries: those in force in the order they are asked, then the others in the order of their files.

    Args:
        shadowed: name of a rule in force → name of the one that decides in its place.
    """
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    found: dict[int, Listed] = {}
    for same in by_name.values():
        for number, entry in enumerate(same):
            found[id(entry)] = Listed(
                entry.name,
                entry.rule,
                entry.origin,
                entry.mode,
                entry.why,
                entry.source,
                tuple(earlier.source for earlier in reversed(same[:number])),
                same[number + 1].source if number + 1 < len(same) else None,
                shadowed.get(entry.name, "") if entry is same[-1] else "",
            )
    ranks = {id(rule): number for number, rule in enumerate(order)}
    return tuple(
        found[id(entry)]
        for entry in sorted(entries, key=lambda entry: ranks.get(id(entry.rule), len(ranks)))  # stable
    )

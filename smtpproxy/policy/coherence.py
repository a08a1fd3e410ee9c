"""Coherence: what is valid in rule files and hardly meant.

Looked for once all rules are read and none of them has an error; what is found are warnings, which keep nothing from
starting.

- The rules are laid upon each other as the judge lays them: a keyword or verb is owned by the last rule about it, and
  by the registry's default where there is none. A rule that denies a verb owns the verb's keyword too.
- A rule changes nothing if all it owns would be treated the same without it, where it stands.
- Whether things fit together is asked of the whole, not of a rule: a later one may mend what an earlier one tore.
- Only rules of the site are warned about; the shipped ones are the defaults in words.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from smtpproxy.policy.entries import Entry
from smtpproxy.policy.rules import ExtensionRule, Mode, Treatment
from smtpproxy.policy.toml import Problem, nearest
from smtpproxy.policy.treatments import TREATMENT_OF, refusal_of
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.rows import Framing, Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import OwnReply

_Place = tuple[str, bytes]  # "keyword" or "verb", and its name
_State = tuple[Treatment, int, OwnReply | None]
_DONE = {
    Treatment.ALLOW: "allowed",
    Treatment.LIMIT: "allowed",
    Treatment.TLS: "allowed under TLS",
    Treatment.DENY: "denied",
}
_LEVEL = {Treatment.DENY: 0, Treatment.TLS: 1, Treatment.LIMIT: 2, Treatment.ALLOW: 2}


def warnings(entries: Sequence[Entry]) -> Iterator[Problem]:
    """What is valid and hardly meant, of the site's rules."""
    table = _Table()
    named: dict[str, Entry] = {}
    idle: set[Entry] = set()
    for entry in entries:
        earlier = named.get(entry.name)
        named[entry.name] = entry
        places = [*_of(entry), *(_of(earlier) if earlier else ())]
        before = {place: table.state(place) for place in places}
        if earlier is not None:
            table.take_out(earlier)
        said = table.says(places[0]) if places else ""
        table.put(entry)
        if entry.shipped or (entry.rule is not None and _about(entry) is None):
            continue
        if any(table.state(place) != before[place] for place in places):
            continue
        idle.add(entry)
        if places and entry.rule is None:
            yield entry.warning("mode", f"changes nothing: {said}", "a rule that says what else is to be done")
        elif places:
            yield entry.warning("extension", f"changes nothing: {said} already")
        elif earlier is None and entry.bare:
            near = nearest(entry.name, named.keys() - {entry.name})
            yield entry.warning("name", "switches nothing off: no rule before it has this name", near=near)
    for entry in named.values():
        if not entry.shipped and entry not in idle:
            yield from _alone(entry, table, idle)
    yield from _torn(table)


class _Table:
    """What holds for every keyword and verb, and which rules stand below it."""

    def __init__(self) -> None:
        self._stacks: dict[_Place, list[Entry]] = {place: [] for place in _places(EXTENSIONS.keys(), VERBS.keys())}

    def put(self, entry: Entry) -> None:
        for place in _of(entry):
            self._stacks[place].append(entry)

    def take_out(self, entry: Entry) -> None:
        for place in _of(entry):
            self._stacks[place].remove(entry)

    def owner(self, place: _Place) -> Entry | None:
        stack = self._stacks[place]
        return stack[-1] if stack else None

    def state(self, place: _Place) -> _State:
        kind, name = place
        owner = self.owner(place)
        row = VERBS[name] if kind == "verb" else EXTENSIONS[name]
        treatment, limit, reply = TREATMENT_OF[row.default], 0, None
        if owner is not None and (rule := _about(owner)) is not None:
            treatment, limit, reply = rule.treatment, rule.limit, rule.reply
        if treatment is Treatment.LIMIT and not limit:
            treatment = Treatment.ALLOW
        if isinstance(row, Verb) and _LEVEL[treatment] < 2:
            return treatment, 0, reply or refusal_of(row, treatment)
        return treatment, limit, None

    def level(self, place: _Place) -> int:
        return _LEVEL[self.state(place)[0]]

    def says(self, place: _Place) -> str:
        """`XEXCH50 is denied by rule strip-xexch50`."""
        owner = self.owner(place)
        by = f"rule {owner.name}" if owner else "default"
        return f"{place[1].decode()} is {_DONE[self.state(place)[0]]} by {by}"

    def about(self, places: Iterable[_Place], message: str) -> Iterator[Problem]:
        """A warning about the first rule of the site that decides one of these places."""
        for place in places:
            owner = self.owner(place)
            if owner is not None and not owner.shipped:
                yield owner.warning("extension", message)
                return


def _places(keywords: Iterable[bytes], verbs: Iterable[bytes]) -> list[_Place]:
    return [*(("keyword", name) for name in sorted(keywords)), *(("verb", name) for name in sorted(verbs))]


def _about(entry: Entry) -> ExtensionRule | None:
    """The rule, if it is one about an extension that holds for every session."""
    rule = entry.rule
    always = isinstance(rule, ExtensionRule) and rule.when is None and rule.mode is Mode.ENFORCE
    return rule if always and isinstance(rule, ExtensionRule) else None


def _of(entry: Entry) -> list[_Place]:
    """The places it decides: those of its name, then the keywords that verbs it denies take along."""
    rule = _about(entry)
    if rule is None:
        return []
    about = rule.feature
    places = _places(about.keywords, about.verbs)
    if rule.treatment is Treatment.DENY:
        owning = {VERBS[verb].extension.encode() for verb in about.verbs if VERBS[verb].extension}
        places += _places(owning - about.keywords, ())
    return places


def _alone(entry: Entry, table: _Table, idle: Collection[Entry]) -> Iterator[Problem]:
    """A rule that a later one (which is not idle) takes the place of, or that ends inspection."""
    rule = _about(entry)
    if rule is None:
        return
    owners = [owner for place in _of(entry) if (owner := table.owner(place)) is not None]
    if entry not in owners and owners[0] not in idle:
        yield entry.warning("extension", f"never holds: rule {owners[0].name} comes later and decides")
    elif _LEVEL[rule.treatment]:
        for verb in sorted(rule.feature.verbs):
            if Framing.OPAQUE in VERBS[verb].then.values():
                yield entry.warning("then", f"once {verb.decode()} is accepted nothing of the session is inspected")


def _torn(table: _Table) -> Iterator[Problem]:
    """Extensions without what they need, and verbs that don't go the way of their keyword."""
    brought: dict[bytes, list[_Place]] = {}
    for name, row in EXTENSIONS.items():
        keyword = ("keyword", name)
        for needed in (("keyword", need.encode()) for need in row.needs):
            if table.level(needed) < table.level(keyword):
                only = f"{row.keyword} is told only where {needed[1].decode()} is"
                message = f"{table.says(keyword)} and needs {needed[1].decode()}, but {table.says(needed)}: {only}"
                yield from table.about((needed, keyword), message)
        for verb in dict.fromkeys((*row.verbs, row.keyword)):
            if verb.encode() in VERBS:
                brought.setdefault(verb.encode(), []).append(keyword)
    for name, keywords in brought.items():
        by, first = ("verb", name), max(keywords, key=table.level)
        if table.level(by) != table.level(first):
            yield from table.about((by, first), f"{table.says(first)}, but its verb {table.says(by)}")

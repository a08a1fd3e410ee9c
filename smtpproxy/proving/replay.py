"""Recorded sessions, put through a rule set: what would be otherwise, by rule.

All sessions are played beside each other, record by record as they stand in the audit (reenacting.py), so rates and
limits count in the order things happened. What is kept is bounded: so many sessions, so many examples of each rule.

What the result says of a rule is what *it* does. What only follows (the recipients of a mail that is refused at MAIL)
is counted apart, and so is what can't be told: rules that read content, of which the record has none.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from smtpproxy.proving.history import Together, ends
from smtpproxy.proving.recorded import Connect, Exchange, Record
from smtpproxy.proving.reenacting import Clock, Player
from smtpproxy.proving.rehearsed import Rehearsed
from smtpproxy.proving.steps import Difference, Kind, Step, recorded_outcome
from smtpproxy.session.limits import LIMITS, Limits
from smtpproxy.session.postures import Posture
from smtpproxy.session.session import Session

MOST_PLAYED: Final = 5_000  # sessions that are under way at a time; each takes some 20 KiB
TICK: Final = 2_000  # records between two tellings of how far it is
OUTCOMES: Final = (Kind.REFUSED, Kind.PASSED, Kind.TAKEN, Kind.CHANGED)  # what a peer would notice


class Example(NamedTuple):
    """One exchange that differs."""

    session: str
    at: datetime
    client: str
    asked: str
    then: str
    now: str


@dataclass(slots=True)
class OfRule:
    """What one rule does to what was recorded.

    Attributes:
        name: "" stands for no rule: there the replay is not what the session was.
        counts: differences by kind.
        follows: exchanges that were passed over because of it.
        unknown: exchanges let through now of which nobody knows what the server would have said.
        called: times its function would have been called.
        untold: mails of which can't be told whether it holds.
    """

    name: str
    counts: Counter[Kind] = field(default_factory=Counter)
    follows: int = 0
    unknown: int = 0
    called: int = 0
    untold: int = 0
    examples: dict[Kind, list[Example]] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """What a replay came to.

    Attributes:
        differing: exchanges whose outcome for a peer would be another one.
        headless: sessions that began before the records.
        unseen: sessions that had passed uninspected; `turned_away`: those refused before any rule was asked.
        left: sessions that were given up because too many were under way.
        unread: commands the record does not show in full; `failed`: sessions that could not be played to their end.
    """

    rules: dict[str, OfRule] = field(default_factory=dict)
    sessions: int = 0
    exchanges: int = 0
    mails: int = 0
    differing: int = 0
    follows: int = 0
    headless: int = 0
    unseen: int = 0
    turned_away: int = 0
    left: int = 0
    unread: int = 0
    failed: int = 0
    other_rules: int = 0  # sessions that are recorded with another rule set than the one that is played
    first: datetime | None = None
    last: datetime | None = None

    def of(self, name: str) -> OfRule:
        """What is known of this rule."""
        found = self.rules.get(name)
        if found is None:
            found = self.rules[name] = OfRule(name)
        return found

    def beyond(self, most: float, *, percent: bool) -> bool:
        """More than so many exchanges, or percent of them, would have another outcome."""
        return self.differing * 100 > most * self.exchanges if percent else self.differing > most


class _Playing(NamedTuple):
    connect: Connect
    player: Player | None  # None: no rule saw it


class Replay:
    """Plays records by rules.

    Args:
        rules: those for a session, by its first record.
        posture: of its listener, where it is known.
        examples: how many are kept of each rule and kind.
        most: sessions that are under way at a time.
        watch: told each step too, with the session's first record.
    """

    def __init__(
        self,
        rules: Callable[[Connect], Rehearsed],
        *,
        posture: Callable[[Connect], Posture | None] = lambda connect: None,
        limits: Limits = LIMITS,
        examples: int = 3,
        most: int = MOST_PLAYED,
        watch: Callable[[Connect, Step], None] | None = None,
    ) -> None:
        self.result = Result()
        self._rules = rules
        self._posture = posture
        self._limits = limits
        self._examples = examples
        self._watch = watch
        self._clock = Clock()
        self._together: Together[_Playing] = Together(self._begun, self._left, most)

    def play(self, records: Iterable[Record], tick: Callable[[], None] = lambda: None) -> Result:
        """Play them all.

        Args:
            records: of an audit.
            tick: called now and then.
        """
        result, together = self.result, self._together
        for number, record in enumerate(records):
            if number % TICK == 0:
                tick()
            result.first = result.first or record.at
            result.last = record.at
            playing = together.of(record)
            if playing is None:
                continue
            try:
                if playing.player is not None and type(record) is not Connect:
                    playing.player.feed(record)
                if ends(record):
                    together.over(record)
                    self._over(playing)
            except Exception:  # our bug, or a record nobody wrote: one session must not end the rehearsal of a week
                together.over(record)
                result.failed += 1
        for playing in together.rest():
            self._over(playing)
        result.headless = together.headless
        tick()
        return result

    def _begun(self, connect: Connect) -> _Playing:
        result = self.result
        if connect.refused:
            result.turned_away += 1
            return _Playing(connect, None)
        if connect.unseen:
            result.unseen += 1
            return _Playing(connect, None)
        result.sessions += 1
        rules = self._rules(connect)
        if connect.ruleset and rules.digest and connect.ruleset != rules.digest:
            result.other_rules += 1

        def step(step: Step) -> None:
            self._count(connect, rules, step)

        def about(session: Session) -> None:
            result.mails += 1
            for name in rules.untold(session):
                result.of(name).untold += 1

        player = Player(
            connect,
            rules.judge,
            self._clock,
            step,
            limits=self._limits,
            posture=self._posture(connect),
            about=about,
        )
        return _Playing(connect, player)

    def _over(self, playing: _Playing) -> None:
        if playing.player is not None:
            playing.player.finish()
            self.result.unread += playing.player.unread

    def _left(self, playing: _Playing) -> None:
        self.result.left += 1
        self._over(playing)

    def _count(self, connect: Connect, rules: Rehearsed, step: Step) -> None:
        result = self.result
        result.exchanges += 1
        if self._watch is not None:
            self._watch(connect, step)
        if step.follows or (step.now is None and not step.differences):
            result.follows += 1
            for name in step.follows.split():
                result.of(name).follows += 1
            return
        if not step.differences:
            return
        noticed = False
        for one in step.differences:
            of_rule = result.of(one.rule)
            if one.kind is Kind.OBSERVED and one.rule in rules.functions:
                of_rule.called += 1
                continue
            noticed |= one.kind in OUTCOMES and one.rule != ""
            of_rule.counts[one.kind] += 1
            of_rule.unknown += step.unknown
            examples = of_rule.examples.setdefault(one.kind, [])
            if len(examples) < self._examples:
                examples.append(_example(connect, step, one))
        result.differing += noticed


def _example(connect: Connect, step: Step, one: Difference) -> Example:
    was = step.was
    if isinstance(was, Exchange):
        return Example(was.session, was.at, connect.client, was.asked or was.verb, recorded_outcome(was), one.what)
    return Example(was.session, was.at, connect.client, f"TLS of the {was.side}", was.action, one.what)

"""What rules did over a period, by the record: how often each decided, how often one that observes would have.

An observed rule is set beside what happened all the same: a refusal that the server gave anyway costs nobody anything
once it is enforced, and one that another rule gave changes nothing. What is left is what enforcing it would change.

What is kept of each rule is bounded: a few examples, and so many different clients and senders.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from smtpproxy.proving.history import MOST_OPEN, Together, ends
from smtpproxy.proving.recorded import Connect, Exchange, Note, Observation, Record
from smtpproxy.session.state import HELLOS, MAILS

MOST_NAMES: Final = 10_000  # different clients, and senders, that are told apart for each rule
_SENDER = re.compile(r"FROM:[ \t]*<([^>]*)>", re.IGNORECASE).search
_FORGET: Final = frozenset((*HELLOS, "RSET"))


class Some:
    """How many different names there are, up to a bound."""

    __slots__ = ("_names", "more")

    def __init__(self) -> None:
        self._names: set[str] = set()
        self.more = False

    def add(self, name: str) -> None:
        """One name."""
        if len(self._names) < MOST_NAMES:
            self._names.add(name)
        elif name not in self._names:
            self.more = True

    def __len__(self) -> int:
        return len(self._names)

    def __str__(self) -> str:
        return f"{len(self._names)}+" if self.more else str(len(self._names))


class Example(NamedTuple):
    """One time: what was asked and told, and by a rule that observes what would have been done (`would`)."""

    session: str
    at: datetime
    client: str
    sender: str
    asked: str
    told: str
    would: str = ""


@dataclass(slots=True)
class OfRule:
    """What one rule did.

    Attributes:
        enforced: how often it decided, by action; `beside` where it acted and another rule, or none, decided.
        observed: how often it would have acted, by action.
        by_server: so many of the observed were refused by the server all the same.
        by_rules: so many by another rule.
    """

    name: str
    enforced: Counter[str] = field(default_factory=Counter)
    observed: Counter[str] = field(default_factory=Counter)
    by_server: int = 0
    by_rules: int = 0
    first: datetime | None = None
    last: datetime | None = None
    clients: Some = field(default_factory=Some)
    senders: Some = field(default_factory=Some)
    examples: list[Example] = field(default_factory=list)

    @property
    def would_change(self) -> int:
        """How many of the observed nobody else refused."""
        return self.observed.total() - self.by_server - self.by_rules


@dataclass(slots=True)
class Report:
    """All rules, by name, and what was looked at."""

    rules: dict[str, OfRule] = field(default_factory=dict)
    sessions: int = 0
    exchanges: int = 0
    first: datetime | None = None
    last: datetime | None = None


class _Session:
    """What is known of a session on the way through its records."""

    __slots__ = ("client", "sender")

    def __init__(self, connect: Connect) -> None:
        self.client = connect.client
        self.sender: str | None = None


def report(records: Iterable[Record], *, examples: int = 3, most: int = MOST_OPEN) -> Report:
    """What the rules did by these records.

    Args:
        records: of an audit. Of a session that began before them client and, until the next MAIL, sender are unknown.
        examples: how many are kept of each rule.
        most: sessions that are kept at a time.
    """
    found = Report()
    together: Together[_Session] = Together(_Session, most=most)
    for record in records:
        session = together.of(record)
        found.first = found.first or record.at
        found.last = record.at
        if type(record) is Connect:
            found.sessions += 1
        elif type(record) is Exchange:
            found.exchanges += 1
            if session is not None:
                if record.verb in MAILS:
                    sender = _SENDER(record.asked or "")
                    session.sender = sender[1] if sender else None
                elif record.verb in _FORGET:
                    session.sender = None
            if record.rule or record.rules or record.observed:
                _exchange(found, record, session, examples)
        elif type(record) is Note and (record.rule or record.rules or record.observed):
            _exchange(found, record, session, examples)
        if ends(record):
            together.over(record)
    return found


def _exchange(found: Report, record: Exchange | Note, session: _Session | None, examples: int) -> None:
    asked, told = "", ""
    if type(record) is Exchange:
        asked, told = record.asked or record.verb, record.answer
    elif type(record) is Note:
        asked = f"{record.subject} {record.side}".strip()
    deciders = record.deciders
    acted = dict.fromkeys(deciders, record.action)
    for name in record.rules:
        acted.setdefault(name, "beside")
    for name, action in acted.items():
        rule = _seen(found, name, record, session)
        rule.enforced[action] += 1
        _example(rule, record, session, asked, told, "", examples)
    for one in record.observed:
        rule = _seen(found, one.rule, record, session)
        rule.observed[one.action] += 1
        if type(record) is Exchange and record.refused_by_server:
            rule.by_server += 1
        elif type(record) is Exchange and record.refused:
            rule.by_rules += 1
        _example(rule, record, session, asked, told, _would(one), examples)


def _seen(found: Report, name: str, record: Record, session: _Session | None) -> OfRule:
    rule = found.rules.get(name)
    if rule is None:
        rule = found.rules[name] = OfRule(name)
    rule.first = rule.first or record.at
    rule.last = record.at
    if session is not None:
        rule.clients.add(session.client.rpartition(":")[0] or session.client)
        if session.sender is not None:
            rule.senders.add(session.sender)
    return rule


def _example(
    rule: OfRule, record: Record, session: _Session | None, asked: str, told: str, would: str, most: int
) -> None:
    if len(rule.examples) < most:
        client, sender = (session.client, session.sender or "") if session is not None else ("", "")
        rule.examples.append(Example(record.session, record.at, client, sender, asked, told, would))


def _would(one: Observation) -> str:
    return f"{one.action} {one.told}".strip()

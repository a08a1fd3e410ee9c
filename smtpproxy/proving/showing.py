"""The results of rehearsals as text for people, and as values for JSON."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from smtpproxy.columns import count, table
from smtpproxy.proving.explaining import Explained, Shown, values_shown
from smtpproxy.proving.replay import OfRule as Replayed
from smtpproxy.proving.replay import Result
from smtpproxy.proving.report import OfRule as Reported
from smtpproxy.proving.report import Report
from smtpproxy.proving.steps import Kind


def replayed(result: Result) -> Iterator[str]:
    """A replay, in lines."""
    sessions, exchanges = count(result.sessions, "session"), count(result.exchanges, "exchange")
    yield f"replayed {sessions}, {exchanges}, {count(result.mails, 'mail')}{_period(result.first, result.last)}"
    share = f" ({result.differing * 100 / result.exchanges:.2g} %)" if result.differing else ""
    follows = f"; {result.follows:,} more only follow from that" if result.follows else ""
    yield f"{count(result.differing, 'exchange')}{share} would have another outcome{follows}"
    rules = sorted((one for one in result.rules.values() if one.name), key=lambda one: one.name)
    if rules:
        yield ""
        heads = ("RULE", *(kind.name for kind in Kind), "FOLLOWS", "CAN'T TELL")
        yield from table(heads, [_replay_row(one) for one in rules], right=range(1, len(heads)))
    for one in rules:
        for kind, examples in one.examples.items():
            if examples:
                yield ""
                yield f"{one.name}: {kind.value} {one.counts[kind]:,}{_unknown(one) if kind is Kind.PASSED else ''}"
            for example in examples:
                yield f"  {example.session}  {_when(example.at)}  {example.client}  {example.asked}"
                yield f"    was  {example.then}"
                yield f"    now  {example.now}"
    yield from _beside(result)


def _replay_row(one: Replayed) -> tuple[str, ...]:
    numbers = [*(one.counts[kind] for kind in Kind), one.follows, one.untold + one.called]
    return (one.name, *(f"{number:,}" if number else "-" for number in numbers))


def _unknown(one: Replayed) -> str:
    return f" (what the server would have said is not known of {one.unknown:,})" if one.unknown else ""


def _beside(result: Result) -> Iterator[str]:
    """What is not in the table."""
    other = result.rules.get("")
    said = [
        (other.counts.total() if other else 0, "exchanges that came out otherwise without a rule's word"),
        (result.unread, "exchanges that could not be replayed, because the record does not show all of them"),
        (result.failed, "sessions that could not be played to their end: please tell the makers"),
        (result.headless, "sessions that began before the record, and were left out"),
        (result.turned_away, "connections that had been turned away before any rule was asked"),
        (result.unseen, "sessions that had passed unseen"),
        (result.left, "sessions that were given up, because too many were open at once"),
    ]
    notes = [f"note: {words}: {number:,}" for number, words in said if number]
    if notes:
        yield ""
        yield from notes


def replay_json(result: Result) -> dict[str, Any]:
    """A replay."""
    return {
        "sessions": result.sessions,
        "exchanges": result.exchanges,
        "mails": result.mails,
        "differing": result.differing,
        "follows": result.follows,
        "other_rules_then": result.other_rules,
        "first": _iso(result.first),
        "last": _iso(result.last),
        "unexplained": result.rules[""].counts.total() if "" in result.rules else 0,
        "unread": result.unread,
        "failed": result.failed,
        "headless": result.headless,
        "turned_away": result.turned_away,
        "unseen": result.unseen,
        "given_up": result.left,
        "rules": [
            {
                "rule": one.name,
                **{kind.value: count for kind, count in one.counts.items()},
                "follows": one.follows,
                "unknown": one.unknown,
                "cant_tell": one.untold + one.called,
                "examples": [
                    {"kind": kind.value, **example._asdict(), "at": _iso(example.at)}
                    for kind, examples in one.examples.items()
                    for example in examples
                ],
            }
            for one in sorted(result.rules.values(), key=lambda one: one.name)
            if one.name
        ],
    }


# ----------------------------------------------------------------------------------------------------------- report


def reported(found: Report, rules: Sequence[Reported]) -> Iterator[str]:
    """A report, or some rules of it, in lines."""
    sessions, exchanges = count(found.sessions, "session"), count(found.exchanges, "exchange")
    yield f"{sessions}, {exchanges}{_period(found.first, found.last)}"
    if not rules:
        yield "no rule had a say in any of them"
        return
    yield ""
    heads = ("RULE", "ENFORCED", "OBSERVED", "WOULD CHANGE", "CLIENTS", "SENDERS", "FIRST", "LAST")
    yield from table(heads, [_report_row(one) for one in rules], right=range(1, 6))
    for one in rules:
        yield ""
        if one.enforced:
            yield f"{one.name}: enforced {one.enforced.total():,} ({_words(one.enforced)})"
        if one.observed:
            yield (
                f"{one.name}: observed {one.observed.total():,} ({_words(one.observed)}); refused anyway by the server"
                f" {one.by_server:,}, by another rule {one.by_rules:,}; would change {one.would_change:,}"
            )
        for example in one.examples:
            sender = f" <{example.sender}>" if example.sender else ""
            yield f"  {example.session}  {_when(example.at)}  {example.client}{sender}  {example.asked}"
            yield f"    was told {example.told or 'nothing'}" + (f"; would be {example.would}" if example.would else "")


def _report_row(one: Reported) -> tuple[str, ...]:
    enforced, observed = one.enforced.total(), one.observed.total()
    return (
        one.name,
        f"{enforced:,}" if enforced else "-",
        f"{observed:,}" if observed else "-",
        f"{one.would_change:,}" if observed else "-",
        str(one.clients),
        str(one.senders),
        _when(one.first),
        _when(one.last),
    )


def _words(counts: Any) -> str:
    return ", ".join(f"{action} {count:,}" for action, count in counts.most_common())


def report_json(found: Report, rules: Iterable[Reported]) -> dict[str, Any]:
    """A report, or some rules of it."""
    return {
        "sessions": found.sessions,
        "exchanges": found.exchanges,
        "first": _iso(found.first),
        "last": _iso(found.last),
        "rules": [
            {
                "rule": one.name,
                "enforced": dict(one.enforced),
                "observed": dict(one.observed),
                "refused_by_server": one.by_server,
                "refused_by_rules": one.by_rules,
                "would_change": one.would_change,
                "clients": len(one.clients),
                "senders": len(one.senders),
                "more": one.clients.more or one.senders.more,
                "first": _iso(one.first),
                "last": _iso(one.last),
                "examples": [{**example._asdict(), "at": _iso(example.at)} for example in one.examples],
            }
            for one in rules
        ],
    }


# ---------------------------------------------------------------------------------------------------------- explain


def explained(found: Explained) -> Iterator[str]:
    """A session, explained, in lines."""
    connect = found.connect
    match = f", match {connect.match}" if connect.match else ""
    yield (
        f"session {connect.session}: {connect.client} to {connect.server}, listener {connect.listener}{match},"
        f" {_when(connect.at)} UTC"
    )
    if connect.refused or connect.unseen:
        yield f"no rule was asked: {connect.refused or 'it passed unseen'}"
        return
    if found.same_rules is None:
        yield "rules: the record does not say which were in force"
    elif found.same_rules:
        yield f"rules: those that were in force ({found.now})"
    else:
        yield f"rules: not those that were in force (then {found.ruleset}, now {found.now})"
    for one in found.shown:
        yield ""
        yield from _shown(one)
    if not found.over:
        yield ""
        yield "its end is not on record"
    if found.cut or found.unread:
        yield f"note: {found.cut + found.unread} exchanges of it could not be shown"


def _shown(one: Shown) -> Iterator[str]:
    yield f"{one.seconds:9.3f}  {one.asked}"
    yield f"           was  {one.then}{_by(one.then_rule)}"
    if one.follows:
        yield f"           now  would not come about: {one.follows} decided otherwise before"
    elif not one.same or one.now_rule != one.then_rule:
        yield f"           now  {one.now}{_by(one.now_rule)}"
    for tried in one.tried:
        held = f"holds: {tried.deed}" if tried.held else "does not hold"
        yield f"           tried {tried.rule} ({tried.subject}): {held}"
        if tried.values:
            yield f"                 {values_shown(tried.values)}"
    for name in one.untold:
        yield f"           can't tell {name}: it reads the mail"


def _by(rule: str) -> str:
    return f"   by {rule}" if rule else ""


def explain_json(found: Explained) -> dict[str, Any]:
    """A session, explained."""
    return {
        "session": found.connect.session,
        "client": found.connect.client,
        "server": found.connect.server,
        "listener": found.connect.listener,
        "match": found.connect.match,
        "at": _iso(found.connect.at),
        "ruleset": found.ruleset,
        "ruleset_now": found.now,
        "same_rules": found.same_rules,
        "complete": found.over and not found.cut,
        "exchanges": [
            {**one._asdict(), "tried": [{**tried._asdict(), "values": dict(tried.values)} for tried in one.tried]}
            for one in found.shown
        ],
    }


# -------------------------------------------------------------------------------------------------------------- both


def _period(first: datetime | None, last: datetime | None) -> str:
    return f" ({_when(first)} to {_when(last)} UTC)" if first is not None else ""


def _when(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if at is not None else "-"


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None

"""What a session asks of the outside, and how it goes on when it is told: waits, calls, mails to be kept.

A verdict may be a question (verdicts.Question). The exchange it is about stands in its place in the ledger, undecided,
and holds: nothing of the client is read behind it. The driver carries the question out and says what came of it; then
the question's own `resume` makes a verdict of that, which is heeded as if it had been given at once.

What must never happen: an answer that is taken for another question's, or after the session is over; a command of our
own that is sent to the server, but stands in the ledger, behind one that was not sent (Session.send_own sees to that).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from smtpproxy.session.effects import Ask
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.session.verdicts import Action, Effects, Failed, Question, Verdict
from smtpproxy.smtp import replies as say

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

LONGEST: Final = 300.0  # seconds for all that is asked about one command, reply or mail (RFC 5321 §4.5.3.2)

Then = Callable[[Verdict], None]


class Asked(NamedTuple):
    """A question under way, and what follows from the answer. `since`: when the first about the same was asked."""

    question: Question
    heed: Then
    then: Then
    since: float


FAILED = Verdict(Action.ANSWER, say.RULE_FAILED, anomalies=("rule-failed",))


def judged(session: "Session", about: str, judge: Callable[..., Verdict], *given: Any) -> Verdict:
    """What the rules say. A rule that fails decides nothing: fail closed (architecture §9)."""
    try:
        return judge(*given)
    except Exception as error:
        session.note(Kind.NOTE, anomaly="rule-failed", subject=about, why=type(error).__name__)
        return FAILED


def ask(session: "Session", question: Question, heed: Then, then: Then) -> None:
    """Have the driver answer it. `heed` is given each verdict that follows, `then` the last, which is no question."""
    _ask(session, question, Asked(question, heed, then, session.clock()))


def _ask(session: "Session", question: Question, asked: Asked) -> None:
    ticket = session.asked_so_far = session.asked_so_far + 1
    session.asking[ticket] = asked._replace(question=question)
    session.effects.append(Ask(ticket, question))


def decided(session: "Session", ticket: int, outcome: Any) -> None:
    """The answer to a question, or Failed. One that nobody waits for any more is nothing."""
    asked = session.asking.pop(ticket, None)
    if asked is None or session.closed:
        return
    session.progress += 1
    verdict = judged(session, "resumed", asked.question.resume, outcome)
    asked.heed(verdict)
    while verdict.action is Action.ASK:
        if session.clock() - asked.since <= LONGEST:
            _ask(session, verdict.value, asked)
            return
        verdict = judged(session, "resumed", verdict.value.resume, Failed("the session has waited long enough"))
        asked.heed(verdict)
    asked.then(verdict)


def let_go(session: "Session") -> bool:
    """The session ends: a reply about which the outside is asked is told as it came, for what the server said is so.
    True: with that it is over."""
    exchange, session.kept_reply = session.kept_reply, None
    if exchange is not None:
        exchange.kept = False
        exchange.told = exchange.got
        session.settle()
    return session.closed


def heeds(exchange: Exchange) -> Then:
    """What puts verdicts on an exchange."""
    return lambda verdict: heed(exchange, verdict)


def heed(exchange: Exchange, verdict: Verdict) -> None:
    """Put on an exchange what the rules say beside their decision."""
    if verdict.rule:
        exchange.rule = verdict.rule
    exchange.anomalies += verdict.anomalies
    if verdict.effects is not None:
        exchange.effects = merged(exchange.effects, verdict.effects)


def merged(before: Effects | None, more: Effects | None) -> Effects | None:
    """The effects of two verdicts about the same."""
    if before is None or more is None:
        return more or before
    rules = tuple(dict.fromkeys(before.rules + more.rules))  # one that asked in between acted once
    return Effects(rules, before.observed + more.observed, before.tags + more.tags)


def on_record(session: "Session", subject: str, verdict: Verdict, **detail: Any) -> None:
    """What rules did where there is no exchange to put it on."""
    effects = verdict.effects or Effects()
    facts: dict[str, Any] = {"rule": verdict.rule, "action": verdict.action.value if verdict.rule else ""}
    facts |= effects.shown()
    facts["anomalies"] = list(verdict.anomalies)
    if shown := {key: value for key, value in facts.items() if value}:
        session.note(Kind.NOTE, subject=subject, **detail, **shown)

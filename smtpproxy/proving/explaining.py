"""One recorded session, command by command: which rules were tried, which decided, and what they saw.

The session is played by the rules as they are now (reenacting.py), and each exchange is shown beside what was recorded.
That is the reason for what was recorded only if the rules are the same; the record has a digest of them, and if it is
another one, that is said.

What was counted before this session began is not known here: a limit that was exceeded then may not be now.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from smtpproxy.policy.judging import Tried
from smtpproxy.proving.history import Recorded
from smtpproxy.proving.recorded import Connect, Exchange
from smtpproxy.proving.reenacting import Clock, Player
from smtpproxy.proving.rehearsed import Rehearsed
from smtpproxy.proving.steps import Step, outcome, recorded_outcome
from smtpproxy.session.limits import LIMITS, Limits
from smtpproxy.session.postures import Posture
from smtpproxy.session.session import Session

_LONGEST: Final = 100  # characters of a value that are shown


class Shown(NamedTuple):
    """One exchange: what was asked, what came of it then and comes of it now, and the rules that were tried."""

    seconds: float  # since the session began
    asked: str
    then: str
    then_rule: str
    now: str
    now_rule: str
    same: bool
    tried: tuple[Tried, ...]
    untold: tuple[str, ...]  # rules of which can't be told whether they hold: they read the mail
    follows: str  # the rule because of which this was not played


@dataclass(slots=True)
class Explained:
    """A session, explained. `ruleset` is the digest of the rules then, `now` that of the rules it was played by."""

    connect: Connect
    ruleset: str = ""
    now: str = ""
    shown: list[Shown] = field(default_factory=list)
    over: bool = True  # its end is on record
    cut: int = 0  # records that were too many
    unread: int = 0

    @property
    def same_rules(self) -> bool | None:
        """Whether it is the same rule set; None: the record does not say."""
        return self.ruleset == self.now if self.ruleset and self.now else None


def explain(
    session: Recorded, rules: Rehearsed, *, posture: Posture | None = None, limits: Limits = LIMITS
) -> Explained:
    """Play a session, and tell why what comes of it."""
    connect = session.connect
    found = Explained(connect, connect.ruleset, rules.digest, over=session.over, cut=session.cut)
    tried: list[Tried] = []
    untold: list[str] = []

    def step(step: Step) -> None:
        found.shown.append(_shown(connect, step, tried, untold))
        tried.clear()
        untold.clear()

    def about(session: Session) -> None:
        untold.extend(rules.untold(session))

    if connect.refused or connect.unseen:
        return found
    rules.judge.trace = tried.append
    try:
        player = Player(connect, rules.judge, Clock(), step, posture=posture, limits=limits, about=about)
        for record in session.records:
            if type(record) is not Connect:
                player.feed(record)
        player.finish()
    finally:
        rules.judge.trace = None
    found.unread = player.unread
    return found


def _shown(connect: Connect, step: Step, tried: Iterable[Tried], untold: Iterable[str]) -> Shown:
    was, now = step.was, step.now or {}
    if isinstance(was, Exchange):
        asked, then, then_rule = was.asked or was.verb, recorded_outcome(was), was.rule
    else:
        asked, then, then_rule = f"(TLS of the {was.side})", was.action, was.rule
    return Shown(
        (was.at - connect.at).total_seconds(),
        asked,
        then,
        then_rule,
        outcome(now) if "asked" in now else str(now.get("action", "")),
        str(now.get("rule", "")),
        not step.differences,
        tuple(tried),
        tuple(untold),
        step.follows,
    )


def values_shown(values: Mapping[str, Any]) -> str:
    """Fields and their values in one line, as a condition would write them."""
    return "  ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

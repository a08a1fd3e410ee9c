"""Rules for a rehearsal: a judge that is asked about mails of which only size and digest are known.

- What a rule asks of header section or content is not on record, and not guessed. Such a rule is left out of the judge,
  and counted for each mail for which what else it asks could hold: that can't be told.
- A rule that calls a function is left out too: a rehearsal runs nobody's code. It is counted where its condition holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from smtpproxy.policy.expr import ConditionSet
from smtpproxy.policy.fields import DEPTH_OF, FIELDS
from smtpproxy.policy.judge import Judge as RulesJudge
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.rules import AnyRule, Mode, Rule, Tag
from smtpproxy.policy.subjects import Group
from smtpproxy.policy.view import View
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Depth, Judge, ReplyRule, Verdict
from smtpproxy.smtp.replies import Reply

_OF_CONTENT: Final = frozenset({Group.HEADER, Group.ATTACHMENT, Group.CONTENT})
_ON_RECORD: Final = frozenset({"content.size", "content.digest"})
_CALLED: Final = Tag(("called",))  # what stands for a function: nobody sees it, for the rule only observes


class Rehearsed:
    """A rule set, as far as it can be rehearsed.

    Args:
        rules: as they were loaded.
        recipients: most that are accepted for a mail.
        counters: where limits and rates count.
        digest: of the rules, as the record has it of sessions.
    """

    def __init__(
        self, rules: Iterable[AnyRule], *, recipients: int = 0, counters: Counters | None = None, digest: str = ""
    ) -> None:
        self.digest = digest
        self.functions: set[str] = set()
        self._untold: list[tuple[str, ConditionSet]] = []
        known: list[AnyRule] = []
        for rule in rules:
            if isinstance(rule, Rule) and _untold(rule):
                subject = next(one for one in rule.subjects if one.group in _OF_CONTENT)
                self._untold.append((rule.name, ConditionSet([rule.when], subject)))
                left = tuple(one for one in rule.subjects if one.group not in _OF_CONTENT)
                if not left:
                    continue
                rule = replace(rule, subjects=left)
            if isinstance(rule, Rule) and rule.python is not None:
                self.functions.add(rule.name)
                rule = replace(rule, python=None, then=(_CALLED,), mode=Mode.OBSERVE)
            known.append(rule)
        self.judge = RulesJudge(known, recipients=recipients, counters=counters)

    def untold(self, session: Session) -> Iterator[str]:
        """The rules of which can't be told whether they hold for the mail under way, and could."""
        if self._untold:
            transaction = getattr(session.incoming, "transaction", None) or session.transaction
            view = View(session, transaction=transaction)
            for name, conditions in self._untold:
                if conditions.possible(view):
                    yield name


def _untold(rule: Rule) -> bool:
    """It asks for what is not on record."""
    groups = {one.group for one in rule.subjects} & _OF_CONTENT
    if not groups:
        return False
    if Group.ATTACHMENT in groups or rule.python is not None:
        return True
    asked = rule.when.fields if rule.when is not None else ()
    return any(FIELDS[name].known in DEPTH_OF and name not in _ON_RECORD for name in asked)


class Informed:
    """The judge, told what the stand-in for a mail's content does not show: the size and digest on record."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.commands = judge.commands
        self.malformed = judge.malformed
        self.connect = judge.connect
        self.tls = judge.tls
        self.header = judge.header
        self.redirects = judge.redirects
        self.size = 0
        self.digest = ""
        self.replies: Mapping[str, ReplyRule] = judge.replies
        if "END" in judge.replies or "BDAT" in judge.replies:
            self.replies = {
                name: self._about_content(rule) if name in ("END", "BDAT") else rule
                for name, rule in judge.replies.items()
            }
        self.content = self._content if judge.content is not None else None
        self.ended = self._ended if judge.ended is not None else None

    def _inform(self, transaction: Any) -> None:
        if transaction is not None and self.digest:
            transaction.size, transaction.digest = self.size, self.digest

    def _about_content(self, rule: ReplyRule) -> ReplyRule:
        def informed(reply: Reply, exchange: Any, session: Session) -> Verdict:
            self._inform(exchange.transaction)
            return rule(reply, exchange, session)

        return informed

    def _content(self, content: Any, session: Session) -> Verdict:
        self._inform(getattr(session.incoming, "transaction", None) or session.transaction)
        judge = self._judge.content
        if judge is None:
            raise AssertionError("no rule reads content")
        return judge(content, session)

    def _ended(self, exchange: Any, accepted: bool, session: Session) -> Verdict:
        self._inform(exchange.transaction)
        judge = self._judge.ended
        if judge is None:
            raise AssertionError("no rule counts mails")
        return judge(exchange, accepted, session)

    def depth(self, transaction: Any, session: Session) -> Depth:
        """As deep as the rules say; a mail that is too big, not at once: only its end of data stands for its size."""
        depth = self._judge.depth(transaction, session)
        too_big = 0 < self._judge.max_size(session) < self.size
        return Depth.HEADER if too_big and depth is Depth.STREAM else depth

    def max_size(self, session: Session) -> int:
        """The limit; below it, whatever it is, for a mail that was above it."""
        most = self._judge.max_size(session)
        return 1 if 0 < most < self.size else most

    def owner(self, name: bytes, session: Session | None = None) -> str:
        """The rule that denies this keyword or verb."""
        return self._judge.owner(name, session)

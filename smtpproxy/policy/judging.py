"""Rules on subjects, tried: the rules of one subject in order, until one decides.

- A `Sheet` holds the rules of one subject, or of one verb, with their conditions compiled together.
- A `Trial` is one trying of them about one moment of a session. What rules do beside deciding adds up: labels are on at
  once, so that later rules see them; a command, a reply, a header section is given on as it was rewritten.
- A rule may need the outside: to wait, to call a function, to keep a mail. Then the verdict is ASK, and the trial goes
  on from where it was when it is told the answer.
- A rule that only observes does nothing: what it would have done is on record, and the next one is tried.
- A rule that fails, at whatever, is a refusal: 451, or 421 where nothing else can be told (architecture §9).

What must never happen: a rule that fails and is passed over; a rule that observes and does something; two decisions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from smtpproxy.policy import doing
from smtpproxy.policy.expr import ConditionSet, RuleFailed
from smtpproxy.policy.fields import View
from smtpproxy.policy.rates import Counters, exceeded
from smtpproxy.policy.rules import (
    ACT_OF,
    Answer,
    Deed,
    Discard,
    EditHeader,
    Hangup,
    Limit,
    Mode,
    Pass,
    Quarantine,
    Record,
    Redirect,
    RewriteCommand,
    RewriteReply,
    Rule,
    Tag,
    Tarpit,
)
from smtpproxy.policy.subjects import DECIDING, Group, Subject
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    Call,
    Effects,
    Failed,
    Keep,
    Observed,
    Question,
    Verdict,
    Wait,
)
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.message import Header
from smtpproxy.smtp.replies import OwnReply

_KEEPING = 30.0  # seconds within which a mail is kept, or it is refused
_LISTS = ("EHLO", "LHLO")


class Tried(NamedTuple):
    """One rule that was tried: whether its condition held, what it did, and what the fields in the condition were."""

    subject: str
    rule: str
    held: bool
    deed: str = ""
    values: Mapping[str, Any] = {}


Trace = Callable[[Tried], None]


class Sheet:
    """The rules of one subject (or of one verb), in order."""

    def __init__(self, subject: Subject, rules: Sequence[Rule], counters: Counters) -> None:
        self.subject = subject
        self.rules = tuple(rules)
        self.counters = counters
        self.conditions = ConditionSet([rule.when for rule in rules], subject)

    def trial(self, view: View, trace: Trace | None = None) -> "Trial":
        """Try them about what `view` shows."""
        return Trial(self, view, trace)

    def verdict(self, view: View, trace: Trace | None = None) -> Verdict:
        """What they say; a question first, where one has to be asked."""
        return Trial(self, view, trace).go()

    def failed(self, why: str, anomaly: str) -> Verdict:
        """All of them have: a refusal by the first that is enforced; of those that observe it is on record."""
        observed = tuple(Observed(rule.name, "failed", why) for rule in self.rules if rule.mode is Mode.OBSERVE)
        effects = Effects(observed=observed) if observed else None
        enforced = next((rule for rule in self.rules if rule.mode is Mode.ENFORCE), None)
        if enforced is None:
            return PASS._replace(effects=effects)
        verdict = failed(self.subject.group, enforced.name)
        return verdict._replace(anomalies=(*verdict.anomalies, anomaly), effects=effects)

    @property
    def asks(self) -> bool:
        """Some of them need the outside."""
        return any(
            rule.python is not None or any(isinstance(deed, Tarpit | Quarantine) for deed in rule.then)
            for rule in self.rules
        )


class Trial:
    """One trying of a sheet. `go` gives the verdict, or ASK; what it did so far is with each verdict."""

    def __init__(self, sheet: Sheet, view: View, trace: Trace | None) -> None:
        self.sheet = sheet
        self.view: Any = view  # what of it is there follows from the subject
        self.edited = False  # the header section
        self._trace = trace
        self._matching: Iterator[int] = sheet.conditions.matching(view)
        self._next = 0  # the first rule that was not tried
        self._deeds: list[tuple[Rule, Deed]] = []  # of the rule that holds, still to be done
        self._rules: list[str] = []
        self._observed: list[Observed] = []
        self._tags: list[str] = []
        self._rewritten: Any = None
        self.by = ""  # the last rule that rewrote something
        self._rule: Rule | None = None

    def go(self) -> Verdict:
        """Go on trying."""
        try:
            return self._go()
        except RuleFailed as failed:
            return self._failed(self.sheet.rules[failed.index], failed.why, again=failed.index + 1)
        except ValueError as error:
            if self._rule is None:
                raise
            return self._failed(self._rule, str(error), again=self._next)

    def _go(self) -> Verdict:
        while True:
            while self._deeds:
                rule, deed = self._deeds.pop(0)
                verdict = self._do(rule, deed)
                if verdict is not None:
                    return verdict
            index = next(self._matching, None)
            self._show(index)
            if index is None:
                return self._over(PASS)
            self._next = index + 1
            rule = self._rule = self.sheet.rules[index]
            if rule.python is not None:
                return self._call(rule)
            if rule.mode is Mode.OBSERVE:
                self._observe(rule, rule.then)
            else:
                self._deeds = [(rule, deed) for deed in rule.then]

    def _show(self, index: int | None) -> None:
        """Tell who looks on which rules were tried."""
        if self._trace is None:
            return
        rules, conditions = self.sheet.rules, self.sheet.conditions
        for tried in range(self._next, len(rules) if index is None else index + 1):
            rule, held = rules[tried], tried == index
            deed = (rule.python.name if rule.python else _word(rule.then)) if held else ""
            self._trace(Tried(str(self.sheet.subject), rule.name, held, deed, conditions.used(tried, self.view)))

    # ------------------------------------------------------------------------------------------------- what rules do

    def _do(self, rule: Rule, deed: Deed) -> Verdict | None:
        """One act; None: it decides nothing."""
        if isinstance(deed, Pass):
            return self._over(Verdict(Action.PASS, None, rule.name))
        if isinstance(deed, Answer):
            return self._over(Verdict(Action.ANSWER, doing.reply_of(deed, self.view), rule.name))
        if isinstance(deed, Discard):
            return self._over(Verdict(Action.DISCARD, None, rule.name))
        if isinstance(deed, Hangup):
            return self._over(Verdict(Action.HANGUP, self._last_word(deed), rule.name))
        if isinstance(deed, Redirect):
            return self._over(Verdict(Action.REDIRECT, (deed.host, deed.port), rule.name))
        if isinstance(deed, Limit):
            over = exceeded(deed, rule.name, self.view, self.sheet.counters)
            if over and self.sheet.subject.group not in (Group.REPLY, Group.TRANSACTION):
                return self._over(Verdict(Action.ANSWER, doing.reply_of(deed.answer, self.view), rule.name))
            if not over:
                return None
        if isinstance(deed, Quarantine):
            return self._keep(rule, deed)
        self._acted(rule)
        if isinstance(deed, Tarpit):
            return self._ask(Wait(deed.seconds), deed.seconds + 1.0, lambda outcome: self.go())
        if isinstance(deed, Tag):
            self._tag(deed)
        elif isinstance(deed, Record):
            self.view.session.transcript = True
        elif isinstance(deed, RewriteCommand):
            self._rewritten = self.view.command = doing.rewritten(self.view.command, deed, self.view)
            self.by = rule.name
            self.view.touch()
        elif isinstance(deed, RewriteReply):
            self._retell(rule, deed)
        elif isinstance(deed, EditHeader):
            self._edit(rule, deed)
        return None

    def _retell(self, rule: Rule, deed: RewriteReply) -> None:
        listing = self.view.exchange.verb.name in _LISTS and self.view.reply.digit == 2
        made = doing.retold(self.view.reply, deed, self.view, listing=listing)
        self._rewritten = made
        self.view.reply = made.full if isinstance(made, OwnReply) else made
        self.by = rule.name
        self.view.touch()

    def _edit(self, rule: Rule, deed: EditHeader) -> None:
        utf8 = self.view.transaction is not None and self.view.transaction.parameter(b"SMTPUTF8") is not None
        section = self.view.header.edited(doing.edits_of(deed.edits, self.view), utf8=utf8)
        self.view.header = Header.parse(section)
        self.by = rule.name
        self.edited = True
        self.view.touch()

    def _tag(self, deed: Tag) -> None:
        transaction = self.view.transaction
        labels = self.view.session.tags if transaction is None else transaction.tags
        labels.update(dict.fromkeys(deed.labels))
        self._tags += deed.labels
        self.view.touch()

    def _last_word(self, deed: Hangup) -> OwnReply | None:
        """What is told before the links are closed; None: the server's reply, where one is being told."""
        if deed.answer is not None:
            return doing.reply_of(deed.answer, self.view)
        return None if self.sheet.subject.group is Group.REPLY else say.RULE_HANGUP

    def _acted(self, rule: Rule) -> None:
        if rule.name not in self._rules:
            self._rules.append(rule.name)

    def _observe(self, rule: Rule, deeds: Sequence[Deed]) -> None:
        """What it would have done: its decision, or else all of it."""
        told, words = "", []
        for deed in deeds:
            if isinstance(deed, Limit) and not self._would_exceed(rule, deed):
                continue
            words.append(ACT_OF[type(deed)].value)
            answer = deed.answer if isinstance(deed, Hangup | Limit | Quarantine) else deed
            if isinstance(answer, Answer):
                told = str(doing.reply_of(answer, self.view).full)
            if ACT_OF[type(deed)] in DECIDING or isinstance(deed, Limit):
                words = words[-1:]
                break
        if words:
            self._observed.append(Observed(rule.name, " ".join(words), told))

    def _would_exceed(self, rule: Rule, limit: Limit) -> bool:
        """It counts, and locks nobody."""
        return exceeded(replace(limit, lock=0.0), rule.name, self.view, self.sheet.counters)

    # --------------------------------------------------------------------------------------------------- the outside

    def _ask(self, about: Wait | Call | Keep, deadline: float, resume: Callable[[Any], Verdict]) -> Verdict:
        return Verdict(Action.ASK, Question(about, deadline, resume), effects=self._effects())

    def _call(self, rule: Rule) -> Verdict:
        entry = rule.python
        if entry is None:
            raise AssertionError("a rule without a function")

        def resume(outcome: Any) -> Verdict:
            if isinstance(outcome, Failed):
                return self._without(rule, outcome.why)
            try:
                deeds = entry.deeds(outcome, self.sheet.subject)
            except (TypeError, ValueError) as error:
                return self._failed(rule, str(error), again=self._next)
            if rule.mode is Mode.OBSERVE:
                self._observe(rule, deeds)
            else:
                self._deeds = [(rule, deed) for deed in deeds]
            return self.go()

        return self._ask(Call(entry.call(self.view), entry.asynchronous, rule.name), rule.deadline, resume)

    def _keep(self, rule: Rule, deed: Quarantine) -> Verdict:
        def resume(outcome: Any) -> Verdict:
            if isinstance(outcome, Failed):
                return self._without(rule, outcome.why)
            return self._over(Verdict(Action.QUARANTINE, doing.reply_of(deed.answer, self.view), rule.name))

        told = str(doing.reply_of(deed.answer, self.view).full)
        keep = Keep(rule.name, rule.why, self.view.content.file, {"told": told})
        return self._ask(keep, max(rule.deadline, _KEEPING), resume)

    def _without(self, rule: Rule, why: str) -> Verdict:
        """No answer came, or none that helps: what the rule says of that, or a refusal."""
        if rule.otherwise is None:
            return self._failed(rule, why, again=self._next)
        if rule.mode is Mode.OBSERVE:
            self._observe(rule, [rule.otherwise])
        else:
            self._deeds = [(rule, rule.otherwise)]
        return self.go()

    # --------------------------------------------------------------------------------------------------- the verdict

    def _effects(self) -> Effects | None:
        """What was done since the last verdict."""
        if not (self._rules or self._observed or self._tags):
            return None
        effects = Effects(tuple(self._rules), tuple(self._observed), tuple(self._tags))
        self._rules, self._observed, self._tags = [], [], []
        return effects

    def _over(self, verdict: Verdict) -> Verdict:
        """The end of it, with all that was done."""
        if verdict.action is Action.PASS and (self._rewritten is not None or self.edited):
            action = Action.PASS if self._rewritten is None else Action.REWRITE
            verdict = Verdict(action, self._rewritten, verdict.rule or self.by)
        if verdict.rule in self._rules:
            self._rules.remove(verdict.rule)
        effects = self._effects()
        return verdict if effects is None else verdict._replace(effects=effects)

    def _failed(self, rule: Rule, why: str, *, again: int) -> Verdict:
        """Fail closed; or, if it only observes, say so and go on behind it."""
        if rule.mode is Mode.OBSERVE:
            self._observed.append(Observed(rule.name, "failed", why))
            self._deeds = []
            self._next = again
            self._matching = self.sheet.conditions.matching(self.view, again)
            return self.go()
        self._rewritten = None
        return self._over(failed(self.sheet.subject.group, rule.name))


def failed(group: Group, rule: str) -> Verdict:
    """What a rule that fails comes to, by what can be told where it is tried."""
    anomalies = ("rule-failed",)
    if group is Group.TRANSACTION:
        return Verdict(Action.PASS, None, rule, anomalies)
    if group is Group.CONNECT:
        return Verdict(Action.ANSWER, say.RULE_FAILED_CLOSING, rule, anomalies)
    if group in (Group.REPLY, Group.TLS):
        return Verdict(Action.HANGUP, say.RULE_FAILED_CLOSING, rule, anomalies)
    return Verdict(Action.ANSWER, say.RULE_FAILED, rule, anomalies)


def joined(first: Verdict, then: Verdict) -> Verdict:
    """Two verdicts about the same, the second of which was given about what the first made of it."""
    if first is PASS or first == PASS:
        return then
    rules = tuple(first.rule.split()) if then.rule else ()
    before, after = first.effects or Effects(), then.effects or Effects()
    effects = Effects(before.rules + rules + after.rules, before.observed + after.observed, before.tags + after.tags)
    made = first if then.action is Action.PASS and first.action is not Action.PASS else then
    return Verdict(
        made.action,
        made.value,
        then.rule or first.rule,
        first.anomalies + then.anomalies,
        effects if any(effects) else None,
    )


def _word(deeds: Sequence[Deed]) -> str:
    return ", ".join(ACT_OF[type(deed)].value for deed in deeds)

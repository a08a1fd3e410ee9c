"""The judge: all rules, compiled once, asked by sessions.

It puts together what rules about extensions come to (treatments.py) and the sheets of rules on subjects (judging.py).
Rules about extensions are asked first: what they refuse is refused, and of a list later rules see what they left of it.
A verb that nothing is decided about has no function and costs no call.

A rule about an extension may have a condition. Which of those hold is found out when a session begins and at each reply
to a hello, and is kept until the next (`session.variant`): what a client was told is what it is held to. For each
combination that occurs there is one set of compiled rules.

How deep a mail is looked into follows from the rules that could still hold when its content comes: a rule whose
condition has a part about client and envelope alone, and that part does not hold, asks for nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from smtpproxy.policy.expr import ConditionSet
from smtpproxy.policy.fields import EXTENSION, View
from smtpproxy.policy.judging import Sheet, Trace, joined
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.readings import ANOMALY, WHY, astray
from smtpproxy.policy.rules import AnyRule, ExtensionRule, Mode, Redirect, Rule, Treatment
from smtpproxy.policy.subjects import ALIASES, ANY, Group, Subject
from smtpproxy.policy.treatments import Treatments
from smtpproxy.policy.whole import Whole, mail_of
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    CommandRule,
    Depth,
    Effects,
    Observed,
    Question,
    ReplyRule,
    Verdict,
)
from smtpproxy.smtp.commands import Command, Malformed
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.message import Header
from smtpproxy.smtp.registry.features import feature
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import Reply, own

_MALFORMED = "MALFORMED"
_PSEUDO = ("GREETING", "END", "SASL")
_HELLOS = ("EHLO", "LHLO", "HELO")


class Judge:
    """What sessions are judged by: shipped defaults and the rules given.

    Args:
        rules: about extensions, the later one winning; on subjects, in the order in which they are tried.
        recipients: most that are accepted for a mail, whatever the rules say.
        counters: where limits and rates count.
        digest: which rules they are, for the record.

    Attributes:
        trace: told of every rule on a subject that is tried, while it is set.
    """

    def __init__(
        self,
        rules: Iterable[AnyRule] = (),
        *,
        recipients: int = 0,
        counters: Counters | None = None,
        digest: str = "",
    ) -> None:
        self.rules = tuple(rules)
        self.digest = digest
        self.trace: Trace | None = None
        self.counters = counters or Counters()
        extensions = [rule for rule in self.rules if isinstance(rule, ExtensionRule)]
        self._variants = _Variants(extensions, recipients)
        self._base = self._variants.of(None)
        self._sheets: dict[str, Sheet] = {}
        on = [rule for rule in self.rules if isinstance(rule, Rule)]
        self._connect = self._sheet(Subject(Group.CONNECT), on)
        self._tls = self._sheet(Subject(Group.TLS), on)
        self._header = self._sheet(Subject(Group.HEADER), on)
        self._attachment = self._sheet(Subject(Group.ATTACHMENT), on)
        self._content = self._sheet(Subject(Group.CONTENT), on)
        self._ended = self._sheet(Subject(Group.TRANSACTION), on)
        self._malformed = self._sheet(Subject(Group.COMMAND, _MALFORMED), on)
        self.commands: Mapping[str, CommandRule] = MappingProxyType(dict(self._command_rules(on)))
        self.replies: Mapping[str, ReplyRule] = MappingProxyType(dict(self._reply_rules(on)))
        self.connect = self._judge_connect if self._connect else None
        self.tls = self._judge_tls if self._tls else None
        self.header = self._judge_header if self._header else None
        self.content = self._judge_content if self._header or self._attachment or self._content else None
        self.ended = self._judge_ended if self._ended else None
        self.malformed = self._judge_malformed if self._malformed else None
        self.redirects = tuple(
            dict.fromkeys((deed.host, deed.port) for rule in on for deed in rule.then if isinstance(deed, Redirect))
        )

    def _sheet(self, subject: Subject, rules: Iterable[Rule]) -> Sheet | None:
        """The rules on one subject; of a verb, those on any spelling of it and those on all verbs."""
        found = [rule for rule in rules if any(_covers(one, subject) for one in rule.subjects)]
        return Sheet(subject, found, self.counters) if found else None

    # ------------------------------------------------------------------------------------------ commands and replies

    def _command_rules(self, on: list[Rule]) -> Iterator[tuple[str, CommandRule]]:
        for name in (*(verb.name for verb in VERBS.values()), "UNKNOWN"):
            sheet = self._sheet(Subject(Group.COMMAND, name), on)
            first = self._base.commands.get(name) if not self._variants.several else self._variants.command(name)
            if sheet is not None:
                yield name, self._both(first, sheet)
            elif first is not None:
                yield name, first

    def _both(self, first: CommandRule | None, sheet: Sheet) -> CommandRule:
        def rule(command: Command, session: Session) -> Verdict:
            before = PASS if first is None else first(command, session)
            if before.action is not Action.PASS:
                return before
            view = View(session, command=command, transaction=session.transaction)
            return joined(before, sheet.verdict(view, self.trace))

        return rule

    def _reply_rules(self, on: list[Rule]) -> Iterator[tuple[str, ReplyRule]]:
        for name in (*(verb.name for verb in VERBS.values()), *_PSEUDO):
            sheet = self._sheet(Subject(Group.REPLY, name), on)
            first: ReplyRule | None = None
            if name in _HELLOS:
                first = self._variants.hello if self._variants.several else self._base.hello
                first = first if name != "HELO" else self._variants.helo if self._variants.several else self._base.helo
            if sheet is not None:
                yield name, self._both_replies(first, sheet)
            elif first is not None:
                yield name, first

    def _both_replies(self, first: ReplyRule | None, sheet: Sheet) -> ReplyRule:
        def rule(reply: Reply, exchange: Exchange, session: Session) -> Verdict:
            before = PASS if first is None else first(reply, exchange, session)
            now = before.value if before.action is Action.REWRITE else reply
            asked = exchange.asked if isinstance(exchange.asked, Command) else None
            view = View(session, command=asked, reply=now, exchange=exchange, transaction=exchange.transaction)
            return _after(before, sheet.verdict(view, self.trace))

        return rule

    def _judge_malformed(self, line: Malformed, session: Session) -> Verdict:
        if self._malformed is None:
            return PASS
        view = View(session, command=line, transaction=session.transaction)
        return _now(self._malformed.verdict(view, self.trace))

    # --------------------------------------------------------------------------------------------- the rest, in time

    def _judge_connect(self, session: Session) -> Verdict:
        return PASS if self._connect is None else self._connect.verdict(View(session), self.trace)

    def _judge_tls(self, side: Side, session: Session) -> Verdict:
        return PASS if self._tls is None else _now(self._tls.verdict(View(session, side=side), self.trace))

    def _judge_ended(self, exchange: Exchange, accepted: bool, session: Session) -> Verdict:
        if self._ended is None:
            return PASS
        view = View(
            session,
            reply=exchange.told,
            exchange=exchange,
            transaction=exchange.transaction,
            accepted=accepted,
        )
        return _now(self._ended.verdict(view, self.trace))

    def _judge_header(self, section: bytes, session: Session) -> Verdict:
        """At depth HEADER: rules on the header section that need nothing else."""
        if self._header is None:
            return PASS
        if astray(section):
            return self._header.failed(WHY, ANOMALY)
        header = Header.parse(section)
        view = View(session, transaction=mail_of(session), header=header)
        trial = self._header.trial(view, self.trace)
        verdict = trial.go()
        if verdict.action is Action.PASS and trial.edited:
            return verdict._replace(
                action=Action.REWRITE, value=(view.header or header).octets, rule=verdict.rule or trial.by
            )
        return verdict

    def _judge_content(self, file: Any, session: Session) -> Verdict:
        """At depth WHOLE: rules on the header section, on each attachment, on the content."""
        return Whole(self._header, self._attachment, self._content, file, session, self.trace).go()

    # ------------------------------------------------------------------------------------------ what sessions ask

    def depth(self, transaction: Transaction, session: Session) -> Depth:
        """As deep as the rules that could still hold."""
        if self.content is None:
            return Depth.STREAM
        view = View(session, transaction=transaction)
        for sheet in (self._attachment, self._content):
            if sheet is not None and sheet.conditions.possible(view):
                return Depth.WHOLE
        if self._header is None or not self._header.conditions.possible(view):
            return Depth.STREAM
        return Depth.WHOLE if self._header.asks or self._header.conditions.whole else Depth.HEADER

    def max_size(self, session: Session) -> int:
        """Octets of content in one mail; 0: no limit of ours."""
        return (self._variants.chosen(session) if self._variants.several else self._base).size

    def owner(self, name: bytes, session: Session | None = None) -> str:
        """The rule that decides about this keyword or verb; "" where the registry's default does."""
        several = session is not None and self._variants.several
        return (self._variants.chosen(session) if several and session is not None else self._base).owner(name)


class _Variants:
    """Rules about extensions, some of which hold only for some sessions, or only observe."""

    def __init__(self, rules: list[ExtensionRule], recipients: int) -> None:
        self._rules = rules
        self._recipients = recipients
        self._some = [rule for rule in rules if rule.when is not None]
        self._conditions = ConditionSet([rule.when for rule in self._some], EXTENSION)
        self._made: dict[Any, Treatments] = {}
        self.several = any(rule.when is not None or rule.mode is Mode.OBSERVE for rule in rules)

    def of(self, held: frozenset[str] | None, plus: ExtensionRule | None = None) -> Treatments:
        """The rules without a condition and those of these names; and one more, that only observes."""
        key = held, plus.name if plus else ""
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Treatments(
                [
                    rule
                    for rule in self._rules
                    if rule is plus
                    or (rule.mode is Mode.ENFORCE and (rule.when is None or (held is not None and rule.name in held)))
                ],
                recipients=self._recipients,
            )
        return found

    def held(self, session: Session) -> frozenset[str]:
        """The rules whose condition holds for this session."""
        if session.variant is None:
            self.look(session)
        held: frozenset[str] = session.variant
        return held

    def look(self, session: Session, exchange: Exchange | None = None) -> None:
        """Find out again which of them hold; by the hello that is being answered, if one is."""
        view = View(session, exchange=exchange)
        session.variant = frozenset(self._some[index].name for index in self._conditions.matching(view))

    def chosen(self, session: Session) -> Treatments:
        """What holds for this session."""
        return self.of(self.held(session))

    def _watching(self, session: Session) -> Iterator[tuple[ExtensionRule, Treatments]]:
        """Each rule that only observes, and what would hold with it."""
        held = self.held(session)
        for rule in self._rules:
            if rule.mode is Mode.OBSERVE and (rule.when is None or rule.name in held):
                yield rule, self.of(held, rule)

    def command(self, name: str) -> CommandRule | None:
        """What is said to a verb; None: nothing that any of the rules could change."""
        every = self.of(frozenset(rule.name for rule in self._some))
        watched = [self.of(None, rule) for rule in self._rules if rule.mode is Mode.OBSERVE]
        if not any(name in made.commands for made in (every, self.of(None), *watched)):
            return None

        def rule(command: Command, session: Session) -> Verdict:
            now = _asked(self.chosen(session), name, command, session)
            seen = [
                Observed(rule.name, "answer", str(would.value.full))
                for rule, with_it in self._watching(session)
                if (would := _asked(with_it, name, command, session)).action is not Action.PASS and would != now
            ]
            return now._replace(effects=Effects(observed=tuple(seen))) if seen else now

        return rule

    def hello(self, reply: Reply, exchange: Exchange, session: Session) -> Verdict:
        """A reply to EHLO or LHLO."""
        if reply.digit == 2:  # else the hello before it still counts
            self.look(session, exchange)
        now = self.chosen(session).hello(reply, exchange, session)
        told = now.value.raw if now.action is Action.REWRITE else reply.raw
        seen = []
        for rule, with_it in self._watching(session):
            would = with_it.hello(reply, exchange, session)
            if (would.value.raw if would.action is Action.REWRITE else reply.raw) != told:
                seen.append(Observed(rule.name, rule.treatment.value))
        return now._replace(effects=Effects(observed=tuple(seen))) if seen else now

    def helo(self, reply: Reply, exchange: Exchange, session: Session) -> Verdict:
        """A reply to HELO."""
        if reply.digit == 2:
            self.look(session, exchange)
        return self.chosen(session).helo(reply, exchange, session)


def _asked(made: Treatments, name: str, command: Command, session: Session) -> Verdict:
    rule = made.commands.get(name)
    return PASS if rule is None else rule(command, session)


def _covers(of_rule: Subject, subject: Subject) -> bool:
    """A rule on `of_rule` is tried on `subject`."""
    if of_rule.group is not subject.group:
        return False
    if of_rule.verb == ANY:
        return subject.verb != _MALFORMED
    return subject.verb in ALIASES.get(of_rule.verb, (of_rule.verb,))


def _after(before: Verdict, then: Verdict) -> Verdict:
    """A verdict behind one that was given at once, and may have to wait for an answer first."""
    if then.action is not Action.ASK or before == PASS:
        return joined(before, then)
    question: Question = then.value
    return then._replace(value=question._replace(resume=lambda outcome: _after(before, question.resume(outcome))))


def _now(verdict: Verdict) -> Verdict:
    """A verdict where nothing can wait: no act that needs it is allowed there."""
    if verdict.action is Action.ASK:
        raise AssertionError("nothing can wait here")
    return verdict


@lru_cache(maxsize=1)
def default_judge() -> Judge:
    """The judge of the registry's defaults alone."""
    return Judge()


def extension_rule(name: str, treatment: Treatment, limit: int = 0, reply: str = "") -> ExtensionRule:
    """A rule made in code (tests, the demo).

    Raises:
        KeyError: no such name in the registry.
    """
    found = feature(name)
    if found is None:
        raise KeyError(name)
    return ExtensionRule(
        f"{treatment.value}-{name}".lower(), "", found, treatment, limit, own(reply) if reply else None
    )

"""Rules about extensions, compiled: what they and the registry's defaults come to, for every name.

Every name of the registry has a treatment: that of the last rule about it, else the registry's default. Compiled, that
is one function for each verb that is not simply allowed and one for the replies to EHLO and LHLO; a verb nothing is
decided about has no function and costs no call. A name that is not in the registry is denied: an extension nobody has
described may change framing, and what can't be framed can't be inspected.

Denying an extension is coherent by construction. Its keyword is not told, in whatever spelling; its verbs are answered
here; and its parameters are refused because the session lets a client use no parameter of an extension it was not told.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from smtpproxy.policy.rules import ExtensionRule, Treatment
from smtpproxy.session import securing
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.securing import Offering
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import PASS, Action, CommandRule, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.capabilities import Capabilities, Offer
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.rows import Argument, Default, FramingClass, Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import OwnReply, Reply, multiline, own

TREATMENT_OF: Mapping[Default, Treatment] = MappingProxyType(
    {
        Default.ALLOW: Treatment.ALLOW,
        Default.DENY: Treatment.DENY,
        Default.TLS: Treatment.TLS,
        Default.LIMIT: Treatment.LIMIT,
        Default.TERMINATE: Treatment.ALLOW,  # to whom, and who ends it, is the posture's (session/securing.py)
        Default.VERIFIED: Treatment.ALLOW,  # where both links are, and no rule can do without
    }
)
_NOT_IMPLEMENTED = "502 5.5.1 Command not implemented"
_CACHED = 256  # EHLO replies remembered as told; servers give the same one again and again


def refusal_of(verb: Verb, treatment: Treatment) -> OwnReply:
    """What a refused verb is answered with, unless a rule says otherwise.

    A row's refusal fits its default: 538 asks for TLS, which would not help where the verb is denied altogether.
    """
    fits = treatment is Treatment.TLS or verb.default is not Default.TLS
    return own(verb.refusal if fits else _NOT_IMPLEMENTED)


class Links(NamedTuple):
    """What a list depends on beside the server's."""

    encrypted: bool
    verified: bool
    starttls: Offering


class Treatments:
    """What is done with every extension and verb: the defaults, and the rules given, the later one winning.

    `commands` has a function for each verb that is not simply allowed; `hello` and `helo` judge the replies.
    """

    def __init__(self, rules: Iterable[ExtensionRule] = (), *, recipients: int = 0) -> None:
        self.rules = tuple(rules)
        self._verbs: dict[bytes, tuple[Treatment, ExtensionRule | None]] = {}
        self._keywords: dict[bytes, tuple[Treatment, ExtensionRule | None]] = {}
        for name, verb in VERBS.items():
            self._verbs[name] = (TREATMENT_OF[verb.default], None)
        for name, extension in EXTENSIONS.items():
            self._keywords[name] = (TREATMENT_OF[extension.default], None)
        self._size = 0
        self._recipients = self._most_recipients = recipients
        for rule in self.rules:
            self._apply(rule)
        self._told: dict[tuple[bytes, Links, int], tuple[Reply, tuple[str, ...], str]] = {}
        self.commands: Mapping[str, CommandRule] = MappingProxyType(self._compile())

    def _apply(self, rule: ExtensionRule) -> None:
        for verb in rule.feature.verbs:
            self._verbs[verb] = (rule.treatment, rule)
        for keyword in rule.feature.keywords:
            self._keywords[keyword] = (rule.treatment, rule)
        for verb in rule.feature.verbs:
            owner = VERBS[verb].extension.encode()
            if not owner or owner in rule.feature.keywords:
                continue
            before = self._keywords[owner][1]
            if rule.treatment is Treatment.DENY:  # nobody is told of a keyword whose verb is refused
                self._keywords[owner] = (rule.treatment, rule)
            elif before is not None and owner not in before.feature.keywords:  # and that rule does not hold any more
                self._keywords[owner] = (TREATMENT_OF[EXTENSIONS[owner].default], None)
        if rule.treatment is Treatment.LIMIT and b"SIZE" in rule.feature.keywords:
            self._size = rule.limit
        elif b"SIZE" in rule.feature.keywords:
            self._size = 0
        if b"LIMITS" in rule.feature.keywords:
            self._recipients = rule.limit if rule.treatment is Treatment.LIMIT else self._most_recipients

    # ------------------------------------------------------------------------------------------------- commands

    def _compile(self) -> dict[str, CommandRule]:
        compiled: dict[str, CommandRule] = {}
        for name, (treatment, rule) in self._verbs.items():
            if treatment in (Treatment.DENY, Treatment.TLS):
                verb = VERBS[name]
                reply = refusal_of(verb, treatment)
                if rule is not None and rule.reply is not None:
                    reply = rule.reply
                compiled[verb.name] = self._refusal(reply, rule.name if rule else "default", treatment)
        if self._size:
            for name, verb in VERBS.items():
                if verb.argument is Argument.MAIL and self._verbs[name][0] is not Treatment.DENY:
                    compiled[verb.name] = self._sized(compiled.get(verb.name))
        return compiled

    @staticmethod
    def _refusal(reply: OwnReply, rule: str, treatment: Treatment) -> CommandRule:
        verdict = Verdict(Action.ANSWER, reply, rule)
        if treatment is Treatment.DENY:
            return lambda command, session: verdict
        return lambda command, session: PASS if securing.encrypted(session) else verdict

    def _sized(self, before: CommandRule | None) -> CommandRule:
        """SIZE= beyond the limit is refused at MAIL (RFC 1870 §6.1), however many digits it has."""
        refused = Verdict(Action.ANSWER, say.TOO_BIG, self.owner(b"SIZE"))

        def declared(command: Command, session: Session) -> Verdict:
            verdict = before(command, session) if before is not None else PASS
            if verdict is not PASS:
                return verdict
            for keyword, value in command.argument.parameters:
                if keyword == b"SIZE" and value is not None and int(value) > self._size:
                    return refused
            return PASS

        return declared

    # -------------------------------------------------------------------------------------------------- replies

    def _allowed(self, keyword: bytes, links: "Links") -> bool:
        treatment, _ = self._keywords.get(keyword, (Treatment.DENY, None))
        row = EXTENSIONS.get(keyword)
        if row is not None and row.framing is FramingClass.TLS and links.starttls is Offering.NO:
            return False  # also: not offered twice (RFC 3207 §4.2)
        if row is not None and row.default is Default.VERIFIED and not links.verified:
            return False
        if treatment is Treatment.TLS:
            return links.encrypted
        if treatment is Treatment.DENY:
            return False
        return row is None or all(self._allowed(need.encode(), links) for need in row.needs)

    def hello(self, got: Reply, exchange: Exchange, session: Session) -> Verdict:
        """A reply to EHLO or LHLO: what is allowed of its list."""
        if got.digit != 2:
            return PASS
        links = Links(securing.encrypted(session), securing.verified(session), securing.offer(session))
        key = (got.raw, links, session.limits.ehlo_lines)
        found = self._told.get(key)
        if found is None:
            if len(self._told) >= _CACHED:
                self._told.clear()
            found = self._told[key] = self._filtered(got, links, session.limits.ehlo_lines)
        told, anomalies, rule = found
        if told.raw == got.raw:
            return PASS
        return Verdict(Action.REWRITE, told, rule, anomalies)

    def _filtered(self, got: Reply, links: "Links", most: int) -> tuple[Reply, tuple[str, ...], str]:
        """The list with what is allowed of it: keywords taken out, values limited, doubles dropped."""
        offered = Capabilities.from_reply(got)
        seen: set[tuple[bytes, bool]] = set()
        lines: set[bytes] = set()
        anomalies: dict[str, None] = {}
        rules: dict[str, None] = {}
        if offered.malformed:
            anomalies["ehlo-line-malformed"] = None
        allowed = {o.keyword for o in offered.offers[:most] if self._allowed(o.keyword, links)}

        def change(offer: Offer) -> bytes | None:
            keyword = offer.keyword
            row = EXTENSIONS.get(keyword)
            missing = [need.encode() for need in (row.needs if row is not None else ()) if need.encode() not in allowed]
            if keyword not in allowed or missing:
                anomalies["keyword-stripped"] = None
                itself = self._keywords.get(keyword, (Treatment.DENY, None))[0] in (Treatment.ALLOW, Treatment.LIMIT)
                rules[self.owner(missing[0] if missing and itself else keyword) or "default"] = None
                return None
            if (keyword, offer.twin) in seen:
                anomalies["ehlo-keyword-repeated"] = None
                return None
            seen.add((keyword, offer.twin))
            line = self._limited(offer, offered)
            if line in lines:
                anomalies["ehlo-keyword-repeated"] = None
                return None
            lines.add(line)
            if line != offer.line:
                rules[self.owner(keyword) or "default"] = None
            return line

        told = offered.edited(change)
        if links.starttls is Offering.ALWAYS and b"STARTTLS" not in told.keywords and self._allowed(b"STARTTLS", links):
            told = told.with_line(b"STARTTLS")
            rules["posture"] = None
        same = not offered.malformed and len(told.offers) == len(offered.offers)
        reply = told.to_reply()
        if same and reply.raw == got.raw:
            return got, (), ""
        if got.code != 250:
            reply = multiline(got.code, reply.lines)
        return reply, tuple(anomalies), " ".join(rules)

    def _limited(self, offer: Offer, offered: Capabilities) -> bytes:
        """SIZE and LIMITS show the smaller of the server's number and ours."""
        if offer.keyword == b"SIZE" and self._size:
            numbers = [int(p) for p in offered.parameters(b"SIZE") if p.isdigit() and len(p) <= 20]
            smallest = min([n for n in numbers if n > 0], default=0)
            return b"SIZE %d" % (min(smallest, self._size) if smallest else self._size)
        if offer.keyword == b"LIMITS" and self._recipients:
            return b" ".join([b"LIMITS", *(self._limit(p) for p in offer.parameters)])
        return offer.line

    def _limit(self, parameter: bytes) -> bytes:
        name, _, value = parameter.partition(b"=")
        if name.upper() == b"RCPTMAX" and value.isdigit():
            theirs = int(value) if len(value) <= 20 else 0
            return b"RCPTMAX=%d" % (min(theirs, self._recipients) if theirs else self._recipients)
        return parameter

    @staticmethod
    def helo(got: Reply, exchange: Exchange, session: Session) -> Verdict:
        """A reply to HELO has one line (RFC 5321 §4.1.1.1); more would be a list nobody may use."""
        lines = got.lines
        if len(lines) < 2:
            return PASS
        return Verdict(Action.REWRITE, multiline(got.code, lines[:1]), "default", ("helo-multiline",))

    # ------------------------------------------------------------------------------------------ what sessions ask

    @property
    def size(self) -> int:
        """Octets of content in one mail; 0: no limit of ours."""
        return self._size

    def owner(self, name: bytes) -> str:
        """The rule that decides about this keyword or verb; "" where the registry's default does."""
        for table in (self._keywords, self._verbs):
            rule: Any = table.get(name, (None, None))[1]
            if rule is not None:
                return str(rule.name)
        return ""

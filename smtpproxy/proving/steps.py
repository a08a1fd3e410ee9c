"""What comes of a recorded exchange under other rules, as values: a step, and in what it differs.

The judge is asked about the exchange, not about the world: what a client, or a server, would have said to an answer
that it never got is not known. So a step is compared with what was recorded only as far as it rests on what both sides
said; what only follows from an earlier difference is no difference of its own, and is counted apart.
"""

from enum import Enum
from typing import Any, NamedTuple

from smtpproxy.proving.recorded import Exchange, Note, code_of


class Kind(Enum):
    """In what an exchange differs."""

    REFUSED = "refused"  # was let through, would be refused here
    PASSED = "passed"  # was refused or swallowed by a rule, would be let through
    TAKEN = "taken"  # 250 would be told and the server get none of it: discarded, or kept in the quarantine
    CHANGED = "changed"  # another reply, another command to the server, another refusal
    BESIDE = "beside"  # a rule would act beside what is told: a tag, a wait, a longer record
    OBSERVED = "observed"  # a rule that only observes would say so

    __hash__ = object.__hash__


class Difference(NamedTuple):
    """One difference, and the rule it is owed to; "" where no rule made it."""

    kind: Kind
    rule: str
    what: str = ""  # the outcome now


class Step(NamedTuple):
    """One recorded exchange, and what the rules make of it.

    Attributes:
        was: as it was recorded; a note for what rules say of a link that was encrypted.
        now: its keys as the audit would have them now; None where it was not put to the rules.
        follows: the rule because of which it was not.
        unknown: there is no record of what the server would have said; it was taken to agree.
    """

    was: Exchange | Note
    now: dict[str, Any] | None
    differences: tuple[Difference, ...] = ()
    follows: str = ""
    unknown: bool = False


_TAKEN = frozenset({"discard", "quarantine"})


def told(fields: dict[str, Any]) -> str:
    """What the client is told by these keys of an exchange; "" for nothing."""
    found = fields["told"] if "told" in fields else fields.get("got")
    return found or ""


def deciders(rule: str) -> tuple[str, ...]:
    """The rules a record names as deciding, without those that are none."""
    return tuple(name for name in rule.split() if name not in ("default", "posture"))


def outcome(fields: dict[str, Any]) -> str:
    """The outcome in words: what is done, what is sent in its place, what is told."""
    words = [] if fields["action"] == "pass" else [fields["action"]]
    if fields.get("sent") and fields["sent"] != fields["asked"] and fields["action"] == "rewrite":
        words.append(f"to {fields['sent']}")
    return " ".join([*words, told(fields)]).strip() or "no answer"


def recorded_outcome(was: Exchange) -> str:
    """The same of what was recorded."""
    return outcome({"action": was.action, "sent": was.sent, "asked": was.asked, "told": was.told})


def compare(was: Exchange, now: dict[str, Any]) -> tuple[Difference, ...]:
    """In what an exchange as the rules have it now differs from what was recorded.

    Texts of replies are only compared where a rule had a say in one of them: what is answered by the session itself
    may be worded by the server the other time.
    """
    found = [
        Difference(Kind.OBSERVED, one["rule"], f"{one['action']} {one.get('told', '')}".strip())
        for one in now.get("observed", ())
        if not any(before.rule == one["rule"] and before.action == one["action"] for before in was.observed)
    ]
    rules_now, rules_then = deciders(now.get("rule", "")), was.deciders
    kind = _kind(was, now, bool(rules_now or rules_then))
    if kind is not None:
        found += [Difference(kind, rule, outcome(now)) for rule in _blamed(kind, rules_now, rules_then)]
    beside = [name for name in now.get("rules", ()) if name not in was.rules and name not in (*rules_now, *rules_then)]
    found += [Difference(Kind.BESIDE, name, outcome(now)) for name in dict.fromkeys(beside)]
    return tuple(found)


def _kind(was: Exchange, now: dict[str, Any], by_rule: bool) -> Kind | None:
    answer, action = told(now), now["action"]
    refused = code_of(answer) >= 400
    if refused is not was.refused and (answer or was.answer):
        return Kind.REFUSED if refused else Kind.PASSED
    if not refused and (action in _TAKEN) is not (was.action in _TAKEN):
        return Kind.TAKEN if action in _TAKEN else Kind.PASSED
    if not by_rule:
        return None
    rewritten = "rewrite" in (action, was.action) and now.get("sent", now["asked"]) != was.sent
    edited = was.verb in ("END", "BDAT") and deciders(now.get("rule", "")) != was.deciders
    return Kind.CHANGED if answer != was.answer or rewritten or edited else None


def _blamed(kind: Kind, now: tuple[str, ...], then: tuple[str, ...]) -> tuple[str, ...]:
    """Whose difference it is: those who decide now and did not, else those who did and do not."""
    if kind is Kind.PASSED:
        return tuple(rule for rule in then if rule not in now) or then or now or ("",)
    new = tuple(rule for rule in now if rule not in then)
    return new or tuple(rule for rule in then if rule not in now) or now or then or ("",)

"""What is valid in rules on subjects and hardly meant: warnings, which keep nothing from starting.

Looked for once all rules are read and none of them has an error, and only in the rules of the site and of the sets it
chose. What is said here is certain: a rule that could be meant is not warned about, and what a function of Python's
does nobody knows. Rules on extensions have coherence.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from smtpproxy.policy.actions import allowed
from smtpproxy.policy.entries import SHIPPED, Entry
from smtpproxy.policy.expr import Condition
from smtpproxy.policy.fields import FIELDS, Known, fields_of
from smtpproxy.policy.lists import List
from smtpproxy.policy.rules import (
    ACT_OF,
    Answer,
    Deed,
    ExtensionRule,
    Hangup,
    Limit,
    Mode,
    Pass,
    Quarantine,
    Redirect,
    Rule,
    Tag,
    Treatment,
)
from smtpproxy.policy.subjects import ALIASES, ANY, DECIDING, Act, Group, Subject
from smtpproxy.policy.tables import either
from smtpproxy.policy.tokens import Kind, tokens
from smtpproxy.policy.toml import Positions, Problem, nearest
from smtpproxy.policy.treatments import TREATMENT_OF
from smtpproxy.smtp.registry.verbs import VERBS

_LOCKED = re.compile(r"""\blocked\(\s*(["'])(?P<name>[^"']*)\1""")
_LABEL = re.compile(r"""(["'])(?P<label>[^"']*)\1\s+in\s+session\.tags\b""")
_LATE = (Group.ATTACHMENT, Group.CONTENT)  # asked when all of a mail is there
_ENVELOPE = frozenset(  # fields about who sends what to whom, which are known before content comes
    {Known.ALWAYS, Known.TLS, Known.HELLO, Known.MAIL, Known.RECIPIENTS}
)
_EARLIER = (  # where a rule that asks nothing about content could stand, the earliest first
    Subject(Group.COMMAND, "MAIL"),
    Subject(Group.COMMAND, "DATA"),
    Subject(Group.HEADER),
)
_MOVABLE = frozenset({Act.ANSWER, Act.HANGUP, Act.TAG, Act.RECORD, Act.TARPIT, Act.DISCARD})


class Found(NamedTuple):
    """What was found: the warnings, and of each rule that never gets a word in, the one that always decides."""

    problems: tuple[Problem, ...]
    shadowed: Mapping[str, str]


class _Placed(NamedTuple):
    """A rule on subjects in force, and its entry."""

    entry: Entry
    rule: Rule


def look(
    held: Sequence[Entry], lists: Mapping[str, List], places: Mapping[str, Positions], functions: bool = False
) -> Found:
    """What is valid and hardly meant.

    Args:
        held: the rules in force; those on subjects in the order they are tried.
        lists: the lists in force.
        places: the files of the site that have lists, by name.
        functions: a function of Python's may set labels that nobody sees here.
    """
    placed = [_Placed(entry, entry.rule) for entry in held if isinstance(entry.rule, Rule)]
    extensions = [entry.rule for entry in held if isinstance(entry.rule, ExtensionRule)]
    first = _First()
    problems: list[Problem] = []
    shadowed = _overlaid(extensions)
    dead = _denied(extensions)
    labels = {label for one in placed for deed in one.rule.then if isinstance(deed, Tag) for label in deed.labels}
    limits = {one.rule.name: deed for one in placed for deed in one.rule.then if isinstance(deed, Limit)}
    twins = _enforced(placed)
    for one in placed:
        said = [*_never(one, dead), *_behind(one, first, shadowed), *_observed(one, twins), *_costly(one, first)]
        said += _unset(one, None if functions else labels)
        said += _unlocked(one.entry, one.rule.when, limits)
        first.put(one)
        problems += said if one.entry.origin != SHIPPED else ()
    for entry in held:
        if isinstance(entry.rule, ExtensionRule) and entry.origin != SHIPPED:
            problems += [*_unlocked(entry, entry.rule.when, limits), *_constant(entry, entry.rule.when)]
    return Found((*problems, *_unused(held, lists, places)), shadowed)


def _always(condition: Condition | None) -> bool:
    return condition is None or condition.constant is True


def _decision(rule: Rule) -> Deed | None:
    """What the rule always decides where its condition holds."""
    last = rule.then[-1] if rule.then else None
    return last if last is not None and ACT_OF[type(last)] in DECIDING and rule.mode is Mode.ENFORCE else None


# --------------------------------------------------------------------------------------------------- never asked


def _constant(entry: Entry, condition: Condition | None) -> Iterator[Problem]:
    if condition is not None and condition.constant is False:
        yield entry.warning("when", "never holds: it is always false", 'mode = "off"')


def _never(one: _Placed, dead: Mapping[str, str]) -> Iterator[Problem]:
    """Subjects whose moment never comes."""
    yield from _constant(one.entry, one.rule.when)
    by: dict[str, str] = {}
    for subject in one.rule.subjects:
        verbs = [verb for verb in subject.verbs if verb.encode() in VERBS]
        if subject.group not in (Group.COMMAND, Group.REPLY) or not verbs or any(verb not in dead for verb in verbs):
            return
        by[verbs[0]] = dead[verbs[0]]
    said = either([f"{verb} is denied by {owner}" for verb, owner in by.items()], "and")
    yield one.entry.warning(
        "on", f"never asked: {said}", f'a rule with extension = "{next(iter(by))}" and then = "allow"'
    )


def _denied(extensions: Iterable[ExtensionRule]) -> dict[str, str]:
    """The verbs that nobody may use, each with what denies it: the last rule about it decides, and one with a condition
    leaves it open."""
    found: dict[str, tuple[Treatment, str]] = {
        name.decode(): (TREATMENT_OF[verb.default], "default") for name, verb in VERBS.items()
    }
    for rule in extensions:
        if rule.mode is Mode.ENFORCE:
            for name in rule.feature.verbs:
                if rule.when is None or rule.treatment is not Treatment.DENY:
                    found[name.decode()] = (rule.treatment, f"rule {rule.name}")
    return {name: owner for name, (treatment, owner) in found.items() if treatment is Treatment.DENY}


def _overlaid(extensions: Sequence[ExtensionRule]) -> dict[str, str]:
    """The rules on extensions that a later one takes everything from: it is the last that holds."""
    found: dict[str, str] = {}
    later: dict[tuple[str, bytes], str] = {}
    for rule in reversed(extensions):
        about = [("keyword", name) for name in sorted(rule.feature.keywords)]
        about += [("verb", name) for name in sorted(rule.feature.verbs)]
        if all(place in later for place in about):
            found[rule.name] = later[about[0]]
        if rule.when is None and rule.mode is Mode.ENFORCE:
            later |= {place: rule.name for place in about if place not in later}
    return found


# ----------------------------------------------------------------------------------------------- behind another one


class _First:
    """Of each subject, the first rule that always decides, and the first of each condition that decides."""

    def __init__(self) -> None:
        self._always: dict[Subject, Rule] = {}
        self._same: dict[tuple[Subject, str], Rule] = {}
        self.passing = False  # one on content lets mail through: those behind it are not about all mails

    def put(self, one: _Placed) -> None:
        """A rule that is tried behind all that were put before."""
        rule = one.rule
        decision = _decision(rule)
        if rule.python is not None or isinstance(decision, Pass):
            self.passing |= any(subject.group is Group.CONTENT for subject in rule.subjects)
        if decision is None:
            return
        for subject in rule.subjects:
            if _always(rule.when):
                self._always.setdefault(subject, rule)
            elif rule.when is not None and not rule.when.counts:
                self._same.setdefault((subject, rule.when.program), rule)

    def always(self, subject: Subject) -> Rule | None:
        """The rule that decides about everything there is of this subject."""
        return next((self._always[wide] for wide in _wider(subject) if wide in self._always), None)

    def same(self, subject: Subject, condition: Condition | None) -> Rule | None:
        """The rule of this very condition."""
        if condition is None or condition.counts:
            return None
        wide = ((wide, condition.program) for wide in _wider(subject))
        return next((self._same[key] for key in wide if key in self._same), None)

    def answered(self, subject: Subject) -> Rule | None:
        """The rule by which the command of a reply is always answered here."""
        if subject.group is not Group.REPLY or subject.verb == ANY:
            return None
        rule = self.always(Subject(Group.COMMAND, subject.verb))
        decision = None if rule is None else _decision(rule)
        return rule if decision is not None and ACT_OF[type(decision)] is not Act.PASS else None


def _wider(subject: Subject) -> Iterator[Subject]:
    """The subjects on which a rule is asked about all that this one is about."""
    yield subject
    for head, verbs in ALIASES.items():
        if subject.verb in verbs and subject.verb != head:
            yield Subject(subject.group, head)
    if subject.verb not in ("", ANY, "MALFORMED"):
        yield Subject(subject.group, ANY)


def _behind(one: _Placed, first: _First, shadowed: dict[str, str]) -> Iterator[Problem]:
    """A rule that another one stands before on each of its subjects."""
    rule = one.rule
    before: list[tuple[Rule, str]] = []
    for subject in rule.subjects:
        if (other := first.always(subject)) is not None:
            before.append((other, "always decides first"))
        elif (other := first.same(subject, rule.when)) is not None:
            before.append((other, "has the same condition and decides first"))
        elif (other := first.answered(subject)) is not None:
            before.append((other, f"always answers {subject.verb} here"))
        else:
            return
    other, why = before[0]
    shadowed[rule.name] = other.name
    at = f"never asked: rule {other.name} ({other.source}) {why}"
    mine, its = _decision(rule), _decision(other)
    same = other.subjects == rule.subjects and (first.same(rule.subjects[0], rule.when) is other or rule.when is None)
    if same and mine is not None and its is not None and mine != its:
        yield one.entry.warning(
            "then",
            f"contradicts rule {other.name} ({other.source}): that one is tried first and says {_said(its)}",
            "one of them",
        )
    else:
        yield one.entry.warning("on", at, "it before that one, or not at all")


def _said(deed: Deed) -> str:
    """A decision, for people."""
    answer = deed.answer if isinstance(deed, (Hangup, Quarantine)) else deed if isinstance(deed, Answer) else None
    if isinstance(deed, Redirect):
        return f"redirect to {deed.host}:{deed.port}"
    if answer is None:
        return ACT_OF[type(deed)].value
    text = answer.reply.full if answer.reply is not None else answer.text.text if answer.text is not None else ""
    return f'{ACT_OF[type(deed)].value} "{text}"'


def _key(rule: Rule) -> tuple[object, ...] | None:
    """What makes two rules the same but for their mode."""
    if rule.python is not None or (rule.when is not None and rule.when.counts):
        return None
    return frozenset(rule.subjects), rule.when.program if rule.when is not None else "", rule.then


def _enforced(placed: Iterable[_Placed]) -> dict[tuple[object, ...], Rule]:
    keyed = ((_key(one.rule), one.rule) for one in placed if one.rule.mode is Mode.ENFORCE)
    return {key: rule for key, rule in keyed if key is not None}


def _observed(one: _Placed, twins: Mapping[tuple[object, ...], Rule]) -> Iterator[Problem]:
    """What is observed and enforced."""
    key = _key(one.rule) if one.rule.mode is Mode.OBSERVE else None
    twin = twins.get(key) if key is not None else None
    if twin is not None:
        yield one.entry.warning(
            "mode", f"observes what rule {twin.name} ({twin.source}) enforces already", "one of them"
        )


# --------------------------------------------------------------------------------------------------------------- cost


def _costly(one: _Placed, first: "_First") -> Iterator[Problem]:
    """All of a mail is held back and looked into, and the rule need not wait for it, or is not about all mails."""
    rule, when = one.rule, one.rule.when
    late = [subject for subject in rule.subjects if subject.group in _LATE]
    if not late or when is None or when.constant is not None:
        return
    held = f'on = "{late[0]}" holds back all of each mail'
    outside = sorted(name for name in when.fields if FIELDS[name].known in _ENVELOPE)
    inside = [name for name in when.fields if FIELDS[name].known not in _ENVELOPE]
    sooner = None if first.passing else _sooner(rule)
    if sooner is not None:
        fields = either(sorted(when.fields) or ["its condition"], "and")
        yield one.entry.warning("on", f"{held}, and {fields} can be asked sooner", f'on = "{sooner}"')
    elif inside and outside and not _guarded(when):
        fields = either(outside, "and")
        yield one.entry.warning(
            "when",
            f"{held}, also of those that {fields} would leave out",
            f"what is about {fields} by itself: (…) && (…), or two rules",
        )


def _sooner(rule: Rule) -> Subject | None:
    """The subject where the rule could be asked sooner, with the same fields and acts. (One on attachments says with
    its subject that there are some.)"""
    acts = [ACT_OF[type(deed)] for deed in rule.then]
    if rule.when is None or rule.when.counts or not acts or not set(acts) <= _MOVABLE:
        return None
    if any(subject.group is not Group.CONTENT for subject in rule.subjects):
        return None
    for subject in _EARLIER:
        if rule.when.fields <= fields_of(subject).keys() and all(allowed(act, subject) for act in acts):
            return subject
    return None


def _guarded(condition: Condition) -> bool:
    """A part of the condition that all of it depends on (`part && …`) is about the envelope alone: where that does not
    hold, content is not looked into."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens(condition.source):
        if token.text in ("(", "[", "{"):
            depth += 1
        elif token.text in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and token.text in ("||", "?"):
            return False
        if depth == 0 and token.text == "&&":
            parts.append([])
        else:
            parts[-1].append(token.text if token.kind in (Kind.NAME, Kind.MARK) else " ")
    texts = ["".join(part) for part in parts]
    return any(_fields_in(text) and all(FIELDS[name].known in _ENVELOPE for name in _fields_in(text)) for text in texts)


def _fields_in(text: str) -> list[str]:
    """The fields named in a part of a condition."""
    words = re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)*", text)
    found = []
    for word in words:
        while word and word not in FIELDS:
            word = word.rpartition(".")[0]
        found += [word] if word else []
    return found


# ----------------------------------------------------------------------------------------- names that lead nowhere


def _unset(one: _Placed, labels: set[str] | None) -> Iterator[Problem]:
    """A label that is asked for and that no rule in force gives."""
    condition = one.rule.when
    if labels is None or condition is None or "session.tags" not in condition.fields:
        return
    for found in _LABEL.finditer(condition.source):
        label = found["label"]
        if label not in labels:
            said = f'no rule in force gives the label "{label}"'
            yield one.entry.warning("when", said, "", nearest(label, labels))


def _unlocked(entry: Entry, condition: Condition | None, limits: Mapping[str, Limit]) -> Iterator[Problem]:
    """A limit that is asked for and never locks anybody."""
    if condition is None:
        return
    for found in _LOCKED.finditer(condition.source):
        name = found["name"]
        if name not in limits:
            yield entry.warning("when", f"rule {name} is not in force: it locks nobody")
        elif not limits[name].lock:
            yield entry.warning("when", f"the limit of rule {name} has no lock: it locks nobody", 'e.g. lock = "1h"')


def _unused(held: Iterable[Entry], lists: Mapping[str, List], places: Mapping[str, Positions]) -> Iterator[Problem]:
    """Lists of the site that no condition names."""
    used: set[str] = set()
    for entry in held:
        condition = None if entry.rule is None else entry.rule.when
        used |= condition.lists if condition is not None else frozenset()
    for name, where in places.items():
        if name in lists and name not in used and lists[name].source.file == where.file:
            yield where.problem(
                ("lists", name), "no rule in force looks anything up in it", where=f"list {name}", severity="warning"
            )

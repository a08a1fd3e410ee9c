"""`then` and `otherwise` of rules on subjects: words and tables in, acts out.

Which act makes sense on which subject is subjects.TABLE's to say, and nothing is read here that it does not have. An
act on a subject where it makes no sense is told with those where it does.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smtpproxy.policy.answers import Use, read_answer
from smtpproxy.policy.rates import FIELD_OF
from smtpproxy.policy.rewrites import read_header, read_rewrite
from smtpproxy.policy.rules import (
    ACT_OF,
    Answer,
    Deed,
    Discard,
    Hangup,
    Limit,
    Pass,
    Quarantine,
    Record,
    Redirect,
    Tag,
    Tarpit,
)
from smtpproxy.policy.subjects import DECIDING, TABLE, Act, Group, Subject
from smtpproxy.policy.tables import Table, either, near
from smtpproxy.policy.templates import vocabulary
from smtpproxy.policy.toml import KeyPath, nearest_sizes, parse_size, shown
from smtpproxy.session.state import MAILS
from smtpproxy.smtp.replies import DISCARDED, TOO_BIG, TOO_MANY_RECIPIENTS, own

Read = Callable[[Table, KeyPath, object, Sequence[Subject]], Deed | None]

A_THEN = '"pass", "discard", "hangup", or a table such as { answer = "550 5.7.1 Not here" }'
AN_OTHERWISE = '"pass", "discard", "hangup" or { answer = "451 4.7.1 Try again later" }'
LABEL = re.compile(r"[a-z0-9][a-z0-9-]*")
LONGEST_TARPIT = 300.0  # RFC 5321 §4.5.3.2: a client waits five minutes for a reply, not longer
_WORDS: Mapping[str, Deed] = {"pass": Pass(), "discard": Discard(), "hangup": Hangup()}
_MEANT = {  # words that are none, and how what was probably meant is written
    "answer": '{ answer = "550 5.7.1 Not here" }',
    "deny": '{ answer = "550 5.7.1 Not here" }',
    "reject": '{ answer = "550 5.7.1 Not here" }',
    "allow": '"pass"',
    "accept": '"pass"',
    "drop": '"hangup"',
    "quarantine": '{ quarantine = "accept" } or { quarantine = "refuse" }',
    "record": '{ record = "full" }',
    "tag": '{ tag = "a-label" }',
}
_DISCARDED = frozenset((*MAILS, "RCPT", "DATA", "BDAT"))  # commands that a mail can be swallowed from
_PLACES = {Group.COMMAND: "a command", Group.REPLY: "a reply"}

# What a limit can count, and on which subjects.
_COUNTED: Mapping[str, str] = {
    "connections": "connect",
    "commands": "a command",
    "messages": "MAIL, DATA, content or transaction",
    "recipients": "RCPT",
    "replies": "a reply",
    "octets": "content",
}
_LIMIT_KEYS = ("per", "within", "lock", "answer")
_TOO_MANY = {
    "connections": own("421 4.7.0 Too many connections, try again later"),
    "recipients": TOO_MANY_RECIPIENTS,
}
_TOO_MUCH = own("451 4.7.1 Too much for now, try again later")
_QUARANTINED = {"accept": DISCARDED, "refuse": own("550 5.7.1 Message refused")}

_NAME_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"{_NAME_PART}(?:\.{_NAME_PART})*\.?")
_SERVER = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


def read_then(table: Table, value: object, subjects: Sequence[Subject]) -> tuple[Deed, ...] | None:
    """The acts of `then`, in their order; None if anything about them is wrong."""
    before = len(table.problems)
    path: KeyPath = ("then",)
    if not isinstance(value, list):
        alone = _deed(table, path, value, subjects)
        return None if alone is None else (alone,)
    if not value:
        table.bad(path, "is empty", expected=A_THEN)
    deeds: list[Deed] = []
    seen: set[type[Deed]] = set()
    for number, item in enumerate(value):
        here = (*path, number)
        deed = _deed(table, here, item, subjects)
        if deed is None:
            continue
        act = ACT_OF[type(deed)]
        if act in DECIDING and number < len(value) - 1:
            table.bad(here, f"{act.value} decides, and nothing behind it would be done", expected="it to stand last")
        if type(deed) in seen and isinstance(deed, Limit):
            table.bad(here, "a rule has one limit, and its name is the limit's", expected="a rule for each")
        seen.add(type(deed))
        deeds.append(deed)
    return tuple(deeds) if len(table.problems) == before else None


def read_otherwise(table: Table, value: object, subjects: Sequence[Subject]) -> Deed | None:
    """What is done where no answer comes; None if it is wrong."""
    path: KeyPath = ("otherwise",)
    if isinstance(value, dict) and value.keys() != {"answer"}:
        for key in value:
            if key != "answer":
                table.bad((*path, key), f"{key} is nothing to fall back on", key=True, expected=AN_OTHERWISE)
        if not value:
            table.bad(path, "is empty", expected=AN_OTHERWISE)
        return None
    if not isinstance(value, (str, dict)):
        table.bad(path, f"{shown(value)} is nothing to fall back on", expected=AN_OTHERWISE)
        return None
    return _deed(table, path, value, subjects, AN_OTHERWISE)


def _deed(
    table: Table, path: KeyPath, value: object, subjects: Sequence[Subject], expected: str = A_THEN
) -> Deed | None:
    """One act: a word, or a table with one key."""
    if isinstance(value, str):
        deed = _WORDS.get(value)
        if deed is None:
            meant = _MEANT.get(value.lower())
            likely = [] if meant else near(value, _WORDS)
            table.bad(path, f"{shown(value)} is not something to do", expected=meant or expected, near=likely)
            return None
        return deed if _makes_sense(table, path, ACT_OF[type(deed)], subjects) else None
    if not isinstance(value, dict):
        table.bad(path, f"{shown(value)} is not something to do", expected=expected)
        return None
    if not value:
        table.bad(path, "is empty", expected=expected)
        return None
    table.unknown_keys(path, value, tuple(_READERS))
    known = [key for key in value if key in _READERS]
    if len(known) > 1:
        one_by_one = ", ".join(f"{{ {key} = … }}" for key in known)
        table.bad(path, f"{either(known, 'and')} are {len(known)} things", expected=f"[{one_by_one}], in their order")
    if len(known) != 1 or len(value) != 1:
        return None
    key = known[0]
    here = (*path, key)
    return _READERS[key](table, here, value[key], subjects) if _makes_sense(table, here, Act(key), subjects) else None


def _makes_sense(table: Table, path: KeyPath, act: Act, subjects: Sequence[Subject]) -> bool:
    """Tell where an act makes no sense, and where it would."""
    without = [subject for subject in subjects if not allowed(act, subject)]
    if not without:
        return True
    table.bad(
        path,
        f"{act.value} makes no sense on {either([str(subject) for subject in without])}",
        key=path[-1] == act.value,
        expected=f"it on {either(places(act))}",
    )
    return False


def allowed(act: Act, subject: Subject) -> bool:
    """The act makes sense on the subject."""
    if act not in TABLE[subject.group]:
        return False
    if act is Act.DISCARD and subject.group is Group.COMMAND:
        return bool(subject.verbs) and set(subject.verbs) <= _DISCARDED
    return True


def places(act: Act) -> list[str]:
    """The subjects an act makes sense on, in words."""
    found: list[str] = []
    for group, acts in TABLE.items():
        if act in acts and act is Act.DISCARD and group is Group.COMMAND:
            found += ["MAIL", "RCPT", "DATA", "BDAT"]
        elif act in acts:
            found.append(_PLACES.get(group, group.value))
    return found


# ----------------------------------------------------------------------------------------------------- one act each


def _answer(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Answer | None:
    return read_answer(table, path, value, subjects)


def _hangup(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Hangup | None:
    answer = read_answer(table, path, value, subjects, Use.HANGUP)
    return None if answer is None else Hangup(answer)


def _tarpit(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Tarpit | None:
    seconds = table.duration(path, value, most=LONGEST_TARPIT)
    return None if seconds is None else Tarpit(seconds)


def _redirect(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Redirect | None:
    expected = 'host:port, e.g. "mx2.example:25" or "[2001:db8::1]:25"'
    text = table.string(path, value, expected)
    if text is None:
        return None
    found = _SERVER.fullmatch(text)
    host = "" if found is None else found["host"] or found["v6"]
    if found is None or not _is_host(host, bracketed=found["host"] is None):
        table.bad(
            path, f"{shown(text)} is not host:port", expected=expected, near=[f"{text}:25"] if _bare(text) else []
        )
        return None
    port = int(found["port"])
    if not 0 < port < 65_536:
        table.bad(path, f"{port} is not a port", expected=expected)
        return None
    return Redirect(host, port)


def _bare(text: str) -> bool:
    """A host without its port."""
    return _is_host(text, bracketed=False) or (
        text.startswith("[") and text.endswith("]") and _is_host(text[1:-1], bracketed=True)
    )


def _is_host(text: str, *, bracketed: bool) -> bool:
    """An IPv6 address in brackets; else a name, or an IPv4 address: what ends in a number is one (RFC 1123 §2.1)."""
    try:
        return ipaddress.ip_address(text).version == (6 if bracketed else 4)
    except ValueError:
        last = text.removesuffix(".").rpartition(".")[2]
        return not bracketed and not last.isdigit() and len(text) <= 254 and _HOST.fullmatch(text) is not None


def _quarantine(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Quarantine | None:
    expected = '"accept", "refuse" or { answer = "550 5.7.1 Not here" }'
    if isinstance(value, dict) and "answer" in value:
        table.unknown_keys(path, value, ("answer",))
        answer = read_answer(table, (*path, "answer"), value["answer"], subjects, Use.QUARANTINE)
        return None if answer is None else Quarantine(answer)
    reply = _QUARANTINED.get(value) if isinstance(value, str) else None
    if reply is None:
        table.bad(path, f"{shown(value)} is not what to tell", expected=expected, near=near(value, _QUARANTINED))
        return None
    return Quarantine(Answer(reply))


def _tag(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Tag | None:
    labels = read_labels(table, path, value)
    return None if labels is None else Tag(labels)


def read_labels(table: Table, path: KeyPath, value: object) -> tuple[str, ...] | None:
    """Labels, of one string or an array."""
    expected = 'a label such as "suspicious": a-z, 0-9 and -'
    before = len(table.problems)
    found = table.strings(path, value, expected)
    for place, label in found:
        if not LABEL.fullmatch(label):
            meant = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            table.bad(place, f"{shown(label)} is not a label", expected=expected, near=[meant] if meant else [])
    return None if len(table.problems) > before else tuple(dict.fromkeys(label for _, label in found))


def _record(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Record | None:
    if value == "full":
        return Record()
    table.bad(path, f"{shown(value)} is not what to record", expected='"full"')
    return None


# ------------------------------------------------------------------------------------------------------------- limits


def _limit(table: Table, path: KeyPath, value: object, subjects: Sequence[Subject]) -> Limit | None:
    expected = 'e.g. { limit = { recipients = 100, per = "client", within = "1h" } }'
    if not isinstance(value, dict) or not value:
        table.bad(path, "is empty" if value == {} else f"{shown(value)} is not a table", expected=expected)
        return None
    before = len(table.problems)
    table.unknown_keys(path, value, (*_COUNTED, *_LIMIT_KEYS))
    kinds = [key for key in value if key in _COUNTED]
    if len(kinds) != 1:
        said = f"{either(kinds, 'and')} are {len(kinds)} limits" if kinds else "does not say what is counted"
        table.bad(path, said, expected=f"one of {', '.join(_COUNTED)}")
        return None
    what = kinds[0]
    without = [subject for subject in subjects if not counts(what, subject)]
    if without:
        said = f"{what} are not counted on {either([str(subject) for subject in without])}"
        table.bad((*path, what), said, key=True, expected=f"a limit of them on {_COUNTED[what]}")
    most = _most(table, (*path, what), what, value[what])
    within = table.duration((*path, "within"), value["within"]) if "within" in value else 0.0
    lock = table.duration((*path, "lock"), value["lock"]) if "lock" in value else 0.0
    per = _per(table, path, value, what, subjects)
    answer = _refusal(table, path, value, what, subjects)
    if len(table.problems) > before or most is None or within is None or lock is None or answer is None:
        return None
    return Limit(what, most, per, within, lock, answer)


def counts(what: str, subject: Subject) -> bool:
    """One more of this can be counted on the subject."""
    if subject.group is Group.CONNECT:
        return what == "connections"
    if subject.group is Group.REPLY:
        return what == "replies"
    if subject.group is Group.CONTENT:
        return what in ("octets", "messages")
    if subject.group is Group.TRANSACTION:
        return what == "messages"
    if what == "messages":
        return bool(subject.verbs) and set(subject.verbs) <= {*MAILS, "DATA"}
    return what == "commands" or (what == "recipients" and subject.verb == "RCPT")


def _most(table: Table, path: KeyPath, what: str, value: object) -> int | None:
    expected = 'a size, e.g. "25 MiB"' if what == "octets" else f"a count of {what}, e.g. 100"
    most = 0
    if isinstance(value, int) and not isinstance(value, bool):
        most = value
    elif what == "octets" and isinstance(value, str):
        try:
            most = parse_size(value)
        except ValueError as error:
            table.bad(path, str(error), expected=expected, near=nearest_sizes(value))
            return None
    if not 0 < most < 10**15:
        table.bad(path, f"{shown(value)} is not a limit", expected=expected)
        return None
    return most


def _per(table: Table, path: KeyPath, value: Mapping[str, Any], what: str, subjects: Sequence[Subject]) -> str:
    """Whose they are: the client's within a time, else the session's."""
    timed = "within" in value
    per = value.get("per", "client" if timed else "session")
    here = (*path, "per")
    if not isinstance(per, str) or per not in FIELD_OF:
        table.bad(
            here, f"{shown(per)} is nobody to count for", expected=either(list(FIELD_OF)), near=near(per, FIELD_OF)
        )
        return ""
    field = FIELD_OF[per]
    if field and field not in vocabulary(subjects):
        without = [str(subject) for subject in subjects if field not in vocabulary([subject])]
        table.bad(here, f"{either(without)} has no {per}", expected=either(_pers_of(subjects)))
    elif what == "connections" and per == "session":
        if timed or "per" in value:
            table.bad(here, "a session has one connection", expected='"client", "network" or "all"')
        else:
            table.bad(path, "within is missing", expected='a duration, e.g. within = "1m"')
    elif per not in ("session", "") and not timed:
        table.bad(path, "within is missing", expected='a duration, e.g. within = "1h", or per = "session"')
    return per


def _pers_of(subjects: Sequence[Subject]) -> list[str]:
    known = vocabulary(subjects)
    return [per for per, field in FIELD_OF.items() if not field or field in known]


def _refusal(
    table: Table, path: KeyPath, value: Mapping[str, Any], what: str, subjects: Sequence[Subject]
) -> Answer | None:
    """What one too many is told. Where nothing can be told the limit must lock, or it would do nothing."""
    silent = [str(s) for s in subjects if s.group in (Group.REPLY, Group.TRANSACTION)]
    if silent and "answer" in value:
        table.bad((*path, "answer"), f"nothing is answered on {either(silent)}", key=True, expected="lock")
        return None
    if silent and "lock" not in value:
        table.bad(
            path, "lock is missing: the limit would do nothing", expected='e.g. lock = "1h", and locked(…) in another'
        )
        return None
    if "answer" in value:
        return read_answer(table, (*path, "answer"), value["answer"], subjects, Use.LIMIT)
    if what == "octets" and "within" not in value:
        return Answer(TOO_BIG)
    return Answer(_TOO_MANY.get(what, _TOO_MUCH))


_READERS: Mapping[str, Read] = {
    "answer": _answer,
    "rewrite": read_rewrite,
    "header": read_header,
    "hangup": _hangup,
    "tarpit": _tarpit,
    "redirect": _redirect,
    "limit": _limit,
    "quarantine": _quarantine,
    "tag": _tag,
    "record": _record,
}

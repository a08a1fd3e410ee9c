"""What rules are made of, told as explain.py tells the registries: `smtpproxy explain field rcpt.domain`.

There are four kinds of names: fields, subjects, acts and functions. Each is told from its own table in `policy`, which
is also what rules are checked against.
"""

from collections.abc import Callable, Iterable, Mapping
from inspect import cleandoc
from types import MappingProxyType
from typing import Final

from smtpproxy.explain import Fact, Part, Term, UnknownName, json_of, text_of
from smtpproxy.policy.fields import FIELDS, fields_of, is_map
from smtpproxy.policy.functions import FUNCTIONS, OWN
from smtpproxy.policy.rules import ACT_OF
from smtpproxy.policy.subjects import DECIDING, SUBJECTS, TABLE, Act, Group, subject
from smtpproxy.policy.toml import nearest

SUBJECT_WORDS: Final[Mapping[Group, str]] = MappingProxyType(
    {
        Group.CONNECT: "A client has connected; the server has not been connected to.",
        Group.TLS: "A link has just been encrypted.",
        Group.COMMAND: "The command has come, and has not been sent on.",
        Group.REPLY: "The server has replied, and the client has not been told.",
        Group.HEADER: "The header section of a mail has come.",
        Group.ATTACHMENT: "A mail has come as a whole; this is tried on each of its attachments.",
        Group.CONTENT: "A mail has come as a whole.",
        Group.TRANSACTION: "A mail has come to its end, accepted by the server or not.",
    }
)


def explain(kind: str, name: str) -> str:
    """All that is known of a name of this kind, for a person.

    Raises:
        UnknownName: there is none.
    """
    return text_of(*_told(kind, name))


def explain_json(kind: str, name: str) -> dict[str, object]:
    """The same, for a program.

    Raises:
        UnknownName: there is none.
    """
    return json_of(*_told(kind, name))


def names(kind: str) -> list[tuple[str, str]]:
    """Every name of this kind, with what it is in a line."""
    if kind == "field":
        return [(field.name, field.sentence) for field in FIELDS.values()]
    if kind == "function":
        return [(function.name, function.sentence) for function in FUNCTIONS.values()]
    if kind == "subject":
        return [(name, SUBJECT_WORDS[found.group]) for name, found in SUBJECTS.items()]
    return [(act.value, "at " + ", ".join(group.value for group in _groups(act))) for act in Act]


def _told(kind: str, name: str) -> tuple[str, list[Part]]:
    key = " ".join(name.split())
    known = {known.casefold(): known for known, _ in names(kind)}
    if key.casefold() not in known:
        raise UnknownName(name, tuple(nearest(key, known.values())), f"{_ARTICLE[kind]} {kind}")
    key = known[key.casefold()]
    return key, [Part(kind, KINDS[kind](key))]


def _field(name: str) -> dict[str, Fact]:
    field = FIELDS[name]
    facts: dict[str, Fact] = {"what": field.sentence, "type": field.type.value, "known at": field.known.value}
    if is_map(field):
        facts["entry"] = f'{name}["Name"]'
    return facts | {"example": field.example}


def _function(name: str) -> dict[str, Fact]:
    function = FUNCTIONS[name]
    whose = Term("smtpproxy", "made for mail") if function in OWN else Term("CEL", "part of the language")
    return {"what": function.sentence, "called": function.signature, "of": whose, "example": function.example}


def _subject(name: str) -> dict[str, Fact]:
    found = subject(name)
    if found is None:
        raise AssertionError(f"{name} is a subject")
    facts: dict[str, Fact] = {"what": SUBJECT_WORDS[found.group], "written": f'on = "{name}"'}
    if len(found.verbs) > 1:
        facts["about"] = list(found.verbs)
    acts: Fact = {act.value: words for act, words in TABLE[found.group].items()}
    return facts | {"acts": acts, "fields": list(fields_of(found))}


def _act(name: str) -> dict[str, Fact]:
    act = Act(name)
    written = [
        cleandoc(made.__doc__ or "").partition("\n")[0].replace("`", "") for made, of in ACT_OF.items() if of is act
    ]
    if act is Act.LIMIT:
        decides = Term(False, "later rules are tried, unless it is exceeded")
    elif act in DECIDING:
        decides = Term(True, "no later rule on the subject is tried")
    else:
        decides = Term(False, "later rules are tried")
    return {
        "written": " or ".join(one.rstrip(".") for one in written),
        "decides": decides,
        "what": {group.value: TABLE[group][act] for group in _groups(act)},
    }


def _groups(act: Act) -> Iterable[Group]:
    return [group for group, acts in TABLE.items() if act in acts]


KINDS: Final[Mapping[str, Callable[[str], dict[str, Fact]]]] = MappingProxyType(
    {"field": _field, "subject": _subject, "act": _act, "function": _function}
)
_ARTICLE: Final = {"field": "a", "subject": "a", "act": "an", "function": "a"}

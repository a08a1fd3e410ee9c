"""The whole vocabulary of conditions and texts: every field, its type, and since when it is known.

What is not in FIELDS can't be asked for; what is in it but not known at a subject is an error when rules are loaded,
not an empty value in a session. docs/rules.md and `smtpproxy explain field` say what the rows say.

Nothing secret is a field.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from smtpproxy.policy.mailfields import MAIL
from smtpproxy.policy.sessionfields import SESSION
from smtpproxy.policy.subjects import SUBJECTS, Group, Subject
from smtpproxy.policy.view import View
from smtpproxy.policy.vocabulary import Field, Known, Type
from smtpproxy.session.state import HELLOS, MAILS
from smtpproxy.session.verdicts import Depth

__all__ = ["DEPTH_OF", "EXTENSION", "FIELDS", "Field", "Known", "Type", "View", "fields_of", "is_map", "known_at"]

FIELDS: Final[Mapping[str, Field]] = MappingProxyType({field.name: field for field in (*SESSION, *MAIL)})

# What a rule about an extension may ask in its `when`: at connect all that a peer says later is still empty.
EXTENSION: Final = Subject(Group.CONNECT, "extension")

_OF_A_MAIL: Final = ("RCPT", "DATA", "BDAT", "BURL", "XEXCH50")
_BEHIND: Final = frozenset({Group.HEADER, Group.ATTACHMENT, Group.CONTENT, Group.TRANSACTION})
_ENVELOPE: Final = frozenset({Group.COMMAND, Group.REPLY})


def is_map(field: Field) -> bool:
    """It has entries, and one of them is to be named."""
    return field.entry is not None


def known_at(known: Known, subject: Subject) -> bool:
    """Whether fields known at `known` are known at `subject`."""
    if known is Known.ALWAYS:
        return True
    if subject == EXTENSION:
        return known in (Known.TLS, Known.HELLO)
    group, verb = subject
    if known is Known.TLS:
        return group is not Group.CONNECT
    if known is Known.HELLO:
        return group not in (Group.CONNECT, Group.TLS) and subject != SUBJECTS["GREETING reply"]
    if known is Known.MAIL or known is Known.RECIPIENTS:
        verbs = (*MAILS, *_OF_A_MAIL) if known is Known.MAIL else _OF_A_MAIL
        return group in _BEHIND or (group in _ENVELOPE and verb in verbs) or subject == SUBJECTS["END reply"]
    if known is Known.SIZE:
        return subject == SUBJECTS["END reply"] or group in (Group.ATTACHMENT, Group.CONTENT, Group.TRANSACTION)
    if known is Known.LIST:
        return group is Group.REPLY and verb in HELLOS
    if known is Known.RCPT:
        return group in _ENVELOPE and verb == "RCPT"
    return group in _GROUPS[known]


_GROUPS: Final[Mapping[Known, frozenset[Group]]] = MappingProxyType(
    {
        Known.COMMAND: _ENVELOPE,
        Known.REPLY: frozenset({Group.REPLY}),
        Known.HEADER: frozenset({Group.HEADER, Group.ATTACHMENT, Group.CONTENT}),
        Known.CONTENT: frozenset({Group.ATTACHMENT, Group.CONTENT}),
        Known.ATTACHMENT: frozenset({Group.ATTACHMENT}),
        Known.SIDE: frozenset({Group.TLS}),
        Known.TRANSACTION: frozenset({Group.TRANSACTION}),
    }
)

# How deep content must be looked into for a field that is known there.
DEPTH_OF: Final[Mapping[Known, Depth]] = MappingProxyType(
    {Known.HEADER: Depth.HEADER, Known.CONTENT: Depth.WHOLE, Known.ATTACHMENT: Depth.WHOLE}
)


@lru_cache(maxsize=256)
def fields_of(subject: Subject) -> Mapping[str, Field]:
    """The vocabulary of a subject, by name, in the order of the table."""
    return MappingProxyType({name: field for name, field in FIELDS.items() if known_at(field.known, subject)})


def subject_name(subject: Subject) -> str:
    """The subject in words, for messages."""
    if subject == EXTENSION:
        return "rules about extensions"
    return str(subject)

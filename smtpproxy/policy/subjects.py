"""Subjects and acts: what a rule can be about, and what it can do there. The table is closed.

A subject is a moment of a session: a client connects, a link is encrypted, a command or a reply comes, a header
section, an attachment or a whole content is there, a transaction has ended. `TABLE` says of each kind of subject which
acts make sense there, and in a sentence what they do; what is not in it is an error when rules are loaded.
docs/rules.md has the table printed from here.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from smtpproxy.session.state import AUTHS, MAILS, SECURERS
from smtpproxy.smtp.registry.verbs import VERBS


class Group(Enum):
    """Kinds of subjects."""

    CONNECT = "connect"
    TLS = "tls"
    COMMAND = "command"
    REPLY = "reply"
    HEADER = "header"
    ATTACHMENT = "attachment"
    CONTENT = "content"
    TRANSACTION = "transaction"

    __hash__ = object.__hash__


class Act(Enum):
    """What a rule can do; the value is the word in `then`."""

    PASS = "pass"  # noqa: S105 - let through; no password
    ANSWER = "answer"
    REWRITE = "rewrite"
    HEADER = "header"
    DISCARD = "discard"
    HANGUP = "hangup"
    TARPIT = "tarpit"
    REDIRECT = "redirect"
    LIMIT = "limit"
    QUARANTINE = "quarantine"
    TAG = "tag"
    RECORD = "record"

    __hash__ = object.__hash__


# The acts that end the trying of rules; a limit does only where it is exceeded.
DECIDING: Final = frozenset({Act.PASS, Act.ANSWER, Act.DISCARD, Act.HANGUP, Act.REDIRECT, Act.QUARANTINE})

_LET = "No later rule on this subject is tried."
_TAG = "The label is on the session (from MAIL on: on the transaction), for later rules and the record."
_RECORD = "From here on the record of this session is a full transcript; secrets are never in it."
_TARPIT = "The session waits so long before it goes on."
_END = "The client is told so at the end of data, nothing is sent on; the session goes on."
_CLOSED_AT_END = "The client is told so at the end of data, then both links are closed."
_SWALLOWED = "The mail is swallowed and 250 told; the server gets none of it."
_KEPT = "The mail is kept in the quarantine; the client is told 250 or a refusal, as the rule says."
_FIELDS = "Header fields are added, replaced, removed or prepended."

TABLE: Final[Mapping[Group, Mapping[Act, str]]] = MappingProxyType(
    {
        Group.CONNECT: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.ANSWER: "Told in place of the greeting, then closed; the server is not connected to.",
                Act.HANGUP: "Closed, without a word or with a reply; the server is not connected to.",
                Act.TARPIT: "The server is connected to only after this time.",
                Act.REDIRECT: "The session goes to another server.",
                Act.LIMIT: "Connections are counted; one too many is answered.",
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.TLS: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.ANSWER: "Told to every command but QUIT from here on.",
                Act.HANGUP: "421 or the rule's reply is told, where one can be, and both links are closed.",
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.COMMAND: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.ANSWER: "Told in its turn; the server does not get the command.",
                Act.REWRITE: "The server gets the command with another argument or other parameters.",
                Act.DISCARD: "MAIL, RCPT, DATA, BDAT: this mail is swallowed and 250 told; the server gets none of it.",
                Act.HANGUP: "421 or the rule's reply is told in its turn, then both links are closed.",
                Act.TARPIT: "The command waits so long before it is sent on or answered.",
                Act.LIMIT: "Commands, recipients or messages are counted; one too many is answered.",
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.REPLY: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.REWRITE: "The client is told another text, or another reply of the same first digit; of a list,"
                " other keywords.",
                Act.HANGUP: "The reply, or the rule's, is told; then both links are closed.",
                Act.TARPIT: "The reply is told only after this time.",
                Act.LIMIT: "Replies are counted, and the limit locks; nothing is answered here.",
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.HEADER: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.ANSWER: _END,
                Act.HEADER: _FIELDS,
                Act.DISCARD: _SWALLOWED,
                Act.HANGUP: _CLOSED_AT_END,
                Act.TARPIT: _TARPIT,
                Act.QUARANTINE: _KEPT,
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.ATTACHMENT: MappingProxyType(
            {
                Act.PASS: "No later rule is tried on this attachment.",
                Act.ANSWER: _END,
                Act.DISCARD: _SWALLOWED,
                Act.HANGUP: _CLOSED_AT_END,
                Act.QUARANTINE: _KEPT,
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.CONTENT: MappingProxyType(
            {
                Act.PASS: _LET,
                Act.ANSWER: _END,
                Act.HEADER: _FIELDS,
                Act.DISCARD: _SWALLOWED,
                Act.HANGUP: _CLOSED_AT_END,
                Act.TARPIT: _TARPIT,
                Act.LIMIT: "Octets or messages are counted; one too many is answered at the end of data.",
                Act.QUARANTINE: _KEPT,
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
        Group.TRANSACTION: MappingProxyType(
            {
                Act.LIMIT: "Mails that ended are counted, and the limit locks; nothing is answered here.",
                Act.TAG: _TAG,
                Act.RECORD: _RECORD,
            }
        ),
    }
)

# Verbs by which the same is said, so that no spelling goes round a rule: on = "MAIL" is about all of them.
ALIASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"MAIL": MAILS, "AUTH": AUTHS, "STARTTLS": SECURERS, "EHLO": ("EHLO", "LHLO")}
)
ANY: Final = "any"  # on = "any command", on = "any reply"
_PSEUDO: Final = ("GREETING", "END", "SASL")  # what is replied to without being a verb on the wire
_WORDS: Final = (Group.CONNECT, Group.TLS, Group.HEADER, Group.ATTACHMENT, Group.CONTENT, Group.TRANSACTION)


class Subject(NamedTuple):
    """One subject: `verb` is the registry's name, "UNKNOWN", "MALFORMED" or ANY; "" where the group has no verbs."""

    group: Group
    verb: str = ""

    def __str__(self) -> str:
        if self.group is Group.COMMAND:
            return f"{ANY} command" if self.verb == ANY else self.verb
        if self.group is Group.REPLY:
            return f"{self.verb} reply"
        name: str = self.group.value
        return name

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs it is about, in every spelling; () where it is about all, or none."""
        return () if self.verb in ("", ANY) else ALIASES.get(self.verb, (self.verb,))


def _subjects() -> dict[str, Subject]:
    found = [Subject(group) for group in _WORDS]
    for group in (Group.COMMAND, Group.REPLY):
        found += [Subject(group, verb.name) for verb in VERBS.values()]
        found.append(Subject(group, ANY))
    found += [Subject(Group.COMMAND, "UNKNOWN"), Subject(Group.COMMAND, "MALFORMED")]
    found += [Subject(Group.REPLY, name) for name in _PSEUDO]
    return {str(subject): subject for subject in found}


SUBJECTS: Final[Mapping[str, Subject]] = MappingProxyType(_subjects())


def subject(name: str) -> Subject | None:
    """The subject of this name, in any case: `rcpt`, `RCPT reply`, `any command`."""
    return _FOLDED.get(" ".join(name.split()).casefold())


_FOLDED: Final = {name.casefold(): found for name, found in SUBJECTS.items()}

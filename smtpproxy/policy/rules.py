"""What a rule is, once loaded.

There are two kinds. A rule about an extension names a row of the registry and a treatment, and holds in every place the
name shows: the EHLO reply in every spelling, the verbs, the parameters of MAIL and RCPT. Which places those are is the
registry's to say, not the rule's. A rule on subjects names moments of a session, a condition, and what is to be done.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpproxy.policy.subjects import Act, Subject
from smtpproxy.smtp.registry.features import Feature
from smtpproxy.smtp.replies import OwnReply

if TYPE_CHECKING:
    from smtpproxy.policy.entrypoints import EntryPoint
    from smtpproxy.policy.expr import Condition
    from smtpproxy.policy.templates import Template


class Treatment(Enum):
    """What is done with an extension."""

    ALLOW = "allow"
    DENY = "deny"
    TLS = "allow-under-tls"
    LIMIT = "limit"

    __hash__ = object.__hash__


class Mode(Enum):
    """Whether a rule decides, or only says what it would have done. (A rule that is off is not loaded.)"""

    ENFORCE = "enforce"
    OBSERVE = "observe"

    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule stands: for errors, and for the record."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ExtensionRule:
    """`extension = NAME`, `then = TREATMENT`. `limit` is in octets for SIZE, a count for LIMITS."""

    name: str
    why: str
    feature: Feature
    treatment: Treatment
    limit: int = 0
    reply: OwnReply | None = None  # what a refused verb is answered with; the registry's refusal if None
    source: Source = Source("", 0)
    when: "Condition | None" = None  # asked when a session begins and at each reply with a list
    mode: Mode = Mode.ENFORCE
    tags: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ acts, with their data


@dataclass(frozen=True, slots=True)
class Pass:
    """`then = "pass"`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`{ answer = "550 5.7.1 Not here" }`: `reply` if the text is the same always, else `text`, filled and made one."""

    reply: OwnReply | None = None
    text: "Template | None" = None


@dataclass(frozen=True, slots=True)
class Discard:
    """`then = "discard"`."""


@dataclass(frozen=True, slots=True)
class Hangup:
    """`then = "hangup"`, or `{ hangup = "421 4.7.0 Not you" }`."""

    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Tarpit:
    """`{ tarpit = "5s" }`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Redirect:
    """`{ redirect = "mx2.example:25" }`."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class RewriteCommand:
    """`{ rewrite = { address = …, argument = …, set = { RET = "HDRS" }, remove = ["NOTIFY"] } }` on a command.

    `address` is of MAIL and RCPT, without angle brackets ("" is the null reverse-path); `argument` of any other verb.
    Parameters are set (added, or changed) and removed by keyword; a value of "" stands for none.
    """

    address: "Template | None" = None
    argument: "Template | None" = None
    set: "tuple[tuple[bytes, Template], ...]" = ()
    remove: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class RewriteReply:
    """`{ rewrite = { text = …, reply = …, set = { SIZE = "1000" }, remove = ["DSN"] } }` on a reply.

    `text` takes the place of the text and leaves the codes; `reply` is another reply of the same first digit; `set` and
    `remove` are keywords of the list in a reply to EHLO or LHLO, with their parameters.
    """

    text: "Template | None" = None
    reply: Answer | None = None
    set: "tuple[tuple[bytes, Template], ...]" = ()
    remove: tuple[bytes, ...] = ()


class FieldEdit(NamedTuple):
    """One edit of a header section: `how` is "prepend", "add", "replace" or "remove" (then no value)."""

    how: str
    name: bytes
    value: "Template | None" = None


@dataclass(frozen=True, slots=True)
class EditHeader:
    """`{ header = { prepend = { Received = "…" }, add = {…}, replace = {…}, remove = ["X-Mailer"] } }`."""

    edits: tuple[FieldEdit, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """`{ limit = { recipients = 100, per = "client", within = "1h", lock = "1h", answer = "451 …" } }`.

    Attributes:
        what: "connections", "commands", "messages", "recipients", "replies" or "octets": what one more of is counted.
        most: how many are let through within `within` seconds; 0 seconds: within the session (of octets: in one mail).
        per: whose they are: "session", "client", "network", "sender", "sender-domain", "recipient", "recipient-domain",
            "identity" or "all".
        lock: seconds for which, once exceeded, it stays exceeded; 0: no longer than it is.
        answer: what one too many is told.
    """

    what: str
    most: int
    per: str
    within: float
    lock: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Quarantine:
    """`then = { quarantine = "accept" }` (250), `"refuse"` (550), or `{ quarantine = { answer = "…" } }`."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Tag:
    """`{ tag = "suspicious" }`, or several."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """`{ record = "full" }`."""


Deed = (
    Pass
    | Answer
    | Discard
    | Hangup
    | Tarpit
    | Redirect
    | RewriteCommand
    | RewriteReply
    | EditHeader
    | Limit
    | Quarantine
    | Tag
    | Record
)

ACT_OF: dict[type[Any], Act] = {
    Pass: Act.PASS,
    Answer: Act.ANSWER,
    Discard: Act.DISCARD,
    Hangup: Act.HANGUP,
    Tarpit: Act.TARPIT,
    Redirect: Act.REDIRECT,
    RewriteCommand: Act.REWRITE,
    RewriteReply: Act.REWRITE,
    EditHeader: Act.HEADER,
    Limit: Act.LIMIT,
    Quarantine: Act.QUARANTINE,
    Tag: Act.TAG,
    Record: Act.RECORD,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`on = SUBJECT`, `when = CONDITION`, `then = ACTS`; or `python = "package:function"` in place of `then`.

    `otherwise` is what is done where the answer of the outside does not come within `deadline` seconds, or fails.
    """

    name: str
    why: str
    subjects: tuple[Subject, ...]
    when: "Condition | None" = None  # None: always
    then: tuple[Deed, ...] = ()
    mode: Mode = Mode.ENFORCE
    tags: tuple[str, ...] = ()
    otherwise: Deed | None = None  # None: 451 4.3.0
    python: "EntryPoint | None" = None
    deadline: float = 5.0
    source: Source = Source("", 0)
    shipped: bool = False


AnyRule = ExtensionRule | Rule

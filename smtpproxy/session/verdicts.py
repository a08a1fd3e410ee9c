"""Verdicts: what rules decide, as a value; and the judge, who gives them.

A verdict is one of a closed set of actions and carries the name of the rule that gave it. The session asks the judge
only where a rule could apply: `commands` and `replies` hold a function for a verb only if some rule is about it, so a
verb without rules costs nothing. A judge has no I/O; what it needs to know is in the session it is given. What it can't
know is a question: the verdict ASK carries one, the driver answers it, and the question's own `resume` makes a verdict
of the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from smtpproxy.session.ledger import Exchange
    from smtpproxy.session.session import Session
    from smtpproxy.session.state import Transaction
    from smtpproxy.smtp.commands import Command, Malformed
    from smtpproxy.smtp.errors import Side
    from smtpproxy.smtp.replies import Reply


class Action(Enum):
    """The closed set."""

    PASS = "pass"  # noqa: S105 - as it came; no password
    REWRITE = "rewrite"  # as `value` says
    ANSWER = "answer"  # `value`, an OwnReply, is told; nothing is sent
    DISCARD = "discard"  # the rest of the transaction is swallowed, 250 told
    HANGUP = "hangup"  # `value`, an OwnReply or None, is told, then both links are closed
    QUARANTINE = "quarantine"  # the mail was kept: `value`, an OwnReply, is told; nothing is sent
    REDIRECT = "redirect"  # to the server `value`, a host and a port
    ASK = "ask"  # `value`, a Question, comes first

    __hash__ = object.__hash__


class Observed(NamedTuple):
    """What a rule that only observes would have done."""

    rule: str
    action: str
    told: str = ""  # the reply it would have told


class Effects(NamedTuple):
    """What rules did beside deciding, in their order. It is done already; this is for the record."""

    rules: tuple[str, ...] = ()  # which of them
    observed: tuple[Observed, ...] = ()
    tags: tuple[str, ...] = ()  # labels that are on from here on

    def shown(self) -> dict[str, Any]:
        """The keys of a record."""
        observed = [{key: value for key, value in one._asdict().items() if value} for one in self.observed]
        keys = {"rules": list(self.rules), "observed": observed, "tags": list(self.tags)}
        return {key: value for key, value in keys.items() if value}


class Verdict(NamedTuple):
    """What is to be done, with what, by whose word. What `value` is depends on the action."""

    action: Action
    value: Any = None
    rule: str = ""
    anomalies: tuple[str, ...] = ()
    effects: Effects | None = None


PASS = Verdict(Action.PASS)


class Failed(NamedTuple):
    """In place of an answer: there is none, and why."""

    why: str


class Wait(NamedTuple):
    """Wait so long; the answer is None."""

    seconds: float


class Call(NamedTuple):
    """Call this, sync (in a thread) or async; the answer is what it returns."""

    function: Callable[[], Any]
    asynchronous: bool
    rule: str


class Keep(NamedTuple):
    """Keep this mail in the quarantine; the answer is its name there. `content` is a readable binary file."""

    rule: str
    why: str
    content: Any
    facts: Mapping[str, Any]


class Question(NamedTuple):
    """What the driver is asked. `resume` is given the answer, or Failed, and never raises for what that says."""

    about: Wait | Call | Keep
    deadline: float  # seconds
    resume: Callable[[Any], Verdict]


class Depth(Enum):
    """How deep a transaction's content is looked into (architecture §7)."""

    STREAM = "stream"  # nothing waits for the content
    HEADER = "header"  # a rule reads or edits the header section: it is held back
    WHOLE = "whole"  # a rule reads the content: all of it is held back

    __hash__ = object.__hash__


CommandRule = Callable[["Command", "Session"], Verdict]
ReplyRule = Callable[["Reply", "Exchange", "Session"], Verdict]


class Judge(Protocol):
    """What a session is judged by. One judge serves many sessions and keeps no state of any."""

    @property
    def commands(self) -> Mapping[str, CommandRule]:
        """By verb name; UNKNOWN is every verb that is not in the registry."""

    @property
    def replies(self) -> Mapping[str, ReplyRule]:
        """By the name of the verb that is answered; GREETING, END and SASL included."""

    @property
    def malformed(self) -> Callable[["Malformed", "Session"], Verdict] | None:
        """A line that matched no grammar; PASS from a rule sends it on in lock-step."""

    @property
    def connect(self) -> Callable[["Session"], Verdict] | None:
        """A client has connected, and the server has not been connected to."""

    @property
    def tls(self) -> Callable[["Side", "Session"], Verdict] | None:
        """This side's link has just been encrypted: PASS, ANSWER (to what comes) or HANGUP."""

    @property
    def header(self) -> Callable[[bytes, "Session"], Verdict] | None:
        """The header section (unstuffed, with its empty line), at depth HEADER; REWRITE gives another one. No ASK."""

    @property
    def content(self) -> Callable[[Any, "Session"], Verdict] | None:
        """The whole content as a readable binary file, at depth WHOLE: rules on the header section are asked here too.

        REWRITE gives a count of octets and what takes the place of so many at the beginning; or octets for all of it.
        """

    @property
    def ended(self) -> Callable[["Exchange", bool, "Session"], Verdict] | None:
        """A mail came to its end with this exchange, accepted by the server or not: PASS, with effects."""

    @property
    def digest(self) -> str:
        """Which rules they are, for the record; "" where nobody needs to know."""

    @property
    def redirects(self) -> Sequence[tuple[str, int]]:
        """The servers, host and port, that `connect` may lead to."""

    def depth(self, transaction: "Transaction", session: "Session") -> Depth:
        """How deep this transaction's content must be looked into."""

    def max_size(self, session: "Session") -> int:
        """Octets of content this session may send in one mail; 0: no limit."""

    def owner(self, name: bytes, session: "Session | None" = None) -> str:
        """The rule that denies this keyword or verb (to this session), or ""."""


class PassAll:
    """The judge that has no rules."""

    commands: Mapping[str, CommandRule] = MappingProxyType({})
    replies: Mapping[str, ReplyRule] = MappingProxyType({})
    malformed = None
    connect = None
    tls = None
    header = None
    content = None
    ended = None
    redirects: Sequence[tuple[str, int]] = ()
    digest = ""

    def depth(self, transaction: "Transaction", session: "Session") -> Depth:
        """Nothing is looked into."""
        return Depth.STREAM

    def max_size(self, session: "Session") -> int:
        """No limit."""
        return 0

    def owner(self, name: bytes, session: "Session | None" = None) -> str:
        """Nobody denies anything."""
        return ""

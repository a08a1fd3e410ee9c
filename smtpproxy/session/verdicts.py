"""Verdicts: what a rule decides, as a value; and the judge, who gives them.

A verdict is one of a closed set of actions and carries the name of the rule that gave it. The session asks the judge
only where a rule could apply: `commands` and `replies` hold a function for a verb only if some rule is about it, so a
verb without rules costs nothing. A judge has no I/O; what it needs to know is in the session it is given.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from smtpproxy.session.ledger import Exchange
    from smtpproxy.session.session import Session
    from smtpproxy.session.state import Transaction
    from smtpproxy.smtp.commands import Command, Malformed
    from smtpproxy.smtp.replies import Reply


class Action(Enum):
    """The closed set."""

    PASS = "pass"  # noqa: S105 - as it came; no password
    REWRITE = "rewrite"  # as `value` says
    ANSWER = "answer"  # `value`, an OwnReply, is told; nothing is sent
    DISCARD = "discard"  # the rest of the transaction is swallowed, 250 told
    HANGUP = "hangup"  # `value`, an OwnReply, is told, then both links are closed

    __hash__ = object.__hash__


class Verdict(NamedTuple):
    """What is to be done, with what, by whose word. `value` is an OwnReply, a Command, a Reply or bytes, by action."""

    action: Action
    value: Any = None
    rule: str = ""
    anomalies: tuple[str, ...] = ()


PASS = Verdict(Action.PASS)


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
    def header(self) -> Callable[[bytes, "Session"], Verdict] | None:
        """The header section (unstuffed, with its empty line); REWRITE gives another one."""

    @property
    def content(self) -> Callable[[Any, "Session"], Verdict] | None:
        """The whole content as a readable binary file."""

    def depth(self, transaction: "Transaction") -> Depth:
        """How deep this transaction's content must be looked into."""

    def max_size(self, session: "Session") -> int:
        """Octets of content this session may send in one mail; 0: no limit."""

    def owner(self, name: bytes) -> str:
        """The rule that denies this keyword or verb, or ""."""


class PassAll:
    """The judge that has no rules."""

    commands: Mapping[str, CommandRule] = MappingProxyType({})
    replies: Mapping[str, ReplyRule] = MappingProxyType({})
    malformed = None
    header = None
    content = None

    def depth(self, transaction: "Transaction") -> Depth:
        """Nothing is looked into."""
        return Depth.STREAM

    def max_size(self, session: "Session") -> int:
        """No limit."""
        return 0

    def owner(self, name: bytes) -> str:
        """Nobody denies anything."""
        return ""

"""What a function of Python's may decide: `smtpproxy.policy.entrypoints` gives them to whoever writes one.

They are the acts of rule files as values, and go the same way: `deeds` writes each as rule files have it, and the
reader of rule files reads it, for the subject it is about. So a function can do nothing that a rule could not, and
what it returns is checked as a rule is. Texts are told as they are; a brace in one is a brace, never a field.

What must never happen: that something a function returned is let through unread; that a text ends a line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from smtpproxy.policy import rules
from smtpproxy.policy.actions import read_then
from smtpproxy.policy.subjects import Subject
from smtpproxy.policy.tables import Table
from smtpproxy.policy.toml import Positions, Problem

_NOT_PRINTABLE: Final = re.compile(r"[^ -~]")
_LONGEST_REPLY: Final = 510  # RFC 5321 §4.5.3.1.5, without CRLF
_SHOWN: Final = 80  # characters of what was returned that a message repeats


@dataclass(frozen=True, slots=True)
class Abstain:
    """Nothing is decided: the next rule is tried."""


@dataclass(frozen=True, slots=True)
class Pass:
    """No later rule on this subject is tried."""

    def then(self) -> object:
        """As in a rule file."""
        return "pass"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answered here: `Answer("550 5.1.1 No such user")`. What is not printable ASCII is told as "?"."""

    text: str

    def then(self) -> object:
        """As in a rule file."""
        return {"answer": _reply(self.text)}


@dataclass(frozen=True, slots=True)
class Discard:
    """The mail is swallowed, and 250 told."""

    def then(self) -> object:
        """As in a rule file."""
        return "discard"


@dataclass(frozen=True, slots=True)
class Hangup:
    """Both links are closed behind this reply, or behind 421."""

    text: str = ""

    def then(self) -> object:
        """As in a rule file."""
        return {"hangup": _reply(self.text)} if self.text else "hangup"


@dataclass(frozen=True, slots=True)
class Tarpit:
    """The session waits so many seconds."""

    seconds: float

    def then(self) -> object:
        """As in a rule file."""
        return {"tarpit": self.seconds}


@dataclass(frozen=True, slots=True)
class Redirect:
    """The session goes to this server; on connect."""

    host: str
    port: int = 25

    def then(self) -> object:
        """As in a rule file."""
        return {"redirect": f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"}


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Of a command: another `address` (MAIL, RCPT) or `argument`, parameters `set` and removed. Of a reply: another
    `text` or `reply`; of a list also keywords. What is None stays."""

    address: str | None = None
    argument: str | None = None
    text: str | None = None
    reply: str | None = None
    set: Mapping[str, str] = field(default_factory=dict)
    remove: Sequence[str] = ()

    def then(self) -> object:
        """As in a rule file."""
        texts = {"address": self.address, "argument": self.argument, "text": self.text}
        said: dict[str, object] = {key: _literal(text) for key, text in texts.items() if text is not None}
        if self.reply is not None:
            said["reply"] = _reply(self.reply)
        if self.set:
            said["set"] = {key: _literal(text) for key, text in self.set.items()}
        if self.remove:
            said["remove"] = list(self.remove)
        return {"rewrite": said}


@dataclass(frozen=True, slots=True)
class EditHeader:
    """Header fields put before all others, added behind them, replaced, removed; by name, one value or several."""

    prepend: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    add: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    replace: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    remove: Sequence[str] = ()

    def then(self) -> object:
        """As in a rule file."""
        kinds = {"prepend": self.prepend, "add": self.add, "replace": self.replace}
        said: dict[str, object] = {
            how: {name: _values(texts) for name, texts in fields.items()} for how, fields in kinds.items() if fields
        }
        if self.remove:
            said["remove"] = list(self.remove)
        return {"header": said}


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The mail is kept; the client is told 250 ("accept"), 550 ("refuse"), or a reply of your own."""

    text: str = "accept"

    def then(self) -> object:
        """As in a rule file."""
        return {"quarantine": self.text if self.text in ("accept", "refuse") else {"answer": _reply(self.text)}}


@dataclass(frozen=True, slots=True, init=False)
class Tag:
    """Labels for later rules and the record: `Tag("known-sender")`."""

    labels: tuple[str, ...]

    def __init__(self, *labels: str) -> None:
        object.__setattr__(self, "labels", labels)

    def then(self) -> object:
        """As in a rule file."""
        return {"tag": list(self.labels)}


@dataclass(frozen=True, slots=True)
class Record:
    """From here on the record of the session is a full transcript."""

    def then(self) -> object:
        """As in a rule file."""
        return {"record": "full"}


PASS: Final = Pass()
ABSTAIN: Final = Abstain()

Acting = Pass | Answer | Discard | Hangup | Tarpit | Redirect | Rewrite | EditHeader | Quarantine | Tag | Record
Decision = Abstain | Acting


def deeds(name: str, returned: object, subject: Subject) -> tuple[rules.Deed, ...]:
    """The acts that a function decided on, in their order; none if it abstained.

    Args:
        name: the function's, for messages.
        returned: a decision, or a list or tuple of them.
        subject: what it was asked about.

    Raises:
        TypeError: it is no decision.
        ValueError: it is one that makes no sense there, or says nothing that could be told.
    """
    many: Sequence[object] = returned if isinstance(returned, list | tuple) else (returned,)
    for one in many:
        if not isinstance(one, Decision):
            raise TypeError(f"{name} returned {_shown(one)}: not a decision such as PASS, ABSTAIN or Answer(…)")
    try:
        acts = [one.then() for one in many if isinstance(one, Acting)]
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name} returned {_shown(returned)}: {error}") from None
    if not acts and many:
        return ()
    problems: list[Problem] = []
    found = read_then(Table(_nowhere(), (), {}, problems, ""), acts, [subject])
    if found is None:
        said = problems[0]
        expected = f" (expected {said.expected})" if said.expected else ""
        raise ValueError(f"{name} returned {_shown(returned)}: {said.message}{expected}")
    return found


@lru_cache(maxsize=1)
def _nowhere() -> Positions:
    """The places of what stands in no file."""
    return Positions("", "")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{_shown(value)} is not a string")
    return value


def _literal(value: object) -> str:
    """A text in which nothing is to be filled in."""
    return _text(value).replace("{", "{{")


def _reply(value: object) -> str:
    """The same, of a reply: a function may repeat there what a peer said."""
    return _NOT_PRINTABLE.sub("?", _text(value))[:_LONGEST_REPLY].replace("{", "{{")


def _values(texts: object) -> Any:
    return [_literal(text) for text in texts] if isinstance(texts, list | tuple) else _literal(texts)


def _shown(value: object) -> str:
    said = ascii(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"

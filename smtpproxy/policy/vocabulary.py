"""What a field of the vocabulary is: its type, and since when it is known."""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from smtpproxy.policy.view import View


class Type(Enum):
    """Types, as CEL names them."""

    BOOL = "bool"
    INT = "int"
    STRING = "string"
    STRINGS = "list(string)"
    MAP = "map(string, string)"
    LISTS = "map(string, list(string))"

    __hash__ = object.__hash__


class Known(Enum):
    """At which subjects a field is known; the value says so in words."""

    ALWAYS = "every subject"
    TLS = "every subject but connect"
    HELLO = "every subject but connect, tls and GREETING reply"
    MAIL = "MAIL, and all that follows in a mail"
    RECIPIENTS = "RCPT, and all that follows in a mail"
    RCPT = "RCPT and RCPT reply"
    COMMAND = "every command and every reply"
    REPLY = "every reply"
    LIST = "EHLO reply"
    SIZE = "END reply, attachment, content and transaction"
    HEADER = "header, attachment and content"
    CONTENT = "attachment and content"
    ATTACHMENT = "attachment"
    SIDE = "tls"
    TRANSACTION = "transaction"

    __hash__ = object.__hash__


class Field(NamedTuple):
    """One field.

    Attributes:
        example: a condition that can be used as it stands.
        sentence: what it is.
        get: its value: what `type` says, never None.
        entry: of a map: the value of one key, empty where the map has none.
        fold: of a map: how a key is written in it. Names of header fields are in small letters, those of parameters in
            capitals.
    """

    name: str
    type: Type
    known: Known
    example: str
    sentence: str
    get: Callable[[View], Any]
    entry: Callable[[View, str], Any] | None = None
    fold: Callable[[str], str] = str.lower

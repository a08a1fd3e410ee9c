"""What a registry row is made of.

The columns are those a transparent proxy needs to know of a name before it may let it pass: what may stand behind it
(`argument`, `syntax`), what the octet stream does afterwards (`framing`, `then`, `holds`), where it may stand in a
pipelining group, which extension it belongs to, and what is done with it by default and why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType


class Kind(Enum):
    """Where a name comes from."""

    STANDARD = "standard"  # in RFC 5321
    EXTENSION = "extension"  # in an RFC of its own, or the IANA registry
    VENDOR = "vendor"  # one maker's servers
    HISTORIC = "historic"  # was once in an RFC or a server
    RUMOURED = "rumoured"  # only ever seen in lists of names
    PSEUDO = "pseudo"  # never a verb on the wire: greeting, SASL line, end of data


class Framing(Enum):
    """What the client's next octets are."""

    COMMANDS = "command lines"
    CONTENT = "dot-stuffed content up to CRLF . CRLF"
    CHUNK = "exactly as many octets as announced"
    COUNTED = "exactly as many octets as announced, after the server's go-ahead"
    SASL = "one base64 line"
    TLS = "a TLS handshake"
    GREETING = "command lines, after a new greeting state"
    OPAQUE = "octets that are no longer inspected"
    NOTHING = "nothing: the session is over"

    __hash__ = object.__hash__


class FramingClass(Enum):
    """How a command and its replies are framed, as docs and `explain` name it (docs/commands.md says it in full)."""

    LINE = "line"
    DOT = "dot"
    BDAT = "bdat"
    GO_OCTETS = "go-octets"
    SASL = "sasl"
    TLS = "tls"
    REVERSE = "reverse"
    RESET = "reset"
    TUNNEL = "tunnel"
    NOISE = "noise"
    N_REPLIES = "n-replies"
    UNKNOWN = "unknown"

    __hash__ = object.__hash__


class Pipelining(Enum):
    """Where a command may stand in a pipelining group (RFC 2920 §3.1)."""

    ANY = "any"  # anywhere
    LAST = "last"  # last of its group; harmless elsewhere
    STOP = "stop"  # last, and nothing behind it is parsed before its reply is told


class Default(Enum):
    """What is done when no rule says otherwise."""

    ALLOW = "allow"
    DENY = "deny"  # keyword stripped, verb refused, parameters refused
    TLS = "allow-under-tls"  # as ALLOW on an encrypted client link, as DENY in clear
    TERMINATE = "terminate"  # TLS: ended here on both sides; refused where the proxy can't
    VERIFIED = "allow-if-verified"  # allowed where both links are encrypted and the server is verified
    LIMIT = "limit"  # allowed; the value shown to the client is the smaller of the server's and ours


class Argument(Enum):
    """The grammar of what stands behind the verb: one regular expression each, in `arguments.py`."""

    NONE = "none"  # nothing at all
    HELLO = "hello"  # Domain / address-literal                           RFC 5321 §4.1.1.1
    MAIL = "mail"  # FROM: reverse-path [SP parameters]                   RFC 5321 §4.1.1.2
    RCPT = "rcpt"  # TO: forward-path [SP parameters]                     RFC 5321 §4.1.1.3
    STRING = "string"  # one or more characters                           RFC 5321 §4.1.1.6
    TEXT = "text"  # anything printable, or nothing                       RFC 5321 §4.1.1.9
    CHUNK = "chunk"  # 1*DIGIT [SP LAST]                                  RFC 3030 §2
    AUTH = "auth"  # mechanism [SP initial-response]                      RFC 4954 §4
    NODE = "node"  # ["@" / "#"] domain                                   RFC 1985 §5
    DOMAINS = "domains"  # [domain *("," domain)]                         RFC 2645 §5.2.1
    URI = "uri"  # absolute-URI [SP LAST]                                 RFC 4468 §3.2
    COUNTED = "counted"  # length SP number                               XEXCH50
    ATTRIBUTES = "attributes"  # 1*(name "=" xtext)                       XCLIENT, XFORWARD
    SECRET = "secret"  # noqa: S105 - anything printable, never recorded: WIZ; a name, no password

    __hash__ = object.__hash__


_NO_THEN: Mapping[int, Framing] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """One verb. `name` is in capitals; `then` maps a reply code to what the client's next octets are."""

    name: str
    kind: Kind
    argument: Argument
    syntax: str
    framing: FramingClass
    pipelining: Pipelining
    reference: str
    default: Default
    why: str  # one sentence: why this default
    what: str  # one sentence: what it is for
    success: str = ""  # reply codes of success, as text
    failure: str = ""  # reply codes of failure, as text
    then: Mapping[int, Framing] = field(default_factory=lambda: _NO_THEN)
    holds: bool = False  # nothing behind it is parsed before its reply is told
    transaction: bool = False  # begins a mail transaction
    extension: str = ""  # the EHLO keyword it belongs to; "" for the core
    refusal: str = "502 5.5.1 Command not implemented"  # what a refused client is told
    risk: str = ""
    confidence: str = "A"  # A: RFC or source read; B: one secondary source; U: name seen, semantics not documented


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """One EHLO keyword: what it may carry in the EHLO reply and what the client may then use."""

    keyword: str
    kind: Kind
    syntax: str  # of the parameters in the EHLO reply
    reference: str
    default: Default
    why: str
    what: str
    verbs: tuple[str, ...] = ()
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # keywords without which it makes no sense
    framing: FramingClass = FramingClass.LINE
    risk: str = ""
    confidence: str = "A"


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """One MAIL or RCPT parameter (RFC 5321 §4.1.1.11)."""

    keyword: str
    on: tuple[str, ...]  # "MAIL", "RCPT"
    syntax: str
    value: str  # a regular expression, in full, of the value; "" where no value may stand
    extensions: tuple[str, ...]  # any one of these keywords permits it
    reference: str
    what: str
    optional_value: bool = False  # XVERP and XVERP=+=
    increment: int = 0  # octets it adds to the longest command line
    secret: bool = False  # the value is never recorded
    risk: str = ""
    refusal: str = ""  # where its extension was not offered, if there is a reply of its own; else 555


@dataclass(frozen=True, slots=True, eq=False)
class ReplyCode:
    """One reply code (RFC 5321 §4.2.3 and the extensions' own)."""

    code: int
    meaning: str
    verbs: str  # where it occurs, in words
    reference: str
    note: str = ""

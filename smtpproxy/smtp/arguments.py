"""What stands behind a verb: one grammar, one type of value and one way back to octets for each `rows.Argument`.

Rules of this file:

- `parse_argument` first tries the strict grammar, the RFC's own; what matches goes on byte for byte.
- What matches only with a *named leniency* has a canonical form, and only that is sent on, so that the proxy and the
  server can't read it differently. The names are stable: they stand in records and in rules.
- Everything else is an `ArgumentError`, which knows the reply. Nothing is guessed.
- The values themselves are in `values.py`, the leniencies in `leniencies.py`; both are had from here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from smtpproxy.smtp import abnf, leniencies
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument
from smtpproxy.smtp.values import (
    NOTHING,
    Attributes,
    Auth,
    Chunk,
    Counted,
    Domains,
    Hello,
    Hidden,
    Mail,
    Node,
    Nothing,
    Parameter,
    Path,
    Rcpt,
    Secret,
    Text,
    Uri,
    Value,
    unquoted,
)

__all__ = [
    "NOTHING",
    "ArgumentError",
    "Attributes",
    "Auth",
    "Chunk",
    "Counted",
    "Domains",
    "Hello",
    "Hidden",
    "Mail",
    "Node",
    "Nothing",
    "Parameter",
    "Path",
    "Rcpt",
    "Secret",
    "Text",
    "Uri",
    "Value",
    "parse_argument",
]

# RFC 5321 §4.5.3.1: octets of a domain, and of a path with its punctuation. A local-part there has 64, but return paths
# made by SRS and VERP are often longer, servers take them, and a mail must not be lost between the two.
MAX_LOCAL_PART = 200
MAX_DOMAIN = 255
MAX_PATH = 256

# RFC 3030 has no bound. A server that counts in 32 bits reads a larger number as a smaller one, then content as
# commands.
MAX_CHUNK = 2**31 - 1

BAD_SENDER = "501 5.1.7 Bad sender address syntax"
BAD_RECIPIENT = "501 5.1.3 Bad recipient address syntax"
BAD_ARGUMENT = "501 5.5.4 Syntax error in parameters or arguments"
DUPLICATE = "501 5.5.4 Duplicate parameter"
BAD_VALUE = "501 5.5.4 Bad value for %s"
BAD_BASE64 = "501 5.5.2 Cannot decode base64"


class ArgumentError(ValueError):
    """The argument matches no grammar, strict or lenient: `why` for the record, `reply` for the client."""

    def __init__(self, why: str, reply: str = BAD_ARGUMENT) -> None:
        super().__init__(why)
        self.why = why
        self.reply = reply


# --- the strict grammar ---------------------------------------------------------------------------------------------

_Match: TypeAlias = re.Match[bytes]

# Makes a NamedTuple without the Python function that stands before tuple.__new__ in one: a third of the time of a RCPT.
_new: Any = tuple.__new__


def _whole(*pieces: bytes) -> Callable[[bytes], _Match | None]:
    return re.compile(b"".join(pieces)).fullmatch


_LOCAL_PART = _whole(abnf.LOCAL_PART)
_HOST = _whole(abnf.DOMAIN, rb"|", abnf.ADDRESS_LITERAL)
_ESMTP_PARAM = _whole(abnf.ESMTP_PARAM)

# A parameter as far as its end; which keywords there are and what may be their values is looked up.
_ITEM = rb"(?:[!-~]++|" + abnf.UTF8_NON_ASCII + rb")+"
_ITEMS = rb"(?: (" + _ITEM + rb"(?: " + _ITEM + rb")*))?"
_ROUTE = rb"(?:" + abnf.SOURCE_ROUTE + rb":)?"
_LOCAL = rb"(" + abnf.LOCAL_PART + rb")"
_AT_HOST = rb"@(" + abnf.DOMAIN + rb"|" + abnf.ADDRESS_LITERAL + rb")"
_AT_HOST_OR_POSTMASTER = rb"(?:" + _AT_HOST + rb"|(?<=:<(?i:Postmaster)))"
_MAIL = _whole(rb"(?i:FROM):<(?:", _ROUTE, _LOCAL, _AT_HOST, rb")?>", _ITEMS)
_RCPT = _whole(rb"(?i:TO):<", _ROUTE, _LOCAL, _AT_HOST_OR_POSTMASTER, rb">", _ITEMS)

_QUOTE = ord('"')

# What nearly every client sends, in half the time: the same without UTF-8, quotes, routes and literals.
_ASCII_DOT_STRING = abnf.ATEXT + rb"++(?:\." + abnf.ATEXT + rb"++)*"
_ASCII_MAILBOX = rb"(" + _ASCII_DOT_STRING + rb")@(" + abnf.DOMAIN_ASCII + rb")"
_ASCII_ITEMS = rb"(?: ([ -~]++))?"
_PLAIN_MAIL = _whole(rb"(?i:FROM):<(?:", _ASCII_MAILBOX, rb")?>", _ASCII_ITEMS)
_PLAIN_RCPT = _whole(rb"(?i:TO):<", _ASCII_MAILBOX, rb">", _ASCII_ITEMS)

# What real clients send besides: dots anywhere in a local-part; underscores, and hyphens anywhere, in a domain.
_LOOSE_LOCAL = rb"(" + abnf.QUOTED_STRING + rb"|(?:\.|" + abnf.ATEXT + rb"|" + abnf.UTF8_NON_ASCII + rb")+)"
_LOOSE_LABEL = rb"(?:[A-Za-z0-9_-]++|" + abnf.UTF8_NON_ASCII + rb")+"
_LOOSE_AT_HOST = rb"@(" + _LOOSE_LABEL + rb"(?:\." + _LOOSE_LABEL + rb")*|" + abnf.ADDRESS_LITERAL + rb")"
_LOOSE_MAIL = _whole(rb"(?i:FROM):<", _ROUTE, _LOOSE_LOCAL, _LOOSE_AT_HOST, rb">", _ITEMS)
_LOOSE_RCPT = _whole(rb"(?i:TO):<", _ROUTE, _LOOSE_LOCAL, _LOOSE_AT_HOST, rb">", _ITEMS)
_LOOSE_HELLO = _whole(rb"[!-;=?-~]{1,%d}" % MAX_DOMAIN)

_HELLO = _whole(abnf.DOMAIN_ASCII, rb"|", abnf.ADDRESS_LITERAL)
_TEXT = _whole(rb"(?! )", abnf.TEXT, rb"(?<! )")
_CHUNK = _whole(rb"(", abnf.NUMBER, rb")( LAST)?")
_AUTH = _whole(rb"(", abnf.SASL_MECHANISM, rb")(?: (=|", abnf.BASE64, rb"))?")
_NODE = _whole(abnf.NODE)
_DOMAINS = _whole(rb"(?:", abnf.DOMAINS, rb")?")
_URI = _whole(rb"(", abnf.ABSOLUTE_URI, rb")( LAST)?")
_COUNTED = _whole(rb"(", abnf.NUMBER, rb") (", abnf.NUMBER, rb")")
_ATTRIBUTE = abnf.ESMTP_KEYWORD + rb"=" + abnf.XTEXT
_ATTRIBUTES = _whole(_ATTRIBUTE, rb"(?: ", _ATTRIBUTE, rb")*")


class _Row(NamedTuple):
    """A parameter's row, ready for use."""

    value: Callable[[bytes], _Match | None] | None  # None where no value may stand
    optional: bool
    secret: bool


_Rows: TypeAlias = dict[bytes, _Row]


def _rows(verb: bytes) -> _Rows:
    """The parameters of a verb, their values' expressions compiled."""
    return {
        keyword: _Row(
            re.compile(row.value.encode("ascii"), re.IGNORECASE).fullmatch if row.value else None,
            row.optional_value,
            row.secret,
        )
        for (on, keyword), row in PARAMETERS.items()
        if on == verb
    }


# A secret is one on the wrong verb too.
_SECRET_KEYWORDS = frozenset({keyword for (_, keyword), row in PARAMETERS.items() if row.secret})


def _parameter(rows: _Rows, item: bytes) -> Parameter:
    """One parameter. One whose keyword has no row is the session's to refuse."""
    keyword, equals, value = item.partition(b"=")
    row = rows.get(keyword)
    if row is None:
        keyword = keyword.upper()
        row = rows.get(keyword)
    if row is None:
        if not _ESMTP_PARAM(item):
            raise ArgumentError("not a parameter")
        hidden = keyword in _SECRET_KEYWORDS
        return Parameter(keyword, (Secret(value) if hidden else value) if equals else None)
    matches, optional, secret = row
    if equals:
        if matches is None or not matches(value):
            raise ArgumentError(f"a bad value of {keyword.decode()}", BAD_VALUE % keyword.decode())
        return _new(Parameter, (keyword, Secret(value) if secret else value))  # type: ignore[no-any-return]
    if matches is not None and not optional:
        raise ArgumentError(f"no value of {keyword.decode()}", BAD_VALUE % keyword.decode())
    return Parameter(keyword, None)


def _parameters(rows: _Rows, common: Mapping[bytes, Parameter], items: bytes) -> tuple[Parameter, ...] | None:
    """Parameters with one SP between them; None where a blank stands too much."""
    found: dict[bytes, Parameter] = {}
    for item in items.split(b" "):
        parameter = common.get(item)
        if parameter is None:
            if not item:
                return None
            parameter = _parameter(rows, item)
        if parameter[0] in found:
            raise ArgumentError("a parameter twice", DUPLICATE)
        found[parameter[0]] = parameter
    return tuple(found.values())


_MAIL_ROWS = _rows(b"MAIL")
_RCPT_ROWS = _rows(b"RCPT")

# Parameters that are written alike by everybody, parsed beforehand: half the time of a MAIL goes into its parameters.
_MAIL_COMMON = {
    item: _parameter(_MAIL_ROWS, item)
    for item in (b"BODY=8BITMIME", b"BODY=7BIT", b"BODY=BINARYMIME", b"SMTPUTF8", b"RET=HDRS", b"RET=FULL")
}
_RCPT_COMMON = {
    item: _parameter(_RCPT_ROWS, item)
    for item in (b"NOTIFY=NEVER", b"NOTIFY=FAILURE", b"NOTIFY=FAILURE,DELAY", b"NOTIFY=SUCCESS,FAILURE,DELAY")
}


def _path(match: _Match, reply: str) -> Path:
    """A path that may be empty, quoted or long: as it was meant, and no longer than it may be."""
    local, domain = match[1] or b"", match[2] or b""
    if local.startswith(b'"'):
        local = unquoted(local)
    length = max(match.end(1), match.end(2)) + 1 - match.string.index(b"<")
    if len(local) > MAX_LOCAL_PART or len(domain) > MAX_DOMAIN or length > MAX_PATH:
        raise ArgumentError("a path, local-part or domain longer than it may be", reply)
    return Path(local, domain)


def _mail(text: bytes, grammar: Callable[[bytes], _Match | None] = _MAIL) -> Value | None:
    if not (match := _PLAIN_MAIL(text)) and not (match := grammar(text)):
        return None
    local, domain, items = match.groups()
    if local and len(text) <= MAX_LOCAL_PART and local[0] != _QUOTE:
        path = _new(Path, (local, domain))
    else:
        path = _path(match, BAD_SENDER)
    parameters = _parameters(_MAIL_ROWS, _MAIL_COMMON, items) if items else ()
    return None if parameters is None else _new(Mail, (path, parameters))


def _rcpt(text: bytes, grammar: Callable[[bytes], _Match | None] = _RCPT) -> Value | None:
    if not (match := _PLAIN_RCPT(text)) and not (match := grammar(text)):
        return None
    local, domain, items = match.groups()
    if local and len(text) <= MAX_LOCAL_PART and local[0] != _QUOTE:
        path = _new(Path, (local, domain or b""))
    else:
        path = _path(match, BAD_RECIPIENT)
    parameters = _parameters(_RCPT_ROWS, _RCPT_COMMON, items) if items else ()
    return None if parameters is None else _new(Rcpt, (path, parameters))


def _none(text: bytes) -> Value | None:
    return None if text else NOTHING


def _hello(text: bytes) -> Value | None:
    return Hello(text) if len(text) <= MAX_DOMAIN and _HELLO(text) else None


def _text(text: bytes) -> Value | None:
    return Text(text) if not text or _TEXT(text) else None


def _string(text: bytes) -> Value | None:
    return Text(text) if _TEXT(text) else None


def _hidden(text: bytes) -> Value | None:
    return Hidden(Secret(text)) if not text or _TEXT(text) else None


def _chunk(text: bytes) -> Value | None:
    if not (match := _CHUNK(text)):
        return None
    if (size := int(match[1])) > MAX_CHUNK:
        raise ArgumentError("a chunk larger than any server counts")
    return Chunk(size, match[2] is not None)


def _auth(text: bytes) -> Value | None:
    if not (match := _AUTH(text)):
        return None
    return Auth(match[1].upper(), None if match[2] is None else Secret(match[2]))


def _node(text: bytes) -> Value | None:
    return Node(text) if _NODE(text) else None


def _domains(text: bytes) -> Value | None:
    return Domains(tuple(text.split(b",")) if text else ()) if _DOMAINS(text) else None


def _uri(text: bytes) -> Value | None:
    return Uri(Secret(match[1]), match[2] is not None) if (match := _URI(text)) else None


def _counted(text: bytes) -> Value | None:
    if not (match := _COUNTED(text)):
        return None
    if (size := int(match[1])) > MAX_CHUNK:  # MS03-046: a length that overflows
        raise ArgumentError("more octets than any server counts")
    return Counted(size, int(match[2]))


def _attributes(text: bytes) -> Value | None:
    if not _ATTRIBUTES(text):
        return None
    pairs = [item.partition(b"=") for item in text.split(b" ")]
    return Attributes(tuple((name.upper(), value) for name, _, value in pairs))


# The value, or None where the text is not in the strict grammar (an ArgumentError where no leniency could help).
STRICT: Mapping[Argument, Callable[[bytes], Value | None]] = {
    Argument.NONE: _none,
    Argument.HELLO: _hello,
    Argument.MAIL: _mail,
    Argument.RCPT: _rcpt,
    Argument.STRING: _string,
    Argument.TEXT: _text,
    Argument.CHUNK: _chunk,
    Argument.AUTH: _auth,
    Argument.NODE: _node,
    Argument.DOMAINS: _domains,
    Argument.URI: _uri,
    Argument.COUNTED: _counted,
    Argument.ATTRIBUTES: _attributes,
    Argument.SECRET: _hidden,
}


# --- what everybody calls -------------------------------------------------------------------------------------------


def parse_argument(kind: Argument, text: bytes) -> tuple[Value, bytes | None, tuple[str, ...]]:
    """The value of what stands behind the verb and one SP; None, or its canonical form; the leniencies it took."""
    value = STRICT[kind](text)
    if value is not None:
        return value, None, ()
    plain, names = leniencies.canonical(kind, text)
    value = STRICT[kind](plain) if names else None
    if value is None:
        value, odd = _odd(kind, plain)
        names += odd
    if value is None:
        raise _error(kind, plain)
    return value, plain, names


def _odd(kind: Argument, text: bytes) -> tuple[Value | None, tuple[str, ...]]:
    """The value by the loose grammars, whose octets go on as they came."""
    if kind is Argument.HELLO:
        return (Hello(text), (leniencies.ODD_HELLO,)) if _LOOSE_HELLO(text) else (None, ())
    if kind is Argument.MAIL:
        value, match = _mail(text, _LOOSE_MAIL), _LOOSE_MAIL(text)
    elif kind is Argument.RCPT:
        value, match = _rcpt(text, _LOOSE_RCPT), _LOOSE_RCPT(text)
    else:
        return None, ()
    if value is None or match is None:
        return None, ()
    names = () if _LOCAL_PART(match[1]) else (leniencies.ODD_LOCAL_PART,)
    return value, names if _HOST(match[2]) else (*names, leniencies.ODD_DOMAIN)


_PATHS = {
    Argument.MAIL: (
        re.compile(rb"(?i:FROM):").match,
        re.compile(rb"[^:]+:<(?:" + _ROUTE + _LOOSE_LOCAL + _LOOSE_AT_HOST + rb")?>").match,
        BAD_SENDER,
    ),
    Argument.RCPT: (
        re.compile(rb"(?i:TO):").match,
        re.compile(rb"[^:]+:<" + _ROUTE + _LOOSE_LOCAL + _LOOSE_AT_HOST + rb">").match,
        BAD_RECIPIENT,
    ),
}


def _error(kind: Argument, text: bytes) -> ArgumentError:
    """What to say of an argument that no grammar has."""
    if not text:
        return ArgumentError("no argument")
    if kind is Argument.NONE:
        return ArgumentError("an argument where none belongs")
    if kind is Argument.AUTH:
        return ArgumentError("no mechanism, or no base64 behind it", BAD_BASE64 if b" " in text else BAD_ARGUMENT)
    if kind in _PATHS:
        label, path, reply = _PATHS[kind]
        if not label(text):
            return ArgumentError("no FROM: or TO:")
        return ArgumentError("no parameters behind the path") if path(text) else ArgumentError("not a path", reply)
    return ArgumentError("not in the grammar of the verb")

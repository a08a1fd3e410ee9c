"""What the registries know of one name, told to a person (`smtpproxy explain NAME`) or to a program (`--json`).

A name may be several things at once: AUTH is a verb, a keyword and a parameter of MAIL. Each is a `Part`, made from
its row, and a part holds its facts in the order they are told. Text and JSON are two renderings of the same parts, so
they can't disagree.

The words for framing classes, places in a group, defaults and so on stand here once; `docgen` uses them for the
legend of docs/commands.md.
"""

import difflib
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from smtpproxy.smtp.registry.extensions import EXTENSIONS
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.replycodes import REPLY_CODES
from smtpproxy.smtp.registry.rows import (
    Argument,
    Default,
    Extension,
    Framing,
    FramingClass,
    Kind,
    Parameter,
    Pipelining,
    ReplyCode,
    Verb,
)
from smtpproxy.smtp.registry.verbs import END, GREETING, OCTETS, SASL, UNKNOWN, VERBS


class Term(NamedTuple):
    """A value with the words that say what it means: a program is told the value, a person both."""

    value: str | int | bool
    words: str


Fact = str | Term | list[str] | dict[str, str]

PSEUDO_VERBS: dict[str, Verb] = {verb.name: verb for verb in (GREETING, SASL, END, OCTETS, UNKNOWN)}

# What the client sends next, and what the server.
FRAMING_WORDS: dict[FramingClass, tuple[str, str]] = {
    FramingClass.LINE: (
        "nothing but the line itself; command lines follow",
        "one reply, of one or more lines",
    ),
    FramingClass.DOT: (
        "after 354 dot-stuffed lines up to CRLF . CRLF; after any other code command lines",
        "354, and one reply more after end of data",
    ),
    FramingClass.BDAT: (
        "exactly the octets announced, right behind the line, without waiting and without dot-stuffing",
        "one reply a chunk",
    ),
    FramingClass.GO_OCTETS: (
        "after 354 exactly the octets announced, with nothing to end them; after any other code command lines",
        "354, and one reply more after the octets",
    ),
    FramingClass.SASL: (
        "after each 334 one base64 line, or * to give up",
        "334 as often as it needs, then 235 or a refusal",
    ),
    FramingClass.TLS: (
        "after 220 a TLS handshake, and everything known of the session is forgotten",
        "220, then TLS",
    ),
    FramingClass.REVERSE: (
        "after 250 the client is the server: it greets and answers commands",
        "250, then the server is the client: it sends commands",
    ),
    FramingClass.RESET: (
        "command lines; after 220 the session begins anew, as if just greeted",
        "220, a new greeting",
    ),
    FramingClass.TUNNEL: (
        "after success octets of a session with another server",
        "a reply, then what the other server says",
    ),
    FramingClass.NOISE: (
        "nothing but the line itself; command lines follow",
        "one reply, and later lines with other codes (050) before the replies to other commands",
    ),
    FramingClass.N_REPLIES: (
        "nothing but the line itself; command lines follow",
        "one reply, and later one reply for each accepted recipient after end of data",
    ),
    FramingClass.UNKNOWN: (
        "not documented, so nothing behind it is parsed before its reply is told",
        "not documented",
    ),
}

PIPELINING_WORDS: dict[Pipelining, str] = {
    Pipelining.ANY: "may stand anywhere in a pipelining group",
    Pipelining.LAST: "should be the last of its pipelining group",
    Pipelining.STOP: "must be the last of its pipelining group, because its reply decides what the next octets are",
}

HOLDS_WORDS: dict[bool, str] = {
    True: "nothing behind it is parsed before its reply is told",
    False: "the commands behind it are parsed at once",
}

DEFAULT_WORDS: dict[Default, str] = {
    Default.ALLOW: "let through",
    Default.DENY: "the keyword is taken out of the EHLO reply, the verb and the parameters are refused",
    Default.TLS: "let through on an encrypted client link, denied in clear",
    Default.TERMINATE: "TLS is ended at the proxy on both links, as the listener's tls table says",
    Default.VERIFIED: "let through where both links are encrypted and the server is verified, else denied",
    Default.LIMIT: "let through; the client is shown the smaller of the server's value and the proxy's",
}

KIND_WORDS: dict[Kind, str] = {
    Kind.STANDARD: "RFC 5321",
    Kind.EXTENSION: "an extension with a document of its own",
    Kind.VENDOR: "one maker's servers",
    Kind.HISTORIC: "once in an RFC or a server, now out of use",
    Kind.RUMOURED: "known from lists of names only",
    Kind.PSEUDO: "never a verb on the wire",
}

CONFIDENCE_WORDS: dict[str, str] = {
    "A": "from an RFC, the maker's document or the source",
    "B": "from one secondary source",
    "U": "the name is known, its meaning is not documented",
}

FIRST_DIGIT_WORDS: dict[int, str] = {
    2: "success: what was asked is done",
    3: "more to come: the client is to go on with what it announced",
    4: "refused for now: the same may succeed later",
    5: "refused for good: the same will be refused again",
}

_SECOND_DIGIT_WORDS: dict[int, str] = {
    0: "syntax",
    1: "information",
    2: "the connection",
    5: "the mail system",
}

_SECRET_ARGUMENTS = frozenset({Argument.AUTH, Argument.SECRET, Argument.URI})
_NO_REPLY_CODE = "not a reply code of SMTP; a server that sends one breaks the protocol"
_CODE = re.compile(r"[0-9]{3}")
_VIOLATION = "nothing: a violation, and the session is closed"
_LABEL_WIDTH = 16
_WIDTH = 100


class UnknownName(Exception):  # noqa: N818 - it is named for what is unknown
    """No registry knows the name; `nearest` holds the names most like it, the nearest first."""

    def __init__(
        self, name: str, nearest: tuple[str, ...], what: str = "a verb, keyword, parameter or reply code"
    ) -> None:
        super().__init__(f"{name}: not {what} that smtpproxy knows")
        self.name = name
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class Part:
    """One thing a name is. `kind` says what; `facts` maps labels to facts, in the order they are told."""

    kind: str
    facts: dict[str, Fact]


def explain(name: str) -> str:
    """All that is known of `name`, for a person."""
    return text_of(*_parts(name))


def explain_json(name: str) -> dict[str, object]:
    """All that is known of `name`, for a program: the same facts as in the text."""
    return json_of(*_parts(name))


def text_of(name: str, parts: Iterable[Part]) -> str:
    """What a name is, for a person."""
    return "\n\n".join(_text(name, part) for part in parts) + "\n"


def json_of(name: str, parts: Iterable[Part]) -> dict[str, object]:
    """What a name is, for a program."""
    return {"name": name, "parts": [{"kind": part.kind} | _values(part.facts) for part in parts]}


def names() -> list[tuple[str, str]]:
    """Every name that can be explained, with what it is: reply codes first, then the names by alphabet."""
    kinds: dict[str, list[str]] = {f"{code:03d}": ["reply code"] for code in sorted(REPLY_CODES)}
    words = {*VERBS, *EXTENSIONS, *(keyword for _, keyword in PARAMETERS)}
    for name in sorted({*(word.decode("ascii") for word in words), *PSEUDO_VERBS}):
        kinds[name] = [part.kind for part in _word_parts(name)]
    return [(name, ", ".join(of)) for name, of in kinds.items()]


def _parts(name: str) -> tuple[str, list[Part]]:
    """The name as the registries spell it, and everything it is. `MAIL FROM:<a@b>` and `AUTH=LOGIN` are read up to
    the verb or keyword, so that a line from a log can be asked as it stands."""
    key = re.split(r"[\s:=]", name.strip(), maxsplit=1)[0]
    if not key.isascii():
        raise UnknownName(name, ())
    key = key.upper()
    if _CODE.fullmatch(key):
        return key, [_reply_code(int(key))]
    parts = _word_parts(key)
    if not parts:
        known = [known for known, _ in names()]
        raise UnknownName(name, tuple(difflib.get_close_matches(key, known, n=3)))
    return key, parts


def _word_parts(name: str) -> list[Part]:
    key = name.encode("ascii")
    parts: list[Part] = []
    if name in PSEUDO_VERBS:
        parts.append(_verb(PSEUDO_VERBS[name]))
    if key in VERBS:
        parts.append(_verb(VERBS[key]))
    if key in EXTENSIONS:
        parts.append(_extension(EXTENSIONS[key]))
    parts += [_parameter(verb, PARAMETERS[verb, key]) for verb in (b"MAIL", b"RCPT") if (verb, key) in PARAMETERS]
    return parts


def _verb(row: Verb) -> Part:
    client, server = FRAMING_WORDS[row.framing]
    facts: dict[str, Fact] = {"what": row.what, "grammar": row.syntax}
    if row.success:
        facts["success"] = row.success
    if row.failure:
        facts["failure"] = row.failure
    facts |= {
        "framing class": row.framing.value,
        "client sends": client,
        "server sends": server,
        "reply leads to": _leads_to(row),
        "pipelining": Term(row.pipelining.value, PIPELINING_WORDS[row.pipelining]),
        "holds": Term(row.holds, HOLDS_WORDS[row.holds]),
    }
    if row.transaction:
        facts["transaction"] = Term(True, "begins a mail transaction")
    if row.argument in _SECRET_ARGUMENTS:
        facts["recorded"] = Term(False, "the argument is a secret")
    if row.extension:
        facts["belongs to"] = [row.extension]
    elif row.name.encode("ascii") in EXTENSIONS:
        facts["announced by"] = [row.name]
    facts |= _default(row.default, row.why)
    facts["refused with"] = row.refusal
    facts |= _source(row.kind, row.reference, row.confidence, row.risk)
    return Part("pseudo-verb" if row.kind is Kind.PSEUDO else "verb", facts)


def _leads_to(row: Verb) -> dict[str, str]:
    """What the client's next octets are after each reply; invariant I9 says which replies are violations."""
    if row.framing is FramingClass.BDAT:
        return {"any": "command lines behind the chunk, whatever the reply"}
    leads = {str(code): framing.value for code, framing in row.then.items()}
    if row.framing is FramingClass.DOT:
        leads["any 2yz"] = _VIOLATION
    if not any(300 <= code <= 399 for code in row.then):
        leads["any 3yz"] = _VIOLATION
    leads["any other"] = Framing.COMMANDS.value
    return leads


def _extension(row: Extension) -> Part:
    facts: dict[str, Fact] = {"what": row.what, "grammar": f"{row.keyword} {row.syntax}".rstrip()}
    for label, of in (
        ("verbs", row.verbs),
        ("MAIL parameters", row.mail_parameters),
        ("RCPT parameters", row.rcpt_parameters),
        ("needs", row.needs),
    ):
        if of:
            facts[label] = list(of)
    if row.framing is not FramingClass.LINE:
        client, server = FRAMING_WORDS[row.framing]
        facts |= {"framing class": row.framing.value, "client sends": client, "server sends": server}
    else:
        facts["framing class"] = row.framing.value
    facts |= _default(row.default, row.why)
    facts |= _source(row.kind, row.reference, row.confidence, row.risk)
    return Part("keyword", facts)


def _parameter(verb: bytes, row: Parameter) -> Part:
    extension = EXTENSIONS[row.extensions[0].encode("ascii")]
    facts: dict[str, Fact] = {
        "what": row.what,
        "grammar": row.syntax,
        "belongs to": list(row.extensions),
        "longer line": Term(row.increment, f"octets it adds to the longest line of {verb.decode('ascii')}"),
    }
    if row.secret:
        facts["recorded"] = Term(False, "the value is a secret")
    facts |= _default(extension.default, extension.why)
    facts["reference"] = row.reference
    if row.risk:
        facts["risk"] = row.risk
    return Part(f"{verb.decode('ascii')} parameter", facts)


def _reply_code(code: int) -> Part:
    row = REPLY_CODES.get(code)
    first, second = divmod(code // 10, 10)
    digit = FIRST_DIGIT_WORDS.get(first, _NO_REPLY_CODE)
    if row is None:
        row = ReplyCode(code, "Not in the table, so its first digit decides.", "", "RFC 5321 §4.2.1, §4.3.2")
    facts: dict[str, Fact] = {"what": row.meaning, "first digit": Term(first, digit)}
    if first in FIRST_DIGIT_WORDS and second in _SECOND_DIGIT_WORDS:
        facts["second digit"] = Term(second, f"about {_SECOND_DIGIT_WORDS[second]}")
    if row.verbs:
        facts["occurs in"] = row.verbs
    facts["reference"] = row.reference
    if row.note:
        facts["note"] = row.note
    return Part("reply code", facts)


def _default(default: Default, why: str) -> dict[str, Fact]:
    return {"default": Term(default.value, DEFAULT_WORDS[default]), "why": why}


def _source(kind: Kind, reference: str, confidence: str, risk: str) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"risk": risk} if risk else {}
    return facts | {
        "origin": Term(kind.value, KIND_WORDS[kind]),
        "reference": reference,
        "confidence": Term(confidence, CONFIDENCE_WORDS[confidence]),
    }


def _text(key: str, part: Part) -> str:
    lines = [f"{key} ({part.kind})"]
    for label, fact in part.facts.items():
        first = f"  {label:<{_LABEL_WIDTH}}"
        for line in _words(fact):
            lines += textwrap.wrap(
                line,
                _WIDTH,
                initial_indent=first,
                subsequent_indent=" " * (_LABEL_WIDTH + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
            first = " " * (_LABEL_WIDTH + 2)
    return "\n".join(lines)


def _words(fact: Fact) -> Iterable[str]:
    """The fact as lines for a person. (A Term is a tuple, a list is not.)"""
    if isinstance(fact, dict):
        return [f"{name} -> {value}" for name, value in fact.items()]
    if isinstance(fact, list):
        return [", ".join(fact)]
    if isinstance(fact, Term):
        value = ("yes" if fact.value else "no") if isinstance(fact.value, bool) else fact.value
        return [f"{value}: {fact.words}"]
    return [fact]


def _values(facts: dict[str, Fact]) -> dict[str, object]:
    """The facts for a program: labels as names, terms as their values."""
    return {
        label.lower().replace(" ", "_"): fact.value if isinstance(fact, Term) else fact for label, fact in facts.items()
    }

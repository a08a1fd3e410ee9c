"""A command: one line of the client's as a value, and the text that stands for it in records.

Rules of this file:

- `parse_command` never raises on what a client sent: a line is a `Command`, or it is `Malformed` and says why.
- A `Command` that is strict is forwarded as it came: `wire` is `line`, the same object. One that took a leniency has a
  `wire` of its own. A `Malformed` has none.
- A verb ends at SP, HT or the end of the line, and is looked up by its octets in capitals; nothing else is the verb.
  But whoever hides a verb behind a blank, a control or an octet above 127 gets a `Malformed` with *that* verb, so that
  a rule on the verb sees it.
- BDAT that can't be read is fatal: how many octets of content follow is then unknown, and content must not be read as
  commands.
- `describe` is the only way from a command to text. It never shows a secret, nor what might be one in a line that
  nobody could parse; and its text has no control characters, whatever the client sent.
"""

import re
from typing import Any, NamedTuple

from smtpproxy.smtp import abnf, leniencies
from smtpproxy.smtp.arguments import BAD_ARGUMENT, STRICT, ArgumentError, parse_argument
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, Verb
from smtpproxy.smtp.registry.verbs import SASL, UNKNOWN, VERBS
from smtpproxy.smtp.values import Mail, Rcpt, Secret, Text, Value

UNREADABLE = "500 5.5.2 Syntax error, command unrecognized"
BAD_CHUNK = "521 5.5.4 Syntax error in BDAT, closing connection"
FOREIGN = "521 5.5.1 This is SMTP"

# First words of other protocols: HTTP, and the PROXY header where none is expected.
FOREIGN_WORDS = frozenset(b"GET POST PUT HEAD CONNECT OPTIONS DELETE TRACE PATCH PROXY".split())

# What a record shows of a line nobody could parse, in characters.
SHOWN = 200


class Command(NamedTuple):
    """A command the grammar has in full."""

    verb: Verb
    argument: Any  # the `Value` that `verb.argument` names; for the pseudo-verb SASL a Secret
    line: bytes  # the exact octets, with CRLF
    wire: bytes  # what may be forwarded
    leniencies: tuple[str, ...]

    @property
    def word(self) -> bytes:
        """The verb as it was written, in capitals: what tells one UNKNOWN from another."""
        return bytes(self.line).split(maxsplit=1)[0].upper()

    def __repr__(self) -> str:
        return f"Command({describe(self)})"

    def __str__(self) -> str:
        return describe(self)


class Malformed(NamedTuple):
    """A line that is no command."""

    verb: Verb  # the verb it names, or would if read with good will; else UNKNOWN
    why: str  # for the record
    reply: str  # for the client
    line: bytes  # the exact octets, with CRLF
    fatal: bool  # nothing can be read behind it

    def __repr__(self) -> str:
        return f"Malformed({describe(self)}: {self.why})"

    def __str__(self) -> str:
        return describe(self)


_new: Any = tuple.__new__

_SECRET_KINDS = frozenset({Argument.AUTH, Argument.SECRET, Argument.URI})

# A verb's octets → its row, its grammar, and whether its lines hold a secret.
_ROWS = {
    word: (verb, STRICT[verb.argument], verb.argument in _SECRET_KINDS)
    for word, verb in VERBS.items()
    if word not in FOREIGN_WORDS
}

_PARTS = re.compile(rb"([ \t]*+)([^ \t]*+)([ \t]?)(.*)", re.DOTALL).fullmatch
_UNKNOWN_WORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*+").fullmatch
_FIRST_WORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*+").search
_JUNK = re.compile(rb"[^!-~]++")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_GLUED_CHUNK = re.compile(rb"BDAT[^A-Za-z]", re.IGNORECASE).match


def parse_command(line: bytes) -> Command | Malformed:
    """The command a line holds. The line ends with CRLF, which its reader has seen to."""
    space = line.find(b" ")
    if space < 0:
        word, text = line[:-2], b""
    else:
        word, text = line[:space], line[space + 1 : -2]
        if not text:
            return _parse_slowly(line)
    row = _ROWS.get(word) or _ROWS.get(word.upper())
    if row is None:
        return _parse_slowly(line)
    verb, strict, secret = row
    try:
        value = strict(text)
    except ArgumentError as error:
        return _malformed(verb, error.why, error.reply, line)
    if value is None:
        return _parse_slowly(line)
    if secret:
        line = Secret(line)
    return _new(Command, (verb, value, line, line, ()))  # type: ignore[no-any-return]


def compose(verb: Verb, argument: Value) -> Command:
    """The command with this argument, for who makes one himself; ValueError where the grammar doesn't have it."""
    text = argument.encode()
    line = verb.name.encode("ascii") + (b" " + text if text else b"") + b"\r\n"
    command = parse_command(line)
    if not isinstance(command, Command) or command.verb is not verb or command.argument != argument:
        raise ValueError(f"not an argument of {verb.name}: {argument!r}")
    return command


def _parse_slowly(line: bytes) -> Command | Malformed:
    """A line that isn't a known verb with a strict argument."""
    before, word, blank, text = _PARTS(line[:-2]).groups()  # type: ignore[union-attr]  # it matches anything
    capitals = word.upper()
    if capitals in FOREIGN_WORDS:
        return _malformed(VERBS.get(capitals, UNKNOWN), f"not SMTP: {capitals.decode()}", FOREIGN, line, fatal=True)
    verb = VERBS.get(capitals) or _hidden_verb(word)
    if not word:
        return _malformed(UNKNOWN, "empty line", UNREADABLE, line)
    if before:
        return _malformed(verb, "leading blank", UNREADABLE, line)
    if not _UNKNOWN_WORD(word):
        return _malformed(verb, "not a verb", UNREADABLE, line)
    if _GLUED_CHUNK(word):
        return _malformed(verb, "not a verb", UNREADABLE, line)
    known = capitals in VERBS
    if _CONTROL(text):
        return _malformed(verb, "control octets", BAD_ARGUMENT if known else UNREADABLE, line)
    try:
        value, canonical, names = parse_argument(verb.argument, text)
    except ArgumentError as error:
        return _malformed(verb, error.why, error.reply if known else UNREADABLE, line)
    if verb is UNKNOWN and _guard(line):
        value = Text(Secret(text if canonical is None else canonical))
        secret = True
    else:
        secret = verb.argument in _SECRET_KINDS
    settled = text if canonical is None else canonical
    tail = b" " + settled if settled else b""
    if blank and not text:
        names = (leniencies.TRAILING_BLANK,)
    elif blank == b"\t" and settled and leniencies.ODD_SEPARATOR not in names:
        names = (leniencies.ODD_SEPARATOR, *names)
    wire = line if line[len(word) : -2] == tail else capitals + tail + b"\r\n"
    if secret:
        same, line = wire is line, Secret(line)
        wire = line if same else Secret(wire)
    return Command(verb, value, line, wire, names)


def _malformed(verb: Verb, why: str, reply: str, line: bytes, *, fatal: bool = False) -> Malformed:
    if verb.argument is Argument.CHUNK:
        reply, fatal = BAD_CHUNK, True
    return Malformed(verb, why, reply, Secret(line) if _guard(line) else line, fatal)


def _hidden_verb(word: bytes) -> Verb:
    """The verb in a word that is none, as a server with good will might read it; UNKNOWN for none."""
    plain = _JUNK.sub(b"", word).upper()
    if _GLUED_CHUNK(plain):
        return VERBS[b"BDAT"]
    first = _FIRST_WORD(word)
    return VERBS.get(plain) or (VERBS.get(first[0].upper()) if first else None) or UNKNOWN


# --- as text --------------------------------------------------------------------------------------------------------


def describe(command: Command | Malformed) -> str:
    """The line for people, without its CRLF; secrets as `<17 octets>`, what can't be printed as an escape."""
    line = bytes(command.line).removesuffix(b"\r\n")
    verb = command.verb
    if isinstance(command, Malformed) or verb is UNKNOWN:
        kept = _guard(line)
        if kept is None:
            text = _printable(line[: 4 * SHOWN])
            return text if len(text) <= SHOWN else text[:SHOWN] + "…"
        text = _printable(line[: min(kept.end(), SHOWN)])
        blank = " " if kept.end() and line[kept.end() :].startswith(b" ") else ""
        rest = len(line) - kept.end() - len(blank)
        return f"{text}{blank}<{rest} octets>" if rest else text
    if verb is SASL:
        return "*" if line == b"*" else f"<{len(line)} octets>"
    argument = command.argument
    if verb.argument is Argument.AUTH:
        mechanism = argument.mechanism
        shown = f"<{len(mechanism)} octets>" if mechanism not in _MECHANISMS and _mixed(line) else mechanism.decode()
        return f"{verb.name} {shown}" + ("" if argument.initial is None else f" {argument.initial}")
    if verb.argument is Argument.URI:
        return f"{verb.name} {argument.uri}" + (" LAST" if argument.last else "")
    if verb.argument is Argument.SECRET:
        return f"{verb.name} {argument.secret}" if argument.secret else verb.name
    return _printable(_without_values(line) if _has_secret_parameter(argument) else line)


def octets_of(command: Command | Malformed) -> bytes:
    """The line as it came, for a transcript; in place of what is secret in it stands how long that is."""
    line = command.line
    if isinstance(line, Secret):
        return str(line).encode()
    if isinstance(command, Command) and _has_secret_parameter(command.argument):
        return _without_values(line)
    return line


def _has_secret_parameter(argument: Any) -> bool:
    return isinstance(argument, (Mail, Rcpt)) and any(isinstance(value, Secret) for _, value in argument.parameters)


def _without_values(line: bytes) -> bytes:
    return _SECRET_PARAMETER(_hide_value, line)


def _printable(octets: bytes) -> str:
    r"""One to one: what isn't printable UTF-8 becomes `\x1b` or ` `, and a backslash two."""
    text = octets.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text])


def _mixed(line: bytes) -> bool:
    """Whether the word behind the verb is in small letters and capitals both, as base64 is."""
    word = line.split()[1]
    return word not in (word.upper(), word.lower())


def _hide_value(match: re.Match[bytes]) -> bytes:
    return match[1] + b"<%d octets>" % len(match[2])


def _spelled(name: str) -> bytes:
    """The name with anything that can't be seen between its letters."""
    return rb"[^!-~]*+".join([re.escape(letter.encode("ascii")) for letter in name])


# Mechanisms that are shown in any case; of the others only those that can't be base64.
_MECHANISMS = frozenset(b"PLAIN LOGIN NTLM GSSAPI EXTERNAL ANONYMOUS XOAUTH2 OAUTHBEARER CRAM-MD5".split())

# Behind these words a line that nobody could parse is hidden; as words of their own, behind two of POP and IMAP too.
_SECRET_PARAMETERS = {row.keyword for row in PARAMETERS.values() if row.secret}
_SECRET_WORDS = sorted(
    {verb.name for verb in VERBS.values() if verb.argument in _SECRET_KINDS} | _SECRET_PARAMETERS,
    key=len,
    reverse=True,
)
_SECRET_PARAMETER = re.compile(
    rb"([ \t](?:" + "|".join(sorted(_SECRET_PARAMETERS)).encode("ascii") + rb")=)([^ \t\r\n]*+)", re.IGNORECASE
).sub
_SPELLED = rb"(?:" + rb"|".join([_spelled(word) for word in _SECRET_WORDS]) + rb")"
_ANY = rb"(?:" + _SPELLED + rb"|PASS|LOGIN)"
_SECRET_FIRST = re.compile(rb"[^A-Za-z0-9]*+" + _SPELLED, re.IGNORECASE).match
_SECRET_WITHIN = re.compile(rb".*?(?<![A-Za-z0-9])" + _ANY + rb"(?![A-Za-z0-9])", re.IGNORECASE | re.DOTALL).match
_UNREADABLE_WORD = re.compile(rb"[ \t]*+[!-~]*+(?=[^ -~\t])").match
_BASE64 = re.compile(abnf.BASE64).fullmatch
_NO_OCTETS = re.compile(rb"").match


def _guard(line: bytes) -> re.Match[bytes] | None:
    """What may be shown of a line that nobody could parse, where something behind it may be a secret.

    That is up to a word that goes before secrets, however it is hidden; up to the first octet of a verb that can't be
    read; and nothing of what looks like a line of a SASL dialogue nobody waits for.
    """
    # Blanks round it and wrong padding make it no less a secret.
    given = line.strip(b" \t\r\n")
    body = given.rstrip(b"=")
    body += b"=" * (-len(body) % 4)
    if len(given) >= 8 and _BASE64(body) and not (body.isalpha() and (body.isupper() or body.islower())):
        return _NO_OCTETS(line)
    return _SECRET_FIRST(line) or _SECRET_WITHIN(line) or _UNREADABLE_WORD(line)

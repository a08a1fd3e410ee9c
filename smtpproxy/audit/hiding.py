"""Keeping the people of one session from being read in what is recorded of it.

    clear                                     pseudonym                         domain-only
    RCPT TO:<alice@example.org> NOTIFY=NEVER  RCPT TO:<~k1.3xq…@~k1.5tz…> NOTI… RCPT TO:<~@example.org> NOTIFY=NEVER
    RCPT TO:<alice @example.org>              RCPT TO:<~ @~.~>                  RCPT TO:<~ @~.~>
    550 5.1.1 alice: user unknown             550 5.1.1 ~k1.3xq…: user unknown  550 5.1.1 ~: user unknown

Commands have a grammar, so what may name somebody is known by its place (`Seen.command`): of an address the local-part
is replaced; of a parameter, by its keyword; what does not follow the grammar, and arguments without one, lose all their
words and keep their shape. What is left of a command is what the registry knows.

Replies have none (`Seen.text`). Whatever looks like a part of an address is taken for it, and what the session called
people before is looked for word by word, because servers repeat it without a domain, in pieces, in a path or a URL:
every word of a local-part is hidden from there on. It is better to hide too much. A reply to AUTH names somebody before
anything else does: of it only the words of a list stay (`Seen.signing_in`).

What must never happen: a local-part of three characters or more in a text that went through here, in a form that any
mail server was seen to write. Time beyond linear for what a stranger wrote. Memory without a bound: names are forgotten
once `MOST_KNOWN` newer ones came.
"""

import re
from collections.abc import Callable
from typing import Final

from smtpproxy.audit.privacy import Pseudonyms
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.values import Path

MOST_KNOWN: Final = 512  # names of people, and octets of them below, of which the newest are always known
MOST_KNOWN_OCTETS: Final = 16_384
SHORTEST: Final = 3  # characters of a word that is looked for
_SHORTEST_NUMBER: Final = 4  # digits: shorter ones are reply codes and parts of enhanced status codes

_ATOM: Final = r"[^\s<>@\"(),:;\[\]\\]"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_DOMAIN: Final = r"\[[^\]\s]*+\]|[^\s<>@\"(),;\[\]\\]+"
_HOST: Final = rf"\[[^\]\s]*+\]|{_ATOM}++"  # of a source route, which a colon ends
_ADDRESS: Final = re.compile(rf"(?P<local>{_QUOTED}|(?<!{_ATOM}){_ATOM}++)@(?:(?P<domain>{_DOMAIN})|(?![^\s>]))")
_ENCODED: Final = re.compile(rf"(?<!{_ATOM})({_ATOM}+?)(%40|\+40|=40)({_ATOM}+)")  # in a URL, xtext, quoted-printable
_ALONE: Final = re.compile(r"<(?!(?:CR|LF|CRLF)>)([^<>@\s]++)>")  # a path without a domain; not of <CR><LF>.<CR><LF>
_RUN: Final = re.compile(rf"{_ATOM}++")
_WORD: Final = re.compile(r"[^\W_]++")
_OURS: Final = re.compile(r"~(?:k[0-9]{1,6}\.[a-z2-7]{12}(?:[a-z2-7]{8})?)?(?![^\W_])")
_HIDDEN_OR_WORD: Final = re.compile(rf"{_OURS.pattern}|<[0-9]+ octets>|{_WORD.pattern}")
_ENDS: Final = ".:!?'"  # of a sentence, behind an address or a name

_NO_COMMAND: Final = re.compile(r"\((?:connect|end of data|octets)\)|<[0-9]+ octets>|\*")  # as lines.words has them
_VERB: Final = re.compile(r"[A-Z0-9-]{1,24}")  # of one that nobody knows; names of people are in small letters, too
_PATH: Final = re.compile(
    rf"(?P<before>(?:FROM|TO):[ \t]*)"
    rf"(?:<(?P<route>(?:@(?:{_HOST}),?)+:)?(?:(?P<local>{_QUOTED}|{_ATOM}++)(?:@(?P<domain>{_DOMAIN}))?)?>"
    rf"|(?P<bare>{_ATOM}++)@(?P<its>{_DOMAIN}))(?=[ \t]|\Z)",
    re.IGNORECASE,
)
_MAILBOX: Final = re.compile(rf"<?(?P<local>{_QUOTED}|{_ATOM}++)@(?P<domain>{_DOMAIN})>?")
_PIECE: Final = re.compile(r"[^\s=]+=<[0-9]+ octets>|\S+")  # NAME=value; that of a secret is its length
_LENGTH: Final = re.compile(r"<[0-9]+ octets>")
_XTEXT: Final = re.compile(r"\+([0-9A-F]{2})|\\x\{([0-9A-Fa-f]{1,6})\}")  # RFC 3461 §4, RFC 6533 §3
_NUMBERS: Final = re.compile(r"(?:[0-9]{1,19}|LAST|ON|OFF|[ \t])*", re.IGNORECASE)
_URI: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/@]*@)?(?P<host>[^/@:;?]+)(?P<rest>.*)", re.DOTALL | re.IGNORECASE
)
_MECHANISM: Final = re.compile(r"[A-Z0-9_-]{1,20}(?: (?:<[0-9]+ octets>|=))?")  # RFC 4954 §4
_QUEUE_ID: Final = re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9.-]{1,64}")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Parameters whose value names nobody, where it has the form that its row of the registry says; and those whose value is
# an address. Attributes of XCLIENT and XFORWARD that are about hosts.
_PLAIN: Final = _set(
    "SIZE BODY SMTPUTF8 RET NOTIFY BY SOLICIT HOLDFOR HOLDUNTIL CONPERM CONNEG MT-PRIORITY RRVS REQUIRETLS PRDR XVERP"
)
_ADDRESSES: Final = _set("AUTH ORCPT SUBMITTER ALT-ADDRESS XORAR XORIGFROM")
_ATTRIBUTES: Final = _set("NAME ADDR PORT PROTO HELO SOURCE DESTADDR DESTPORT")
_UNAVAILABLE: Final = _set("[UNAVAILABLE] [TEMPUNAVAIL]")
_ROWS: Final = {row.keyword: row for row in PARAMETERS.values()}

# What servers say to AUTH of anybody.
_SAID_TO_AUTH: Final = _set(
    "a account accepted again allowed already and any are as attempt attempts auth authenticate authenticated"
    " authentication authorization authorized available bad be been before by cancelled canceled cannot client closing"
    " command completed connection credentials data denied different disabled does due encryption enough error expired"
    " fail failed failure first for from go has have in incorrect insufficient internal invalid is issue it later login"
    " log logged mechanism mechanisms method must no not now of ok on only or passed password permitted please policy"
    " ready rejected required response sasl secure server service smtp started starttls successful succeeded success"
    " support supported system temporarily temporary that the this tls to too transition try type unable unavailable"
    " unknown unrecognized unsupported use user username valid welcome with wrong you your"
)


class Addresses:
    """What a listener's addresses are replaced by.

    Args:
        pseudonyms: made in their place; None: the domain alone stays.
    """

    def __init__(self, pseudonyms: Pseudonyms | None) -> None:
        self._pseudonyms = pseudonyms

    def session(self) -> "Seen":
        """For one session."""
        return Seen(self)

    def local(self, local: str, domain: str) -> str:
        """In the local-part's place."""
        return "~" if self._pseudonyms is None else self._pseudonyms.local(local, domain)

    def domain(self, domain: str) -> str:
        """In the domain's place."""
        return domain if self._pseudonyms is None else self._pseudonyms.domain(domain)

    def address(self, local: str, domain: str) -> str:
        """In an address's place."""
        return f"{self.local(local, domain)}@{self.domain(domain)}" if domain else self.local(local, domain)


class Seen:
    """Replaces the addresses of one session, and remembers what it called people."""

    __slots__ = ("_addresses", "_before", "_known", "_octets")

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._known: dict[str, str] = {}  # a name or a word of one, in small letters → what stands for it
        self._before: dict[str, str] = {}  # the same, of the time before: it goes when `_known` is full again
        self._octets = 0

    # ------------------------------------------------------------------------------------------------ addresses

    def path(self, path: Path) -> str:
        """A reverse-path or forward-path."""
        if not path.local and not path.domain:
            return ""
        return self._address(*(part.decode("utf-8", "backslashreplace") for part in path))

    def identity(self, text: str) -> str:
        """A user name, perhaps an address."""
        local, at, domain = text.rpartition("@")
        return self._address(local, domain) if at else self._address(text, "")

    def message_id(self, text: str) -> str:
        """A Message-ID: its left side often names a person or a machine."""
        local, at, domain = text.strip("<>").rpartition("@")
        if not at:
            local, domain = domain, ""
        return f"<{self._addresses.address(local, domain)}>"

    def _address(self, local: str, domain: str) -> str:
        if local.startswith('"') and local.endswith('"') and len(local) > 1:
            local = re.sub(r"\\(.)", r"\1", local[1:-1], flags=re.DOTALL)
        shown = self._addresses.address(local, domain)
        name = local.casefold()
        if name not in self._known:
            self._remember(name, self._addresses.local(local, domain))
            for word in _WORD.findall(name):
                if word != name:
                    self._remember(word, "~")
            if (its := self._addresses.domain(domain) if domain else "") != domain:
                self._remember(domain.casefold(), its)
        return shown

    def _remember(self, name: str, shown: str) -> None:
        if len(name) < (_SHORTEST_NUMBER if name.isdigit() else SHORTEST) or name in self._known:
            return
        if len(self._known) >= MOST_KNOWN or self._octets >= MOST_KNOWN_OCTETS:
            self._before, self._known, self._octets = self._known, {}, 0
        self._known[name] = shown
        self._octets += len(name)

    def _shown(self, name: str) -> str | None:
        name = name.casefold()
        found = self._known.get(name)
        return self._before.get(name) if found is None else found

    def _name(self, text: str) -> str:
        """What is somebody's name as a whole, with a domain or without."""
        if _OURS.fullmatch(text):
            return text
        found = _MAILBOX.fullmatch(text)
        if found is None:
            return self._address(text.strip("<>"), "")
        return self._again(found["local"], found["domain"])

    def _masked(self, text: str) -> str:
        """Its words hidden, its shape kept."""
        return _HIDDEN_OR_WORD.sub(self._mask, text)

    def _mask(self, found: re.Match[str]) -> str:
        if found[0][0] in "~<":
            return found[0]
        self._remember(found[0].casefold(), "~")
        return "~"

    # ------------------------------------------------------------------------------------------------ commands

    def command(self, text: str) -> str:
        """A command line as `describe` has it, or what stands in a command's place."""
        line = text.rstrip("\r\n")
        if _NO_COMMAND.fullmatch(line):
            return text
        word, blank, argument = line.partition(" ")
        verb = VERBS.get(word.upper().encode())
        if verb is None:
            known = word if _VERB.fullmatch(word) else self._masked(word)
            return f"{known}{blank}{self._masked(argument)}{text[len(line) :]}"
        hide = _HIDE.get(verb.argument, Seen._numbers)
        return f"{word}{blank}{hide(self, argument)}{text[len(line) :]}" if argument else text

    def _with_path(self, argument: str) -> str:
        found = _PATH.match(argument)
        if found is None:
            before, colon, rest = argument.partition(":")
            known = colon and before.upper() in ("FROM", "TO")
            return f"{before}:{self._masked(rest)}" if known else self._masked(argument)
        parameters = _PIECE.sub(self._parameter, argument[found.end() :])
        if found["bare"] is not None:
            return f"{found['before']}{self._address(found['bare'], found['its'])}{parameters}"
        local = found["local"]
        address = "" if local is None else self._again(local, found["domain"] or "")
        return f"{found['before']}<{found['route'] or ''}{address}>{parameters}"

    def _again(self, local: str, domain: str) -> str:
        """One that may be replaced already."""
        if _OURS.fullmatch(local):
            return f"{local}@{domain}" if domain else local
        return self._address(local, domain)

    def _parameter(self, found: re.Match[str]) -> str:
        name, equals, value = found[0].partition("=")
        keyword = name.upper()
        row = _ROWS.get(keyword)
        if row is None:
            return self._masked(found[0])
        if not equals or _LENGTH.fullmatch(value) or (keyword in _PLAIN and re.fullmatch(row.value, value)):
            return found[0]
        if keyword not in _ADDRESSES:
            return f"{name}={self._masked(value)}"
        kind, semicolon, value = value.rpartition(";")
        kind = kind if kind.lower() in ("", "rfc822", "utf-8") else self._masked(kind)
        value = _XTEXT.sub(_character, value)
        return f"{name}={kind}{semicolon}{value if value == '<>' else self._name(value)}"

    def _attributes(self, argument: str) -> str:
        return _PIECE.sub(self._attribute, argument)

    def _attribute(self, found: re.Match[str]) -> str:
        name, equals, value = found[0].partition("=")
        keyword = name.upper()
        if equals and (keyword in _ATTRIBUTES or value.upper() in _UNAVAILABLE):
            return f"{name}={self.text(value)}"
        if keyword == "IDENT" and _QUEUE_ID.fullmatch(value):
            return found[0]
        if keyword in ("LOGIN", "IDENT") and equals:
            return f"{name}={self._name(_XTEXT.sub(_character, value))}"
        return self._masked(found[0])

    def _anybody(self, argument: str) -> str:
        """Of VRFY and its like: all of it names somebody."""
        return self._name(argument.strip())

    def _anything(self, argument: str) -> str:
        """Of HELP it may be a verb."""
        return argument if argument.strip().upper().encode() in VERBS else self._numbers(argument)

    def _numbers(self, argument: str) -> str:
        return argument if _NUMBERS.fullmatch(argument) else self._masked(argument)

    def _mechanism(self, argument: str) -> str:
        return argument if _MECHANISM.fullmatch(argument) else self._masked(argument)

    def _uri(self, argument: str) -> str:
        found = _URI.fullmatch(argument)
        if found is None:
            return self._masked(argument)
        rest, last = found["rest"], ""
        if rest.upper().endswith(" LAST"):
            rest, last = rest[:-5], rest[-5:]
        user = self._masked(found["user"]) if found["user"] else ""
        return f"{found['scheme']}{user}{found['host']}{self._masked(rest)}{last}"

    # -------------------------------------------------------------------------------------------------- replies

    def text(self, text: str) -> str:
        """A reply, or anything else that a peer wrote without a grammar."""
        if "@" in text:
            text = _ADDRESS.sub(self._found, text)
        if "40" in text:
            text = _ENCODED.sub(self._encoded, text)
        if "<" in text:
            text = _ALONE.sub(self._alone, text)
        return _RUN.sub(self._echo, text) if self._known else text

    def signing_in(self, text: str) -> str:
        """A reply to AUTH: nothing is known yet of who it names."""
        return _HIDDEN_OR_WORD.sub(self._said_to_auth, self.text(text))

    def _found(self, found: re.Match[str]) -> str:
        local, domain = found["local"], found["domain"] or ""
        if _OURS.fullmatch(local):
            return found[0]
        before = ""
        if local[:5].upper() == "AUTH=" and len(local) > 5:
            before, local = local[:5], local[5:]
        bare = domain.rstrip(_ENDS)
        shown = self._address(local, bare)
        return f"{before}{shown}{domain[len(bare) :]}" if domain else f"{shown}@"

    def _encoded(self, found: re.Match[str]) -> str:
        local, domain = found[1], found[3]
        head, equals, tail = local.rpartition("=")
        bare = domain.rstrip(_ENDS)
        if equals:  # of a URL: what is before it is hidden as well, if it is no plain word
            head = head if head.isalpha() else "~"
        return f"{head}{equals}{self._address(tail, bare)}{domain[len(bare) :]}"

    def _alone(self, found: re.Match[str]) -> str:
        if _OURS.fullmatch(found[1]):
            return found[0]
        return f"<{self._shown(found[1]) or self._address(found[1], '')}>"

    def _echo(self, found: re.Match[str]) -> str:
        run = found[0]
        if _OURS.fullmatch(run):
            return run
        name = run.rstrip(_ENDS)
        shown = self._shown(name)
        if shown is not None:
            return f"{shown}{run[len(name) :]}"
        return _WORD.sub(lambda word: self._shown(word[0]) or word[0], run)

    def _said_to_auth(self, found: re.Match[str]) -> str:
        word = found[0]
        code = word.isdigit() and len(word) < _SHORTEST_NUMBER
        return word if code or word.lower() in _SAID_TO_AUTH else self._mask(found)


# By the grammar of its argument (registry); of those not named here, numbers stay.
_HIDE: Final[dict[Argument, Callable[[Seen, str], str]]] = {
    Argument.MAIL: Seen._with_path,
    Argument.RCPT: Seen._with_path,
    Argument.ATTRIBUTES: Seen._attributes,
    Argument.STRING: Seen._anybody,
    Argument.TEXT: Seen._anything,
    Argument.URI: Seen._uri,
    Argument.AUTH: Seen._mechanism,
    Argument.HELLO: Seen.text,
    Argument.NODE: Seen.text,
    Argument.DOMAINS: Seen.text,
}


def _character(found: re.Match[str]) -> str:
    """What xtext or an utf-8-addr-xtext stands for."""
    code = int(found[1] or found[2], 16)
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else found[0]

"""What stands behind a verb, as values.

Rules of this file:

- A value holds what was meant, not how it was written: `<"a"@b>` and `<@relay:a@b>` are both `Path(b"a", b"b")`, so a
  rule on an address can't be gone round by spelling. The octets as they came are in `Command.line`.
- `value.encode()` writes the strict form, and parsing that gives the value back. Nothing is checked on the way: who
  makes a value himself has `commands.compose` check it.
- A secret is a `Secret` from the moment it is parsed.
"""

import re
from typing import Any, NamedTuple, NoReturn, SupportsIndex, TypeAlias

from smtpproxy.smtp import abnf

_DOT_STRING = re.compile(abnf.DOT_STRING).fullmatch
_QUOTED_PAIR = re.compile(rb"\\([ -~])").sub


class Secret(bytes):
    """Octets that are sent on but never shown: they print as `<17 octets>`, and only `reveal()` tells them."""

    __slots__ = ()

    def reveal(self) -> bytes:
        """The octets. Whoever calls this answers for where they go."""
        return bytes(self)

    def __repr__(self) -> str:
        return f"<{len(self)} octets>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """As text a secret is what it prints as."""
        return repr(self)

    def hex(self, *args: Any, **kwargs: Any) -> str:
        """In hexadecimal too."""
        return repr(self)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret is not pickled")


class Nothing(NamedTuple):
    """The argument of a verb that takes none."""

    def encode(self) -> bytes:
        return b""


class Path(NamedTuple):
    """A reverse-path or forward-path; `<>` is `Path(b"", b"")`, `<Postmaster>` has no domain (RFC 5321 §4.1.2)."""

    local: bytes  # without quotes and backslashes
    domain: bytes

    def encode(self) -> bytes:
        if not self.domain:
            return b"<" + self.local + b">"
        return b"<" + (self.local if _DOT_STRING(self.local) else _quoted(self.local)) + b"@" + self.domain + b">"


class Parameter(NamedTuple):
    """One MAIL or RCPT parameter (RFC 5321 §4.1.1.11); the value is a `Secret` where the registry says so."""

    keyword: bytes  # in capitals
    value: bytes | None

    def encode(self) -> bytes:
        return self.keyword if self.value is None else self.keyword + b"=" + self.value


class Hello(NamedTuple):
    """How the client names itself (RFC 5321 §4.1.1.1)."""

    domain: bytes

    def encode(self) -> bytes:
        return self.domain


class Mail(NamedTuple):
    """`FROM:` reverse-path and parameters (RFC 5321 §4.1.1.2)."""

    path: Path
    parameters: tuple[Parameter, ...]

    def encode(self) -> bytes:
        return b"FROM:" + b" ".join([self.path.encode(), *[parameter.encode() for parameter in self.parameters]])


class Rcpt(NamedTuple):
    """`TO:` forward-path and parameters (RFC 5321 §4.1.1.3)."""

    path: Path
    parameters: tuple[Parameter, ...]

    def encode(self) -> bytes:
        return b"TO:" + b" ".join([self.path.encode(), *[parameter.encode() for parameter in self.parameters]])


class Chunk(NamedTuple):
    """How many octets follow, and whether they are the last (RFC 3030 §2)."""

    size: int
    last: bool

    def encode(self) -> bytes:
        return b"%d LAST" % self.size if self.last else b"%d" % self.size


class Auth(NamedTuple):
    """A mechanism in capitals and its initial response in base64, `=` for an empty one (RFC 4954 §4)."""

    mechanism: bytes
    initial: Secret | None

    def encode(self) -> bytes:
        return self.mechanism if self.initial is None else self.mechanism + b" " + self.initial


class Text(NamedTuple):
    """Anything printable, perhaps nothing."""

    text: bytes

    def encode(self) -> bytes:
        return self.text


class Counted(NamedTuple):
    """How many octets follow after the server's go-ahead, and a number more (XEXCH50)."""

    size: int
    rest: int

    def encode(self) -> bytes:
        return b"%d %d" % self


class Attributes(NamedTuple):
    """Names in capitals with values in xtext (XCLIENT, XFORWARD)."""

    pairs: tuple[tuple[bytes, bytes], ...]

    def encode(self) -> bytes:
        return b" ".join([name + b"=" + value for name, value in self.pairs])


class Node(NamedTuple):
    """A node as ETRN names it, with its `@` or `#` (RFC 1985 §5)."""

    text: bytes

    def encode(self) -> bytes:
        return self.text


class Domains(NamedTuple):
    """The domains whose mail ATRN asks for; none means all (RFC 2645 §5.2.1)."""

    names: tuple[bytes, ...]

    def encode(self) -> bytes:
        return b",".join(self.names)


class Uri(NamedTuple):
    """Where the server is to fetch content; the URI holds what lets it in (RFC 4468 §3.2)."""

    uri: Secret
    last: bool

    def encode(self) -> bytes:
        return self.uri + b" LAST" if self.last else self.uri.reveal()


class Hidden(NamedTuple):
    """Anything printable that is never recorded."""

    secret: Secret

    def encode(self) -> bytes:
        return self.secret.reveal()


Value: TypeAlias = (
    Nothing | Hello | Mail | Rcpt | Chunk | Auth | Text | Counted | Attributes | Node | Domains | Uri | Hidden
)

NOTHING = Nothing()


def _quoted(local: bytes) -> bytes:
    return b'"' + local.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def unquoted(local: bytes) -> bytes:
    """What a Quoted-string means: its quotes and backslashes only say how it is read (RFC 5321 §4.1.2)."""
    return _QUOTED_PAIR(rb"\1", local[1:-1])

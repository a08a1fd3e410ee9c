"""Keeping mail addresses from being read: what the record has in their place.

    clear         alice@example.org
    pseudonym     ~k1.3xq7…@~k1.5tzw…      keyed hashes (HMAC-SHA-256) of the address, and of its domain
    domain-only   ~@example.org

A pseudonym has the shape of an address, and the same address has the same one as long as the key is the same: it can be
searched for and counted. Who has the key can tell whether somebody is meant by trying (`identify`); nobody else can.

Whatever text comes from a peer may have addresses in it, in more forms than anybody knows. So what looks like a part of
one is taken for it: it is better to hide too much. What one session called people is remembered while it lasts
(`Seen`), because servers repeat it without a domain: `550 alice unknown`.

What must never happen: a local-part of three characters or more in a text that went through here, in a form that any
mail server was seen to write. Time beyond linear for what a stranger wrote.
"""

import hmac
import os
import re
from base64 import b32encode, b64decode, b64encode
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Final, NamedTuple

from smtpproxy.audit.keys import KeyFileError, keep_names, read_file, write_file
from smtpproxy.smtp.values import Path

KEY_OCTETS: Final = 32
MOST_SEEN: Final = 64  # local-parts of a session that are looked for in what comes later
SHORTEST: Final = 3  # characters of one that is
_ATOM: Final = r"[^\s<>@\"(),:;\[\]\\]"
_AT: Final = r"(?:@|%40|\+40|=40)"  # as it is, in a URL, in xtext (RFC 3461 §4), in quoted-printable
_ADDRESS: Final = re.compile(
    rf'(?P<quoted>"(?:[^"\\]|\\.)*+"|(?<!{_ATOM}){_ATOM}++)@(?P<domain>\[[^\]\s]*+\]|[^\s<>@"(),;\[\]\\]+)'
)
_ENCODED: Final = re.compile(rf"(?<!{_ATOM})({_ATOM}+?)(%40|\+40|=40)({_ATOM}+)")
_ALONE: Final = re.compile(r"<([^<>@\s]++)>")  # a path without a domain
_NAMED: Final = re.compile(r"\A(VRFY|EXPN|XVRFY)([ \t]+)(.+)\Z", re.IGNORECASE | re.DOTALL)
_LOGIN: Final = re.compile(r"\b(LOGIN=)(\S+)", re.IGNORECASE)  # XCLIENT
_PARAMETER: Final = re.compile(r"\A(AUTH=)(.+)\Z", re.IGNORECASE | re.DOTALL)
_KEY_LINE: Final = re.compile(r"(k[0-9]{1,6}) ([A-Za-z0-9+/]{43}=)")


class Key(NamedTuple):
    """A key of pseudonyms; what is made with it begins with `~` and its name."""

    name: str
    octets: bytes

    def __repr__(self) -> str:
        return f"<Key {self.name}>"


class Pseudonyms:
    """Makes them, with the newest key."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys
        self._key = keys[-1]
        self.local = lru_cache(maxsize=4096)(self._local)
        self.domain = lru_cache(maxsize=4096)(self._domain)

    def _hash(self, key: Key, what: bytes, text: str, characters: int) -> str:
        digest = hmac.digest(key.octets, what + b"\0" + text.encode("utf-8", "backslashreplace"), "sha256")
        return f"~{key.name}.{b32encode(digest)[:characters].decode().lower()}"

    def _local(self, local: str, domain: str) -> str:
        return self._hash(self._key, b"mailbox", f"{local}@{domain.lower()}", 20)

    def _domain(self, domain: str) -> str:
        return self._hash(self._key, b"domain", domain.lower(), 12)

    def of(self, address: str) -> dict[str, str]:
        """What an address is called by each key."""
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, ""
        found = {}
        for key in self.keys:
            name = self._hash(key, b"mailbox", f"{local}@{domain.lower()}", 20)
            found[key.name] = f"{name}@{self._hash(key, b'domain', domain.lower(), 12)}" if domain else name
        return found


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

    def address(self, local: str, domain: str) -> str:
        """In an address's place."""
        if not domain:
            return self.local(local, domain)
        shown = domain if self._pseudonyms is None else self._pseudonyms.domain(domain)
        return f"{self.local(local, domain)}@{shown}"


class Seen:
    """Replaces the addresses of one session, and remembers what it called people."""

    __slots__ = ("_addresses", "_locals")

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._locals: dict[str, str] = {}  # in lower case → what stands for it

    def path(self, path: Path) -> str:
        """A reverse-path or forward-path."""
        if not path.local and not path.domain:
            return ""
        return self._address(*(part.decode("utf-8", "backslashreplace") for part in path))

    def _address(self, local: str, domain: str) -> str:
        known = local.lower()
        if len(known) >= SHORTEST and known not in self._locals and len(self._locals) < MOST_SEEN:
            self._locals[known] = self._addresses.local(local, domain)
        return self._addresses.address(local, domain)

    def text(self, text: str) -> str:
        """A command, a reply, or anything else that a peer wrote."""
        if "@" in text:
            text = _ADDRESS.sub(self._found, text)
        if "40" in text:
            text = _ENCODED.sub(self._encoded, text)
        if "<" in text:
            text = _ALONE.sub(self._alone, text)
        named = _NAMED.match(text)
        if named is not None and not named[3].startswith("~"):
            text = f"{named[1]}{named[2]}{self._address(named[3], '')}"
        if "=" in text:
            text = _LOGIN.sub(lambda found: found[1] + self._kept(found[2]), text)
        if self._locals:
            text = self._echoes(text)
        return text

    def _found(self, found: re.Match[str]) -> str:
        local, domain = found["quoted"], found["domain"]
        before = ""
        parameter = _PARAMETER.match(local)
        if parameter is not None:
            before, local = parameter[1], parameter[2]
        if local.startswith('"'):
            local = re.sub(r"\\(.)", r"\1", local[1:-1], flags=re.DOTALL)
        if local.startswith("~"):  # it is one already
            return found[0]
        bare = domain.rstrip(".:!?'")
        return f"{before}{self._address(local, bare)}{domain[len(bare) :]}"

    def _encoded(self, found: re.Match[str]) -> str:
        local, domain = found[1], found[3]
        if "~" in local:
            return found[0]
        head, equals, tail = local.rpartition("=")
        bare = domain.rstrip(".:!?'")
        if equals:  # of a URL: what is before it is hidden as well, if it is no plain word
            head = head if head.isalpha() else "~"
        return f"{head}{equals}{self._address(tail, bare)}{domain[len(bare) :]}"

    def _alone(self, found: re.Match[str]) -> str:
        return f"<{self._kept(found[1])}>"

    def _kept(self, text: str) -> str:
        return text if text.startswith("~") else self._address(text, "")

    def _echoes(self, text: str) -> str:
        low = text.lower()
        if len(low) != len(text):  # letters whose two cases differ in length: found by what Python calls equal
            low = text
        for local, shown in self._locals.items():
            at = low.find(local)
            while at >= 0:
                end = at + len(local)
                whole = not (low[at - 1 : at].isalnum() or low[end : end + 1].isalnum())
                inside = text[:at].rpartition("~")[2].isascii() and _in_pseudonym(text, at)
                if whole and not inside:
                    text, low = text[:at] + shown + text[end:], low[:at] + shown.lower() + low[end:]
                    end = at + len(shown)
                at = low.find(local, end)
        return text

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


def _in_pseudonym(text: str, at: int) -> bool:
    """Whether this place is within one: behind `~`, with nothing between but its own characters."""
    begin = text.rfind("~", 0, at)
    return begin >= 0 and all(c.isalnum() or c == "." for c in text[begin + 1 : at])


def create(path: FilePath) -> None:
    """Make a key file.

    Raises:
        KeyFileError: it can't be written, or is there already.
    """
    _write(path, [Key("k1", os.urandom(KEY_OCTETS))])


def rotate(path: FilePath) -> str:
    """Add a key, which pseudonyms are made with from the next reload on; its name. The others are kept, to tell who is
    meant by older ones.

    Raises:
        KeyFileError: the file can't be read or written.
    """
    keys = load(path)
    keys.append(Key(f"k{int(keys[-1].name[1:]) + 1}", os.urandom(KEY_OCTETS)))
    new = path.with_name(f"{path.name}.new")
    _write(new, keys)
    new.replace(path)
    return keys[-1].name


def load(path: FilePath) -> list[Key]:
    """The keys of a file, the newest last.

    Raises:
        KeyFileError: it can't be read, others can read it, or it is no such file.
    """
    found = []
    for line in read_file(path, secret=True).decode("ascii", "replace").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        match = _KEY_LINE.fullmatch(line.strip())
        if match is None:
            raise KeyFileError(f"{path} is no key of pseudonyms: a line is `k1 BASE64`")
        found.append(Key(match[1], b64decode(match[2])))
    if not found:
        raise KeyFileError(f"{path} has no key: `smtpproxy audit pseudonym-key init` makes one")
    return found


def _write(path: FilePath, keys: list[Key]) -> None:
    lines = "".join(f"{key.name} {b64encode(key.octets).decode()}\n" for key in keys)
    try:
        write_file(path, f"# keys of pseudonyms, the newest last\n{lines}".encode(), 0o600)
        keep_names(path.parent)
    except FileExistsError as error:
        raise KeyFileError(f"{path} is there already and is not overwritten") from error
    except OSError as error:
        raise KeyFileError(f"{path} can't be written: {error.strerror}") from error

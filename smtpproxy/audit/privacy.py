"""Pseudonyms: what the record has in the place of mail addresses, and the keys that make them.

    clear         alice@example.org
    pseudonym     ~k1.3xq7…@~k1.5tzw…      keyed hashes (HMAC-SHA-256) of the address, and of its domain
    domain-only   ~@example.org

A pseudonym has the shape of an address, and the same address has the same one as long as the key is the same: it can be
searched for and counted. Who has the key can tell whether somebody is meant by trying (`identify`); nobody else can.
What is replaced, and where, is the business of hiding.py.
"""

import contextlib
import hmac
import os
import re
import stat
from base64 import b32encode, b64decode, b64encode
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Final, NamedTuple

from smtpproxy.audit.keys import KeyFileError, keep_names, read_file, write_file

KEY_OCTETS: Final = 32
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


def create(path: FilePath) -> None:
    """Make a key file.

    Raises:
        KeyFileError: it can't be written, or is there already.
    """
    _write(path, [Key("k1", os.urandom(KEY_OCTETS))])


def rotate(path: FilePath) -> str:
    """Add a key, which pseudonyms are made with from the next reload on; its name. The others are kept, to tell who is
    meant by older ones, and so are the file's owner and mode.

    Raises:
        KeyFileError: the file can't be read or written.
    """
    keys = load(path)
    keys.append(Key(f"k{int(keys[-1].name[1:]) + 1}", os.urandom(KEY_OCTETS)))
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # left by one that was interrupted: its key was never used
        _write(new, keys)
        before = path.stat()
        os.chown(new, before.st_uid, before.st_gid)  # the proxy that reads it may be another user
        new.chmod(stat.S_IMODE(before.st_mode))
        new.replace(path)
        keep_names(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise KeyFileError(f"{path} can't be replaced: {error.strerror}") from error
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

"""The files the configuration names, and whether they can be had: found by `check`, and before `serve` listens.

Only names and permissions are looked at. What is in the files is not read here, and the CA's key is opened by nobody
but the process that signs.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from smtpproxy.config.tables import Config
from smtpproxy.config.values import Mistake
from smtpproxy.policy.toml import KeyPath

Use = Literal["read", "written", "directory"]
CA_KEY = "ca.key"
CA_CERTIFICATE = "ca.crt"


class NamedFile(NamedTuple):
    """A file that is named: what it is, where it is, what is done with it, which setting names it."""

    what: str
    path: Path
    use: Use
    place: KeyPath


def files(config: Config) -> list[NamedFile]:
    """Every file and directory of the TLS settings, in the order they are named. Rules and audit are looked at by who
    opens them."""
    found: list[NamedFile] = []

    def add(what: str, path: str, *place: str | int, use: Use = "read") -> None:
        if path:
            found.append(NamedFile(what, Path(path), use, place))

    for index, listener in enumerate(config.listeners):
        here = ("listener", index, "tls")
        own = listener.tls.client_certificate
        for number, given in enumerate(listener.tls.certificates):
            add("certificate chain", given.chain, *here, "certificates", number, "chain")
            add("private key", given.key, *here, "certificates", number, "key")
        if own is not None:
            add("client certificate chain", own.chain, *here, "client_certificate", "chain")
            add("client certificate's private key", own.key, *here, "client_certificate", "key")
        add("roots", listener.tls.roots, *here, "roots")
    add("key log", config.tls.keylog, "tls", "keylog", use="written")
    if config.ca.directory:
        add("directory of the CA", config.ca.directory, "ca", "directory", use="directory")
        for name, what in ((CA_CERTIFICATE, "certificate of the CA"), (CA_KEY, "private key of the CA")):
            add(what, str(Path(config.ca.directory) / name), "ca", "directory")
        add("passphrase", config.ca.passphrase_file, "ca", "passphrase_file")
    return found


def missing(config: Config) -> Iterator[Mistake]:
    """What of `files` can't be had, and why."""
    unusable: set[Path] = set()
    for file in files(config):
        if why := "" if file.path.parent in unusable else trouble(file):
            unusable.add(file.path)
            ca = file.place == ("ca", "directory")
            mend = f"what `smtpproxy ca init --directory {_printable(config.ca.directory)}` makes" if ca else ""
            yield Mistake(file.place, f"{file.what} {_printable(str(file.path))}: {why}", mend)


def trouble(file: NamedFile) -> str:
    """Why it can't be used, or ""."""
    try:
        found = os.stat(file.path)
    except FileNotFoundError:
        return _can_be_made(file.path) if file.use == "written" else "no such file or directory"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if file.use == "directory":
        return _may(file.path, os.R_OK | os.X_OK) if stat.S_ISDIR(found.st_mode) else "is not a directory"
    if stat.S_ISREG(found.st_mode):
        return _may(file.path, os.W_OK if file.use == "written" else os.R_OK)
    return "is a directory" if stat.S_ISDIR(found.st_mode) else "is not a file"  # opening a pipe could wait for ever


def _can_be_made(path: Path) -> str:
    if not path.parent.is_dir():
        return "there is no such directory"
    return _may(path.parent, os.W_OK | os.X_OK)


def _may(path: Path, mode: int) -> str:
    return "" if os.access(path, mode, effective_ids=True) else "permission denied"


def _printable(path: str) -> str:
    """The whole of a path, on one line of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)

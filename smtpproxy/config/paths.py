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
from smtpproxy.policy.toml import KeyPath, Severity

Use = Literal["read", "written", "directory"]
CA_KEY = "ca.key"
CA_CERTIFICATE = "ca.crt"
_OWNER = 0o077  # bits of a mode that must not be set where a file is for its owner alone
_GROUP = 0o037  # where its group may read it, as service managers hand out secrets


class NamedFile(NamedTuple):
    """A file that is named: what it is, where it is, what is done with it, which setting names it; which bits of its
    mode must not be set because there is a secret in it, and how bad it is if they are."""

    what: str
    path: Path
    use: Use
    place: KeyPath
    closed: int = 0
    severity: Severity = "error"


def files(config: Config) -> list[NamedFile]:
    """Every file and directory of the TLS settings, in the order they are named. Rules and audit are looked at by who
    opens them."""
    found: list[NamedFile] = []

    def add(what: str, path: str, *place: str | int, use: Use = "read", closed: int = 0) -> None:
        if path:
            severity: Severity = "error" if place[0] == "ca" else "warning"
            found.append(NamedFile(what, Path(path), use, place, closed, severity))

    for index, listener in enumerate(config.listeners):
        here = ("listener", index, "tls")
        own = listener.tls.client_certificate
        for number, given in enumerate(listener.tls.certificates):
            alone = 0 if given.key else _GROUP  # the key is in it too
            add("certificate chain", given.chain, *here, "certificates", number, "chain", closed=alone)
            add("private key", given.key, *here, "certificates", number, "key", closed=_GROUP)
        if own is not None:
            alone = 0 if own.key else _GROUP
            add("client certificate chain", own.chain, *here, "client_certificate", "chain", closed=alone)
            add("client certificate's private key", own.key, *here, "client_certificate", "key", closed=_GROUP)
        add("roots", listener.tls.roots, *here, "roots")
    add("key log", config.tls.keylog, "tls", "keylog", use="written")
    if config.ca.directory:
        add("directory of the CA", config.ca.directory, "ca", "directory", use="directory")
        directory = Path(config.ca.directory)
        add("certificate of the CA", str(directory / CA_CERTIFICATE), "ca", "directory")
        add("private key of the CA", str(directory / CA_KEY), "ca", "directory", closed=_OWNER)
        add("passphrase", config.ca.passphrase_file, "ca", "passphrase_file", closed=_GROUP)
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


def exposed(config: Config) -> Iterator[Mistake]:
    """Keys and passphrases that others can read, as far as they are there. Those of the CA are refused by the signing
    process, by the same rules (tls/authority.py); the key of a given certificate is used all the same."""
    for file in files(config):
        try:
            mode = stat.S_IMODE(os.stat(file.path).st_mode)
        except OSError:
            continue  # `missing` tells it
        if mode & file.closed:
            path = _printable(str(file.path))
            holds = f"{file.what} and key" if file.place[-1] == "chain" else file.what
            yield Mistake(
                file.place, f"{holds} {path}: is open to others (mode {mode:04o})", f"`chmod 600 {path}`", file.severity
            )


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

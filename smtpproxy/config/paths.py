"""The files and accounts the configuration names, and whether they can be had: found by `check`, and before `serve`
listens.

Only names and permissions are looked at. What is in the files is not read here, and the CA's key is opened by nobody
but the process that signs.
"""

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from smtpproxy.config.tables import Config
from smtpproxy.config.tls import CertificateConfig, TLSConfig
from smtpproxy.config.values import Mistake
from smtpproxy.policy.toml import KeyPath, Severity, nearest, shown

Use = Literal["read", "written", "directory", "rules", "store"]  # rules: a file or a directory; store: is written to
CA_KEY = "ca.key"
CA_CERTIFICATE = "ca.crt"
_BY_NAME: Mapping[str, Callable[[str], object]] = {"user": pwd.getpwnam, "group": grp.getgrnam}
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
    """Every file and directory of listeners and blocks and of the TLS settings, in the order they are named. The rules
    for all and the audit are looked at by who opens them."""
    found: list[NamedFile] = []

    def add(what: str, path: str, *place: str | int, use: Use = "read", closed: int = 0) -> None:
        if path:
            severity: Severity = "error" if place[0] == "ca" else "warning"
            found.append(NamedFile(what, Path(path), use, place, closed, severity))

    def add_certificate(own: CertificateConfig | None, *here: str | int) -> None:
        if own is not None:
            alone = 0 if own.key else _GROUP
            add("client certificate chain", own.chain, *here, "chain", closed=alone)
            add("client certificate's private key", own.key, *here, "key", closed=_GROUP)

    def add_tls(tls: TLSConfig, *here: str | int) -> None:
        for number, given in enumerate(tls.certificates):
            alone = 0 if given.key else _GROUP  # the key is in it too
            add("certificate chain", given.chain, *here, "certificates", number, "chain", closed=alone)
            add("private key", given.key, *here, "certificates", number, "key", closed=_GROUP)
        add_certificate(tls.client_certificate, *here, "client_certificate")
        add("roots", tls.roots, *here, "roots")

    for index, listener in enumerate(config.listeners):
        add_tls(listener.tls, "listener", index, "tls")
    for index, match in enumerate(config.matches):
        for number, path in enumerate(match.rules):
            if not path.startswith("set:"):  # one of those that come with smtpproxy, and no file
                add("rules", path, "match", index, "rules", number, use="rules")
        if match.tls is not None:
            add_tls(match.tls, "match", index, "tls")
    add("key log", config.tls.keylog, "tls", "keylog", use="written")
    if config.ca.directory:
        add("directory of the CA", config.ca.directory, "ca", "directory", use="directory")
        directory = Path(config.ca.directory)
        add("certificate of the CA", str(directory / CA_CERTIFICATE), "ca", "directory")
        add("private key of the CA", str(directory / CA_KEY), "ca", "directory", closed=_OWNER)
        add("passphrase", config.ca.passphrase_file, "ca", "passphrase_file", closed=_GROUP)
    add("key of the checkpoints", config.audit.key, "audit", "key", closed=_GROUP)
    add("key of pseudonyms", config.audit.pseudonym_key, "audit", "pseudonym_key", closed=_GROUP)
    add("auditor's public key", config.audit.auditor, "audit", "auditor")
    for kind, sinks in (("syslog", config.audit.syslog), ("otel", config.audit.otel)):
        for index, sink in enumerate(sinks):
            add_certificate(sink.client_certificate, "audit", kind, index, "client_certificate")
            add("roots", sink.roots, "audit", kind, index, "roots")
    for index, collector in enumerate(config.audit.otel):
        add("headers", collector.headers_file, "audit", "otel", index, "headers_file", closed=_GROUP)
    add("quarantine", config.quarantine.directory, "quarantine", "directory", use="store", closed=_OWNER)
    return found


def missing(config: Config) -> Iterator[Mistake]:
    """What of `files` can't be had, and why; and who is not known here."""
    unusable: set[Path] = set()
    for file in files(config):
        if why := "" if file.path.parent in unusable else trouble(file):
            unusable.add(file.path)
            ca = file.place == ("ca", "directory")
            mend = f"what `smtpproxy ca init --directory {_printable(config.ca.directory)}` makes" if ca else ""
            yield Mistake(file.place, f"{file.what} {_printable(str(file.path))}: {why}", mend)
    yield from _unknown("user", config.process.user, "`useradd --system --no-create-home {}`")
    yield from _unknown("group", config.process.group, "`groupadd --system {}`")


def _unknown(kind: Literal["user", "group"], name: str, mend: str) -> Iterator[Mistake]:
    """An account by a name that this machine does not know. Numbers need no name."""
    if not name or name.isdecimal():
        return
    known = [one.pw_name for one in pwd.getpwall()] if kind == "user" else [one.gr_name for one in grp.getgrall()]
    try:
        _BY_NAME[kind](name)
    except KeyError:
        near = tuple(nearest(name, known))
        yield Mistake(("process", kind), f"there is no {kind} {shown(name)} here", mend.format(name), nearest=near)


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
            mend = f"`chmod {'700' if file.use == 'store' else '600'} {path}`"
            yield Mistake(file.place, f"{holds} {path}: is open to others (mode {mode:04o})", mend, file.severity)


def trouble(file: NamedFile) -> str:
    """Why it can't be used, or ""."""
    try:
        found = os.stat(file.path)
    except FileNotFoundError:
        return _can_be_made(file.path) if file.use in ("written", "store") else "no such file or directory"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if file.use == "directory":
        return _may(file.path, os.R_OK | os.X_OK) if stat.S_ISDIR(found.st_mode) else "is not a directory"
    if file.use == "store":
        return _may(file.path, os.R_OK | os.W_OK | os.X_OK) if stat.S_ISDIR(found.st_mode) else "is not a directory"
    if file.use == "rules" and stat.S_ISDIR(found.st_mode):
        return _may(file.path, os.R_OK | os.X_OK)
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

"""The store of the quarantine: one directory, written by several workers at once and by the command line.

    tmp/            what is being written
    new/            NAME.eml, the content as it came, and NAME.json, its record
    released/       the same, of mails that were sent on
    lock            whose turn it is to move something; how much there is

A mail is there from the moment its record is: the content is moved into place first and the record last, each written
and synced before under another name. So after a crash there is a whole mail, or a content without record, which is
nobody's: it is not shown, and goes with the next `sweep`. It is gone in the other order.

What must never happen: a mail that somebody was told is kept and is not; one that is dropped because there is no room
(there is `Full`, and the sender keeps it); half a mail that looks whole; a mail that others can read.

Nothing here may be called from an event loop: files are synced, and another's lock is waited for.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from smtpproxy.quarantine.errors import Full, NotWanted, QuarantineError
from smtpproxy.quarantine.folders import (
    CONTENT,
    NEW,
    RECORD,
    RELEASED,
    TMP,
    Folders,
    always,
    is_file,
    is_name,
    write_all,
)

VERSION: Final = 1  # of the record
PIECE = 262_144  # octets copied at a time
LONGEST_RECORD = 16_777_216  # octets
LEFT_OVER = 86_400.0  # seconds after which what is in tmp/ is nobody's

__all__ = ["NEW", "RELEASED", "Bounds", "Full", "Mail", "NotWanted", "QuarantineError", "Store"]


class Bounds(NamedTuple):
    """How much is kept, released mails counted: octets of all files, and mails."""

    octets: int
    mails: int


class Mail(NamedTuple):
    """One mail. `record` is empty if it can't be read."""

    name: str
    state: str  # NEW or RELEASED
    record: Mapping[str, Any]

    @property
    def kept_at(self) -> float:
        """Seconds since 1970, whole ones."""
        return datetime.strptime(self.name[:16], "%Y%m%dT%H%M%S%z").timestamp()


class Store:
    """The mails of a directory. Several threads may use it at once."""

    def __init__(
        self, folders: Folders, *, bounds: Bounds | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        """`wall` gives seconds since 1970."""
        self._folders = folders
        self._bounds = bounds
        self._wall = wall
        self.directory: Path = folders.directory
        self.usable = folders.usable
        self.close = folders.close

    # ---------------------------------------------------------------------------------------------------- keeping one

    def keep(self, content: Any, facts: Mapping[str, Any], *, wanted: Callable[[], bool] = always) -> str:
        """Keep a mail; its name. When this returns it is on the disk.

        Args:
            content: a readable binary file, at its start. It is left at its end.
            facts: the record (docs/quarantine.md has its keys); `v`, `name`, `at`, `octets` and `sha256` are added.
            wanted: asked again and again; False: whoever asked has given up.

        Raises:
            Full: there is no room.
            NotWanted: `wanted` said so, and nothing was kept.
            QuarantineError: it can't be written.
        """
        now = datetime.fromtimestamp(self._wall(), UTC)
        name = f"{now:%Y%m%dT%H%M%SZ}-{os.urandom(6).hex()}"
        try:
            with self._folders.locked(wanted) as turn:
                self._room(turn.usage(), 0)  # before anything is written
            octets, digest = self._write_content(name, content, wanted)
            moment = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            record = {"v": VERSION, "name": name, "at": moment, **facts, "octets": octets, "sha256": digest}
            self._folders.write(TMP, name + RECORD, _encoded(record))
            self._move_in(name, wanted)
        except OSError as error:
            raise QuarantineError(f"the quarantine can't be written: {error.strerror}") from error
        finally:
            self._folders.remove(TMP, name)
        return name

    def _write_content(self, name: str, content: Any, wanted: Callable[[], bool]) -> tuple[int, str]:
        """Its octets, and their SHA-256."""
        size, digest = 0, hashlib.sha256()
        descriptor = self._folders.create(TMP, name + CONTENT)
        try:
            while piece := content.read(PIECE):
                if not wanted():
                    raise NotWanted("the mail was not kept in time")
                size += len(piece)
                if self._bounds is not None and size > self._bounds.octets:
                    raise Full(f"the mail is larger than the quarantine may be: `size` is {self._bounds.octets}")
                digest.update(piece)
                write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return size, digest.hexdigest()

    def _move_in(self, name: str, wanted: Callable[[], bool]) -> None:
        """The content first, the record last."""
        with self._folders.locked(wanted) as turn:
            mails, octets = turn.usage()
            more = sum(os.stat(name + kind, dir_fd=self._folders[TMP]).st_size for kind in (CONTENT, RECORD))
            self._room((mails, octets), more)
            if not wanted():
                raise NotWanted("the mail was not kept in time")
            try:
                self._folders.move(name + CONTENT, TMP, NEW)
                self._folders.move(name + RECORD, TMP, NEW)
            except OSError:  # who asked is told that it is not kept, and so it is not
                turn.forget()
                self._folders.remove(NEW, name)
                raise
            turn.note(mails + 1, octets + more)

    def _room(self, usage: tuple[int, int], more: int) -> None:
        """Raises Full if there is none for one mail more, of so many octets."""
        bounds, (mails, octets) = self._bounds, usage
        if bounds is None:
            return
        if mails >= bounds.mails:
            raise Full(f"the quarantine is full: `mails` is {bounds.mails}")
        if octets + more > bounds.octets:
            raise Full(f"the quarantine is full: this mail does not fit into what is left of `size`, {bounds.octets}")

    def usage(self) -> tuple[int, int]:
        """Mails, and octets of all their files.

        Raises:
            QuarantineError: a directory can't be read.
        """
        try:
            with self._folders.locked() as turn:
                return turn.usage()
        except OSError as error:
            raise QuarantineError(f"the quarantine {self.directory} can't be read: {error.strerror}") from error

    # -------------------------------------------------------------------------------------------------- looking at them

    def mails(self, *states: str) -> Iterator[Mail]:
        """Those in these states (none given: all), the oldest first.

        Raises:
            QuarantineError: a directory can't be read.
        """
        found = dict.fromkeys(self._folders.names(NEW), NEW)
        found |= dict.fromkeys(self._folders.names(RELEASED), RELEASED)  # a release that was cut off is one
        for name, state in sorted(found.items()):
            if state in (states or (NEW, RELEASED)):
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    yield Mail(name, state, self._record(state, name))

    def find(self, name: str) -> Mail:
        """This one.

        Raises:
            QuarantineError: it is not here.
        """
        if is_name(name):
            for state in (RELEASED, NEW, RELEASED):  # on the way from the one to the other it is in both
                with contextlib.suppress(FileNotFoundError):
                    return Mail(name, state, self._record(state, name))
        shown = "".join(c if c.isprintable() else "?" for c in name)
        raise QuarantineError(f"there is no mail {shown} in {self.directory}")

    def content(self, mail: Mail) -> BinaryIO:
        """Its content, opened.

        Raises:
            QuarantineError: it can't be read.
        """
        try:
            return os.fdopen(self._folders.read(mail.state, mail.name + CONTENT), "rb")
        except OSError as error:
            raise QuarantineError(f"the content of {mail.name} can't be read: {error.strerror}") from error

    def _record(self, state: str, name: str) -> Mapping[str, Any]:
        """What stands there; nothing if that is no record.

        Raises:
            FileNotFoundError: it is not there.
        """
        try:
            with os.fdopen(self._folders.read(state, name + RECORD), "rb") as file:
                found = json.loads(file.read(LONGEST_RECORD))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    # ----------------------------------------------------------------------------------------- doing something with one

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[Mail]:
        """The mail, for nobody else meanwhile: who releases and who erases has it claimed. The kernel ends the claim of
        a process that dies.

        Raises:
            QuarantineError: it is not here, or another has it.
        """
        while True:
            state = self.find(name).state
            try:
                descriptor = self._folders.read(state, name + RECORD)
            except FileNotFoundError:  # it was moved meanwhile
                continue
            except OSError as error:
                raise QuarantineError(f"the record of {name} can't be read: {error.strerror}") from error
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise QuarantineError(f"{name} is being released or erased by another") from None
                mail = self.find(name)
                if mail.state == state and self._is_still(mail, descriptor):  # else it was moved before we had it
                    yield mail
                    return
            finally:
                os.close(descriptor)

    def _is_still(self, mail: Mail, descriptor: int) -> bool:
        try:
            found = os.stat(mail.name + RECORD, dir_fd=self._folders[mail.state], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def release(self, mail: Mail, facts: Mapping[str, Any]) -> None:
        """It was sent on: it moves to released/, with these facts in its record, as the last of those under `released`.
        To be called with it claimed.

        Raises:
            QuarantineError: it can't be moved, and may be where it was.
        """
        name, folders = mail.name, self._folders
        before = mail.record.get("released")
        record = {**mail.record, "released": [*(before if isinstance(before, list) else ()), dict(facts)]}
        try:
            with folders.locked() as turn:
                turn.forget()
                folders.remove(TMP, name)  # left there by a release that was cut off
                folders.write(TMP, name + RECORD, _encoded(record))
                if mail.state == NEW:
                    with contextlib.suppress(FileExistsError):
                        os.link(
                            name + CONTENT,
                            name + CONTENT,
                            src_dir_fd=folders[NEW],
                            dst_dir_fd=folders[RELEASED],
                            follow_symlinks=False,
                        )
                    os.fsync(folders[RELEASED])
                folders.move(name + RECORD, TMP, RELEASED)  # from here on it is there
                if mail.state == NEW:
                    folders.remove(NEW, name)
        except OSError as error:
            raise QuarantineError(f"{name} can't be moved to {self.directory / RELEASED}: {error.strerror}") from error

    def erase(self, mail: Mail) -> None:
        """Away with it. To be called with it claimed.

        Raises:
            QuarantineError: it can't be erased.
        """
        try:
            with self._folders.locked() as turn:
                turn.forget()
                for state in (NEW, RELEASED):
                    self._folders.remove(state, mail.name)
        except OSError as error:
            raise QuarantineError(f"{mail.name} can't be erased: {error.strerror}") from error

    def expire(self, seconds: float) -> list[Mail]:
        """Erase the mails that were kept longer ago than that, released or not, but for those another has claimed; what
        was erased.

        Raises:
            QuarantineError: one can't be erased.
        """
        until = self._wall() - seconds
        erased = []
        for mail in self.mails():
            if mail.kept_at >= until:
                break
            with contextlib.ExitStack() as stack:
                try:
                    mine = stack.enter_context(self.claimed(mail.name))
                except QuarantineError:  # another has it, or it is gone
                    continue
                self.erase(mine)
                erased.append(mine)
        return erased

    def sweep(self) -> int:
        """Take away what a crash left behind, and count what is there anew; how many mails had left something.

        Raises:
            QuarantineError: a directory can't be read or written.
        """
        folders, swept = self._folders, 0
        before = self._wall() - LEFT_OVER
        try:
            with folders.locked() as turn:  # nobody is between two moves
                turn.forget()
                released = frozenset(folders.names(RELEASED))
                for state in (NEW, RELEASED):
                    whole = frozenset(folders.names(state)) - (released if state == NEW else frozenset())
                    for entry in os.listdir(folders[state]):
                        name = entry.partition(".")[0]
                        if is_file(entry, CONTENT) and name not in whole:
                            folders.remove(state, name)
                            swept += 1
                for entry in os.listdir(folders[TMP]):
                    with contextlib.suppress(FileNotFoundError):
                        age = os.stat(entry, dir_fd=folders[TMP], follow_symlinks=False).st_mtime
                        if age < before and (is_file(entry, CONTENT) or is_file(entry, RECORD)):
                            os.unlink(entry, dir_fd=folders[TMP])
                            swept += 1
                turn.usage()
        except OSError as error:
            raise QuarantineError(f"the quarantine {self.directory} can't be swept: {error.strerror}") from error
        return swept


def _encoded(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, default=_plain).encode() + b"\n"


def _plain(value: object) -> str:
    """Octets that are no UTF-8 come out of the record as they went in (surrogateescape)."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)

"""The directories of a quarantine, opened: files in them, whose turn it is to move one, how much there is.

Everything is opened relative to its directory and no link is followed, because root looks into the directory of a
service. What is made is for its owner alone, and what root makes is given to whom the directory belongs to, who has to
go on with it.
"""

import contextlib
import fcntl
import os
import re
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from smtpproxy.quarantine.errors import NotWanted, QuarantineError

TMP: Final = "tmp"
NEW: Final = "new"
RELEASED: Final = "released"
CONTENT: Final = ".eml"
RECORD: Final = ".json"
_LOCK = "lock"
_PAUSE = 0.005  # seconds until another's lock is tried again
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def always() -> bool:
    """Whoever asked goes on waiting."""
    return True


def is_name(text: str) -> bool:
    """A mail may be called so."""
    return _NAME.fullmatch(text) is not None


def is_file(entry: str, kind: str) -> bool:
    """A file of a mail, of this kind. What else is in the directory is none of ours."""
    return entry.endswith(kind) and is_name(entry.removesuffix(kind))


class Folders:
    """The directory and its three, opened. Several threads may use it at once."""

    def __init__(self, directory: Path, *, make: bool = False, owner: tuple[int, int] | None = None) -> None:
        """`make`: what is missing is made, and is `owner`'s (uid, gid) if that is said.

        Raises:
            QuarantineError: they can't be made or opened, or are not there.
        """
        self.directory = directory
        self._open: dict[str, int] = {}
        try:
            self._open[""] = _opened(directory, None, make, owner)
            for name in (TMP, NEW, RELEASED):
                self._open[name] = _opened(name, self._open[""], make, owner)
            if owner is not None:
                with contextlib.suppress(FileExistsError):
                    descriptor = os.open(_LOCK, _CREATE, 0o600, dir_fd=self._open[""])
                    os.fchown(descriptor, *owner)
                    os.close(descriptor)
        except OSError as error:
            self.close()
            if isinstance(error, FileNotFoundError) and not make:
                raise QuarantineError(f"there is no quarantine in {directory}") from None
            raise QuarantineError(f"the quarantine {directory} can't be opened: {error.strerror}") from error

    def __getitem__(self, folder: str) -> int:
        """Its descriptor."""
        return self._open[folder]

    def close(self) -> None:
        """Let go of them."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def usable(self) -> None:
        """See whether files can be written here by who this process is now.

        Raises:
            QuarantineError: they can't.
        """
        for name in (TMP, NEW, RELEASED):
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._open[name], effective_ids=True):
                path = self.directory / name
                raise QuarantineError(f"{path} can't be written to: it must belong to who the workers are")
        with self.locked():
            pass

    # ----------------------------------------------------------------------------------------------------------- files

    def create(self, folder: str, name: str) -> int:
        """A new file, opened."""
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=self._open[folder])
        if os.geteuid() == 0:
            owner = os.fstat(self._open[folder])
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    def write(self, folder: str, name: str, octets: bytes) -> None:
        """A new file with this in it, on the disk."""
        descriptor = self.create(folder, name)
        try:
            write_all(descriptor, octets)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, folder: str, name: str) -> int:
        """A file, opened. OSError if it is none."""
        descriptor = os.open(name, _READ, dir_fd=self._open[folder])
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "it is no file")
        return descriptor

    def move(self, name: str, old: str, new: str) -> None:
        """To another directory, where it is on the disk when this returns."""
        os.rename(name, name, src_dir_fd=self._open[old], dst_dir_fd=self._open[new])
        os.fsync(self._open[new])

    def remove(self, folder: str, name: str) -> None:
        """What there is of a mail: the record first, so that there is never one without its content."""
        for kind in (RECORD, CONTENT):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + kind, dir_fd=self._open[folder])
                if folder != TMP:
                    os.fsync(self._open[folder])

    def names(self, folder: str) -> list[str]:
        """Of the mails whose record is there.

        Raises:
            QuarantineError: it can't be read.
        """
        try:
            entries = os.listdir(self._open[folder])
        except OSError as error:
            raise QuarantineError(f"{self.directory / folder} can't be read: {error.strerror}") from error
        return [entry.removesuffix(RECORD) for entry in entries if is_file(entry, RECORD)]

    # ------------------------------------------------------------------------------------------------- whose turn it is

    @contextlib.contextmanager
    def locked(self, wanted: Callable[[], bool] = always) -> Iterator["Turn"]:
        """Our turn to move something. It is had for moments only; but who has it may have been stopped.

        Raises:
            NotWanted: another had it until `wanted` said so.
            QuarantineError: there is no lock to be had.
        """
        descriptor = self._open_lock()
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wanted():
                        raise NotWanted("another process has the quarantine's lock") from None
                    select.select((), (), (), _PAUSE)
            yield Turn(self, descriptor)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        try:
            while True:
                try:
                    return os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._open[""])
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        return self.create("", _LOCK)
        except OSError as error:
            raise QuarantineError(f"{self.directory / _LOCK} can't be opened: {error.strerror}") from error

    def changed(self) -> list[int]:
        """When something was last moved, by the kernel."""
        return [os.fstat(self._open[state]).st_mtime_ns for state in (NEW, RELEASED)]


class Turn:
    """Whose turn it is knows, and notes for the next one, how much there is: to count it takes a look at every file."""

    def __init__(self, folders: Folders, lock: int) -> None:
        self._folders = folders
        self._lock = lock

    def usage(self) -> tuple[int, int]:
        """Mails, and octets of all their files: as it was noted, if nothing has changed since; else counted."""
        noted = os.pread(self._lock, 200, 0)
        with contextlib.suppress(ValueError):
            mails, octets, *times = map(int, noted.split(b" "))
            if noted.endswith(b"\n") and times == self._folders.changed():
                return mails, octets
        mails = octets = 0
        for state in (NEW, RELEASED):
            with os.scandir(self._folders[state]) as entries:
                for entry in entries:
                    mails += is_file(entry.name, RECORD)
                    with contextlib.suppress(FileNotFoundError):
                        octets += entry.stat(follow_symlinks=False).st_size
        self.note(mails, octets)
        return mails, octets

    def note(self, mails: int, octets: int) -> None:
        """So much there is now."""
        self.forget()
        os.pwrite(self._lock, b"%d %d %d %d\n" % (mails, octets, *self._folders.changed()), 0)

    def forget(self) -> None:
        """The next one has to count."""
        os.ftruncate(self._lock, 0)


def write_all(descriptor: int, octets: bytes) -> None:
    """However often it takes."""
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


def _opened(path: Path | str, parent: int | None, make: bool, owner: tuple[int, int] | None) -> int:
    """A directory; links are followed to the first of them, which is configured, and not within it."""
    made = False
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=parent)
            made = True
    descriptor = os.open(path, _DIRECTORY | (0 if parent is None else os.O_NOFOLLOW), dir_fd=parent)
    if made and owner is not None:
        os.fchown(descriptor, *owner)
    return descriptor

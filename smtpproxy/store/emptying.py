"""Having the journal let go of the lines that the store has: what is to be erased there must be nowhere else."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from smtpproxy.audit.journal import Journal, segments
from smtpproxy.store.errors import StoreError
from smtpproxy.store.owning import take
from smtpproxy.store.recorder import Recorder, Terms
from smtpproxy.store.store import Store

PATIENCE: Final = 30.0  # seconds for a running recorder
PAUSE: Final = 0.05  # seconds between two looks


def settled(directory: Path) -> None:
    """Begin a new segment, and see to it that the ones before it are taken over and gone: by the recorder that runs, or
    here if none does.

    Raises:
        StoreError: they are still there after a while, or can't be taken over.
    """
    until = time.monotonic() + PATIENCE
    try:
        number = _turned(directory, until)
    except FileNotFoundError:  # a copy without a journal
        return
    except BlockingIOError as error:
        raise StoreError(f"the journal of {directory} is busy: {error.strerror}") from error
    except OSError as error:
        raise StoreError(f"the journal of {directory} can't be written: {error.strerror}") from error
    while min(segments(directory / "journal"), default=number) < number:
        if time.monotonic() > until:
            raise StoreError("the recorder has not taken over what is in the journal; try again")
        if not _take_over(directory):
            time.sleep(PAUSE)


def _turned(directory: Path, until: float) -> int:
    """The segment that is written to from now on. Whose turn it is to write is waited for, a while."""
    found = os.stat(directory)
    owner = (found.st_uid, found.st_gid) if os.geteuid() == 0 else None
    while True:
        try:
            with contextlib.closing(Journal(directory / "journal", owner=owner)) as journal:
                return journal.turn()
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(PAUSE)


def _take_over(directory: Path) -> bool:
    """In place of a recorder; False: there is one."""
    lock = take(directory)
    if lock is None:
        return False
    try:
        with contextlib.closing(Store(directory, indexes=False)) as store:
            origin = store.value("origin")
        with contextlib.closing(Recorder(directory, Terms(origin, records=2**62, seconds=float("inf")))) as recorder:
            while recorder.step():
                pass
        return True
    finally:
        os.close(lock)

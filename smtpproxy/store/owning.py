"""Whose a store is: one recorder at a time has the lock of its directory, `DIR/lock`, and keeps it as long as it lives.

Who only adds to a store what is consistent by itself (erasing, pruning) needs no lock: SQLite has one of its own. It is
for what must not be done beside a recorder.
"""

import fcntl
import os
from pathlib import Path

from smtpproxy.store.errors import StoreError

LOCK = "lock"


def take(directory: Path) -> int | None:
    """The lock of a store, as a descriptor that holds it until it is closed; None: somebody has it.

    Raises:
        StoreError: there can't be one.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StoreError(f"the lock of the store {directory} can't be had: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise StoreError(f"the lock of the store {directory} can't be had: {error.strerror}") from error
    return descriptor

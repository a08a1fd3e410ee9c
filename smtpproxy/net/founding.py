"""How a generation comes to be: all that its setup names is opened, or nothing is.

What others have already is shared with them: listening sockets that stay where they are, and the lock of an audit that
several write. The audit itself is opened anew for each generation, because the file may have been moved away meanwhile
to be kept (logrotate(8)). Each has a signing process of its own, so that the CA is read again, too.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from smtpproxy.audit.appending import WriteLock, open_file
from smtpproxy.net import listening, privileges
from smtpproxy.net.generation import Failure, Generation, Record
from smtpproxy.net.listening import Held, ListenError
from smtpproxy.net.loop import Loop
from smtpproxy.net.metering import Metering
from smtpproxy.net.privileges import PrivilegeError
from smtpproxy.net.recording import Recording, RecordingError
from smtpproxy.net.service import STDOUT
from smtpproxy.net.setup import Setup
from smtpproxy.net.signingprocess import SignerError, SigningProcess
from smtpproxy.net.tally import Tallies


class CannotServeError(Exception):
    """A setup can't be served."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Shared(NamedTuple):
    """The lock of an audit, and which file that is."""

    lock: WriteLock
    file: tuple[int, int]


def found(
    number: int,
    setup: Setup,
    held: Sequence[Held],
    shared: Iterable[Shared],
    *,
    loop: Loop,
    tallies: Tallies,
    metering: Metering,
    patient: bool = False,
) -> Generation:
    """A generation that has not been started.

    Args:
        number: of the generation.
        setup: what it is to serve.
        held: listening sockets there are.
        shared: locks there are; none: no other process of this service is there yet.
        loop, tallies, metering: the supervisor's.
        patient: a predecessor may have the address of the metrics still.

    Raises:
        CannotServeError: something can't be had; all is as it was before.
    """
    config = setup.config
    with contextlib.ExitStack() as undo:
        try:
            identity = privileges.of_workers(config)
            own = listening.open_all(config, held)
            for one in listening.gone(own, held):
                undo.callback(listening.close, one)
            metering.open(config.metrics, identity, patient=patient)
            undo.callback(metering.stay)
            shared = tuple(shared)
            record = open_record(config.audit.file, shared)
            undo.callback(close_record, record, shared)
            recording = Recording.of(config, identity, first=not shared, gauges=metering.recorder)
            if recording is not None:
                undo.callback(recording.close)
                recording.start()
                recording.started()
            signing = SigningProcess.of(config, config.worker_count, identity)
            if signing is not None:
                signing.start()
        except (PrivilegeError, SignerError) as error:
            raise CannotServeError(Failure(2, str(error))) from error
        except (ListenError, AuditError, RecordingError) as error:
            raise CannotServeError(Failure(3, str(error))) from error
        undo.pop_all()
    return Generation(
        number,
        setup,
        own,
        record,
        loop=loop,
        tallies=tallies,
        metering=metering,
        signing=signing,
        recording=recording,
        identity=identity,
    )


class AuditError(Exception):
    """The audit can't be opened; the text says why."""


def open_record(path: str, shared: Iterable[Shared]) -> Record:
    """The audit, and the lock of those who write it. Where there is none, nobody writes it.

    Raises:
        AuditError: it can't be opened.
    """
    try:
        descriptor = os.dup(1) if path == STDOUT else open_file(path or os.devnull)
    except OSError as error:
        raise AuditError(f"the audit {path} can't be opened: {error.strerror}") from error
    stat = os.fstat(descriptor)
    file = stat.st_dev, stat.st_ino
    lock = next((other.lock for other in shared if other.file == file), None)
    return Record(descriptor, lock or WriteLock(), file)


def close_record(record: Record, shared: Iterable[Shared]) -> None:
    """Let go of an audit; of its lock, too, if nobody shares it."""
    os.close(record.descriptor)
    if all(other.lock is not record.lock for other in shared):
        os.close(record.lock.fileno())

"""The audit of one process: the records of all its sessions, on their way to a file, a journal, or both.

Records are collected during a turn of the driver and written together before any effect of them is sent (S8). Nothing
is dropped: if one of the places can't be written, `flush` says so and keeps everything, and whoever drives the sessions
waits. Where mails are to be told 250 only when their record is on the disk, `flush` leaves `unsettled` behind, and who
drives calls `settle` before anything is sent.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from smtpproxy.audit.appending import Appender
from smtpproxy.audit.entries import salts
from smtpproxy.audit.lines import Private, render
from smtpproxy.session.records import AuditRecord, Kind

VERSION = 1
PATIENT = 10  # flushes in a row that a full pipe may fail before that is trouble, or another process's turn


class AuditLog:
    """Where the records of all sessions of one process go.

    Args:
        places: what is written to.
        wall: the time of day, in seconds since 1970, for a session's clock reading.
        trouble: told once when writing fails, and once (with None) when it goes on.
        salted: what is personal stands behind a salt (entries.py), as the store wants it.
        durable: the place that has to be on the disk before a mail is told 250; None: no such place.
        meter: told of each record, too.
    """

    def __init__(
        self,
        places: Sequence[Appender],
        *,
        wall: Callable[[float], float],
        trouble: Callable[[OSError | None], None] = lambda error: None,
        salted: bool = False,
        durable: Appender | None = None,
        meter: Callable[[AuditRecord], None] | None = None,
    ) -> None:
        self._places = tuple(places)
        self._wall = wall
        self._trouble = trouble
        self._salt = salts() if salted else None
        self._durable = durable
        self._meter = meter
        self._failures = 0  # in a row
        self._told = False
        self._pending: list[bytes] = []
        self._unwritten = False  # something was given to the places, and not all of it is written
        self._committed = False  # a mail's record is among it
        self.unsettled = False
        self._sequence = 0
        self._encode = msgspec.json.Encoder().encode

    def session(self, session_id: str, private: Private | None = None) -> Callable[[AuditRecord], None]:
        """The record function of one session; `private` keeps addresses or transcripts from being read."""
        append = self._pending.append
        encode = self._encode
        wall = self._wall
        salt = self._salt
        meter = self._meter
        commit = Kind.COMMIT if self._durable is not None else None

        def record(item: AuditRecord) -> None:
            if meter is not None:
                meter(item)
            self._sequence += 1
            line: dict[str, Any] = {
                "v": VERSION,
                "at": datetime.fromtimestamp(wall(item.at), UTC),
                "up": round(item.at, 6),
                "seq": self._sequence,
                "session": session_id,
            }
            personal = render(item, line, private)
            if personal:
                if salt is not None:
                    line["salt"] = salt()
                line.update(personal)
            append(encode(line))
            if item.kind is commit:
                self._committed = True

        return record

    def flush(self) -> bool:
        """Write what was recorded; False if it could not be, and then nothing of it is lost."""
        if self._pending:
            self._pending.append(b"")
            octets = b"\n".join(self._pending)
            self._pending.clear()
            for place in self._places:
                place.add(octets)
            self._unwritten = True
        if not self._unwritten:
            return True
        try:
            for place in self._places:
                place.flush()
        except OSError as error:
            self._failures += 1
            patient = isinstance(error, BlockingIOError) and self._failures < PATIENT
            if not self._told and not patient:
                self._told = True
                self._trouble(error)
            return False
        self._unwritten = False
        self._failures = 0
        if self._committed:
            self._committed, self.unsettled = False, True
        if self._told:
            self._told = False
            self._trouble(None)
        return True

    def settle(self) -> None:
        """Have on the disk what was flushed. It blocks: to be called from a thread of its own.

        Raises:
            OSError: the disk failed. What it has is unknown (fsync(2)); nothing may be told on the strength of it.
        """
        self.unsettled = False
        if self._durable is not None:
            os.fdatasync(self._durable.descriptor)

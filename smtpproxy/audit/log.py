"""The audit as JSON lines: one file (or standard output), appended to, one line a record.

Records are collected during a turn of the driver and written together before any effect of them is sent (S8). Nothing
is dropped: if the file can't be written, `flush` says so and keeps everything, and whoever drives the sessions waits.
A line is only ever written once, and what was written of it when the disk filled up is gone on with.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from smtpproxy.audit.lines import render
from smtpproxy.session.records import AuditRecord

VERSION = 1


class AuditLog:
    """Where the records of all sessions of one process go.

    Args:
        descriptor: an open file descriptor; not closed here.
        wall: the time of day, in seconds since 1970, for a session's clock reading.
        trouble: told once when writing fails, and once (with None) when it goes on.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        wall: Callable[[float], float],
        trouble: Callable[[OSError | None], None] = lambda error: None,
    ) -> None:
        self._descriptor = descriptor
        self._wall = wall
        self._trouble = trouble
        self._failing = False
        self._pending: list[bytes] = []
        self._rest = b""  # of what was written in part
        self._sequence = 0
        self._encode = msgspec.json.Encoder().encode

    def session(self, session_id: str, **facts: Any) -> Callable[[AuditRecord], None]:
        """The record function of one session; `facts` stand on its connect record."""
        append = self._pending.append
        encode = self._encode
        wall = self._wall

        def record(item: AuditRecord) -> None:
            self._sequence += 1
            line = {
                "v": VERSION,
                "at": datetime.fromtimestamp(wall(item.at), UTC),
                "seq": self._sequence,
                "session": session_id,
            }
            line.update(render(item))
            append(encode(line))

        return record

    def flush(self) -> bool:
        """Write what was recorded; False if it could not be, and then nothing of it is lost."""
        if not self._pending and not self._rest:
            return True
        if self._pending:
            self._pending.append(b"")
            self._rest += b"\n".join(self._pending)
            self._pending.clear()
        try:
            while self._rest:
                written = os.write(self._descriptor, self._rest)
                self._rest = self._rest[written:] if written < len(self._rest) else b""
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._trouble(error)
            return False
        if self._failing:
            self._failing = False
            self._trouble(None)
        return True

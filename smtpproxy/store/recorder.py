"""The recorder: takes the journal over into the store, signs checkpoints, lets segments go.

It is one process of a gateway, and does one thing after the other. A step reads as many whole lines as there are (up to
a bound), adds them to the store in one transaction together with how far it read, and at times makes a checkpoint. So
after a crash, of whatever, it goes on with the first line that the store has not. What fails (the disk is full,
somebody holds the database) is tried again; the journal keeps what is to be done, and how much that is decides whether
mail is still taken (`State.behind`).

- A line that is none (its worker was killed while writing it) becomes an `audit-cut`, with its length and digest.
- A checkpoint is told to nobody before the disk has it, and all records before it: a power failure must not take away
  what was signed.
- A segment goes once the store has all of it on the disk.

What must never happen: a line taken twice or left out; an `audit-cut` for a line that is still being written.
"""

import contextlib
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from smtpproxy.audit import notes
from smtpproxy.audit.journal import State, segment_path, segments
from smtpproxy.store.errors import StoreError
from smtpproxy.store.indexing import NO_RECORD, Line, decode
from smtpproxy.store.store import Store, own_line

STEP: Final = 1_048_576  # octets of the journal taken in one step
LONGEST: Final = 16_777_216  # octets of a line that one waits the end of: a transcript is 64 KiB, six times as JSON
_object: Final = msgspec.json.Decoder(dict).decode


class Terms(NamedTuple):
    """How it is done.

    Attributes:
        origin: what checkpoints call this gateway's log.
        signer: signs them; None: nobody does.
        records, seconds: when a new one is made: after so many, or so long behind the last one, if there is something.
            Infinite seconds: time makes none, and a start neither.
        queue: octets of the journal that may wait for the store.
    """

    origin: str
    signer: notes.Signer | None = None
    records: int = 10_000
    seconds: float = 30.0
    queue: int = 1_073_741_824


class Progress(NamedTuple):
    """How far it is.

    Attributes:
        size: records in the store, those that were pruned too.
        octets: of the store, as far as they are in use.
        journal: octets of the journal; waiting: those of them that are not in the store yet.
        lag: seconds since nothing waited.
        full: there is no room for the record of further mails.
        signed: records the last checkpoint is of; checkpoint: when it was made, seconds since 1970, or, where the one
            that is due at the start was not made yet, when this began.
        checkpoints: made by this recorder.
        gaps: records that never came, as the numbers tell that workers give them; seen by this recorder.
    """

    size: int
    octets: int
    journal: int
    waiting: int
    lag: float
    full: bool
    signed: int
    checkpoint: float
    checkpoints: int
    gaps: int


class Recorder:
    """Takes over, a step at a time. It has the store for itself (`DIR/lock` is its owner's business).

    Attributes:
        more: the last step left something that was there.

    Raises:
        StoreError: the store can't be had.
        OSError: the journal can't.
    """

    def __init__(self, directory: Path, terms: Terms, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = directory / "journal"
        self._terms = terms
        self._clock = clock
        self.store = Store(directory, create=True)
        self._state = State(self._journal)
        self._segment, self._offset = _parsed(self.store.position)
        self._file: int | None = None
        self.more = False
        self._gaps = 0
        self._checkpoints = 0
        self._sequences: dict[str, int] = {}
        self._signed = self._last_checkpoint()
        # What was left unsigned is signed at once, and so is the beginning: with no checkpoint a key proves nothing.
        self._signed_at = clock() if self._signed and self._signed == self.store.size else float("-inf")
        self._began_at = self._caught_up_at = clock()
        try:
            self._introduce()
        except BaseException:
            self.close()
            raise

    def _introduce(self) -> None:
        """Whose log it is, and who signs it. Another key has to be introduced by the one before it (keys.py)."""
        with self.store.changing():
            known = self.store.value("vkey")
            signer = self._terms.signer
            if signer is not None and known not in ("", signer.vkey):
                raise StoreError(
                    f"the store {self.store.path.parent} is signed by another key, {known}:"
                    " `smtpproxy audit key rotate` introduces a new one; a new store takes any"
                )
            self.store.keep("origin", self._terms.origin)
            if signer is not None:
                self.store.keep("vkey", signer.vkey)

    def _last_checkpoint(self) -> int:
        found = self.store.connection.execute("SELECT max(size) FROM checkpoint").fetchone()[0]
        return int(found or 0)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        waiting = self._waiting()
        return Progress(
            size=self.store.size,
            octets=self.store.octets,
            journal=self._journal_octets(),
            waiting=waiting,
            lag=max(self._clock() - self._caught_up_at, 0.0) if waiting else 0.0,
            full=self._state.behind or self._state.refusing,
            signed=self._signed,
            checkpoint=self._began_at if self._signed_at < 0 else self._signed_at,
            checkpoints=self._checkpoints,
            gaps=self._gaps,
        )

    def step(self) -> bool:
        """Take over what there is, up to a bound; False if there was nothing.

        Raises:
            StoreError: the store could not be written; nothing has changed.
            OSError: the journal could not be read.
        """
        raw, offset, last = self._read()
        if raw:
            lines, found = self._understood(raw)
            self.store.append(lines, f"{self._segment}:{offset}", found)
            self._offset = offset
            self._count(found)
        if last and (following := [number for number in segments(self._journal) if number > self._segment]):
            self._next_segment(following[0])
        self.look_behind()
        if not raw and not last:
            self._caught_up_at = self._clock()
        self._checkpoint_if_due()
        return bool(raw) or last

    def _read(self) -> tuple[list[bytes], int, bool]:
        """Whole lines, where in the segment they end, and whether it comes to its end there."""
        if self._file is None and not self._open():
            return [], self._offset, False
        if self._file is None:
            raise AssertionError("an open segment has a descriptor")
        finished = self._state.segment > self._segment
        size = STEP
        while True:
            octets = os.pread(self._file, size, self._offset)
            end = octets.rfind(b"\n") + 1
            if end or len(octets) < size or size > LONGEST:
                break
            size *= 4
        self.more = len(octets) >= size
        if not end and octets and ((finished and len(octets) < size) or size > LONGEST):
            return [octets], self._offset + len(octets), finished and len(octets) < size  # nobody ends it any more
        last = finished and len(octets) < size and end == len(octets)
        lines = octets[: end - 1].split(b"\n") if end else []
        return [line for line in lines if line], self._offset + end, last

    def _open(self) -> bool:
        """The segment that is to be read; False: there is none yet."""
        if not self._segment:
            there = segments(self._journal)
            if not there:
                return False
            self._segment, self._offset = there[0], 0
        try:
            descriptor = os.open(segment_path(self._journal, self._segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # the store, or the journal, was put in place of another
            there = segments(self._journal)
            if not there:
                return False
            number = min((number for number in there if number > self._segment), default=there[0])
            self._segment, self._offset = number, 0
            return self._open()
        try:
            self._settle_segment()
        except BaseException:
            os.close(descriptor)
            raise
        self._file = descriptor
        return True

    def _settle_segment(self) -> None:
        """The one that is read has its name on the disk: else a power failure might take it away, and leave how far the
        store says that it was read. Those before it go."""
        directory = os.open(self._journal, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        before = [number for number in segments(self._journal) if number < self._segment]
        if before:
            self.store.settle()
        for number in before:
            segment_path(self._journal, number).unlink(missing_ok=True)

    def _next_segment(self, number: int) -> None:
        """The one before it is in the store; it goes when this one is opened."""
        with self.store.changing():
            self.store.position = f"{number}:0"
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._segment, self._offset = number, 0

    @staticmethod
    def _understood(raw: list[bytes]) -> tuple[list[bytes], list[Line]]:
        """The lines to be kept, and what they say."""
        with contextlib.suppress(*NO_RECORD):
            return raw, [decode(line) for line in raw]
        found = [_understood(line) for line in raw]  # seldom: one of them is none
        return [line for line, _ in found], [values for _, values in found]

    def _count(self, lines: list[Line]) -> None:
        """Each worker numbers its records: one that is missing was lost."""
        sequences = self._sequences
        for line in lines:
            if line.seq:
                worker = line.session.partition("-")[0]
                before = sequences.get(worker)
                if before is not None and line.seq > before + 1:
                    self._gaps += line.seq - before - 1
                sequences[worker] = line.seq
            elif line.kind == "worker-died":
                sequences.pop(line.worker, None)

    # ----------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint_if_due(self) -> None:
        fresh = self.store.size - self._signed
        behind = self._clock() - self._signed_at  # below 0: the clock was set back
        late = self._terms.seconds < float("inf") and not 0 <= behind < self._terms.seconds
        if fresh and (late or fresh >= self._terms.records):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Sign what there is, if it is not signed yet.

        Raises:
            StoreError, OSError: it can't be done now.
        """
        size = self.store.size
        if size == self._signed:
            self._signed_at = self._clock()
            return
        root = self.store.frontier.root()
        text = notes.checkpoint_text(self._terms.origin, size, root)
        note = notes.sign(text, self._terms.signer) if self._terms.signer is not None else text
        with self.store.on_disk(), self.store.changing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, NULL)", (size, self._clock(), root, note)
            )
        self._signed, self._signed_at = size, self._clock()
        self._checkpoints += 1

    # ---------------------------------------------------------------------------------------------- back-pressure

    def _waiting(self) -> int:
        """Octets of the journal that are not in the store."""
        return max(self._journal_octets(self._segment) - self._offset, 0)

    def _journal_octets(self, first: int = 0) -> int:
        """Octets of all segments from this one on."""
        octets = 0
        for number in segments(self._journal):
            if number >= first:
                with contextlib.suppress(FileNotFoundError):
                    octets += segment_path(self._journal, number).stat().st_size
        return octets

    def look_behind(self) -> None:
        """See how much waits for the store; to be called also where `step` fails."""
        waiting = self._waiting()
        if waiting > self._terms.queue:
            self._state.behind = True
        elif self._state.behind and waiting < self._terms.queue // 2:
            self._state.behind = False

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            os.close(self._file)
        self._state.close()
        self.store.close()


def _understood(line: bytes) -> tuple[bytes, Line]:
    try:
        return line, decode(line)
    except NO_RECORD:
        with contextlib.suppress(*NO_RECORD):
            _object(line)
            return line, Line()  # of another version
        cut = {"octets": len(line), "sha256": sha256(line).hexdigest()}
        return own_line("audit-cut", cut), Line(kind="audit-cut")


def _parsed(position: str) -> tuple[int, int]:
    segment, _, offset = position.partition(":")
    return int(segment or 0), int(offset or 0)

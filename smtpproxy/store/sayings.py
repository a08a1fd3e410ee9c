"""What records say of themselves and of each other, looked at while they are verified.

Each worker numbers its own (`seq`, without a gap); the clock of the machine goes on (`up`) where the wall's was set
back; what is erased or pruned has a record that says so; a key was introduced by the one before it.
"""

from bisect import bisect_right
from typing import Any, Final, NamedTuple

import msgspec

from smtpproxy.audit.entries import SALT
from smtpproxy.columns import count
from smtpproxy.store.indexing import NO_RECORD, Time

SET_BACK: Final = 1.0  # seconds that the wall clock may go back between two records: workers write one after another
MOST: Final = 1000  # findings that are told
_ERASED: Final = b',"personal":"'


class Finding(NamedTuple):
    """Something that is not as it was.

    Attributes:
        number: of the first record it is about; None: of none.
    """

    number: int | None
    text: str


class Report:
    """What a look at the record came to.

    Attributes:
        findings: what is not as it was, in order.
        notes: what is worth knowing, and nobody's fault.
        records: how many were looked at.
        size: how many there are, those that were pruned included.
        anchored: the size of the last checkpoint that fits.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.records = 0
        self.size = 0
        self.anchored = 0
        self.checkpoints = 0

    def find(self, number: int | None, text: str) -> None:
        """Put a finding down."""
        if len(self.findings) < MOST:
            self.findings.append(Finding(number, text))


class _Said(msgspec.Struct, gc=False):
    """What of a record is compared with others."""

    kind: str = ""
    session: str = ""
    seq: int = 0
    at: str = ""
    up: float = 0.0
    ranges: Any = ()
    first: Any = 0
    vkey: Any = ""
    note: Any = ""
    previous: Any = ""


_said = msgspec.json.Decoder(_Said).decode


class Sayings:
    """Takes the records in order.

    Attributes:
        whole: as below.
        pruned_to: the number up to which some record says that there was pruning.
        successions: the records that introduce a key: their number, what key signed before, the note.

    Args:
        report: findings and notes are put down there.
        whole: it begins with the first record there ever was: each worker's first is its number 1.
    """

    def __init__(self, report: Report, *, whole: bool) -> None:
        self._report = report
        self.whole = whole
        self.pruned_to = 0
        self.successions: list[tuple[int, str, str]] = []
        self._sequences: dict[str, int] = {}
        self._last_at, self._last_up, self._last_number = "", 0.0, -1
        self._erased: list[list[int]] = []
        self._allowed: list[tuple[int, int]] = []

    def look_at(self, number: int, line: bytes, *, sound: bool) -> None:
        """The next record. `sound`: nothing was found so far that explains a gap."""
        try:
            said = _said(line)
        except NO_RECORD:
            self._report.notes.append(f"record {number} is no JSON")
            return
        if said.seq:
            worker = said.session.partition("-")[0]
            before = self._sequences.get(worker)
            self._sequences[worker] = said.seq
            if said.seq != (before or 0) + 1 and (before is not None or self.whole) and sound:
                self._sequence(number, worker, before or 0, said.seq)
        elif said.kind.startswith("audit-"):
            self._own(number, said)
        if said.at < self._last_at and said.up >= self._last_up and self._set_back(said.at):
            self._report.notes.append(
                f"the clock was set back between the records {self._last_number} and {number}:"
                f" from {self._last_at} to {said.at}"
            )
        self._last_at, self._last_up, self._last_number = said.at, said.up, number
        if SALT not in line and _ERASED in line:
            if self._erased and self._erased[-1][1] == number - 1:
                self._erased[-1][1] = number
            else:
                self._erased.append([number, number])

    def _sequence(self, number: int, worker: str, before: int, seq: int) -> None:
        if seq > before + 1:
            which = f"record {before + 1}" if seq == before + 2 else f"records {before + 1} to {seq - 1}"
            self._report.find(number, f"{which} of worker {worker} never came here: {number} is its {seq}")
        else:
            self._report.find(number, f"record {number} is number {seq} of worker {worker}, which comes after {before}")

    def _set_back(self, at: str) -> bool:
        try:
            now, before = (msgspec.convert(text, Time) for text in (at, self._last_at))
        except msgspec.ValidationError:
            return False
        return bool((before - now).total_seconds() > SET_BACK)

    def _own(self, number: int, said: _Said) -> None:
        if said.kind == "audit-erase" and isinstance(said.ranges, list):
            for pair in said.ranges:
                if isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, int) for each in pair):
                    self._allowed.append((pair[0], min(pair[1], number - 1)))  # what comes behind it, it can't mean
        elif said.kind == "audit-prune" and isinstance(said.first, int):
            self.pruned_to = max(self.pruned_to, said.first)
        elif said.kind == "audit-key" and isinstance(said.note, str):
            self.successions.append((number, str(said.previous), said.note))
        elif said.kind == "audit-cut":
            self._report.notes.append(f"record {number}: a line was cut off by a crash while it was written")

    def compare_erased(self) -> None:
        """Who takes what is personal out of a record has to say so."""
        allowed: list[list[int]] = []
        for first, last in sorted(self._allowed):
            if allowed and first <= allowed[-1][1] + 1:
                allowed[-1][1] = max(allowed[-1][1], last)
            else:
                allowed.append([first, last])
        starts = [first for first, _ in allowed]
        total = 0
        for first, last in self._erased:
            total += last - first + 1
            at = bisect_right(starts, first) - 1
            until = allowed[at][1] if at >= 0 else -1
            if until < last:
                number = max(first, until + 1)
                self._report.find(number, f"what is personal in record {number} is withheld, and no record says so")
        if total:
            self._report.notes.append(f"what is personal was erased from {count(total, 'record')}")

"""Whether the record is as it was: everything is hashed again, and compared with what was signed.

Lines are read block by block, in the order of their numbers. Three things are made of them and compared:

    leaf      with the 8 octets of it that stand beside the lines    says which line is another one
    subtree   of 256 leaves, with its row                            says within which 256
    root      at each checkpoint, with what was signed, and with     says that something before it is another one, and
              the checkpoints that somebody kept elsewhere           can't be made to fit without the key

The first two name what was changed. Only the third proves that nothing was: who can write the store can make the first
two fit, and with the key the signed checkpoints as well; what was kept elsewhere he can't reach. So what is found is
told by the first that finds it, and a root that does not fit for that reason is not told again.

Beside it, records say things that have to fit together: each worker numbers its own (`seq`), the clock of the machine
goes on (`up`) where the wall's was set back, what is erased or pruned has a record that says so.

What is read here was perhaps written by who wants to hide something: nothing in it is believed further than it is
checked, and nothing in it makes this fail.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Final

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.keys import Term, follow, open_checkpoint
from smtpproxy.audit.notes import Checkpoint, NoteError, parse_checkpoint, unverified_text
from smtpproxy.audit.tree import Frontier, check_consistency
from smtpproxy.columns import count
from smtpproxy.store.outside import outside
from smtpproxy.store.reading import Reader
from smtpproxy.store.sayings import MOST, Report, Sayings
from smtpproxy.store.store import SUBTREE, time_of

PREFIX: Final = 8  # octets of a leaf that stand beside a block's lines
MOST_UNSIGNED: Final = 125_000  # records behind the last checkpoint: more than any setting leaves there, and a step's
LONGEST_UNSIGNED: Final = 4_000.0  # seconds from the first to the last of them, likewise
KEY: Final = b'"kind":"audit-key"'
NONSENSE: Final = (TypeError, ValueError, OverflowError, AttributeError, IndexError)


class Verifying:
    """One look at a store.

    Args:
        reader: of it.
        vkey: the key that is trusted; "": the one the store names, which proves little.
        kept: checkpoints that were kept elsewhere, as notes.
        start, stop: the numbers to be looked at; the first is taken down to a multiple of 256.
        progress: told how many records were looked at, at times.
        copy: it is a database, which is pruned without a record: that is the gateway's.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        vkey: str = "",
        kept: Sequence[str] = (),
        start: int = 0,
        stop: int | None = None,
        progress: Callable[[int], None] = lambda records: None,
        copy: bool = False,
    ) -> None:
        self._reader = reader
        self._copy = copy
        self._progress = progress
        self.report = Report()
        self._range, self._notes = (start, stop), kept
        self._first = self._size = self._stop = self._start = 0
        self._at = 0  # the block that is looked at
        self._trusted = self._vkey = vkey
        self._subtrees: dict[int, bytes] = {}
        self._checkpoints: list[tuple[int, bytes, str, bytes]] = []
        self._roots: dict[int, bytes] = {}  # by size: what the records come to
        self._wanted: list[int] = []
        self._kept: list[tuple[str, Checkpoint]] = []
        self._high = Frontier()  # of subtrees
        self._low: Frontier | None = Frontier()  # of the subtree that is not whole yet; None: some of it is not there
        self._hole = False  # a subtree is not known, so no later root can be made
        self._sound = True  # no finding so far that explains another root
        self._sayings = Sayings(self.report, whole=False)

    def _keep(self, note: str) -> None:
        try:
            text = unverified_text(note) if self._vkey or "\n\n" in note else note  # without a key nobody signs
            self._kept.append((note, parse_checkpoint(text)))
        except NoteError as error:
            self.report.find(None, f"a kept checkpoint can't be read: {error}")

    # ----------------------------------------------------------------------------------------------------- reading

    def run(self) -> Report:
        """Look at it, as it is at one moment.

        Raises:
            StoreError: it can't be read.
        """
        with self._reader.snapshot():
            try:
                self._prepare()
                self._look()
            except NONSENSE as error:  # a value of a type, or a number, that no recorder writes
                self._sound = False
                self.report.find(self._at, f"from record {self._at} on something is no store's any more: {error}")
        return self.report

    def _prepare(self) -> None:
        """What the store says of itself."""
        reader = self._reader
        self._first, self._size = int(reader.meta("first") or 0), int(reader.meta("size") or 0)
        self._vkey = self._trusted or reader.meta("vkey")
        self.report.size = self._size
        for note in self._notes:
            self._keep(note)
        for n, digest in reader.rows("SELECT n, hash FROM subtree ORDER BY n"):
            self._subtrees[n] = _octets(digest, f"the hash of the records from {n * SUBTREE} on")
        for size, root, note, bridge in reader.rows("SELECT size, root, note, bridge FROM checkpoint ORDER BY size"):
            name = f"the checkpoint of {size} records"
            self._checkpoints.append((int(size), _octets(root, name), str(note), _octets(bridge or b"", name)))
        if not 0 <= self._first <= self._size:
            raise ValueError(f"it has {self._size} records, and begins with record {self._first}")
        start, stop = self._range
        self._stop = self._size if stop is None else min(stop, self._size)
        self._start = max(start // SUBTREE * SUBTREE, self._first)
        self._sayings.whole = self._start == 0
        for finding in outside(reader, self._size, copy=self._copy):
            self.report.find(*finding)
        self._wanted = sorted({size for size, *_ in self._checkpoints} | {c.size for _, c in self._kept}, reverse=True)

    @property
    def _whole(self) -> bool:
        """All that is there is looked at."""
        return self._start == self._first and self._stop == self._size

    def _look(self) -> None:
        self._begin()
        expected = self._start
        for first, stated, lines, leaves in self._reader.blocks(self._start, self._stop):
            expected = self._block(first, stated, lines, leaves, expected)
            self._at = expected
            self._progress(self.report.records)
        if expected < self._stop:
            self._missing(expected, self._stop)
        self._compare_frontier()
        self._compare_checkpoints()
        self._compare_kept()
        self._sayings.compare_erased()
        if self._first and self._sayings.pruned_to < self._first and self._stop == self._size:
            gone = f"the records 0 to {self._first - 1} are gone"
            if self._copy:
                self.report.notes.append(f"{gone}: they were pruned here, and the gateway may have them")
            else:
                self.report.find(0, f"{gone}, and no record says that they were pruned")

    def _begin(self) -> None:
        """What is before the first one that is looked at is taken as its subtrees say."""
        bridged: dict[int, list[tuple[int, bytes]]] = {}
        for size, _root, _note, bridge in self._checkpoints:
            if bridge and size % SUBTREE:
                bridged.setdefault(size // SUBTREE, []).append((size, bridge))
        for n in range(self._start // SUBTREE):
            if len(self.report.findings) >= MOST:  # whatever number stands there, it is not gone through to its end
                raise ValueError("too much of it is missing")
            digest = self._subtrees.get(n)
            if digest is None:
                which = f"{n * SUBTREE} to {n * SUBTREE + 255}"
                self.report.find(n * SUBTREE, f"the hash of the records {which} is missing")
                self._sound = False
                digest = bytes(32)
            for size, bridge in bridged.get(n, ()):
                self._cross(size, bridge, digest)
            while self._wanted and self._wanted[-1] < n * SUBTREE:
                self._wanted.pop()
            self._roots_at(n * SUBTREE)
            self._high.append(digest)
        while self._wanted and self._wanted[-1] < self._start:
            self._wanted.pop()

    def _roots_at(self, size: int) -> None:
        """What the tree comes to here, if a checkpoint wants to know and all before it is known."""
        while self._wanted and self._wanted[-1] <= size:
            if self._wanted.pop() == size and self._low is not None and not self._hole:
                self._roots[size] = Frontier(size, self._high.hashes + self._low.hashes).root()

    def _block(self, first: int, stated: int, lines: list[bytes], leaves: bytes, expected: int) -> int:
        """One row of lines; the number that has to come next."""
        if first < self._start:  # it begins before what is looked at, and is counted from there
            skipped = self._start - first
            first, stated, lines, leaves = self._start, stated - skipped, lines[skipped:], leaves[skipped * PREFIX :]
        if first > expected:
            self._missing(expected, first)
        elif first < expected:
            self._sound = False
            self.report.find(first, f"records are there twice: a block begins with {first}, and {expected} is to come")
            return expected
        hashes = [leaf_of(line) for line in lines]
        same = b"".join([digest[:PREFIX] for digest in hashes]) == leaves
        if same and stated != len(lines):
            self.report.find(first, f"the count of the records from {first} on was changed")
            stated = len(lines)
        elif not same:
            self._differs(first, stated, hashes, leaves)
        number, end = first, min(first + max(stated, 1), self._stop)
        for line, digest in zip(lines, hashes, strict=True):
            if number >= end:
                break
            if self._wanted and self._wanted[-1] <= number:
                self._roots_at(number)
            if KEY in line and self._low is not None and not self._hole:  # the tree that is handed over with it
                self._roots[number] = Frontier(number, self._high.hashes + self._low.hashes).root()
            if self._low is not None:
                self._low.append(digest)
            self._sayings.look_at(number, line, sound=self._sound)
            number += 1
            if not number % SUBTREE:
                self._subtree(number)
        self.report.records += number - first
        if number < end:  # which was told already
            self._skip_to(end)
        return end

    def _missing(self, start: int, stop: int) -> None:
        self._sound = False
        which = f"record {start} is" if stop - start == 1 else f"records {start} to {stop - 1} are"
        self.report.find(start, f"{which} missing")
        self._skip_to(stop)

    def _skip_to(self, number: int) -> None:
        """Go on behind records that are not there, with what is known of their subtrees."""
        while not self._hole and self._high.size < number // SUBTREE:
            self._take_known()
        self._low = None if number % SUBTREE else Frontier()
        while self._wanted and self._wanted[-1] < number:
            self._wanted.pop()

    def _take_known(self) -> None:
        """A subtree as its row says; without one, the tree can't be made any more."""
        known = self._subtrees.get(self._high.size)
        if known is None:
            self._hole = True
        else:
            self._high.append(known)

    def _subtree(self, number: int) -> None:
        """256 leaves are whole."""
        low, self._low = self._low, Frontier()
        n = number // SUBTREE - 1
        digest, known = low.root() if low is not None else None, self._subtrees.get(n)
        if known is None:
            self._sound = False
            self.report.find(n * SUBTREE, f"the hash of the records {n * SUBTREE} to {number - 1} is missing")
        elif digest is not None and digest != known:
            if self._sound:
                what = f"among the records {n * SUBTREE} to {number - 1} something was changed, and what names it, too"
                self.report.find(n * SUBTREE, what)
            self._sound = False
        if not self._hole:
            self._take_known()

    # ------------------------------------------------------------------------------------------------- which line

    def _differs(self, first: int, stated: int, hashes: list[bytes], leaves: bytes) -> None:
        """Some lines of a block are not those whose leaves stand beside it: which, and how."""
        self._sound = False
        there = [digest[:PREFIX] for digest in hashes]
        known = [leaves[at : at + PREFIX] for at in range(0, len(leaves), PREFIX)]
        if len(known) != stated and len(there) == stated:
            self.report.find(first, f"what names the records {first} to {first + stated - 1} was changed")
            return
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, known, there, autojunk=False).get_opcodes():
            if tag == "equal":
                continue
            number = first + i1
            gone, new = known[i1:i2], there[j1:j2]
            elsewhere = [one for one in new if one in known]
            if tag == "replace" and len(gone) == len(new) and not elsewhere:
                self._tell(number, i2 - i1, "changed")
            elif elsewhere and sorted(known) == sorted(there):
                self.report.find(number, f"record {number} is not in its place: records were reordered from here on")
                return
            elif elsewhere:
                self.report.find(number, f"a copy of record {first + known.index(elsewhere[0])} stands at {number}")
            elif tag == "insert" or (len(new) > len(gone)):
                if gone:
                    self._tell(number, len(gone), "changed")
                extra = len(new) - len(gone)
                what = f"{count(extra, 'record')} {'was' if extra == 1 else 'were'} inserted"
                self.report.find(number + len(gone), f"{what} before record {number + len(gone)}")
            else:
                if new:
                    self._tell(number, len(new), "changed")
                self._tell(number + len(new), len(gone) - len(new), "missing")

    def _tell(self, number: int, records: int, what: str) -> None:
        if records == 1:
            self.report.find(number, f"record {number} {'is' if what == 'missing' else 'was'} {what}")
        else:
            verb = "are" if what == "missing" else "were"
            self.report.find(number, f"records {number} to {number + records - 1} {verb} {what}")

    # ------------------------------------------------------------------------------------------------ comparing

    def _compare_frontier(self) -> None:
        """What the recorder goes on from."""
        if self._stop < self._size:
            return
        self._roots_at(self._size)
        try:
            kept = Frontier.from_bytes(self._size, bytes.fromhex(self._reader.meta("frontier")))
        except ValueError:
            self.report.find(None, "the state of the tree can't be read")
            return
        if self._sound and self._low is not None and kept.hashes != self._high.hashes + self._low.hashes:
            self._sound = False
            start = self._high.size * SUBTREE
            self.report.find(start, f"among the records from {start} on something was changed, and what names it, too")

    def _terms(self) -> list[Term] | None:
        """The keys that are good, or None where there is none."""
        if not self._vkey:
            return None
        notes = [note for _, _, note in self._sayings.successions]
        for skipped in range(len(notes) + 1):  # the trusted key may be a later one
            try:
                return follow(self._vkey, notes[skipped:])
            except NoteError as error:
                if skipped == len(notes):
                    self.report.find(None, f"the key {self._vkey} does not lead to the one that signs now: {error}")
        return None

    def _compare_checkpoints(self) -> None:
        """Each that the store has. The first that does not fit is told; a signature that is none is, always."""
        if not self._trusted and self._vkey and self._sayings.successions:
            self._vkey = self._sayings.successions[0][1]  # the store's word, which is all there is
        terms = self._terms()
        fits = True
        before = 0
        for size, root, note, _ in self._checkpoints:
            self.report.checkpoints += 1
            if terms is not None:
                try:
                    signed = open_checkpoint(note, terms)
                except NoteError as error:
                    self.report.find(None, f"the checkpoint of {size} records is not signed as it should be: {error}")
                    continue
                if (signed.size, signed.root) != (size, root):
                    self.report.find(None, f"the checkpoint of {size} records says something else than its note")
                    continue
            if size > self._size:
                missing = size - self._size
                self.report.find(self._size, f"{_are(missing)} missing at the end: a checkpoint is of {size}")
                fits = False
            elif (found := self._roots.get(size)) is not None and found != root:
                if fits and self._sound:
                    first = max(before, self._first)
                    what = f"among the records {first} to {size - 1} something was changed, and what names it, too"
                    self.report.find(first, f"{what}: they are not what the checkpoint of {size} records signs")
                fits = False
            elif found is not None and fits and self._sound:
                self.report.anchored = before = size
        self._compare_handed_over(terms or ())
        if fits and self._sound and self._stop == self._size and self.report.anchored < self._size:
            self._unsigned(terms is not None)
        if terms is None:
            self.report.notes.append("no checkpoint is signed: who can write the store can make another one of it")
        elif not self._trusted:
            self.report.notes.append("the key is the store's own word: --key or --checkpoint proves more")

    def _compare_handed_over(self, terms: Sequence[Term]) -> None:
        """Where a key took over, the one before it signed what the tree was: who has the new one alone can't change
        what is before."""
        for term in terms:
            if term.start is None or not self._sound:
                continue
            found = self._roots.get(term.start.size)
            if found is not None and found != term.start.root:
                what = f"among the records 0 to {term.start.size - 1} something was changed, and what names it, too"
                self.report.find(self._first, f"{what}: they are not what was handed over to the next key")
                self._sound = False
            elif found is None and self._whole:
                self.report.find(None, f"what was handed over to the next key, {term.start.size} records, is not there")

    def _unsigned(self, keyed: bool) -> None:
        """Records behind the last checkpoint: a few, and new ones, are always there; nothing proves them yet."""
        records = self._size - self.report.anchored
        begin = max(self.report.anchored, self._first)
        ends = [time_of(line) for at in (begin, self._size - 1) for _, line in self._reader.lines(at, at + 1)]
        lasted = max(ends) - min(ends) if len(ends) == 2 and all(ends) else 0.0
        if self._trusted and not self.report.anchored and self._whole:
            self.report.find(None, "there is no checkpoint that the key signed: so it proves nothing here")
        elif keyed and (records > MOST_UNSIGNED or lasted > LONGEST_UNSIGNED):
            tail = f"behind the last checkpoint, of {lasted / 3600:,.1f} hours: no recorder leaves that unsigned"
            self.report.find(begin, f"{_are(records)} {tail}")
        else:
            self.report.notes.append(f"{_are(records)} behind the last checkpoint")

    def _compare_kept(self) -> None:
        """What somebody kept elsewhere, which nobody here could change."""
        terms = self._terms() if self._vkey else None
        roots: dict[tuple[str, int], bytes] = {}
        for note, claimed in self._kept:
            if terms is not None:
                try:
                    open_checkpoint(note, terms)
                except NoteError as error:
                    self.report.find(None, f"the kept checkpoint of {claimed.size} records is no proof: {error}")
                    continue
            other = roots.setdefault((claimed.origin, claimed.size), claimed.root)
            if other != claimed.root:
                text = f"two checkpoints of {claimed.size} records differ: two histories were signed (a split view)"
                self.report.find(None, text)
            elif claimed.size > self._size:
                self.report.find(
                    self._size,
                    f"{_are(claimed.size - self._size)} missing: the kept checkpoint is of {claimed.size}, and there"
                    f" are {self._size}; this is an older copy, or its end was cut off",
                )
            elif (found := self._roots.get(claimed.size)) is None:
                what = f"the kept checkpoint of {claimed.size} records"
                if self._sound and self._whole:
                    self.report.find(None, f"{what} can't be compared: what it is about was taken away")
                elif self._sound:
                    self.report.notes.append(f"{what} is not within what was read")
            elif found != claimed.root:
                self.report.find(
                    None, f"the record was rewritten: its first {claimed.size} are not those of the kept checkpoint"
                )
            else:
                self.report.notes.append(f"the kept checkpoint of {claimed.size} records fits")

    def _cross(self, size: int, bridge: bytes, digest: bytes) -> None:
        """The root at a checkpoint in the middle of a subtree whose records were pruned."""
        within = size % SUBTREE
        hashes = [bridge[at : at + 32] for at in range(0, len(bridge), 32)]
        peaks, proof = hashes[: within.bit_count()], hashes[within.bit_count() :]
        if len(bridge) % 32 or len(peaks) != within.bit_count():
            return
        if check_consistency(within, SUBTREE, proof, Frontier(within, peaks).root(), digest):
            self._roots[size] = Frontier(size, (*self._high.hashes, *peaks)).root()


def _octets(value: object, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{what} is none")
    return value


def _are(number: int) -> str:
    return f"{count(number, 'record')} {'is' if number == 1 else 'are'}"

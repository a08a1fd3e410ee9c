"""The audit read back: its lines as values, in the order of time, and the sessions they belong to.

An audit is one file or several (rotated, compressed by gzip, those of several machines) or standard input. What must
never happen:

- *Memory that grows with the audit.* Sessions are interleaved, and some have no end on record; so only so many are kept
  at a time (`Together`), and the one nothing was heard of for the longest time goes first. A line has a length.
- *A line that is passed over in silence.* A crash or a full disk leaves a line cut off, a rotation a file cut short:
  what can't be read is counted, and the first of it is told with file and number.
"""

import gzip
import heapq
import io
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, TypeVar

import msgspec

from smtpproxy.proving.recorded import VERSION, Close, Commit, Connect, Exchange, Record, Refused

STDIN: Final = Path("-")
LONGEST: Final = 16 << 20  # octets of one line; the longest replies a session lets through make a quarter of it
MOST_OPEN: Final = 20_000  # sessions that are kept at a time
MOST_RECORDS: Final = 100_000  # of one session that are kept, where a session is wanted whole
_LINE_END: Final = b"\n"

T = TypeVar("T")


class HistoryError(Exception):
    """The audit can't be read: no such file, or not an audit."""


# --------------------------------------------------------------------------------------------------------- a period

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment(text: str, now: datetime) -> datetime:
    """The moment `7d` ago, or that of an ISO 8601 date or time; without a zone it is in local time.

    Raises:
        ValueError: it is neither.
    """
    if found := _SPAN.fullmatch(text.strip()):
        try:
            return now - timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no span such as 7d or 12h, and no date such as 2026-11-23") from None
    return at.astimezone(UTC) if at.tzinfo is not None else at.astimezone()


# --------------------------------------------------------------------------------------------------------- the files


@dataclass
class Seen:
    """What was met while reading: `lines` in all; `broken` that could not be read, and where the first of them is."""

    lines: int = 0
    broken: int = 0
    first_broken: str = ""
    strange: int = 0  # of a kind that is not known here
    records: int = 0  # of the period


@dataclass
class _Source:
    path: Path
    size: int = 0
    raw: Any = None  # what is read of, as it is on the disk
    over: bool = False

    @property
    def at(self) -> int:
        return self.size if self.over else self.raw.tell() if self.raw is not None and self.size else 0


@dataclass
class Audit:
    """The records of some files, in the order of time.

    Within a file the order is the file's (several workers write it, each a turn at a time); those of several files are
    merged.

    Args:
        paths: the files; `-` is standard input, a name that ends in `.gz` or a file that begins like one is unpacked.
        since, until: records before and from these moments are left out.
        stdin: what stands for standard input.

    Raises:
        HistoryError: a file can't be opened, or holds no audit.
    """

    paths: Sequence[Path]
    since: datetime | None = None
    until: datetime | None = None
    stdin: BinaryIO | None = None
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self._decode: Callable[[bytes], Record] = msgspec.json.Decoder(Record).decode
        self._sources = []
        for path in dict.fromkeys(self.paths):
            try:
                size = 0 if path == STDIN else path.stat().st_size
            except OSError as error:
                raise HistoryError(f"{path}: {error.strerror}") from None
            if path != STDIN and path.is_dir():
                raise HistoryError(f"{path} is a directory: name its files, e.g. {path / 'audit.jsonl*'}")
            self._sources.append(_Source(path, size))

    @property
    def size(self) -> int:
        """Octets on the disk; standard input counts as none."""
        return sum(source.size for source in self._sources)

    @property
    def position(self) -> int:
        """How many of them have been read."""
        return sum(source.at for source in self._sources)

    def __iter__(self) -> Iterator[Record]:
        """The records, once.

        Raises:
            HistoryError: a file can't be read, or holds no audit.
        """
        several = [self._read(source) for source in self._sources]
        if len(several) == 1:
            return several[0]
        return heapq.merge(*several, key=attrgetter("at"))

    def _read(self, source: _Source) -> Generator[Record, None, None]:
        seen, since, until, decode = self.seen, self.since, self.until, self._decode
        begun, number = False, 0
        with closing(self._opened(source)) as file:
            for number, line in enumerate(_lines(file), 1):
                seen.lines += 1
                try:
                    if line is None:
                        raise msgspec.DecodeError
                    record = decode(line)
                except msgspec.MsgspecError:
                    self._unread(source, number, line)
                    continue
                if record.v != VERSION:
                    raise HistoryError(f"{source.path}:{number}: an audit of format {record.v}, and {VERSION} is known")
                begun = True
                if (since is None or record.at >= since) and (until is None or record.at < until):
                    seen.records += 1
                    yield record
        source.over = True
        if number and not begun:
            raise HistoryError(f"{source.path}: no line of it is a record of an audit")

    def _unread(self, source: _Source, number: int, line: bytes | None) -> None:
        try:
            strange = line is not None and isinstance(msgspec.json.decode(line), dict) and b'"kind"' in line
        except msgspec.MsgspecError:
            strange = False
        if strange:
            self.seen.strange += 1
            return
        self.seen.broken += 1
        self.seen.first_broken = self.seen.first_broken or f"{source.path}:{number}"

    def _opened(self, source: _Source) -> io.BufferedIOBase:
        """As it is read: unpacked."""
        try:
            if source.path == STDIN:
                if self.stdin is None:
                    raise HistoryError("there is no standard input")
                raw: io.BufferedReader[Any] = io.BufferedReader(_Lent(self.stdin))
            else:
                raw = io.BufferedReader(io.FileIO(source.path))
            source.raw = raw
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise HistoryError(f"{source.path}: {error.strerror}") from None
        return _Unpacked(raw) if packed else raw


class _Lent(io.RawIOBase):
    """Standard input, that is read and never closed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        octets = self._stream.read1(len(buffer)) if hasattr(self._stream, "read1") else self._stream.read(len(buffer))
        buffer[: len(octets)] = octets
        return len(octets)


class _Unpacked(gzip.GzipFile):
    """A packed file; the file itself is closed with it."""

    def __init__(self, packed: "io.BufferedReader[Any]") -> None:
        self._packed = packed
        super().__init__(fileobj=packed, mode="rb")

    def close(self) -> None:
        """Both."""
        super().close()
        self._packed.close()


def _lines(file: io.BufferedIOBase) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long, or where a packed file was cut short."""
    try:
        while line := file.readline(LONGEST):
            if line.endswith(_LINE_END) or len(line) < LONGEST:
                if line.strip():
                    yield line
                continue
            yield None
            while (line := file.readline(LONGEST)) and not line.endswith(_LINE_END):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield None
    except OSError as error:
        raise HistoryError(f"{getattr(file, 'name', 'the audit')}: {error.strerror}") from None


# ------------------------------------------------------------------------------------------------------ the sessions


class Together(Generic[T]):
    """What is kept of each session, of so many at a time. The one untouched for the longest time goes first.

    Args:
        make: what is kept of a session whose beginning was just met.
        left: told what goes because there are too many.
        most: how many are kept.
    """

    def __init__(
        self, make: Callable[[Connect], T], left: Callable[[T], None] = lambda kept: None, most: int = MOST_OPEN
    ) -> None:
        self._make = make
        self._left = left
        self._most = most
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._headless: OrderedDict[str, None] = OrderedDict()
        self.headless = 0  # sessions whose beginning is not there

    def of(self, record: Record) -> T | None:
        """What is kept of this record's session; None if its beginning was not met."""
        name = record.session
        kept = self._kept.get(name)
        if type(record) is Connect:
            if kept is not None:
                self._left(kept)
            kept = self._kept[name] = self._make(record)
            if len(self._kept) > self._most:
                self._left(self._kept.popitem(last=False)[1])
            return kept
        if kept is not None:
            self._kept.move_to_end(name)
            return kept
        if name not in self._headless:
            self.headless += 1
            self._headless[name] = None
            if len(self._headless) > self._most:
                self._headless.popitem(last=False)
        return None

    def over(self, record: Record) -> None:
        """This session is over."""
        self._kept.pop(record.session, None)

    def rest(self) -> Iterator[T]:
        """Those that have no end on record, once all is read."""
        kept, self._kept = self._kept, OrderedDict()
        return iter(kept.values())


@dataclass(slots=True)
class Recorded:
    """One session, whole: its records in their order. `cut`: how many more there were than are kept."""

    connect: Connect
    records: list[Record] = field(default_factory=list)
    cut: int = 0
    over: bool = False  # its end is on record

    @property
    def name(self) -> str:
        """What the record calls it."""
        return self.connect.session

    @property
    def exchanges(self) -> list[Exchange]:
        """Its exchanges."""
        return [record for record in self.records if type(record) is Exchange]

    @property
    def transactions(self) -> list[Commit | Refused]:
        """What its transactions came to."""
        return [record for record in self.records if isinstance(record, Commit | Refused)]


def ends(record: Record) -> bool:
    """Nothing more is to come of this session."""
    return type(record) is Close or (type(record) is Connect and bool(record.refused))


def sessions(
    records: Iterable[Record],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    most: int = MOST_OPEN,
    most_records: int = MOST_RECORDS,
) -> Iterator[Recorded]:
    """The sessions whose beginning is among the records, each when its end was met; those without one at the end.

    Args:
        records: of an audit.
        wanted: whether a session is, by its name.
        most, most_records: how many sessions, and records of each, are kept at a time.
    """
    done: list[Recorded] = []
    together: Together[Recorded] = Together(Recorded, done.append, most)
    for record in records:
        if not wanted(record.session) or (session := together.of(record)) is None:
            continue
        if len(session.records) < most_records:
            session.records.append(record)
        else:
            session.cut += 1
        if ends(record):
            session.over = True
            together.over(record)
            done.append(session)
        yield from done
        done.clear()
    yield from together.rest()

"""What a sink is, and what it is owed: the words that sinks and those who follow the store for them have in common."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

Batch = Sequence[tuple[int, bytes]]  # number and line, in order


class SinkDownError(Exception):
    """What was to be sent is not known to have arrived; the text says why."""


class Sink(Protocol):
    """Sends lines somewhere. It is used by one thread, and everything it waits for has an end."""

    @property
    def name(self) -> str:
        """What its place in the record is remembered by."""

    def send(self, batch: Batch) -> int | None:
        """Send lines. When this returns they have arrived, but for as many as the other side refused for good.

        Raises:
            SinkDownError: it is not known which have.
        """

    def close(self) -> None:
        """Let go of the other side; what comes next connects anew."""


@runtime_checkable
class Positioned(Protocol):
    """A sink whose other side knows how far it is."""

    def position(self) -> int:
        """The number of the line it wants next.

        Raises:
            SinkDownError: it can't be asked.
        """


@runtime_checkable
class Resting(Protocol):
    """A sink that has something to do where there are no lines, when a checkpoint was made."""

    def rest(self) -> None:
        """Do it.

        Raises:
            SinkDownError: it can't be done.
        """


@runtime_checkable
class Noting(Protocol):
    """A sink that keeps checkpoints too: what was signed then can be held against the store later."""

    def note(self, size: int, note: str) -> None:
        """Send the checkpoint of so many records.

        Raises:
            SinkDownError: it is not known whether it has arrived.
        """


class Policy(NamedTuple):
    """What a sink is owed.

    Attributes:
        when_down: wait for it for as long as it takes, or pass over what waits for it.
        skip_after: seconds it is waited for, if not for as long as it takes.
        history: what the store had before the sink was there is sent, too.
    """

    when_down: Literal["keep", "skip"] = "keep"
    skip_after: float = 3600.0
    history: bool = False


class Pace(NamedTuple):
    """How often, in seconds, and how much.

    Attributes:
        soon, late: until a sink that is down is tried again; doubled each time.
        idle: until it is looked whether there is something new, if nobody says so.
        records, octets: of a batch; a line that alone is longer goes alone.
    """

    soon: float = 1.0
    late: float = 60.0
    idle: float = 1.0
    records: int = 1_000
    octets: int = 524_288


class Skip(msgspec.Struct, frozen=True):
    """Records that a sink has not got, among those from `first` to before `until`.

    Attributes:
        why: down (it was), pruned (they were gone before it could have them), refused (by the other side).
    """

    first: int
    until: int
    records: int
    why: str

    def and_then(self, other: "Skip") -> "Skip":
        """Both of them."""
        why = self.why if self.why == other.why else f"{self.why}, {other.why}"
        return Skip(min(self.first, other.first), max(self.until, other.until), self.records + other.records, why)


class Cursor(NamedTuple):
    """How far a sink is: the line it gets next, how many it has not got, and which of them nobody was told of yet."""

    next: int
    skipped: int = 0
    passed: Skip | None = None


class State(NamedTuple):
    """How a sink is doing.

    Attributes:
        lag: records it has not got yet, and how old the oldest of them is, in seconds.
        why: what was wrong when it was last tried; "": nothing.
    """

    name: str
    next: int
    skipped: int
    lag: int
    lag_seconds: float
    failing: bool
    why: str

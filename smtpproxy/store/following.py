"""Sinks: what gets the record somewhere else. They follow the store, each at its own pace, and nothing waits for them.

    store ── lines from number `next` on ──► Follower (a thread of the recorder's process) ── a batch ──► Sink
    store ◄── next, skipped: Followers.write, by the recorder's own thread ◄── what the sink has confirmed

A follower has a reader of its own and one batch in hand, so it takes as much memory as a batch, however far behind it
is: the store is its buffer. What a sink has confirmed is remembered in the table `sink`; after a crash it goes on with
what was remembered last, so that some records may be sent twice, and none is left out. A sink that can be asked how far
the other side is (`Positioned`) is asked whenever that may be in doubt, and there nothing is sent twice.

When a sink is down, its follower tries again, less and less often. `keep`: for as long as it takes; the store is not
pruned beyond what such a sink has had (`Followers.floor`). `skip`: after a while the records that wait are passed over.
How many is counted, and once the sink is up again an `audit-skipped` says which; until then it stands in `sink.detail`,
so that a restart does not forget it.

The store has one writer, and it is none of these threads: they say how far they are, under a lock, and the recorder's
thread writes that down when it comes by. So there is no queue that could grow.

What must never happen: a record left out that nothing tells of; mail, or the recorder, waiting for a sink. A thread
whose peer hangs is left behind at the end: what it does after that changes nothing.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import SQLiteReader
from smtpproxy.store.sinks import Cursor, Noting, Pace, Policy, Positioned, Resting, Sink, SinkDownError, Skip, State
from smtpproxy.store.store import Store, time_of

STOP: Final = 1.5  # seconds a thread has for its end
WRITE: Final = 1.0  # seconds between two writings of how far they are
MOST_TOLD: Final = 16  # passed-over ranges that wait to be said; further ones widen the last


class Follower:
    """One sink, followed by a thread of its own.

    Args:
        directory: of the store.
        cursor: where it goes on.
        clock: seconds, of any beginning.

    Attributes:
        cursor: as it is now; read under `lock`.
        told: records passed over that are to be said, the same.
        why: what is wrong; "": nothing.
    """

    def __init__(
        self,
        directory: Path,
        sink: Sink,
        policy: Policy,
        cursor: Cursor,
        pace: Pace = Pace(),  # noqa: B008 - it can't be changed
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = sink.name
        self.policy = policy
        self.cursor = cursor
        self.told: list[Skip] = []
        self.why = ""
        self.oldest = 0.0  # when the line it waits for was recorded; 0.0: there is none
        self.lock = threading.Lock()
        self._directory = directory
        self._sink = sink
        self._pace = pace
        self._clock = clock
        self._reader: SQLiteReader | None = None
        self._unsure = True
        self._noted = -1
        self._down_since: float | None = None
        self._delay = pace.soon
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)

    # ------------------------------------------------------------------------------------------- from other threads

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._woken.set()

    def ask_to_stop(self) -> None:
        """It is to end after what it has in hand."""
        self._stopping.set()
        self._woken.set()

    def ended(self, patience: float) -> bool:
        """Whether its thread has come to its end within that time."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------------------------------------- its own thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = self._step()
            except (SinkDownError, StoreError) as error:
                self._failed(str(error))
            except Exception as error:  # a sink stands on libraries of others: no mistake of theirs may end it unseen
                self._failed(f"{type(error).__name__}: {error}")
            else:
                if not busy:
                    self._woken.wait(self._pace.idle)
                    self._woken.clear()
        self._let_go()

    def _let_go(self) -> None:
        self._sink.close()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _step(self) -> bool:
        """Send what there is, up to a batch; whether there was something."""
        if self._reader is None:
            self._reader = SQLiteReader(self._directory)
        if self._unsure and isinstance(self._sink, Positioned):
            self._go_on_from(self._sink.position())
        self._unsure = False
        batch = self._batch(self._reader)
        if not batch:
            self._put_down_checkpoint(self._reader)
            return False
        if batch[0][0] > self.cursor.next:
            self._pass_over(batch[0][0], "pruned")
        self._sent(batch, self._sink.send(batch) or 0)
        self._put_down_checkpoint(self._reader)
        return True

    def _batch(self, reader: SQLiteReader) -> list[tuple[int, bytes]]:
        """The lines it gets next."""
        batch: list[tuple[int, bytes]] = []
        octets = 0
        for number, line in reader.lines(self.cursor.next):
            octets += len(line)
            if batch and octets > self._pace.octets:
                break
            batch.append((number, line))
            if len(batch) == self._pace.records:
                break
        self.oldest = time_of(batch[0][1]) if batch else 0.0
        return batch

    def _go_on_from(self, position: int) -> None:
        """The other side has said what it wants. What was passed over is not sent after all."""
        with self.lock:
            passed = self.cursor.passed
            self.cursor = self.cursor._replace(next=max(position, passed.until if passed is not None else 0))

    def _sent(self, batch: list[tuple[int, bytes]], refused: int) -> None:
        stop = batch[-1][0] + 1
        with self.lock:
            _, skipped, passed = self.cursor
            self.cursor = Cursor(stop, skipped + refused)
            if passed is not None:
                self._say(passed)
            if refused:
                self._say(Skip(batch[0][0], stop, refused, "refused"))
        self._down_since, self._delay, self.why = None, self._pace.soon, ""

    def _say(self, skip: Skip) -> None:
        if len(self.told) < MOST_TOLD:
            self.told.append(skip)
        else:
            self.told[-1] = self.told[-1].and_then(skip)

    def _pass_over(self, until: int, why: str) -> None:
        """Go on with this line. It is said once the sink is there again."""
        with self.lock:
            first, skipped, passed = self.cursor
            skip = Skip(first, until, until - first, why)
            self.cursor = Cursor(until, skipped + skip.records, skip if passed is None else passed.and_then(skip))

    def _put_down_checkpoint(self, reader: SQLiteReader) -> None:
        """The newest checkpoint of what the sink has, if it takes such, and has not had it."""
        if not isinstance(self._sink, Noting | Resting):
            return
        query = "SELECT size, note FROM checkpoint WHERE size <= ? ORDER BY size DESC LIMIT 1"
        for size, note in list(reader.rows(query, (self.cursor.next,))):
            if size == self._noted:
                continue
            if isinstance(self._sink, Noting):
                self._sink.note(size, note)
            else:
                self._sink.rest()
            self._noted = size

    def _failed(self, why: str) -> None:
        """It is down: wait, and at some time pass over what waits."""
        self.why = why
        self.oldest = self.oldest or time.time()
        self._unsure = True
        with contextlib.suppress(Exception):  # it failed already
            self._let_go()
        now = self._clock()
        if self._down_since is None:
            self._down_since = now
        if self.policy.when_down == "skip" and now - self._down_since >= self.policy.skip_after:
            with contextlib.suppress(StoreError):
                self._skip_to_newest()
            self._down_since = now
        self._stopping.wait(self._delay * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once
        self._delay = min(self._delay * 2, self._pace.late)

    def _skip_to_newest(self) -> None:
        with contextlib.closing(SQLiteReader(self._directory)) as reader:
            size = int(reader.meta("size"))
        if size > self.cursor.next:
            self._pass_over(size, "down")
            self.oldest = 0.0


class Followers:
    """All sinks of a store; for its recorder, whose thread calls all of this.

    Args:
        store: how far they are is written there.
        sinks: each with its policy.
        tell: told the name of a sink and what is wrong with it; "": it is there again.

    Raises:
        StoreError: where they were can't be read, or where new ones begin can't be written down.
    """

    def __init__(
        self,
        store: Store,
        sinks: Iterable[tuple[Sink, Policy]],
        tell: Callable[[str, str], None],
        *,
        pace: Pace = Pace(),  # noqa: B008 - it can't be changed
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._tell = tell
        self._clock = clock
        self._directory = store.path.parent
        self._written = _remembered(store)
        self._followers = [
            Follower(self._directory, sink, policy, self._begin(sink, policy), pace, clock) for sink, policy in sinks
        ]
        self._failing: set[str] = set()
        self._written_at = float("-inf")
        self._seen = store.size
        self._write_down()  # where new ones begin
        owed = "\n".join(each.name for each in self._followers if each.policy.when_down == "keep")
        if store.value("owed") != owed:
            with store.changing():
                store.keep("owed", owed)
        for follower in self._followers:
            follower.start()

    def _begin(self, sink: Sink, policy: Policy) -> Cursor:
        """Where it goes on, or begins. A store that was restored from a copy may be behind it."""
        known = self._written.get(sink.name)
        if known is not None:
            return known._replace(next=min(known.next, self._store.size))
        return Cursor(self._store.first if policy.history or isinstance(sink, Positioned) else self._store.size)

    def write(self, *, at_once: bool = False) -> None:
        """Come by: wake them if there is something new, tell of those that are down, write down how far they are. It
        is to be called often, and does what costs something now and then.

        Raises:
            StoreError: it can't be written now; it is with the next call that can.
        """
        if self._store.size != self._seen:
            self._seen = self._store.size
            for follower in self._followers:
                follower.wake()
        self._tell_troubles()
        now = self._clock()
        if at_once or now - self._written_at >= WRITE:
            self._written_at = now
            self._write_down()

    def _tell_troubles(self) -> None:
        for follower in self._followers:
            why = follower.why
            if bool(why) != (follower.name in self._failing):
                (self._failing.add if why else self._failing.discard)(follower.name)
                self._tell(follower.name, why)

    def _write_down(self) -> None:
        changed: list[tuple[Follower, Cursor, list[Skip]]] = []
        for follower in self._followers:
            with follower.lock:
                cursor, told = follower.cursor, follower.told
                if told or self._written.get(follower.name) != cursor:
                    changed.append((follower, cursor, told))
                    follower.told = []
        if not changed:
            return
        try:
            with self._store.changing() as connection:
                for follower, cursor, told in changed:
                    passed = msgspec.json.encode(cursor.passed).decode() if cursor.passed is not None else ""
                    connection.execute(
                        "INSERT OR REPLACE INTO sink (name, next, skipped, detail) VALUES (?, ?, ?, ?)",
                        (follower.name, cursor.next, cursor.skipped, passed),
                    )
                    for skip in told:
                        self._store.say("audit-skipped", {"sink": follower.name, **msgspec.structs.asdict(skip)})
        except StoreError:
            for follower, _, told in changed:
                with follower.lock:
                    follower.told = told + follower.told
            raise
        self._written.update((follower.name, cursor) for follower, cursor, _ in changed)

    def floor(self) -> int | None:
        """The number of the first record that is not to be pruned, because a sink is owed it; None: none is."""
        owed = [self._written[each.name].next for each in self._followers if each.policy.when_down == "keep"]
        return min(owed, default=None)

    def states(self) -> list[State]:
        """How each is doing."""
        now = time.time()
        found = []
        for follower in self._followers:
            cursor, oldest, why = follower.cursor, follower.oldest, follower.why
            lag = max(self._store.size - cursor.next, 0)
            age = max(now - oldest, 0.0) if lag and oldest else 0.0
            found.append(State(follower.name, cursor.next, cursor.skipped, lag, age, bool(why), why))
        return found

    def stop(self) -> list[str]:
        """End them, within `STOP` seconds, and write down how far they are; the names of those that did not end in
        time: their peers hang, and what they do from now on counts for nothing.

        Raises:
            StoreError: it can't be written down.
        """
        for follower in self._followers:
            follower.ask_to_stop()
        until = time.monotonic() + STOP
        late = [each.name for each in self._followers if not each.ended(max(until - time.monotonic(), 0.0))]
        self._write_down()
        return late


_passed: Final = msgspec.json.Decoder(Skip).decode


def _remembered(store: Store) -> dict[str, Cursor]:
    """How far each sink was when it was last written down."""
    found = {}
    query = "SELECT name, next, skipped, detail FROM sink"
    for name, number, skipped, detail in store.connection.execute(query).fetchall():
        found[name] = Cursor(number, skipped, _passed(detail) if detail else None)
    return found

"""The workers of one setup, as the supervisor sees them: what they say, how they die, when they are replaced.

The workers are `sleep`, and this test speaks for them; time passes when it says so.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from smtpproxy.audit.appending import WriteLock
from smtpproxy.config import Config
from smtpproxy.net.generation import HUNG, LASTED, LATE, READY_IN, Failure, Generation, Phase, Record
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.metering import Metering
from smtpproxy.net.privileges import Identity
from smtpproxy.net.service import DRAINED, FAILED, READY
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tallies
from smtpproxy.session.verdicts import PassAll

ME = Identity(os.getuid(), os.getgid(), tuple(os.getgroups()))


class Signing:
    """A signing process that is none."""

    certificate = b"the CA's"

    def __init__(self, slots: int) -> None:
        self.pairs = [socket.socketpair() for _ in range(slots)]
        self.checked: list[float] = []
        self.closed = False

    def socket_of(self, slot: int) -> socket.socket:
        """The worker's end."""
        return self.pairs[slot][0]

    def check(self, now: float) -> None:
        """Looked at."""
        self.checked.append(now)

    def close(self) -> None:
        """Over."""
        self.closed = True
        for end in (end for pair in self.pairs for end in pair):
            end.close()


class Stage:
    """A generation, and its workers' ends of the order sockets."""

    def __init__(self, workers: int, *, regions: int = 8, signing: Signing | None = None) -> None:
        self.now = 1000.0
        self.loop = Loop(lambda: self.now)
        self.tallies = Tallies(regions)
        self.forked: list[tuple[int, socket.socket, list[int]]] = []
        self.refuse: OSError | None = None
        self.log: list[Any] = []
        self.record = Record(os.open("/dev/null", os.O_WRONLY), WriteLock(), (0, 0))
        self.listening = socket.create_server(("127.0.0.1", 0))
        config = Config.model_validate({"process": {"workers": workers}})
        self.generation = Generation(
            1,
            Setup(config, {"": PassAll()}),
            [Held("in", "127.0.0.1:0", (self.listening,))],
            self.record,
            loop=self.loop,
            tallies=self.tallies,
            metering=Metering(regions),
            signing=signing,  # type: ignore[arg-type]
            identity=ME,
        )

    def fork(self, task: Callable[[], int], keep: list[int]) -> int:
        """In place of a fork."""
        if self.refuse is not None:
            raise self.refuse
        pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
        self.forked.append((pid, socket.socket(fileno=os.dup(keep[0])), keep))
        return pid

    def pid(self, number: int = -1) -> int:
        """Of the one that was forked as the first, the second..."""
        return self.forked[number][0]

    def says(self, words: bytes, number: int = -1) -> None:
        """One of them."""
        self.forked[number][1].send(words)
        self.loop.wait(0)

    def told(self, number: int = -1) -> list[bytes]:
        """What one of them was told, and has not looked at yet."""
        heard = []
        while True:
            try:
                heard.append(self.forked[number][1].recv(100, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return heard
            if not heard[-1]:
                return heard

    def dies(self, number: int = -1, status: int = signal.SIGKILL) -> None:
        """One of them."""
        pid, end, _ = self.forked[number]
        end.close()
        os.kill(pid, status)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.look()

    def look(self) -> None:
        """A turn of the supervisor."""
        self.loop.wait(0)
        self.generation.reap()
        self.generation.check()

    def serving(self) -> None:
        """All are ready, and go."""
        self.generation.start()
        for number in range(len(self.forked)):
            self.says(READY, number)
        assert self.generation.ready
        self.generation.go()

    def passes(self, seconds: float, *, beats: bool = True) -> None:
        """Time, in steps as the supervisor looks."""
        while seconds > 0:
            step = min(seconds, 0.5)
            seconds -= step
            self.now += step
            if beats:
                for worker in self.generation.workers:
                    self.tallies.open(worker.region).beat(self.now)
            self.look()

    def healthy(self) -> bool:
        """The generation is."""
        return self.generation.healthy

    def over(self) -> bool:
        """The generation is."""
        return self.generation.over

    def close(self) -> None:
        """Whoever is left."""
        for pid, end, _ in self.forked:
            end.close()
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        for worker in self.generation.workers:
            worker.orders.close()
        self.generation.close()
        self.listening.close()
        os.close(self.record.descriptor)
        os.close(self.record.lock.fileno())
        self.loop.close()


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeStage]:
    """Makes one; its log is in `log`."""
    made: list[Stage] = []

    def make(workers: int = 2, **options: Any) -> Stage:
        made.append(Stage(workers, **options))
        monkeypatch.setattr("smtpproxy.net.forking.fork", made[-1].fork)
        return made[-1]

    with structlog.testing.capture_logs() as log:
        yield lambda *a, **o: _with_log(make(*a, **o), log)
    for one in made:
        one.close()


def _with_log(stage: Stage, log: list[Any]) -> Stage:
    stage.log = log
    return stage


# --------------------------------------------------------------------------------------------------- coming


def test_all_or_nothing(stage: MakeStage) -> None:
    s = stage(3)
    s.generation.start()
    assert len(s.forked) == 3
    for number in range(3):
        assert not s.generation.ready
        assert s.told(number) == []
        s.says(READY, number)
    assert s.generation.ready
    assert s.generation.failure is None
    s.generation.go()
    assert [s.told(number) for number in range(3)] == [[b"GO"]] * 3
    assert s.generation.phase is Phase.SERVING


def test_each_has_what_it_needs_and_its_own_of_what_is_not_shared(stage: MakeStage) -> None:
    signing = Signing(2)
    s = stage(2, signing=signing)
    s.generation.start()
    for number in range(2):
        _, _, keep = s.forked[number]
        shared = {s.record.descriptor, s.record.lock.fileno(), s.listening.fileno()}
        assert set(keep[1:]) == {*shared, signing.pairs[number][0].fileno()}
    assert len({worker.region for worker in s.generation.workers}) == 2
    s.look()
    assert signing.checked == [s.now]
    s.generation.close()
    assert signing.closed


def test_a_worker_that_was_taken_over_says_what_it_likes(stage: MakeStage) -> None:
    s = stage(1)
    s.generation.start()
    for words in (
        b"FAILED",
        b"FAILED ",
        b"FAILED \xff",
        b"FAILED 999999 \x1b[1mred\nline",
        b"GO",
        bytes(5000),
        b"READY ",
    ):
        s.says(words)
    ready = [s.generation.ready]
    for _ in range(100):
        s.forked[0][1].send(READY)
    s.loop.wait(0)
    ready.append(s.generation.ready)
    assert ready == [False, True]
    s.dies()
    assert s.generation.failure == Failure(1, " [1mred line")


@pytest.mark.parametrize(
    ("words", "status", "failure"),
    [
        (FAILED + b"2 listener in: no", 0, Failure(2, "listener in: no")),
        (b"", int(signal.SIGSEGV), Failure(1, "a worker killed by SIGSEGV before it was ready")),
    ],
)
def test_one_that_can_not_be_ready_is_enough(stage: MakeStage, words: bytes, status: int, failure: Failure) -> None:
    s = stage(2)
    s.generation.start()
    s.says(READY, 0)
    if words:
        s.says(words, 1)
    s.dies(1, status or signal.SIGKILL)
    assert s.generation.failure == failure
    assert not s.generation.ready
    assert len(s.forked) == 2  # nobody is replaced
    s.generation.end()
    assert s.told(0) == [b"END"]
    s.dies(0)
    assert s.over()
    assert list(s.tallies.live) == [0] * 8


def test_one_that_is_not_ready_in_time_is_killed(stage: MakeStage) -> None:
    s = stage(1)
    s.generation.start()
    s.passes(READY_IN)
    assert not s.log
    s.passes(1)
    assert s.log[0]["event"] == "a worker is not ready: it is killed"
    with contextlib.suppress(ChildProcessError):  # a later step may have seen its end already
        os.waitid(os.P_PID, s.pid(), os.WEXITED | os.WNOWAIT)
    s.look()
    assert s.generation.failure == Failure(1, "a worker was not ready within 50 s")


def test_a_fork_that_fails(stage: MakeStage) -> None:
    s = stage(2)
    s.refuse = OSError(errno.EAGAIN, "no more of them")
    s.generation.start()
    assert s.generation.failure == Failure(1, "no worker can be started: no more of them")
    assert list(s.tallies.live) == [0] * 8


def test_too_many_workers(stage: MakeStage) -> None:
    s = stage(2, regions=1)
    s.generation.start()
    assert s.generation.failure is not None
    assert "there are 1 workers already" in s.generation.failure.text


# --------------------------------------------------------------------------------------------------- serving


def test_the_first_that_dies_is_replaced_at_once_and_told_to_go_when_it_is_ready(stage: MakeStage) -> None:
    s = stage(2)
    s.serving()
    tally = s.tallies.open(next(s.generation.workers).region)
    tally.add("192.0.2.1")
    s.dies(0)
    assert len(s.forked) == 3
    assert s.log == [
        {
            "event": "a worker died",
            "log_level": "error",
            "pid": s.pid(0),
            "how": "killed by SIGKILL",
            "lived": 0.0,
            "sessions": 1,
            "in_a_row": 1,
            "again_in": 0.0,
        }
    ]
    assert s.generation.sessions == 0  # its region was taken back, and given to the next
    assert s.told(2) == []
    s.says(READY, 2)
    assert s.told(2) == [b"GO"]
    assert s.told(1) == [b"GO"]  # once, at the beginning
    assert s.generation.deaths == 1


def test_deaths_in_a_row_wait_twice_as_long_each_time_up_to_a_bound(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    waited = []
    for _ in range(10):
        s.dies()
        waited.append(s.log[-1]["again_in"])
        forked = len(s.forked)
        if waited[-1]:
            s.passes(waited[-1] - 0.5)
            assert len(s.forked) == forked
            s.passes(0.5)
            assert len(s.forked) == forked + 1
        s.says(READY)
    assert waited == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LATE, LATE, LATE]
    assert s.log[-1]["in_a_row"] == 10


def test_one_that_has_lasted_begins_a_new_row(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    s.dies()
    s.says(READY)
    s.passes(LASTED)
    s.dies()
    assert (s.log[-1]["in_a_row"], s.log[-1]["again_in"], s.log[-1]["lived"]) == (1, 0.0, LASTED)
    assert len(s.forked) == 3


def test_one_slot_does_not_wait_for_the_deaths_of_another(stage: MakeStage) -> None:
    s = stage(2)
    s.serving()
    s.dies(0)
    s.says(READY)
    s.dies(2)
    assert s.log[-1]["again_in"] == 0.5
    s.dies(1)
    assert s.log[-1]["again_in"] == 0.0


def test_one_that_ends_in_order_without_an_order_is_replaced_after_a_moment(stage: MakeStage) -> None:
    """Whoever has told it may be telling the supervisor just now."""
    s = stage(1)
    s.serving()
    pid, end, _ = s.forked[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    s.forked[0] = (os.posix_spawn("/bin/true", ["true"], {}), end, [])
    next(s.generation.workers).pid = s.pid(0)
    os.waitid(os.P_PID, s.pid(0), os.WEXITED | os.WNOWAIT)
    s.look()
    assert (s.log[0]["log_level"], s.log[0]["again_in"]) == ("warning", 0.5)
    s.passes(0.5)
    assert len(s.forked) == 2


def test_a_replacement_that_can_not_be_had_is_tried_again(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    s.refuse = OSError(errno.ENOMEM, "no memory")
    s.dies()
    assert s.log[-1] == {
        "event": "no worker can be started: no memory",
        "log_level": "error",
        "again_in": 0.5,
    }
    s.refuse = None
    s.passes(0.5)
    assert len(s.forked) == 2
    s.says(FAILED + b"2 listener in: the certificate has gone")
    s.dies()
    assert s.log[-1]["how"] == "killed by SIGKILL: listener in: the certificate has gone"
    assert s.log[-1]["again_in"] == 1.0
    assert s.generation.failure is None  # the others serve on


def test_one_without_a_sign_of_life_is_killed_and_replaced(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    s.passes(60)
    assert s.healthy()
    s.passes(HUNG - 1, beats=False)
    assert s.healthy()
    s.passes(1.5, beats=False)
    assert not s.healthy()
    assert [entry["event"] for entry in s.log] == ["a worker gives no sign of life: it is killed"]
    os.waitid(os.P_PID, s.pid(), os.WEXITED | os.WNOWAIT)
    s.look()
    assert s.log[-1]["event"] == "a worker died"
    assert len(s.forked) == 2


def test_who_was_stopped_with_its_supervisor_is_forgiven(stage: MakeStage) -> None:
    """A machine that sleeps, a debugger, SIGSTOP to the whole group."""
    s = stage(1)
    s.serving()
    s.passes(10)
    s.now += 1000
    s.look()
    assert s.log == []
    s.passes(HUNG - 1, beats=False)
    assert s.log == []
    s.passes(1.5, beats=False)
    assert len(s.log) == 1


# ---------------------------------------------------------------------------------------------------- ending


def test_a_retired_one_is_not_replaced_and_over_with_its_last_worker(stage: MakeStage) -> None:
    s = stage(2)
    s.serving()
    s.generation.retire()
    assert [s.told(number)[-1] for number in (0, 1)] == [b"DRAIN"] * 2
    accepts = []
    for number in (0, 1):
        accepts.append(s.generation.accepts)
        s.says(DRAINED, number)
    assert [*accepts, s.generation.accepts] == [True, True, False]
    s.dies(0)
    assert s.log[-1]["event"] == "a worker died while it was draining"
    s.passes(10)
    assert not s.over()
    s.dies(1)
    assert s.over()
    assert s.generation.unclean
    assert len(s.forked) == 2


def test_stopped_once_and_ended_at_once(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    s.generation.retire()
    s.generation.stop()
    s.generation.stop()
    assert s.told() == [b"GO", b"DRAIN", b"STOP"]
    s.generation.end()
    assert s.told() == [b"END"]
    s.passes(2.5)
    assert Path(f"/proc/{s.pid()}/stat").exists()
    s.passes(1)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, s.pid(), os.WEXITED | os.WNOWAIT)  # it did not obey
    s.look()
    assert s.over()
    assert not s.generation.unclean
    assert s.log == []


def test_what_can_not_be_told_is_seen_as_what_it_is(stage: MakeStage) -> None:
    s = stage(1)
    s.serving()
    s.forked[0][1].close()
    s.generation.retire()
    s.look()
    assert not s.over()
    s.dies()
    assert s.over()

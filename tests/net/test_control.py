"""The control socket: who is answered, what they are told, and that nobody holds the supervisor up."""

import contextlib
import errno
import json
import os
import resource
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from smtpproxy.net.control import (
    ACCEPTS,
    LARGEST,
    MOST,
    PATIENCE,
    SILENT,
    Bound,
    Control,
    ControlError,
    Status,
    Worker,
    ask,
    understood,
    unwell,
)
from tests.peers import unavailable

WORKER = Worker(pid=101, generation=2, state="serving", sessions=3, accepted=9, uptime=60.0, beat=0.5)
STATUS = Status(
    version="1.2",
    pid=100,
    since=1_700_000_000.0,
    generation=2,
    workers=(WORKER,),
    listeners=(Bound("in", "forward", ("192.0.2.1:25",), "mx.example:25"),),
)
LONG = Status("1.2", 100, 0.0, 2, listeners=(Bound("x" * 1_000_000, "forward"),))


class Clock:
    """Monotonic time, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


@contextmanager
def opened(path: str, answer: Callable[[], Status] = lambda: STATUS, **options: Any) -> Iterator[Control]:
    control = Control(path, answer, **options)
    try:
        yield control
    finally:
        control.close()


def served(control: Control, path: str) -> dict[str, Any]:
    """Ask, while it is driven as the supervisor drives it: when its descriptor is readable, and not otherwise."""
    said: list[dict[str, Any] | Exception] = []

    def asking() -> None:
        try:
            said.append(ask(path, 20))
        except ControlError as error:
            said.append(error)

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    while not said:
        if select.select([control], [], [], 0.05)[0]:
            control.handle()
        thread.join(0.001)
    thread.join(20)
    if isinstance(said[0], Exception):
        raise said[0]
    return said[0]


def _connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(path)
    return client


def _drive(control: Control) -> int:
    """Handle what there is; how often there was something."""
    times = 0
    while select.select([control], [], [], 0)[0]:
        control.handle()
        times += 1
        assert times < 1000, "there is always something to do"
    return times


def _read(client: socket.socket) -> bytes:
    said = b""
    while octets := client.recv(65_536):
        said += octets
    return said


# --------------------------------------------------------------------------------------------------------- answering


def test_who_asks_is_told_everything(path: str) -> None:
    with opened(path) as control:
        answer = served(control, path)
        assert answer["workers"] == [
            {"pid": 101, "generation": 2, "state": "serving", "sessions": 3, "accepted": 9, "uptime": 60.0, "beat": 0.5}
        ]
        assert understood(answer) == STATUS
        assert understood(served(control, path)) == STATUS


def test_each_is_told_how_it_is_when_they_ask(path: str) -> None:
    numbers = iter(range(10))
    with opened(path, lambda: Status("1", next(numbers), 0.0, 1)) as control:
        assert [served(control, path)["pid"] for _ in range(3)] == [0, 1, 2]


def test_a_long_answer_arrives_whole(path: str) -> None:
    """In parts, as they are read."""
    with opened(path, lambda: LONG) as control:
        assert understood(served(control, path)) == LONG
        assert _drive(control) == 0


def test_nothing_to_do_is_nothing_done(path: str) -> None:
    with opened(path) as control:
        assert not select.select([control], [], [], 0)[0]
        control.handle()
        control.check()
        assert understood(served(control, path)) == STATUS


def test_a_bug_of_ours_costs_an_answer_and_no_more(path: str) -> None:
    broken = [True]

    def answer() -> Status:
        if broken.pop():
            broken.append(False)
            raise ZeroDivisionError
        return STATUS

    with opened(path, answer) as control:
        with pytest.raises(ControlError, match="no answer"):
            served(control, path)
        assert understood(served(control, path)) == STATUS


# ------------------------------------------------------------------------------------------------ slow and hostile ones


def test_who_does_not_read_is_given_up(path: str, clock: Clock) -> None:
    with opened(path, lambda: LONG, clock=clock) as control, _connect(path) as client:
        assert _drive(control) == 1
        clock.now += PATIENCE - 0.1
        control.check()
        first = len(client.recv(500_000))
        _drive(control)
        clock.now += 0.2
        control.check()
        assert first < first + len(_read(client)) < 1_000_000
        assert _drive(control) == 0


def test_many_who_do_not_read_do_not_pile_up(path: str, clock: Clock) -> None:
    """No more than `MOST` answers are kept; who comes when that many wait is sent away, and answered later."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with opened(path, lambda: LONG, clock=clock) as control, ExitStack() as stack:
        stuck = []
        for _ in range(MOST):
            stuck.append(stack.enter_context(_connect(path)))
            _drive(control)
        with pytest.raises(ControlError, match="too many to answer, or does not answer this user"):
            served(control, path)
        assert len(os.listdir("/proc/self/fd")) == descriptors + 2 + 2 * MOST
        clock.now += PATIENCE
        control.check()
        assert understood(served(control, path)) == LONG
        assert len(os.listdir("/proc/self/fd")) == descriptors + 2 + MOST
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_crowd_is_taken_a_few_at_a_time(path: str) -> None:
    """One call never takes longer than that."""
    with opened(path) as control, ExitStack() as stack:
        clients = [stack.enter_context(_connect(path)) for _ in range(ACCEPTS + 1)]
        control.handle()
        assert select.select([control], [], [], 0)[0]
        control.handle()
        assert not select.select([control], [], [], 0)[0]
        assert {_read(client) for client in clients} == {msgspec.json.encode(STATUS)}


def test_root_may_ask_whoever_it_runs_as(path: str) -> None:
    if os.geteuid():
        unavailable("being two users takes root")
    with opened(path) as control, _connect(path) as client:
        os.seteuid(65_534)
        try:
            control.handle()
        finally:
            os.seteuid(0)
        assert json.loads(_read(client))["pid"] == 100


def test_who_talks_is_not_listened_to(path: str) -> None:
    """Nothing is read, so nothing said can do any harm."""
    with opened(path) as control, _connect(path) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert _drive(control) == 1
        assert json.loads(client.recv(65_536))["pid"] == 100


@pytest.mark.parametrize("status", [STATUS, LONG], ids=["before", "in the middle"])
def test_who_goes_is_forgotten(path: str, status: Status) -> None:
    with opened(path, lambda: status) as control:
        client = _connect(path)
        if status is LONG:
            _drive(control)
            client.recv(1000)
        client.close()
        assert _drive(control) > 0
        assert control._slow == {}
        assert understood(served(control, path)) == status


def test_without_descriptors_nobody_is_taken_until_the_next_look(path: str) -> None:
    """And the supervisor does not turn in circles meanwhile."""
    with opened(path) as control, _connect(path) as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        try:
            with ExitStack() as stack:
                with contextlib.suppress(OSError):
                    while True:
                        stack.enter_context(open(os.devnull, "rb"))
                control.handle()
                assert control._paused
                assert not control._epoll.poll(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        control.check()
        assert _drive(control) == 1
        assert json.loads(_read(client))["pid"] == 100
        control.check()
        assert _drive(control) == 0


def test_only_root_and_our_own_user_are_answered() -> None:
    """By the socket's mode; and if that was opened, by what the kernel says of who connects."""
    if os.geteuid():
        unavailable("being two users takes root")
    with tempfile.TemporaryDirectory() as directory:  # pytest's are closed to others
        os.chmod(directory, 0o711)
        _only_us(f"{directory}/control")


def _only_us(path: str) -> None:
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\nexcept PermissionError: print('kept out')\n"
        "else: print('told', len(s.recv(1000)))"
    )

    def nobody(control: Control) -> str:
        process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            if select.select([control], [], [], 0.05)[0]:
                control.handle()
        return process.communicate()[0].strip()

    with opened(path) as control:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert nobody(control) == "kept out"
        os.chmod(path, 0o666)
        assert nobody(control) == "told 0"
        assert understood(served(control, path)) == STATUS


# ----------------------------------------------------------------------------------------------------------- the path


def test_the_socket_is_gone_with_the_supervisor(path: str, tmp_path: Path) -> None:
    with opened(path):
        assert [entry.name for entry in tmp_path.iterdir()] == ["control"]
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_closed_whatever_the_umask(path: str) -> None:
    before = os.umask(0)
    try:
        with opened(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_a_killed_supervisor_left_is_replaced(path: str, tmp_path: Path) -> None:
    """Also what one left that was killed while it was opening."""
    for name in (path, path + ".new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(name)
    with opened(path) as control:
        assert understood(served(control, path)) == STATUS
        assert [entry.name for entry in tmp_path.iterdir()] == ["control"]


def test_one_that_answers_is_not_replaced(path: str) -> None:
    with opened(path) as control:
        with pytest.raises(ControlError, match="can't be opened: another smtpproxy answers there"):
            Control(path, lambda: STATUS)
        assert understood(served(control, path)) == STATUS


def test_one_that_is_too_busy_to_answer_is_not_replaced_either(path: str) -> None:
    with opened(path), ExitStack() as stack:
        for _ in range(ACCEPTS + 1):
            stack.enter_context(_connect(path))
        with pytest.raises(ControlError, match="another smtpproxy answers there"):
            Control(path, lambda: STATUS)


def test_a_new_version_takes_its_predecessors_place(path: str) -> None:
    """There is never nobody; and the old one, when it goes, leaves the new one's socket alone."""
    with opened(path, lambda: Status("2", 1, 0.0, 1), take_over=True) as before:
        with opened(path, take_over=True) as after:
            assert understood(served(after, path)) == STATUS
            before.close()
            assert understood(served(after, path)) == STATUS
        assert not os.path.exists(path)


@pytest.mark.parametrize("what", ["file", "directory", "link"])
@pytest.mark.parametrize("take_over", [True, False])
def test_what_is_no_socket_is_left_alone(path: str, tmp_path: Path, what: str, take_over: bool) -> None:
    (tmp_path / "precious").write_text("mine")
    if what == "file":
        Path(path).touch()
    elif what == "directory":
        Path(path).mkdir()
    else:
        os.symlink("precious", path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ControlError, match="something else by this name, which is no socket"):
        Control(path, lambda: STATUS, take_over=take_over)
    assert os.path.lexists(path)
    assert (tmp_path / "precious").read_text() == "mine"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_where_the_new_socket_would_be_made_is_left_alone(path: str) -> None:
    Path(path + ".new").write_text("mine")
    with pytest.raises(ControlError, match="Address already in use"):
        Control(path, lambda: STATUS)
    assert Path(path + ".new").read_text() == "mine"


def test_nothing_is_left_of_one_that_could_not_be_opened(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", fails)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ControlError, match="can't be opened: Read-only file system"):
        Control(path, lambda: STATUS)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_it_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"/missing/control can't be opened: No such file or directory"):
        Control(str(tmp_path / "missing" / "control"), lambda: STATUS)
    with pytest.raises(ControlError, match="can't be opened: AF_UNIX path too long"):
        Control(str(tmp_path / ("x" * 200)), lambda: STATUS)


# ------------------------------------------------------------------------------------------------------------- asking


def test_nobody_there_is_told(path: str) -> None:
    with pytest.raises(ControlError, match=r"nobody answers at .*/control: No such file or directory"):
        ask(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(ControlError, match=r"nobody answers at .*/control: Connection refused"):
        ask(path)


@contextmanager
def _answering(path: str, *parts: bytes, end: bool = True) -> Iterator[None]:
    """Somebody who says this, whoever asks."""
    with socket.socket(socket.AF_UNIX) as sock, ExitStack() as stack:
        sock.bind(path)
        sock.listen()
        over = threading.Event()

        def answer() -> None:
            client = stack.enter_context(sock.accept()[0])
            try:
                for part in parts:
                    client.sendall(part)
            except OSError:
                return
            if end:
                client.shutdown(socket.SHUT_WR)
            over.wait(20)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(20)


@pytest.mark.parametrize("part", [[], [b'{"version":']], ids=["nothing", "a beginning"])
def test_one_that_does_not_come_to_an_end_is_not_waited_for(path: str, part: list[bytes]) -> None:
    with _answering(path, *part, end=False), pytest.raises(ControlError, match=r"nobody answers at .*: timed out"):
        ask(path, 0.2)


def test_patience_is_for_the_whole_of_an_answer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each part of it: this one says something every now and then."""
    passed = iter([1000.0, 1031.0])
    monkeypatch.setattr("smtpproxy.net.control.time", SimpleNamespace(monotonic=lambda: next(passed)))
    began = time.monotonic()
    with _answering(path, b"{", end=False), pytest.raises(ControlError, match=r"nobody answers at .*: timed out"):
        ask(path, 30)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("said", [b"220 mx.example ESMTP\r\n", b"[]", b"{", b"\xff"])
def test_one_who_is_no_smtpproxy_is_told(path: str, said: bytes) -> None:
    with _answering(path, said), pytest.raises(ControlError, match="is no smtpproxy"):
        ask(path)


def test_one_who_says_too_much_is_not_listened_to(path: str) -> None:
    with _answering(path, bytes(LARGEST), bytes(LARGEST)), pytest.raises(ControlError, match="does not come to an end"):
        ask(path)


def test_another_version_is_understood_as_far_as_may_be() -> None:
    least = {"version": "9", "pid": 1, "since": 0, "generation": 1}
    assert understood(least) == Status("9", 1, 0, 1)
    assert understood({**least, "weather": "fine"}) == Status("9", 1, 0, 1)
    with pytest.raises(ControlError, match=r"does not understand: .*\$\.pid"):
        understood({"version": "9", "pid": "one", "since": 0, "generation": 1})


# --------------------------------------------------------------------------------------------------------------- well


def _with(*workers: Worker) -> Status:
    return Status("1.2", 100, 0.0, 2, workers=workers)


def _worker(state: str = "serving", generation: int = 2, beat: float | None = 0.5) -> Worker:
    return Worker(101, generation, state, beat=beat)


@pytest.mark.parametrize(
    ("workers", "why"),
    [
        ([_worker()], ""),
        ([_worker(beat=SILENT), _worker()], ""),
        ([_worker("starting", beat=None), _worker()], ""),
        ([], "there is no worker"),
        ([_worker(generation=1)], "there is no worker of the configuration in force"),
        ([_worker(beat=SILENT)], "no worker has said that it is well for 10 s"),
        ([_worker(beat=None)], "no worker has said that it is well for 10 s"),
        ([_worker("starting"), _worker("draining"), _worker("starting")], "no worker serves: draining, starting"),
    ],
)
def test_what_is_well(workers: list[Worker], why: str) -> None:
    assert unwell(_with(*workers)) == why

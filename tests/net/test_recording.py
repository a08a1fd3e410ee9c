"""The supervisor's side of the recorder: its directory, its start, its deaths, its end.

Its process is a stand-in here, forked like the real one (test_recordingprocess.py is about that), from a process of its
own: the one of the tests may have threads. Time passes where a test says so.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from smtpproxy.config import Config
from smtpproxy.net.privileges import Identity
from smtpproxy.net.recording import Recording, RecordingError
from smtpproxy.store.owning import take

ROOT = Path(__file__).resolve().parents[2]
SELF = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))

# What a test's program begins with. `until` has a deadline; `recording.check` is called in it, as the supervisor does.
BEGIN = """
import json, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from smtpproxy.config import Config
from smtpproxy.net import recording as module
from smtpproxy.net.privileges import Identity
from smtpproxy.net.recording import LATE, LASTED, PATIENCE, SOON, Recording, RecordingError
from smtpproxy.net.recordingprocess import FAILED, LEAVE, READY, STOP

ahead = 0.0
module.time = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
said = Path(sys.argv[1]).parent / "said"

def tell(*words):
    with said.open("a") as file:
        print(*words, file=file)

def told():
    return said.read_text().split() if said.exists() else []

def obedient(task, orders):
    "Says that it is ready, and what it is told."
    orders.setblocking(True)
    tell("LEFT" if task.left else "BEGUN")
    orders.send(READY)
    while True:
        order = orders.recv(100)
        tell(order.decode() or "ALONE")
        if order in (STOP, b""):
            return 0

module.run = obedient
recording = Recording(
    Config.model_validate({"audit": {"file": "", "store": sys.argv[1]}}),
    Identity(os.geteuid(), os.getegid(), tuple(os.getgroups())),
    first=True,
)

def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not within 20 s"
        recording.check()
        time.sleep(0.002)

def begun():
    return told().count("BEGUN") + told().count("LEFT")

def die():
    os.kill(recording._pid, signal.SIGKILL)
    until(lambda: recording._pid == 0)
"""


def run(directory: Path, program: str) -> str:
    """What it printed, and what was logged."""
    argv = [sys.executable, "-c", BEGIN + textwrap.dedent(program), str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


def lines(directory: Path) -> str:
    """All of the journal."""
    return "".join(path.read_text() for path in sorted((directory / "journal").glob("*.jsonl")))


# ------------------------------------------------------------------------------------------------------- its directory


def config(store: Path) -> Config:
    return Config.model_validate({"audit": {"file": "", "store": str(store)}})


def test_it_is_made_and_the_start_is_on_record(directory: Path) -> None:
    made = Recording(config(directory), SELF, first=True)
    assert (directory / "journal").is_dir()
    assert (directory.stat().st_mode & 0o777, (directory / "journal").stat().st_mode & 0o777) == (0o750, 0o750)
    made.close()
    assert '"kind":"service-start"' in lines(directory)
    assert '"alone":true' in lines(directory)


def test_a_further_generation_is_no_start(directory: Path) -> None:
    """A reload, or a new program on the same sockets."""
    first = Recording(config(directory), SELF, first=True)
    second = Recording(config(directory), SELF, first=False)
    assert lines(directory).count("service-start") == 1
    first.close()
    second.close()


def test_workers_of_before_are_on_record(directory: Path) -> None:
    """One that was killed left them: their sessions are not lost by this start."""
    left = Recording(config(directory), SELF, first=True)
    found = Recording(config(directory), SELF, first=True)
    assert '"alone":false' in lines(directory)
    left.close()
    found.close()


def test_its_parent_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="can't be used: No such file or directory"):
        Recording(config(tmp_path / "none/store"), SELF, first=True)


def test_it_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(RecordingError, match=r"can't be (used|had): Not a directory"):
        Recording(config(tmp_path / "store"), SELF, first=True)


def test_another_service_keeps_its_record_there(directory: Path) -> None:
    Recording(config(directory), SELF, first=True).close()
    lock = take(directory)
    assert lock is not None
    try:
        with pytest.raises(RecordingError, match="another smtpproxy keeps its record in "):
            Recording(config(directory), SELF, first=True)
        Recording(config(directory), SELF, first=False).close()  # it is the same service
    finally:
        os.close(lock)


def test_without_a_store_there_is_none() -> None:
    assert Recording.of(Config.model_validate({}), SELF, first=True) is None


# ------------------------------------------------------------------------------------------------------------ its life


def test_it_is_waited_for(directory: Path) -> None:
    run(
        directory,
        """
        recording.start()
        recording.started()
        assert told() == ["BEGUN"]
        assert not recording.ended
        """,
    )


def test_one_that_cannot_begin_says_why(directory: Path) -> None:
    """A service whose key can't be read does not start."""
    run(
        directory,
        """
        module.run = lambda task, orders: orders.send(FAILED + b"the key is gone") and 2
        recording.start()
        try:
            recording.started()
        except RecordingError as error:
            assert "can't be started: the key is gone" in str(error), error
        else:
            raise AssertionError("it was started")
        """,
    )


def test_one_that_says_nothing_is_not_waited_for_for_ever(directory: Path) -> None:
    run(
        directory,
        """
        module.START = 0.05
        module.run = lambda task, orders: time.sleep(60)
        recording.start()
        try:
            recording.started()
        except RecordingError as error:
            assert "no answer" in str(error), error
        else:
            raise AssertionError("it was started")
        os.kill(recording._pid, signal.SIGKILL)
        """,
    )


def test_one_that_dies_is_started_again_later_and_later(directory: Path) -> None:
    """Twice as late each time, up to a bound; who lasted begins anew."""
    said = run(
        directory,
        """
        recording.start()
        recording.started()
        for number, delay in enumerate((SOON, 2 * SOON, 4 * SOON), 1):
            die()
            ahead += delay - 0.2
            recording.check()
            assert begun() == number, "it was started too early"
            ahead += 0.2
            until(lambda: begun() == number + 1)
        ahead += LASTED + 1
        die()
        ahead += SOON
        until(lambda: begun() == 5)
        for _ in range(10):
            die()
            ahead += LATE
            recording.check()
            assert recording._pid, "it is later than the latest"
        """,
    )
    assert "the recorder died" in said
    assert "killed by SIGKILL" in said


def test_stop(directory: Path) -> None:
    """It is told, ends, and is not started again."""
    run(
        directory,
        """
        recording.start()
        recording.started()
        recording.stop()
        recording.stop()
        until(lambda: recording.ended)
        assert told() == ["BEGUN", "STOP"], told()
        ahead += LATE
        recording.check()
        assert begun() == 1
        """,
    )


def test_one_that_does_not_end_is_given_up(directory: Path) -> None:
    """What it has not taken over is in the journal."""
    said = run(
        directory,
        """
        def deaf(task, orders):
            orders.send(READY)
            time.sleep(60)
        module.run = deaf
        recording.start()
        recording.started()
        recording.stop()
        ahead += PATIENCE - 1
        recording.check()
        assert not recording.ended
        ahead += 2
        recording.check()
        assert recording.ended
        """,
    )
    assert "the recorder has not finished" in said


def test_stopped_while_it_is_dead(directory: Path) -> None:
    """There is nobody to wait for."""
    run(
        directory,
        """
        recording.start()
        recording.started()
        die()
        recording.stop()
        assert recording.ended
        ahead += LATE
        recording.check()
        assert begun() == 1
        """,
    )


def test_leave(directory: Path) -> None:
    """It is told, and who is started in its place is so as well."""
    run(
        directory,
        """
        recording.start()
        recording.started()
        recording.leave()
        until(lambda: told() == ["BEGUN", "LEAVE"])
        die()
        ahead += SOON
        until(lambda: begun() == 2)
        assert told()[-1] == "LEFT"
        """,
    )


def test_close(directory: Path) -> None:
    """It sees that it is alone."""
    run(
        directory,
        """
        recording.start()
        recording.started()
        pid = recording._pid
        recording.close()
        assert os.waitpid(pid, 0)[1] == 0
        assert told() == ["BEGUN", "ALONE"]
        """,
    )


def test_what_cannot_be_said_now_is_said_later(directory: Path) -> None:
    """Somebody is in the middle of a line: the supervisor waits for nobody."""
    said = run(
        directory,
        """
        from smtpproxy.audit.journal import State
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            state = State(Path(sys.argv[1]) / "journal")
            state.lock.take()
            os.write(theirs, b"had")
            time.sleep(60)
        os.read(ours, 3)
        recording.say("worker-died", {"worker": "abc"})
        recording.check()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        module.time = time
        recording._again_at = float("inf")
        until(lambda: any("worker-died" in path.read_text() for path in Path(sys.argv[1]).glob("journal/*.jsonl")))
        """,
    )
    assert "a record of the service waits until it can be written" in said
    assert lines(directory).count('"worker":"abc"') == 1

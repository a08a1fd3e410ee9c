"""The supervisor's side of the signing process: it is there, or started again, and ends with its supervisor."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from cryptography import x509

from smtpproxy.config import Config
from smtpproxy.net.privileges import Identity
from smtpproxy.net.signer import LARGEST, Answer, Request
from smtpproxy.net.signingprocess import LASTED, PATIENCE, RETRY, RETRY_SOON, SignerError, SigningProcess
from smtpproxy.tls.authority import create
from smtpproxy.tls.minting import DAY, KeyPair

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
NOW = int(time.time())
ASKED = Request(1, ("mx.example",), (("2.5.4.3", "mx.example"),), NOW - DAY, NOW + 300 * DAY, KeyPair().spki)

# The signing process when it is nobody we know. `life`, `sockets`, `pack` are there.
FAKE = """
import signal, socket, sys, time
from msgspec.msgpack import decode, encode as pack
life = socket.socket(fileno=int(sys.argv[1].partition("=")[2]))
life.setblocking(True)
sockets = [socket.socket(fileno=int(word)) for word in sys.argv[3:5]]
"""
READY = 'life.send(pack((b"PEM", "")))\n'


class Bench:
    """A signing process whose supervisor's clock may be put forward."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.process = SigningProcess(directory, slots=2, **options)
        self.ahead = 0.0

    def fake(self, program: str) -> None:
        """Run this in place of the signer, from its next start on."""
        path = self.directory / "fake.py"
        path.write_text(FAKE + textwrap.dedent(program))
        self.process.program = (sys.executable, str(path))

    def real(self) -> None:
        """Run the signer, from its next start on."""
        self.process.program = SigningProcess.program

    def wait(self, seconds: float = 0.0) -> None:
        """Time passes, and the supervisor looks."""
        self.ahead += seconds
        self.process.check(time.monotonic() + self.ahead)

    def until(self, condition: Callable[[], Any], failure: str) -> None:
        """The supervisor looks until that is so; no time passes but what really does."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, failure
            time.sleep(0.001)
            self.wait()

    def kill(self) -> None:
        """It dies, and that is seen."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.until(lambda: self.process.pid == 0, "its death was not seen")

    def ask(self, slot: int = 0, number: int = 1, **change: Any) -> None:
        """As a worker does."""
        request = msgspec.structs.replace(ASKED, number=number, **change)
        self.process.socket_of(slot).send(msgspec.msgpack.encode(request))

    def answer(self, slot: int = 0) -> Answer:
        """What a worker is told."""
        sock = self.process.socket_of(slot)
        assert readable(sock), "no answer"
        return msgspec.msgpack.decode(sock.recv(LARGEST + 1), type=Answer)

    def minted(self, slot: int = 0, **change: Any) -> Answer:
        """Ask, and wait."""
        self.ask(slot, **change)
        return self.answer(slot)


@contextlib.contextmanager
def bench(directory: Path, program: str = "", **options: Any) -> Iterator[Bench]:
    """Not started. `program`: a fake one in place of the real."""
    made = Bench(directory, **options)
    if program:
        made.fake(program)
    try:
        yield made
    finally:
        made.process.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create(tmp_path, "test CA", 3650)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor and no child, dead or alive, outlives a test."""
    before = len(os.listdir("/proc/self/fd")), children()
    yield
    assert (len(os.listdir("/proc/self/fd")), children()) == before


def state(pid: int) -> tuple[str, int]:
    """Its state and its parent; Z for one that is gone, or dead and not reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "Z", 0
    letter, parent, *_ = stat.rpartition(")")[2].split()
    return letter, int(parent)


def children() -> set[str]:
    """Our own processes, dead ones too."""
    return {name for name in os.listdir("/proc") if name.isdecimal() and state(int(name))[1] == os.getpid()}


def readable(sock: socket.socket) -> bool:
    """Something comes."""
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(DEADLINE * 1000))


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def status(pid: int) -> dict[str, list[str]]:
    """What /proc says of it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}


# ---------------------------------------------------------------------------------------------------- in order


def test_it_signs_for_every_worker(directory: Path) -> None:
    with bench(directory) as b:
        assert b.process.pid == 0
        b.process.start()
        assert b.process.ready
        assert os.getpgid(b.process.pid) == b.process.pid  # Ctrl-C is not for it
        assert b.process.certificate == (directory / "ca.crt").read_bytes()
        above = x509.load_pem_x509_certificate(b.process.certificate)
        b.ask(0, 7)
        b.ask(1, 8)
        for slot, number in ((1, 8), (0, 7)):
            answer = b.answer(slot)
            assert answer.number == number
            x509.load_der_x509_certificate(answer.der).verify_directly_issued_by(above)


def test_options_reach_the_process(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (directory / "ca.key").unlink()
    (directory / "ca.crt").unlink()
    create(directory, "test CA", 3650, b"correct horse battery")
    word = directory / "word"
    word.touch(0o600)
    word.write_text("correct horse battery\n")
    options: dict[str, Any] = {"days": 3, "rate": 0.001, "burst": 1, "log_level": "warning", "log_json": True}
    with bench(directory, passphrase_file=word, **options) as b:
        b.process.start()
        end = x509.load_der_x509_certificate(b.minted().der).not_valid_after_utc.timestamp()
        assert end - time.time() == pytest.approx(3 * DAY, abs=120)
        assert b.minted(1).why  # one bucket for all
    said = capfd.readouterr().err
    assert '"event": "not minted"' in said
    assert "minted\n" not in said


def test_it_is_made_of_a_configuration_where_something_is_to_be_signed(directory: Path) -> None:
    listener: dict[str, Any] = {"name": "mx", "listen": "127.0.0.1:0", "server": "127.0.0.1:9"}
    ca = {"directory": str(directory), "days": 3}
    shown: dict[str, Any] = {"name": "inside", "ports": [2525], "tls": {"client": "mirror"}}

    def made(ca: dict[str, Any], *matches: dict[str, Any], **tls: Any) -> SigningProcess | None:
        tables = {"listener": [{**listener, "tls": tls}], "ca": ca, "match": matches}
        return SigningProcess.of(Config.model_validate(tables), 1)

    assert made({}) is None
    for client in ("refuse", "passthrough"):  # nothing is shown to anybody
        assert made(ca, client=client) is None
    assert made(ca, shown, client="refuse") is not None  # by one block it is
    process = made(ca)
    assert process is not None
    try:
        process.start()
        assert process.certificate == (directory / "ca.crt").read_bytes()
    finally:
        process.close()


def test_it_runs_nothing_from_where_the_proxy_was_started(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("msgspec.py", "structlog.py", "smtpproxy.py", "argparse.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    with bench(directory) as b:
        b.process.start()
        assert b.minted().der


# ----------------------------------------------------------------------------------------------------- who it is


def test_once_it_has_the_key_it_may_be_somebody_else(directory: Path) -> None:
    """And is closed to that user's other processes, which the workers may be."""
    root = os.geteuid() == 0
    own = Identity(os.getuid(), os.getgid(), tuple(os.getgroups()))
    who = Identity(65_534, 65_534, ()) if root else own
    with bench(directory, user=who) as b:
        b.process.start()
        found = status(b.process.pid)
        assert found["Uid"] == [str(who.uid)] * 4
        assert found["Gid"] == [str(who.gid)] * 4
        assert sorted(found["Groups"]) == sorted(map(str, who.groups))
        assert found["CapPrm"] == ["0" * 16]
        assert found["NoNewPrivs"] == ["1"]
        assert os.stat(f"/proc/{b.process.pid}/fd").st_uid == 0  # of one that can be dumped it is the user's
        assert b.minted().der
        b.kill()
        b.wait(RETRY_SOON)
        b.until(lambda: b.process.ready, "it is not back")  # for its supervisor is who it was


def test_who_it_can_not_be_keeps_the_proxy_from_starting(directory: Path) -> None:
    nobody = 2**32 - 1  # the kernel's "leave it as it is"
    with (
        bench(directory, user=Identity(nobody, 0, ())) as b,
        pytest.raises(SignerError, match=r"given up|can't become"),
    ):
        b.process.start()


# --------------------------------------------------------------------------------------------------- first start


def test_the_first_start_fails_with_the_signers_own_words(tmp_path: Path) -> None:
    with bench(tmp_path) as b:
        with pytest.raises(SignerError, match=r"ca\.crt is not there: `smtpproxy ca init --directory /"):
            b.process.start()
        assert b.process.pid == 0
        assert not b.process.ready
        b.wait(1000)
        assert b.process.pid == 0


def test_a_key_others_can_read_keeps_the_proxy_from_starting(directory: Path) -> None:
    (directory / "ca.key").chmod(0o644)
    told = r"ca\.key is open to others \(mode 0644\): `chmod 600 "
    with bench(directory) as b, pytest.raises(SignerError, match=told):
        b.process.start()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("pass", "it ended at once"),
        ("sys.exit(3)", "it ended at once"),
        ("life.send(b'garbage')", "it said what makes no sense"),
        ("life.send(b'\\x92\\xc4\\x00\\xa1\\xff')", "it said what makes no sense"),  # no UTF-8
        ("life.send(pack(('x', 1)))", "it said what makes no sense"),
        ("life.send(b'\\xff' * 65537)", "it said what makes no sense"),
    ],
)
def test_a_first_start_that_makes_no_sense_fails(tmp_path: Path, program: str, why: str) -> None:
    with bench(tmp_path, program) as b, pytest.raises(SignerError, match=why):
        b.process.start()


def test_a_first_start_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.net.signingprocess.START", 0.05)
    with bench(tmp_path, "life.recv(1)") as b, pytest.raises(SignerError, match="nothing was heard of it for 0 s"):
        b.process.start()


def test_a_first_start_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with bench(tmp_path, "life.recv(1)") as b:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                b.process.start()
            assert b.process.pid == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_without_a_program_there_is_an_error(tmp_path: Path) -> None:
    with bench(tmp_path) as b:
        b.process.program = (str(tmp_path / "nowhere"),)
        with pytest.raises(SignerError, match="No such file"):
            b.process.start()


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_when_it_dies_what_was_asked_waits_for_the_next_one(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        before = b.process.socket_of(0), b.process.socket_of(1)
        pid = b.process.pid
        os.kill(pid, signal.SIGSTOP)
        b.ask(0, 7)
        os.kill(pid, signal.SIGKILL)
        with structlog.testing.capture_logs() as log:
            b.until(lambda: b.process.pid == 0, "its death was not seen")
            assert not b.process.ready
            b.ask(1, 8)
            b.wait(RETRY_SOON / 2)
            assert b.process.pid == 0
            b.wait(RETRY_SOON / 2)
            assert b.process.pid not in (0, pid)
            b.until(lambda: gone(pid), "it is not reaped")
            b.until(lambda: b.process.ready, "it is not back")
        assert (b.process.socket_of(0), b.process.socket_of(1)) == before
        for slot, number in ((0, 7), (1, 8)):
            answer = b.answer(slot)
            assert answer.number == number
            assert answer.der
        assert [line["event"] for line in log] == [
            "the signing process is lost",
            "the signing process is started again",
            "the signing process is back",
        ]
        assert (log[0]["why"], log[0]["again_in"]) == ("it has ended", RETRY_SOON)


def test_it_is_started_ever_less_often_until_one_has_lasted(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        b.fake(READY + "life.recv(1)\nlife.recv(1)")
        delays = []
        for _ in range(8):
            with structlog.testing.capture_logs() as log:
                b.kill()
            delays.append(log[-1]["again_in"])
            b.wait(delays[-1])
            b.until(lambda: b.process.ready, "it is not back")
        assert delays == [1, 2, 4, 8, 16, 32, RETRY, RETRY]
        b.real()
        b.kill()
        b.wait(RETRY)
        b.until(lambda: b.process.ready, "it is not back")
        b.ahead += LASTED
        with structlog.testing.capture_logs() as log:
            b.kill()
        assert log[-1]["again_in"] == RETRY_SOON


def remove_key(directory: Path) -> None:
    (directory / "ca.key").unlink()


def other_ca(directory: Path) -> None:
    """An administrator has made another one, and not reloaded yet: the workers show the certificate of the first."""
    for name in ("ca.key", "ca.crt"):
        (directory / name).unlink()
    create(directory, "another CA", 3650)


@pytest.mark.parametrize(
    ("harm", "why"),
    [(remove_key, "ca.key is not there"), (other_ca, "another CA than when the proxy read it: reload the proxy")],
)
def test_what_is_wrong_with_the_ca_by_then_is_said(directory: Path, harm: Callable[[Path], None], why: str) -> None:
    with bench(directory) as b:
        b.process.start()
        kept = {name: (directory / name).read_bytes() for name in ("ca.key", "ca.crt")}
        harm(directory)
        b.kill()
        b.ask()
        with structlog.testing.capture_logs() as log:
            b.wait(RETRY_SOON)
            b.until(lambda: len(log) == 2, "nothing was said of it")
        assert why in log[1]["why"]
        assert log[1]["again_in"] == 2 * RETRY_SOON
        for name, octets in kept.items():
            (directory / name).touch(0o600)
            (directory / name).write_bytes(octets)
        b.wait(2 * RETRY_SOON)
        b.until(lambda: b.process.ready, "it is not back")
        certificate = x509.load_der_x509_certificate(b.answer().der)  # what was asked is signed by the right one
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(b.process.certificate))


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("life.send(pack((b'', 'the key is gone')))\nlife.recv(1)", "the key is gone"),
        ("sys.exit(1)", "it has ended"),
        ("life.send(b'garbage')\nlife.recv(1)", "it said what makes no sense"),
        ("life.recv(1)", "it was not ready within 10 s"),
    ],
)
def test_a_start_again_may_fail_and_is_tried_again(directory: Path, program: str, why: str) -> None:
    with bench(directory) as b:
        b.process.start()
        b.fake(program)
        b.kill()
        with structlog.testing.capture_logs() as log:
            b.wait(RETRY_SOON)
            if why.startswith("it was"):
                b.wait(PATIENCE)
            b.until(lambda: len(log) == 2, "nothing was said of it")
        assert why in log[1]["why"]
        assert log[1]["again_in"] == 2 * RETRY_SOON
        b.real()
        b.wait(2 * RETRY_SOON)
        b.until(lambda: b.process.ready, "it is not back")
        assert b.minted().der


def test_a_program_that_is_gone_is_tried_again(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        b.process.program = (str(directory / "nowhere"),)
        b.kill()
        with structlog.testing.capture_logs() as log:
            b.wait(RETRY_SOON)
        assert log[1]["why"] == "No such file or directory"
        b.real()
        b.wait(2 * RETRY_SOON)
        b.until(lambda: b.process.ready, "it is not back")


def test_one_that_answers_is_left_alone(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        pid = b.process.pid
        for _ in range(5):
            b.wait()
            assert b.process._running is not None
            assert readable(b.process._running.life)
            b.wait(10 * PATIENCE)
        assert b.process.pid == pid


def test_a_silent_one_is_as_good_as_dead(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        pid = b.process.pid
        os.kill(pid, signal.SIGSTOP)
        b.ask()
        b.wait()
        b.wait(PATIENCE / 2)
        assert b.process.pid == pid
        with structlog.testing.capture_logs() as log:
            b.wait(PATIENCE / 2)
        assert log[0]["why"] == "it was silent for 10 s"
        b.until(lambda: gone(pid), "it is not reaped")
        b.wait(RETRY_SOON)
        assert b.answer().der


def test_a_broken_life_is_a_death(tmp_path: Path) -> None:
    """Whoever speaks notices it first."""
    with bench(tmp_path, READY + "life.shutdown(socket.SHUT_RD)\nlife.send(b'!')\nsockets[0].recv(1)") as b:
        b.process.start()
        b.until(lambda: b.process.pid == 0, "it was believed")


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("end", ["workers", "signers"])
def test_a_pair_that_a_worker_has_shut_down_is_made_anew(directory: Path, how: int, end: str) -> None:
    with bench(directory) as b:
        b.process.start()
        other = b.process.socket_of(1)
        getattr(b.process._pairs[0], end).shutdown(how)
        with structlog.testing.capture_logs() as log:
            b.wait()
        assert log[0]["why"] == "a worker has shut down its socket"
        b.ask(1)
        b.wait(RETRY_SOON)
        assert b.minted(0).der  # for the next worker
        assert b.process.socket_of(1) is other
        assert b.answer(1).der
        b.until(lambda: b.process.ready, "it is not back")
        b.wait()
        assert b.process.ready


# ------------------------------------------------------------------------------------------------------- its end


@pytest.mark.parametrize("stopped", [False, True])
def test_at_the_end_it_is_reaped(directory: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.net.signingprocess.GRACE", 0.1 if stopped else DEADLINE)
    with bench(directory) as b:
        b.process.start()
        pid = b.process.pid
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        b.process.close()
        assert gone(pid)
        b.process.close()
        b.wait(100)
        assert b.process.pid == 0


def test_what_died_and_was_not_reaped_yet_is_reaped_at_the_end(directory: Path) -> None:
    with bench(directory) as b:
        b.process.start()
        pid = b.process.pid
        b.kill()
        b.process.close()
        assert gone(pid)


# What the supervisor's process does, as far as the signer is concerned: it has one, and a worker in slot 1 that asks
# once and then waits, as the supervisor does, for the end of standard input. It keeps its own socket, or everything.
SUPERVISOR = """
import os, socket, sys
from pathlib import Path
import msgspec
from smtpproxy.net import forking
from smtpproxy.net.signer import LARGEST, Answer
from smtpproxy.net.signingprocess import SigningProcess

process = SigningProcess(Path(sys.argv[1]), slots=3)
process.start()
sock = process.socket_of(1)

def work():
    sock.setblocking(True)
    sock.send(bytes.fromhex(sys.argv[3]))
    answer = msgspec.msgpack.decode(sock.recv(LARGEST + 1), type=Answer)
    sockets = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")
               and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]
    print(answer.number, len(answer.der) > 0, len(sockets), flush=True)
    sys.stdin.read()
    return 0

worker = forking.fork(work, [sock.fileno()] if sys.argv[2] == "its own" else range(100))
print(os.getpid(), worker, process.pid, flush=True)
sys.stdin.read()
_, code = os.waitpid(worker, 0)
process.close()
sys.exit(code)
"""


class Supervisor:
    """A supervisor in a process of its own, with its worker and its signer."""

    def __init__(self, directory: Path, word: str) -> None:
        request = msgspec.msgpack.encode(ASKED).hex()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SUPERVISOR, str(directory), word, request],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = sorted((self.process.stdout.readline().split() for _ in range(2)), key=lambda words: words[1] == "True")
        self.pid, self.worker, self.signer = map(int, said[0])
        self.told = said[1]

    def end(self) -> str:
        """Let all of them end; what they wrote to standard error."""
        return self.process.communicate("", timeout=DEADLINE)[1]


@pytest.fixture
def supervise() -> Iterator[Callable[[Path, str], Supervisor]]:
    made: list[Supervisor] = []

    def starter(directory: Path, word: str) -> Supervisor:
        made.append(Supervisor(directory, word))
        return made[-1]

    yield starter
    for one in made:
        one.end()


def test_a_worker_has_its_own_socket_and_nothing_else(
    directory: Path, supervise: Callable[[Path, str], Supervisor]
) -> None:
    """It may be taken over: it must read no other's certificates, and not pass for the signer or its supervisor."""
    running = supervise(directory, "its own")
    assert running.told == ["1", "True", "1"]
    assert "Warning" not in running.end()
    assert running.process.returncode == 0
    assert supervise(directory, "everything").told[2] == "7"  # its life, and both ends of three pairs


@pytest.mark.parametrize("word", ["its own", "everything"])
def test_killed_the_supervisor_takes_it_along(
    directory: Path, supervise: Callable[[Path, str], Supervisor], word: str
) -> None:
    """Though a worker goes on; and even if that has the supervisor's end of its life."""
    running = supervise(directory, word)
    os.kill(running.pid, signal.SIGKILL)
    running.process.wait(DEADLINE)
    deadline = time.monotonic() + DEADLINE
    while state(running.signer)[0] != "Z":
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.005)
    assert state(running.worker)[0] != "Z"

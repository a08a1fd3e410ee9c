"""The signing process: what it answers to whom, and what it does not give away."""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.net import signer
from smtpproxy.net.signer import LARGEST, Answer, Bucket, Desk, Ready, Request, Signing
from smtpproxy.tls import minting
from smtpproxy.tls.authority import Authority, AuthorityError, create
from smtpproxy.tls.minting import DAY, KeyPair

DEADLINE = 20.0
NOW = int(time.time())
SPKI = KeyPair().spki
ASKED = Request(1, ("mx.example",), (("2.5.4.3", "mx.example"),), NOW - DAY, NOW + DAY, SPKI)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ca")


@pytest.fixture(scope="module")
def ca(directory: Path) -> Authority:
    return create(directory, "test CA", 3650)


def signing(ca: Authority, burst: int = 10_000, clock: Callable[[], float] = lambda: 0.0) -> Signing:
    return Signing(ca, 30, Bucket(1, burst, clock), clock=clock)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Bench:
    """A desk, driven by hand; `life` and `workers` are the other ends."""

    def __init__(self, signing: Signing, workers: int) -> None:
        self.life, its_life = pair()
        pairs = [pair() for _ in range(workers)]
        self.workers = [ours for ours, _ in pairs]
        self.its = [its_life, *(its for _, its in pairs)]
        self.desk = Desk(its_life, self.its[1:], signing)

    def turn(self, count: int = 1) -> bool:
        """So many turns; whether the supervisor is there after the last."""
        return [self.desk.turn(0) for _ in range(count)][-1]

    def answers(self, worker: int = 0) -> list[Answer]:
        """What there is for this worker."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while octets := self.workers[worker].recv(LARGEST + 1, socket.MSG_DONTWAIT):
                found.append(msgspec.msgpack.decode(octets, type=Answer))
        return found

    def close(self) -> None:
        """All ends."""
        for sock in (self.life, *self.workers, *self.its):
            sock.close()


@contextlib.contextmanager
def bench(signing: Signing, workers: int = 1) -> Iterator[Bench]:
    made = Bench(signing, workers)
    try:
        yield made
    finally:
        made.close()


def ask(signing: Signing, *datagrams: bytes) -> list[Answer]:
    """What is answered to these; the supervisor goes when they all are."""
    with bench(signing) as b:
        answers = []
        for datagram in datagrams:
            b.workers[0].sendall(datagram)
            assert b.turn()
            answers += b.answers()
        return answers


def packed(request: object) -> bytes:
    return msgspec.msgpack.encode(request)


def test_a_certificate_is_answered_and_logged(ca: Authority) -> None:
    with structlog.testing.capture_logs() as log:
        (answer,) = ask(signing(ca), packed(ASKED))
    assert (answer.number, answer.why) == (1, "")
    found = x509.load_der_x509_certificate(answer.der)
    found.verify_directly_issued_by(ca.certificate)
    assert found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == SPKI
    line = {"event": "minted", "log_level": "info", "names": ("mx.example",), "serial": f"{found.serial_number:x}"}
    assert log == [{**line, "number": 1}]


def test_each_is_numbered_and_counted(ca: Authority) -> None:
    names = tuple(f"mx{number}.example" for number in range(12))
    with structlog.testing.capture_logs() as log:
        answers = ask(signing(ca), *(packed(msgspec.structs.replace(ASKED, number=n, names=names)) for n in (7, 5)))
    assert [answer.number for answer in answers] == [7, 5]
    assert [(line["number"], len(line["names"]), line["more_names"]) for line in log] == [(1, 10, 2), (2, 10, 2)]
    assert log[0]["serial"] != log[1]["serial"]


_FIELDS = msgspec.structs.astuple(ASKED)


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x00",
        b"garbage",
        packed(None),
        packed({"number": 1}),
        packed(_FIELDS[:-1]),
        packed((*_FIELDS, 1)),  # more than is asked
        packed(("1", *_FIELDS[1:])),
        packed((0, *_FIELDS[1:])),
        packed((-1, *_FIELDS[1:])),
        packed((2**63, *_FIELDS[1:])),
        packed((1, "mx.example", *_FIELDS[2:])),
        packed((1, ["mx.example"] * 251, *_FIELDS[2:])),
        packed((1, ["a" * 256], *_FIELDS[2:])),
        packed((1, [b"mx.example"], *_FIELDS[2:])),
        packed((1, ["mx"], [["2.5.4.3"]], *_FIELDS[3:])),
        packed((1, ["mx"], [["2.5.4.3", "a"]] * 21, *_FIELDS[3:])),
        packed((1, ["mx"], [], 1.5, *_FIELDS[4:])),
        packed((1, ["mx"], [], 1, 2**80 * 1.0, SPKI)),
        packed((*_FIELDS[:-1], b"a" * 256)),
        packed(_FIELDS) + b"\x00",
        packed(_FIELDS).replace(b"mx.", b"\xff\xff.", 1),  # no UTF-8
        b"\x91" * 60_000,  # nested
        bytes(LARGEST + 1),
    ],
    ids=lambda datagram: f"{len(datagram)} octets",
)
def test_what_is_no_request_is_refused_and_the_next_is_answered(ca: Authority, datagram: bytes) -> None:
    refused, answered = ask(signing(ca), datagram, packed(ASKED))
    assert refused.number == 0
    assert refused.why
    assert not refused.der
    assert answered.der


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"names": ()}, "without names"),
        ({"names": ("*",)}, "neither"),
        ({"names": ("mx.example\n",)}, "neither"),
        ({"subject": (("2.5.4.3", "a\nb"),)}, "subject"),
        ({"subject": (("1.2.3", "a"),)}, "subject"),
        ({"not_after": NOW - DAY}, "expired"),
        ({"not_after": 2**62}, "the time"),
        ({"spki": b""}, "public key"),
        ({"number": 2**63 - 1, "names": ()}, "without names"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_proxy_would_not_ask_is_refused(ca: Authority, change: dict[str, Any], why: str) -> None:
    """Who asks reads hostile octets, and may have been taken over."""
    (answer,) = ask(signing(ca), packed(msgspec.structs.replace(ASKED, **change)))
    assert answer.number == change.get("number", 1)
    assert why in answer.why
    assert not answer.der


def test_the_cas_own_key_gets_no_certificate(ca: Authority) -> None:
    own = ca.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (answer,) = ask(signing(ca), packed(msgspec.structs.replace(ASKED, spki=own)))
    assert answer.why == "the CA's own key is not a leaf's"


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_answered_by_why(ca: Authority, garbage: bytes) -> None:
    assert signing(ca).answer(garbage).why


@given(st.data())
def test_a_spoilt_request_is_answered_one_way_or_the_other(ca: Authority, data: st.DataObject) -> None:
    spoilt = bytearray(packed(ASKED))
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    answer = signing(ca).answer(bytes(spoilt))
    assert bool(answer.der) != bool(answer.why)


def test_a_flood_is_stopped_and_does_not_fill_the_log(ca: Authority) -> None:
    now = [0.0]
    at_work = signing(ca, burst=100, clock=lambda: now[0])
    with structlog.testing.capture_logs() as log:
        answers = ask(at_work, *[packed(ASKED)] * 150)
        assert [bool(answer.der) for answer in answers] == [True] * 100 + [False] * 50
        assert answers[-1].why == "more certificates are asked for than may be signed just now"
        assert answers[-1].number == 1
        now[0] = 3.0  # seconds, and a token each
        assert sum(bool(answer.der) for answer in ask(at_work, *[packed(ASKED)] * 10)) == 3
    refused = [(line["since_last"], line["refused"]) for line in log if line["event"] == "not minted"]
    assert refused == [(1, 1), (50, 51)]
    assert (at_work.minted, at_work.refused) == (103, 57)


def test_tokens_do_not_gather_beyond_the_burst() -> None:
    now = [0.0]
    bucket = Bucket(2, 5, lambda: now[0])
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]
    now[0] = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]


def test_our_own_bug_costs_one_certificate(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = signing(ca)
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as log:
        patch.setattr(minting, "mint", lambda *_: 1 / 0)
        assert at_work.answer(packed(ASKED)) == Answer(1, why="signing failed")
    assert [line["event"] for line in log] == ["signing failed", "not minted"]
    assert at_work.answer(packed(ASKED)).der


# ------------------------------------------------------------------------------------------------------- the workers


def numbered(number: int) -> bytes:
    return packed(msgspec.structs.replace(ASKED, number=number))


def test_each_worker_has_one_answer_in_turn(ca: Authority) -> None:
    """Who asks for much does not keep the others waiting."""
    with bench(signing(ca), 3) as b:
        for number in range(1, 21):
            b.workers[0].sendall(numbered(number))
        b.workers[1].sendall(numbered(7))
        b.workers[2].sendall(numbered(7))
        b.workers[2].sendall(numbered(8))
        b.turn()
        assert [[answer.number for answer in b.answers(worker)] for worker in range(3)] == [[1], [7], [7]]
        b.turn()
        assert [[answer.number for answer in b.answers(worker)] for worker in range(3)] == [[2], [], [8]]
        b.turn(18)
        assert [answer.number for answer in b.answers()] == list(range(3, 21))


def test_the_tokens_are_for_all_workers_together(ca: Authority) -> None:
    with bench(signing(ca, burst=3), 2) as b:
        for worker in b.workers:
            for number in range(1, 4):
                worker.sendall(numbered(number))
        b.turn(3)
        answers = b.answers(0) + b.answers(1)
        assert len(answers) == 6
        assert sum(bool(answer.der) for answer in answers) == 3


def test_who_takes_no_answers_is_asked_for_no_more_and_loses_none(ca: Authority) -> None:
    """A worker that has stopped must stop nobody else, and a queue of its answers must not grow here."""
    at_work = signing(ca)
    with bench(at_work, 2) as b:
        sent = 0
        minted = -1
        while minted != at_work.minted:  # until there is no room for an answer
            minted = at_work.minted
            sent += 1
            b.workers[0].sendall(numbered(sent))
            b.turn()
        b.turn(5)
        assert at_work.minted == minted  # nothing more is read
        assert b.desk._poll.poll(0) == []  # and it does not turn for nothing
        b.workers[1].sendall(numbered(1))
        b.turn()
        assert b.answers(1)[0].der
        answers = []
        for _ in range(2 * sent):  # now it takes them
            answers += b.answers()
            b.turn()
        assert [answer.number for answer in answers] == list(range(1, sent + 1))
        assert all(answer.der for answer in answers)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_worker_that_shuts_its_socket_harms_itself_alone(ca: Authority, how: int) -> None:
    with bench(signing(ca), 2) as b, structlog.testing.capture_logs() as log:
        b.workers[0].sendall(packed(ASKED))
        b.workers[0].shutdown(how)
        b.turn(3)
        b.workers[1].sendall(packed(ASKED))
        b.turn()
        assert b.answers(1)[0].der
        assert b.turn(3)
        assert bool(b.answers(0)) is (how == socket.SHUT_WR)  # what it had asked before is answered
        assert b.desk._poll.poll(0) == []  # it does not turn for nothing
    gone = [line for line in log if line["event"] != "minted"]
    assert [(line["event"], line["left"]) for line in gone] == [("a worker's socket to the signer was shut down", 1)]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_worker_that_is_gone_with_its_questions_unanswered(ca: Authority, answers: int) -> None:
    """Or with answers it has not taken."""
    with bench(signing(ca), 2) as b:
        b.workers[0].sendall(packed(ASKED))
        b.turn(answers + 1)
        if not answers:
            b.workers[0].sendall(packed(ASKED))
        b.workers[0].close()
        assert b.turn(3)
        b.workers[1].sendall(packed(ASKED))
        b.turn()
        assert b.answers(1)[0].der


def test_nothing_is_a_request_as_well_and_none(ca: Authority) -> None:
    """An empty datagram is not the end of a socket."""
    with bench(signing(ca)) as b:
        b.workers[0].send(b"")
        b.workers[0].sendall(packed(ASKED))
        b.turn(2)
        refused, answered = b.answers()
        assert refused.why.startswith("not a request")
        assert answered.der


def test_what_was_there_and_is_not_any_more_is_not_waited_for(ca: Authority) -> None:
    with bench(signing(ca)) as b:
        b.desk._answer(b.its[1].fileno(), select.POLLIN)
        assert b.answers() == []


# ----------------------------------------------------------------------------------------------------- the supervisor


def test_the_supervisor_is_told_that_it_lives(ca: Authority) -> None:
    with bench(signing(ca)) as b:
        b.life.sendall(b"?")
        assert b.turn()
        assert b.life.recv(10) == b"?"
        assert b.turn()


def test_a_supervisor_that_does_not_listen_is_not_waited_for(ca: Authority) -> None:
    with bench(signing(ca)) as b:
        for _ in range(2000):
            b.life.sendall(b"?")
            assert b.turn()
        b.workers[0].sendall(packed(ASKED))
        b.turn()
        assert b.answers()[0].der


def test_who_it_is_to_be_is_one_word() -> None:
    assert signer.identity("1000:100:4,24") == (1000, 100, (4, 24))
    assert signer.identity("0:0:") == (0, 0, ())
    for odd in ("", "1000", "1000:100", "1000:100:a", "a:100:4", "1:2:3:4"):
        with pytest.raises(ValueError):
            signer.identity(odd)


@pytest.mark.parametrize("unread", [False, True])
def test_without_the_supervisor_it_ends(ca: Authority, unread: bool) -> None:
    """What was asked in the same turn is answered all the same."""
    with bench(signing(ca)) as b:
        if unread:
            b.life.sendall(b"?")
            b.turn()
            b.life.sendall(b"?")
        b.workers[0].sendall(packed(ASKED))
        b.life.close()
        ends = next(count for count in range(1, 4) if not b.turn())
        assert ends <= 2
        assert b.answers()[0].der
        b.desk.serve(os.getppid())  # at once


def test_without_its_parent_it_ends(ca: Authority) -> None:
    """Whatever became of the socket: somebody else may have its other end."""
    with bench(signing(ca)) as b:
        b.desk.serve(os.getpid())
        assert b.turn()


# ---------------------------------------------------------------------------------------------------- the process


class Process:
    """The real one, driven by hand: the supervisor's end of its life, and a worker's socket."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.life, its_life = pair()
        self.socket, its = pair()
        command = [sys.executable, "-m", "smtpproxy.net.signer", f"--life={its_life.fileno()}"]
        command += ["--sockets", str(its.fileno()), "--days=30", "--rate=100", "--burst=1000"]
        for sock in (self.life, self.socket):
            sock.settimeout(DEADLINE)
        with its_life, its:
            self.process = subprocess.Popen(
                [*command, "--directory", str(directory), *options],
                pass_fds=[its_life.fileno(), its.fileno()],
                stderr=subprocess.PIPE,
            )

    def ready(self) -> Ready:
        """What it says first."""
        return msgspec.msgpack.decode(self.life.recv(LARGEST + 1), type=Ready)

    def answer(self, request: bytes) -> Answer:
        """What is answered to this."""
        self.socket.sendall(request)
        return msgspec.msgpack.decode(self.socket.recv(LARGEST + 1), type=Answer)

    def end(self) -> tuple[int, bytes]:
        """Its exit code, and what it wrote to standard error."""
        self.life.close()
        _, said = self.process.communicate(timeout=DEADLINE)
        self.socket.close()
        return self.process.returncode, said


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def starter(*arguments: Any) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield starter
    for one in made:
        one.process.kill()
        one.end()


def test_the_process_says_ready_signs_and_ends(directory: Path, ca: Authority, start: Callable[..., Process]) -> None:
    process = start(directory, "--log-json")
    assert process.ready() == Ready(ca.pem)
    x509.load_der_x509_certificate(process.answer(packed(ASKED)).der).verify_directly_issued_by(ca.certificate)
    code, said = process.end()
    assert code == 0
    minted, ends = [msgspec.json.decode(line) for line in said.splitlines()]
    assert (minted["event"], minted["names"], minted["number"]) == ("minted", ["mx.example"], 1)
    assert (ends["event"], ends["minted"], ends["refused"]) == ("the signer ends", 1, 0)


def test_no_signal_of_a_service_manager_ends_it(directory: Path, ca: Authority, start: Callable[..., Process]) -> None:
    """A service manager signals every process of the service; the proxy has still to finish what is in flight."""
    process = start(directory)
    process.ready()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        process.process.send_signal(number)
    assert process.answer(packed(ASKED)).der
    assert process.end()[0] == 0


def test_it_is_closed_to_others(directory: Path, ca: Authority, start: Callable[..., Process]) -> None:
    process = start(directory)
    process.ready()
    pid = process.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    names: set[str] = set()
    with contextlib.suppress(PermissionError):  # it is closed even to us, unless we are root
        names = {os.path.realpath(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    assert not [name for name in names if str(directory) in name]  # the key's file is closed again
    code = (
        "import ctypes\nfrom smtpproxy.net.signer import harden\nharden()\n"
        "assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0"  # PR_GET_DUMPABLE
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)


def test_what_is_wrong_with_the_ca_is_said(tmp_path: Path, start: Callable[..., Process]) -> None:
    process = start(tmp_path)
    ready = process.ready()
    assert ready.certificate == b""
    assert "ca.crt is not there: `smtpproxy ca init --directory " in ready.why
    code, said = process.end()
    assert (code, said) == (2, b"")


def test_the_passphrase_is_read_from_its_file(tmp_path: Path, start: Callable[..., Process]) -> None:
    ca = create(tmp_path, "test CA", 365, b"correct horse battery")
    word = tmp_path / "word"
    word.touch(0o600)
    word.write_text("correct horse battery\n")
    process = start(tmp_path, "--passphrase-file", str(word))
    assert process.ready() == Ready(ca.pem)
    arguments = Path(f"/proc/{process.process.pid}/cmdline").read_bytes()
    assert b"horse" not in arguments
    with pytest.raises(AuthorityError, match="is encrypted"):
        signer.open_authority(tmp_path, None)


def test_nothing_secret_is_said_when_signing_fails(directory: Path, ca: Authority) -> None:
    """I8: a traceback has no values of variables."""
    secret = load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    code = (
        "import sys\nfrom pathlib import Path\nfrom smtpproxy.net import signer\n"
        "signer._set_up_log('info', json='json' in sys.argv)\n"
        f"ca = signer.open_authority(Path({str(directory)!r}), None)\n"
        "signer.minting.mint = lambda *_: 1 / 0\n"
        "signer.Signing(ca, 30, signer.Bucket(1, 1)).answer(bytes.fromhex(sys.argv[1]))"
    )
    for form in ("text", "json"):
        command = [sys.executable, "-c", code, packed(ASKED).hex(), form]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stderr
        assert "ZeroDivisionError" in said
        value = secret.private_numbers().private_value
        assert f"{value}" not in said
        assert f"{value:x}" not in said
        assert "PRIVATE" not in said

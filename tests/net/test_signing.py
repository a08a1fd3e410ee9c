"""A worker's side of the signing process: everybody is answered once, whatever becomes of it; and no key here."""

import contextlib
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signer import LARGEST, Answer, Bucket, Request, Signing
from smtpproxy.net.signing import MOST_ASKED, PATIENCE, Signer
from smtpproxy.net.signingprocess import RETRY_SOON, SigningProcess
from smtpproxy.tls.authority import Authority, create
from smtpproxy.tls.minting import DAY, Leaf, Likeness
from tests.net.rig import Clock, settled, until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
NOW = int(time.time())
LIKE = Likeness(("mx.example",), (("2.5.4.3", "mx.example"),), NOW - DAY, NOW + 300 * DAY)
LATE = f"the signing process did not answer within {PATIENCE:.0f} s"


class NoRecord:
    """A record nothing is in."""

    unsettled = False

    def settle(self) -> None:
        """As AuditLog."""

    def flush(self) -> bool:
        """As AuditLog."""
        return True


class Bench:
    """A worker's signer in a reactor whose clock may be put forward."""

    def __init__(self, sock: socket.socket, certificate: bytes) -> None:
        self.clock = Clock()
        self.reactor = Reactor(NoRecord(), self.clock)
        self.socket = sock
        self.signer = Signer(self.reactor, sock, certificate)
        self.told: list[Leaf | str] = []

    def mint(self, like: Likeness = LIKE) -> None:
        """Ask, and note what is told."""
        self.signer.mint(like, self.told.append)

    async def minted(self, like: Likeness = LIKE) -> Leaf | str:
        """Ask, and wait."""
        self.mint(like)
        return await self.next()

    async def next(self) -> Leaf | str:
        """What is told next."""
        with trio.fail_after(DEADLINE):
            while not self.told:
                await trio.sleep(0.001)
        return self.told.pop(0)

    def wait(self, seconds: float) -> None:
        """Time passes, and the sweep comes by."""
        self.clock.ahead += seconds
        self.reactor.tick()
        self.signer.check()

    def close(self) -> None:
        """As when the worker ends."""
        self.signer.close()
        self.reactor.close()


@asynccontextmanager
async def running(made: Bench) -> AsyncIterator[Bench]:
    """With its reactor, which ends with it."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.reactor.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        made.close()


class Real(Bench):
    """In front of the real one, whose supervisor is here as well."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.process = SigningProcess(directory, slots=1, **options)
        self.process.start()
        super().__init__(self.process.socket_of(0), self.process.certificate)

    def close(self) -> None:
        """And its supervisor's."""
        super().close()
        self.process.close()


class Fake(Bench):
    """In front of nobody; what is asked and answered is up to the test."""

    def __init__(self) -> None:
        ours, self.its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.its.setblocking(False)
        super().__init__(ours, b"PEM")

    def asked(self) -> Request:
        """What is asked next; that was sent at once."""
        return msgspec.msgpack.decode(self.its.recv(LARGEST + 1), type=Request)

    def say(self, *answer: Any) -> None:
        """An answer."""
        self.its.send(msgspec.msgpack.encode(answer))

    def close(self) -> None:
        """And the sockets, which are nobody else's."""
        super().close()
        self.socket.close()
        self.its.close()


def real(directory: Path, **options: Any) -> contextlib.AbstractAsyncContextManager[Bench]:
    return running(Real(directory, **options))


@asynccontextmanager
async def fake() -> AsyncIterator[Fake]:
    made = Fake()
    async with running(made):
        yield made


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create(tmp_path_factory.mktemp("ca"), "test CA", 3650)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create(tmp_path, "test CA", 3650)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor outlives a test."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------- in order


async def test_a_leaf_comes_with_its_key_and_the_cas_certificate(directory: Path, tmp_path: Path) -> None:
    async with real(directory) as b:
        leaf = await b.minted()
        assert isinstance(leaf, Leaf)
        above = (directory / "ca.crt").read_bytes()
        assert b.signer.certificate == above
        assert leaf.chain.endswith(above)
        assert leaf.chain.count(b"BEGIN") == 2
        (tmp_path / "leaf.pem").write_bytes(leaf.chain + leaf.key)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "leaf.pem")  # the key fits
        x509.load_pem_x509_certificate(leaf.chain).verify_directly_issued_by(x509.load_pem_x509_certificate(above))


async def test_a_thousand_names_at_once(directory: Path) -> None:
    """Minting under load. All have their own key and serial number, and all are the CA's."""
    count = 1000
    likes = [LIKE._replace(names=(f"mx{number}.example", f"*.mail{number}.example")) for number in range(count)]
    told: dict[int, Leaf | str] = {}
    async with real(directory, burst=count, rate=0.001) as b:
        for number, like in enumerate(likes):
            b.signer.mint(like, lambda leaf, number=number: told.__setitem__(number, leaf))  # type: ignore[misc]
        with trio.fail_after(DEADLINE):
            while len(told) < count:
                await trio.sleep(0.001)
        above = x509.load_pem_x509_certificate(b.signer.certificate)
        assert await b.minted() == "more certificates are asked for than may be signed just now"
    serials, keys = set(), set()
    for number, like in enumerate(likes):
        leaf = told[number]
        assert isinstance(leaf, Leaf)
        found = x509.load_pem_x509_certificate(leaf.chain)
        found.verify_directly_issued_by(above)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert tuple(names.get_values_for_type(x509.DNSName)) == like.names
        serials.add(found.serial_number)
        keys.add(leaf.key)
    assert len(serials) == len(keys) == count


async def test_what_it_will_not_sign_is_told_as_it_says(directory: Path) -> None:
    async with real(directory) as b:
        assert await b.minted(LIKE._replace(not_after=NOW - DAY)) == "the server's certificate has expired"
        assert await b.minted(LIKE._replace(names=())) == "a certificate without names is not signed"
        assert isinstance(await b.minted(), Leaf)


async def test_what_is_no_likeness_is_not_even_asked(directory: Path) -> None:
    async with real(directory) as b:
        odd: list[Any] = [
            LIKE._replace(names=("mx example",)),
            LIKE._replace(names=("\udc80",)),
            LIKE._replace(not_after=2**70),
            LIKE._replace(subject=(("2.5.4.3", "\udc80"),)),
            LIKE._replace(names=(1,)),  # type: ignore[arg-type]
            (1, 2),
            None,
        ]
        for like in odd:
            b.mint(like)
        assert len(b.told) == len(odd)
        assert all(isinstance(why, str) and why for why in b.told)
        b.told.clear()
        assert isinstance(await b.minted(), Leaf)


async def test_the_longest_of_all_requests_fits_into_a_datagram(directory: Path) -> None:
    label = ".".join(["a" * 60] * 2)
    names = tuple(f"{number:03}.{label}" for number in range(250))
    like = LIKE._replace(names=names, subject=(("1.2.840.113549.1.9.1", "a" * 255),) * 20)
    async with real(directory) as b:
        assert isinstance(await b.minted(like), Leaf)


# -------------------------------------------------------------------------------------------------- what goes wrong


async def test_what_was_asked_of_one_that_died_is_answered_by_the_next(directory: Path) -> None:
    made = Real(directory)
    async with running(made) as b:
        os.kill(made.process.pid, signal.SIGSTOP)
        b.mint()
        os.kill(made.process.pid, signal.SIGKILL)
        now = time.monotonic()

        def lost() -> bool:
            made.process.check(now)
            return made.process.pid == 0

        await until(lost, "its death was not seen")
        b.mint()
        assert not b.told
        made.process.check(now + RETRY_SOON)
        assert isinstance(await b.next(), Leaf)
        assert isinstance(await b.next(), Leaf)
        assert b.signer.ignored == 0


async def test_while_none_is_there_nobody_waits_for_ever(directory: Path) -> None:
    made = Real(directory)
    async with running(made) as b:
        os.kill(made.process.pid, signal.SIGSTOP)
        b.mint()
        b.wait(PATIENCE / 2)
        b.mint()
        assert not b.told
        with structlog.testing.capture_logs() as log:
            b.wait(PATIENCE / 2)
        assert b.told == [LATE]
        assert [(line["event"], line["told"]) for line in log] == [("the signing process does not answer", 1)]
        b.wait(PATIENCE / 2)
        assert b.told == [LATE, LATE]
        b.told.clear()
        os.kill(made.process.pid, signal.SIGCONT)
        assert isinstance(await b.minted(), Leaf)  # and those that came too late are nobody's
        assert b.signer.ignored == 2
        assert not b.told


async def test_a_predecessors_answers_are_not_taken_for_ones_own(directory: Path) -> None:
    """It died with questions unanswered, and with answers it had not taken."""
    made = Real(directory)
    predecessor = made.signer
    lost: list[Leaf | str] = []
    for _ in range(3):
        predecessor.mint(LIKE, lost.append)
    with trio.fail_after(DEADLINE):
        await trio.lowlevel.wait_readable(made.socket)  # one answer at least
    os.kill(made.process.pid, signal.SIGSTOP)
    for _ in range(3):
        predecessor.mint(LIKE, lost.append)
    made.reactor.forget(made.socket.fileno())
    made.signer = Signer(made.reactor, made.socket, made.process.certificate)
    async with running(made) as b:
        for _ in range(3):
            b.mint()
        os.kill(made.process.pid, signal.SIGCONT)
        leaves = [await b.next() for _ in range(3)]
        assert all(isinstance(leaf, Leaf) for leaf in leaves)  # each fits its key, so it is the answer to its question
        assert b.signer.ignored == 6
        with structlog.testing.capture_logs() as log:
            b.wait(0)
            b.wait(0)
        (line,) = log
        assert (line["event"], line["since_last"]) == ("ignored what the signing process said", 6)
    assert lost == []


async def test_numbers_begin_anywhere() -> None:
    async with fake() as first, fake() as second:
        numbers = []
        for b in (first, second):
            b.mint()
            b.mint()
            numbers += [b.asked().number, b.asked().number]
    assert numbers[1] == numbers[0] + 1
    assert numbers[3] == numbers[2] + 1
    assert abs(numbers[0] - numbers[2]) > MOST_ASKED  # or else they would meet once in 10**14 runs


async def test_answers_that_came_while_nobody_listened_count(directory: Path) -> None:
    """The record could not be written for a while: no event is, but the sweep goes on."""
    made = Real(directory)
    try:
        for _ in range(400):  # more than are taken in one turn
            made.mint()
        with trio.fail_after(DEADLINE):
            while len(made.told) < 400:
                made.wait(0)
                await trio.sleep(0.001)
        assert all(isinstance(one, Leaf) for one in made.told)
        made.mint()
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(made.socket)
        made.wait(PATIENCE)
        assert isinstance(made.told[-1], Leaf)
    finally:
        made.close()


_NO_ANSWERS: list[tuple[bytes, str]] = [
    (b"garbage", "not an answer"),
    (b"\x93\x01\xc4\x00\xa1\xff", "not an answer"),  # no UTF-8
    (msgspec.msgpack.encode((1, b"", "a" * 1001)), "not an answer"),
    (msgspec.msgpack.encode((1, b"", "", 1)), "not an answer"),
    (b"\xff" * 65_537, "not an answer"),
    (msgspec.msgpack.encode((99, b"", "")), "nobody waits for that"),
    (msgspec.msgpack.encode((0, b"", "not a request")), "not a request"),
]


@pytest.mark.parametrize(("answer", "why"), _NO_ANSWERS, ids=[f"{octets[:12]!r}" for octets, _ in _NO_ANSWERS])
async def test_an_answer_that_makes_no_sense_is_nobodys(answer: bytes, why: str) -> None:
    async with fake() as b:
        b.mint()
        b.its.send(answer)
        b.say(b.asked().number, b"", "no")
        assert await b.next() == "no"
        with structlog.testing.capture_logs() as log:
            b.wait(0)
        assert b.signer.ignored == 1
        assert why in log[0]["why"]


async def test_a_certificate_that_is_none_or_anothers_is_told_as_why(ca: Authority) -> None:
    async with fake() as b:
        for der, why in ((b"garbage", "can't be read"), (b"", "can't be read"), (other(ca), "is for another key")):
            b.mint()
            b.say(b.asked().number, der, "")
            assert why in str(await b.next())
        b.mint()
        b.say(b.asked().number, b"", "no more")
        assert await b.next() == "no more"


def other(ca: Authority) -> bytes:
    """A certificate of the CA for a key that nobody here has."""
    return ssl.PEM_cert_to_DER_cert(ca.pem.decode())


async def test_an_answer_twice_is_told_once() -> None:
    async with fake() as b:
        b.mint()
        number = b.asked().number
        for _ in range(2):
            b.say(number, b"", "no")
        assert await b.next() == "no"
        await until(lambda: b.signer.ignored == 1, "it was not heard")
        assert b.told == []


async def test_answers_in_any_order_reach_who_asked(ca: Authority) -> None:
    signing = Signing(ca, 30, Bucket(1, 100))
    told: list[tuple[str, Leaf | str]] = []
    async with fake() as b:
        for name in ("a.example", "b.example", "c.example"):
            b.signer.mint(LIKE._replace(names=(name,)), lambda leaf, name=name: told.append((name, leaf)))  # type: ignore[misc]
        asked = [b.its.recv(LARGEST + 1) for _ in range(3)]
        for request in reversed(asked):
            b.its.send(msgspec.msgpack.encode(signing.answer(request)))
        await until(lambda: len(told) == 3, "not all are answered")
    assert [name for name, _ in told] == ["c.example", "b.example", "a.example"]
    for name, leaf in told:
        assert isinstance(leaf, Leaf)
        found = x509.load_pem_x509_certificate(leaf.chain).extensions
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]


async def test_a_flood_of_answers_does_not_hold_up_the_rest() -> None:
    """It says far more than was asked; every turn takes some of it, and then others have theirs."""
    async with fake() as b:
        b.mint()
        number = b.asked().number
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                while True:
                    b.its.send(msgspec.msgpack.encode(Answer(77, why="x")))
            await settled()
        assert b.told == []
        b.say(number, b"", "no")
        assert await b.next() == "no"
        assert b.signer.ignored > 1000


async def test_more_than_can_wait_are_refused_at_once(directory: Path) -> None:
    made = Real(directory, burst=5000)
    async with running(made) as b:
        os.kill(made.process.pid, signal.SIGSTOP)
        for _ in range(MOST_ASKED + 10):
            b.mint()
        assert b.told == [f"{MOST_ASKED} certificates are waited for already"] * 10
        assert b.signer._unsent  # the socket is full as well
        b.told.clear()
        os.kill(made.process.pid, signal.SIGCONT)
        for _ in range(MOST_ASKED):
            assert isinstance(await b.next(), Leaf)


async def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    async with fake() as b:
        while not b.signer._unsent:  # until there is no more room
            b.mint()
        sent = len(b.signer._asked) - 1
        b.wait(PATIENCE)
        assert b.told == [LATE] * (sent + 1)
        b.told.clear()
        b.mint()
        for _ in range(sent):
            b.asked()
        b.wait(0)
        number = b.asked().number
        assert list(b.signer._asked) == [number]


@pytest.mark.parametrize("unread", [False, True])
async def test_a_socket_that_is_closed_is_the_end(unread: bool) -> None:
    """Neither the supervisor nor the signer is there: who waits is told, and who asks, and nothing turns for ever."""
    async with fake() as b:
        b.mint()
        if not unread:
            b.asked()
        with structlog.testing.capture_logs() as log:
            b.its.close()
            assert await b.next() == "the signing process is lost: its socket is closed"
            b.mint()
            assert b.told.pop() == "the signing process is lost: its socket is closed"
        assert [(line["event"], line["waiting"]) for line in log] == [("the signing process is lost", 1)]
        await settled()
        assert b.reactor._asleep
        b.wait(PATIENCE)
        assert b.told == []


async def test_who_asks_may_be_the_first_to_notice() -> None:
    async with fake() as b:
        b.its.close()
        b.mint()
        assert b.told == ["the signing process is lost: Broken pipe"]


async def test_who_fails_at_being_told_does_not_harm_the_others(directory: Path) -> None:
    async with real(directory) as b:
        with structlog.testing.capture_logs() as log:
            b.signer.mint(LIKE, lambda _: 1 / 0)  # type: ignore[arg-type]
            assert isinstance(await b.minted(), Leaf)
        assert [line["event"] for line in log] == ["a minted certificate could not be used"]


async def test_who_is_told_may_ask_again() -> None:
    async with fake() as b:
        b.signer.mint(LIKE, lambda _: b.mint())
        b.say(b.asked().number, b"", "no")
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(b.its)
        b.say(b.asked().number, b"", "nor that")
        assert await b.next() == "nor that"
        b.signer.mint(LIKE, lambda _: b.mint())
        b.wait(PATIENCE)
        assert b.told == []
        assert len(b.signer._asked) == 1
        b.signer.mint(LIKE, lambda _: b.mint())
        b.signer.close()
        assert b.told == ["the proxy is ending"] * 2


@pytest.mark.parametrize("late", [False, True])
async def test_who_is_told_may_close_it(late: bool) -> None:
    async with fake() as b:
        b.signer.mint(LIKE, lambda _: b.signer.close())
        b.mint()
        if late:
            b.wait(PATIENCE)
        else:
            for _ in range(2):
                b.say(b.asked().number, b"", "no")
        assert await b.next() == "the proxy is ending"
        await settled()
        assert b.told == []
        assert late or b.socket.recv(10)  # the other answer is left where it is


async def test_at_the_end_all_are_told_and_the_socket_is_its_owners() -> None:
    async with fake() as b:
        b.mint()
        b.signer.close()
        assert b.told == ["the proxy is ending"]
        b.mint()
        assert b.told.pop() == "the proxy is ending"
        b.signer.close()
        b.wait(100)
        assert len(b.told) == 1
        b.say(b.asked().number, b"", "no")
        assert b.socket.recv(10)


# ------------------------------------------------------------------------------------------------- where the key is

# The proxy as far as the key is concerned: a supervisor that starts the signer, and a worker that has some certificates
# made; both wait for the end of standard input.
PROXY = """
import os, sys
from pathlib import Path
import trio
from smtpproxy.net import forking
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signing import Signer
from smtpproxy.net.signingprocess import SigningProcess
from smtpproxy.tls.minting import Leaf, Likeness

class NoRecord:
    unsettled = False
    def flush(self): return True

async def work():
    reactor = Reactor(NoRecord())
    signer = Signer(reactor, sock, process.certificate)
    made = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        for number in range(50):
            signer.mint(Likeness((f"mx{number}.example",), (), 0, 2**33), made.append)
        while len(made) < 50: await trio.sleep(0.001)
        assert all(isinstance(one, Leaf) for one in made), made
        print(os.getppid(), os.getpid(), process.pid, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        signer.close()
        nursery.cancel_scope.cancel()

process = SigningProcess(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None, slots=1)
process.start()
sock = process.socket_of(0)
worker = forking.fork(lambda: trio.run(work) or 0, [sock.fileno()])
sys.stdin.read()
_, code = os.waitpid(worker, 0)
process.close()
sys.exit(code)
"""
# The control: one that has read the key itself.
HOLDER = """
import os, sys
from pathlib import Path
from smtpproxy.net.signer import open_authority
ca = open_authority(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def traces(directory: Path, passphrase: bytes) -> dict[str, bytes]:
    """The shapes the key could be found in: as OpenSSL has it, as a number, as a file, as what opens it."""
    pem = (directory / "ca.key").read_bytes()
    key = serialization.load_pem_private_key(pem, passphrase or None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    value = key.private_numbers().private_value
    plain = serialization.NoEncryption()
    pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain)
    plain_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    shapes = {
        "big endian, and every DER": value.to_bytes(32, "big"),
        "little endian, as OpenSSL computes": value.to_bytes(32, "little"),
        "PEM": plain_pem.splitlines()[1][48:],  # the first 48 are any P-256 key's
        "its second line": plain_pem.splitlines()[2],
        "DER": pkcs8[:60],
        "the file": pem.splitlines()[2],
        "hexadecimal": f"{value:064x}".encode(),
        "decimal": str(value).encode(),
    }
    return {**shapes, "the passphrase": passphrase} if passphrase else shapes


def found_in(pid: int, shapes: dict[str, bytes]) -> set[str]:
    """Which of them are in this process's memory, all of what is mapped and can be read."""
    found: set[str] = set()
    looked_at = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(one, 16) for one in span.split("-"))
            if "r" not in rights or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            memory.seek(start)
            octets = b""
            while len(octets) < end - start and (piece := memory.read(end - start - len(octets))):
                octets += piece
            looked_at += len(octets)
            found |= {shape for shape, trace in shapes.items() if trace in octets}
    assert looked_at > 10_000_000, "hardly anything of a Python's memory was looked at"
    return found


def open_files(pid: int) -> list[str]:
    return [os.path.realpath(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]


@pytest.fixture
def run() -> Iterator[Callable[..., list[int]]]:
    started: list[subprocess.Popen[bytes]] = []

    def runner(code: str, directory: Path, word: str) -> list[int]:
        """The processes, as it prints them."""
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(directory), word],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        out = started[-1].stdout
        assert out is not None
        return [int(word) for word in out.readline().split()]

    yield runner
    for process in started:
        try:
            process.communicate(b"", timeout=DEADLINE)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_cas_key_is_not_in_the_proxys_processes(
    tmp_path: Path, run: Callable[..., list[int]], encrypted: bool
) -> None:
    """Not in their memory, not among their open files; nor is the passphrase. A process that has read the key
    is looked at in the same way, to see that it would be found."""
    passphrase = secrets.token_hex(16).encode() if encrypted else b""  # pytest puts parameters into the environment
    create(tmp_path, "test CA", 3650, passphrase)
    word = tmp_path / "word"
    word.touch(0o600)
    word.write_bytes(passphrase)
    shapes = traces(tmp_path, passphrase)

    (holder,) = run(HOLDER, tmp_path, str(word) if encrypted else "")
    there = found_in(holder, shapes)
    print("found where the key is:", there)
    assert there & {"big endian, and every DER", "little endian, as OpenSSL computes"}, "the search is blind"

    supervisor, worker, signer = run(PROXY, tmp_path, str(word) if encrypted else "")
    for pid in (supervisor, worker):
        assert found_in(pid, shapes) == set()
        assert not [name for name in open_files(pid) if str(tmp_path) in name]
    assert len({0, supervisor, worker, signer}) == 4

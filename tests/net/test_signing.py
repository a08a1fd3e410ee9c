"""The proxy's side of the signing process: everybody is answered once, whatever becomes of it; and no key here."""

import base64
import contextlib
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signing import MOST_ASKED, PATIENCE, RETRY, RETRY_SOON, Signer, SignerError
from smtpproxy.tls.authority import Authority, create
from smtpproxy.tls.minting import DAY, Leaf, Likeness
from tests.net.rig import Clock, settled, until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
NOW = int(time.time())
LIKE = Likeness(("mx.example",), (("2.5.4.3", "mx.example"),), NOW - DAY, NOW + 300 * DAY)

# The other end of the socket when it is nobody we know. `sock`, `pack`, `recv` are there.
FAKE = """
import signal, socket, sys, time
from msgspec.msgpack import decode, encode as pack
sock = socket.socket(fileno=int(sys.argv[1].partition("=")[2]))
sock.setblocking(True)
def recv():
    data = sock.recv(65537)
    if not data:
        sys.exit(0)
    return decode(data)
"""
READY = 'sock.send(pack((b"PEM", "")))\n'


class NoRecord:
    """A record nothing is in."""

    def flush(self) -> bool:
        """As AuditLog."""
        return True


class Bench:
    """A signer in a reactor whose clock may be put forward."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.clock = Clock()
        self.reactor = Reactor(NoRecord(), self.clock)
        self.signer = Signer(self.reactor, directory, **options)
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


@asynccontextmanager
async def bench(directory: Path, program: str = "", **options: Any) -> AsyncIterator[Bench]:
    """Not started. `program`: a fake one in place of the real."""
    made = Bench(directory, **options)
    if program:
        fake(made.signer, directory, program)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.reactor.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        made.signer.close()
        made.reactor.close()


def fake(signer: Signer, directory: Path, program: str) -> None:
    """Run this in place of the signer, from its next start on."""
    path = directory / "fake.py"
    path.write_text(FAKE + textwrap.dedent(program))
    signer.program = (sys.executable, str(path))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create(tmp_path_factory.mktemp("ca"), "test CA", 3650)


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


def children() -> set[str]:
    """Our own processes, dead ones too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.add(stat.parent.name)
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# ---------------------------------------------------------------------------------------------------- in order


async def test_a_leaf_comes_with_its_key_and_the_cas_certificate(directory: Path, tmp_path: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
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
    async with bench(directory, burst=count, rate=0.001) as b:
        await b.signer.start()
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


async def test_options_reach_the_process(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (directory / "ca.key").unlink()
    (directory / "ca.crt").unlink()
    create(directory, "test CA", 3650, b"correct horse battery")
    word = directory / "word"
    word.touch(0o600)
    word.write_text("correct horse battery\n")
    options: dict[str, Any] = {"days": 3, "rate": 0.001, "burst": 1, "log_level": "warning", "log_json": True}
    async with bench(directory, passphrase_file=word, **options) as b:
        await b.signer.start()
        leaf = await b.minted()
        assert isinstance(leaf, Leaf)
        end = x509.load_pem_x509_certificate(leaf.chain).not_valid_after_utc.timestamp()
        assert end - time.time() == pytest.approx(3 * DAY, abs=120)
        assert isinstance(await b.minted(), str)
    said = capfd.readouterr().err
    assert '"event": "not minted"' in said
    assert "minted\n" not in said


async def test_it_runs_nothing_from_where_the_proxy_was_started(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("msgspec.py", "structlog.py", "smtpproxy.py", "argparse.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    async with bench(directory) as b:
        await b.signer.start()
        assert isinstance(await b.minted(), Leaf)


async def test_what_it_will_not_sign_is_told_as_it_says(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        assert await b.minted(LIKE._replace(not_after=NOW - DAY)) == "the server's certificate has expired"
        assert await b.minted(LIKE._replace(names=())) == "a certificate without names is not signed"
        assert isinstance(await b.minted(), Leaf)


async def test_what_is_no_likeness_is_not_even_asked(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
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


# --------------------------------------------------------------------------------------------------- first start


async def test_the_first_start_fails_with_the_signers_own_words(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        with pytest.raises(SignerError, match=r"ca\.crt is not there: `smtpproxy ca init --directory /"):
            await b.signer.start()
        assert b.signer.pid == 0
        b.mint()
        assert b.told == ["the signing process is not running"]


async def test_a_key_others_can_read_keeps_the_proxy_from_starting(directory: Path) -> None:
    (directory / "ca.key").chmod(0o644)
    async with bench(directory) as b:
        with pytest.raises(SignerError, match=r"ca\.key is open to others \(mode 0644\): `chmod 600 "):
            await b.signer.start()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "it ended at once"),
        ("sys.exit(3)", "it ended at once"),
        ("sock.send(b'garbage')", "it said what makes no sense"),
        ("sock.send(b'\\x92\\xc4\\x00\\xa1\\xff')", "it said what makes no sense"),  # no UTF-8
        ("sock.send(pack(('x', 1)))", "it said what makes no sense"),
        ("sock.send(b'\\xff' * 65537)", "it said what makes no sense"),
    ],
)
async def test_a_first_start_that_makes_no_sense_fails(tmp_path: Path, program: str, why: str) -> None:
    async with bench(tmp_path, program or "pass") as b:
        with pytest.raises(SignerError, match=why):
            await b.signer.start()


async def test_a_first_start_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.net.signing.START", 0.2)
    async with bench(tmp_path, "recv()") as b:
        with pytest.raises(SignerError, match="nothing was heard of it for 0 s"):
            await b.signer.start()
    async with bench(tmp_path, "recv()") as b:
        with trio.move_on_after(0.05) as scope:
            await b.signer.start()
        assert scope.cancelled_caught
        assert b.signer.pid == 0


async def test_without_a_program_there_is_an_error(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.signer.program = (str(tmp_path / "nowhere"),)
        with pytest.raises(SignerError, match="No such file"):
            await b.signer.start()


# -------------------------------------------------------------------------------------------------- what goes wrong


async def test_when_it_dies_who_waits_is_told_and_it_comes_back(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        pid = b.signer.pid
        os.kill(pid, signal.SIGSTOP)
        b.mint()
        b.mint()
        os.kill(pid, signal.SIGKILL)
        with structlog.testing.capture_logs() as log:
            assert await b.next() == "the signing process is lost: it has ended"
            assert await b.next() == "the signing process is lost: it has ended"
            b.mint()
            assert b.told.pop() == "the signing process is not running"  # at once
            assert not b.signer.ready
            b.wait(RETRY_SOON / 2)
            assert b.signer.pid == 0
            b.wait(RETRY_SOON / 2)
            assert b.signer.pid not in (0, pid)
            b.mint()
            assert b.told.pop() == "the signing process is not running"

            def reaped() -> bool:  # it may take a moment to die
                b.signer.check()
                return gone(pid)

            await until(reaped, "it is not reaped")
            await until(lambda: b.signer.ready, "it is not back")
        assert isinstance(await b.minted(), Leaf)
        assert [line["event"] for line in log] == [
            "the signing process is lost",
            "the signing process is started again",
            "the signing process is back",
        ]
        assert (log[0]["waiting"], log[0]["again_in"]) == (2, RETRY_SOON)


async def test_it_is_started_ever_less_often_until_it_signs(directory: Path) -> None:
    async with bench(directory, READY + "recv()") as b:
        await b.signer.start()
        delays = []
        with structlog.testing.capture_logs() as log:
            for _ in range(8):
                b.mint()
                assert "it has ended" in str(await b.next())
                delays.append(log[-1]["again_in"])
                b.wait(delays[-1])
                await until(lambda: b.signer.ready, "it is not back")
        assert delays == [1, 2, 4, 8, 16, 32, RETRY, RETRY]
        b.signer.program = Signer.program
        b.mint()
        await b.next()
        b.wait(RETRY)
        await until(lambda: b.signer.ready, "it is not back")
        assert isinstance(await b.minted(), Leaf)
        os.kill(b.signer.pid, signal.SIGKILL)
        with structlog.testing.capture_logs() as log:
            await until(lambda: b.signer.pid == 0, "its death was not seen")
        assert log[0]["again_in"] == RETRY_SOON


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("sock.send(pack((b'', 'the key is gone')))\nrecv()", "the key is gone"),
        ("sys.exit(1)", "it has ended"),
        ("sock.send(b'garbage')\nrecv()", "it said what makes no sense"),
        ("recv()", "it was not ready within 10 s"),
    ],
)
async def test_a_start_again_may_fail_and_is_tried_again(directory: Path, program: str, why: str) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        fake(b.signer, directory, program)
        os.kill(b.signer.pid, signal.SIGKILL)
        await until(lambda: b.signer.pid == 0, "its death was not seen")
        with structlog.testing.capture_logs() as log:
            b.wait(RETRY_SOON)
            if why.startswith("it was"):
                b.wait(PATIENCE)
            await until(lambda: len(log) == 2, "nothing was said of it")
        assert why in log[1]["why"]
        assert log[1]["again_in"] == 2 * RETRY_SOON
        b.signer.program = Signer.program
        b.wait(2 * RETRY_SOON)
        await until(lambda: b.signer.ready, "it is not back")
        assert isinstance(await b.minted(), Leaf)


async def test_a_program_that_is_gone_is_tried_again(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        b.signer.program = (str(directory / "nowhere"),)
        os.kill(b.signer.pid, signal.SIGKILL)
        await until(lambda: b.signer.pid == 0, "its death was not seen")
        with structlog.testing.capture_logs() as log:
            b.wait(RETRY_SOON)
        assert log[1]["why"] == "No such file or directory"
        b.wait(0)


async def test_a_silent_one_is_as_good_as_dead(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        pid = b.signer.pid
        os.kill(pid, signal.SIGSTOP)
        b.mint()
        b.wait(PATIENCE / 2)
        b.mint()
        assert not b.told
        b.wait(PATIENCE / 2)
        why = f"the signing process is lost: it did not answer within {PATIENCE:.0f} s"
        assert b.told == [why, why]
        with trio.fail_after(DEADLINE):
            while not gone(pid):
                b.wait(0)
                await trio.sleep(0.001)


async def test_answers_that_came_while_nobody_listened_count(directory: Path) -> None:
    """The record could not be written for a while: no event is, but the sweep goes on."""
    made = Bench(directory)
    try:
        await made.signer.start()
        for _ in range(400):  # more than are taken in one turn
            made.mint()
        with trio.fail_after(DEADLINE):
            while len(made.told) < 400:
                made.wait(0)
                await trio.sleep(0.001)
        assert all(isinstance(one, Leaf) for one in made.told)
        made.mint()
        sock = made.signer._socket
        assert sock is not None
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(sock)
        made.wait(PATIENCE)
        assert isinstance(made.told[-1], Leaf)
        assert made.signer.ready
    finally:
        made.signer.close()
        made.reactor.close()


async def test_the_sweep_notices_a_death_as_well(directory: Path) -> None:
    made = Bench(directory)
    try:
        await made.signer.start()
        made.mint()
        os.kill(made.signer.pid, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            while not made.told:
                made.wait(0)
                await trio.sleep(0.001)
    finally:
        made.signer.close()
        made.reactor.close()


async def test_the_longest_of_all_requests_fits_into_a_datagram(directory: Path) -> None:
    label = ".".join(["a" * 60] * 2)
    names = tuple(f"{number:03}.{label}" for number in range(250))
    like = LIKE._replace(names=names, subject=(("1.2.840.113549.1.9.1", "a" * 255),) * 20)
    async with bench(directory) as b:
        await b.signer.start()
        assert isinstance(await b.minted(like), Leaf)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("b'garbage'", "it said what is no answer"),
        ("b'\\x93\\x01\\xc4\\x00\\xa1\\xff'", "it said what is no answer"),  # no UTF-8
        ("pack((asked[0], b'', 'a' * 1001))", "it said what is no answer"),
        ("pack((asked[0], b'', '', 1))", "it said what is no answer"),
        ("b'\\xff' * 65537", "it said what is no answer"),
        ("pack((99, b'', ''))", "nobody asked that"),
        ("pack((0, b'', 'not a request'))", "it answered what nobody asked: not a request"),
    ],
)
async def test_an_answer_that_makes_no_sense_ends_it(tmp_path: Path, answer: str, why: str) -> None:
    async with bench(tmp_path, READY + f"asked = recv()\nsock.send({answer})\nrecv()") as b:
        await b.signer.start()
        b.mint()
        b.mint()
        for _ in range(2):
            assert why in str(await b.next())
        assert b.signer.pid == 0


async def test_a_certificate_that_is_none_or_anothers_is_told_as_why(tmp_path: Path, ca: Authority) -> None:
    other = base64.b64encode(ssl.PEM_cert_to_DER_cert(ca.pem.decode()))
    program = f"""
        import base64
        for der in (b"garbage", b"", base64.b64decode({other!r})):
            sock.send(pack((recv()[0], der, "")))
        sock.send(pack((recv()[0], b"", "no more")))
        recv()
    """
    async with bench(tmp_path, READY + textwrap.dedent(program)) as b:
        await b.signer.start()
        assert "can't be read" in str(await b.minted())
        assert "can't be read" in str(await b.minted())
        assert await b.minted() == "what was minted is for another key"
        assert await b.minted() == "no more"
        assert b.signer.ready


async def test_an_answer_twice_ends_it_and_is_told_once(tmp_path: Path) -> None:
    async with bench(tmp_path, READY + "n = recv()[0]\nfor _ in 'ab': sock.send(pack((n, b'', 'no')))\nrecv()") as b:
        await b.signer.start()
        assert await b.minted() == "no"
        await until(lambda: b.signer.pid == 0, "it was believed")
        await settled()
        assert b.told == []


async def test_a_flood_of_answers_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    """It says far more than was asked: the first of it is enough."""
    async with bench(tmp_path, READY + "recv()\nwhile True: sock.send(pack((77, b'', 'x')))") as b:
        await b.signer.start()
        assert "it answered what nobody asked" in str(await b.minted())


async def test_more_than_can_wait_are_refused_at_once(directory: Path) -> None:
    async with bench(directory, burst=5000) as b:
        await b.signer.start()
        os.kill(b.signer.pid, signal.SIGSTOP)
        for _ in range(MOST_ASKED + 10):
            b.mint()
        assert b.told == [f"{MOST_ASKED} certificates are waited for already"] * 10
        assert b.signer._unsent  # the socket is full as well
        b.told.clear()
        os.kill(b.signer.pid, signal.SIGCONT)
        for _ in range(MOST_ASKED):
            assert isinstance(await b.next(), Leaf)


async def test_a_broken_socket_is_a_death(tmp_path: Path) -> None:
    """Whoever asks notices it first."""
    async with bench(tmp_path, READY + "recv()") as b:
        await b.signer.start()
        assert b.signer._socket is not None
        b.signer._socket.shutdown(socket.SHUT_WR)
        b.mint()
        assert b.told == ["the signing process is lost: Broken pipe"]


async def test_who_fails_at_being_told_does_not_harm_the_others(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        with structlog.testing.capture_logs() as log:
            b.signer.mint(LIKE, lambda _: 1 / 0)  # type: ignore[arg-type]
            assert isinstance(await b.minted(), Leaf)
        assert [line["event"] for line in log] == ["a minted certificate could not be used"]


async def test_who_is_told_may_ask_again(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        b.signer.mint(LIKE, lambda _: b.mint())
        assert isinstance(await b.next(), Leaf)
        os.kill(b.signer.pid, signal.SIGSTOP)
        b.signer.mint(LIKE, lambda _: b.mint())
        os.kill(b.signer.pid, signal.SIGKILL)
        assert await b.next() == "the signing process is not running"


async def test_who_is_told_may_close_it(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        b.signer.mint(LIKE, lambda _: b.signer.close())
        b.mint()
        assert await b.next() == "the proxy is ending"
        await settled()
        assert b.told == []


# ------------------------------------------------------------------------------------------------------- its end


@pytest.mark.parametrize("stopped", [False, True])
async def test_at_the_end_all_are_told_and_it_is_reaped(
    directory: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpproxy.net.signing.GRACE", 0.1 if stopped else DEADLINE)
    async with bench(directory) as b:
        await b.signer.start()
        pid = b.signer.pid
        os.kill(pid, signal.SIGSTOP)
        b.mint()
        if not stopped:
            os.kill(pid, signal.SIGCONT)
        b.signer.close()
        assert b.told == ["the proxy is ending"]
        assert gone(pid)
        b.mint()
        assert b.told[1:] == ["the signing process is not running"]
        b.signer.close()
        b.wait(100)
        assert b.signer.pid == 0


async def test_what_died_and_was_not_reaped_yet_is_reaped_at_the_end(directory: Path) -> None:
    async with bench(directory) as b:
        await b.signer.start()
        pid = b.signer.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: b.signer.pid == 0, "its death was not seen")
        b.signer.close()
        assert gone(pid)


# ------------------------------------------------------------------------------------------------- where the key is

# A proxy's process as far as the key is concerned: it starts the signer, has some certificates made, and waits.
WORKER = """
import sys
from pathlib import Path
import trio
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signing import Signer
from smtpproxy.tls.minting import Leaf, Likeness

class NoRecord:
    def flush(self): return True

async def main():
    reactor = Reactor(NoRecord())
    signer = Signer(reactor, Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)
    await signer.start()
    made = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        for number in range(50):
            signer.mint(Likeness((f"mx{number}.example",), (), 0, 2**33), made.append)
        while len(made) < 50: await trio.sleep(0.001)
        assert all(isinstance(one, Leaf) for one in made), made
        print(signer.pid, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        signer.close()
        nursery.cancel_scope.cancel()

trio.run(main)
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
def run() -> Iterator[Callable[..., tuple[int, int]]]:
    started: list[subprocess.Popen[bytes]] = []

    def runner(code: str, directory: Path, word: str) -> tuple[int, int]:
        """The process, and what it prints."""
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
        return started[-1].pid, int(out.readline())

    yield runner
    for process in started:
        try:
            process.communicate(b"", timeout=DEADLINE)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_cas_key_is_not_in_the_proxys_process(
    tmp_path: Path, run: Callable[..., tuple[int, int]], encrypted: bool
) -> None:
    """Not in its memory, not among its open files; nor is the passphrase. A process that has read the key
    is looked at in the same way, to see that it would be found."""
    passphrase = secrets.token_hex(16).encode() if encrypted else b""  # pytest puts parameters into the environment
    create(tmp_path, "test CA", 3650, passphrase)
    word = tmp_path / "word"
    word.touch(0o600)
    word.write_bytes(passphrase)
    shapes = traces(tmp_path, passphrase)

    holder, _ = run(HOLDER, tmp_path, str(word) if encrypted else "")
    there = found_in(holder, shapes)
    print("found where the key is:", there)
    assert there & {"big endian, and every DER", "little endian, as OpenSSL computes"}, "the search is blind"

    worker, signer = run(WORKER, tmp_path, str(word) if encrypted else "")
    assert found_in(worker, shapes) == set()
    assert not [name for name in open_files(worker) if str(tmp_path) in name]
    assert signer not in (0, worker)

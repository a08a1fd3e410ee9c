"""Hand-over: a new process takes the sockets, the old one ends with its last session."""

import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest
import structlog

from smtpproxy.audit.appending import WriteLock
from smtpproxy.config import Config
from smtpproxy.net import control, handover
from smtpproxy.net.generation import Record
from smtpproxy.net.handover import VARIABLE, Predecessor, Successor, inherited
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.setup import Setup
from smtpproxy.net.workers import Supervisor
from smtpproxy.session.verdicts import PassAll
from tests.net.fleet import by_rules, fleet, gone, hand_over, hello, quits, refuses, rules, to_content, told
from tests.net.rig import DEADLINE, until

# ------------------------------------------------------------------------------------------- as processes


async def test_sessions_go_on_in_the_old_one_and_new_ones_begin_in_the_new_one(tmp_path: Path) -> None:
    file = rules(tmp_path, 1)
    async with fleet(tmp_path, "--rules", str(file), workers=2) as (process, store):
        sending, idle = await process.connect(), await process.connect()
        for client in (sending, idle):
            await hello(client)
        await to_content(sending)
        rules(tmp_path, 2)
        old = await hand_over(process)
        assert process.pid != old
        new = await process.connect()
        await hello(new)
        assert [await by_rules(client) for client in (idle, new)] == [1, 2]
        await sending.send(b"x\r\n.\r\n")
        assert (await sending.reply()).startswith(b"250 2.0.0 queued")
        await quits(sending)
        assert process.process.poll() is None
        await quits(idle)
        assert await process.code() == 0
        assert (await told(new, b"NOOP\r\n")).startswith(b"250")
        await quits(new)
        process.signal(signal.SIGTERM)
        await until(lambda: gone(process.pid), "the new one does not end")
        assert refuses(process.port)
        assert store.mails == [b"x\r\n"]
        assert "Traceback" not in process.said
        kinds = [line["kind"] for line in process.lines()]  # two processes wrote it
        assert kinds.count("link-connect") == kinds.count("link-close") == 3


async def test_a_new_one_that_can_not_start_leaves_everything_as_it_was(tmp_path: Path) -> None:
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text("")
    async with fleet(tmp_path, "--config", str(settings), workers=2) as (process, _store):
        before = process.workers
        client = await process.connect()
        await hello(client)
        settings.write_text("[limits]\nrecipient = 3\n")
        process.signal(signal.SIGUSR2)
        await process.hears('unknown key "recipient"')
        await process.hears("not handed over: this process goes on .*why='it ended with 2'")
        await quits(client)
        assert process.workers == before
        settings.write_text("")
        await hand_over(process)  # and once it is right, it is done
        client = await process.connect()
        await hello(client)
        await quits(client)


@pytest.mark.parametrize("at_once", [False, True])
async def test_who_stops_the_newest_stops_all_that_it_took_over_from(tmp_path: Path, at_once: bool) -> None:
    async with fleet(tmp_path) as (process, store):
        clients, old = [], []
        for _ in range(3):
            clients.append(await process.connect())
            await hello(clients[-1])
            await to_content(clients[-1])
            await clients[-1].send(b"x\r\n")
            old.append(await hand_over(process))
        assert not any(map(gone, old))
        process.signal(signal.SIGTERM)
        await process.hears("draining; a second signal stops at once")
        if at_once:
            process.signal(signal.SIGTERM)
        for client in clients:
            if not at_once:
                await client.send(b".\r\n")
                assert (await client.reply()).startswith(b"250 2.0.0 queued")
                assert (await client.rest()).startswith(b"421")
            else:
                assert await client.ending() in ("end", "reset")
            client.close()
        await until(lambda: all(map(gone, (*old, process.pid))), "one is left")
        assert process.process.wait(DEADLINE) == int(at_once)
        assert store.mails == ([] if at_once else [b"x\r\n"] * 3)


async def test_one_that_has_handed_over_only_ends(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (process, _store):
        client = await process.connect()
        await hello(client)
        old = await hand_over(process)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            behind = len(process.said)
            os.kill(old, number)
            await process.hears(f"no effect: this process is ending .*{number.name}", behind=behind)
        os.kill(old, signal.SIGTERM)
        assert (await client.rest()).startswith(b"421")
        client.close()
        assert await process.code() == 0
        client = await process.connect()
        await hello(client)
        await quits(client)


async def test_the_new_one_takes_over_the_control_socket(tmp_path: Path) -> None:
    settings, path = tmp_path / "smtpproxy.toml", tmp_path / "control"
    settings.write_text(f'[process]\ncontrol = "{path}"\n')
    async with fleet(tmp_path, "--config", str(settings)) as (process, _store):
        old = await hand_over(process)
        await until(lambda: gone(old), "the old one does not end")
        assert control.ask(str(path))["pid"] == process.pid


async def test_stopped_while_it_hands_over_it_takes_the_new_one_along(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (process, _store):
        process.signal(signal.SIGUSR2)
        new = int((await process.hears(r"handing over .*to=(\d+)"))[1])
        process.signal(signal.SIGTERM)
        assert await process.code() == 0
        # Killed, or it was ready before the signal came: then it is the service, and this test is about nothing.
        if "handed over:" not in process.said:
            await until(lambda: gone(new), "the new one is left")


# ---------------------------------------------------------------------------------------------- in one process


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def _record() -> Record:
    return Record(-1, WriteLock(), (1, 2))


def _successor(loop: Loop, program: str, record: Record, held: tuple[Held, ...] = ()) -> Successor:
    return Successor([sys.executable, "-c", program], held, record, loop)


def _until(loop: Loop, successor: Successor) -> str:
    """Why it fails."""
    for _ in range(1000):
        loop.wait(0.01)
        if why := successor.failure():
            return why
    raise AssertionError("it does not fail")


def test_one_that_is_not_ready_in_time_is_given_up() -> None:
    clock = Clock()
    loop, record = Loop(clock), _record()
    successor = _successor(loop, "import time; time.sleep(100)", record)
    try:
        clock.now += handover.READY_IN - 1
        loop.wait(0)
        assert successor.failure() == ""
        clock.now += 2
        loop.wait(0)
        assert successor.failure() == "it was not ready within 60 s"
        assert not successor.ready
    finally:
        successor.kill()
        loop.close()
        os.close(record.lock.fileno())
    assert gone(successor.pid)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", "it ended with 3"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9"),
        (
            "import json, os, time; os.close(json.loads(os.environ['SMTPPROXY_HANDOVER'])['talk']); time.sleep(100)",
            "it lost its way to us",
        ),
    ],
)
def test_one_that_fails_is_told_from_one_that_is_slow(program: str, why: str) -> None:
    loop, record = Loop(), _record()
    successor = _successor(loop, program, record)
    try:
        assert _until(loop, successor) == why
    finally:
        successor.kill()
        loop.close()
        os.close(record.lock.fileno())


def test_a_program_that_is_not_there() -> None:
    loop, record = Loop(), _record()
    with pytest.raises(FileNotFoundError):
        Successor(["/no/such/program"], (), record, loop)
    loop.close()
    os.close(record.lock.fileno())


_TELLS = """
import os, sys
from smtpproxy.net.handover import VARIABLE, inherited
from smtpproxy.net.loop import Loop
loop = Loop()
found = inherited(loop)
assert VARIABLE not in os.environ
(held,) = found.held
assert (held.name, held.listen, held.unit) == ("in", "127.0.0.1:0", True)
assert held.sockets[0].getsockname()[1] == int(os.environ["PORT"])
assert not os.get_inheritable(held.sockets[0].fileno()) and not held.sockets[0].getblocking()
assert found.shared.file == (1, 2)
assert os.pread(found.shared.lock.fileno(), 1, 0) == b"!"
assert not any(name in os.environ for name in ("LISTEN_FDS", "WATCHDOG_PID"))
found.ready()
found.ready()
while not found.lets_go:
    loop.wait(1)
assert not found.ended
found.say(b"STOP")
found.say(b"END")
"""


def test_what_is_passed_on_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, record = Loop(), _record()
    os.pwrite(record.lock.fileno(), b"!", 0)
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        monkeypatch.setenv("PORT", str(sock.getsockname()[1]))
        successor = _successor(loop, _TELLS, record, (Held("in", "127.0.0.1:0", (sock,), unit=True),))
        while not successor.ready:
            assert not successor.failure()
            loop.wait(1)
        assert successor.heard == [handover.READY]
        assert successor.wish() == b""
        successor.go()
        while not successor.ended:
            loop.wait(1)
        assert successor.wish() == handover.END
        assert successor.wish() == b""
    assert os.waitpid(successor.pid, 0)[1] == 0
    successor.say(b"into the void")
    successor.close()
    loop.close()
    os.close(record.lock.fileno())


def test_who_loses_its_predecessor_takes_its_place_all_the_same() -> None:
    loop = Loop()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lock = WriteLock()
    found = Predecessor(ours, (), lock, (1, 2), loop)
    lets_go = [found.lets_go]
    its.close()
    loop.wait(1)
    lets_go.append(found.lets_go)
    assert lets_go == [False, True]
    found.close()
    loop.close()
    os.close(lock.fileno())


@pytest.mark.parametrize("said", ["", "{", "{}", '{"talk": 999, "lock": 998, "file": [1, 2], "held": []}'])
def test_what_makes_no_sense_is_not_followed(said: str) -> None:
    loop = Loop()
    environ = {VARIABLE: said, "OTHER": "stays"}
    with structlog.testing.capture_logs() as log:
        assert inherited(loop, environ) is None
    assert environ == {"OTHER": "stays"}
    assert bool(log) is bool(said)
    loop.close()


def test_the_first_process_of_a_container_does_not_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the container with it."""
    config = Config()
    supervisor = Supervisor(Setup(config, {"": PassAll()}), lambda: None, ["/no/such/program"])
    monkeypatch.setattr("os.getpid", lambda: 1)
    with structlog.testing.capture_logs() as log:
        supervisor._hand_over(None)  # type: ignore[arg-type]  # it is not even looked at
    supervisor.close()
    assert "container" in log[0]["event"]


def test_nothing_but_numbers_is_passed() -> None:
    """So that another version understands it: fields are added, never changed."""
    assert msgspec.json.schema(handover._Inheritance)["$defs"]["_Inheritance"]["required"] == [
        "talk",
        "lock",
        "file",
        "held",
    ]

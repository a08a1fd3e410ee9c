"""What a service manager and `smtpproxy status` are told; the manager is a socket of this test."""

import array
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from smtpproxy.net import control
from smtpproxy.net.control import Control, ControlError, Status, Worker
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.systemd import Notifier
from smtpproxy.net.telling import STATUS, Telling, line
from tests.net.fleet import fleet, gone, hand_over, hello, quits, reload
from tests.net.rig import DEADLINE, Process, Store, until


class Manager:
    """A service manager's socket."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)
        self.kept: list[int] = []  # descriptors
        self.told: list[str] = []  # all of it
        self._at = 0

    def hear(self) -> list[str]:
        """What has come since."""
        new: list[str] = []
        while True:
            try:
                octets, more, _, _ = self._socket.recvmsg(65_536, 4096)
            except BlockingIOError:
                self.told += new
                return new
            for _, _, descriptors in more:
                self.kept += array.array("i", descriptors)
            new.append(octets.decode())

    async def hears(self, words: str) -> None:
        """This, a regular expression, behind what it waited for before."""

        def heard() -> bool:
            self.hear()
            for at in range(self._at, len(self.told)):
                if re.search(words, self.told[at]):
                    self._at = at + 1
                    return True
            return False

        await until(heard, f"not heard: {words}")

    def close(self) -> None:
        """And what it kept."""
        self._socket.close()
        for descriptor in self.kept:
            os.close(descriptor)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """One."""
    made = Manager(tmp_path)
    yield made
    made.close()


# ----------------------------------------------------------------------------------------------- by itself


def _status(*workers: Worker, generation: int = 1) -> Status:
    sessions = sum(worker.sessions for worker in workers)
    return Status("1.0", os.getpid(), 0.0, generation, sessions=sessions, workers=workers)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (_status(), "0 workers, 0 sessions"),
        (_status(Worker(1, 1, "serving", sessions=1)), "1 worker, 1 session"),
        (_status(Worker(1, 1, "serving", sessions=1), Worker(2, 1, "serving", sessions=2)), "2 workers, 3 sessions"),
        (
            _status(Worker(1, 1, "draining", sessions=4), Worker(2, 2, "serving", sessions=2), generation=2),
            "1 worker, 2 sessions; 4 more by an earlier configuration",
        ),
    ],
)
def test_how_it_goes_in_a_line(status: Status, words: str) -> None:
    assert line(status) == words


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_the_manager_is_told_what_changes_now_and_then(manager: Manager) -> None:
    clock, sessions = Clock(), [0]
    loop = Loop(clock)
    telling = Telling(
        loop, lambda: _status(Worker(1, 1, "serving", sessions=sessions[0])), Notifier(manager.path, watchdog=10.0)
    )

    def passes(seconds: float, *, healthy: bool = True) -> list[str]:
        clock.now += seconds
        loop.wait(0)
        telling.check(healthy=healthy)
        return manager.hear()

    telling.ready()
    assert manager.hear() == ["READY=1\nSTATUS=1 worker, 0 sessions"]
    assert passes(0) == ["WATCHDOG=1"]
    sessions[0] = 1
    assert passes(1) == []
    assert passes(STATUS) == ["STATUS=1 worker, 1 session"]
    assert passes(0.5) == ["WATCHDOG=1"]  # half the interval, less than a moment
    assert passes(5, healthy=False) == []  # the dog is to bark
    telling.reloading("reloading")
    assert manager.hear()[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    sessions[0] = 2
    assert passes(STATUS, healthy=False) == []  # the other line stands there
    telling.ready()
    assert manager.hear() == ["READY=1\nSTATUS=1 worker, 2 sessions"]
    telling.close()
    telling.ready()
    assert manager.hear() == []
    loop.close()


def test_the_sockets_of_socket_units_are_the_managers_own(manager: Manager) -> None:
    loop = Loop()
    telling = Telling(loop, _status, Notifier(manager.path))
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.create_server(("127.0.0.1", 0)) as its:
        telling.keep([Held("a", "127.0.0.1:25", (ours,)), Held("b", "127.0.0.1:26", (its,), unit=True)])
        (said,) = manager.hear()
        assert said.startswith("FDSTORE=1\nFDNAME=")
        with socket.socket(fileno=manager.kept.pop()) as kept:
            assert kept.getsockname() == ours.getsockname()
    telling.close()
    loop.close()


def test_one_control_socket_at_a_time(tmp_path: Path) -> None:
    loop = Loop()
    telling = Telling(loop, _status, Notifier())
    path, other = str(tmp_path / "control"), str(tmp_path / "other")
    telling.use(telling.open("", take_over=False), "")
    first = telling.open(path, take_over=False)
    telling.use(first, path)
    assert telling.open(path, take_over=False) is first
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(DEADLINE)
        loop.wait(1)
        assert b'"generation":1' in client.recv(65_536)
    telling.check(healthy=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError):
        telling.open(str(tmp_path / "file"), take_over=False)
    assert Path(path).is_socket()
    telling.use(telling.open(other, take_over=False), other)
    assert not Path(path).exists()
    assert Path(other).is_socket()
    telling.use(telling.open("", take_over=False), "")
    assert not Path(other).exists()
    telling.close()
    loop.close()


def test_a_control_socket_of_the_one_before_is_taken_over(tmp_path: Path) -> None:
    loop = Loop()
    path = str(tmp_path / "control")
    before = Control(path, _status)
    telling = Telling(loop, _status, Notifier())
    with pytest.raises(ControlError, match="another smtpproxy answers there"):
        telling.open(path, take_over=False)
    telling.use(telling.open(path, take_over=True), path)
    before.close()
    assert Path(path).is_socket()
    telling.close()
    loop.close()


# ---------------------------------------------------------------------------------------------- as a process


async def test_a_service_from_its_start_to_its_end(tmp_path: Path, manager: Manager) -> None:
    """As `Type=notify-reload` has it: each reload is announced, and over when that is said."""
    store = Store()
    process = Process(
        store.port, tmp_path / "audit", environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000000"}
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await process.ready()
            await manager.hears("FDSTORE=1")
            await manager.hears("READY=1\nSTATUS=1 worker, 0 sessions")
            client = await process.connect()
            await hello(client)
            await manager.hears("STATUS=1 worker, 1 session")
            for _ in range(2):
                await manager.hears("WATCHDOG=1")
            process.signal(signal.SIGHUP)
            await manager.hears("RELOADING=1\nMONOTONIC_USEC=")
            await manager.hears("READY=1\nSTATUS=1 worker, 0 sessions; 1 more by an earlier configuration")
            await quits(client)
            old = await hand_over(process)
            await manager.hears("RELOADING=1")
            await until(lambda: gone(old), "the old one does not end")
            manager.hear()
            told = "\n".join(manager.told[manager.told.index(f"MAINPID={process.pid}") :])
            assert "READY=1" in told
            assert "STOPPING=1" not in told
            process.signal(signal.SIGTERM)
            await manager.hears("STOPPING=1")
            await until(lambda: gone(process.pid), "it does not end")
            nursery.cancel_scope.cancel()
    finally:
        process.close()
        store.close()


async def test_a_reload_that_fails_is_over_as_well(tmp_path: Path, manager: Manager) -> None:
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text("")
    store = Store()
    process = Process(
        store.port, tmp_path / "audit", "--config", str(settings), environ={"NOTIFY_SOCKET": manager.path}
    )
    try:
        await process.ready()
        await manager.hears("READY=1")
        settings.write_text("[limits]\nrecipient = 3\n")
        for number in (signal.SIGHUP, signal.SIGUSR2):
            process.signal(number)
            await manager.hears("RELOADING=1")
            await manager.hears("READY=1")
        assert process.process.poll() is None
    finally:
        process.close()
        store.close()


_GIVES = """
import os, sys
count, *command = sys.argv[1:]
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
for number in range(int(count)):
    os.dup2(100 + number, 3 + number)
    os.set_inheritable(3 + number, True)
os.execv(command[0], command)
"""


async def test_sockets_that_the_manager_gives_are_used_and_kept_open_when_it_ends(
    tmp_path: Path, manager: Manager
) -> None:
    """Nobody is refused while the service is restarted: the queue of connections is the manager's."""
    store = Store()
    with socket.create_server(("127.0.0.1", 0)) as given, socket.create_server(("127.0.0.1", 0)) as strange:
        for number, sock in enumerate((given, strange)):
            os.dup2(sock.fileno(), 100 + number)
        settings = tmp_path / "smtpproxy.toml"
        settings.write_text(f'[[listener]]\nname = "in"\nlisten = "0.0.0.0:2525"\nserver = "127.0.0.1:{store.port}"\n')
        process = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.run)
                for _ in range(2):
                    process = Process(
                        store.port,
                        tmp_path / "audit",
                        "--config",
                        str(settings),
                        listen="",
                        before=[sys.executable, "-c", _GIVES, "2"],
                        environ={"LISTEN_FDNAMES": "in:strange", "NOTIFY_SOCKET": manager.path},
                        descriptors=[100, 101],
                    )
                    process.port = given.getsockname()[1]
                    client = await process.connect()  # before it has started
                    await hello(client)
                    assert f"listening on 127.0.0.1:{process.port} (server" in process.said
                    assert "no listener's" in process.said
                    await reload(process)
                    await quits(client)
                    process.signal(signal.SIGTERM)
                    assert await process.code() == 0, process.said
                    process.close()
                nursery.cancel_scope.cancel()
        finally:
            if process is not None:
                process.close()
            store.close()
            for number in (100, 101):
                os.close(number)
    assert "FDSTOREREMOVE=1\nFDNAME=strange" in (manager.hear(), manager.told)[1]
    assert not any("FDSTORE=1" in said for said in manager.told)


async def test_the_status_of_one_that_only_drains_is_not_asked_for(tmp_path: Path) -> None:
    """Its control socket is gone with the first signal: who asks is told that nobody is there."""
    settings, path = tmp_path / "smtpproxy.toml", tmp_path / "control"
    settings.write_text(f'[process]\ncontrol = "{path}"\n')
    async with fleet(tmp_path, "--config", str(settings)) as (process, _store):
        client = await process.connect()
        await hello(client)
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        await client.reply()
        process.signal(signal.SIGTERM)
        await process.hears("draining")
        await until(lambda: not path.exists(), "it is still there")
        with pytest.raises(ControlError):
            control.ask(str(path))

"""Kept sessions and a steady stream of new ones, while the proxy is reloaded, handed over and killed.

What must hold: every 250 that was told is in the server's store; no connection is refused; no session is cut but those
of a worker that was killed. Some 20 s; SMTPPROXY_SOAK=120 makes it two minutes.
"""

import json
import os
import random
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.net.fleet import fleet, hand_over, kill, reload, rules
from tests.net.rig import ENVELOPE, End, Process, until

SECONDS = float(os.environ.get("SMTPPROXY_SOAK", "0"))
ROUNDS = max(1, round(SECONDS / 20))
KEPT, STREAMS = 200, 4
RELOADS, HAND_OVERS, KILLS = 10, 5, 5
PAUSE = 0.2  # seconds of load between two events


class Load:
    """Clients, and what became of them."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.chance = random.Random(3)
        self.number = 0
        self.sent: set[bytes] = set()  # mails that were begun
        self.told: set[bytes] = set()  # mails of which 250 was told
        self.doomed: set[int] = set()  # ports of clients whose worker was killed
        self.wrong: list[str] = []
        self.cut = self.sessions = 0
        self.ending = False

    async def kept(self) -> None:
        """A session that sends a mail now and then, and stays. One that is cut is begun anew."""
        while not self.ending:
            await self._session(self._mails_until_the_end)

    async def stream(self) -> None:
        """One session after the other, a mail each."""
        while not self.ending:
            await self._session(self._mail)

    async def _session(self, talk: Callable[[End], object]) -> None:
        self.sessions += 1
        try:
            client = await self.process.connect()
        except OSError as error:
            self.wrong.append(f"a connection was refused: {error}")
            return
        port = client.socket.getsockname()[1]
        try:
            await self._greeted(client)
            await talk(client)  # type: ignore[misc]
            await client.send(b"QUIT\r\n")
            self._expect((await client.rest()).startswith(b"221"), port, "QUIT was not answered")
        except (OSError, EOFError, AssertionError) as error:
            self._expect(False, port, repr(error))
        client.close()

    def _expect(self, held: bool, port: int, what: str) -> None:
        if not held and port in self.doomed:
            self.cut += 1
        elif not held:
            self.wrong.append(what)

    async def _greeted(self, client: End) -> None:
        await self._told(client, b"220")
        await client.send(b"EHLO me.example\r\n")
        await self._told(client, b"250")

    async def _told(self, client: End, code: bytes) -> None:
        reply = await client.reply()
        if not reply:
            raise EOFError("cut")
        assert reply.startswith(code), reply

    async def _mails_until_the_end(self, client: End) -> None:
        while not self.ending:
            await trio.sleep(self.chance.uniform(0.0, 6.0))
            await self._mail(client)

    async def _mail(self, client: End) -> None:
        self.number += 1
        body = b"Subject: %d\r\n\r\n" % self.number + b"x" * self.chance.randrange(3000) + b"\r\n"
        self.sent.add(body)
        await client.send(ENVELOPE + b"DATA\r\n")
        for code in (b"250", b"250", b"354"):
            await self._told(client, code)
        await client.send(body[:20])
        await trio.sleep(self.chance.uniform(0.0, 0.05))
        await client.send(body[20:] + b".\r\n")
        await self._told(client, b"250")
        self.told.add(body)

    def kill_one(self) -> None:
        """A worker, with whoever it has: one of those that accept, or one that others have replaced."""
        old = [pid for pid in _processes(self.process.process.pid) if _clients(pid, self.process.port)]
        victim = self.chance.choice(self.process.workers if self.chance.random() < 0.5 else old)
        kill(victim, signal.SIGSTOP)
        self.doomed |= _clients(victim, self.process.port)
        kill(victim)


def _processes(session: int) -> list[int]:
    """All that descend from the one that was started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _clients(pid: int, port: int) -> set[int]:
    """The ports of those whom this process has accepted on that port."""
    inodes: set[str] = set()
    ports: set[int] = set()
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(found[1])
    except OSError:  # it is gone, or has closed one just now
        return ports
    for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = row.split()
        local, remote, inode = columns[1], columns[2], columns[9]
        if inode in inodes and int(local.split(":")[1], 16) == port:
            ports.add(int(remote.split(":")[1], 16))
    return ports - {0}


@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_nothing_is_lost_refused_or_cut(tmp_path: Path) -> None:
    file = rules(tmp_path, 1)
    options = ["--rules", str(file), "--log-level", "info"]
    settings = tmp_path / "smtpproxy.toml"
    settings.write_text("[limits]\nconnections_per_client = 10000\n")
    async with fleet(tmp_path, *options, "--config", str(settings), workers=2) as (process, store):
        load = Load(process)
        async with trio.open_nursery() as nursery:
            for _ in range(KEPT):
                nursery.start_soon(load.kept)
            await until(lambda: store.sessions >= KEPT, "they do not all get in")
            for _ in range(STREAMS):
                nursery.start_soon(load.stream)
            for number in range(ROUNDS):
                events = ["reload"] * RELOADS + ["hand over"] * HAND_OVERS + ["kill"] * KILLS
                load.chance.shuffle(events)
                for event in events:
                    await trio.sleep(PAUSE)
                    if event == "reload":
                        rules(tmp_path, number)
                        await reload(process)
                    elif event == "hand over":
                        await hand_over(process)
                    else:
                        load.kill_one()
                    assert not load.wrong, (event, load.wrong[:5])
            load.ending = True
        assert not load.wrong, load.wrong[:5]
        print(f"{load.sessions} sessions, {len(load.told)} mails, {load.cut} of {len(load.doomed)} cut")
        stored = store.mails
        assert load.told <= set(stored)
        assert set(stored) <= load.sent  # each of them whole
        assert len(stored) == len(set(stored))
        assert 0 < load.cut <= len(load.doomed)
        assert load.sessions > KEPT + 100
        assert "Traceback" not in process.said
        bad = 0
        commits = 0
        for line in process.audit.read_bytes().splitlines():
            try:
                commits += json.loads(line)["kind"] == "tx-commit"
            except ValueError:
                bad += 1
        assert bad <= KILLS * ROUNDS  # what a worker was writing when it was killed
        assert len(load.told) <= commits
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", process.port)) == 0

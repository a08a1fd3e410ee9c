"""Load: no error, memory and descriptors flat. A few seconds; SMTPPROXY_SOAK=30 makes it thirty."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import trio

from tests.net.rig import End, Store, running, until
from tests.peers import unavailable

SECONDS = float(os.environ.get("SMTPPROXY_SOAK", "0")) or 2.0
SOURCE = shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SINK = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# Resident memory settles after some 5,000 sessions, 20 MiB above what the first ones took; measured over 30,000.
GROWTH = 25_000  # KiB since the first sessions
SETTLED = 3_000  # KiB in the second half of a long run


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def _steady(worker: int, before: int) -> None:
    await until(lambda: _descriptors(worker) <= before, "descriptors leak")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_smtp_source_against_smtp_sink(tmp_path: Path) -> None:
    """20 sessions at once, a connection a mail, until the time is over."""
    if SOURCE is None or SINK is None:
        unavailable("smtp-source and smtp-sink come with Postfix")
    port = _free_port()
    sink = subprocess.Popen([SINK, "-u", "nobody", f"127.0.0.1:{port}", "1000"], stderr=subprocess.DEVNULL)
    store = Store()  # to lend its face to smtp-sink
    store.close()
    store.server.port = port
    try:
        await until(lambda: _listens(port), "smtp-sink does not listen")
        async with running(store, tmp_path / "audit") as process:
            (pid,) = process.workers
            mails = 0

            async def load(count: int) -> None:
                nonlocal mails
                command = [str(SOURCE), "-s", "20", "-m", str(count), "-l", "4000", f"127.0.0.1:{process.port}"]
                result = await trio.run_process(command, check=False, capture_stderr=True)
                assert (result.returncode, result.stderr) == (0, b"")
                mails += count

            await load(300)
            idle = _descriptors(pid)
            resident = _resident(pid)
            half = 0
            started = trio.current_time()
            while (spent := trio.current_time() - started) < SECONDS:
                half = half or (_resident(pid) if spent > SECONDS / 2 else 0)
                await load(300)
            await _steady(pid, idle)
            assert _resident(pid) - resident < GROWTH
            assert SECONDS < 20 or _resident(pid) - half < SETTLED
            process.signal(signal.SIGTERM)
            assert await process.code() == 0
            lines = [json.loads(line) for line in (tmp_path / "audit").read_bytes().splitlines()]
            kinds = [line["kind"] for line in lines]
            assert kinds.count("tx-commit") == mails
            assert kinds.count("link-connect") == kinds.count("link-close") == mails
            assert kinds.count("violation") == kinds.count("tx-refused") == 0
            assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    finally:
        sink.terminate()
        sink.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def test_sessions_of_every_kind(tmp_path: Path) -> None:
    """Whole ones, aborted ones, silent ones, all at once."""
    store = Store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        async with running(store, tmp_path / "audit") as process:
            (pid,) = process.workers
            done = 0

            async def one(number: int) -> None:
                nonlocal done
                client = await process.connect()
                way = number % 5
                if way == 0:
                    client.reset()
                    done += 1
                    return
                await client.reply()
                await client.send(b"EHLO me.example\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
                for _ in range(4):
                    await client.reply()
                await client.send(b"x" * 70 + b"\r\n")
                if way == 1:
                    client.reset()
                elif way == 2:
                    client.close()
                else:
                    await client.send((b"y" * 70 + b"\r\n") * 500 + b".\r\n")
                    assert (await client.reply()).startswith(b"250 2.0.0 queued")
                    if way == 3:
                        await client.send(b"QUIT\r\n")
                        await _goodbye(client)
                    client.close()
                done += 1

            async def some(count: int) -> None:
                async with trio.open_nursery() as inner:
                    for number in range(count):
                        inner.start_soon(one, number)

            idle = _descriptors(pid)
            await some(100)
            await _steady(pid, idle)
            resident = _resident(pid)
            half = 0
            started = trio.current_time()
            while (spent := trio.current_time() - started) < SECONDS:
                half = half or (_resident(pid) if spent > SECONDS / 2 else 0)
                await some(50)
                store.mails.clear()
                store.halves.clear()
            await _steady(pid, idle)
            assert _resident(pid) - resident < GROWTH
            assert SECONDS < 20 or _resident(pid) - half < SETTLED
            # A link is closed first, and what is said of it is written at the end of that turn.
            await until(lambda: sum(line["kind"] == "link-close" for line in process.lines()) == done, "not all ended")
            kinds = [line["kind"] for line in process.lines()]
            assert kinds.count("link-connect") == done
            assert kinds.count("tx-commit") == done // 5 * 2
            assert b"internal-error" not in (tmp_path / "audit").read_bytes()
        nursery.cancel_scope.cancel()
    store.close()


async def _goodbye(client: End) -> None:
    assert (await client.rest()).startswith(b"221")

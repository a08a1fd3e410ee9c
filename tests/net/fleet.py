"""What tests of whole processes share: a supervisor and its workers in front of a store."""

import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.net.rig import ENVELOPE, End, Process, Store, running, until

DEADLINE = 30.0  # seconds: whole processes are started, on a machine that has others to run, too
RELOADED, NOT_RELOADED = "reloaded: new sessions", "not reloaded: .* in force stay"
HANDED_OVER = r"handed over: .*to=(\d+)"


@asynccontextmanager
async def fleet(
    folder: Path, *options: str, workers: int = 1, store: Store | None = None
) -> AsyncIterator[tuple[Process, Store]]:
    """A process, and the store behind it."""
    store = store or Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.net.rig.DEADLINE", DEADLINE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.run)
                async with running(store, folder / "audit", *options, workers=workers) as process:
                    yield process, store
                nursery.cancel_scope.cancel()
        finally:
            store.close()


async def hello(client: End) -> None:
    """Greeting and EHLO."""
    assert (await client.reply()).startswith(b"220")
    assert (await told(client, b"EHLO me.example\r\n")).startswith(b"250")


async def told(client: End, command: bytes) -> bytes:
    """A command and its reply."""
    await client.send(command)
    return await client.reply()


async def to_content(client: End) -> None:
    """Up to the 354."""
    await client.send(ENVELOPE + b"DATA\r\n")
    for code in (b"250", b"250", b"354"):
        assert (await client.reply()).startswith(code)


async def quits(client: End) -> None:
    """In order."""
    await client.send(b"QUIT\r\n")
    assert (await client.rest()).startswith(b"221")
    client.close()


def refuses(port: int) -> bool:
    """Nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def state(pid: int) -> str:
    """Of a process, as proc(5) has it; "" if there is no such one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def gone(pid: int) -> bool:
    """There is no such process; or all that is left of it waits to be reaped."""
    return state(pid) in ("", "Z")


async def sessions_of(process: Process, worker: int, count: int) -> list[End]:
    """New sessions of this worker: the others are stopped meanwhile."""
    others = [pid for pid in process.workers if pid != worker]
    for pid in others:
        kill(pid, signal.SIGSTOP)
        await until(lambda pid=pid: state(pid) == "T", "it does not stop")  # type: ignore[misc]
    clients = [await process.connect() for _ in range(count)]
    for client in clients:
        await hello(client)
    for pid in others:
        kill(pid, signal.SIGCONT)
    return clients


def rules(folder: Path, number: int) -> Path:
    """Rules that answer VRFY with their number; put in place at once."""
    new, file = folder / "rules.new", folder / "rules.toml"
    answer = f"252 2.5.0 by rules {number}"
    new.write_text(
        f'[[rule]]\nname = "vrfy"\nwhy = "to be told apart"\nextension = "VRFY"\nthen = {{ answer = "{answer}" }}\n'
    )
    return new.rename(file)


async def by_rules(client: End) -> int:
    """Which rules this session is judged by."""
    reply = await told(client, b"VRFY x\r\n")
    found = re.search(rb"by rules (\d+)", reply)
    assert found is not None, reply
    return int(found[1])


async def reload(process: Process, words: str = RELOADED) -> None:
    """SIGHUP, and what it says to that."""
    behind = len(process.said)
    process.signal(signal.SIGHUP)
    await process.hears(words, behind=behind)


async def hand_over(process: Process) -> int:
    """SIGUSR2, until the new one serves; the one that was. `process` is the new one from here on."""
    behind, before = len(process.said), process.pid
    process.signal(signal.SIGUSR2)
    process.pid = int((await process.hears(HANDED_OVER, behind=behind))[1])
    await process.hears(r"listening on \S+:\d+ ", behind=behind)
    return before


async def serving(process: Process, count: int) -> list[int]:
    """So many workers, as soon as there are."""
    await until(lambda: len(process.workers) == count, f"not {count} workers")
    return process.workers


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """A worker, which is one of ours; 0 would be our own process group."""
    assert pid > 1
    os.kill(pid, number)

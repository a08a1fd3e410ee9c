"""A real gateway with a store, for tests of what outlives what: `smtpproxy serve` with its workers and its recorder,
before a server that logs what it took and refused, with clients that keep what they were told.

Everything is plain threads and processes: a test says what happens, waits for what it can see (`until`), and then
compares the three accounts of it, the server's log, what the clients were told, and the store (`Account`).
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

from smtpproxy.store.reading import open_reader
from tests.store.outside import Disk, Shim
from tests.store.signing import verified

DEADLINE = 30.0  # seconds for anything
ROOT = Path(__file__).resolve().parents[2]
LISTENING = re.compile(r"listening on \S+:(\d+) ")
LINE = 16_384  # octets at once


def until(condition: Callable[[], Any], failure: str, *, seconds: float = DEADLINE) -> Any:
    """Wait for a condition nobody tells of; what it came to."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, failure
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A directory that whoever workers become can reach."""
    path = Path(tempfile.mkdtemp(prefix="smtpproxy-store-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Taken(NamedTuple):
    """How the server decided a content."""

    accepted: bool
    reply: str
    mail: str
    rcpt: tuple[str, ...]
    refused: tuple[str, ...]
    octets: int
    sha256: str


class Server:
    """A server that logs each content it took or refused; each reply about one is there once.

    It refuses each `bad`th recipient, DATA and content: 0 is none.
    """

    def __init__(self, *, bad: int = 0) -> None:
        self.log: list[Taken] = []
        self.refused_rcpt: list[str] = []
        self.refused_data: list[str] = []
        self._bad = bad
        self._numbers = itertools.count(1)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._socket.getsockname()[1])
        self._links: set[socket.socket] = set()
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for link in tuple(self._links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self._links.add(link)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            _Conversation(self, link).run()
        self._links.discard(link)

    def number(self, kind: int) -> tuple[int, bool]:
        """The next one, and whether it is refused; kinds are refused at different ones."""
        number = next(self._numbers)
        return number, bool(self._bad) and number % self._bad == kind


class _Conversation:
    def __init__(self, server: Server, link: socket.socket) -> None:
        self._server = server
        self._link = link
        self._file = link.makefile("rb")
        self._clear()

    def _clear(self) -> None:
        self._mail: str | None = None
        self._rcpt: list[str] = []
        self._refused: list[str] = []

    def run(self) -> None:
        """Until the other side has enough."""
        self._say("220 server.example")
        while line := self._file.readline(LINE):
            command = line.decode("latin-1").rstrip("\r\n")
            verb = command[:4].upper()
            if verb in ("EHLO", "HELO"):
                self._clear()
                self._say(
                    "250-server.example",
                    "250-PIPELINING",
                    "250-8BITMIME",
                    "250-ENHANCEDSTATUSCODES",
                    "250 SIZE 1000000",
                )
            elif verb == "MAIL":
                self._clear()
                self._mail = command[command.find("<") + 1 : command.rfind(">")]
                self._say("250 2.1.0 Ok")
            elif verb == "RCPT":
                self._recipient(command[command.find("<") + 1 : command.rfind(">")])
            elif verb == "DATA":
                self._content()
            elif verb == "QUIT":
                self._say("221 2.0.0 Bye")
                return
            else:
                if verb == "RSET":
                    self._clear()
                self._say("250 2.0.0 Ok")

    def _recipient(self, address: str) -> None:
        number, bad = self._server.number(3)
        if bad:
            reply = f"550 5.1.1 No such user {number}"
            self._refused.append(address)
            self._server.refused_rcpt.append(reply)
            self._say(reply)
        else:
            self._rcpt.append(address)
            self._say("250 2.1.5 Ok")

    def _content(self) -> None:
        number, bad = self._server.number(5)
        if bad or not self._rcpt:
            reply = f"451 4.3.0 Not now {number}" if self._rcpt else f"554 5.5.1 No valid recipients {number}"
            self._server.refused_data.append(reply)
            self._say(reply)
            return
        self._say("354 Go ahead")
        digest, octets = sha256(), 0
        while True:
            line = self._file.readline()
            if not line:
                return
            if line == b".\r\n":
                break
            line = line.removeprefix(b".")
            digest.update(line)
            octets += len(line)
        number, bad = self._server.number(1)
        reply = f"554 5.7.1 Not this one {number}" if bad else f"250 2.0.0 Ok: queued as {number}"
        mail = self._mail or ""
        self._server.log.append(
            Taken(not bad, reply, mail, tuple(self._rcpt), tuple(self._refused), octets, digest.hexdigest())
        )
        self._clear()
        self._say(reply)

    def _say(self, *lines: str) -> None:
        self._link.sendall("".join(line + "\r\n" for line in lines).encode())


class Told(NamedTuple):
    """What a client was told last about a mail."""

    verb: str
    reply: str


class Clients:
    """So many sessions at once, each with some mails and then a new one, until `stop`: `told` is what they were told.

    One whose connection ends, or can't be had, begins anew: gateways are killed here. `errors` is how often.
    """

    def __init__(self, port: Callable[[], int], *, sessions: int = 8, mails: int = 4, size: int = 600) -> None:
        self.told: list[Told] = []
        self.errors = 0
        self._port = port
        self._mails = mails
        self._content = b"Subject: load\r\n\r\n" + b"x" * 76 + (b"\r\n" + b"x" * 76) * (size // 78) + b"\r\n"
        self._stopping = threading.Event()
        self._serial = itertools.count(1)
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(sessions)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def accepted(self) -> list[str]:
        """Replies to contents that were taken."""
        return [told.reply for told in tuple(self.told) if told.verb == "END" and told.reply.startswith("250")]

    def goes_on(self, mails: int = 30) -> None:
        """Returns when so many more were taken."""
        target = len(self.accepted) + mails
        until(lambda: len(self.accepted) >= target, "no mail goes through")

    def stop(self) -> None:
        """They finish what they are at."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port()), timeout=DEADLINE) as link:
                    self._session(link, number)
            except OSError:
                self.errors += 1
                self._stopping.wait(0.02)

    def _session(self, link: socket.socket, number: int) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = link.makefile("rb")

        def reply(verb: str) -> str:
            while True:
                line = file.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionResetError
                if line[3:4] != b"-":
                    text = line.decode().rstrip()
                    self.told.append(Told(verb, text))
                    return text

        if not reply("GREETING").startswith("220"):
            return
        link.sendall(b"EHLO client.example\r\n")
        reply("EHLO")
        for _ in range(self._mails):
            if self._stopping.is_set():
                break
            mail = (
                f"MAIL FROM:<s{number}.{next(self._serial)}@client.example>\r\nRCPT TO:<r{number}@server.example>\r\n"
            )
            link.sendall(mail.encode())
            taken = reply("MAIL").startswith("250")
            if not (reply("RCPT").startswith("250") and taken):
                link.sendall(b"RSET\r\n")
                reply("RSET")
                continue
            link.sendall(b"DATA\r\n")
            if reply("DATA").startswith("354"):
                link.sendall(self._content + b".\r\n")
                reply("END")
        link.sendall(b"QUIT\r\n")
        reply("QUIT")


class Gateway:
    """`smtpproxy serve` with a store. Its directory is `base/store`, unless something else is said.

    Args:
        base: a `folder`.
        server: the port of the server behind it.
        audit: more of `[audit]`.
        tables: more of the configuration; top: what stands above all tables.
        beside: also the JSON lines in a file, `base/audit.jsonl`.
        shim: what its processes see of the clock and the disk.
        disk: the store is on it.
    """

    def __init__(
        self,
        base: Path,
        server: int,
        *,
        workers: int = 2,
        audit: str = "",
        tables: str = "",
        top: str = "",
        beside: bool = False,
        shim: Shim | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.directory = (base if disk is None else disk.at) / "store"
        self.seen = self.directory if disk is None else disk.path / "store"  # from here
        self.file = base / "audit.jsonl"
        self.config = base / "smtpproxy.toml"
        self.stderr = base / f"stderr.{os.urandom(3).hex()}"
        self.port = self.pid = 0
        self._base = base
        self._server = server
        self._workers = workers
        self._beside = beside
        self._shim = shim
        self._disk = disk
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(audit, tables, top)

    def configure(self, audit: str = "", tables: str = "", top: str = "") -> None:
        """Write the configuration."""
        self.config.write_text(
            f"""
{top}
[[listener]]
name = "in"
listen = "127.0.0.1:{self.port}"
server = "127.0.0.1:{self._server}"
[audit]
file = "{self.file if self._beside else ""}"
store = "{self.directory}"
{audit}
[process]
workers = {self._workers}
control = ""
{tables}
"""
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def start(self) -> None:
        """Returns when it listens."""
        if self._process is not None:
            self._process.wait(DEADLINE)  # the one before
        prefix = [] if self._disk is None else self._disk.prefix(ROOT)
        with self.stderr.open("ab") as said:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "smtpproxy", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd=ROOT,
                env={**os.environ, **(self._shim.env if self._shim is not None else {})},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._group = self._process.pid
        behind = len(self.said)
        self.port = int(self.hears(LISTENING.pattern, behind=behind)[1])

    @property
    def said(self) -> str:
        """On standard error, so far."""
        return self.stderr.read_text(errors="replace")

    def hears(self, words: str, *, behind: int = 0) -> re.Match[str]:
        """It says this, a regular expression, behind so many characters."""
        found = until(lambda: re.compile(words).search(self.said, behind) or self._ended, f"not said: {words}")
        assert isinstance(found, re.Match), f"it ended: {self.said}"
        return found

    @property
    def _ended(self) -> bool:
        return self._process is not None and self.pid == self._process.pid and self._process.poll() is not None

    # ------------------------------------------------------------------------------------------- its processes

    def _children(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    @property
    def workers(self) -> list[int]:
        """Those who write the journal."""
        return [pid for pid in self._children() if _has(pid, self.seen / "journal/writers")]

    @property
    def recorders(self) -> list[int]:
        """Those who have the database, in all generations."""
        return [pid for pid in self.group() if _has(pid, self.seen / "audit.db")]

    def recorder(self) -> int:
        """The one there is."""
        (pid,) = until(lambda: found if len(found := self.recorders) == 1 else None, "there is not one recorder")
        return int(pid)

    def group(self) -> list[int]:
        """All of its processes, and of those it handed over to."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._group and fields[0] != "Z":
                    found.append(int(path.parent.name))
        return found

    # ------------------------------------------------------------------------------------------- its end

    def kill(self, pid: int) -> None:
        """One of its processes; returns when that is gone."""
        assert pid in self.group()
        os.kill(pid, signal.SIGKILL)
        if self._process is not None and pid == self._process.pid:
            self._process.wait(DEADLINE)
        until(lambda: pid not in self.group(), f"{pid} does not end")

    def all_gone(self) -> None:
        """Returns when no process of it is left."""
        until(lambda: not self.group(), f"still there: {self.said[-2000:]}")

    def stop(self) -> int:
        """SIGTERM to who serves; its exit code, 0 where somebody else had it."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGTERM)
        self.all_gone()
        return self._process.wait(DEADLINE)

    def kill_all(self) -> None:
        """What is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(DEADLINE)

    def reload(self) -> None:
        """SIGHUP, until new sessions are by what was read."""
        behind = len(self.said)
        os.kill(self.pid, signal.SIGHUP)
        self.hears("reloaded: new sessions", behind=behind)

    def hand_over(self) -> None:
        """SIGUSR2, until the new one serves."""
        behind = len(self.said)
        os.kill(self.pid, signal.SIGUSR2)
        self.pid = int(self.hears(r"handed over: .*to=(\d+)", behind=behind)[1])
        self.hears(LISTENING.pattern, behind=behind)

    def account(self) -> "Account":
        """What the store has."""
        if self._disk is None:
            return Account(self.directory)
        return Account(self._disk.copy("store", self._base / f"copy.{os.urandom(3).hex()}"))


def _has(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        file = path.stat()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), file):
                    return True
    return False


class Account:
    """What a store has, read as anybody would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        reader = open_reader(str(directory))
        try:
            self.numbers, octets = zip(*reader.lines(0), strict=True)
            self.raw: tuple[bytes, ...] = octets
            query = "SELECT id, outcome, code, size, sha256, session FROM mail WHERE outcome <> 'none' ORDER BY id"
            self.mails = list(reader.rows(query))
            self.sessions = dict(reader.rows("SELECT name, how FROM session"))
            self.recipients = Counter(
                (mail, bool(accepted)) for mail, accepted in reader.rows("SELECT mail, accepted FROM recipient")
            )
        finally:
            reader.close()
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in self.raw]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Its records of these kinds."""
        return [line for line in self.lines if line["kind"] in kinds]

    def commits(self) -> Counter[str]:
        """The replies of mails that were taken."""
        return Counter(str(line["reply"]) for line in self.of("tx-commit"))

    def decided(self) -> Counter[tuple[Any, ...]]:
        """Contents that the server decided: whether it took them, what it said, envelope, size and digest."""
        return Counter(
            (
                line["kind"] == "tx-commit",
                line["reply"],
                line["mail"],
                tuple(line.get("rcpt", ())),
                tuple(line.get("rcpt_refused", ())),
                line["octets"],
                line["sha256"],
            )
            for line in self.of("tx-commit", "tx-refused")
            if "sha256" in line
        )

    def told(self, text: str) -> Counter[str]:
        """What was got in exchanges and has this in it."""
        return Counter(line["got"] for line in self.of("exchange") if text in (line.get("got") or ""))

    def sound(self, *, ended: bool = True) -> None:
        """Whatever happened: the tree is whole, no record is missing or there twice, and the index is of the records.

        Args:
            ended: the gateway has; so all its sessions have.
        """
        report = verified(self.directory)
        assert [finding.text for finding in report.findings] == []
        assert report.records == len(self.lines)
        assert list(self.numbers) == list(range(len(self.lines)))
        sequences: dict[str, list[int]] = {}
        for line in self.lines:
            if "seq" in line:
                sequences.setdefault(line["session"].partition("-")[0], []).append(line["seq"])
        for worker, numbers in sequences.items():
            assert numbers == list(range(1, len(numbers) + 1)), f"{worker}: {_odd(numbers)}"
        over = {n: line for n, line in enumerate(self.lines) if line["kind"] in ("tx-commit", "tx-refused")}
        found = {row[0]: row for row in self.mails if row[1] != "refused"}
        assert found.keys() == over.keys()
        for number, line in over.items():
            _, outcome, code, size, digest, _ = found[number]
            assert outcome == ("accepted" if line["kind"] == "tx-commit" else line.get("why") or "server")
            assert (size, digest) == (line.get("octets", 0), line.get("sha256"))
            assert "code" not in line or code == line["code"]
            assert self.recipients[number, True] == len(line.get("rcpt", ()))
            assert self.recipients[number, False] == len(line.get("rcpt_refused", ()))
        begun = {line["session"] for line in self.of("link-connect")}
        closed = {line["session"] for line in self.of("link-close")}
        assert self.sessions.keys() == begun
        assert {name for name, how in self.sessions.items() if how == "closed"} == closed
        if ended:
            assert None not in self.sessions.values()

    @property
    def lost(self) -> set[str]:
        """Sessions whose worker died."""
        return {name for name, how in self.sessions.items() if how == "lost"}

    @property
    def waiting(self) -> int:
        """Octets of the journal the database has not."""
        with contextlib.closing(sqlite3.connect(self.directory / "audit.db")) as connection:
            position = connection.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()[0]
        segment, _, offset = position.partition(":")
        waiting = -int(offset or 0)
        for path in (self.directory / "journal").glob("*.jsonl"):
            if int(path.stem) >= int(segment or 0):
                waiting += path.stat().st_size
        return waiting


def _odd(numbers: Sequence[int]) -> str:
    """Where numbers do not follow one another."""
    pairs = [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1]
    return f"{len(numbers)} numbers from {numbers[0]} on, odd at {pairs[:5]}"


def compare(account: Account, server: Server, clients: Clients | None = None) -> None:
    """After whatever crashes: what a client was told is on record, once, and what is on record happened.

    A mail the server took whose reply nobody saw any more, because the worker was killed, is in the server's log alone.
    """
    taken = {one.reply for one in server.log if one.accepted}
    commits = account.commits()
    assert max(commits.values(), default=1) == 1, "a mail is on record twice"
    assert commits.keys() <= taken, "a mail is on record that the server never took"
    if clients is not None:
        accepted = clients.accepted
        assert len(accepted) == len(set(accepted))
        missing = set(accepted) - commits.keys()
        assert not missing, f"told, and not on record: {sorted(missing)[:5]} of {len(accepted)}"


def the_same(account: Account, server: Server) -> None:
    """Where nothing was killed: the store has each content the server decided, exactly once, and nothing else."""
    expected = Counter(tuple(one) for one in server.log)
    assert account.decided() == expected
    assert account.told("No such user") == Counter(server.refused_rcpt)
    assert account.told("Not now") + account.told("No valid recipients") == Counter(server.refused_data)

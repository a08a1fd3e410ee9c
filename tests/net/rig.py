"""A proxy on real sockets between a client and a server that are driven by hand.

`Rig` is what the service is made of (reactor, listener, audit file), without the service: no sweep runs, so time passes
only where a test says so (`rig.wait(300)`), and nothing sleeps. Every wait has a deadline; ports are the kernel's.
With `tls`, a table as in `[listener.tls]`, the listener has TLS; ends that speak it are in tls_rig.py.
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from smtpproxy.audit.appending import Appender, open_file
from smtpproxy.audit.log import AuditLog
from smtpproxy.config import Config
from smtpproxy.net.asking import Asking
from smtpproxy.net.handshakes import ListenerTLS
from smtpproxy.net.listener import Listener, Sessions
from smtpproxy.net.machine import Machine, plain
from smtpproxy.net.materials import Materials
from smtpproxy.net.origin import Loops, Origin, open_sockets
from smtpproxy.net.plans import Destination, Making, Plan, Plans
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.relay import Relay
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tally
from smtpproxy.policy.judge import Judge as ShippedRules
from smtpproxy.quarantine.store import Store as QuarantineStore
from smtpproxy.session.limits import LIMITS, PATIENCE, Limits, Patience
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Judge, PassAll
from tests.net.authority_rig import Signed

DEADLINE = 5.0
OPEN = PassAll()
EHLO_REPLY = b"250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n"
ENVELOPE = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
_ANSWERS = {b"EHLO": EHLO_REPLY, b"DATA": b"354 Go\r\n", b"QUIT": b"221 Bye\r\n"}
_RESET = struct.pack("ii", 1, 0)
_ROOT = Path(__file__).resolve().parents[2]
_LISTENING = re.compile(r"listening on \S+:(\d+) ")


class End:
    """One end of a connection: a client, or the server's side of one."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self.received = bytearray()  # what came and was not asked for yet

    @property
    def name(self) -> str:
        """Its own address, as the record writes it."""
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def send(self, octets: bytes) -> None:
        """All of it."""
        view = memoryview(octets)
        with trio.fail_after(DEADLINE):
            while view:
                view = view[await self.socket.send(view) :]

    async def _more(self, size: int = 65_536) -> bool:
        with trio.fail_after(DEADLINE):
            data = await self.socket.recv(size)
        self.received += data
        return bool(data)

    async def line(self) -> bytes:
        """One line, with its end; b"" at the end of the connection."""
        while b"\n" not in self.received:
            if not await self._more():
                break
        line, newline, rest = self.received.partition(b"\n")
        self.received = rest
        return bytes(line + newline)

    async def reply(self) -> bytes:
        """One reply, all its lines."""
        lines = b""
        while True:
            line = await self.line()
            lines += line
            if line[3:4] != b"-":
                return lines

    async def expect(self, octets: bytes) -> None:
        """These octets come next."""
        while len(self.received) < len(octets) and octets.startswith(self.received):
            if not await self._more():
                break
        got = bytes(self.received[: len(octets)])
        assert got == octets
        del self.received[: len(octets)]

    async def rest(self, size: int = 65_536) -> bytes:
        """All that still comes, up to the connection's end. ConnectionResetError if that is a reset."""
        while await self._more(size):
            pass
        rest = bytes(self.received)
        self.received.clear()
        return rest

    async def ending(self) -> str:
        """How the connection ends, whatever comes before."""
        try:
            await self.rest()
        except ConnectionResetError:
            return "reset"
        return "end"

    async def nothing(self) -> None:
        """Nothing has come, and what is under way gets its time to."""
        with trio.move_on_after(0.05):
            await self._more()
            raise AssertionError(f"something came: {bytes(self.received)!r}")
        assert not self.received

    def shut(self) -> None:
        """Nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in order."""
        self.socket.close()

    def reset(self) -> None:
        """Close by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()

    # ------------------------------------------------------------------------------------- what conversations share

    async def ask(self, command: bytes, server: "End", answer: bytes) -> None:
        """A client's command, as the server gets it, and the answer, as the client gets it."""
        await self.send(command)
        await server.expect(command)
        await server.send(answer)
        await self.expect(answer)

    async def hello(self, server: "End") -> None:
        """Greeting and EHLO."""
        await server.send(b"220 mx.example\r\n")
        await self.expect(b"220 mx.example\r\n")
        await self.ask(b"EHLO me.example\r\n", server, EHLO_REPLY)

    async def mail(self, server: "End") -> None:
        """MAIL and RCPT."""
        await self.ask(ENVELOPE, server, b"250 Ok\r\n250 Ok\r\n")

    async def data(self, server: "End") -> None:
        """Everything up to the 354."""
        await self.hello(server)
        await self.mail(server)
        await self.ask(b"DATA\r\n", server, b"354 Go\r\n")


class Server:
    """A listening server; `accept` gives its side of each connection."""

    def __init__(self, host: str = "127.0.0.1", *, receive: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, 0))
        sock.listen(512)
        self.socket = trio.socket.from_stdlib_socket(sock)
        self.host, self.port = sock.getsockname()[:2]
        self.ends: list[End] = []

    @property
    def address(self) -> tuple[int, Any]:
        """As a relay is given it."""
        return self.socket.family, (self.host, self.port)

    async def accept(self) -> End:
        """The proxy's next connection."""
        with trio.fail_after(DEADLINE):
            sock, _ = await self.socket.accept()
        self.ends.append(End(sock))
        return self.ends[-1]

    def close(self) -> None:
        """With all connections."""
        self.socket.close()
        for end in self.ends:
            end.close()


class Store:
    """A server that behaves, and keeps what it was given."""

    def __init__(self, host: str = "127.0.0.1", *, pause: float = 0.0) -> None:
        self.server = Server(host)
        self.mails: list[bytes] = []  # whole ones, as they came: with dots, without their end
        self.halves: list[bytes] = []  # what was there of a mail when its connection ended
        self.sessions = 0
        self.pause = pause  # seconds it thinks about each mail
        self.go = trio.Event()  # to be unset where it must not answer an end of data yet
        self.go.set()

    @property
    def port(self) -> int:
        """Where."""
        return int(self.server.port)

    async def run(self) -> None:
        """Serve everybody."""
        async with trio.open_nursery() as nursery:
            while True:
                sock, _ = await self.server.socket.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        self.sessions += 1
        left = b""
        content = False
        try:
            await sock.send(b"220 store.example\r\n")
            while True:
                data = await sock.recv(262_144)
                if not data:
                    break
                left += data
                out = b""
                while True:
                    if content:
                        body, end, rest = (b"\r\n" + left).partition(b"\r\n.\r\n")
                        if not end:
                            break
                        left, content = rest, False
                        self.mails.append(body[2:] + b"\r\n" if body else b"")
                        await trio.sleep(self.pause)
                        await self.go.wait()
                        out += b"250 2.0.0 queued as %d\r\n" % len(self.mails)
                        continue
                    line, end, rest = left.partition(b"\r\n")
                    if not end:
                        break
                    left = rest
                    verb = line[:4].upper()
                    content = verb == b"DATA"
                    out += _ANSWERS.get(verb, b"250 Ok\r\n")
                    if verb == b"QUIT":
                        break
                if out:
                    await sock.send(out)
                    if out.endswith(b"221 Bye\r\n"):
                        break
        except OSError:
            pass
        finally:
            if content:
                self.halves.append(left)
            sock.close()

    def close(self) -> None:
        """No more."""
        self.server.close()


class Process:
    """`smtpproxy serve` as a process of its own, with its workers; the group of these processes ends with it."""

    def __init__(
        self,
        port: int,
        audit: Path,
        *options: str,
        workers: int = 1,
        listen: str = "127.0.0.1:0",
        before: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """`workers` 0 and `listen` "" leave it to the configuration; `before` is a command that becomes this one."""
        command = [*before, sys.executable, "-m", "smtpproxy", "serve", "--audit", str(audit)]
        command += ["--workers", str(workers)] if workers else []
        command += ["--listen", listen, "--server", f"127.0.0.1:{port}"] if listen else []
        command += options
        self.audit = audit
        self._stderr = os.memfd_create("stderr")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            cwd=_ROOT,
            env={**os.environ, **(environ or {})},
            pass_fds=descriptors,
            start_new_session=True,
        )
        self.pid = self.process.pid  # of the supervisor; after a hand-over the test knows better
        self.port = 0
        self._ends: list[End] = []

    @property
    def said(self) -> str:
        """All of standard error so far."""
        return self._last_said if self._stderr < 0 else os.pread(self._stderr, 10_000_000, 0).decode()

    async def hears(self, words: str, *, behind: int = 0, seconds: float = 20.0) -> re.Match[str]:
        """It says this, a regular expression, behind so many characters."""
        with trio.fail_after(seconds):
            while (found := re.compile(words).search(self.said, behind)) is None:
                running = self.process.poll() is None or self.pid != self.process.pid
                assert running, f"it ended with {self.process.returncode}: {self.said}"
                await trio.sleep(0.005)
        return found

    async def ready(self) -> None:
        """It listens."""
        self.port = int((await self.hears(_LISTENING.pattern))[1])

    @property
    def workers(self) -> list[int]:
        """Those of the supervisor, by their numbers."""
        return self._children(signers=False)

    @property
    def signers(self) -> list[int]:
        """Its signing processes."""
        return self._children(signers=True)

    def _children(self, *, signers: bool) -> list[int]:
        children = map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())
        return [child for child in children if (b"net.signer" in _command(child)) is signers]

    async def connect(self, host: str = "127.0.0.1", port: int = 0) -> End:
        """A client."""
        end = End(trio.socket.socket())
        self._ends.append(end)
        with trio.fail_after(DEADLINE):
            await end.socket.connect((host, port or self.port))
        return end

    def signal(self, number: signal.Signals) -> None:
        """As `kill`."""
        os.kill(self.pid, number)

    async def code(self, seconds: float = 10.0) -> int:
        """How the one that was started ends."""
        with trio.fail_after(seconds):
            while self.process.poll() is None:
                await trio.sleep(0.005)
        return self.process.returncode

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of the audit."""
        return [json.loads(line) for line in self.audit.read_bytes().rpartition(b"\n")[0].splitlines()]

    def close(self) -> None:
        """End all of it that has not ended."""
        if self._stderr < 0:
            return
        for end in self._ends:
            end.close()
        with contextlib.suppress(ProcessLookupError):  # the group is gone
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._last_said = self.said
        os.close(self._stderr)
        self._stderr = -1


def _command(pid: int) -> bytes:
    """What a process is, b"" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@asynccontextmanager
async def running(store: Store, audit: Path, *options: str, workers: int = 1) -> AsyncIterator[Process]:
    """A process in front of a store that is running already."""
    process = Process(store.port, audit, *options, workers=workers)
    try:
        await process.ready()
        yield process
    finally:
        process.close()


def dead_address(host: str = "127.0.0.1") -> tuple[int, Any]:
    """An address that refuses connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return family, sock.getsockname()[:2]


class Clock:
    """The monotonic clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """The time."""
        return time.monotonic() + self.ahead


class RigPlans(Plans):
    """Plans with the judge that the rig has at the moment."""

    def __init__(self, rig: "Rig", plans: Plans) -> None:
        super().__init__(plans.entry, plans.default, plans.matches)
        self._rig = rig

    def choose(self, origin: Origin) -> Plan:
        """As the service's, with the rig's judge where no match block fits."""
        plan = super().choose(origin)
        return plan if plan.name else plan._replace(judge=self._rig.judge)


class Rig:
    """A listener in front of a server."""

    def __init__(
        self,
        audit: AuditLog,
        path: Path | None,
        *,
        server: Server | None = None,
        judge: Judge | None = None,
        limits: Limits = LIMITS,
        patience: Patience = PATIENCE,
        connections: int = 10_000,
        per_client: int = 10_000,
        newlines: str = "normalise",
        host: str = "127.0.0.1",
        spool: Callable[[], Any] | None = None,
        tls: Mapping[str, Any] | None = None,
        ca: Path | None = None,
        keylog: Path | None = None,
        dns: Mapping[str, Any] | None = None,
        wall: Callable[[], float] = time.time,
        settings: Mapping[str, Any] | None = None,
        matches: Sequence[Mapping[str, Any]] = (),
        store: QuarantineStore | None = None,
    ) -> None:
        # STARTTLS is told, or not, by the shipped rules.
        self.judge: Judge = judge or (OPEN if tls is None else ShippedRules())
        self.clock = Clock()
        self.audit = audit
        self.path = path
        self.server = server or Server(host)
        self.reactor = Reactor(audit, self.clock)
        self.asking = Asking(self.reactor, store)
        self.sessions = Sessions(connections=connections, per_client=per_client, tally=Tally.alone())
        name = f"[{self.server.host}]" if ":" in self.server.host else self.server.host
        listener = {
            "name": "smtp",
            "listen": f"[{host}]:0" if ":" in host else f"{host}:0",
            "server": f"{name}:{self.server.port}",
            "newlines": newlines,
            **({"tls": tls} if tls is not None else {}),
            **(settings or {}),
        }
        config = Config.model_validate(
            {
                "listener": [{key: value for key, value in listener.items() if value is not None}],
                "match": list(matches),
                "ca": {"directory": str(ca or "")},
                "tls": {"keylog": str(keylog or "")},
                "dns": dns or {},
            }
        )
        (self.entry,) = config.listeners
        self.signed = Signed(config, self.reactor)
        self.materials = Materials(config, self.reactor, wall, self.signed.signer) if tls is not None else None
        self.setup = Setup(config, {"": self.judge})
        self.plans: Plans | None = None
        self.limits = limits
        self.patience = patience
        self.spool = spool or io.BytesIO
        self.listeners: list[Listener] = []
        self.clients: list[End] = []

    async def open(self) -> None:
        """What the service does before anybody is accepted."""
        if self.materials is not None:
            await self.materials.start()
        making = Making(self.setup, self.materials)
        (plans,) = making.plans()
        for destination in making.destinations:
            await destination.look_up()
        self.plans = RigPlans(self, plans)
        self.address, self.family = self.listen()

    @property
    def destination(self) -> Destination:
        """The configured server."""
        assert self.plans is not None
        assert self.plans.default.destination is not None
        return self.plans.default.destination

    def listen(self, tls: ListenerTLS | None = None) -> tuple[tuple[str, int], int]:
        """A listener, with TLS of its own if that is given; the address it is reached by."""
        assert self.plans is not None
        plans = self.plans
        if tls is not None:
            plans = RigPlans(self, Plans(self.entry, plans.default._replace(tls=tls)))
        (sock,) = open_sockets(self.entry)
        self.listeners.append(
            Listener(
                plans,
                sock,
                self.reactor,
                self.sessions,
                self.audit,
                loops=Loops([plain(sock.getsockname())], Machine(self.reactor.tick)),
                limits=self.limits,
                patience=self.patience,
                spool=self.spool,
                ask=self.asking.ask,
            )
        )
        return sock.getsockname()[:2], sock.family

    @property
    def listener(self) -> Listener:
        """The first one."""
        return self.listeners[0]

    async def connect(self, *, send: int = 0, receive: int = 0) -> End:
        """A client; `send` and `receive` are sizes of its kernel buffers."""
        sock = trio.socket.socket(self.family)
        if send:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.clients.append(End(sock))
        with trio.fail_after(DEADLINE):
            await sock.connect(self.address)
        return self.clients[-1]

    async def both(self, *, send: int = 0, receive: int = 0) -> tuple[End, End]:
        """A client, and the server's side of its session."""
        client = await self.connect(send=send, receive=receive)
        return client, await self.server.accept()

    @property
    def relay(self) -> Relay:
        """The one session."""
        (relay,) = self.sessions.relays
        return relay

    @property
    def session(self) -> Session:
        """The one session."""
        return self.relay.session

    def wait(self, seconds: float) -> None:
        """So much time passes; then everybody's patience is looked at, as the service does every second."""
        self.clock.ahead += seconds
        self.reactor.tick()
        self.sessions.check(self.reactor.now)
        self.signed.check()
        self.asking.check()
        for listener in self.listeners:
            listener.check()
        if self.materials is not None:
            self.materials.check()
        self.reactor.wake()

    def records(self, kind: str = "", **members: Any) -> list[dict[str, Any]]:
        """What is on record, all of it or what has these members."""
        assert self.path is not None
        lines = self.path.read_bytes().splitlines()
        found = [json.loads(line) for line in lines]
        return [r for r in found if kind in ("", r["kind"]) and all(r.get(k) == v for k, v in members.items())]

    async def record(self, kind: str, **members: Any) -> dict[str, Any]:
        """The first such record, as soon as it is there."""
        await until(lambda: self.records(kind, **members), f"no {kind} {members}")
        return self.records(kind, **members)[0]

    async def over(self, count: int = 0) -> None:
        """No more than so many sessions are left."""
        await until(lambda: len(self.sessions.relays) <= count, "a session does not end")
        await settled()

    @property
    def faults(self) -> int:
        """Sessions that ended by a fault of the proxy."""
        return self.path.read_bytes().count(b'"anomaly":"internal-error"') if self.path is not None else 0

    def close(self) -> None:
        """Let go of everything."""
        for listener in self.listeners:
            listener.close()
        self.sessions.abandon()
        if self.materials is not None:
            self.materials.close()
        self.reactor.close()
        self.signed.close()
        for client in self.clients:
            client.close()
        self.server.close()


async def settled() -> None:
    """What is under way between tasks and the kernel gets its time."""
    for _ in range(3):
        await trio.sleep(0.002)


async def until(condition: Callable[[], Any], failure: str) -> None:
    """Wait for a condition nobody tells of."""
    deadline = trio.current_time() + DEADLINE
    while not condition():
        assert trio.current_time() < deadline, failure
        await trio.sleep(0.001)


@asynccontextmanager
async def rig(folder: Path, *, descriptor: int | None = None, faults: int = 0, **options: Any) -> AsyncIterator[Rig]:
    """A running rig; its audit is a file of its own in `folder`, or the descriptor given.

    At the end the number of sessions that ended by a fault of the proxy must be `faults`.
    """
    path = None if descriptor is not None else folder / f"audit-{os.urandom(4).hex()}.jsonl"
    fd = descriptor if descriptor is not None else open_file(str(path))
    audit = AuditLog([Appender(fd)], wall=lambda at: at)
    made = Rig(audit, path, **options)
    try:
        async with trio.open_nursery() as nursery:
            await made.open()
            nursery.start_soon(made.reactor.run)
            await nursery.start(made.asking.run)
            if made.materials is not None:
                nursery.start_soon(made.materials.run)
            yield made
            await settled()
            nursery.cancel_scope.cancel()
        audit.flush()
        assert made.faults == faults
    finally:
        made.close()
        os.close(fd)

"""What TLS costs smtpproxy, and what making certificates does: `python bench/tls.py`.

    client ──STARTTLS──► smtpproxy ──STARTTLS──► server

Each session is a greeting, EHLO, STARTTLS, EHLO and QUIT, with a full handshake on both links. Client and server are
threads of this script; only smtpproxy's CPU counts, with that of its signing process. It is run twice in each round:
with a certificate from a file, and with a CA that mints one after the server's. The server shows one certificate first
(what is minted after it is kept), then another one in each session. All on loopback, on ports the kernel picks.
"""

import argparse
import socket
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from peers import HOST, Place, find
from programs import REPOSITORY, BenchError, Started, listening

from bench import figure

sys.path.insert(0, str(REPOSITORY))  # the checkout's, not one that is installed

from smtpproxy.tls.authority import Authority, create
from smtpproxy.tls.contexts import for_client
from smtpproxy.tls.minting import KeyPair, Leaf, Likeness, mint

CLIENTS = 8  # sessions at once
PATIENCE = 20.0  # seconds anyone is waited for
CONFIG = """\
[[listener]]
name = "bench"
listen = "{host}:{port}"
server = "{host}:{server}"
[listener.tls]
verify = "verify"
roots = "{roots}"
{certificates}
[audit]
file = "audit.jsonl"
"""


def certificates(authority: Authority, count: int) -> list[Leaf]:
    """Certificates of so many servers, all for the address of this one too."""
    pair, now = KeyPair(), time.time()
    made = []
    for number in range(count):
        name = f"mx{number}.bench.example"
        like = Likeness((name, HOST), (("2.5.4.3", name),), int(now) - 3600, int(now) + 86400 * 9)
        made.append(pair.leaf(mint(authority, like, pair.spki, now, 9), authority.pem))
    return made


# --------------------------------------------------------------------------------------------------- server and client


class Server(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP as is needed; `shown` is what it shows in the next sessions, in turn."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, contexts: list[ssl.SSLContext]) -> None:
        super().__init__((HOST, 0), Conversation)
        self.contexts = contexts
        self.show(1)

    def show(self, count: int) -> None:
        """The first so many, in turn."""
        self._turn = cycle(self.contexts[:count])
        self._lock = threading.Lock()

    def context(self) -> ssl.SSLContext:
        """Whose turn it is."""
        with self._lock:
            return next(self._turn)

    def handle_error(self, *_: object) -> None:
        """A client that goes is none; a failed session is the client's to tell."""


class Conversation(socketserver.BaseRequestHandler):
    """One session of the server."""

    server: Server

    def handle(self) -> None:
        """Answer until QUIT."""
        link: socket.socket = self.request
        link.settimeout(PATIENCE)
        link.sendall(b"220 server.bench.example ESMTP\r\n")
        with link.makefile("rb") as lines:
            for line in lines:
                if line == b"STARTTLS\r\n":
                    link.sendall(b"220 2.0.0 Go ahead\r\n")
                    break
                if not self._answer(link, line, b"250-server.bench.example\r\n250 STARTTLS\r\n"):
                    return
            else:
                return
        with self.server.context().wrap_socket(link, server_side=True) as safe, safe.makefile("rb") as lines:
            for line in lines:
                if not self._answer(safe, line, b"250 server.bench.example\r\n"):
                    return

    @staticmethod
    def _answer(link: socket.socket, line: bytes, hello: bytes) -> bool:
        going = line != b"QUIT\r\n"
        link.sendall(hello if going else b"221 2.0.0 Bye\r\n")
        return going


def converse(port: int, context: ssl.SSLContext | None) -> None:
    """One session of the client; without a context in clear."""
    link = socket.create_connection((HOST, port), timeout=PATIENCE)
    try:
        expect(link, b"220")
        say(link, b"EHLO client.bench.example\r\n", b"250")
        if context is not None:
            say(link, b"STARTTLS\r\n", b"220")
            link = context.wrap_socket(link)
            say(link, b"EHLO client.bench.example\r\n", b"250")
        say(link, b"QUIT\r\n", b"221")
    finally:
        link.close()


def say(link: socket.socket, command: bytes, code: bytes) -> None:
    """A command and its reply."""
    link.sendall(command)
    expect(link, code)


def expect(link: socket.socket, code: bytes) -> None:
    """A reply to its last line."""
    octets = b""
    while not octets.endswith(b"\n") or octets.splitlines()[-1][3:4] != b" ":
        more = link.recv(4096)
        if not more:
            raise BenchError(f"the proxy closed the connection: {octets!r}")
        octets += more
    if not octets.startswith(code):
        raise BenchError(f"{code.decode()} was expected: {octets!r}")


# ----------------------------------------------------------------------------------------------------------- measuring


class Cost(NamedTuple):
    """Of a session."""

    cpu: float  # µs
    seconds: float  # of all of them


class Bench:
    """Where the figures are taken."""

    def __init__(self, directory: Path, names: int) -> None:
        authority = create(directory / "others", "bench", 10)
        self._roots = directory / "others" / "ca.crt"
        leaves = certificates(authority, names + 1)
        self._chain = directory / "given.pem"
        self._chain.write_bytes(leaves[-1].chain + leaves[-1].key)
        self._names = names
        contexts = [for_client(leaf.chain, leaf.key) for leaf in leaves[:names]]
        for context in contexts:
            context.num_tickets = 0  # no session is resumed
            context.options |= ssl.OP_NO_TICKET
        self._server = Server(contexts)
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While the server answers."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _command(self, minting: bool) -> Callable[[Place], list[str]]:
        def command(at: Place) -> list[str]:
            entry = f'certificates = [{{ chain = "{self._chain}" }}]'
            if minting:
                create(at.directory / "ca", "bench proxy", 10)
                entry = '[ca]\ndirectory = "ca"\nrate = 100000'
            file = at.directory / "smtpproxy.toml"
            file.write_text(
                CONFIG.format(host=HOST, port=at.port, server=at.server, roots=self._roots, certificates=entry)
            )
            return [sys.executable, "-m", "smtpproxy", "serve", "--config", str(file)]

        return command

    def round(self, sessions: int, number: int) -> dict[str, Cost]:
        """Everything once; who is first changes from round to round."""
        port = self._server.server_address[1]
        found: dict[str, Cost] = {}
        for minting in (False, True) if number % 2 else (True, False):
            kind = "minted" if minting else "given"
            with listening(self._command(minting), port) as (program, place):
                self._server.show(1)
                self._sessions(program, place.port, max(10, sessions // 10))
                if not minting:
                    found["clear"] = self._sessions(program, place.port, sessions, clear=True)
                found[kind] = self._sessions(program, place.port, sessions)
                self._server.show(self._names)
                found[f"{kind} each"] = self._sessions(program, place.port, self._names)
        return found

    def _sessions(self, program: Started, port: int, count: int, *, clear: bool = False) -> Cost:
        context = None if clear else self._client
        before, began = program.cpu(), time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in pool.map(lambda _: converse(port, context), range(count)):
                pass
        seconds = time.monotonic() - began
        return Cost((program.cpu() - before) / count * 1e6, seconds)


# --------------------------------------------------------------------------------------------------------- the command

ROWS = {
    "clear": "in clear",
    "given": "given",
    "minted": "minted, kept",
    "given each": "given, {names} servers",
    "minted each": "minted, {names} servers, each for the first time",
}


def table(rounds: list[dict[str, Cost]], names: int) -> str:
    """As Markdown. What TLS adds is what a session costs more than one in clear of the same round."""
    lines = ["| certificate | CPU µs/session | TLS | TLS × given | s |", "| --- | ---: | ---: | ---: | ---: |"]
    for key, title in ROWS.items():
        cells = [title.format(names=names), figure([found[key].cpu for found in rounds])]
        if key == "clear":
            cells += ["–", "–"]
        else:
            added = [found[key].cpu - found["clear"].cpu for found in rounds]
            given = [found["given"].cpu - found["clear"].cpu for found in rounds]
            cells += [figure(added), figure([own / other for own, other in zip(added, given, strict=True) if other])]
        cells.append(figure([found[key].seconds for found in rounds]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what TLS and minting cost smtpproxy.")
    parser.add_argument("--rounds", type=int, default=5, help="5")
    parser.add_argument("--sessions", type=int, default=600, help="with one certificate; 600")
    parser.add_argument("--names", type=int, default=1000, help="servers with certificates of their own; 1000")
    chosen = parser.parse_args()
    if find("setpriv") is None:
        print("tls: setpriv: not installed; apt install util-linux", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="smtpproxy-bench-") as name:
        bench = Bench(Path(name), chosen.names)
        with bench.serving():
            rounds = []
            for number in range(chosen.rounds):
                print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr, flush=True)
                rounds.append(bench.round(chosen.sessions, number))
    print(table(rounds, chosen.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())

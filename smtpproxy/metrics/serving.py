"""The process that answers scrapes: HTTP for one address, until its supervisor is gone.

It reads memory that others write, and has no part in any mail. Whoever asks is a stranger all the same: at most
`AT_ONCE` are answered at a time (who comes beyond that is hung up on), each within `PATIENCE`; the body of a request is
never read. The exposition in its formats is `prometheus_client`'s, the HTTP is the standard library's.

    GET /metrics     what there is to tell
    GET /-/healthy   200 while the supervisor looks after everything and a worker serves; else 503

Its threads are the reason why this is a process of its own: the supervisor must have none.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import make_wsgi_app

from smtpproxy.metrics.exposing import Exposition
from smtpproxy.metrics.gauges import RecorderGauges
from smtpproxy.metrics.regions import Regions

log = structlog.get_logger()

AT_ONCE: Final = 8  # requests
PATIENCE: Final = 10.0  # seconds for one, from the connection to the last octet
LOOK: Final = 0.5  # seconds between looks at who has taken too long, and whether the supervisor is there
FRESH: Final = 10.0  # seconds since the supervisor last told how it goes

Answer = Callable[..., Any]  # start_response of WSGI (PEP 3333)
Health = Callable[[], bool]


class Server(ThreadingMixIn, WSGIServer):
    """Answers on a socket that listens already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket, application: Callable[..., Iterable[bytes]]) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = "smtpproxy", 0
        self.setup_environ()
        self.set_app(application)
        self._lock = threading.Lock()
        self._until: dict[socket.socket, float] = {}  # when who is being answered is hung up on

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next one; it is not waited for longer than for the whole."""
        sock, address = self.socket.accept()
        sock.settimeout(PATIENCE)
        with self._lock:
            self._until[sock] = time.monotonic() + PATIENCE
        return sock, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """There is room for it."""
        with self._lock:
            return len(self._until) <= AT_ONCE

    def shutdown_request(self, request: Any) -> None:
        """It is over."""
        with self._lock:
            self._until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called at least every `LOOK`: who has had his time is hung up on, and his thread ends by that."""
        now = time.monotonic()
        with self._lock:
            late = [sock for sock, until in self._until.items() if now > until]
        for sock in late:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As a rule somebody who hung up in the middle."""
        log.debug("a scrape came to nothing", why=repr(sys.exc_info()[1]))


class _Replying(ServerHandler):
    """Says no more of itself than it must."""

    server_software = "smtpproxy"

    def log_exception(self, exc_info: Any) -> None:
        """A scrape that can't be answered is told 500, and the reason to the log."""
        log.error("a scrape could not be answered", exc_info=exc_info)


class _Handler(WSGIRequestHandler):
    """One request."""

    server_version, sys_version = "smtpproxy", ""
    timeout = PATIENCE

    def handle(self) -> None:
        """Read it, answer it, and that was it."""
        self.raw_requestline = self.rfile.readline(4097)
        if len(self.raw_requestline) > 4096:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if self.parse_request():
            streams: tuple[Any, Any] = self.rfile, self.wfile
            replying = _Replying(*streams, self.get_stderr(), self.get_environ())
            replying.request_handler = self  # type: ignore[attr-defined]
            replying.run(self.server.get_app())  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nobody wants to hear of every scrape."""

    def address_string(self) -> str:
        """Not looked up."""
        return str(self.client_address[0])


def application(regions: Regions, recorder: RecorderGauges, healthy: Health) -> Callable[..., Iterable[bytes]]:
    """What is answered, as WSGI has it (PEP 3333)."""
    metrics = make_wsgi_app(Exposition.registry(regions, recorder))

    def answer(environ: dict[str, Any], start: Answer) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", b"GET\n"
        elif path == "/-/healthy":
            status, text = ("200 OK", b"ok\n") if healthy() else ("503 Service Unavailable", b"no worker serves\n")
        else:
            status, text = "404 Not Found", b"/metrics, /-/healthy\n"
        start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
        return [text]

    return answer


def serve(
    sock: socket.socket, regions: Regions, recorder: RecorderGauges, healthy: Health, alive: Callable[[], bool]
) -> None:
    """Answer for as long as the supervisor is `alive`."""
    sock.settimeout(LOOK)  # who comes may be gone before we look; 0 would make handle_request look all the time
    with Server(sock, application(regions, recorder, healthy)) as server:
        server.timeout = LOOK
        while alive():
            server.handle_request()
            server.service_actions()

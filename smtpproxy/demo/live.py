"""The user's own clients, with --keep: each conversation is shown while it is had.

The user's client connects to a tap, which passes every octet on to the proxy as it came and lets `Seen` look at it;
so there is a wire to look at on that side too. The server's side and the record are the same as in the script. From a
handshake on the tap can't read its wire any more, and what the client says is taken from the record.
"""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from smtpproxy.demo.server import NAME, Server
from smtpproxy.demo.show import Screen
from smtpproxy.demo.tell import Teller
from smtpproxy.demo.wire import Seen, Tail, Talk

LOOK = 0.03  # seconds between looks at the record
GRACE = 1.0  # seconds for the last words to reach the clients


@dataclass(slots=True)
class Tapped:
    """A client's link that is listened in on."""

    seen: Seen
    over: bool = False


class Live:
    """Taps, and what is shown of them."""

    def __init__(self, screen: Screen, server: Server, teller: Teller, record: Tail, port: int) -> None:
        self._screen = screen
        self._server = server
        self._teller = teller
        self._record = record
        self._port = port
        self._tapped: dict[str, Tapped] = {}  # by the address the proxy sees
        self._talks: dict[str, tuple[Talk, Tapped]] = {}  # by session
        self._before = len(server.conversations)
        self._last = ""  # the session shown last

    async def run(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Show conversations until SIGINT or SIGTERM; then `stop` the proxy, and show what it still says."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listeners[0].socket.getsockname()
        address = f"{host}:{port}"
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                self._screen.line()
                self._screen.line(
                    f"smtpproxy demo: talk to {address} (e.g. swaks --server {address} --to you@demo.example [--tls], "
                    f"or: nc -C {host} {port})",
                    "ok",
                )
                self._screen.line("smtpproxy demo: Ctrl-C ends it", "dim")
                nursery.start_soon(self._look)
                nursery.start_soon(trio.serve_listeners, self._tap, listeners)
                async for _ in signals:
                    break
                await stop()
                with trio.move_on_after(GRACE):
                    while not all(tapped.over for _, tapped in self._talks.values()):  # noqa: ASYNC110 - bounded
                        await trio.sleep(LOOK)
                nursery.cancel_scope.cancel()
        self._show()
        self._screen.line()
        self._screen.line("smtpproxy demo: ended in order")

    # -------------------------------------------------------------------------------------------------------- the tap

    async def _tap(self, client: trio.SocketStream) -> None:
        tapped = Tapped(Seen())
        sock = trio.socket.socket()
        try:
            await sock.bind(("127.0.0.1", 0))
            self._tapped[f"127.0.0.1:{sock.getsockname()[1]}"] = tapped
            await sock.connect(("127.0.0.1", self._port))
            proxy = trio.SocketStream(sock)
            async with client, proxy, trio.open_nursery() as nursery:
                nursery.start_soon(self._forth, client, proxy, tapped.seen, nursery.cancel_scope)
                await self._back(proxy, client, tapped.seen)
                nursery.cancel_scope.cancel()
        except OSError:
            pass  # the proxy is being ended
        finally:
            tapped.over = True
            sock.close()

    @staticmethod
    async def _forth(client: trio.SocketStream, proxy: trio.SocketStream, seen: Seen, both: trio.CancelScope) -> None:
        try:
            while octets := await client.receive_some(65_536):
                if not seen.to_be_secured:
                    seen.sent(octets)
                await proxy.send_all(octets)
            await proxy.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()  # a link that broke has no other way back either

    @staticmethod
    async def _back(proxy: trio.SocketStream, client: trio.SocketStream, seen: Seen) -> None:
        try:
            while octets := await proxy.receive_some(65_536):
                if not seen.to_be_secured:
                    seen.received(octets)
                await client.send_all(octets)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    # ----------------------------------------------------------------------------------------------------- the screen

    async def _look(self) -> None:
        while True:
            self._show()
            await trio.sleep(LOOK)

    def _join(self) -> None:
        """The proxy connects to the server as it accepts, so both count alike."""
        for (talk, _), conversation in zip(
            self._talks.values(), self._server.conversations[self._before :], strict=False
        ):
            talk.server = conversation.turns

    def _show(self) -> None:
        for record in self._record.records():
            session = record["session"]
            if record["kind"] == "link-connect" and record["client"] in self._tapped:
                tapped = self._tapped.pop(record["client"])
                self._talks[session] = Talk(tapped.seen, [], tapped=True), tapped
            elif session in self._talks:
                self._join()
                self._talks[session][0].record(record)
        for number, (session, (talk, tapped)) in enumerate(self._talks.items(), 1):
            if talk.ended:
                continue
            rows = talk.take(all_of_it=talk.closed and tapped.over)
            if rows and self._last != session:
                self._last = session
                self._screen.title(f"your conversation {number}")
                self._screen.head("your client", NAME)
            self._screen.strips(self._teller.tell(rows))
            if talk.closed and tapped.over:
                talk.ended = True
                self._screen.line(f" conversation {number} is over", "dim")

"""The relay: drives one session over two links.

It reads a side, tells the session, and sends what the session says; it decides nothing. What it sees to:

- one send a side a turn, never a command or a reply in two;
- a side is read only if the session wants it and the other side takes what is sent: back-pressure is the kernel's;
- an effect is carried out when what stood before it on that side has been sent;
- a client is let go so that our last reply is not lost to a reset: our side is shut, what still comes is dropped for a
  while, then the link is closed;
- patience: `check` is called once a second and looks at who is being waited for, since when;
- a fault of our own ends this session and no other: 421 4.3.0 to the client, the server's link reset.
"""

import os
import socket
import ssl
from collections.abc import Callable

from smtpproxy.net.dialling import Address
from smtpproxy.net.handshakes import Handshakes, ListenerTLS
from smtpproxy.net.link import Link, State
from smtpproxy.net.machine import printable
from smtpproxy.net.patience import out_of_patience
from smtpproxy.net.reactor import Reactor
from smtpproxy.session.effects import Abort, Ask, Close, Dial, PrepareTLS, Shut, StartTLS
from smtpproxy.session.records import Kind
from smtpproxy.session.securing import cut_short
from smtpproxy.session.session import Session
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.errors import Side

SMALL = 65_536  # octets of a read while commands are exchanged
LARGE = 262_144  # while content is: larger reads are the cheapest speed there is
LINGER = 2.0  # seconds what still comes is dropped before a link is closed
KEEP_ALIVE = 60.0  # seconds after which a server that waits for held-back content is sent NOOP


class Relay:
    """One session, its two links."""

    def __init__(
        self,
        reactor: Reactor,
        session: Session,
        client: socket.socket,
        addresses: list[Address],
        *,
        closed: Callable[["Relay"], None],
        failed: Callable[["Relay", BaseException], None],
        dial: Callable[[Address], tuple[socket.socket, bool]],
        tls: ListenerTLS | None = None,
        elsewhere: Callable[[str, int], tuple[list[Address], ListenerTLS | None]] | None = None,
        ask: Callable[["Relay", Ask], None] | None = None,
    ) -> None:
        self.reactor = reactor
        self.session = session
        self.queued = False
        self._closed = closed
        self._failed = failed
        self._addresses = addresses
        self._dial = dial
        self._elsewhere = elsewhere  # what is known of a server that rules lead to
        self._ask = ask
        self._tried: list[str] = []
        now = reactor.now
        self.started = now
        self._progress = -1
        self._since = now  # when the conversation last got on
        self._kept_alive = now
        self.content_at = 0.0  # when the content now coming began; 0: none is
        self.content_from = 0  # octets received before it
        self.client = Link(client, now)
        self.server: Link | None = None
        self._listener_tls = tls
        self._shut = False  # the server is to be told that nothing more comes
        self._tls: Handshakes | None = None  # once there is something to encrypt
        self.done = False
        self._crashed = False
        self._on_record = 0  # octets of session.to_client whose record was written
        self._answered = 0  # what the server's socket said when connecting was over
        reactor.watch(self.client.fd, self)
        reactor.ready(self)
        self.guard(self._begin)

    # ------------------------------------------------------------------------------------------------- connecting

    def _begin(self) -> None:
        if self.session.begin():
            self._connect()

    def _dialled(self, effect: Dial) -> None:
        """The rules have let the client in, or lead it to another server."""
        if effect.host and self._elsewhere is not None:
            self._addresses, self._listener_tls = self._elsewhere(effect.host, effect.port)
        self._connect()

    def _connect(self) -> None:
        """The next address of the server; none left: 421 4.4.1 in place of the greeting."""
        while self._addresses:
            address = self._addresses.pop(0)
            name = printable(address[1])
            try:
                sock, connected = self._dial(address)
            except OSError as error:
                self._tried.append(f"{name}: {error.strerror}")
                continue
            self.session.server.address = name
            self.server = Link(sock, self.reactor.now, State.OPEN if connected else State.CONNECTING)
            self._since = self.reactor.now
            self.reactor.watch(self.server.fd, self)
            if connected:
                self.session.connected()
            return
        self.server = None
        self.session.connect_failed("; ".join(self._tried) or "the server's name has no address")

    def _connecting(self, link: Link, mask: int) -> None:
        """The socket says how connecting went."""
        code = link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            link.state = State.OPEN
            link.event(mask)  # the greeting may have come with it
            self.session.connected()
            self._since = self.reactor.now
        else:
            self._give_up_address(os.strerror(code))

    def _give_up_address(self, why: str) -> None:
        link = self.server
        if link is not None:
            self._tried.append(f"{self.session.server.address}: {why}")
            self._drop(link)
        self._connect()

    # ----------------------------------------------------------------------------------------------------- events

    def event(self, fd: int, mask: int) -> None:
        """What epoll reported of one of the two links."""
        if fd == self.client.fd:
            self.client.event(mask)
        elif self.server is not None and fd == self.server.fd:
            if self.server.state is State.CONNECTING:
                self._answered = mask  # whatever it is, connecting is over
            else:
                self.server.event(mask)
        self.reactor.ready(self)

    def read(self) -> None:
        """Read each side once, if it may be read, and feed the session. Never raises."""
        if not self.done:
            self.guard(self._read)

    def guard(self, act: Callable[[], None]) -> None:
        """Our own bug: this session ends, the proxy goes on."""
        try:
            act()
        except Exception as error:
            self._crash(error)

    def _read(self) -> None:
        session, client, server = self.session, self.client, self.server
        if self._answered and server is not None:
            mask, self._answered = self._answered, 0
            if server.state is State.CONNECTING:
                self._connecting(server, mask)
                server = self.server
        if self._tls is not None and session.securing is not None:
            self._tls.advance()
            client, server = self.client, self.server
        if server is not None and server.readable:
            if server.state is State.OPEN:
                if session.wants(Side.SERVER):
                    if not session.commands and not session.progress and client.readable and client.talked():
                        session.early_talk()
                    self._receive(server, Side.SERVER, SMALL)
            elif server.state is State.LINGERING:
                self._discard(server)
        if client.readable:
            if client.state is State.OPEN:
                if session.wants(Side.CLIENT):
                    self._receive(client, Side.CLIENT, LARGE if session.receiving else SMALL)
                elif client.ended:
                    self._look_for_reset()
            elif client.state is State.LINGERING:
                self._discard(client)
        if session.progress != self._progress:
            self._progress = session.progress
            self._since = self.reactor.now
            if not session.receiving:
                self.content_at = 0.0

    def _receive(self, link: Link, side: Side, size: int) -> None:
        session = self.session
        try:
            data = link.receive(size)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not session.closed:
                session.note(Kind.VIOLATION, anomaly="tls-broken", side=side.value, why=error.reason or str(error))
            self._lost(link, side)
            return
        if data is None:
            return
        if not data:
            link.readable = False
            if link.truncated and cut_short(session, side):
                self._lost(link, side)
                return
        if side is Side.SERVER:
            session.server_sent(data)
            return
        if session.receiving:
            self._since = self.reactor.now
            if self.content_at == 0.0:
                self.content_at = self.reactor.now
                self.content_from = link.received - len(data)
        session.client_sent(data)

    def _look_for_reset(self) -> None:
        """A client that is not read just now and whose link broke: nothing can be told any more."""
        if self.client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost(self.client, Side.CLIENT)

    def _lost(self, link: Link, side: Side) -> None:
        """The link broke (reset, unreachable, cut within TLS): its end to the session, but nothing can be sent."""
        self._drop(link)
        if side is Side.SERVER:
            self.session.to_server.clear()
            self.session.server_sent(b"")
        else:
            self.session.client_lost()

    def _discard(self, link: Link) -> None:
        """What comes after our last word."""
        try:
            data = link.receive(SMALL)
        except OSError:
            data = b""
        if data == b"":
            self._drop(link)

    # ----------------------------------------------------------------------------------------------------- sending

    def write(self) -> None:
        """Send what the session says, carry out its effects. Never raises."""
        self._on_record = len(self.session.to_client)
        if not self.done:
            self.guard(self._write)
        if not self.done:
            self.guard(self._after)

    def _write(self) -> None:
        session, server, client = self.session, self.server, self.client
        if session.to_server or session.incoming is not None or (server is not None and server.unsent) or self._shut:
            self._write_server()
        if session.effects:
            self._carry_out()
        if session.to_client or client.unsent:
            if client.state is State.OPEN or client.state is State.FLUSHING:
                if not client.blocked:
                    try:
                        client.send(session.to_client, self.reactor.now)
                    except OSError:
                        self._lost(client, Side.CLIENT)
                        self._carry_out()
            else:
                session.to_client.clear()
        if client.state is State.FLUSHING and not session.to_client and not client.unsent:
            self._let_go(client, Side.CLIENT)
        server = self.server
        if server is not None and server.state is State.FLUSHING and not session.to_server and not server.unsent:
            self._let_go(server, Side.SERVER)
        if self._tls is not None and session.securing is not None:
            self._tls.go()

    def _write_server(self) -> None:
        session, server = self.session, self.server
        if server is None or server.state not in (State.OPEN, State.FLUSHING):
            if server is None or server.state is not State.CONNECTING:
                session.to_server.clear()
            return
        for _ in range(8):  # held-back content, a piece at a time; the rest in later turns
            if (session.to_server or server.unsent) and not server.blocked:
                try:
                    server.send(session.to_server, self.reactor.now)
                except OSError:
                    session.to_server.clear()
                    server.readable = server.ended = True  # it may have said why before it went: read that first
                    return
            if session.to_server or server.unsent or session.incoming is None:
                if self._shut and not (session.to_server or server.unsent):
                    self._shut = False
                    server.end()
                return
            session.drained()
            if not session.to_server:
                return
        self.reactor.ready(self)

    def _carry_out(self) -> None:
        effects, self.session.effects = self.session.effects, []
        for effect in effects:
            if isinstance(effect, Ask):
                if self._ask is None:
                    raise AssertionError("rules that ask have somebody to ask")
                self._ask(self, effect)
                continue
            if isinstance(effect, Dial):
                self._dialled(effect)
                continue
            link = self.client if effect.side is Side.CLIENT else self.server
            if link is None or link.state is State.CLOSED:
                continue
            if isinstance(effect, Abort):
                self._drop(link, reset=True)
            elif isinstance(effect, Shut):
                self._shut = True
                if link.state is not State.CONNECTING:
                    self._write_server()
            elif isinstance(effect, Close):
                if link.state is State.CONNECTING:
                    self._drop(link)
                else:
                    link.state = State.FLUSHING
                    link.moved_at = self.reactor.now  # LINGER runs from here
            else:
                self._secure(effect)

    def _secure(self, effect: PrepareTLS | StartTLS) -> None:
        if self._tls is None:
            if self._listener_tls is None:
                raise AssertionError("a listener without TLS has a posture with it")
            self._tls = Handshakes(self, self._listener_tls)
        self._tls.carry_out(effect)

    def _let_go(self, link: Link, side: Side) -> None:
        """Everything has been sent: close so that it arrives."""
        if side is Side.SERVER or (self.session.said_goodbye and not link.readable):
            self._drop(link)
            return
        link.shut()
        link.moved_at = self.reactor.now
        if link.readable:
            self.reactor.ready(self)

    def _drop(self, link: Link, *, reset: bool = False) -> None:
        if link.state is not State.CLOSED:  # else its number may be another link's by now
            self.reactor.forget(link.fd)
            link.close(reset=reset)

    def _after(self) -> None:
        """Over? Or is there more to read that no edge will tell of?"""
        client, server, session = self.client, self.server, self.session
        self._on_record = len(session.to_client)
        if client.state is State.CLOSED and (server is None or server.state is State.CLOSED):
            self._finish()
            return
        if (
            (client.readable and client.state is State.OPEN and session.wants(Side.CLIENT))
            or (client.readable and client.state is State.LINGERING)
            or (server is not None and server.readable and server.state is State.OPEN and session.wants(Side.SERVER))
            or session.effects
        ):
            self.reactor.ready(self)

    def _finish(self) -> None:
        if not self.done:
            self.done = True
            self._closed(self)

    def _crash(self, error: Exception) -> None:
        """421 4.3.0 if it can still be told, and both links closed. What was not yet on record is not told."""
        self._failed(self, error)
        session, client = self.session, self.client
        if self.server is not None:
            self._drop(self.server, reset=True)
        if self._crashed or client.state not in (State.OPEN, State.FLUSHING) or not session.tellable:
            self._drop(client)
            self._finish()
            return
        self._crashed = True
        session.closed = True  # it is asked nothing more
        session.incoming = None
        session.to_server.clear()
        session.effects.clear()
        del session.to_client[self._on_record :]
        session.to_client += say.INTERNAL.plain.raw
        client.state = State.FLUSHING
        client.moved_at = self.reactor.now
        self.reactor.ready(self)

    def abandon(self) -> None:
        """Drop both links as they are: the proxy ends."""
        if not self.done:
            self._drop(self.client)
            if self.server is not None:
                self._drop(self.server, reset=True)
            self._finish()

    # ---------------------------------------------------------------------------------------------------- patience

    def check(self) -> None:
        """Called about once a second: is anyone waited for beyond patience? Never raises."""
        if not self.done and not self.reactor.stalled:
            self.guard(self._check)

    def _check(self) -> None:
        now = self.reactor.now
        session, table = self.session, self.session.patience_table
        client, server = self.client, self.server
        if client.state in (State.LINGERING, State.FLUSHING) or session.closed:
            if now - max(client.moved_at, self.waiting_since) > LINGER:
                self._drop(client)
                if server is not None:
                    self._drop(server)
                self._finish()
            return
        if server is not None and server.state is State.CONNECTING:
            if now - self.waiting_since > table.connect:
                self._give_up_address("no answer")
                self.reactor.ready(self)
            return
        side, anomaly = out_of_patience(self, now)
        if side is not None:
            session.timed_out(side, anomaly)
            self.reactor.ready(self)
        elif server is not None and now - max(server.moved_at, self._kept_alive) > KEEP_ALIVE:
            self._kept_alive = now
            session.keep_alive()
            self.reactor.ready(self)

    @property
    def waiting_since(self) -> float:
        """When the conversation last got on, or last could."""
        return max(self._since, self.reactor.resumed_at)

    def stop(self) -> None:
        """Stop now: 421 to the client, whatever it was doing. Never raises."""
        if not self.done and not self.session.closed:
            self.guard(self.session.stop)
            self.reactor.ready(self)

    def drain(self) -> None:
        """Stop when what is in flight is done. Never raises."""
        if not self.done and not self.session.closed:
            self.guard(self.session.drain)
            self.reactor.ready(self)

"""A link under TLS: what is sent when the window is full, and every way it can end."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from select import EPOLLIN, EPOLLOUT, EPOLLRDHUP

import pytest

from smtpproxy.net.link import Link, State
from smtpproxy.net.securelink import OWN, PIECE, SecureLink
from smtpproxy.tls.channel import Channel, HandshakeError
from smtpproxy.tls.contexts import for_client, for_server
from tests.tls.maker import made

GOOD = made("mx.example", names=("mx.example",))
NOW = 5.0
SIZE = 65_536


class Peer:
    """The client's end, driven by hand; every wait has a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(5)
        self.socket = sock
        self.channel = Channel(for_server(verify=False), server_side=False, hostname="mx.example")

    def send(self, octets: bytes) -> None:
        """Encrypted."""
        self.channel.send(octets)
        self.flush()

    def flush(self) -> None:
        """What there is of TLS's own."""
        self.socket.sendall(self.channel.outgoing())

    def some(self) -> bytes:
        """What content comes next; b"" if it is no whole record."""
        octets = self.socket.recv(SIZE)
        assert octets, "the end"
        return self.channel.receive(octets)

    def read(self, count: int) -> bytes:
        """So many octets of content."""
        got = bytearray()
        while len(got) < count:
            got += self.some()
        return bytes(got)


@contextmanager
def _links(buffers: int = 0) -> Iterator[tuple[SecureLink, Peer]]:
    """A link before its handshake, and the peer; `buffers` octets of the kernel's on both sides."""
    listening = socket.create_server(("127.0.0.1", 0))
    peer = socket.socket()
    if buffers:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
    peer.connect(listening.getsockname())
    ours, _ = listening.accept()
    listening.close()
    ours.setblocking(False)
    if buffers:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    link = SecureLink(Link(ours, 1.0), Channel(for_client(GOOD.pem, GOOD.key_pem), server_side=True))
    with peer, ours:
        yield link, Peer(peer)


def _shake(link: SecureLink, peer: Peer) -> None:
    """The handshake, and the tickets that come behind it."""
    done = peer.channel.handshake()
    peer.flush()
    while not done:
        _readable(link)
        assert not link.handshake(NOW)
        done = peer.channel.handshake(peer.socket.recv(SIZE))
    peer.flush()
    _readable(link)
    assert link.handshake(NOW)
    peer.channel.receive(peer.socket.recv(SIZE))


def _readable(link: SecureLink) -> None:
    """The kernel has it: the loopback is not at once."""
    link.socket.settimeout(5)
    link.socket.recv(1, socket.MSG_PEEK)
    link.socket.setblocking(False)
    link.event(EPOLLIN)


@contextmanager
def _connected(buffers: int = 0) -> Iterator[tuple[SecureLink, Peer]]:
    with _links(buffers) as (link, peer):
        _shake(link, peer)
        yield link, peer


def _received(link: SecureLink) -> bytes | None:
    _readable(link)
    return link.receive(SIZE)


# ------------------------------------------------------------------------------------------------------- content


def test_a_handshake_and_an_octet_each_way() -> None:
    with _connected() as (link, peer):
        peer.send(b"EHLO me\r\n")
        assert _received(link) == b"EHLO me\r\n"
        octets = bytearray(b"250 mx\r\n")
        assert link.send(octets, 7.0)
        assert not octets
        assert peer.read(8) == b"250 mx\r\n"
        assert (link.received, link.sent, link.moved_at) == (9, 8, 7.0)


def test_it_takes_over_from_the_link_in_clear() -> None:
    """Counted is what SMTP said, not what TLS made of it."""
    with _links() as (link, _):
        clear = Link(link.socket, 3.0)
        clear.received, clear.sent, clear.blocked = 10, 20, True
        found = SecureLink(clear, link.channel)
        assert (found.fd, found.received, found.sent, found.blocked) == (clear.fd, 10, 20, True)
        assert (found.moved_at, found.state, found.readable) == (3.0, State.OPEN, True)


def test_content_that_came_with_the_handshake_is_given_without_a_new_event() -> None:
    with _links() as (link, peer):
        peer.channel.handshake()
        peer.flush()
        _readable(link)
        assert not link.handshake(NOW)
        peer.channel.handshake(peer.socket.recv(SIZE))
        peer.channel.send(b"EHLO me\r\n")
        peer.flush()
        _readable(link)
        assert link.handshake(NOW)
        assert link.readable
        assert link.receive(SIZE) == b"EHLO me\r\n"
        assert link.receive(SIZE) is None
        assert not link.readable


def test_no_octets_and_half_a_record_are_nothing_yet() -> None:
    with _connected() as (link, peer):
        assert link.receive(SIZE) is None
        peer.channel.send(b"NOOP\r\n")
        wire = peer.channel.outgoing()
        peer.socket.sendall(wire[:-1])
        assert _received(link) is None
        peer.socket.sendall(wire[-1:])
        assert _received(link) == b"NOOP\r\n"
        assert not link.talked()


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_any_size_arrives_as_it_was(size: int) -> None:
    with _connected() as (link, peer):
        octets = bytearray(bytes(range(251)) * (size // 251 + 1))[:size]
        body = bytes(octets)
        got = b""
        while not link.send(octets, NOW):
            got += peer.some()
        got += peer.read(size - len(got))
        assert got == body
        assert link.sent == size


def test_a_full_window_keeps_what_was_not_taken() -> None:
    with _connected(4096) as (link, peer):
        body = bytes(range(256)) * 4096
        octets = bytearray(body)
        assert not link.send(octets, NOW)
        assert link.blocked
        assert link.unsent
        assert len(octets) >= len(body) - 12 * PIECE  # bounded: what the kernel took, and one piece
        left = len(octets)
        assert not link.send(octets, NOW)  # nothing is encrypted again
        assert len(octets) == left
        got = bytearray()
        while not link.send(octets, NOW):
            link.event(EPOLLOUT)
            got += peer.some()
        got += peer.read(len(body) - len(got))
        assert got == body
        assert link.sent == len(body)
        assert not link.unsent


def test_what_tls_itself_sends_in_between_doubles_nothing() -> None:
    """The window was full, the peer has read, and TLS has an answer of its own before the relay sends again."""

    class Answers(Channel):
        __slots__ = ()

        def receive(self, octets: bytes) -> bytes:
            """As always, and a record of content stands for an answer."""
            data = super().receive(octets)
            self.send(b"!")
            return data

    with _links(4096) as (link, peer):
        link.channel = Answers(for_client(GOOD.pem, GOOD.key_pem), server_side=True)
        _shake(link, peer)
        body = b"".join(b"%07d\n" % number for number in range(40_000))
        octets = bytearray(body)
        assert not link.send(octets, NOW)
        got = bytearray()
        while len(got) - got.count(b"!") < len(body):
            got += peer.some()
            if octets:
                peer.send(b"x")
                assert _received(link) == b"x"
                link.send(octets, NOW)
        assert got.replace(b"!", b"") == body
        assert link.sent == len(body)


def test_a_peer_that_asks_for_answers_and_takes_none_is_let_go() -> None:
    """Key updates, or tries to renegotiate: each is answered, and what is not taken is not kept without end."""

    class Answers(Channel):
        __slots__ = ()

        def receive(self, octets: bytes) -> bytes:
            """As always, and a record of content stands for an answer."""
            data = super().receive(octets)
            self.send(bytes(1000))
            return data

    with _links(4096) as (link, peer):
        link.channel = Answers(for_client(GOOD.pem, GOOD.key_pem), server_side=True)
        _shake(link, peer)

        def answered() -> bytes | None:
            peer.send(b"x")
            return _received(link)

        with pytest.raises(OSError, match="takes none"):
            all(answered() for _ in range(10_000))
        assert OWN < link.channel.pending < 2 * OWN


def test_a_peer_that_is_gone_is_an_error() -> None:
    with _connected() as (link, peer):
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.socket.close()
        with pytest.raises(ConnectionResetError):
            _received(link)
        with pytest.raises(BrokenPipeError):
            link.send(bytearray(b"x"), NOW)
        link.close()


# ----------------------------------------------------------------------------------------------------------- the end


def test_close_notify_is_the_end_and_nothing_behind_it_is_read() -> None:
    """CVE-2026-45185: what stands in clear behind it, in the same segment or in the next, is nobody's command."""
    with _connected() as (link, peer):
        peer.channel.send(b"NOOP\r\n")
        peer.socket.sendall(peer.channel.outgoing() + peer.channel.close() + b"MAIL FROM:<>\r\n")
        assert _received(link) == b"NOOP\r\n"
        assert link.readable  # the end is told by the next read, whatever the kernel says
        peer.socket.sendall(b"RCPT TO:<b@y.example>\r\n")
        for _ in range(3):
            assert link.receive(SIZE) == b""
        assert not link.truncated
        assert link.received == 6


def test_an_end_without_close_notify_is_known() -> None:
    with _connected() as (link, peer):
        peer.send(b"NOOP\r\n")
        peer.socket.shutdown(socket.SHUT_WR)
        assert _received(link) == b"NOOP\r\n"
        assert _received(link) == b""
        assert link.truncated
        assert link.receive(SIZE) == b""


def test_what_is_no_tls_is_an_error() -> None:
    with _connected() as (link, peer):
        peer.socket.sendall(b"MAIL FROM:<a@x.example>\r\n")
        with pytest.raises(ssl.SSLError):
            _received(link)
        link.close()
        assert peer.socket.recv(SIZE)[:1] in (b"\x15", b"\x17")  # an alert, and no word in clear


def test_an_error_behind_content_is_told_behind_it() -> None:
    with _connected() as (link, peer):
        peer.channel.send(b"NOOP\r\n")
        peer.socket.sendall(peer.channel.outgoing() + b"MAIL FROM:<a@x.example>\r\n")
        assert _received(link) == b"NOOP\r\n"
        assert link.readable  # without a new event
        with pytest.raises(ssl.SSLError):
            link.receive(SIZE)


@pytest.mark.parametrize("how", ["shut", "close"])
def test_we_end_it_with_close_notify(how: str) -> None:
    with _connected() as (link, peer):
        assert link.send(bytearray(b"221 Bye\r\n"), NOW)
        getattr(link, how)()
        assert peer.read(9) == b"221 Bye\r\n"
        assert peer.channel.receive(b"") == b""
        while not peer.channel.finished:
            octets = peer.socket.recv(SIZE)
            assert octets
            peer.channel.receive(octets)
        assert peer.socket.recv(SIZE) == b""
        assert link.state is (State.LINGERING if how == "shut" else State.CLOSED)


def test_a_reset_is_no_end_in_order() -> None:
    with _connected() as (link, peer):
        link.close(reset=True)
        with pytest.raises(ConnectionResetError):
            peer.socket.recv(SIZE)
        assert not peer.channel.finished


def test_no_close_notify_in_the_middle_of_a_record() -> None:
    """What is half sent can't be ended in order."""
    with _connected(4096) as (link, peer):
        assert not link.send(bytearray(1_000_000), NOW)
        link.close()
        wire = b""
        while octets := peer.socket.recv(SIZE):
            wire += octets
        peer.channel.receive(wire)
        assert not peer.channel.finished


def test_what_comes_while_it_lingers_is_dropped_unread() -> None:
    with _connected() as (link, peer):
        link.shut()
        peer.socket.sendall(b"no TLS at all")
        assert _received(link) == b"no TLS at all"  # for nobody
        peer.socket.shutdown(socket.SHUT_WR)
        link.event(EPOLLRDHUP)
        assert _received(link) == b""


# ----------------------------------------------------------------------------------------------------- the handshake


def test_a_handshake_that_fails_says_so_to_the_peer() -> None:
    with _links() as (link, peer):
        peer.socket.sendall(b"\x16\x03\x01\x00\x05\x63\x00\x00\x01\x00")
        _readable(link)
        with pytest.raises(HandshakeError):
            link.handshake(NOW)
        assert peer.socket.recv(SIZE)[:1] == b"\x15"


def test_a_handshake_that_the_peer_ends() -> None:
    with _links() as (link, peer):
        peer.socket.shutdown(socket.SHUT_WR)
        _readable(link)
        with pytest.raises(EOFError):
            link.handshake(NOW)


def test_a_handshake_whose_answer_is_not_taken_goes_on_later() -> None:
    """A full window in the middle of our flight, and the rest when there is room."""
    chain = GOOD.pem + b"".join(made(f"{number}" + "x" * 60, ca=True).pem for number in range(40))
    with _links(2304) as (link, peer):
        link.channel = Channel(for_client(chain, GOOD.key_pem), server_side=True)
        peer.channel.handshake()
        peer.flush()
        _readable(link)
        assert not link.handshake(NOW)
        done = False
        while not done:
            done = peer.channel.handshake(peer.socket.recv(100))
            link.send(bytearray(), NOW)
        peer.flush()
        _readable(link)
        assert link.handshake(NOW)
        assert len(peer.channel.chain()) == 41

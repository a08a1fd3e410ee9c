"""One link: a non-blocking TCP socket, as the relay sees it.

Links are watched edge-triggered: the kernel says once that octets have come or that room is free again, and `readable`
and `blocked` remember it until a read or a send finds otherwise. So nothing is ever armed again, and a read that would
only fail is never tried.
"""

import contextlib
import socket
import struct
from enum import Enum, auto
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST


class State(Enum):
    """Where a link is in its life."""

    CONNECTING = auto()
    OPEN = auto()
    FLUSHING = auto()  # closed as soon as what is to be sent has been sent
    LINGERING = auto()  # our side is shut; what still comes is dropped, so that our last reply is not lost to RST
    CLOSED = auto()

    __hash__ = object.__hash__


class Link:
    """A socket and what the kernel last said of it."""

    __slots__ = ("blocked", "ended", "fd", "moved_at", "readable", "received", "sent", "socket", "state")

    unsent: bytes = b""  # octets of TLS that the kernel has not taken yet; SMTP's own wait in the session
    truncated = False  # TLS, and it ended without close_notify

    def __init__(self, sock: socket.socket, now: float, state: State = State.OPEN) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.state = state
        self.readable = False
        self.ended = False  # the kernel said that the peer has shut its side: read until b""
        self.blocked = False  # the peer's window is full
        self.received = 0  # octets
        self.sent = 0
        self.moved_at = now  # when octets were last sent

    def event(self, mask: int) -> None:
        """What epoll said."""
        if mask & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.readable = True
            if mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                self.ended = True
        if mask & EPOLLOUT:
            self.blocked = False

    def talked(self) -> bool:
        """Octets are there to be read (and not only the end, or a reset)."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def receive(self, size: int) -> bytes | None:
        """Up to `size` octets; b"" at the end, None if there are none now.

        Raises:
            OSError: the link broke.
        """
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            self.readable = False
            return None
        # Fewer than asked for means the kernel's buffer is empty (epoll(7)): an edge will tell of more.
        if len(data) < size and not self.ended:
            self.readable = False
        self.received += len(data)
        return data

    def send(self, octets: bytearray, now: float) -> bool:
        """Send what the kernel takes and take it off; True when nothing is left.

        Raises:
            OSError: the link broke.
        """
        try:
            count = self.socket.send(octets)
        except BlockingIOError:
            self.blocked = True
            return False
        self.sent += count
        self.moved_at = now
        if count == len(octets):
            octets.clear()
            return True
        del octets[:count]
        self.blocked = True
        return False

    def shut(self) -> None:
        """Nothing more will be sent, and what comes is dropped."""
        self.state = State.LINGERING
        self.end()

    def end(self) -> None:
        """The peer reads the end behind our last octet."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close; with `reset` by RST, so that nobody takes what was sent for a whole."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.fd = -1  # the kernel gives the number to the next who asks
        if reset:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            self.socket.close()

"""A link under TLS: a Link whose octets go through a Channel.

To the relay it is a link like any other: `receive` gives octets in clear, `send` takes them. Two things are its own:

- What was encrypted must be sent as it is, in order. So `send` encrypts a piece, and takes it off the session's buffer
  only when the kernel has taken all of its octets: a full window is seen, and bounded, where it always is.
- There is a real end (close_notify) and a cut (`truncated`). Behind either nothing is read; what it means is the
  session's to say.
"""

import contextlib
import errno
import ssl

from smtpproxy.net.link import Link, State
from smtpproxy.tls.channel import Channel

PIECE = 65_536  # octets encrypted at once
OWN = 16_384  # octets of TLS's own answers that wait: a peer that asks for more of them and takes none is no peer


class SecureLink(Link):
    """The socket of a link, with TLS on it. The link it was made from is not to be used any more."""

    __slots__ = ("_covers", "_waiting", "channel", "leaf", "truncated", "unsent")

    def __init__(self, link: Link, channel: Channel) -> None:
        super().__init__(link.socket, link.moved_at, link.state)
        self.readable, self.ended, self.blocked = True, link.ended, link.blocked
        self.received, self.sent = link.received, link.sent
        self.channel = channel
        self.leaf = b""  # the peer's certificate
        self.unsent = b""
        self.truncated = False
        self._covers = 0  # octets in clear that `unsent` stands for
        self._waiting = False  # what came with the handshake's last octets has not been looked at

    # ---------------------------------------------------------------------------------------------- the handshake

    def handshake(self, now: float, octets: bytes = b"") -> bool:
        """Go on with the handshake as far as it goes without waiting; True when it is done.

        Raises:
            HandshakeError: it failed; the alert has been sent, if the kernel took it.
            OSError: the link broke.
            EOFError: the peer ended it.
        """
        channel = self.channel
        while True:
            try:
                done = channel.handshake(octets)
            finally:
                self._flush(now)
            if done:
                self._waiting = channel.waiting
                self.readable = self.readable or self._waiting
                return True
            if not self.readable:
                return False
            try:
                octets = self.socket.recv(PIECE)
            except BlockingIOError:
                self.readable = False
                return False
            if not octets:
                raise EOFError
            if len(octets) < PIECE and not self.ended:
                self.readable = False  # as in Link.receive

    # ------------------------------------------------------------------------------------------------- as any link

    def talked(self) -> bool:
        """What is there can't be told from TLS's own without reading it."""
        return False

    def receive(self, size: int) -> bytes | None:
        """Octets in clear; b"" at the end, None if there are none now.

        Raises:
            OSError: the link broke, what came is no TLS, or TLS's own answers are not taken.
        """
        if self.state is State.LINGERING:
            return super().receive(size)  # it is dropped whatever it is
        channel = self.channel
        if channel.finished:
            self.readable = False
            return b""
        if channel.broken is not None:
            raise channel.broken
        data = b""
        if self._waiting:
            self._waiting = False
            data = channel.receive(b"")
        if not data and not channel.finished:  # tickets only, perhaps: what stands behind them is to be read now
            try:
                octets = self.socket.recv(size)
            except BlockingIOError:
                self.readable = False
                return None
            if not octets:
                channel.ended()
                self.truncated = channel.truncated
                self.readable = False
                return b""
            if len(octets) < size and not self.ended:
                self.readable = False
            data = channel.receive(octets)
        if channel.pending and not self._flush(self.moved_at) and channel.pending > OWN:  # key updates are answered
            raise OSError(errno.ENOBUFS, "the peer asks for answers of TLS and takes none")
        self.received += len(data)
        if self.channel.finished:
            self.readable = True  # the end stands behind what is given now
            return data
        if self.channel.broken is not None:
            self.readable = True  # so does the error
        return data or None

    def send(self, octets: bytearray, now: float) -> bool:
        """Send what the kernel takes and take it off; True when nothing is left.

        Raises:
            OSError: the link broke.
        """
        while self._flush(now):
            if self._covers:  # perhaps sent by whoever had to send something of TLS's own
                self.sent += self._covers
                del octets[: self._covers]
                self._covers = 0
            if not octets:
                return True
            if len(octets) <= PIECE:
                self._covers = len(octets)
                self.channel.send(octets)
            else:
                self._covers = PIECE
                self.channel.send(bytes(octets[:PIECE]))
        return False

    def _flush(self, now: float) -> bool:
        """Send what is encrypted already; False if the kernel does not take it all."""
        channel = self.channel
        while self.unsent or channel.pending:
            if not self.unsent:
                self.unsent = channel.outgoing()
            try:
                count = self.socket.send(self.unsent)
            except BlockingIOError:
                self.blocked = True
                return False
            self.moved_at = now
            self.unsent = self.unsent[count:]
            if self.unsent:
                self.blocked = True
                return False
        return True

    def shut(self) -> None:
        """close_notify, and the end behind it."""
        self._farewell()
        super().shut()

    def close(self, *, reset: bool = False) -> None:
        """Close; in order with close_notify first, with `reset` without it: nobody is to take it for a whole."""
        if not reset and self.state in (State.OPEN, State.FLUSHING):
            self._farewell()
        super().close(reset=reset)

    def _farewell(self) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            if not self.unsent:  # else it would stand in the middle of a record
                self.socket.send(self.channel.close())

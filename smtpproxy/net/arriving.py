"""A connection whose PROXY header is awaited: who the client is, is not known before.

The header is looked at where it waits (MSG_PEEK) and taken off when it is whole, to the octet: what stands behind it is
the client's, and stays for the relay. It has `PATIENCE` to come in; nobody is connected to before.
"""

import contextlib
import socket
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLRDHUP

from smtpproxy.net.origin import Origin
from smtpproxy.net.proxyheader import LONGEST, HeaderError, parse
from smtpproxy.net.reactor import Reactor

_ENDED = EPOLLRDHUP | EPOLLHUP | EPOLLERR
PATIENCE = 10.0  # seconds; a load balancer sends it at once


class Arriving:
    """One such connection.

    `come` is called once: with what is known of it then, and why it is refused, or "".
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        origin: Origin,
        come: Callable[["Arriving", Origin, str], None],
    ) -> None:
        self._reactor = reactor
        self.socket = sock
        self._origin = origin
        self._come = come
        self._until = reactor.now + PATIENCE
        reactor.watch(sock.fileno(), self)

    def event(self, fd: int, mask: int) -> None:
        """Octets came, perhaps."""
        try:
            octets = self.socket.recv(LONGEST, socket.MSG_PEEK)
            header = parse(octets) if octets else None
            if header is not None:
                self.socket.recv(header.length)
                self._over(self._origin.told(header), "")
            elif not octets or mask & _ENDED:  # what is there of one will never be more
                self._over(self._origin, "it ended before a PROXY header")
        except BlockingIOError:
            pass
        except HeaderError as error:
            self._over(self._origin, f"no PROXY header: {error}")
        except OSError as error:
            self._over(self._origin, f"it broke before a PROXY header: {error.strerror}")

    def check(self, now: float) -> None:
        """Called about once a second."""
        if not self._reactor.stalled and now > max(self._until, self._reactor.resumed_at + PATIENCE):
            self._over(self._origin, f"no PROXY header within {PATIENCE:.0f} s")

    def _over(self, origin: Origin, why: str) -> None:
        self._reactor.forget(self.socket.fileno())
        self._come(self, origin, why)

    def drop(self) -> None:
        """The proxy ends."""
        self._reactor.forget(self.socket.fileno())
        with contextlib.suppress(OSError):
            self.socket.close()

"""The way to the server: from which of our addresses, and never to ourselves.

What goes out is known to all workers by both its ends while it lasts, so that whichever of them accepts it, were it to
come back, sees that it is ours.

With the client's own address and port it has the very ends of the client's connection, and would be taken for a client
that uses its port again, or such a client for it. So that one is not made known: the kernel has no second connection
with these ends, and what comes back goes out by another port, which is.
"""

import errno
import socket
from ipaddress import ip_address
from typing import Any

from smtpproxy.net.machine import Where, family_of, plain
from smtpproxy.net.origin import Loops, bind_as, outgoing_key
from smtpproxy.net.tally import Tally

Address = tuple[int, Any]  # family, socket address


class Dial:
    """Opens the server's link of one session; `source` is the address it is to come from, None any of ours."""

    def __init__(self, loops: Loops, tally: Tally, source: Where | None = None) -> None:
        self._loops = loops
        self._tally = tally
        self._source = source
        self._key = b""

    def __call__(self, address: Address) -> tuple[socket.socket, bool]:
        """A socket, and whether it is connected already: else it will be, or fail.

        Raises:
            OSError: it can't be.
        """
        family, where = address
        target = plain(where)
        if ip_address(target[0]).is_unspecified:  # the kernel would take this machine's loopback
            raise OSError(errno.EADDRNOTAVAIL, "that is no address")
        if self._loops.listens(target):
            raise OSError(errno.ELOOP, "this proxy itself listens there")
        if self._source is not None and family != family_of(self._source[0]):
            raise OSError(errno.EAFNOSUPPORT, "not of the family of the client's address")
        self.over()
        try:
            return self._open(family, where, self._source)
        except OSError as error:
            if self._source is None or error.errno != errno.EADDRNOTAVAIL:
                raise
            # From this port to this server there is a connection: an older one of the client's, which is ending here
            # or has just ended, or the one that has come back.
            return self._open(family, where, (self._source[0], 0))

    def _open(self, family: int, where: Any, source: Where | None) -> tuple[socket.socket, bool]:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                bind_as(sock, source)
            try:
                sock.connect(where)  # of an IPv6 zone that is no interface it raises as well
                connected = True
            except BlockingIOError:
                connected = False
            own = plain(sock.getsockname())
            if own != self._source:
                self._key = outgoing_key(own, plain(where))
                self._tally.outgoing(self._key)
        except OSError:
            sock.close()
            raise
        return sock, connected

    def over(self) -> None:
        """The link is closed."""
        if self._key:
            self._tally.over(self._key)
            self._key = b""

"""The listening sockets, as the supervisor holds them.

They are opened once and outlive whoever accepts from them: workers inherit them, a reload keeps those of a listener
that stays where it is, a hand-over passes them on, and systemd may have opened them before we were there. The queue of
connections that wait to be accepted is the socket's, so nothing in it is lost when a worker ends.

Sockets belong to what is written in `listen`. A listener that is given another name keeps them, and so does one on port
0, whose port the kernel chose when they were first opened.
"""

import errno
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from smtpproxy.config import Config, ListenerConfig
from smtpproxy.net.machine import printable
from smtpproxy.net.origin import IPV6_TRANSPARENT, make_transparent, open_sockets
from smtpproxy.net.systemd import Activated, called

STORED = "="  # the first letter of the names we give; no name of a listener begins with it


class ListenError(Exception):
    """A listener can't be opened; the text says which, and why."""


def _mend(entry: ListenerConfig, error: Exception) -> str:
    """Where to look."""
    match error:
        case OSError(errno=errno.EADDRINUSE):
            return f" (`ss -ltnp 'sport = :{entry.listen.port}'` says by whom)"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return f" (no interface has {entry.listen.host})"
    return ""


class Held(NamedTuple):
    """The sockets of one listener."""

    name: str
    listen: str  # as it is written in the configuration
    sockets: tuple[socket.socket, ...]
    unit: bool = False  # a socket unit of systemd's: it goes on to listen when we no longer do

    @property
    def stored_as(self) -> str:
        """The name under which systemd keeps them for us."""
        return called(STORED + self.listen)


def open_all(config: Config, held: Iterable[Held] = ()) -> list[Held]:
    """The sockets of every listener, in the order of the configuration: those that are held, and new ones.

    Raises:
        ListenError: one can't be had; what was opened for it is closed again, and what was held is as it was.
    """
    left = list(held)
    found: list[Held | None] = [_pick(left, entry, same_name=True) for entry in config.listeners]
    opened: list[Held] = []
    made: list[Held] = []
    for entry, one in zip(config.listeners, found, strict=True):
        one = one or _pick(left, entry, same_name=False)
        try:
            if one is None:
                one = Held(entry.name, str(entry.listen), tuple(open_sockets(entry)))
                opened.append(one)
            elif entry.mode == "tproxy":
                _see_to_transparency(one)
        except (OSError, UnicodeError) as error:
            for new in opened:
                close(new)
            why = error.strerror if isinstance(error, OSError) else "the name is not a host's"
            why = f"can't listen on {entry.listen}: {why}{_mend(entry, error)}"
            raise ListenError(why) from error
        made.append(one._replace(name=entry.name))
    return made


def _pick(left: list[Held], entry: ListenerConfig, *, same_name: bool) -> Held | None:
    """One that is held and listens where this listener is to; it is no longer among those left."""
    for one in left:
        if one.listen == str(entry.listen) and (one.name == entry.name or not same_name):
            left.remove(one)
            return one
    return None


def _see_to_transparency(held: Held) -> None:
    """A listener that was none may have become one of `tproxy`; systemd may have made it one without us."""
    for sock in held.sockets:
        six = sock.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if six else (socket.SOL_IP, socket.IP_TRANSPARENT)
        if not sock.getsockopt(level, option):
            make_transparent(sock)


def gone(before: Iterable[Held], now: Iterable[Held]) -> list[Held]:
    """What was held and is no listener's any more."""
    kept = {sock for held in now for sock in held.sockets}
    return [held for held in before if not kept.intersection(held.sockets)]


def close(held: Held) -> None:
    """Let go of them."""
    for sock in held.sockets:
        sock.close()


def from_manager(config: Config, activated: Sequence[Activated]) -> tuple[list[Held], list[Activated]]:
    """What the service manager has opened for us, or kept, by listeners: for the one of the same name
    (`FileDescriptorName=`) or of the same address; and what is nobody's.
    """
    left = list(activated)
    found: list[Held] = []
    for entry in config.listeners:
        listen = str(entry.listen)
        stored = Held(entry.name, listen, ()).stored_as
        fits = [
            one
            for one in left
            if one.name in (entry.name, stored) or (not one.name.startswith(STORED) and _address(one.socket) == listen)
        ]
        left = [one for one in left if one not in fits]
        if fits:
            unit = not any(one.name == stored for one in fits)
            found.append(Held(entry.name, listen, tuple(one.socket for one in fits), unit))
    return found, left


def _address(sock: socket.socket) -> str:
    """Where it is, as a configuration would say it."""
    return printable(sock.getsockname())


def announce(held: Sequence[Held], config: Config, known: Sequence[Held] = ()) -> list[str]:
    """What is said of each socket at a start, or, if others are known already, of each new one; a line each."""
    new = {sock for one in gone(held, known) for sock in one.sockets}
    return [
        f"smtpproxy: listening on {printable(sock.getsockname())} ({_behind(entry)})"
        for one, entry in zip(held, config.listeners, strict=True)
        for sock in one.sockets
        if sock in new
    ]


def _behind(entry: ListenerConfig) -> str:
    """Where its clients get: `server mx.example:25`, `tproxy`, `redirect, server 192.0.2.1:25`."""
    mode = "" if entry.mode == "forward" else str(entry.mode)
    return ", ".join(filter(None, (mode, f"server {entry.server}" if entry.server is not None else "")))

"""What is told of a running proxy: its status on the control socket, and what the service manager wants to hear.

Both are given the same picture of it, a `Status`, which the supervisor makes when it is asked for.
"""

from collections.abc import Callable, Sequence

from smtpproxy.net.control import Control, Status
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.systemd import Notifier

STATUS = 3.0  # seconds between two status lines
EARLY = 0.5  # seconds that a sign of life is given before it is due: as long as the supervisor may sleep


class Telling:
    """Tells. `picture` gives how it goes now.

    Attributes:
        manager: of services.
        quiet: the line is not to be told just now: another one stands there until `ready`.
    """

    def __init__(self, loop: Loop, picture: Callable[[], Status], manager: Notifier) -> None:
        self.manager = manager
        self.quiet = False
        self._loop = loop
        self._picture = picture
        self._control: Control | None = None
        self._path = ""
        self._line = ""
        self._line_at = self._alive_at = float("-inf")

    def open(self, path: str, *, take_over: bool) -> Control | None:
        """The control socket for this path, which may be the one there is; "" is none. It answers once it is `use`d.

        Raises:
            ControlError: there can't be one.
        """
        if path == self._path:
            return self._control
        return Control(path, self._picture, take_over=take_over) if path else None

    def use(self, control: Control | None, path: str) -> None:
        """This one, from here on, and no other."""
        if control is self._control:
            return
        self.close_control()
        self._control, self._path = control, path
        if control is not None:
            self._loop.watch(control.fileno(), control.handle)

    def close_control(self) -> None:
        """Nobody is answered any more."""
        control, self._control, self._path = self._control, None, ""
        if control is not None:
            self._loop.forget(control.fileno())
            control.close()

    def keep(self, held: Sequence[Held]) -> None:
        """Have the manager keep our listening sockets for who is started after us; those of its own it has."""
        self.manager.store((one.stored_as, sock.fileno()) for one in held if not one.unit for sock in one.sockets)

    def ready(self) -> None:
        """It serves, or serves on."""
        self.quiet = False
        self._line = line(self._picture())
        self.manager.ready(self._line)

    def reloading(self, what: str) -> None:
        """Something is under way, until it is `ready`."""
        self.quiet = True
        self.manager.reloading(what)

    def check(self, *, healthy: bool) -> None:
        """Called at least once a second."""
        now = self._loop.now
        if self._control is not None:
            self._control.check()
        if not self.quiet and now - self._line_at >= STATUS:
            self._line_at = now
            if (new := line(self._picture())) != self._line:
                self._line = new
                self.manager.status(new)
        if healthy and self.manager.watchdog and now - self._alive_at >= self.manager.watchdog / 2 - EARLY:
            self._alive_at = now
            self.manager.alive()

    def close(self) -> None:
        """Nothing more is told."""
        self.close_control()
        self.manager.close()


def line(status: Status) -> str:
    """How it goes, in a line."""
    current = [worker for worker in status.workers if worker.generation == status.generation]
    sessions = sum(worker.sessions for worker in current)
    said = f"{_count(len(current), 'worker')}, {_count(sessions, 'session')}"
    earlier = status.sessions - sessions
    return f"{said}; {earlier} more by an earlier configuration" if earlier else said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

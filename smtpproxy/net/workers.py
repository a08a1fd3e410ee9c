"""The supervisor: reads, opens, forks, and never meets a peer. It is all there is to a running proxy but the workers.

It holds the listening sockets; workers inherit them and accept from the one queue that each has. Where they come from
and where they go:

    start       systemd's sockets or new ones; the audit; a signing process if something is to be signed; a generation
                of workers, which accept when the last of them is ready
    SIGHUP      all is read again and a new generation made of it; when that is ready it accepts, and the old one ends
                with its last session. Whatever fails on the way: the new one ends, and what is in force stays
    SIGUSR2     the program is started again and takes over (handover.py); this one ends with its last session
    SIGTERM, SIGINT
                no new connections; what is in flight is finished within the drain time; 421 to the rest. A second one
                stops at once

One reload or hand-over runs at a time, and what is asked for meanwhile is done once after it.

Exit codes: 0 ended in order · 1 stopped at once, or failed while running · 2 what is configured can't be had · 3 a
listener or the audit could not be opened.

What must never happen: that this process waits for anything but its loop once it serves, that a thread runs in it, or
that it reads an octet of a peer.
"""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from smtpproxy import __version__
from smtpproxy.net import handover, listening
from smtpproxy.net.control import ControlError, Status
from smtpproxy.net.forking import HEARD
from smtpproxy.net.founding import CannotServeError, Shared, close_record, found
from smtpproxy.net.generation import Failure, Generation, Phase
from smtpproxy.net.handover import Predecessor, Successor
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.metering import Metering
from smtpproxy.net.picture import STATES, listeners_of, workers_of
from smtpproxy.net.setup import Load, Setup
from smtpproxy.net.systemd import Notifier, activated
from smtpproxy.net.tally import Tallies
from smtpproxy.net.telling import Telling

log = structlog.get_logger()

TICK = 0.5  # seconds between looks at everything
LEAVE_IN = 2.0  # seconds for workers to accept no more; it takes them a turn
MOST_RETIRED = 16  # generations that may wait for their last sessions; the oldest beyond that is stopped
REGIONS = 64  # of the tally: for so many workers at a time, or for so many generations of them
GENERATIONS = MOST_RETIRED + 2
_STOP = (signal.SIGTERM, signal.SIGINT)


def run(setup: Setup, load: Load, command: Sequence[str]) -> int:
    """Serve until told to stop; the exit code.

    Args:
        setup: what to begin with.
        load: reads all of it again.
        command: what starts the program as this one was started.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # workers have mail and keys in memory
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the soft limit is for who uses select(2)
    with contextlib.closing(Supervisor(setup, load, command)) as supervisor:
        return supervisor.run()


class _Leaving(NamedTuple):
    """A generation that was told to drain, and what is done when it accepts no more."""

    generation: Generation
    until: float
    then: Callable[[], None]


class Supervisor:
    """The supervisor of this process."""

    def __init__(self, setup: Setup, load: Load, command: Sequence[str]) -> None:
        self._first = setup
        self._load = load
        self._command = tuple(command)
        self._loop = Loop()
        self._loop.hear(HEARD)
        self._telling = Telling(self._loop, self._status, Notifier.from_environment())
        self._predecessor: Predecessor | None = handover.inherited(self._loop)
        self._successor: Successor | None = None
        self._handed_over = False
        self._stopping = False
        self._signalled = False  # by a signal: a successor may have said so before, and then the signal is the first
        self._tallies = Tallies(max(REGIONS, GENERATIONS * setup.config.worker_count))
        self._metering = Metering(self._tallies.regions)
        self._coming: Generation | None = None
        self._current: Generation | None = None
        self._retired: list[Generation] = []
        self._leaving: _Leaving | None = None
        self._count = 0  # of generations
        self._restarts = 0  # of workers, in generations that are gone
        self._since = self._loaded_at = time.time()
        self._wanted: set[int] = set()  # signals that are acted on when nothing else is under way
        self._exit_code = 0

    def run(self) -> int:
        """Serve; the exit code."""
        try:
            self._come(self._first)
        except CannotServeError as error:
            print(f"smtpproxy: {error}", file=sys.stderr, flush=True)
            return error.failure.code
        while not self._over:
            for number in self._loop.wait(TICK):
                if number in _STOP:
                    self._stop()
                elif number in (signal.SIGHUP, signal.SIGUSR2):
                    self._want(number)
            self._look()
        return self._exit_code

    @property
    def _generations(self) -> list[Generation]:
        """Those there are, the oldest first."""
        return [*self._retired, *filter(None, (self._current, self._coming))]

    @property
    def _over(self) -> bool:
        return not self._generations and (self._predecessor is None or self._predecessor.ended)

    @property
    def _shared(self) -> list[Shared]:
        """The locks there are."""
        shared = [Shared(generation.record.lock, generation.record.file) for generation in self._generations]
        return shared if self._predecessor is None else [*shared, self._predecessor.shared]

    # --------------------------------------------------------------------------------------------------- generations

    def _come(self, setup: Setup) -> None:
        """Have a generation of workers prepare themselves.

        Raises:
            CannotServeError: it can't; all is as it was before.
        """
        held = self._held(setup)
        try:
            coming = found(
                self._count + 1,
                setup,
                held,
                self._shared,
                loop=self._loop,
                tallies=self._tallies,
                metering=self._metering,
                patient=self._predecessor is not None,
            )
        except OSError as error:  # no descriptor, no process
            raise CannotServeError(Failure(1, error.strerror or str(error))) from error
        self._count += 1
        self._coming = coming
        coming.start()

    def _held(self, setup: Setup) -> Sequence[Held]:
        """The sockets there are already."""
        if self._current is not None:
            return self._current.held
        if self._predecessor is not None:
            return self._predecessor.held
        held, strangers = listening.from_manager(setup.config, activated())
        for name, sock in strangers:
            log.warning("a socket of the service manager is no listener's", name=name, address=sock.getsockname())
            self._telling.manager.unstore(name)
            sock.close()
        return held

    def _look_at_coming(self, coming: Generation) -> None:
        """Is it ready, or will it never be?"""
        if coming.failure is None and coming.ready:
            if self._current is None and self._predecessor is not None and not self._predecessor.lets_go:
                self._predecessor.ready()
                return
            self._switch(coming)
        if coming.failure is not None:
            self._failed(coming, coming.failure)

    def _switch(self, coming: Generation) -> None:
        """The new one accepts, the old one does no more."""
        config = coming.setup.config
        control = None
        try:
            take_over = self._current is None and self._predecessor is not None
            control = self._telling.open(config.process.control, take_over=take_over)
        except ControlError as error:
            if not take_over:
                coming.failure = Failure(3, str(error))
                return
            log.error("there is no control socket", why=str(error))  # and nobody who could go on in our place
        before, self._current, self._coming = self._current, coming, None
        coming.go()
        self._metering.switch()
        self._loaded_at = time.time()
        known: tuple[Held, ...] = ()
        if before is not None:
            known = before.held
            before.retire()
            self._retired.append(before)
        elif self._predecessor is not None:
            known = self._predecessor.held
        for held in listening.gone(known, coming.held):
            self._telling.manager.unstore(held.stored_as)
            listening.close(held)
        for line in listening.announce(coming.held, config, known if before is not None else ()):
            print(line, file=sys.stderr, flush=True)
        self._telling.use(control, config.process.control)
        self._telling.keep(coming.held)
        if before is None:
            self._telling.ready()
        else:
            self._leave(before, then=self._reloaded)

    def _leave(self, generation: Generation, *, then: Callable[[], None]) -> None:
        """Go on when none of its workers accepts any more, or when that has taken too long."""
        self._leaving = _Leaving(generation, self._loop.now + LEAVE_IN, then)

    def _look_at_leaving(self, leaving: _Leaving) -> None:
        if not leaving.generation.accepts or self._stopping or self._loop.now > leaving.until:
            self._leaving = None
            leaving.then()

    def _reloaded(self) -> None:
        if self._current is not None:
            log.info("reloaded: new sessions are by what was read now", workers=len(self._current.slots))
            self._telling.ready()

    def _failed(self, coming: Generation, failure: Failure) -> None:
        """It will not come."""
        self._coming = None
        self._metering.stay()
        coming.end()
        self._retired.append(coming)
        if self._current is not None:
            for held in listening.gone(coming.held, self._current.held):
                listening.close(held)
            self._not_reloaded(failure.text)
            return
        self._exit_code = failure.code
        print(f"smtpproxy: {failure.text}", file=sys.stderr, flush=True)
        self._leave_predecessor()

    def _look_at_generations(self) -> None:
        for generation in self._generations:
            generation.reap()
            generation.check()
        for generation in tuple(self._retired):
            if generation.over:
                self._retired.remove(generation)
                self._restarts += generation.deaths
                if generation.unclean and self._stopping:
                    self._exit_code = 1
                generation.close()
                close_record(generation.record, self._shared)
        for generation in self._retired[:-MOST_RETIRED]:
            if generation.phase is Phase.RETIRED:
                log.warning("too many generations wait for their last sessions: the oldest one is stopped")
                generation.stop()

    # -------------------------------------------------------------------------------------- reload and hand-over

    def _reload(self) -> None:
        """Read everything again; sessions that run keep what they began with."""
        self._telling.reloading("reloading")
        try:
            setup = self._load()
        except Exception as error:  # our own bug, and no reason to end
            log.error("reading the configuration failed", exc_info=error)
            setup = None
        if setup is None:
            self._not_reloaded("what is wrong has been said")
            return
        try:
            self._come(setup)
        except CannotServeError as error:
            self._not_reloaded(str(error))

    def _not_reloaded(self, why: str) -> None:
        log.error("not reloaded: the configuration and the rules in force stay", why=why)
        self._telling.ready()

    def _hand_over(self, current: Generation) -> None:
        """Start the program again."""
        if os.getpid() == 1:
            log.error("not handed over: this is the first process of a container, which would end with it")
            return
        self._telling.reloading("handing over")
        try:
            self._successor = Successor(self._command, current.held, current.record, self._loop)
        except OSError as error:
            self._not_handed_over(f"it can't be started: {error.strerror}")
            return
        log.info("handing over", to=self._successor.pid)

    def _not_handed_over(self, why: str) -> None:
        log.error("not handed over: this process goes on", why=why)
        self._telling.ready()

    def _look_at_successor(self, successor: Successor, current: Generation) -> None:
        """Is it ready, or will it never be?"""
        if why := successor.failure():
            self._drop_successor(successor)
            self._not_handed_over(why)
        elif successor.ready:
            self._handed_over = True
            self._telling.manager.mainpid(successor.pid)
            self._telling.close()
            self._metering.leave()
            self._let_go_of(current)
            current.retire()
            self._leave(current, then=lambda: self._let_go(successor))

    def _let_go(self, successor: Successor) -> None:
        """It is the service from here on."""
        if signal.SIGHUP in self._wanted:  # it may have read what there was before
            os.kill(successor.pid, signal.SIGHUP)
        self._wanted.clear()
        successor.go()
        log.info("handed over: this process ends with its last session", to=successor.pid)

    def _let_go_of(self, generation: Generation) -> None:
        """Of its sockets; it is to end."""
        for held in generation.held:
            listening.close(held)
        self._retired.append(generation)
        if generation is self._current:
            self._current = None
        else:
            self._coming = None

    def _drop_successor(self, successor: Successor) -> None:
        successor.kill()
        self._successor = None

    def _leave_predecessor(self) -> None:
        """It goes on as if nothing had happened, unless it has let us go."""
        if self._predecessor is not None and not self._predecessor.lets_go:
            self._predecessor.close()
            self._predecessor = None

    # ------------------------------------------------------------------------------------------------------ stopping

    def _want(self, number: int) -> None:
        if self._stopping or self._handed_over:
            log.warning("the signal has no effect: this process is ending", signal=signal.Signals(number).name)
        else:
            self._wanted.add(number)

    def _stop(self) -> None:
        """A signal to stop, the first or a further one."""
        if self._signalled:
            log.warning("stopping at once")
        else:
            sessions = sum(generation.sessions for generation in self._generations)
            log.info("draining; a second signal stops at once", sessions=sessions)
            self._telling.manager.stopping("draining")
        self._drain(at_once=self._signalled)
        self._signalled = True

    def _drain(self, *, at_once: bool) -> None:
        """No more connections; what is in flight is finished, or not even that."""
        self._stopping = True
        self._wanted.clear()
        if self._successor is not None and not self._handed_over:
            self._drop_successor(self._successor)
        self._leave_predecessor()
        if self._predecessor is not None:
            self._predecessor.say(handover.END if at_once else handover.STOP)
        if at_once:
            self._exit_code = 1
        for generation in self._generations:
            if at_once:
                generation.end()
            else:
                generation.stop()
        for generation in filter(None, (self._current, self._coming)):
            self._let_go_of(generation)
        self._telling.close_control()

    # -------------------------------------------------------------------------------------------------- every turn

    def _look(self) -> None:
        """See what has happened, and what is to be done."""
        self._look_at_generations()
        if self._generations:
            self._metering.check(self._loop.now, self._status)
        if self._coming is not None:
            self._look_at_coming(self._coming)
        if self._successor is not None:
            if self._current is not None:
                self._look_at_successor(self._successor, self._current)
            elif word := self._successor.wish():
                self._drain(at_once=word == handover.END)
        if self._leaving is not None:
            self._look_at_leaving(self._leaving)
        if self._current is None:
            return
        if self._wanted and not (self._coming or self._leaving or self._successor):
            if signal.SIGHUP in self._wanted:
                self._wanted.discard(signal.SIGHUP)
                self._reload()
            else:
                self._wanted.discard(signal.SIGUSR2)
                self._hand_over(self._current)
        self._telling.check(healthy=self._current.healthy)

    def _status(self) -> Status:
        """How it goes."""
        serving = self._current or self._generations[-1]
        workers = workers_of(self._generations, self._tallies, self._loop.now)
        return Status(
            version=__version__,
            pid=os.getpid(),
            since=self._since,
            generation=serving.number,
            state=STATES.get(serving.phase, "draining"),
            loaded=self._loaded_at,
            ruleset=serving.setup.judges[""].digest,
            sessions=sum(self._tallies.sessions()),
            accepted=self._tallies.accepted_ever(),
            restarts=self._restarts + sum(generation.deaths for generation in self._generations),
            workers=workers,
            listeners=listeners_of(serving),
        )

    def close(self) -> None:
        """Let go of everything; signals are as they were."""
        self._telling.close()
        self._metering.close()
        for talk in filter(None, (self._predecessor, self._successor)):
            talk.close()
        self._loop.close()

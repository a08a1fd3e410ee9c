"""How it goes, for status and metrics: the workers and listeners of the generations there are."""

from collections.abc import Iterable

from smtpproxy.net.control import Bound, Worker
from smtpproxy.net.generation import Generation, Phase
from smtpproxy.net.machine import printable
from smtpproxy.net.tally import Tallies

STATES = {Phase.COMING: "starting", Phase.SERVING: "serving"}  # else "draining"


def workers_of(generations: Iterable[Generation], tallies: Tallies, now: float) -> tuple[Worker, ...]:
    """All workers; `now` is the monotonic time."""
    beats, sessions, accepted = tallies.beats(), tallies.sessions(), tallies.accepted()
    return tuple(
        Worker(
            pid=worker.pid,
            generation=generation.number,
            state=STATES.get(generation.phase, "draining") if worker.ready_at is not None else "starting",
            sessions=sessions[worker.region],
            accepted=accepted[worker.region],
            uptime=round(now - worker.born, 3),
            beat=round(max(now - beats[worker.region], 0.0), 3) if beats[worker.region] else None,
        )
        for generation in generations
        for worker in generation.workers
    )


def listeners_of(generation: Generation) -> tuple[Bound, ...]:
    """Where it listens; a generation that ends does no more."""
    return tuple(
        Bound(
            name=entry.name,
            mode=entry.mode,
            addresses=tuple(printable(sock.getsockname()) for sock in held.sockets if sock.fileno() >= 0),
            server=str(entry.server or ""),
        )
        for held, entry in zip(generation.held, generation.setup.config.listeners, strict=True)
    )

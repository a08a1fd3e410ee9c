"""What sessions ask of the outside, carried out: time that is waited, functions that are called, mails that are kept.

Every question has a task. Functions that are not async, and files, are for threads, of which there are few; async ones
run here, and are cancelled at their deadline. An answer goes back as a handshake's outcome does: the session is told
while relays read, so that what follows from it is on record before anything is sent.

- Whoever asks is answered once: with the answer, or with `Failed` and why; a session that is over is not answered.
- A thread can't be stopped. One that is beyond its deadline is left alone, and counts until it ends: where functions
  hang, those behind them fail, and nothing grows.
- The content of a mail is read by the thread that keeps it, so the answer waits for that thread, which looks itself
  whether it is still wanted: nobody reads a content together with it, and no mail is kept of which `Failed` was said.

What must never happen: an exception of a function that ends a worker; a question that nobody answers.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio

from smtpproxy.metrics.meter import Meter
from smtpproxy.net.keeping import facts
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.troubles import Troubles
from smtpproxy.quarantine.errors import Full
from smtpproxy.quarantine.store import QuarantineError, Store
from smtpproxy.session.effects import Ask
from smtpproxy.session.verdicts import Call, Failed, Keep, Question, Wait

if TYPE_CHECKING:
    from smtpproxy.net.relay import Relay

log = structlog.get_logger()

MOST = 1000  # calls and mails under way, for each worker; waiting costs next to nothing, and is not counted
CALLING = 16  # threads for functions
KEEPING = 4  # threads for mails
TIDY = 3600.0  # seconds between looks at what is too old in the quarantine
_LONGEST = 300  # characters of what an exception says


class Asked:
    """A question under way."""

    def __init__(self, session_id: str, relay: "Relay", effect: Ask, until: float) -> None:
        self.session_id = session_id
        self.relay = relay
        self.ticket: int = effect.ticket
        self.question: Question = effect.question
        self.until = until  # trio's clock
        self.scope = trio.CancelScope(deadline=until)
        self.given_up = False
        self.counts = not isinstance(effect.question.about, Wait)

    @property
    def wanted(self) -> bool:
        """Somebody still waits for the answer. May be asked in any thread."""
        return not self.relay.done and not self.given_up


class Asking:
    """The questions of one worker's sessions."""

    def __init__(
        self,
        reactor: Reactor,
        store: Store | None = None,
        meter: Meter | None = None,
        *,
        most: int = MOST,
        calling: int = CALLING,
        keeping: int = KEEPING,
    ) -> None:
        """`store`: where mails are kept; None: nowhere. `meter`: counts what comes of them."""
        self.queued = False  # the reactor's
        self._reactor = reactor
        self._store = store
        self._count = meter.kept if meter is not None else _uncounted
        self._most = most
        self._calling = trio.CapacityLimiter(calling)
        self._keeping = trio.CapacityLimiter(keeping)
        self._nursery: trio.Nursery | None = None
        self._under_way: set[Asked] = set()
        self._counted = 0  # of them
        self._answers: list[tuple[Asked, Any]] = []
        self._failures = Troubles("a question of a rule could not be answered")
        self._refusals = Troubles("a mail could not be kept")

    @property
    def under_way(self) -> int:
        """How many questions are."""
        return len(self._under_way)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer, until cancelled; then nothing of it is left but threads that are beyond their deadline."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    for asked in self._under_way:
                        asked.given_up = True  # threads look at it
        finally:
            self._nursery = None

    def ask(self, session_id: str, relay: "Relay", effect: Ask) -> None:
        """Have this answered; `session.decided` is called in one of the next turns, and never before this returns."""
        question = effect.question
        about = question.about
        seconds = about.seconds if isinstance(about, Wait) else question.deadline
        asked = Asked(session_id, relay, effect, trio.current_time() + seconds)
        if self._nursery is None:
            self._answer(asked, Failed("the proxy is stopping"))
        elif asked.counts and self._counted >= self._most:
            self._answer(asked, Failed("too many questions under way"))
        else:
            self._under_way.add(asked)
            self._counted += asked.counts
            # What is known of the session is taken now: it may go on, and its objects with it.
            if isinstance(about, Keep):
                about = about._replace(facts=facts(session_id, relay.session, about))
            self._nursery.start_soon(self._carry_out, asked, about)

    def check(self) -> None:
        """Called about once a second: what was asked by sessions that are over is given up."""
        for asked in self._under_way:
            if asked.relay.done:
                asked.scope.cancel()
        for troubles in (self._failures, self._refusals):
            troubles.check(self._reactor.now)

    async def _carry_out(self, asked: Asked, about: Wait | Call | Keep) -> None:
        outcome: Any = None if isinstance(about, Wait) else Failed("it was not answered in time")
        try:
            with asked.scope:
                if isinstance(about, Wait):
                    await trio.sleep_forever()  # until the scope's deadline
                elif isinstance(about, Call):
                    outcome = await self._call(about)
                else:
                    outcome = await self._keep(asked, about)
        except BaseException as error:
            if (stop := _stop(error)) is not None:
                raise stop from None
            outcome = Failed(_words(error))
            if asked.wanted:  # else it failed because its session is over
                rule, now = getattr(about, "rule", ""), self._reactor.now
                self._failures.add(outcome.why, now, rule=rule, session=asked.session_id, exc_info=error)
        finally:
            self._under_way.discard(asked)
            self._counted -= asked.counts
        self._answer(asked, outcome)

    async def _call(self, call: Call) -> Any:
        if call.asynchronous:
            return await call.function()
        return await trio.to_thread.run_sync(call.function, limiter=self._calling, abandon_on_cancel=True)

    async def _keep(self, asked: Asked, keep: Keep) -> Any:
        store = self._store
        if store is None:
            return Failed("no quarantine is configured")
        now = trio.lowlevel.current_clock().current_time

        def write() -> str:
            keep.content.seek(0)
            return store.keep(keep.content, keep.facts, wanted=lambda: asked.wanted and now() < asked.until)

        try:
            kept = await trio.to_thread.run_sync(write, limiter=self._keeping)
            self._count("kept")
            return kept
        except QuarantineError as error:
            if asked.wanted:
                self._count("full" if isinstance(error, Full) else "failed")
                self._refusals.add(str(error), self._reactor.now, rule=keep.rule, session=asked.session_id)
            return Failed(str(error))

    # ------------------------------------------------------------------------------------------- back to the sessions

    def _answer(self, asked: Asked, outcome: Any) -> None:
        self._answers.append((asked, outcome))
        self._reactor.ready(self)
        self._reactor.wake()

    def read(self) -> None:
        """Tell the sessions. Their relays send in the next turn, and the record is written before."""
        answers, self._answers = self._answers, []
        for asked, outcome in answers:
            relay = asked.relay
            if not relay.done:
                relay.guard(partial(relay.session.decided, asked.ticket, outcome))
                self._reactor.ready(relay)

    def write(self) -> None:
        """Nothing is sent from here."""


def _uncounted(outcome: str) -> None:
    """Nobody wants to know."""


def _stop(error: BaseException) -> BaseException | None:
    """What of it is no failure of a function, but the word to stop."""
    kinds = (trio.Cancelled, KeyboardInterrupt)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kinds)
    return error if isinstance(error, kinds) else None


def _words(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}")
    return text[:_LONGEST]


async def tidy(store: Store, days: int) -> None:
    """Look after the quarantine, now and once an hour: what a crash left there goes, and what is older than so many
    days (0: nothing is too old). Several workers may do so."""
    while True:
        try:
            swept = await trio.to_thread.run_sync(store.sweep)
            erased = await trio.to_thread.run_sync(store.expire, days * 86_400.0) if days else []
        except QuarantineError as error:
            log.error("the quarantine could not be looked after", why=str(error))
        else:
            if swept or erased:
                log.info("the quarantine was looked after", erased=len(erased), left_over=swept)
        await trio.sleep(TIDY)

"""A session that a transcript is played on: what stands in for the driver, the clock and the outside.

A driver here can always send and never waits. What is asked of the outside is answered at once: a wait is over and the
clock has gone on by it, a function is really called, and a mail is kept, unless another answer was decided on before.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import trio

from smtpproxy.proving.transcript import Cut, MismatchError, Step, difference, shown
from smtpproxy.session.effects import Ask, Dial, Effect, PrepareTLS, StartTLS
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.session.verdicts import Call, Failed, Question, Wait
from smtpproxy.smtp.errors import Side

TLS: Final = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
SIDES: Final[Mapping[str, Side]] = {"client": Side.CLIENT, "server": Side.SERVER}
_TLS_WORDS: Final = frozenset({"version", "cipher", "sni", "alpn", "ja4", "shown"})
_NAMES: Final = {"PrepareTLS": "prepare-tls", "StartTLS": "start-tls"}
_REFILLS: Final = 10_000


class Clock:
    """A clock that stands still until it is told how long has passed."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since whenever it began."""
        return self.now


class Outside:
    """Answers questions; `answers` are by the name of the rule that asks.

    `patient`: nothing is answered before the driver says `!! decided`; `dials`: what is dialled is reached at once.
    """

    def __init__(self, clock: Clock, *, patient: bool = False, dials: bool = False) -> None:
        self.clock = clock
        self.patient = patient
        self.dials = dials
        self.answers: dict[str, Any] = {}
        self.asked: deque[Ask] = deque()  # and not answered yet
        self._kept = 0

    def answer(self, question: Question) -> Any:
        """What comes of it."""
        about = question.about
        if isinstance(about, Wait):
            self.clock.now += about.seconds
            return None
        if about.rule in self.answers:
            return self.answers[about.rule]
        if isinstance(about, Call):
            return _called(about, question.deadline)
        self._kept += 1
        return f"kept-{self._kept}"


def words_of(effect: Effect) -> str:
    """An effect in the words of a transcript; "" for a call, which nobody sees."""
    if isinstance(effect, Ask):
        about = effect.question.about
        if isinstance(about, Wait):
            return f"wait {about.seconds:g}"
        return "" if isinstance(about, Call) else "keep"
    if isinstance(effect, Dial):
        host = f"[{effect.host}]" if ":" in effect.host else effect.host
        return f"dial {host}:{effect.port}" if host else "dial"
    name = type(effect).__name__
    return f"{_NAMES.get(name, name.lower())} {effect.side.value}"


def _called(call: Call, deadline: float) -> Any:
    """The function is called, as a driver would; one that is not async can't be cut short here."""

    async def within() -> Any:
        with trio.fail_after(deadline):
            return await call.function()

    try:
        return trio.run(within) if call.asynchronous else call.function()
    except trio.TooSlowError:
        return Failed("no answer in time")
    except Exception as error:
        return Failed(type(error).__name__)


def tls_info(words: Iterable[str]) -> TLSInfo:
    """What is known of an encrypted link, from `verified`, `version=TLSv1.2` and the like.

    Raises:
        ValueError: a word that says nothing about TLS.
    """
    info = TLS
    for word in words:
        key, equals, value = word.partition("=")
        if word == "verified":
            info = info._replace(verified=True)
        elif equals and key in _TLS_WORDS:
            known: dict[str, Any] = {key: value}
            info = info._replace(**known)
        else:
            raise ValueError(f"{word!r} says nothing about TLS (expected verified, {', '.join(sorted(_TLS_WORDS))}=…)")
    return info


class Outputs:
    """What came out of a session during one step. `inside`: handshakes are done at once, and not shown."""

    def __init__(self, outside: Outside, inside: Callable[[Side], TLSInfo] | None = None) -> None:
        self._outside = outside
        self._inside = inside
        self.client = bytearray()
        self.server = bytearray()
        self.effects: list[str] = []

    def collect(self, session: Session) -> None:
        """Take it, as a driver that always can send would."""
        again = True
        while again:
            again = False
            self.client += session.to_client
            session.to_client.clear()
            for _ in range(_REFILLS):
                self.server += session.to_server
                session.to_server.clear()
                session.drained()
                if not session.to_server:
                    break
            effects, session.effects = session.effects, []
            for effect in effects:
                again |= self._carry_out(session, effect)

    def _carry_out(self, session: Session, effect: Effect) -> bool:
        """True: the session has gone on."""
        if self._inside is not None and isinstance(effect, PrepareTLS):
            session.tls_ready()
            return True
        if self._inside is not None and isinstance(effect, StartTLS):
            session.tls_done(effect.side, self._inside(effect.side))
            return True
        if words := words_of(effect):
            self.effects.append(words)
        if isinstance(effect, Ask):
            if self._outside.patient:
                self._outside.asked.append(effect)
                return False
            session.decided(effect.ticket, self._outside.answer(effect.question))
            return True
        if isinstance(effect, Dial) and self._outside.dials:
            session.connected()
            return True
        return False


class Told(Protocol):
    """Says what is wrong with what a step put on record; "" if nothing. `differs`: other octets came out."""

    def __call__(self, step: Step, differs: bool) -> str: ...


def run(
    session: Session,
    steps: Iterable[Step],
    cut: Cut,
    how: str,
    outside: Outside,
    *,
    inside: Callable[[Side], TLSInfo] | None = None,
    turn: Callable[[Step], bool] = lambda step: False,
    told: Told = lambda step, differs: "",
) -> None:
    """Play the steps on a session.

    Args:
        session, steps, cut, how: what is played on what; how inputs are cut, and what a message calls that.
        outside: who answers questions.
        inside: handshakes are done at once with this outcome, and not shown.
        turn: is given steps with a `..`; True: it saw to it.
        told: is asked behind each step.

    Raises:
        MismatchError: something else came out.
    """
    is_open = False
    for step in steps:
        out = Outputs(outside, inside)
        if step.tag in ("C>", "S>"):
            feed = session.client_sent if step.tag == "C>" else session.server_sent
            for piece in cut(step.octets):
                feed(piece)
                out.collect(session)
        elif step.tag == "..":
            if not turn(step):
                is_open = step.words == "open"
            continue
        else:
            try:
                out.effects += _say(session, step.words, outside)
            except (KeyError, ValueError) as error:
                raise MismatchError(f"{step.where} the driver can't say {step.words!r}: {error}") from None
            out.collect(session)
        if "abort server" in out.effects:
            out.server = bytearray(step.server)  # how much went out before a link was cut depends on the cutting
        wanted = (step.client, step.server, step.effects)
        got = (bytes(out.client), bytes(out.server), out.effects)
        wrong = difference(shown(*wanted), shown(*got)) if got != wanted else ""
        if wrong := "\n".join(filter(None, (wrong, told(step, bool(wrong))))):
            raise MismatchError(f"{step} ({how}):\n{wrong}")
    if not session.closed and not is_open and (awaited := session.ledger.awaited) is not None:
        raise MismatchError(f"the transcript is unfinished: {awaited.verb.name} awaits its reply ({how})")


def _say(session: Session, words: str, outside: Outside) -> list[str]:
    """The driver says it; what is shown of that at once."""
    verb, _, rest = words.partition(" ")
    side, _, word = rest.partition(" ")
    if verb == "arrived":
        if session.begin():
            if outside.dials:
                session.connected()
            return ["dial"]
    elif verb == "decided":
        ask = outside.asked.popleft() if outside.asked else None
        if ask is None:
            raise ValueError("nothing was asked")
        failed = side == "fails"
        session.decided(ask.ticket, Failed(word or "no answer") if failed else outside.answer(ask.question))
    elif verb == "end":
        (session.client_sent if rest == "client" else session.server_sent)(b"")
    elif verb == "tls-done":
        session.tls_done(SIDES[side], tls_info(word.split()))
    elif verb == "tls-failed":
        session.tls_failed("handshake failure", rest)
    elif verb == "timeout":
        session.timed_out(SIDES[side], word or "idle")
    elif verb == "unreachable":
        session.connect_failed("refused")
    elif verb in _SAYINGS:
        _SAYINGS[verb](session)
    else:
        raise ValueError(f"expected arrived, connected, end, lost, tls-done, timeout …, not {verb!r}")
    return []


_SAYINGS: Final[Mapping[str, Callable[[Session], None]]] = {
    "lost": Session.client_lost,
    "tls-ready": Session.tls_ready,
    "connected": Session.connected,
    "drain": Session.drain,
    "stop": Session.stop,
    "early": Session.early_talk,
    "keep-alive": Session.keep_alive,
}

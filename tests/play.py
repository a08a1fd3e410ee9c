r"""The playbook: a session as a transcript.

Each line has a tag, one a hop:

    C> octets the client sends          >S what must come out to the server
    S> octets the server sends          >C what must come out to the client
    -> an effect that must come out     !! what the driver says then

Lines end in CRLF on the wire; `\r \n \0 \t \xNN \\` are written as in Python, and a line that ends in `\` has no CRLF.
`C> *3000 X` stands for 3,000 times X. Lines of input that follow each other under one tag are one write. After each
write the outputs listed must be exactly what came out: no more, no less; `>C` and `>S` lines are compared apart, so
their order to each other does not matter. A transcript is played whole, octet by octet, and cut at random twenty ways
(invariant I6), and each time the records must be the same. A transcript that ends while a command awaits its reply is
an error, unless it says `.. open`.
"""

import difflib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from smtpproxy.audit.lines import render
from smtpproxy.policy.judge import default_judge
from smtpproxy.session.announcing import pass_unseen
from smtpproxy.session.effects import PrepareTLS, StartTLS
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.session.verdicts import Judge
from smtpproxy.smtp.errors import Side

_LINE = re.compile(r"\s*(C>|S>|>C|>S|->|!!|\.\.) ?(.*)")
_ESCAPE = re.compile(r"\\(r|n|t|0|\\|x[0-9a-fA-F]{2})")
INSIDE = Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT)
_NOT_THE_SAME = re.compile(r"TLS|AUTH|X-EXPS|!! (connected|unreachable|early|stop|drain)", re.IGNORECASE)
_TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")

HELLO = """
    S> 220 mx.example ESMTP
    >C 220 mx.example ESMTP
    C> EHLO me.example
    >S EHLO me.example
    S> 250-mx.example
    S> 250-PIPELINING
    S> 250-SIZE 10000000
    S> 250-8BITMIME
    S> 250-SMTPUTF8
    S> 250-CHUNKING
    S> 250-DSN
    S> 250 ENHANCEDSTATUSCODES
    >C 250-mx.example
    >C 250-PIPELINING
    >C 250-SIZE 10000000
    >C 250-8BITMIME
    >C 250-SMTPUTF8
    >C 250-CHUNKING
    >C 250-DSN
    >C 250 ENHANCEDSTATUSCODES
"""

MAIL = (
    HELLO
    + """
    C> MAIL FROM:<a@x.example>
    >S MAIL FROM:<a@x.example>
    S> 250 2.1.0 Ok
    >C 250 2.1.0 Ok
    C> RCPT TO:<b@y.example>
    >S RCPT TO:<b@y.example>
    S> 250 2.1.5 Ok
    >C 250 2.1.5 Ok
"""
)

DATA = (
    MAIL
    + """
    C> DATA
    >S DATA
    S> 354 Go
    >C 354 Go
"""
)


@dataclass
class Step:
    """One input and the outputs it must bring."""

    tag: str
    octets: bytes = b""
    words: str = ""
    client: bytes = b""
    server: bytes = b""
    effects: list[str] = field(default_factory=list)
    line: int = 0


class MismatchError(AssertionError):
    """The transcript as it should have been and as it was."""


def octets_of(text: str) -> bytes:
    """One transcript line as it is on the wire."""
    end = b"\r\n"
    if text.endswith("\\") and not text.endswith("\\\\"):
        text, end = text[:-1], b""
    repeat = re.match(r"\*(\d+) (.*)", text)
    if repeat:
        text = repeat[2] * int(repeat[1])
    kinds = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
    decoded = _ESCAPE.sub(lambda m: kinds.get(m[1]) or chr(int(m[1][1:], 16)), text)
    return b"".join(c.encode("latin-1") if ord(c) < 256 else c.encode() for c in decoded) + end


def parse(script: str) -> list[Step]:
    """The steps of a transcript."""
    steps: list[Step] = []
    previous = ""
    for number, line in enumerate(script.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            if not line.strip():
                previous = ""
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise MismatchError(f"line {number} of the transcript has no tag: {line.strip()!r}")
        tag, text = found.groups()
        if tag in ("C>", "S>"):
            if tag == previous:
                steps[-1].octets += octets_of(text)
            else:
                steps.append(Step(tag, octets_of(text), line=number))
        elif tag in ("!!", ".."):
            steps.append(Step(tag, words=text.strip(), line=number))
        elif not steps:
            raise MismatchError(f"line {number}: an output before any input")
        elif tag == "->":
            steps[-1].effects.append(text.strip())
        elif tag == ">C":
            steps[-1].client += octets_of(text)
        else:
            steps[-1].server += octets_of(text)
        previous = tag
    return steps


def _whole(octets: bytes) -> Iterator[bytes]:
    yield octets


def _single(octets: bytes) -> Iterator[bytes]:
    for i in range(len(octets)):
        yield octets[i : i + 1]


def _random(seed: int) -> Callable[[bytes], Iterator[bytes]]:
    source = random.Random(seed)

    def cut(octets: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(octets):
            size = source.choice((1, 2, 3, 5, 8, 21, 89, 1000, 65536))
            yield octets[at : at + size]
            at += size

    return cut


def cuttings(steps: list[Step]) -> Iterator[tuple[str, Callable[[bytes], Iterator[bytes]]]]:
    """Every way a transcript is cut. Long ones are not fed octet by octet."""
    longest = max((len(step.octets) for step in steps), default=0)
    yield "whole", _whole
    if longest <= 20_000:
        yield "octet by octet", _single
    for seed in range(20 if longest <= 200_000 else 3):
        yield f"cut at random, seed {seed}", _random(seed)


class Outputs:
    """What came out of a session during one step. `inside`: handshakes are done at once, and not shown."""

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self.client = bytearray()
        self.server = bytearray()
        self.effects: list[str] = []

    def collect(self, session: Session) -> None:
        """Take it, as a driver that always can send would."""
        self.client += session.to_client
        session.to_client.clear()
        for _ in range(10_000):
            self.server += session.to_server
            session.to_server.clear()
            session.drained()
            if not session.to_server:
                break
        effects, session.effects = session.effects, []
        for effect in effects:
            if self._inside and isinstance(effect, PrepareTLS):
                session.tls_ready()
            elif self._inside and isinstance(effect, StartTLS):
                session.tls_done(effect.side, _TLS)
            else:
                self.effects.append(f"{_name(type(effect).__name__)} {effect.side.value}")
        if self._inside and (session.effects or session.to_client or session.to_server):  # by a handshake that is done
            self.collect(session)


def run(
    session: Session, steps: list[Step], cut: Callable[[bytes], Iterator[bytes]], how: str, *, inside: bool = False
) -> None:
    """Play the steps on a session; `inside`: both links are encrypted before the greeting is told."""
    is_open = False
    if inside:
        session.connected()
        Outputs(inside=True).collect(session)
    for step in steps:
        out = Outputs(inside=inside)
        if step.tag in ("C>", "S>"):
            feed = session.client_sent if step.tag == "C>" else session.server_sent
            for piece in cut(step.octets):
                feed(piece)
                out.collect(session)
        elif step.tag == "..":
            is_open = step.words == "open"
            continue
        else:
            _say(session, step.words)
            out.collect(session)
        if "abort server" in out.effects:
            out.server = bytearray(step.server)  # how much went out before a link was cut depends on the cutting
        wanted = (step.client, step.server, step.effects)
        got = (bytes(out.client), bytes(out.server), out.effects)
        if got != wanted:
            raise MismatchError(_difference(step, how, wanted, got))
    if not session.closed and not is_open and session.ledger.awaited is not None:
        raise MismatchError(
            f"the transcript is unfinished: {session.ledger.awaited.verb.name} awaits its reply ({how})"
        )


def _name(kind: str) -> str:
    return {"PrepareTLS": "prepare-tls", "StartTLS": "start-tls"}.get(kind, kind.lower())


def _say(session: Session, words: str) -> None:
    verb, _, rest = words.partition(" ")
    sides = {"client": Side.CLIENT, "server": Side.SERVER}
    if verb == "end":
        (session.client_sent if rest == "client" else session.server_sent)(b"")
    elif verb == "lost":
        session.client_lost()
    elif verb == "tls-done":
        side, _, word = rest.partition(" ")
        session.tls_done(sides[side], _TLS._replace(verified=word == "verified"))
    elif verb == "tls-ready":
        session.tls_ready()
    elif verb == "connected":
        session.connected()
    elif verb == "tls-failed":
        session.tls_failed("handshake failure", rest)
    elif verb == "timeout":
        session.timed_out(*_side_and_word(rest, sides))
    elif verb == "drain":
        session.drain()
    elif verb == "stop":
        session.stop()
    elif verb == "early":
        session.early_talk()
    elif verb == "unreachable":
        session.connect_failed("refused")
    elif verb == "keep-alive":
        session.keep_alive()
    else:
        raise MismatchError(f"the driver can't say {words!r}")


def _side_and_word(rest: str, sides: dict[str, Side]) -> tuple[Side, str]:
    side, _, word = rest.partition(" ")
    return sides[side], word or "idle"


def _difference(step: Step, how: str, wanted: tuple[Any, ...], got: tuple[Any, ...]) -> str:
    def shown(outputs: tuple[Any, ...]) -> list[str]:
        client, server, effects = outputs
        lines = [f">S {line!r}" for line in server.splitlines(keepends=True)]
        lines += [f">C {line!r}" for line in client.splitlines(keepends=True)]
        return lines + [f"-> {effect}" for effect in effects]

    said = step.words or repr(step.octets[:200])
    lines = difflib.ndiff(shown(wanted), shown(got))
    return f"line {step.line}, {step.tag} {said} ({how}):\n" + "\n".join(lines)


def play(
    script: str, *, rules: Judge | None = None, records: list[dict[str, Any]] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Play a transcript in every cutting; the records of the whole one, as the audit writes them.

    A transcript that is not about TLS or passwords is played again with both links under TLS: rules and framing must do
    the same there, and the records must be the same but for those of the handshakes.

    Args:
        script: the transcript.
        rules: the judge; the shipped rules if not given.
        records: filled with the records as well, for convenience.
        options: further arguments of Session; `unseen=True`: it passes unseen.

    Raises:
        MismatchError: something else came out, or two cuttings gave different records.
    """
    steps = parse(script)
    first: list[dict[str, Any]] | None = None
    judge: Judge = rules if rules is not None else default_judge()
    for how, cut in cuttings(steps):
        lines: list[dict[str, Any]] = []

        def record(item: AuditRecord, lines: list[dict[str, Any]] = lines) -> None:
            lines.append(render(item))

        run(_session(judge, record, **options), steps, cut, how)
        if first is None:
            first = lines
        elif lines != first:
            pair = zip([*first, {}], [*lines, {}], strict=False)
            raise MismatchError(f"other records when {how}: " + str(next((a, b) for a, b in pair if a != b)))
    assert first is not None
    if not options.keys() & {"posture", "client", "server", "unseen"} and _same_inside(script, steps[0].octets):
        _play_inside(steps, judge, first, options)
    if records is not None:
        records.extend(first)
    return first


def _session(judge: Judge, record: Callable[[AuditRecord], None], *, unseen: bool = False, **options: Any) -> Session:
    session = Session(judge=judge, record=record, clock=lambda: 0.0, **options)
    if unseen:
        pass_unseen(session)
    return session


def _same_inside(script: str, first: bytes) -> bool:
    """It begins with a greeting and nothing behind it, and nothing in it depends on whether a link is encrypted."""
    return re.match(rb"(220-.*\r\n)*220 .*\r\n\Z", first) is not None and _NOT_THE_SAME.search(script) is None


def _play_inside(steps: list[Step], judge: Judge, clear: list[dict[str, Any]], options: dict[str, Any]) -> None:
    for how, cut in (("whole", _whole), ("cut at random", _random(0))):
        lines: list[dict[str, Any]] = []

        def record(item: AuditRecord, lines: list[dict[str, Any]] = lines) -> None:
            lines.append(render(item))

        run(_session(judge, record, posture=INSIDE, **options), steps, cut, f"{how}, inside TLS", inside=True)
        if (same := [line for line in lines if line["kind"] != "link-tls"]) != clear:
            pair = zip([*clear, {}], [*same, {}], strict=False)
            raise MismatchError(f"other records inside TLS ({how}): " + str(next((a, b) for a, b in pair if a != b)))

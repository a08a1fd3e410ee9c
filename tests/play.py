"""The playbook: a session as a transcript, in a test. The lines are those of smtpproxy/proving/transcript.py.

After each write the outputs listed must be exactly what came out: no more, no less; `>C` and `>S` lines are compared
apart, so their order to each other does not matter. A transcript is played whole, octet by octet, and cut at random
twenty ways (invariant I6), and each time the records must be the same. A transcript that ends while a command awaits
its reply is an error, unless it says `.. open`.
"""

import re
from typing import Any

from smtpproxy.audit.lines import rendered
from smtpproxy.policy.judge import default_judge
from smtpproxy.proving import driving
from smtpproxy.proving.driving import TLS, Clock, Outputs, Outside
from smtpproxy.proving.transcript import Cut, MismatchError, Step, at_random, cuttings, octets_of, parse, whole
from smtpproxy.session.announcing import pass_unseen
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Judge

INSIDE = Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT)
_NOT_THE_SAME = re.compile(
    r"TLS|AUTH|X-EXPS|!! (connected|unreachable|early|stop|drain|arrived|decided)", re.IGNORECASE
)

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


def play(
    script: str,
    *,
    rules: Judge | None = None,
    records: list[dict[str, Any]] | None = None,
    answers: dict[str, Any] | None = None,
    patient: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Play a transcript in every cutting; the records of the whole one, as the audit writes them.

    A transcript that is not about TLS or passwords is played again with both links under TLS: rules and framing must do
    the same there, and the records must be the same but for those of the handshakes.

    Args:
        script: the transcript.
        rules: the judge; the shipped rules if not given.
        records: filled with the records as well, for convenience.
        answers: what the outside answers, by the rule that asks.
        patient: the outside answers only when the driver says `!! decided`, or `!! decided fails`.
        options: further arguments of Session; `unseen=True`: it passes unseen.

    Raises:
        MismatchError: something else came out, or two cuttings gave different records.
    """
    steps = parse(script)
    first: list[dict[str, Any]] | None = None
    judge: Judge = rules if rules is not None else default_judge()
    for how, cut in cuttings(steps):
        lines = _played(steps, judge, cut, how, answers, patient, options)
        if first is None:
            first = lines
        elif lines != first:
            pair = zip([*first, {}], [*lines, {}], strict=False)
            raise MismatchError(f"other records when {how}: " + str(next((a, b) for a, b in pair if a != b)))
    assert first is not None
    if not options.keys() & {"posture", "client", "server", "unseen"} and _same_inside(script, steps[0].octets):
        for how, cut in (("whole", whole), ("cut at random", at_random(0))):
            lines = _played(steps, judge, cut, f"{how}, inside TLS", answers, patient, options, inside=True)
            if (same := [line for line in lines if line["kind"] != "link-tls"]) != first:
                pair = zip([*first, {}], [*same, {}], strict=False)
                raise MismatchError(
                    f"other records inside TLS ({how}): " + str(next((a, b) for a, b in pair if a != b))
                )
    if records is not None:
        records.extend(first)
    return first


def _played(
    steps: list[Step],
    judge: Judge,
    cut: Cut,
    how: str,
    answers: dict[str, Any] | None,
    patient: bool,
    options: dict[str, Any],
    *,
    inside: bool = False,
) -> list[dict[str, Any]]:
    """The records of one playing; `inside`: both links are encrypted before the greeting is told."""
    lines: list[dict[str, Any]] = []
    settings = dict(options)
    unseen = settings.pop("unseen", False)
    clock = Clock()

    def record(item: AuditRecord) -> None:
        lines.append(rendered(item))

    if inside:
        settings["posture"] = INSIDE
    session = Session(judge=judge, record=record, **{"clock": clock, **settings})
    if unseen:
        pass_unseen(session)
    outside = Outside(clock, patient=patient)
    outside.answers.update(answers or {})
    if inside:
        session.connected()
        Outputs(outside, lambda side: TLS).collect(session)
    driving.run(session, steps, cut, how, outside, inside=(lambda side: TLS) if inside else None)
    return lines


def _same_inside(script: str, first: bytes) -> bool:
    """It begins with a greeting and nothing behind it, and nothing in it depends on whether a link is encrypted."""
    return re.match(rb"(220-.*\r\n)*220 .*\r\n\Z", first) is not None and _NOT_THE_SAME.search(script) is None


__all__ = ["DATA", "HELLO", "INSIDE", "MAIL", "MismatchError", "Step", "cuttings", "octets_of", "parse", "play"]

"""What a playbook says of a session beside its steps: who connects, by which way, what was before; and `..` in steps.

The grammar is in playbook.py.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from smtpproxy.policy import decisions
from smtpproxy.policy.toml import nearest
from smtpproxy.proving.driving import SIDES, tls_info
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.state import TLSInfo
from smtpproxy.session.verdicts import Failed
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import own

_PATH: Final = re.compile(r"(<[^>]*>)(?:\*(\d{1,6}))?")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=\S*)?")
_ADDRESS: Final = re.compile(r"\[(?P<six>[^\]]+)\](?::(?P<port>\d{1,5}))?|(?P<host>[^:\s]+)(?::(?P<ports>\d{1,5}))?")
_USUAL: Final = ("PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES")
USUAL_TIME: Final = "2026-01-05T10:00"
STEPS: Final = ("wait", "decide", "open", "session")  # what may stand behind the first step


class Envelope(NamedTuple):
    """A mail of the prologue: paths with angle brackets, and parameters as they stand behind them."""

    sender: str = "<a@x.example>"
    mail: str = ""
    recipients: tuple[str, ...] = ("<b@y.example>",)
    rcpt: str = ""


class Prologue(NamedTuple):
    """What is played before the first step."""

    hello: str = ""  # no name: no hello, and no greeting
    sent: tuple[Envelope, ...] = ()
    mail: Envelope | None = None
    data: bool = False


NO_PROLOGUE: Final = Prologue()


@dataclass(frozen=True, slots=True)
class Stage:
    """How a session comes about."""

    client: str = "192.0.2.10"
    client_port: int = 40000
    server: str = "mx.example"
    server_port: int = 25
    listener: str = "smtp"
    match: str = ""
    identity: str = ""
    mechanism: str = ""
    posture: Posture | None = None
    tls: Mapping[Side, TLSInfo] = field(default_factory=dict)
    offers: tuple[str, ...] = _USUAL
    prologue: Prologue = NO_PROLOGUE


class WrongError(ValueError):
    """A line that says something wrong; what was expected, and what was perhaps meant."""

    def __init__(self, message: str, expected: str = "", near: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.expected = expected
        self.near = near


# ---------------------------------------------------------------------------------------------------- facts, one by one


def moment(said: str) -> float:
    """Seconds since 1970 of a local time.

    Raises:
        WrongError: it is none.
    """
    try:
        return datetime.fromisoformat(said).timestamp()
    except ValueError:
        raise WrongError(f"{said!r} is no time", "a date and a time of day, e.g. 2026-11-23T09:00") from None


def number_of(said: str) -> int:
    """How many.

    Raises:
        WrongError: it is no number, or too large a one.
    """
    if not said.isdigit() or not 0 < int(said) <= 100_000:
        raise WrongError(f"{said!r} is no number", "1 to 100000")
    return int(said)


def _place(said: str, port: int) -> tuple[str, int]:
    """Host or address, and port."""
    found = _ADDRESS.fullmatch(said)
    if found is None and said.count(":") > 1 and " " not in said:
        return said, port
    if found is None:
        raise WrongError(f"{said!r} is no place", "ADDRESS or ADDRESS:PORT, e.g. 192.0.2.10 or [2001:db8::1]:25")
    return found["six"] or found["host"], int(found["port"] or found["ports"] or port)


def _client(stage: Stage, said: str) -> Stage:
    host, port = _place(said, 40000)
    return replace(stage, client=host, client_port=port)


def _server(stage: Stage, said: str) -> Stage:
    host, port = _place(said, 25)
    return replace(stage, server=host, server_port=port)


def _listener(stage: Stage, said: str) -> Stage:
    return replace(stage, listener=said)


def _match(stage: Stage, said: str) -> Stage:
    return replace(stage, match=said)


def _identity(stage: Stage, said: str) -> Stage:
    name, _, mechanism = said.partition(" ")
    return replace(stage, identity=name, mechanism=mechanism or ("PLAIN" if name else ""))


def _posture(stage: Stage, said: str) -> Stage:
    client, _, server = said.partition(" ")
    try:
        posture = Posture(ClientTLS(client), ServerTLS(server))
    except ValueError:
        raise WrongError(f"{said!r} is no posture", "two words of docs/tls.md, e.g. require mirror") from None
    return replace(stage, posture=posture, tls={})


def _tls(stage: Stage, said: str) -> Stage:
    which, *words = said.split()
    sides = list(SIDES.values()) if which == "both" else [SIDES[which]] if which in SIDES else []
    if not sides:
        raise WrongError(f"{which!r} is no link", "client, server or both")
    return replace(stage, tls={**stage.tls, **dict.fromkeys(sides, tls_info(words))}, posture=None)


def _offers(stage: Stage, said: str) -> Stage:
    only = said.removeprefix("only ")
    words = tuple(filter(None, (word.strip() for word in only.split(","))))
    return replace(stage, offers=words if only != said else _USUAL + words)


def _envelope(said: str) -> Envelope:
    """FROM=… and TO=…, each with the parameters behind it."""
    envelope = Envelope()
    of_recipient = False
    for word in said.split():
        if word.startswith("FROM=") and not of_recipient:
            envelope = envelope._replace(sender=_path(word[5:])[0])
        elif word.startswith("TO="):
            of_recipient = True
            paths = [_path(one) for one in word[3:].split(",")]
            recipients = tuple(path for path, times in paths for _ in range(times) if path != "<>")
            envelope = envelope._replace(recipients=recipients)
        elif _PARAMETER.fullmatch(word) is None:
            raise WrongError(f"{said!r} is no envelope", "FROM=<a@x.example> TO=<b@y.example>,<c@z.example>")
        elif of_recipient:
            envelope = envelope._replace(rcpt=f"{envelope.rcpt} {word}")
        else:
            envelope = envelope._replace(mail=f"{envelope.mail} {word}")
    return envelope


def _path(said: str) -> tuple[str, int]:
    """A path, and how often."""
    found = _PATH.fullmatch(said)
    if found is None:
        raise WrongError(f"{said!r} is no path", "one in angle brackets, e.g. <b@y.example>, or <b@y.example>*99")
    return found[1], int(found[2] or 1)


def _hello(stage: Stage, said: str) -> Stage:
    return replace(stage, prologue=stage.prologue._replace(hello=said or "me.example"))


def _begun(stage: Stage) -> Prologue:
    """The prologue so far, with a hello at least."""
    if stage.prologue.mail is not None:
        raise WrongError("a mail is begun already", ".. sent before .. mail or .. data, and one of these")
    return stage.prologue._replace(hello=stage.prologue.hello or "me.example")


def _sent(stage: Stage, said: str) -> Stage:
    number, _, rest = said.partition(" ")
    times, said = (number_of(number), rest) if number.isdigit() else (1, said)
    prologue = _begun(stage)
    return replace(stage, prologue=prologue._replace(sent=prologue.sent + (_envelope(said),) * times))


def _mail(stage: Stage, said: str) -> Stage:
    return replace(stage, prologue=_begun(stage)._replace(mail=_envelope(said)))


def _data(stage: Stage, said: str) -> Stage:
    return replace(stage, prologue=_begun(stage)._replace(mail=_envelope(said), data=True))


FACTS: Final[Mapping[str, Callable[[Stage, str], Stage]]] = {
    "client": _client,
    "server": _server,
    "listener": _listener,
    "match": _match,
    "identity": _identity,
    "posture": _posture,
    "tls": _tls,
    "offers": _offers,
    "hello": _hello,
    "sent": _sent,
    "mail": _mail,
    "data": _data,
}


def with_fact(stage: Stage, name: str, said: str) -> Stage:
    """The stage with one fact more.

    Raises:
        ValueError: there is no such fact, or it says what it can't.
    """
    read = FACTS.get(name)
    if read is None:
        near = tuple(nearest(name, FACTS.keys() | {"time", *STEPS}))
        raise WrongError(f'".. {name}" is unknown', "" if near else "a fact, e.g. .. client 192.0.2.10", near)
    return read(stage, said)


# ------------------------------------------------------------------------------------------------------- and elsewhere


def seconds_of(said: str) -> float:
    """How long `.. wait` waits.

    Raises:
        ValueError: it says no number of seconds.
    """
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 10**8:
        raise WrongError(f"{said!r} is no time to wait", "seconds, e.g. 3600")
    return seconds


def decision_of(said: str) -> tuple[str, Any]:
    """What `.. decide` decides: the name of a rule, and the answer it gets.

    Raises:
        ValueError: it says none.
    """
    name, _, rest = said.partition(" ")
    word, _, value = rest.strip().partition(" ")
    value = value.strip()
    if word in ("answer", "hangup") and (value or word == "answer"):
        own(value)
    match word:
        case "abstain":
            return name, decisions.ABSTAIN
        case "pass":
            return name, decisions.PASS
        case "discard":
            return name, decisions.Discard()
        case "answer":
            return name, decisions.Answer(value)
        case "hangup":
            return name, decisions.Hangup(value) if value else decisions.Hangup()
        case "tag" if value:
            return name, decisions.Tag(value)
        case "tarpit":
            return name, decisions.Tarpit(seconds_of(value))
        case "fails" | "late":
            return name, Failed(value or ("no answer in time" if word == "late" else "as decided"))
        case "kept":
            return name, value or "kept"
    expected = "NAME abstain, pass, answer REPLY, hangup, discard, tag LABEL, tarpit SECONDS, fails, late, kept"
    raise WrongError(f"{said!r} decides nothing", expected)


def check_step(word: str, said: str) -> None:
    """Look at what a `..` among the steps says.

    Raises:
        ValueError: it can't be meant.
    """
    if word == "wait":
        seconds_of(said)
    elif word == "decide":
        decision_of(said)

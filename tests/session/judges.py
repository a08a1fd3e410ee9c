"""What the tests of the session share: judges, and the openings of transcripts."""

from collections.abc import Mapping
from typing import Any, BinaryIO

from smtpproxy.policy.judge import Judge, extension_rule
from smtpproxy.policy.rules import Treatment
from smtpproxy.session.announcing import Announce, Announcement
from smtpproxy.session.effects import Ask, Dial
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Action, CommandRule, Depth, PassAll, ReplyRule, Verdict
from smtpproxy.smtp.commands import Malformed
from smtpproxy.smtp.replies import own


def allow(*names: str) -> Judge:
    """The shipped rules, but these names are allowed."""
    return Judge([extension_rule(name, Treatment.ALLOW) for name in names])


def deny(*names: str, reply: str = "") -> Judge:
    """The shipped rules, but these names are denied."""
    return Judge([extension_rule(name, Treatment.DENY, reply=reply) for name in names])


def limit_size(octets: int) -> Judge:
    """The shipped rules, and no content larger than this."""
    return Judge([extension_rule("SIZE", Treatment.LIMIT, octets)])


def answers(reply: str, rule: str = "r") -> Verdict:
    """Told here, not forwarded."""
    return Verdict(Action.ANSWER, own(reply), rule)


class Says(PassAll):
    """A fixed verdict a verb; for the replies too."""

    def __init__(
        self,
        commands: Mapping[str, Verdict] | None = None,
        replies: Mapping[str, Verdict] | None = None,
        malformed: Verdict | None = None,
    ) -> None:
        self.commands: Mapping[str, CommandRule] = {
            verb: (lambda command, session, verdict=verdict: verdict)  # type: ignore[misc]
            for verb, verdict in (commands or {}).items()
        }
        self.replies: Mapping[str, ReplyRule] = {
            verb: (lambda got, exchange, session, verdict=verdict: verdict)  # type: ignore[misc]
            for verb, verdict in (replies or {}).items()
        }
        self._malformed = malformed

    def malformed(self, line: Malformed, session: Session) -> Verdict:  # type: ignore[override]
        """The one verdict about lines nobody could parse."""
        return self._malformed if self._malformed is not None else PASS


class Looks(PassAll):
    """Content is held back to a depth, and one verdict given about it."""

    def __init__(self, depth: Depth, verdict: Verdict = PASS, *, most: int = 0) -> None:
        self._depth = depth
        self._verdict = verdict
        self._most = most
        self.seen: list[bytes] = []

    def depth(self, transaction: Transaction, session: Session) -> Depth:
        """Always the same."""
        return self._depth

    def max_size(self, session: Session) -> int:
        """The limit given."""
        return self._most

    def header(self, section: bytes, session: Session) -> Verdict:  # type: ignore[override]
        """The verdict given."""
        self.seen.append(section)
        return self._verdict

    def content(self, file: BinaryIO, session: Session) -> Verdict:  # type: ignore[override]
        """The verdict given."""
        self.seen.append(file.read())
        return self._verdict


def introduced(
    kind: str, client: tuple[str, int], destination: tuple[str, int] = ("198.51.100.25", 25)
) -> Announcement:
    """The server is told of this client."""
    return Announcement(Announce(kind), *client, *destination)


OPEN = PassAll()
XCLIENT = introduced("xclient", ("192.0.2.7", 40123))
XFORWARD = introduced("xforward", ("192.0.2.7", 40123))
PASSED_BY_RULE = Verdict(Action.PASS, None, "r")

GREETING = """
    S> 220 mx.example
    >C 220 mx.example
"""


def hello(*offered: str, told: tuple[str, ...] | None = None, verb: str = "EHLO") -> str:
    """Greeting and hello: the server offers these lines, the client is told those (all, if not given)."""
    return GREETING + again(*offered, told=told, verb=verb)


def again(*offered: str, told: tuple[str, ...] | None = None, verb: str = "EHLO") -> str:
    """A hello by itself."""
    shown = offered if told is None else told
    script = f"\n    C> {verb} me.example\n    >S {verb} me.example\n"
    return script + listed("S>", offered) + listed(">C", shown)


def listed(tag: str, lines: tuple[str, ...]) -> str:
    """A 250 with these lines behind the greeting line."""
    texts = ["mx.example", *lines]
    last = len(texts) - 1
    return "".join(f"    {tag} 250{'-' if i < last else ' '}{text}\n" for i, text in enumerate(texts))


ENVELOPE = """
    C> MAIL FROM:<a@x.example>
    >S MAIL FROM:<a@x.example>
    S> 250 2.1.0 Ok
    >C 250 2.1.0 Ok
    C> RCPT TO:<b@y.example>
    >S RCPT TO:<b@y.example>
    S> 250 2.1.5 Ok
    >C 250 2.1.5 Ok
"""

DATA = (
    ENVELOPE
    + """
    C> DATA
    >S DATA
    S> 354 Go
    >C 354 Go
"""
)

QUIT = """
    C> QUIT
    >S QUIT
    S> 221 2.0.0 Bye
    >C 221 2.0.0 Bye
    -> close server
    -> close client
"""

NOOP = """
    C> NOOP
    >S NOOP
    S> 250 2.0.0 Ok
    >C 250 2.0.0 Ok
"""

# How the client is told of a server that broke the protocol, with and without an enhanced status code.
BROKEN = """
    >C 421 4.3.0 The mail server broke the protocol, try again later
    -> abort server
    -> close client
"""
BROKEN_PLAIN = BROKEN.replace("4.3.0 ", "")
LOST = """
    >C 421 4.4.2 Connection to the mail server lost, try again later
    -> close server
    -> close client
"""
LOST_PLAIN = LOST.replace("4.4.2 ", "")


def anomalies(records: list[dict[str, Any]]) -> list[str]:
    """Every anomaly on record, in order: those of exchanges and those of events."""
    found: list[str] = []
    for record in records:
        found += record.get("anomalies", ())
        if "anomaly" in record:
            found.append(record["anomaly"])
    return found


def effects(session: Session) -> list[str]:
    """By name. (Compared as they are, a Close and an Abort of one side are equal: both are tuples of a side.)"""
    ours = (effect for effect in session.effects if not isinstance(effect, Ask | Dial))
    return [f"{type(effect).__name__} {effect.side.value}" for effect in ours]


def exchanges(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of exchanges alone."""
    return [record for record in records if record["kind"] == "exchange"]

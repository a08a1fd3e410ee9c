"""The invariants as properties (architecture §15): Order (I1), Garbage (I7), Chunking (I6) over random talk."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from smtpproxy.audit.lines import rendered
from smtpproxy.session.effects import Abort, Close, Shut, StartTLS
from smtpproxy.session.limits import Limits
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture, ServerTLS
from smtpproxy.session.reading import AROUND
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.session.verdicts import Depth, PassAll
from smtpproxy.smtp.errors import Side
from tests.session.judges import OPEN, PASSED_BY_RULE, Looks, Says, allow, answers, deny, effects
from tests.session.strict_server import StrictServer

REPLY = re.compile(rb"(?:([0-9]{3})-[^\r\n]*\r\n(?:\1-[^\r\n]*\r\n)*\1(?: [^\r\n]*)?\r\n|[0-9]{3}(?: [^\r\n]*)?\r\n)")
INFO = TLSInfo("TLSv1.3", "x")


def replies_of(octets: bytes) -> list[bytes]:
    """The replies these octets are; AssertionError if they are anything else."""
    found = []
    at = 0
    while at < len(octets):
        match = REPLY.match(octets, at)
        assert match is not None, octets[at : at + 200]
        found.append(match[0])
        at = match.end()
    return found


# ------------------------------------------------------------------------------------------------------------ I1: Order


class Order(RuleBasedStateMachine):
    """Commands carry a number, the server echoes it, some are answered here: the client reads 0, 1, 2, … whatever the
    interleaving and the cutting."""

    def __init__(self) -> None:
        super().__init__()
        rules = Says({"VRFY": answers("252 here")})
        self.session = Session(
            judge=rules, record=lambda record: None, clock=lambda: 0.0, limits=Limits(malformed=10**9)
        )
        self.session.server_sent(b"220 mx\r\n")
        self.session.to_client.clear()
        self.asked = 0
        self.local: set[int] = set()
        self.holds: set[int] = set()
        self.unsent = b""
        self.at_server = b""
        self.from_server = b""
        self.told: list[bytes] = []
        self.raw = b""

    def flush(self) -> None:
        """Take what came out."""
        self.at_server += bytes(self.session.to_server)
        self.session.to_server.clear()
        self.raw += bytes(self.session.to_client)
        self.session.to_client.clear()

    @rule(local=st.sampled_from(["", "", "VRFY", "XYZZY", "bad"]), hold=st.booleans())
    def ask(self, local: str, hold: bool) -> None:
        """One command more in the client's hand."""
        number = self.asked
        self.asked += 1
        if local:
            self.local.add(number)
            self.unsent += {"VRFY": b"VRFY x\r\n", "XYZZY": b"XYZZY\r\n", "bad": b"\x01bad\r\n"}[local]
        elif hold:
            self.holds.add(number)
            self.unsent += b"EHLO n%d\r\n" % number
        else:
            self.unsent += b"NOOP %d\r\n" % number

    @rule(size=st.integers(1, 60))
    def send(self, size: int) -> None:
        """So many octets of them."""
        piece, self.unsent = self.unsent[:size], self.unsent[size:]
        if piece:
            self.session.client_sent(piece)
            self.flush()

    @rule()
    def serve(self) -> None:
        """The server reads a line and puts its reply in its hand."""
        line, found, rest = self.at_server.partition(b"\r\n")
        if found:
            self.at_server = rest
            number = int(re.sub(rb"[^0-9]", b"", line))
            if number % 3 == 0:
                self.from_server += b"250-first %d\r\n250 %d\r\n" % (number, number)
            else:
                self.from_server += b"%d %d\r\n" % (250 if number % 2 else 450, number)

    @rule(size=st.integers(1, 30))
    def reply(self, size: int) -> None:
        """So many octets of the server's replies."""
        piece, self.from_server = self.from_server[:size], self.from_server[size:]
        if piece:
            self.session.server_sent(piece)
            self.flush()

    @invariant()
    def in_order(self) -> None:
        """What was told so far is 0, 1, 2, …"""
        for index, reply in enumerate(replies_of(self.raw)):
            if index in self.local:
                assert reply[:3] in (b"252", b"500")
            else:
                assert reply.endswith(b" %d\r\n" % index)
        assert not self.session.closed

    def teardown(self) -> None:
        """Everything in the hands is sent in the end, and everything is answered."""
        for _ in range(10_000):
            if not (self.unsent or self.at_server or self.from_server):
                break
            self.send(1000)
            self.serve()
            self.reply(1000)
        self.in_order()
        assert len(replies_of(self.raw)) == self.asked


Order.TestCase.settings = settings(stateful_step_count=60)
test_order = pytest.mark.filterwarnings("default")(Order.TestCase)


# --------------------------------------------------------------------------------------------------------- I7: Garbage

LINES = [
    b"EHLO me\r\n", b"HELO me\r\n", b"LHLO me\r\n", b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@y>\r\n", b"DATA\r\n", b".\r\n",
    b"x\r\n.\r\n",
    b"BDAT 5\r\n", (b"BDAT 5 LAST\r\n"
        b"abcde"), b"BDAT 0 LAST\r\n", b"BDAT x\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"AUTH PLAIN YQ==\r\n",
    b"AUTH LOGIN\r\n", b"YQ==\r\n", b"*\r\n", b"STARTTLS\r\n", b"XEXCH50 4 2\r\n", b"abcd", b"TURN\r\n", b"VERB\r\n",
    b"XCLIENT NAME=x\r\n",
    b"XYZZY\r\n", b"EXPN x\r\n", b"\r\n", b"\n", b"\r", b"\0", b"Subject: x\r\n\r\n", b"\r\n.\r\n", (b"\n"
        b".\n"), b"GET / HTTP/1.1\r\n", b" MAIL\r\n",
    b"MAIL FROM:<a@x> PRDR\r\n", b"MAIL FROM:<a@x> BODY=8BITMIME SIZE=3\r\n", b"SEND FROM:<a@x>\r\n",
    b"BURL imap://x LAST\r\n", b"ETRN x\r\n",
    b"A: b\r\n", b"x" * 3000, b"x" * 3000 + b"\r\n", b"BDAT 3000 LAST\r\n",
]  # fmt: skip
REPLIES = [
    b"220 mx\r\n", b"250 ok\r\n", (b"250-mx\r\n250-SIZE 100\r\n250-CHUNKING\r\n250-AUTH PLAIN\r\n250-STARTTLS\r\n"
        b"250-XEXCH50\r\n250-VERB\r\n250 PRDR\r\n"),
    b"354 go\r\n", b"334 x\r\n", b"235 in\r\n", b"221 bye\r\n", b"353 x\r\n", b"421 bye\r\n", b"450 later\r\n",
    b"550 no\r\n", b"250-a\r\n", b"250 ",
    b"050 noise\r\n", b"\r\n", b"\0", b"garbage\r\n", b"250 a\n", b"199 x\r\n", (b"250-a\r\n"
        b"251 b\r\n"), b"250 \x1b\r\n", b"250\r\n", b"x" * 5000,
]  # fmt: skip
DRIVER = [
    "drain", "stop", "client lost", "client end", "server end", "silent client", "silent server", "tls server",
    "tls client", "tls ready", "tls failed", "tls goes well",
    "keep alive", "early", "drained", "slow", "unreachable",
]  # fmt: skip
JUDGES: dict[str, PassAll | Any] = {
    "open": OPEN,
    "shipped": allow(),
    "all allowed": allow("STARTTLS", "XEXCH50", "TURN", "VERB", "LHLO", "PRDR", "XCLIENT", "BURL", "SEND", "AUTH"),
    "denied": deny("DATA", "CHUNKING", "RCPT"),
    "header": Looks(Depth.HEADER, most=2000),
    "whole": Looks(Depth.WHOLE),
    "whole refused": Looks(Depth.WHOLE, answers("550 5.7.1 No")),
    "malformed passed": Says({"UNKNOWN": PASSED_BY_RULE}, malformed=PASSED_BY_RULE),
}
SAID = st.one_of(
    st.tuples(st.just("C"), st.sampled_from(LINES)),
    st.tuples(st.just("C"), st.lists(st.sampled_from(LINES), min_size=2, max_size=6).map(b"".join)),
    st.tuples(st.just("C"), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("S"), st.sampled_from(REPLIES)),
    st.tuples(st.just("S"), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("S"), st.just("answer")),
    st.tuples(st.just("D"), st.sampled_from(DRIVER)),
)


def drive(session: Session, word: str) -> None:
    """What a driver may say at any time (but results of handshakes only where one was asked for)."""
    match word:
        case "drain":
            session.drain()
        case "stop":
            session.stop()
        case "client lost":
            session.client_lost()
        case "client end":
            session.client_sent(b"")
        case "server end":
            session.server_sent(b"")
        case "silent client":
            session.timed_out(Side.CLIENT)
        case "slow":
            session.timed_out(Side.CLIENT, "too-slow")
        case "silent server":
            session.timed_out(Side.SERVER)
        case "tls server":
            session.tls_done(Side.SERVER, INFO)
        case "tls client":
            if "StartTLS client" in effects(session):
                session.tls_done(Side.CLIENT, INFO)
        case "tls goes well":
            session.tls_done(Side.SERVER, INFO)
            session.tls_ready()
            session.tls_done(Side.CLIENT, INFO)
        case "tls failed":
            session.tls_failed("x")
        case "tls ready":
            session.tls_ready()
        case "keep alive":
            session.keep_alive()
        case "early":
            session.early_talk()
        case "drained":
            session.drained()
        case "unreachable":
            awaited = session.ledger.awaited  # nobody has been reached as long as that is the greeting
            unreached = session.progress == 0 and not session.server_gone and not session.closed
            if unreached and awaited is session.ledger.exchanges[-1]:
                session.connect_failed("x")


POSTURES = [
    Posture(client, server, b"proxy.example")
    for client in ClientTLS
    for server in ServerTLS
    if client is not ClientTLS.PASSTHROUGH or server is ServerTLS.MIRROR
]


def in_clear(session: Session) -> None:
    """Before TLS, where TLS is to be: no octet to the client; to the server our own words alone."""
    client, server, _ = session.posture
    if client is ClientTLS.IMPLICIT and session.client.tls is None:
        assert not session.to_client
    if session.server.tls is None and not session.server_gone:
        words = set(bytes(session.to_server).split(b"\r\n"))
        if server is ServerTLS.IMPLICIT and StartTLS in map(type, session.effects):
            assert words == {b""}
        if server is ServerTLS.REQUIRE or (server is ServerTLS.MIRROR and client is ClientTLS.IMPLICIT):
            assert words <= {b"EHLO proxy.example", b"STARTTLS", b""}


@given(
    judge=st.sampled_from(list(JUDGES)),
    posture=st.one_of(st.just(MIRROR), st.sampled_from(POSTURES)),
    said=st.lists(SAID, max_size=40),
    cut=st.integers(1, 5000),
)
@settings(max_examples=settings().max_examples * 6)
def test_garbage(judge: str, posture: Posture, said: list[tuple[str, bytes | str]], cut: int) -> None:
    """Any octets from either side, in any cut, and anything a driver says, at any time: no exception leaves an input
    method; what the client is told parses as replies; what is kept is bounded; nothing in clear where TLS is to be."""
    records: list[AuditRecord] = []
    server = StrictServer((b"PIPELINING", b"CHUNKING", b"AUTH PLAIN", b"STARTTLS", b"XEXCH50", b"PRDR", b"VERB"))
    limits = Limits(endless_line=5000, malformed=50, pipelined=20, reply_lines=20, swallow=4000, header=1000)
    session = Session(judge=JUDGES[judge], record=records.append, clock=lambda: 0.0, limits=limits, posture=posture)
    session.connected()
    told = b""
    unwanted = 0  # octets of the client given though the session did not want them, as no driver does
    kept = max(limits.command_line, limits.auth_line + AROUND) + 1  # what it keeps of a line without end
    for who, what in [("S", b"220 mx\r\n"), *said]:
        if who == "D":
            assert isinstance(what, str)
            drive(session, what)
        else:
            octets = server.feed(bytes(session.to_server)) if isinstance(what, str) else what
            if isinstance(what, str):
                session.to_server.clear()
            feed = session.client_sent if who == "C" else session.server_sent
            for at in range(0, len(octets), cut):
                if who == "C" and not session.wants(Side.CLIENT):
                    unwanted += cut
                feed(octets[at : at + cut])
                assert session.reading.left <= unwanted + max(kept, cut)
        in_clear(session)
        told += bytes(session.to_client)
        session.to_client.clear()
        if session.inspected:
            replies_of(told)
        assert len(session.ledger) <= limits.pipelined + 3
        for record in records:
            rendered(record)
        records.clear()
        patience = session.patience()
        assert patience[1] > 0
    if session.closed:
        check_ending(session)


def check_ending(session: Session) -> None:
    """A closed session has said so once for each side, and says nothing more."""
    ends = [effect for effect in session.effects if isinstance(effect, Abort | Close | Shut)]
    assert sum(1 for effect in ends if effect.side is Side.CLIENT) == 1
    assert sum(1 for effect in ends if effect.side is Side.SERVER) <= 1
    assert isinstance(ends[-1], Close)
    assert all(isinstance(effect, Abort | Close) for effect in ends)
    before = (bytes(session.to_client), bytes(session.to_server), len(session.effects))
    session.client_sent(b"NOOP\r\n")
    session.server_sent(b"250 ok\r\n")
    session.client_sent(b"")
    session.server_sent(b"")
    session.drain()
    session.stop()
    session.timed_out(Side.CLIENT)
    session.timed_out(Side.SERVER)
    session.tls_done(Side.CLIENT, INFO)
    session.tls_failed("x")
    session.tls_ready()
    session.connected()
    session.keep_alive()
    session.drained()
    assert (bytes(session.to_client), bytes(session.to_server), len(session.effects)) == before


# -------------------------------------------------------------------------------------------------------- I6: Chunking


@given(
    judge=st.sampled_from(list(JUDGES)),
    said=st.lists(st.one_of(st.sampled_from(LINES), st.binary(min_size=1, max_size=10)), min_size=1, max_size=15),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=10),
)
def test_chunking(judge: str, said: list[bytes], cuts: list[int]) -> None:
    """I6: the same octets in any cut give the same octets on both sides, the same effects and the same records; with a
    server that answers at once."""
    octets = b"".join(said)
    whole = conversation(judge, octets, [len(octets)])
    assert conversation(judge, octets, [1]) == whole
    assert conversation(judge, octets, cuts) == whole


def conversation(judge: str, octets: bytes, cuts: list[int]) -> tuple[bytes, bytes, list[str], list[dict[str, Any]]]:
    """All that came out."""
    records: list[dict[str, Any]] = []
    server = StrictServer((b"PIPELINING", b"CHUNKING", b"SIZE 100000", b"8BITMIME"))
    limits = Limits(endless_line=5000, malformed=5)
    session = Session(
        judge=JUDGES[judge], record=lambda record: records.append(rendered(record)), clock=lambda: 0.0, limits=limits
    )
    session.server_sent(server.greet())
    to_client, to_server = b"", b""

    def pump() -> None:
        nonlocal to_client, to_server
        for _ in range(1000):
            sent = bytes(session.to_server)
            session.to_server.clear()
            if "Abort server" not in effects(session):
                to_server += sent
            session.drained()
            replies = server.feed(sent)
            to_client += bytes(session.to_client)
            session.to_client.clear()
            if replies:
                session.server_sent(replies)
            elif not session.to_server:
                return

    at, turn = 0, 0
    # everything is asked in one go, and answered after it, so that what is owed is the same in every cut
    while at < len(octets):
        size = cuts[turn % len(cuts)]
        session.client_sent(octets[at : at + size])
        at, turn = at + size, turn + 1
    pump()
    session.client_sent(b"")
    pump()
    if "Abort server" in effects(session):
        to_server = b""  # how much went out before a link was cut depends on the cutting
    return to_client, to_server, [repr(effect) for effect in session.effects], records

"""Verdicts that ask the outside first: what waits, what goes on, and what an answer is good for."""

from collections.abc import Callable
from typing import Any

import pytest

from smtpproxy.audit.lines import rendered
from smtpproxy.session.effects import Abort, Ask, Close, Dial
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, TLSInfo
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    Depth,
    Effects,
    Failed,
    Observed,
    Question,
    Verdict,
    Wait,
)
from smtpproxy.smtp.capabilities import Capabilities
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import RULE_FAILED_CLOSING, Reply, own
from tests.session.judges import Looks, Says

NO = Verdict(Action.ANSWER, own("550 5.7.1 No"), "no")
AWAY = Verdict(Action.DISCARD, None, "away")
BYE = Verdict(Action.HANGUP, own("421 4.7.0 Bye"), "bye")
YES = Verdict(Action.PASS, None, "yes")
KEPT = Verdict(Action.QUARANTINE, own("250 2.0.0 Kept"), "keep")

GREETING = b"220 mx.example\r\n"
EHLO = b"250-mx.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n"


def asks(then: Verdict | Callable[[Any], Verdict], effects: Effects | None = None) -> Verdict:
    """A question whose answer comes to this."""
    resume = then if callable(then) else lambda outcome: then
    return Verdict(Action.ASK, Question(Wait(1.0), 2.0, resume), effects=effects)


class Talk:
    """A session under a judge, and what came out of it since one last looked."""

    def __init__(self, judge: Any, **options: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.session = Session(
            judge=judge, record=lambda item: self.records.append(rendered(item)), clock=lambda: 0.0, **options
        )

    def client(self, octets: bytes) -> tuple[bytes, bytes]:
        self.session.client_sent(octets)
        return self.out()

    def server(self, octets: bytes) -> tuple[bytes, bytes]:
        self.session.server_sent(octets)
        return self.out()

    def answer(self, outcome: Any = None) -> tuple[bytes, bytes]:
        """Whatever is asked, this is the answer."""
        (ask,) = self.asked()
        self.session.effects.remove(ask)
        self.session.decided(ask.ticket, outcome)
        return self.out()

    def asked(self) -> list[Ask]:
        return [effect for effect in self.session.effects if isinstance(effect, Ask)]

    def out(self) -> tuple[bytes, bytes]:
        """What is told to the client and sent to the server."""
        session = self.session
        told, sent = bytes(session.to_client), bytes(session.to_server)
        session.to_client.clear()
        session.to_server.clear()
        while not session.closed:
            session.drained()
            if not session.to_server:
                break
            sent += bytes(session.to_server)
            session.to_server.clear()
        return told, sent

    def begin(self) -> "Talk":
        self.server(GREETING)
        self.client(b"EHLO me.example\r\n")
        self.server(EHLO)
        return self

    def envelope(self) -> "Talk":
        self.begin()
        self.client(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
        self.server(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n")
        return self

    def exchange(self, verb: str) -> dict[str, Any]:
        """The last record of this verb."""
        return [record for record in self.records if record.get("verb") == verb][-1]


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_command_waits_and_nothing_behind_it_is_read(cut: int) -> None:
    talk = Talk(Says({"MAIL": asks(YES)})).begin()
    octets = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
    out = [talk.client(octets[at : at + cut]) for at in range(0, len(octets), cut)]
    assert {*out} == {(b"", b"")}
    assert not talk.session.wants(Side.CLIENT)
    assert talk.answer() == (b"", octets)
    assert talk.server(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n")[0] == b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
    assert talk.exchange("MAIL")["rule"] == "yes"


@pytest.mark.parametrize("verdict", [NO, BYE], ids=["answer", "hangup"])
def test_a_command_is_refused_in_its_turn(verdict: Verdict) -> None:
    talk = Talk(Says({"RCPT": asks(verdict)})).begin()
    assert talk.client(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nNOOP\r\n") == (
        b"",
        b"MAIL FROM:<a@x.example>\r\n",
    )
    told, sent = talk.answer()
    assert told == b""  # MAIL has no reply yet
    told, more = talk.server(b"250 2.1.0 Ok\r\n")
    assert told == b"250 2.1.0 Ok\r\n" + verdict.value.full.raw
    assert sent + more == (b"NOOP\r\n" if verdict is NO else b"")
    assert talk.session.closed is (verdict is BYE)
    assert talk.exchange("RCPT")["action"] == verdict.action.value


def test_what_is_asked_of_data_decides_what_comes_next() -> None:
    talk = Talk(Says({"DATA": asks(lambda outcome: NO if isinstance(outcome, Failed) else YES)})).envelope()
    assert talk.client(b"DATA\r\n") == (b"", b"")
    assert talk.answer(Failed("late"))[0] == NO.value.full.raw
    assert talk.client(b"DATA\r\n") == (b"", b"")
    assert talk.answer() == (b"", b"DATA\r\n")
    assert talk.server(b"354 Go\r\n")[0] == b"354 Go\r\n"
    assert talk.client(b"A: b\r\n\r\nDATA\r\n.\r\n") == (b"", b"A: b\r\n\r\nDATA\r\n.\r\n")


@pytest.mark.parametrize("verdict", [YES, NO], ids=["pass", "answer"])
def test_the_octets_of_a_bdat_that_waited_are_octets(verdict: Verdict) -> None:
    talk = Talk(Says({"BDAT": asks(verdict)})).envelope()
    talk.client(b"BDAT 6 LAST\r\nNOOP\r\nNOOP\r\n")
    told, sent = talk.answer()
    if verdict is YES:
        assert (told, sent) == (b"", b"BDAT 6 LAST\r\nNOOP\r\nNOOP\r\n")
    else:
        assert (told, sent) == (NO.value.full.raw, b"NOOP\r\n")


def test_one_question_after_the_other() -> None:
    talk = Talk(Says({"NOOP": asks(lambda outcome: asks(NO))})).begin()
    talk.client(b"NOOP\r\n")
    assert talk.answer() == (b"", b"")
    assert talk.answer()[0] == NO.value.full.raw


def test_a_question_that_fails_is_a_refusal() -> None:
    def broken(outcome: Any) -> Verdict:
        raise KeyError(outcome)

    talk = Talk(Says({"NOOP": asks(broken)})).begin()
    talk.client(b"NOOP\r\n")
    assert talk.answer()[0].startswith(b"451 4.3.0 ")
    assert talk.exchange("NOOP")["anomalies"] == ["rule-failed"]


def test_answers_that_nobody_waits_for_are_nothing() -> None:
    talk = Talk(Says({"NOOP": asks(YES)})).begin()
    talk.session.decided(1, None)
    talk.client(b"NOOP\r\n")
    (ask,) = talk.asked()
    talk.session.decided(ask.ticket + 1, None)
    assert talk.out() == (b"", b"")
    talk.session.stop()
    talk.out()
    talk.session.decided(ask.ticket, None)
    assert talk.out() == (b"", b"")
    assert talk.session.closed


def test_while_it_is_asked_nobody_is_out_of_patience_and_draining_waits() -> None:
    talk = Talk(Says({"NOOP": asks(YES)})).begin()
    talk.client(b"NOOP\r\n")
    assert talk.session.patience() == (Side.CLIENT, float("inf"))
    talk.session.drain()
    assert not talk.session.closed
    assert talk.answer()[0].startswith(b"421 4.3.2 ")  # nothing new is begun
    assert talk.session.closed


def test_a_client_that_has_ended_its_side_is_told() -> None:
    talk = Talk(Says({"NOOP": asks(NO)})).begin()
    talk.client(b"NOOP\r\n")
    talk.client(b"")
    assert talk.answer()[0] == NO.value.full.raw
    assert talk.session.closed


def test_a_server_that_goes_meanwhile_is_told_of() -> None:
    talk = Talk(Says({"NOOP": asks(YES)})).begin()
    talk.client(b"NOOP\r\n")
    assert talk.server(b"")[0].startswith(b"421 4.4.2 ")
    assert talk.session.closed


def test_what_rules_did_is_on_record_whenever_they_did_it() -> None:
    first = Effects(("slow",), (Observed("look", "answer", "550 5.7.1 No"),), ("a",))
    second = NO._replace(effects=Effects(("more",), (), ("b",)))
    talk = Talk(Says({"NOOP": asks(second, first)})).begin()
    talk.client(b"NOOP\r\n")
    talk.answer()
    record = talk.exchange("NOOP")
    assert record["rule"] == "no"
    assert record["rules"] == ["slow", "more"]
    assert record["observed"] == [{"rule": "look", "action": "answer", "told": "550 5.7.1 No"}]
    assert record["tags"] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------------- replies


def test_a_reply_waits_at_the_head() -> None:
    talk = Talk(Says(replies={"MAIL": asks(YES)})).begin()
    talk.client(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
    assert talk.server(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n")[0] == b""
    assert talk.answer()[0] == b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"


def test_a_reply_is_hung_up_on_with_the_servers_own_words() -> None:
    talk = Talk(Says(replies={"MAIL": asks(Verdict(Action.HANGUP, None, "bye"))})).begin()
    talk.client(b"MAIL FROM:<a@x.example>\r\n")
    talk.server(b"550 5.1.8 You\r\n")
    assert talk.answer()[0] == b"550 5.1.8 You\r\n"
    assert talk.session.closed


def test_a_reply_that_begins_tls_does_not_wait() -> None:
    seen: list[Any] = []

    def then(outcome: Any) -> Verdict:
        seen.append(outcome)
        return YES

    talk = Talk(Says(replies={"STARTTLS": asks(then)}))
    talk.server(GREETING)
    talk.client(b"EHLO me.example\r\n")
    talk.server(b"250-mx.example\r\n250 STARTTLS\r\n")
    talk.client(b"STARTTLS\r\n")
    talk.server(b"220 Go\r\n")
    talk.session.tls_done(Side.SERVER, TLSInfo("TLSv1.3", "x"))
    talk.session.tls_ready()
    assert talk.out()[0] == b"220 Go\r\n"
    assert isinstance(seen[0], Failed)


# ------------------------------------------------------------------------------------------------------------- content


def whole(verdict: Verdict) -> Talk:
    return Talk(Looks(Depth.WHOLE, verdict)).envelope()


def test_a_mail_that_was_asked_about_goes_on() -> None:
    talk = whole(asks(YES))
    assert talk.client(b"DATA\r\n")[0].startswith(b"354 ")
    assert talk.client(b"A: b\r\n\r\n..\r\n.\r\nQUIT\r\n") == (b"", b"")
    assert talk.answer() == (b"", b"DATA\r\n")
    assert talk.server(b"354 Go\r\n") == (b"", b"A: b\r\n\r\n..\r\n.\r\n")
    assert talk.server(b"250 2.0.0 Ok\r\n") == (b"250 2.0.0 Ok\r\n", b"QUIT\r\n")
    assert talk.exchange("END")["rule"] == "yes"


@pytest.mark.parametrize(
    ("verdict", "told"),
    [(NO, NO.value.full.raw), (KEPT, KEPT.value.full.raw), (AWAY, b"250 "), (BYE, BYE.value.full.raw)],
    ids=lambda value: value.action.value if isinstance(value, Verdict) else "",
)
@pytest.mark.parametrize("way", [b"DATA\r\nA: b\r\n\r\n.\r\n", b"BDAT 8 LAST\r\nA: b\r\n\r\n"], ids=["DATA", "BDAT"])
def test_a_mail_that_was_asked_about_is_taken_back(verdict: Verdict, told: bytes, way: bytes) -> None:
    talk = whole(asks(verdict))
    talk.client(way)
    talk.client(b"NOOP\r\n")
    said, sent = talk.answer()
    assert sent.startswith(b"RSET\r\n")
    said += talk.server(b"250 Reset\r\n")[0]
    assert said.startswith(told)
    assert talk.exchange("END" if way.startswith(b"DATA") else "BDAT")["action"] == verdict.action.value
    assert [record["kind"] for record in talk.records].count("tx-refused") == 1
    assert talk.session.closed is (verdict is BYE)


def test_chunks_that_were_asked_about_go_on() -> None:
    talk = whole(asks(YES))
    assert talk.client(b"BDAT 4\r\nA: bBDAT 4 LAST\r\n\r\n\r\nNOOP\r\n")[1] == b""
    assert talk.answer() == (b"", b"BDAT 8 LAST\r\nA: b\r\n\r\nNOOP\r\n")
    assert talk.server(b"250 2.0.0 Ok\r\n250 Ok\r\n")[0].endswith(b"250 2.0.0 Ok\r\n250 Ok\r\n")


def test_the_server_is_kept_awake_and_its_reply_is_no_go_ahead() -> None:
    """A NOOP of ours stands before the end of data that waits, in the ledger as on the wire."""
    talk = whole(asks(YES))
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    talk.session.keep_alive()
    assert talk.out() == (b"", b"")  # not while the outside is asked: that has a deadline
    assert talk.answer() == (b"", b"DATA\r\n")
    assert talk.server(b"354 Go\r\n")[1] == b"A: b\r\n\r\n.\r\n"


def test_a_noop_that_is_owed_comes_before_our_own_data() -> None:
    talk = whole(asks(YES))
    talk.client(b"DATA\r\n")
    talk.session.keep_alive()
    assert talk.out()[1] == b"NOOP\r\n"
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.answer() == (b"", b"DATA\r\n")
    assert talk.server(b"250 Ok\r\n") == (b"", b"")
    assert talk.server(b"354 Go\r\n")[1] == b"A: b\r\n\r\n.\r\n"
    assert talk.server(b"250 2.0.0 Ok\r\n")[0] == b"250 2.0.0 Ok\r\n"


def test_a_beginning_is_replaced() -> None:
    talk = whole(Verdict(Action.REWRITE, (6, b"X: longer\r\n"), "edit"))
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\ntext\r\n.\r\n")
    assert talk.server(b"354 Go\r\n")[1] == b"X: longer\r\n\r\ntext\r\n.\r\n"
    talk.server(b"250 2.0.0 Ok\r\n")
    (commit,) = [record for record in talk.records if record["kind"] == "tx-commit"]
    assert commit["octets"] == len(b"X: longer\r\n\r\ntext\r\n")
    assert talk.exchange("END")["rule"] == "edit"


@pytest.mark.parametrize("value", [b"no line", (1, b"a\nb\r\n"), None], ids=["unended", "stray", "nothing"])
def test_what_is_no_content_is_not_sent(value: Any) -> None:
    talk = whole(Verdict(Action.REWRITE, value if value is not None else b"x", "edit"))
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"451 4.3.0 ")


@pytest.mark.parametrize("depth", [Depth.HEADER])
def test_nothing_waits_in_the_middle_of_a_mail(depth: Depth) -> None:
    talk = Talk(Looks(depth, asks(YES))).envelope()
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"451 4.3.0 ")
    assert "rule-failed" in talk.exchange("END")["anomalies"]


# ------------------------------------------------------------------------------------------------- commands, discarded


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_a_mail_is_discarded_by_a_command(verb: str) -> None:
    talk = Talk(Says({verb: AWAY})).envelope()
    assert talk.client(b"DATA\r\n")[1] == b""
    assert talk.client(b"A: b\r\n\r\nx\r\n.\r\n") == (b"", b"RSET\r\n")
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"250 ")
    assert talk.exchange(verb)["action"] == "discard"
    assert talk.exchange("END")["rule"] == "away"
    assert [record["kind"] for record in talk.records].count("tx-refused") == 1


def test_chunks_are_discarded_by_a_command() -> None:
    talk = Talk(Says({"MAIL": AWAY})).envelope()
    assert talk.client(b"BDAT 2\r\nA:")[0].startswith(b"250 ")
    assert talk.client(b"BDAT 4 LAST\r\n b\r\n") == (b"", b"RSET\r\n")
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"250 ")


def test_a_command_is_rewritten_and_the_mail_is_what_the_server_got() -> None:
    def line(text: bytes) -> Verdict:
        command = parse_command(text)
        assert isinstance(command, Command)
        return Verdict(Action.REWRITE, command, "edit")

    talk = Talk(
        Says({"MAIL": line(b"MAIL FROM:<c@z.example>\r\n"), "RCPT": line(b"RCPT TO:<d@z.example>\r\n")})
    ).begin()
    assert talk.client(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")[1] == (
        b"MAIL FROM:<c@z.example>\r\nRCPT TO:<d@z.example>\r\n"
    )
    talk.server(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n")
    talk.client(b"RSET\r\n")
    talk.server(b"250 Ok\r\n")
    (refused,) = [record for record in talk.records if record["kind"] == "tx-refused"]
    assert (refused["mail"], refused["rcpt"]) == ("c@z.example", ["d@z.example"])


# ------------------------------------------------------------------------------------------------- connecting, and TLS


class Meets(Says):
    """A verdict about who connects, or about a link that is encrypted."""

    def __init__(
        self, connect: Verdict | None = None, tls: Verdict | None = None, ended: Verdict | None = None
    ) -> None:
        super().__init__()
        self.connect = (lambda session: connect) if connect is not None else None  # type: ignore[assignment]
        self.tls = (lambda side, session: tls if side is Side.CLIENT else PASS) if tls is not None else None  # type: ignore[assignment]
        self.ended = (lambda exchange, accepted, session: ended) if ended is not None else None  # type: ignore[assignment]


def test_who_may_connect_does() -> None:
    talk = Talk(Meets(PASS._replace(effects=Effects(tags=("known",)))))
    assert talk.session.begin()
    talk.server(GREETING)
    assert talk.exchange("GREETING")["tags"] == ["known"]
    assert Talk(Says()).session.begin()


@pytest.mark.parametrize("verdict", [NO, BYE], ids=["answer", "hangup"])
@pytest.mark.parametrize("asked", [False, True])
def test_who_may_not_connect_is_told_in_place_of_the_greeting(verdict: Verdict, asked: bool) -> None:
    talk = Talk(Meets(asks(verdict) if asked else verdict))
    assert not talk.session.begin()
    told = talk.answer()[0] if asked else talk.out()[0]
    assert told == verdict.value.plain.raw
    assert talk.session.closed
    assert talk.session.effects == [Close(Side.CLIENT)]
    assert talk.exchange("GREETING")["action"] == verdict.action.value


@pytest.mark.parametrize(
    ("verdict", "effect"),
    [(YES, Dial()), (Verdict(Action.REDIRECT, ("mx2.example", 2525), "move"), Dial("mx2.example", 2525))],
    ids=["pass", "redirect"],
)
def test_the_server_is_connected_to_when_that_is_decided(verdict: Verdict, effect: Dial) -> None:
    talk = Talk(Meets(asks(verdict)), facts=Facts("inbound", server="mx.example", server_port=25))
    assert not talk.session.begin()
    talk.answer()
    assert talk.session.effects == [effect]
    assert talk.session.facts.server == (effect.host or "mx.example")
    assert talk.server(GREETING)[0] == GREETING
    assert talk.exchange("GREETING")["rule"] == verdict.rule


def secured(verdict: Verdict) -> Talk:
    talk = Talk(Meets(tls=verdict))
    talk.server(GREETING)
    talk.client(b"EHLO me.example\r\n")
    talk.server(b"250-mx.example\r\n250 STARTTLS\r\n")
    talk.client(b"STARTTLS\r\n")
    talk.server(b"220 Go\r\n")
    talk.session.tls_done(Side.SERVER, TLSInfo("TLSv1.3", "x"))
    talk.session.tls_ready()
    talk.out()
    talk.session.effects.clear()
    talk.session.tls_done(Side.CLIENT, TLSInfo("TLSv1.0", "x"))
    return talk


def test_all_is_answered_so_on_a_link_that_is_not_wanted() -> None:
    talk = secured(NO)
    assert talk.client(b"EHLO me.example\r\n")[0] == NO.value.plain.raw
    assert talk.client(b"QUIT\r\n")[1] == b"QUIT\r\n"
    (note,) = [record for record in talk.records if record.get("subject") == "tls"]
    assert (note["rule"], note["action"], note["side"]) == ("no", "answer", "client")


def test_a_link_that_is_not_wanted_is_closed() -> None:
    talk = secured(BYE)
    assert talk.out()[0] == BYE.value.plain.raw
    assert talk.session.closed
    assert Abort(Side.SERVER) in talk.session.effects


def test_the_end_of_a_mail_is_counted() -> None:
    talk = Talk(Meets(ended=PASS._replace(effects=Effects(rules=("count",))))).envelope()
    talk.client(b"DATA\r\n")
    talk.server(b"354 Go\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    talk.server(b"250 2.0.0 Ok\r\n")
    assert talk.exchange("END")["rules"] == ["count"]
    assert talk.session.accepted == 1


def test_a_full_transcript_has_the_octets_and_no_secret() -> None:
    talk = Talk(Says())
    talk.session.transcript = True
    talk.envelope()
    talk.client(b"AUTH PLAIN AGEAcGFzc3dvcmQ=\r\n")
    talk.client(b"DATA\r\n")
    talk.server(b"354 Go\r\n")
    talk.client(b"A: b\r\n\r\n\xff.\r\n.\r\n")
    talk.server(b"250 2.0.0 Ok\r\n")
    assert talk.exchange("MAIL")["transcript"] == {
        "asked_octets": "MAIL FROM:<a@x.example>\r\n",
        "got_octets": "250 2.1.0 Ok\r\n",
    }
    assert talk.exchange("END")["transcript"]["content"] == "A: b\r\n\r\n\\xff.\r\n"
    assert "AGEAcGFzc3dvcmQ" not in str(talk.records)


class Deep(Says):
    """Content is held back, and nobody judges it."""

    def __init__(self, depth: Depth) -> None:
        super().__init__()
        self._depth = depth

    def depth(self, transaction: Any, session: Session) -> Depth:
        return self._depth


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_content_that_nobody_judges_goes_on(depth: Depth) -> None:
    talk = Talk(Deep(depth)).envelope()
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"354 Go\r\n")[1] == b"A: b\r\n\r\n.\r\n"


def broken(*_: Any) -> Verdict:
    raise KeyError("a rule")


@pytest.mark.parametrize("verdict", [NO, BYE, None], ids=["answer", "hangup", "failed"])
def test_the_servers_link_may_be_the_one_that_is_not_wanted(verdict: Verdict | None) -> None:
    """Its handshake comes first: who asked for TLS is told, or goes on to be answered so."""
    judge = Says()
    judge.tls = broken if verdict is None else lambda side, session: verdict if side is Side.SERVER else PASS  # type: ignore[assignment]
    talk = Talk(judge)
    talk.server(GREETING)
    talk.client(b"EHLO me.example\r\n")
    talk.server(b"250-mx.example\r\n250 STARTTLS\r\n")
    talk.client(b"STARTTLS\r\n")
    talk.server(b"220 Go\r\n")
    talk.session.tls_done(Side.SERVER, TLSInfo("TLSv1.0", "x"))
    told = talk.out()[0]
    assert talk.session.closed is (verdict is not NO)
    if verdict is NO:
        talk.session.tls_ready()
        talk.session.tls_done(Side.CLIENT, TLSInfo("TLSv1.3", "x"))
        talk.out()
        assert talk.client(b"EHLO me.example\r\n")[0] == NO.value.plain.raw
    else:
        reply = RULE_FAILED_CLOSING if verdict is None else verdict.value
        assert told == reply.plain.raw


@pytest.mark.parametrize("verdict", [NO, BYE], ids=["answer", "hangup"])
def test_a_link_that_is_encrypted_from_its_first_octet_is_judged_before_the_greeting(verdict: Verdict) -> None:
    talk = Talk(Meets(tls=verdict), posture=Posture(ClientTLS.IMPLICIT, ServerTLS.NEVER))
    talk.session.connected()
    talk.server(GREETING)
    talk.session.tls_ready()
    talk.session.tls_done(Side.CLIENT, TLSInfo("TLSv1.0", "x"))
    told = talk.out()[0]
    assert told == (GREETING if verdict is NO else BYE.value.plain.raw)
    if verdict is NO:
        assert talk.client(b"EHLO me.example\r\n")[0] == NO.value.plain.raw


# ---------------------------------------------------------------------------------------- the other side goes meanwhile


@pytest.mark.parametrize(
    ("verdict", "told"),
    [(YES, b"451 4.4.2 "), (NO, b"451 4.4.2 "), (BYE, b"451 4.4.2 "), (AWAY, b"250 "), (KEPT, b"250 2.0.0 Kept\r\n")],
    ids=lambda value: value.action.value if isinstance(value, Verdict) else "",
)
def test_a_server_that_goes_while_a_mail_is_asked_about(verdict: Verdict, told: bytes) -> None:
    """One reply to the end of data: 451, but where no server is needed."""
    talk = whole(asks(verdict))
    talk.client(b"DATA\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"") == (b"", b"")
    assert talk.answer()[0].startswith(told)
    assert [record["kind"] for record in talk.records].count("tx-commit") == 0


@pytest.mark.parametrize("end", ["server", "client", "stop"])
def test_a_reply_that_waits_when_the_session_ends_is_told_and_recorded_as_it_came(end: str) -> None:
    """What the server accepted is accepted."""
    talk = Talk(Says(replies={"END": asks(YES)})).envelope()
    talk.client(b"DATA\r\n")
    talk.server(b"354 Go\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"250 2.0.0 Queued\r\n")[0] == b""
    if end == "server":
        talk.session.server_sent(b"")
    elif end == "client":
        talk.session.client_lost()
    else:
        talk.session.stop()
    assert talk.out()[0].startswith(b"250 2.0.0 Queued\r\n" if end != "client" else b"")
    assert talk.session.closed
    assert [record["kind"] for record in talk.records].count("tx-commit") == 1
    talk.session.decided(1, None)


def test_how_many_replies_a_mail_has_does_not_wait() -> None:
    """RFC 2033 §4.2: one for each recipient that was accepted, though the client has not been told so yet."""
    talk = Talk(Says(replies={"RCPT": asks(YES)}))
    talk.server(GREETING)
    talk.client(b"LHLO me.example\r\n")
    talk.server(EHLO)
    talk.client(
        b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nRCPT TO:<c@y.example>\r\nBDAT 2 LAST\r\n\r\nNOOP\r\n"
    )
    assert talk.server(b"250 mail\r\n250 b\r\n250 c\r\n250 for b\r\n550 for c\r\n250 noop\r\n")[0] == b"250 mail\r\n"
    assert talk.answer()[0] == b"250 b\r\n"
    assert talk.answer()[0] == b"250 c\r\n250 for b\r\n550 for c\r\n250 noop\r\n"


def test_chunks_that_came_before_are_discarded_too() -> None:
    judge = Says()
    judge.commands = {"BDAT": lambda command, session: AWAY if command.argument.last else PASS}
    talk = Talk(judge).envelope()
    assert talk.client(b"BDAT 2\r\nA:") == (b"", b"BDAT 2\r\nA:")
    talk.server(b"250 Ok\r\n")
    assert talk.client(b"BDAT 4 LAST\r\n b\r\n")[1] == b"RSET\r\n"
    assert talk.server(b"250 Reset\r\n")[0].startswith(b"250 2.0.0 ")
    assert [record["kind"] for record in talk.records].count("tx-commit") == 0


@pytest.mark.parametrize("last", [False, True])
def test_what_is_fetched_for_a_discarded_mail_is_not(last: bool) -> None:
    """RFC 4468: BURL brings content that is not ours to see."""
    talk = Talk(Says({"RCPT": AWAY})).envelope()
    talk.session.client.capabilities = Capabilities.from_reply(Reply(250, b"250-mx\r\n250-BURL\r\n250 CHUNKING\r\n"))
    told, sent = talk.client(b"BURL imap://x.example/1" + (b" LAST" if last else b"") + b"\r\n")
    assert (told[:4], sent) == ((b"", b"RSET\r\n") if last else (b"250 ", b""))
    if last:
        assert talk.server(b"250 Reset\r\n")[0].startswith(b"250 ")


@pytest.mark.parametrize("verdict", [BYE, Verdict(Action.HANGUP, None, "bye"), None])
def test_a_mail_that_was_taken_is_told_so_whatever_a_rule_on_that_says(verdict: Verdict | None) -> None:
    judge = Says()
    judge.replies = {"END": broken if verdict is None else lambda got, exchange, session: verdict}
    talk = Talk(judge).envelope()
    talk.client(b"DATA\r\n")
    talk.server(b"354 Go\r\n")
    talk.client(b"A: b\r\n\r\n.\r\n")
    assert talk.server(b"250 2.0.0 Queued\r\n")[0] == b"250 2.0.0 Queued\r\n"
    assert talk.session.closed
    assert [record["kind"] for record in talk.records].count("tx-commit") == 1


def test_all_that_is_asked_about_a_mail_has_an_end() -> None:
    now = [0.0]

    def again(outcome: Any) -> Verdict:
        return NO if isinstance(outcome, Failed) else asks(again)

    talk = Talk(Says({"NOOP": asks(again)}))
    talk.session.clock = lambda: now[0]
    talk.begin()
    talk.client(b"NOOP\r\n")
    for _ in range(6):
        now[0] += 60.0
        told = talk.answer()[0]
    assert told == NO.value.full.raw


def test_one_answer_is_not_anothers() -> None:
    talk = Talk(Says({"NOOP": asks(NO)})).begin()
    talk.client(b"NOOP\r\n")
    (first,) = talk.asked()
    talk.answer()
    talk.client(b"NOOP\r\n")
    talk.session.decided(first.ticket, None)
    assert talk.out() == (b"", b"")
    assert talk.answer()[0] == NO.value.full.raw


def test_a_server_that_goes_while_a_reply_waits_and_the_proxy_stops() -> None:
    talk = Talk(Says(replies={"NOOP": asks(YES)})).begin()
    talk.client(b"NOOP\r\n")
    talk.server(b"250 Ok\r\n")
    talk.session.drain()
    assert talk.server(b"")[0].startswith(b"250 Ok\r\n421 4.3.2 ")
    assert talk.session.closed

r"""Content through a session: the three depths, DATA and BDAT, every verdict, every way a mail is refused.

What is kept here (architecture §7, content.py): a mail refused here never completes at the server (S4); what is refused
is read on to its end; 250 is told only after the server's own 250 (S3); legal content passes octet for octet (F01–F26).
"""

import io
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.session import content
from smtpproxy.session.content import PIECE
from smtpproxy.session.limits import Limits
from smtpproxy.session.records import Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Action, Depth, PassAll, Verdict
from smtpproxy.smtp.readers import stuffed
from smtpproxy.smtp.replies import own
from tests.models import MODELS, Looker, Model, Talk, converse, cut_at_random
from tests.play import DATA, MAIL, play
from tests.session.judges import effects

DEFERRED = (
    MAIL
    + r"""
    C> DATA
    >C 354 Start mail input; end with <CRLF>.<CRLF>
"""
)
RESET = r"""
    S> 250 2.0.0 Reset
"""
GOES_ON = r"""
    C> NOOP
    >S NOOP
    S> 250 2.0.0 Ok
    >C 250 2.0.0 Ok
"""

HELLO = b"EHLO me.example\r\n"
ENVELOPE = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
STRICT = MODELS[0]

NO = Verdict(Action.ANSWER, own("550 5.7.1 Not here"), "no")
AWAY = Verdict(Action.DISCARD, None, "away")
BYE = Verdict(Action.HANGUP, own("554 5.7.1 Go away"), "bye")

held_back = pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
depths = pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)


def judge(depth: Depth, verdict: Verdict = PASS, limit: int = 0) -> Looker:
    """A judge of one depth and one verdict."""
    return Looker(depth, lambda seen: verdict, limit)


def fails(seen: bytes) -> Verdict:
    """A rule with a bug."""
    raise ZeroDivisionError


def kinds(records: list[dict[str, Any]]) -> list[str]:
    """What became of each transaction."""
    return [record["kind"] for record in records if record["kind"].startswith("tx-")]


def end(records: list[dict[str, Any]], verb: str = "END") -> dict[str, Any]:
    """The record of the end of the content."""
    return [record for record in records if record.get("verb") == verb][-1]


# --------------------------------------------------------------------------------------------------------- DATA, passed


def test_stream_passes_as_it_comes() -> None:
    """STREAM: the octets go on at once, what may begin an end is kept; the end goes with the server's word for it."""
    records = play(
        DATA
        + r"""
        C> A: b
        C>
        C> ..x
        C> y\
        >S A: b
        >S
        >S ..x
        >S y\
        C> \r\n\
        C> .
        >S \r\n\
        >S .
        S> 250 2.0.0 queued as 1
        >C 250 2.0.0 queued as 1
    """
        + GOES_ON
    )
    assert kinds(records) == ["tx-begin", "tx-commit"]
    assert [r["octets"] for r in records if r["kind"] == "tx-commit"] == [15]
    assert end(records)["action"] == "pass"


@held_back
def test_held_back_until_judged(depth: Depth) -> None:
    """HEADER, WHOLE: DATA is answered here; the server hears of it when the mail was judged, and then all of it."""
    records = play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> ..x
        C> .
        >S DATA
        S> 354 Go
        >S A: b
        >S
        >S ..x
        >S .
        S> 250 2.0.0 queued as 1
        >C 250 2.0.0 queued as 1
    """
        + GOES_ON,
        rules=judge(depth),
    )
    assert kinds(records) == ["tx-begin", "tx-commit"]


def test_header_streams_what_comes_behind_it() -> None:
    """HEADER: once the header section is judged the rest follows as it comes."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> body
        >S DATA
        S> 354 Go
        >S A: b
        >S
        >S body\
        C> more
        >S \r\nmore\
        C> .
        >S \r\n.
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=judge(Depth.HEADER),
    )


@depths
def test_no_content_at_all(depth: Depth) -> None:
    """A mail of no octets is a mail of no octets at every depth."""
    for model, cut in itertools.product(MODELS, (None, partial(cut_at_random, seed=1))):
        talk = said(depth, b".\r\n", model=model, cut=cut)
        assert [mail.content for mail in talk.model.mails] == [b""]
        assert b"DATA\r\n.\r\n" in talk.to_server


@held_back
def test_held_back_commands_behind_the_end_wait(depth: Depth) -> None:
    """I2: what is pipelined behind a held-back mail is served when its end has been sent, and told in order (I1)."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C> .
        C> NOOP
        C> QUIT
        >S DATA
        S> 354 Go
        >S A: b
        >S .
        >S NOOP
        >S QUIT
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        S> 250 2.0.0 Ok
        >C 250 2.0.0 Ok
        S> 221 2.0.0 Bye
        >C 221 2.0.0 Bye
        -> close server
        -> close client
    """
        if depth is Depth.HEADER
        else DEFERRED
        + r"""
        C> A: b
        C> .
        C> NOOP
        C> QUIT
        >S DATA
        S> 354 Go
        >S A: b
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        >S NOOP
        >S QUIT
        S> 250 2.0.0 Ok
        >C 250 2.0.0 Ok
        S> 221 2.0.0 Bye
        >C 221 2.0.0 Bye
        -> close server
        -> close client
    """,
        rules=judge(depth),
    )


# ------------------------------------------------------------------------------------------------------- DATA, verdicts


def test_header_rewritten() -> None:
    """REWRITE: the header section is replaced; lines of it that begin with a dot are stuffed."""
    value = b"A: c\r\n.dot\r\n..\r\n.\r\n\r\n"
    records = play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> ..x
        C> .
        >S DATA
        S> 354 Go
        >S A: c
        >S ..dot
        >S ...
        >S ..
        >S
        >S ..x
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=judge(Depth.HEADER, Verdict(Action.REWRITE, value, "edit")),
    )
    assert end(records)["rule"] == "edit"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (b"new\r\n", r">S new"),  # another content
        (b".\r\n..\r\n", ">S ..\n        >S ..."),  # dot lines
        (b"", r""),  # nothing
        (b"\r\n", r">S"),  # an empty line
    ],
    ids=["other", "dots", "nothing", "empty line"],
)
@pytest.mark.parametrize("came", ["C> A: b\n        C> .", "C> ."], ids=["from something", "from nothing"])
def test_content_rewritten(value: bytes, sent: str, came: str) -> None:
    """REWRITE at WHOLE: the server gets the rule's content, stuffed, and ended as content ends."""
    play(
        DEFERRED
        + rf"""
        {came}
        >S DATA
        S> 354 Go
        {sent}
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
        + GOES_ON,
        rules=judge(Depth.WHOLE, Verdict(Action.REWRITE, value, "edit")),
    )


@held_back
@pytest.mark.parametrize(
    "way",
    [
        "C> DATA\n        >C 354 Start mail input; end with <CRLF>.<CRLF>\n        C> x\n        C> .",
        "C> BDAT 3 LAST\n        C> x",
    ],
    ids=["DATA", "BDAT"],
)
@pytest.mark.parametrize("value", [b"new", b"a\nb\r\n", b"a\rb\r\n", b"a\0b\r\n", b"a\r\n.\n", b"a\r"])
def test_an_edit_that_is_not_clean_fails_closed(depth: Depth, value: bytes, way: str) -> None:
    """A58: what a rule makes has whole lines and nothing astray, or the rule has failed: 451, and nothing goes out."""
    records = play(
        MAIL
        + rf"""
        {way}
        >S RSET
        S> 250 2.0.0 Reset
        >C 451 4.3.0 Policy could not be decided, try again later
    """
        + GOES_ON,
        rules=judge(depth, Verdict(Action.REWRITE, value, "careless")),
    )
    last = end(records, "BDAT" if "BDAT" in way else "END")
    assert (last["rule"], last["anomalies"]) == ("careless", ["rule-failed"])


@held_back
def test_the_record_is_of_what_was_sent_on(depth: Depth) -> None:
    """state.Transaction: size and digest are of the content as it was sent on, edits included."""
    edited = Verdict(Action.REWRITE, b"A: b\r\nX: added by a rule\r\n\r\n", "edit")
    talk = said(depth, b"A: b\r\n\r\n.\r\n", edited)
    assert [mail.sha256 for mail in talk.model.mails] == [r["sha256"] for r in talk.of(Kind.COMMIT)]
    assert [len(mail.content) for mail in talk.model.mails] == [r["octets"] for r in talk.of(Kind.COMMIT)]


@held_back
@pytest.mark.parametrize(
    ("verdict", "told", "action"),
    [(NO, "550 5.7.1 Not here", "answer"), (AWAY, "250 2.0.0 Ok", "discard")],
    ids=["answer", "discard"],
)
def test_not_passed(depth: Depth, verdict: Verdict, told: str, action: str) -> None:
    """ANSWER, DISCARD: nothing was sent; RSET takes the transaction back; the reply comes at the end; it goes on."""
    records = play(
        DEFERRED
        + rf"""
        C> A: b
        C>
        C> body
        C> .
        >S RSET
        {RESET.strip()}
        >C {told}
    """
        + GOES_ON,
        rules=judge(depth, verdict),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]
    assert (end(records)["action"], end(records)["rule"]) == (action, verdict.rule)


def test_refused_by_the_header_is_swallowed_to_its_end() -> None:
    """HEADER: the verdict is known early, and told at the end only; the rest is content and no command."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> body
        C> QUIT
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 550 5.7.1 Not here
    """
        + GOES_ON,
        rules=judge(Depth.HEADER, NO),
    )


@held_back
def test_hang_up(depth: Depth) -> None:
    """HANGUP: refused at the end, then both links are closed; nothing behind the end is served."""
    records = play(
        DEFERRED
        + r"""
        C> A: b
        C> .
        C> NOOP
        >S RSET
        S> 250 2.0.0 Reset
        >C 554 5.7.1 Go away
        -> close server
        -> close client
    """,
        rules=judge(depth, BYE),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]
    assert end(records)["action"] == "hangup"


@held_back
def test_a_rule_that_fails_fails_closed(depth: Depth) -> None:
    """Architecture §9: 451, recorded with its name; no mail passes because a rule has a bug."""
    records = play(
        DEFERRED
        + r"""
        C> A: b
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 451 4.3.0 Policy could not be decided, try again later
    """
        + GOES_ON,
        rules=Looker(depth, fails),
    )
    assert "rule-failed" in end(records)["anomalies"]
    assert [r["why"] for r in records if r["kind"] == "note"] == ["ZeroDivisionError"]
    assert kinds(records) == ["tx-begin", "tx-refused"]


class DepthFails(PassAll):
    """A judge that can't say how deep it wants to look."""

    def depth(self, transaction: Transaction, session: Session) -> Depth:
        """Not today."""
        raise ZeroDivisionError


@pytest.mark.parametrize("said", ["C> DATA", "C> BDAT 1 LAST\n        C> x\\"], ids=["DATA", "BDAT"])
def test_a_depth_that_fails_fails_closed(said: str) -> None:
    """Input methods never raise, whatever a judge does; the mail does not pass."""
    play(
        MAIL
        + f"""
        {said}
        >C 451 4.3.0 Policy could not be decided, try again later
    """
        + GOES_ON,
        rules=DepthFails(),
    )


# --------------------------------------------------------------------------------------------- DATA, the server says no


@held_back
@pytest.mark.parametrize("reply", ["452 4.3.1 full", "554 5.3.2 no"])
def test_a_deferred_data_the_server_refuses(depth: Depth, reply: str) -> None:
    """§7: its reply is told at the end of data in place of ours; the transaction is taken back; the session lives."""
    records = play(
        DEFERRED
        + rf"""
        C> A: b
        C>
        C> body
        C> .
        >S DATA
        S> {reply}
        >S RSET
        S> 250 2.0.0 Reset
        >C {reply}
    """
        + GOES_ON,
        rules=judge(depth),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


def test_a_deferred_data_refused_while_content_comes() -> None:
    """HEADER: the server's refusal is kept, the rest swallowed, and told at the end."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> body
        >S DATA
        S> 452-4.3.1 full
        S> 452 4.3.1 really
        C> more
        C> QUIT
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 452-4.3.1 full
        >C 452 4.3.1 really
    """
        + GOES_ON,
        rules=judge(Depth.HEADER),
    )


@held_back
@pytest.mark.parametrize("reply", ["250 2.0.0 queued already", "334 QQ==", "100 what"])
def test_a_deferred_data_answered_out_of_order(depth: Depth, reply: str) -> None:
    """I9: what is no go-ahead to our DATA is a violation: the server's link is cut, the client never told 250 (S3)."""
    play(
        DEFERRED
        + rf"""
        C> A: b
        C>
        C> x
        C> .
        >S DATA
        S> {reply}
        >C 451 4.3.0 The mail server broke the protocol, try again later
        -> abort server
        C> NOOP
        >C 421 4.4.2 The session to the mail server is over, try again later
        -> close client
    """,
        rules=judge(depth),
    )


@held_back
def test_anomalies_are_on_the_record_once(depth: Depth) -> None:
    """One anomaly, one name on the record, also where two things happen to one mail."""
    talk = said(depth, b"A: b\n\r\nx\r\n.\r\n", answers={b"DATA": b"452 4.3.1 full\r\n"})
    anomalies = end(talk.records)["anomalies"]
    assert len(anomalies) == len(set(anomalies)), anomalies


@held_back
def test_no_recipient_was_accepted(depth: Depth) -> None:
    """§7: a deferred DATA is answered 554 when no recipient was accepted, as the server would have."""
    script = MAIL.replace("S> 250 2.1.5 Ok", "S> 550 5.1.1 Who?").replace(">C 250 2.1.5 Ok", ">C 550 5.1.1 Who?")
    play(
        script
        + r"""
        C> DATA
        >C 554 5.5.1 No valid recipients
    """
        + GOES_ON,
        rules=judge(depth),
    )


@held_back
def test_no_recipient_was_accepted_pipelined(depth: Depth) -> None:
    """I1: the 554 waits for the replies before it; content sent too early is commands, one reply each."""
    play(
        MAIL.split("C> MAIL")[0]
        + r"""
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> RCPT TO:<c@y.example>
        C> DATA
        C> NOOP
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S RCPT TO:<c@y.example>
        S> 250 2.1.0 Ok
        >C 250 2.1.0 Ok
        S> 550 5.1.1 Who?
        S> 550 5.1.1 Who?
        >C 550 5.1.1 Who?
        >C 550 5.1.1 Who?
        >C 554 5.5.1 No valid recipients
        >S NOOP
        S> 250 2.0.0 Ok
        >C 250 2.0.0 Ok
    """,
        rules=judge(depth),
    )


@held_back
def test_one_recipient_was_accepted_pipelined(depth: Depth) -> None:
    """A deferred DATA in the client's pipelining group: 354 once the replies before it were told."""
    play(
        MAIL.split("C> MAIL")[0]
        + r"""
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> RCPT TO:<c@y.example>
        C> DATA
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S RCPT TO:<c@y.example>
        S> 250 2.1.0 Ok
        S> 550 5.1.1 Who?
        S> 250 2.1.5 Ok
        >C 250 2.1.0 Ok
        >C 550 5.1.1 Who?
        >C 250 2.1.5 Ok
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> x
        C> .
        >S DATA
        S> 354 Go
        >S x
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=judge(depth),
    )


# --------------------------------------------------------------------------------------------- refused on the way: DATA


@held_back
def test_strays_refused(depth: Depth) -> None:
    """newlines = refuse where nothing was sent yet: 550 at the end, RSET, and the session lives on."""
    records = play(
        DEFERRED
        + r"""
        C> A: b\nC: d
        C>
        C> x
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 550 5.6.0 CR or LF alone, or NUL, in the content
    """
        + GOES_ON,
        rules=judge(depth),
        newlines="refuse",
    )
    assert end(records)["anomalies"] == ["stray-newline-refused"]
    assert kinds(records) == ["tx-begin", "tx-refused"]


def test_a_stray_behind_a_judged_header_refused() -> None:
    """HEADER: what comes behind the header section is streamed; a stray in it costs the server's link (as STREAM)."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> x
        >S DATA
        S> 354 Go
        >S A: b
        >S
        >S x\
        C> y\nz
        -> abort server
        C> .
        >C 550 5.6.0 CR or LF alone, or NUL, in the content
    """,
        rules=judge(Depth.HEADER),
        newlines="refuse",
    )


@held_back
def test_strays_normalised_before_they_are_judged(depth: Depth) -> None:
    """What is judged is what is sent: rules see CRLF only, and a look-alike as the content it is."""
    looker = judge(depth)
    records = play(
        DEFERRED
        + r"""
        C> A: b\nC: d\n\n.\nx\0y
        C> .
        >S DATA
        S> 354 Go
        >S A: b
        >S C: d
        >S
        >S ..
        >S x y
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=looker,
    )
    header = b"A: b\r\nC: d\r\n\r\n"
    assert set(looker.seen) == {header if depth is Depth.HEADER else header + b".\r\nx y\r\n"}
    assert end(records)["anomalies"] == ["stray-newline-normalised"]


@held_back
def test_over_size(depth: Depth) -> None:
    """Over the limit before anything was sent: 552 at the end, RSET, and the session lives on; any cut."""
    records = play(
        DEFERRED
        + r"""
        C> *200 x
        C> QUIT
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 552 5.3.4 Message too big
    """
        + GOES_ON,
        rules=judge(depth, limit=100),
    )
    assert end(records)["anomalies"] == ["over-size"]
    assert end(records)["octets"] == 208
    assert kinds(records) == ["tx-begin", "tx-refused"]


def test_over_size_behind_a_judged_header() -> None:
    """HEADER: the header section is judged where it ends, in any cut; the limit is met behind it (I6)."""
    play(
        DEFERRED
        + r"""
        C> A: b
        C>
        C> *200 x
        C> QUIT
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 550 5.7.1 Not here
    """
        + GOES_ON,
        rules=judge(Depth.HEADER, NO, limit=100),
    )


@depths
@pytest.mark.parametrize(("octets", "code"), [(99, 250), (100, 250), (101, 552)])
def test_the_limit_is_the_last_size_that_passes(depth: Depth, octets: int, code: int) -> None:
    """RFC 1870 §3: the size is of the content with its CRLFs and without dot-stuffing."""
    body = b"..\r\n" + b"x" * (octets - 5) + b"\r\n"
    for cut in (None, partial(cut_at_random, seed=3)):
        talk = said(depth, body + b".\r\n", limit=100, cut=cut)
        assert talk.codes[5] == code
        assert len(talk.model.mails) == (code == 250)


@pytest.mark.parametrize("section", [r"*30 A", "A: b\n        C> *30 B"], ids=["one field", "two fields"])
def test_header_too_big(section: str) -> None:
    """I7: a header section beyond the limit is not held back: 552 at the end, RSET, and the session lives on."""
    records = play(
        DEFERRED
        + rf"""
        C> {section}
        C> C: d
        C>
        C> body
        C> .
        >S RSET
        S> 250 2.0.0 Reset
        >C 552 5.3.4 Header section too big
    """
        + GOES_ON,
        rules=judge(Depth.HEADER),
        limits=Limits(header=20),
    )
    assert end(records)["anomalies"] == ["header-too-big"]


@pytest.mark.parametrize(("octets", "code"), [(19, 250), (20, 250), (21, 552)])
def test_the_header_limit_is_the_same_in_any_cut(octets: int, code: int) -> None:
    """I6: the header section counts, with its empty line, and what stands behind it in the same read does not."""
    section = b"A: " + b"x" * (octets - 7) + b"\r\n\r\n"
    for cut in (None, *(partial(cut_at_random, seed=seed) for seed in range(5))):
        talk = said(Depth.HEADER, section + b"y" * 100 + b"\r\n.\r\n", limits=Limits(header=20), cut=cut)
        assert talk.codes[5] == code


SWALLOW = Limits(swallow=50)


@pytest.mark.parametrize("octets", [10, 28, 29, 30, 31, 40, 60, 500])
def test_swallowing_has_an_end(octets: int) -> None:
    """S7, A61: refused content is read on for so many octets and no more; then 552 and close, in any cut (I6)."""
    told = set()
    for cut in (None, *(partial(cut_at_random, seed=seed) for seed in range(5))):
        talk = said(Depth.WHOLE, b"x" * (18 + octets) + b"\r\n.\r\n", limit=20, limits=SWALLOW, cut=cut)
        told.add(tuple(talk.codes))
        # 20 octets more than these are content: over 70 (limit and swallow) the session is closed
        assert talk.codes[:6] == [220, 250, 250, 250, 354, 552 if octets <= 50 else 421]
        assert len(talk.codes) in (6, 7), "one reply for the end of data, and 221 if the session lives on (I1)"
        assert talk.model.mails == []
    assert len(told) == 1, "the same in any cut"


def test_the_swallow_limit_closes() -> None:
    """A61: beyond the limit the client is told 552 and both links close, wherever its content ends."""
    records = play(
        DEFERRED
        + r"""
        C> *100 x
        C> *100 x
        >C 421 4.7.0 Too much refused content, closing
        -> close server
        -> close client
    """,
        rules=judge(Depth.WHOLE, limit=20),
        limits=SWALLOW,
    )
    assert [r["anomaly"] for r in records if r["kind"] == "violation"] == ["swallow-limit"]


# ----------------------------------------------------------------------------------------------------------------- BDAT


def test_chunks_stream_as_they_come() -> None:
    """STREAM: `BDAT n` goes on as it is, and its octets, uncounted ones never."""
    records = play(
        MAIL
        + r"""
        C> BDAT 6
        C> ab\n.\r\n\
        >S BDAT 6
        >S ab\n.\r\n\
        S> 250 2.0.0 6 octets
        >C 250 2.0.0 6 octets
        C> BDAT 3 LAST
        C> .\r\nNOOP
        >S BDAT 3 LAST
        >S .\r\n\
        >S NOOP
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        S> 250 2.0.0 Ok
        >C 250 2.0.0 Ok
    """
    )
    assert kinds(records) == ["tx-begin", "tx-commit"]
    assert [r["octets"] for r in records if r["kind"] == "tx-commit"] == [9]


def test_chunks_held_back_for_the_header() -> None:
    """HEADER: chunks are answered here until the header section is whole; then one of our own size goes on."""
    records = play(
        MAIL
        + r"""
        C> BDAT 3
        C> A: \
        >C 250 2.0.0 Octets received
        C> BDAT 6
        C> b\r\n\r\nx\
        >S BDAT 9
        >S A: b
        >S
        >S x\
        S> 250 2.0.0 9 octets
        >C 250 2.0.0 9 octets
        C> BDAT 2 LAST
        C> yz\
        >S BDAT 2 LAST
        >S yz\
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
        + GOES_ON,
        rules=judge(Depth.HEADER),
    )
    assert kinds(records) == ["tx-begin", "tx-commit"]
    assert [r["octets"] for r in records if r.get("verb") == "BDAT"] == [3, 6, 2]


def test_chunks_held_back_whole() -> None:
    """WHOLE: every chunk is answered here; LAST sends all of it as one."""
    records = play(
        MAIL
        + r"""
        C> BDAT 3
        C> A: \
        >C 250 2.0.0 Octets received
        C> BDAT 6
        C> b\r\n\r\nx\
        >C 250 2.0.0 Octets received
        C> BDAT 2 LAST
        C> yz\
        >S BDAT 11 LAST
        >S A: b
        >S
        >S xyz\
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
        + GOES_ON,
        rules=judge(Depth.WHOLE),
    )
    assert kinds(records) == ["tx-begin", "tx-commit"]


@held_back
def test_chunks_without_a_header_section(depth: Depth) -> None:
    """The end of the content ends the header section too."""
    looker = judge(depth)
    play(
        MAIL
        + r"""
        C> BDAT 4 LAST
        C> A: b\
        >S BDAT 4 LAST
        >S A: b\
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=looker,
    )
    assert set(looker.seen) == {b"A: b"}


@held_back
def test_chunks_rewritten(depth: Depth) -> None:
    """REWRITE: the size the server is told is that of what it gets; nothing is stuffed."""
    value = b"X: y\r\n.\r\n\r\n"
    play(
        MAIL
        + r"""
        C> BDAT 8 LAST
        C> A: b
        C>
        >S BDAT 11 LAST
        >S X: y
        >S .
        >S
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
        + GOES_ON,
        rules=judge(depth, Verdict(Action.REWRITE, value, "edit")),
    )


@held_back
@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (NO, "550 5.7.1 Not here"),
        (AWAY, "250 2.0.0 Ok"),
        (None, "451 4.3.0 Policy could not be decided, try again later"),
    ],
    ids=["answer", "discard", "fails"],
)
def test_chunks_not_passed(depth: Depth, verdict: Verdict | None, told: str) -> None:
    """ANSWER, DISCARD, a failing rule on LAST: RSET takes the transaction back, the octets are never commands."""
    records = play(
        MAIL
        + rf"""
        C> BDAT 14 LAST
        C> A: b
        C>
        C> QUIT
        >S RSET
        S> 250 2.0.0 Reset
        >C {told}
    """
        + GOES_ON,
        rules=Looker(depth, fails) if verdict is None else judge(depth, verdict),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


@held_back
def test_chunks_hang_up(depth: Depth) -> None:
    """HANGUP on LAST: told, then both links close."""
    play(
        MAIL
        + r"""
        C> BDAT 8 LAST
        C> A: b
        C>
        >S RSET
        S> 250 2.0.0 Reset
        >C 554 5.7.1 Go away
        -> close server
        -> close client
    """,
        rules=judge(depth, BYE),
    )


def test_chunks_refused_by_the_header_before_last() -> None:
    """HEADER: refused in the middle: told for each further chunk, one RSET, every octet taken."""
    records = play(
        MAIL
        + r"""
        C> BDAT 8
        C> A: b
        C>
        >S RSET
        S> 250 2.0.0 Reset
        >C 550 5.7.1 Not here
        C> BDAT 6
        C> QUIT
        >C 550 5.7.1 Not here
        C> BDAT 6 LAST
        C> QUIT
        >C 550 5.7.1 Not here
    """
        + GOES_ON,
        rules=judge(Depth.HEADER, NO),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


def test_chunks_discarded_by_the_header_before_last() -> None:
    """HEADER, DISCARD: each chunk is answered 250 and thrown away; RSET goes for LAST."""
    records = play(
        MAIL
        + r"""
        C> BDAT 8
        C> A: b
        C>
        >C 250 2.0.0 Octets received
        C> BDAT 6 LAST
        C> QUIT
        >S RSET
        S> 250 2.0.0 Reset
        >C 250 2.0.0 Ok
    """
        + GOES_ON,
        rules=judge(Depth.HEADER, AWAY),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


@held_back
def test_chunks_the_server_refuses(depth: Depth) -> None:
    """The server's own no to our BDAT is told for the client's, and nothing is acknowledged."""
    records = play(
        MAIL
        + r"""
        C> BDAT 8 LAST
        C> A: b
        C>
        >S BDAT 8 LAST
        >S A: b
        >S
        S> 552 5.2.2 full
        >C 552 5.2.2 full
    """
        + GOES_ON,
        rules=judge(depth),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


@depths
def test_chunks_over_size(depth: Depth) -> None:
    """The announced size counts: 552, RSET, the octets taken, and the session lives on; in any cut."""
    records = play(
        MAIL
        + r"""
        C> BDAT 33 LAST
        C> A: b
        C>
        C> *23 x\
        >S RSET
        S> 250 2.0.0 Reset
        >C 552 5.3.4 Message too big
    """.replace("*23 x", "*25 x")
        + GOES_ON,
        rules=judge(depth, limit=20),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]
    assert "over-size" in end(records, "BDAT")["anomalies"]


@depths
def test_chunks_over_size_together(depth: Depth) -> None:
    """The size of a mail is that of all its chunks; the one too many is refused, and all that follow."""
    first = "C> BDAT 15\n        C> *15 x\\"
    stream = "\n        >S BDAT 15\n        >S *15 x\\\n        S> 250 2.0.0 15 octets\n        >C 250 2.0.0 15 octets"
    held = "\n        >C 250 2.0.0 Octets received"
    play(
        MAIL
        + rf"""
        {first}{stream if depth is Depth.STREAM else held}
        C> BDAT 15
        C> *15 x\
        >S RSET
        S> 250 2.0.0 Reset
        >C 552 5.3.4 Message too big
        C> BDAT 6 LAST
        C> QUIT
        >C 552 5.3.4 Message too big
    """
        + GOES_ON,
        rules=judge(depth, limit=20),
    )


def test_chunks_header_too_big() -> None:
    """I7: a header section over several chunks that goes beyond the limit."""
    play(
        MAIL
        + r"""
        C> BDAT 15
        C> *15 x\
        >C 250 2.0.0 Octets received
        C> BDAT 15
        C> *15 x\
        >S RSET
        S> 250 2.0.0 Reset
        >C 552 5.3.4 Header section too big
        C> BDAT 6 LAST
        C> QUIT
        >C 552 5.3.4 Header section too big
    """
        + GOES_ON,
        rules=judge(Depth.HEADER),
        limits=Limits(header=20),
    )


@held_back
def test_rset_between_chunks_takes_what_is_held(depth: Depth) -> None:
    """RFC 3030 §2: RSET ends the sequence; the next mail has nothing of it."""
    looker = judge(depth)
    records = play(
        MAIL
        + r"""
        C> BDAT 3
        C> old\
        >C 250 2.0.0 Octets received
        C> RSET
        >S RSET
        S> 250 2.0.0 Reset
        >C 250 2.0.0 Reset
        C> MAIL FROM:<a@x.example>
        >S MAIL FROM:<a@x.example>
        S> 250 2.1.0 Ok
        >C 250 2.1.0 Ok
        C> RCPT TO:<b@y.example>
        >S RCPT TO:<b@y.example>
        S> 250 2.1.5 Ok
        >C 250 2.1.5 Ok
        C> BDAT 3 LAST
        C> new\
        >S BDAT 3 LAST
        >S new\
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """,
        rules=looker,
    )
    assert set(looker.seen) == {b"new"}
    assert kinds(records) == ["tx-begin", "tx-refused", "tx-begin", "tx-commit"]


def test_chunks_swallow_limit() -> None:
    """S7, E36–E53: the octets of refused chunks are thrown away for so long and no longer; then the session closes."""
    play(
        MAIL.replace(">C 250-CHUNKING\n", "").replace("    S> 250-CHUNKING\n", "").replace("    \n", "")
        + r"""
        C> BDAT 1000 LAST
        C> *1000 x\
        >C 502 5.5.1 Command not offered here
        >C 421 4.7.0 Too much refused content, closing
        -> close server
        -> close client
    """,
        limits=SWALLOW,
    )


# ------------------------------------------------------------------------------------------- while content is held back


@held_back
def test_keep_alive(depth: Depth) -> None:
    """§7: while content is held back a NOOP of ours keeps the server patient; its reply is told to nobody."""
    records = play(
        DEFERRED
        + r"""
        C> A: b\
        !! keep-alive
        >S NOOP
        !! keep-alive
        S> 250 2.0.0 Ok
        C> c\
        !! keep-alive
        >S NOOP
        C>
        C> .
        >S DATA
        S> 250 2.0.0 Ok
        S> 354 Go
        >S A: bc
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        !! keep-alive
    """
        + GOES_ON,
        rules=judge(depth),
    )
    own = [r for r in records if r.get("verb") == "NOOP" and r["asked"] is None]
    assert [(r["sent"], r["got"], r["told"]) for r in own] == [("NOOP", "250 2.0.0 Ok", None)] * 2


@held_back
def test_keep_alive_between_chunks(depth: Depth) -> None:
    """The same for BDAT: what is held between chunks is held."""
    play(
        MAIL
        + r"""
        C> BDAT 3
        C> A: \
        >C 250 2.0.0 Octets received
        !! keep-alive
        >S NOOP
        S> 250 2.0.0 Ok
        C> BDAT 1 LAST
        C> b\
        >S BDAT 4 LAST
        >S A: b\
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        !! keep-alive
    """,
        rules=judge(depth),
    )


def test_no_keep_alive_where_nothing_is_held() -> None:
    """A NOOP in the middle of streamed content would be content."""
    play(
        MAIL
        + r"""
        !! keep-alive
        C> DATA
        >S DATA
        !! keep-alive
        S> 354 Go
        >C 354 Go
        C> x
        >S x\
        !! keep-alive
        C> .
        >S \r\n.
        !! keep-alive
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        !! keep-alive
    """
    )


@held_back
def test_the_server_goes_while_content_is_held(depth: Depth) -> None:
    """S3, G14: 451 at the end of data, never 250 and never 5yz; 421 to what comes next."""
    records = play(
        DEFERRED
        + r"""
        C> A: b
        !! end server
        -> close server
        C> QUIT
        C> .
        >C 451 4.4.2 Connection to the mail server lost, try again later
        C> NOOP
        >C 421 4.4.2 The session to the mail server is over, try again later
        -> close client
    """,
        rules=judge(depth),
    )
    assert kinds(records) == ["tx-begin", "tx-refused"]


@depths
@pytest.mark.parametrize("ending", ["end", "lost"])
def test_the_client_goes_in_the_middle(depth: Depth, ending: str) -> None:
    """S4, F51–F55: no end of data is made up on the client's end, whatever stood in its content."""
    for tail in (b"x", b"x\r\n", b"x\r\n.", b"x\r\n.\r", b"x\r\nQUIT\r\n"):
        talk = converse(None, STRICT.fresh(), HELLO + ENVELOPE + b"DATA\r\nA: b\r\n\r\n" + tail, judge=judge(depth))
        if ending == "end":
            talk.session.client_sent(b"")
        else:
            talk.session.client_lost()
        talk.model.feed(bytes(talk.session.to_server))
        assert talk.session.closed
        assert talk.model.mails == []
        assert effects(talk.session)[0] == "Abort server" or depth is Depth.WHOLE


class Spool(io.BytesIO):
    """A spool that knows whether it was closed."""

    made: list["Spool"]


@pytest.fixture
def spools() -> Callable[[], Spool]:
    """Makes spools, and keeps them in `made`."""
    Spool.made = []

    def make() -> Spool:
        spool = Spool()
        Spool.made.append(spool)
        return spool

    return make


@pytest.mark.parametrize("verdict", [PASS, NO, AWAY, BYE, Verdict(Action.REWRITE, b"new\r\n", "edit")], ids=str)
@pytest.mark.parametrize("way", [b"DATA\r\nA: b\r\n.\r\n", b"BDAT 2\r\nA:BDAT 4 LAST\r\n b\r\n"], ids=["DATA", "BDAT"])
def test_the_spool_is_closed(verdict: Verdict, way: bytes, spools: Callable[[], Spool]) -> None:
    """I7: the spool of held-back content is closed when the mail is over, whatever became of it."""
    converse(None, STRICT.fresh(), HELLO + ENVELOPE + way, judge=judge(Depth.WHOLE, verdict), spool=spools)
    assert {spool.closed for spool in Spool.made} == {True}


BROKEN_OFF = {"DATA": b"DATA\r\nA: b\r\n", "BDAT": b"BDAT 2\r\nA:", "chunk": b"BDAT 5\r\nA:"}


@pytest.mark.parametrize(
    ("how", "way"),
    [*itertools.product(("end", "lost", "stop", "timeout"), BROKEN_OFF), ("RSET", "BDAT"), ("EHLO", "BDAT")],
)
def test_the_spool_is_closed_when_the_mail_does_not_end(how: str, way: str, spools: Callable[[], Spool]) -> None:
    """I7: the same when the client goes, is silent, or thinks better of it."""
    said = HELLO + ENVELOPE + BROKEN_OFF[way]
    talk = converse(None, STRICT.fresh(), said, judge=judge(Depth.WHOLE), spool=spools)
    session = talk.session
    if how == "end":
        session.client_sent(b"")
    elif how == "lost":
        session.client_lost()
    elif how == "stop":
        session.stop()
    elif how == "timeout":
        session.timed_out(session.client.side)
    else:
        session.client_sent(b"EHLO me\r\n" if how == "EHLO" else b"RSET\r\n")
        session.server_sent(b"250 2.0.0 Ok\r\n")
    assert {spool.closed for spool in Spool.made} == {True}


# ------------------------------------------------------------------------------------------------------------ refilling


def said(
    depth: Depth,
    octets: bytes,
    verdict: Verdict = PASS,
    *,
    limit: int = 0,
    model: Model = STRICT,
    answers: dict[bytes, bytes] | None = None,
    **options: Any,
) -> Talk:
    """One mail by DATA, its end included, and QUIT, through a session to a model; the readings must agree."""
    talk = converse(
        None,
        model.fresh(answers),
        HELLO + ENVELOPE + b"DATA\r\n" + octets + b"QUIT\r\n",
        judge=judge(depth, verdict, limit),
        **options,
    )
    if verdict.action is not Action.REWRITE:
        talk.assert_one_reading()
    return talk


@pytest.mark.parametrize("back", range(6))
def test_large_content_through_refill(back: int) -> None:
    """WHOLE: content larger than a piece goes on piece by piece, and a dot line across their border is stuffed."""
    plain = b"x" * (PIECE - back) + b"\r\n.\r\n" + b"y" * (PIECE - 5) + b"\r\n..\r\n.\r\nz\r\n"
    wire = stuffed(plain) + b".\r\n"
    talk = said(Depth.WHOLE, wire)
    assert b"DATA\r\n" + wire in talk.to_server
    assert [mail.content for mail in talk.model.mails] == [plain]


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 7])
def test_content_through_refill_in_tiny_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a border at every octet."""
    monkeypatch.setattr(content, "PIECE", piece)
    for lines in itertools.product((b"", b".", b"..", b"a."), repeat=3):
        plain = b"".join(line + b"\r\n" for line in lines)
        talk = said(Depth.WHOLE, stuffed(plain) + b".\r\n")
        assert [mail.content for mail in talk.model.mails] == [plain]
        assert talk.codes[5:] == [250, 221]


@given(
    st.binary(max_size=40).map(lambda o: o.translate(bytes(b"\r\n..\na"[i % 6] for i in range(256)))), st.integers(1, 6)
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_rewritten_content_through_refill(value: bytes, piece: int) -> None:
    """WHOLE, REWRITE: whatever a rule makes of the content, the server reads one mail, and its end where it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "PIECE", piece)
        clean = b"".join(line.replace(b"\r", b"") + b"\r\n" for line in value.split(b"\n"))
        talk = said(Depth.WHOLE, b"x\r\n.\r\n", Verdict(Action.REWRITE, clean, "edit"))
    assert talk.codes == [220, 250, 250, 250, 354, 250, 221]
    assert [mail.content for mail in talk.model.mails] == [clean]


@pytest.mark.parametrize("more", range(-3, 6))
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_refill_never_stalls(pieces: int, more: int) -> None:
    """A driver asks for more when all was sent, and only then: each time there is something, up to the end of data."""
    plain = b"x" * (pieces * PIECE + more - 2) + b"\r\n"
    talk = said(Depth.WHOLE, plain + b".\r\n")
    assert talk.codes == [220, 250, 250, 250, 354, 250, 221]
    assert [len(mail.content) for mail in talk.model.mails] == [len(plain)]


def test_a_refill_waits_for_the_server_to_take_it() -> None:
    """I7: held-back content never waits in memory twice: a piece at a time, each when the one before was taken."""
    body = b"x" * (4 * PIECE) + b"\r\n"
    session = Session(judge=judge(Depth.WHOLE), record=lambda record: None, clock=lambda: 0.0)
    model = STRICT.fresh()
    session.server_sent(model.greeting)
    for octets in (HELLO, ENVELOPE, b"DATA\r\n"):
        session.client_sent(octets)
        if session.to_server:
            answer = model.feed(bytes(session.to_server))
            session.to_server.clear()
            session.server_sent(answer)
    session.client_sent(body + b".\r\n")
    assert bytes(session.to_server) == b"DATA\r\n"
    session.to_server.clear()
    session.server_sent(b"354 Go\r\n")
    sent = bytearray()
    turns = 0
    while session.to_server:
        turns += 1
        assert len(session.to_server) <= PIECE + 5
        sent += session.to_server
        session.to_server.clear()
        session.drained()
    assert bytes(sent) == body + b".\r\n"
    assert turns >= 4


# ------------------------------------------------------------------------------------- F01–F26: legal, and odd, content

CONTENTS: dict[str, bytes] = {
    "F01-plain": b"From: a@x.example\r\nTo: b@y.example\r\nSubject: x\r\n\r\nbody\r\n",
    "F02-8-bit": b"Subject: x\r\n\r\n\xff\xfe\x80\xe9\r\n",
    "F03-UTF-8": "Subject: gr\xfc\xdfe\r\n\r\n\u20ac \U0001f4e8\r\n".encode(),
    "F04-blanks at line ends": b"Subject: x \r\n\t\r\n\r\nbody \r\n\t \r\n  \r\n",
    "F05-no header section": b"\r\nbody\r\n",
    "F06-no body": b"Subject: x\r\n",
    "F07-no body, empty line": b"Subject: x\r\n\r\n",
    "F08-dots": b".\r\n..\r\n...\r\n.a\r\na.\r\n. \r\n",
    "F09-dots in the header section": b".: x\r\n.Subject: x\r\n\r\n.\r\n",
    "F10-empty lines": b"\r\n" * 50,
    "F11-signed MIME": b'Content-Type: multipart/signed; boundary="=_x"\r\n\r\n--=_x\r\n\r\nsigned  \r\n--=_x--\r\n',
    "F12-odd header spacing": b"Subject:x\r\nTo :b@y.example\r\nX:\t\t y\r\nFrom:   a@x.example  \r\n\r\n",
    "F13-folds": b"Subject: a\r\n b\r\n\tc\r\n  \r\n d\r\n\r\nbody\r\n",
    "F14-1 MiB": b"Subject: x\r\n\r\n" + (b"0123456789abcdef" * 4 + b"\r\n") * 15888,
    "F15-UTF-8 in the header section": "Subject: \u65e5\u672c\r\nX-\xfc: y\r\n\r\n".encode(),
    "F16-998 octets on a line": b"Subject: x\r\n\r\n" + b"x" * 998 + b"\r\n",
    "F17-998 octets behind a stuffed dot": b"Subject: x\r\n\r\n." + b"x" * 997 + b"\r\n",
    "F18-100 k on a line": b"Subject: x\r\n\r\n" + b"x" * 100_000 + b"\r\n",
    "F19-100 k on a line of the header section": b"Subject: " + b"x" * 100_000 + b"\r\n\r\nbody\r\n",
    "F20-20,000 folds": b"Subject: x\r\n" + b" y\r\n" * 20_000 + b"\r\nbody\r\n",
    "F21-20,000 fields": b"A: b\r\n" * 20_000 + b"\r\nbody\r\n",
    "F22-no colon": b"Subject x\r\nfoo\r\n\r\nbody\r\n",
    "F23-a continuation first": b" Subject: x\r\n\r\nbody\r\n",
    "F24-From twice": b"From: a@x.example\r\nFrom: b@x.example\r\n\r\nbody\r\n",
    "F25-raw 8-bit header": b"Subject: \xff\xfe\r\n\xe9: x\r\n\r\nbody\r\n",
    "F26-a line of control octets": bytes(set(range(1, 32)) - {10, 13}) + b"\x7f\r\n",
}


@depths
@pytest.mark.parametrize("name", CONTENTS)
def test_legal_content_is_exact(name: str, depth: Depth) -> None:
    """F01–F26: octet for octet at every depth, in any cut (RFC 5321 §2.3.1, 6152, 6532): DKIM and S/MIME survive."""
    plain = CONTENTS[name]
    wire = stuffed(plain) + b".\r\n"
    for cut in (None, partial(cut_at_random, seed=6)):
        talk = said(depth, wire, cut=cut, newlines="refuse")
        assert talk.codes == [220, 250, 250, 250, 354, 250, 221]
        assert b"DATA\r\n" + wire + b"QUIT\r\n" in talk.to_server
        assert [mail.content for mail in talk.model.mails] == [plain]


@depths
@pytest.mark.parametrize("name", CONTENTS)
def test_legal_content_is_exact_in_chunks(name: str, depth: Depth) -> None:
    """The same by BDAT, in three chunks."""
    plain = CONTENTS[name]
    size = len(plain) // 2
    said = b"BDAT %d\r\n%sBDAT 0\r\nBDAT %d LAST\r\n%s" % (size, plain[:size], len(plain) - size, plain[size:])
    talk = converse(None, STRICT.fresh(), HELLO + ENVELOPE + said + b"QUIT\r\n", judge=judge(depth))
    talk.assert_one_reading()
    assert talk.codes == [220, 250, 250, 250, 250, 250, 250, 221]
    assert [mail.content for mail in talk.model.mails] == [plain]


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"Subject: " + b"x" * 1_000_000 + b"\r\n\r\n", 552),  # a header section of 1 MB
        (b"A: b\r\n" * 100_000 + b"\r\n", 552),  # of 100,000 fields
        (b"x" * 1_000_000 + b"\r\n", 552),  # no end of it
        (b"Subject: x\r\n\r\n" + b"x" * 1_000_000 + b"\r\n", 250),  # a small one
    ],
    ids=["F20-1 MB", "F21-100,000 fields", "F16-no end", "F16-small"],
)
def test_a_huge_header_section_is_refused_at_the_end(octets: bytes, code: int) -> None:
    """F16–F26: served or refused at the end of data, in bounded time, in pieces of any size."""
    for size in (1000, 65536, 10_000_000):

        def cut(data: bytes, size: int = size) -> Any:
            return (data[i : i + size] for i in range(0, len(data), size))

        talk = said(Depth.HEADER, octets + b".\r\n", cut=cut)
        assert talk.codes == [220, 250, 250, 250, 354, code, 221]


def test_a_line_of_20_megabytes() -> None:
    """F19: streamed, not kept: 20 MB without a line end in reads of 64 KiB take bounded time and no buffer."""
    session = Session(judge=judge(Depth.STREAM), record=lambda record: None, clock=lambda: 0.0)
    model = STRICT.fresh()
    session.server_sent(model.greeting)
    for octets in (HELLO, ENVELOPE, b"DATA\r\n"):
        session.client_sent(octets)
        answer = model.feed(bytes(session.to_server))
        session.to_server.clear()
        session.server_sent(answer)
    piece = b"x" * 65536
    total = 0
    begun = time.process_time()
    for _ in range(320):
        session.client_sent(piece)
        total += len(session.to_server)
        assert len(session.to_server) <= 2 * len(piece)
        session.to_server.clear()
    assert total == 320 * len(piece)
    assert time.process_time() - begun < 5

r"""No smuggling: whatever a client hides in a mail, every server behind the proxy reads the one mail that was judged.

Table A of attacks.md by number. Each class is sent through a session to every model server (tests/models.py), and what
the model understood must be what the records say: the same commands, the same mails, octet for octet (I3, I4, S1).
"""

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from smtpproxy.policy.judge import Judge, extension_rule
from smtpproxy.policy.rules import Treatment
from smtpproxy.session.records import Kind
from smtpproxy.session.verdicts import PASS, Action, Depth, Verdict
from tests.models import LOOKALIKES, MODELS, Looker, Model, Talk, converse, cut_at_random, octet_by_octet, shown
from tests.play import DATA, play

HELLO = b"EHLO me.example\r\n"
ENVELOPE = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
SMUGGLED = b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<victim@y.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled\r\n"
END = b".\r\n"
QUIT = b"QUIT\r\n"
BIG = 200_000

numbers = pytest.mark.parametrize("number", LOOKALIKES, ids=lambda n: f"{n}-{shown(LOOKALIKES[n])}")
models = pytest.mark.parametrize("model", MODELS, ids=repr)
newlines = pytest.mark.parametrize("newlines", ["normalise", "refuse"])


def one_mail(model: Model, content: bytes, **options: Any) -> Talk:
    """A client that sends one mail with this content (its end included) and QUIT, without waiting for any reply."""
    return converse(None, model.fresh(), HELLO + ENVELOPE + b"DATA\r\n" + content + QUIT, **options)


def assert_one_mail(talk: Talk, newlines: str = "normalise") -> None:
    """One mail was understood, as recorded, and each command told once: EHLO MAIL RCPT DATA end QUIT."""
    talk.assert_one_reading()
    assert [command.split()[0] for command in talk.model.commands[:4]] == [b"EHLO", b"MAIL", b"RCPT", b"DATA"]
    if newlines == "normalise":
        assert talk.codes == [220, 250, 250, 250, 354, 250, 221]
        assert len(talk.model.mails) == 1
        assert talk.model.mails[0].sender == b"a@x.example"
        assert len(talk.model.commands) == 5
        assert talk.model.idle
    else:
        assert talk.codes == [220, 250, 250, 250, 354, 550, 221]
        assert talk.model.mails == []
        assert talk.aborted, "half a mail at the server: its link is cut (S4)"
        assert len(talk.model.commands) == 4


# --------------------------------------------------------------------------------- A01–A56: the look-alikes, everywhere

PLACES: dict[str, bytes] = {
    "in the body": b"Subject: x\r\n\r\nbody",  # the plain form
    "behind a line end": b"Subject: x\r\n\r\nbody\r\n",  # a line of its own
    "in the header section (A56)": b"Subject: x",  # no empty line before it
    "as the first octets (A56)": b"",  # the start of the content counts as a line start
    "behind an empty line": b"\r\n",  # no header section
    "behind a dot": b"Subject: x\r\n\r\n..",  # a stuffed line
}


@newlines
@numbers
def test_a_lookalike_is_no_end(number: str, newlines: str) -> None:
    """A01–A53, A56: in every place, to every model, nothing behind a look-alike is a command."""
    sequence = LOOKALIKES[number]
    for before, model in itertools.product(PLACES.values(), MODELS):
        talk = one_mail(model, before + sequence + SMUGGLED + END, newlines=newlines)
        stray = bool((before + sequence).replace(b"\r\n", b"").strip(b".Subject: xbody"))
        assert stray, "every look-alike holds a stray"
        assert_one_mail(talk, newlines)


@pytest.mark.parametrize("length", [998, 999, 2046, 4093, 4096, 8190, 65535, 65536])
def test_a_lookalike_behind_a_long_line(length: int) -> None:
    """A59: the same behind 998 … 65,536 octets on one line; a dot there begins no line."""
    for number, sequence in LOOKALIKES.items():
        model = MODELS[int(number[1:]) % len(MODELS)]
        talk = one_mail(model, b"x" * length + sequence + SMUGGLED + END)
        assert_one_mail(talk)
    for model in MODELS:
        talk = one_mail(model, b"x" * length + b".\r\n" + SMUGGLED + END)
        assert_one_mail(talk)
        assert talk.model.mails[0].content == b"x" * length + b".\r\n" + SMUGGLED


@numbers
def test_a_lookalike_cut_anywhere(number: str) -> None:
    """A60: cut within the sequence and around it, and octet by octet: the same octets go out."""
    content = b"body" + LOOKALIKES[number] + SMUGGLED + END
    opening = HELLO + ENVELOPE + b"DATA\r\n"
    whole = one_mail(MODELS[0], content)
    model = MODELS[int(number[1:]) % len(MODELS)]
    for at in range(len(opening) + 3, len(opening) + 14):

        def cut(octets: bytes, at: int = at) -> Iterator[bytes]:
            yield octets[:at]
            yield octets[at:]

        talk = one_mail(model, content, cut=cut)
        assert_one_mail(talk)
        assert talk.model.mails == whole.model.mails
    talk = one_mail(model, content, cut=octet_by_octet)
    assert_one_mail(talk)
    assert talk.to_server == whole.to_server


@pytest.mark.parametrize("size", [4096, 8192, 65536])
@pytest.mark.parametrize("number", ["A01", "A13", "A16", "A19", "A33", "A53"])
def test_a_lookalike_straddles_reads(number: str, size: int) -> None:
    """A60: across the border of two reads of a driver's size."""
    sequence = LOOKALIKES[number]
    opening = HELLO + ENVELOPE + b"DATA\r\n"
    for back in range(1, len(sequence) + 1):
        content = b"x" * (size - len(opening) - back) + sequence + SMUGGLED + END
        for model in (MODELS[5], MODELS[9], MODELS[11]):

            def cut(octets: bytes) -> Iterator[bytes]:
                return (octets[i : i + size] for i in range(0, len(octets), size))

            assert_one_mail(one_mail(model, content, cut=cut))


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
@numbers
def test_a_lookalike_where_content_is_judged(number: str, depth: Depth) -> None:
    """A01–A56 at depth HEADER and WHOLE: what was judged is what every model understands."""
    sequence = LOOKALIKES[number]
    for place, model in itertools.product(("in the body", "as the first octets (A56)"), MODELS):
        judge = Looker(depth)
        talk = one_mail(model, PLACES[place] + sequence + SMUGGLED + END, judge=judge)
        assert_one_mail(talk)
        content = talk.model.mails[0].content
        assert len(judge.seen) == 1
        assert content == judge.seen[0] if depth is Depth.WHOLE else content.startswith(judge.seen[0])


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
@numbers
def test_a_lookalike_refused_where_content_is_judged(number: str, depth: Depth) -> None:
    """The same with newlines = refuse: nothing was sent yet, so the session lives on."""
    for model in MODELS:
        talk = one_mail(model, b"body" + LOOKALIKES[number] + SMUGGLED + END, judge=Looker(depth), newlines="refuse")
        talk.assert_one_reading()
        assert talk.model.mails == []
        assert talk.codes == [220, 250, 250, 250, 354, 550, 221]
        assert not talk.model.commands.count(b"MAIL FROM:<evil@x.example>")
        assert talk.model.closed, "QUIT reached the server"


# ------------------------------------------------------------------------------------------ A54, A55: replaced, stuffed


@pytest.mark.parametrize(
    ("came", "sent"),
    [
        (r"a\0.", r"a ."),  # NUL within a line
        (r"\0.", r" ."),  # NUL before a dot: deleting it makes an end
        (r".\0", r". "),  # NUL behind a dot: deleting it makes an end
        (r"\r.", r" ."),  # CR before a dot: turned into CRLF it would begin a line
        (r"a\r\r", r"a  "),  # CRs before CRLF
    ],
)
def test_a54_nothing_is_deleted(came: str, sent: str) -> None:
    """A54: deleting NUL or CR is itself the smuggle; a blank takes their place."""
    play(
        DATA
        + rf"""
        C> x
        C> {came}
        C> y
        C> .
        >S x
        >S {sent}
        >S y
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
    )


def test_a55_a_line_end_that_was_made_is_stuffed_behind() -> None:
    """A55: LF alone becomes CRLF before unstuffing, and the dot behind it is stuffed anew."""
    records = play(
        DATA
        + r"""
        C> one\n.\ntwo\n..three\n.four
        C> .
        >S one
        >S ..
        >S two
        >S ...three
        >S ..four
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
    """
    )
    assert records[-2]["anomalies"] == ["stray-newline-normalised"]
    assert records[-2]["verb"] == "END"


def test_stray_newlines_are_refused_where_that_is_said() -> None:
    """`refuse`: the server's link is cut, the rest swallowed, 550 told at the real end, and 421 to what comes next."""
    records = play(
        DATA
        + r"""
        C> one\n.\r
        -> abort server
        C> MAIL FROM:<evil@x.example>
        C> .
        >C 550 5.6.0 CR or LF alone, or NUL, in the content
        C> NOOP
        >C 421 4.4.2 The session to the mail server is over, try again later
        -> close client
    """,
        newlines="refuse",
    )
    assert [r["anomalies"] for r in records if r.get("verb") == "END"] == [["stray-newline-refused"]]
    assert [r["kind"] for r in records if r["kind"] in ("tx-commit", "tx-refused")] == ["tx-refused"]


# ------------------------------------------------------------------------------------- A57: edits of the header section

INSERTED = b"X-Checked: yes\r\n"
EDITS: dict[str, tuple[bytes, Callable[[bytes], bytes], bytes]] = {
    # came · the edit · what the server must understand
    "a line put before content that begins with a dot": (b"..\r\n.\r\n", lambda h: INSERTED + h, INSERTED + b".\r\n"),
    "before content that begins with a look-alike": (
        b"\n.\r\nNOOP\r\n.\r\n",
        lambda h: INSERTED + h,
        INSERTED + b"\r\n.\r\nNOOP\r\n",
    ),
    "before no content at all": (b".\r\n", lambda h: INSERTED + h, INSERTED),
    "before an empty header section": (b"\r\n..\r\n.\r\n", lambda h: INSERTED + h, INSERTED + b"\r\n.\r\n"),
    "a line of dots put in": (b"A: b\r\n\r\nx\r\n.\r\n", lambda h: b".\r\n..\r\n" + h, b".\r\n..\r\nA: b\r\n\r\nx\r\n"),
    "an end of data put in": (
        b"A: b\r\n\r\nx\r\n.\r\n",
        lambda h: b"X: y\r\n.\r\nNOOP\r\n" + h,
        b"X: y\r\n.\r\nNOOP\r\nA: b\r\n\r\nx\r\n",
    ),
    "the empty line taken away before a dot": (
        b"A: b\r\n\r\n..\r\n.\r\n",
        lambda h: h.replace(b"\r\n\r\n", b"\r\n", 1),
        b"A: b\r\n.\r\n",
    ),
}


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
@pytest.mark.parametrize("name", EDITS)
def test_a57_an_inserted_header_makes_no_end(name: str, depth: Depth) -> None:
    """A57 (Postfix 20260816): what a rule puts in is stuffed like all else, wherever content begins behind it."""
    came, edit, wanted = EDITS[name]
    for model, cut in itertools.product(MODELS, (None, partial(cut_at_random, seed=1), octet_by_octet)):
        judge = Looker(depth, lambda seen: Verdict(Action.REWRITE, edit(seen), "edit"))
        talk = one_mail(model, came, judge=judge, cut=cut)
        assert talk.codes == [220, 250, 250, 250, 354, 250, 221]
        assert len(talk.model.commands) == 5
        assert [mail.content for mail in talk.model.mails] == [wanted]
        assert talk.model.idle


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
@pytest.mark.parametrize(
    "value",
    [b"X: y\n.\nNOOP\r\n\r\n", b"X: y\r\n.\nNOOP\r\n\r\n", b"X: y\r.\r\nNOOP\r\n\r\n", b"X: y\r\n\0.\r\nNOOP\r\n\r\n"],
    ids=shown,
)
def test_a58_a_rules_stray_newline_never_gets_out(value: bytes, depth: Depth) -> None:
    """A58, S1: no bare CR, LF or NUL is emitted ever, a rule's own edit included: clean octets, or the mail refused."""
    for model in MODELS:
        judge = Looker(depth, lambda seen: Verdict(Action.REWRITE, value, "careless"))
        talk = one_mail(model, b"A: b\r\n\r\nx\r\n.\r\n", judge=judge)
        assert not any(octet in talk.to_server.replace(b"\r\n", b"") for octet in b"\r\n\0")
        assert len(talk.model.mails) <= 1
        assert len(talk.codes) == 7, "one reply a command (I1)"
        assert b"NOOP" not in talk.model.commands


# ---------------------------------------------------------------------------- A61, A62: refused, and read on to the end


@models
def test_a61_an_over_size_mail_is_swallowed_to_its_real_end(model: Model) -> None:
    """A61: a look-alike and commands behind the limit are still content; one 552, and then 421."""
    for sequence in (b"\n.\n", b"\r\n.\r", b"\n.\r\n", b"\r\n\0.\r\n"):
        judge = Looker(Depth.STREAM, limit=100)
        talk = one_mail(model, b"x" * 200 + sequence + SMUGGLED + END + b"NOOP\r\n", judge=judge)
        talk.assert_one_reading()
        assert talk.codes == [220, 250, 250, 250, 354, 552, 421]
        assert talk.aborted
        assert talk.model.mails == []
        assert len(talk.model.commands) == 4


@models
@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE], ids=lambda d: d.value)
def test_a61_over_size_where_nothing_was_sent_yet(depth: Depth, model: Model) -> None:
    """A61 at depth HEADER and WHOLE: RSET takes the transaction back, the session lives on and the next mail passes."""
    judge = Looker(depth, limit=100)
    talk = one_mail(model, b"x" * 200 + b"\n.\n" + SMUGGLED + END + ENVELOPE + b"DATA\r\nshort\r\n.\r\n", judge=judge)
    talk.assert_one_reading()
    assert talk.codes == [220, 250, 250, 250, 354, 552, 250, 250, 354, 250, 221]
    assert [mail.content for mail in talk.model.mails] == [b"short\r\n"]


def test_a61_one_552_and_then_the_session_is_over() -> None:
    """A61 as a transcript: the reply comes at the real end and not before."""
    play(
        DATA.replace(">C 250-SIZE 10000000", ">C 250-SIZE 20")
        + r"""
        C> *30 x
        -> abort server
        C> .\n
        C> MAIL FROM:<evil@x.example>\n.\r\n\
        C> QUIT
        C> .
        >C 552 5.3.4 Message too big
        C> QUIT
        >C 221 2.0.0 Bye
        -> close client
    """,
        rules=Judge([extension_rule("SIZE", Treatment.LIMIT, 20)]),
    )


@pytest.mark.parametrize("reply", ["552 5.3.4 too much", "452 4.3.1 disk full", "421 4.3.2 going down"])
def test_a62_the_server_refuses_in_the_middle_of_data(reply: str) -> None:
    """A62: the client's content is read on to its end, its commands-to-be are content, one reply is told there."""
    records = play(
        DATA
        + rf"""
        C> first
        >S first\
        S> {reply}
        -> abort server
        C> second\n.\n
        C> MAIL FROM:<evil@x.example>
        C> .
        >C {reply}
        C> NOOP
        >C 421 4.4.2 The session to the mail server is over, try again later
        -> close client
    """
        if not reply.startswith("421")
        else DATA
        + rf"""
        C> first
        >S first\
        S> {reply}
        -> abort server
        C> second\n.\n
        C> .
        >C {reply}
        -> close client
    """
    )
    assert [r["anomalies"] for r in records if r.get("verb") == "END"] == [["early-refusal"]]


def test_a62_an_acknowledgement_before_the_end_is_none() -> None:
    """G10, I9: a 250 before the end of data was sent acknowledges nothing: 451 at the end, never 250."""
    play(
        DATA
        + r"""
        C> first
        >S first\
        S> 250 2.0.0 queued already
        -> abort server
        C> second
        C> .
        >C 451 4.3.0 The mail server broke the protocol, try again later
    """
    )


# ----------------------------------------------------------------------------------------- A63, A64: exact to the octet

EXACT: dict[str, bytes] = {
    "A63-NEL": b"a\xc2\x85.\xc2\x85NOOP\r\n",
    "A63-LS-PS": b"a\xe2\x80\xa8.\xe2\x80\xa9NOOP\r\n",
    "A63-VT-FF": b"a\x0b.\x0bNOOP\x0c.\x0cNOOP\r\n",
    "A63-FS-GS-RS": b"a\x1c.\x1cNOOP\x1d.\x1dNOOP\x1e.\x1eNOOP\r\n",
    "A63-U+560A-U+560D": "a\u560d\u560a.\u560d\u560aNOOP\r\n".encode(),
    "A63-overlong": b"a\xc0\x8d\xc0\x8a.\xc0\x8d\xc0\x8aNOOP\r\n",
    "A63-high-bit": b"a\x8d\x8a.\x8d\x8aNOOP\r\n",
    "A63-UTF-7": b"a+AA0ACg-.+AA0ACg-NOOP\r\n",
    "A63-every-octet": bytes(o for o in range(256) if o not in b"\0\r\n") + b"\r\n",
    "A64-stuffed": b"..\r\n..\r\n...\r\n..a\r\n",
    "A64-dot-blank": b". \r\n.\t\r\n .\r\n",
    "A64-quoted-printable": b"a=0D=0A.=0D=0ANOOP\r\na=\r\n..=\r\n=0D=0A\r\n",
    "A64-html": b"a&#13;&#10;.&#13;&#10;NOOP\r\n",
    "A64-base64": b"DQouDQpOT09Q\r\n",
    "A64-empty-lines": b"\r\n\r\n\r\n\r\n",
}


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
@pytest.mark.parametrize("name", EXACT)
def test_a63_a64_pass_octet_for_octet(name: str, depth: Depth) -> None:
    """A63, A64: what looks like a line end only to a program that reads characters is content: passed as it came."""
    content = EXACT[name]
    plain = (b"\r\n" + content).replace(b"\r\n.", b"\r\n")[2:]
    for model, newlines in itertools.product(MODELS, ("normalise", "refuse")):
        judge = Looker(depth)
        talk = one_mail(model, content + END, newlines=newlines, judge=judge)
        assert_one_mail(talk)
        assert [mail.content for mail in talk.model.mails] == [plain]
        if depth is Depth.STREAM:
            assert b"DATA\r\n" + content + b".\r\nQUIT\r\n" in talk.to_server
        if depth is Depth.WHOLE:
            assert judge.seen == [plain]


# ------------------------------------------------------------------------------------------------------------ A65: BDAT

CHUNKS: dict[str, list[bytes]] = {
    "an end in one chunk": [b"a\r\n.\r\nMAIL FROM:<evil@x.example>\r\n.\r\n"],
    "an end split over chunks": [b"a\r\n", b".\r", b"\nNOOP\r\n"],
    "a CRLF split over chunks": [b"a\r", b"\n.\r", b"\n"],
    "a dot alone": [b"."],
    "a dot line at the start": [b".\r\n", b"..\r\n"],
    "commands": [b"RSET\r\nMAIL FROM:<evil@x.example>\r\n", b"BDAT 5 LAST\r\nabcde"],
    "every octet": [bytes(range(256))],
    "strays": [b"a\nb\rc\0d\n.\n", b"\r.\r", b"\n.\r\n"],
    "no octets": [b""],
    "an empty chunk between": [b"a\r\n", b"", b".\r\n"],
    "an empty last chunk": [b"a\r\n", b""],
}


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
@pytest.mark.parametrize("name", CHUNKS)
def test_a65_chunks_are_exact(name: str, depth: Depth) -> None:
    """A65: BDAT's octets are counted and never looked for an end; every server gets each of them."""
    pieces = CHUNKS[name]
    content = b"".join(pieces)
    said = b"".join(
        b"BDAT %d%s\r\n%s" % (len(piece), b" LAST" if at == len(pieces) - 1 else b"", piece)
        for at, piece in enumerate(pieces)
    )
    for model, newlines in itertools.product([m for m in MODELS if m.chunking], ("normalise", "refuse")):
        for cut in (None, partial(cut_at_random, seed=2)):
            judge = Looker(depth)
            talk = converse(
                None, model.fresh(), HELLO + ENVELOPE + said + QUIT, judge=judge, cut=cut, newlines=newlines
            )
            talk.assert_one_reading()
            assert talk.codes == [220, 250, 250, 250] + [250] * len(pieces) + [221]
            assert [mail.content for mail in talk.model.mails] == [content]
            assert judge.seen == ([content] if depth is Depth.WHOLE else judge.seen)


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
def test_a65_a_refused_chunk_is_no_command(depth: Depth) -> None:
    """A65, E36–E53: where BDAT is not offered, its octets are swallowed and the session goes on in step."""
    model = next(model for model in MODELS if not model.chunking)
    said = b"BDAT 31\r\nMAIL FROM:<evil@x.example>\r\nx\r\nBDAT 6 LAST\r\nNOOP\r\n"
    talk = converse(None, model.fresh(), HELLO + ENVELOPE + said + b"DATA\r\nok\r\n.\r\n" + QUIT, judge=Looker(depth))
    talk.assert_one_reading()
    assert talk.codes == [220, 250, 250, 250, 502, 502, 354, 250, 221]
    assert [mail.content for mail in talk.model.mails] == [b"ok\r\n"]
    assert [r["octets"] for r in talk.of(Kind.COMMIT)] == [4], "what was swallowed is not counted to the mail"


def test_a65_chunks_outside_a_transaction_are_no_commands() -> None:
    """E36: a server may read the octets of a BDAT it refuses as commands: none is sent outside a transaction."""
    for model in MODELS:
        said = b"BDAT 6 LAST\r\nNOOP\r\nMAIL FROM:<a@x.example>\r\nBDAT 6 LAST\r\nNOOP\r\n" + QUIT
        talk = converse(None, model.fresh(), HELLO + said)
        talk.assert_one_reading()
        assert b"NOOP" not in talk.model.commands
        assert talk.codes[:2] == [220, 250]
        assert talk.codes[-1] == 221
        assert len(talk.codes) == 6


# ---------------------------------------------------------------------------------------------- A66: one behind another


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
@models
def test_a66_a_second_mail_behind_a_conforming_end_is_its_own(model: Model, depth: Depth) -> None:
    """A66: served and judged as its own transaction; as many acknowledgements as the server gave."""
    for cut in (None, partial(cut_at_random, seed=3)):
        judge = Looker(depth)
        talk = one_mail(model, b"first\r\n.\r\n" + SMUGGLED + END, judge=judge, cut=cut)
        talk.assert_one_reading()
        assert talk.codes == [220, 250, 250, 250, 354, 250, 250, 250, 354, 250, 221]
        assert [mail.sender for mail in talk.model.mails] == [b"a@x.example", b"evil@x.example"]
        assert len(talk.of(Kind.BEGIN)) == len(talk.of(Kind.COMMIT)) == 2
        assert len(judge.seen) == (0 if depth is Depth.STREAM else 2)


@models
def test_a66_behind_an_end_that_a_stray_cr_goes_before(model: Model) -> None:
    r"""P4's `\r\r\n.\r\n` holds a conforming end: what follows is commands, to the records and to every server."""
    talk = one_mail(model, b"first\r\r\n.\r\n" + SMUGGLED + END)
    talk.assert_one_reading()
    assert talk.codes == [220, 250, 250, 250, 354, 250, 250, 250, 354, 250, 221]
    assert talk.model.mails[0].content == b"first \r\n"


# ------------------------------------------------------------------------------ both sides have the same transaction

STEPS: dict[str, tuple[bytes, dict[bytes, bytes]]] = {
    # commands between RCPT and DATA · what the server answers to them
    "a second MAIL the server refuses": (b"MAIL FROM:<other@x.example>\r\n", {}),
    "a second MAIL with a recipient of its own": (b"MAIL FROM:<other@x.example>\r\nRCPT TO:<c@y.example>\r\n", {}),
    "a second MAIL that is refused here": (b"MAIL FROM:<other@x.example> NOSUCH=1\r\n", {}),
    "a second MAIL that needs SMTPUTF8": ("MAIL FROM:<\xfc@x.example>\r\n".encode(), {}),
    "a malformed MAIL": (b"MAIL FROM:<\r\n", {}),
    "a malformed RCPT": (b"RCPT TO:<\r\n", {}),
    "RSET with an argument that the server refuses": (b"RSET x\r\n", {b"RSET": b"501 5.5.4 No\r\n"}),
    "RSET that the server refuses": (b"RSET\r\n", {b"RSET": b"500 5.5.1 No\r\n"}),
    "HELO that the server refuses": (b"HELO me_too\r\n", {b"HELO": b"501 5.5.2 No\r\n"}),
    "an unknown verb": (b"XYZZY\r\n", {}),
    "VRFY": (b"VRFY a\r\n", {}),
    "BDAT that is not offered": (b"BDAT 6 LAST\r\nNOOP\r\n", {}),
    "AUTH within the transaction": (b"AUTH PLAIN AGEAYg==\r\n", {}),
    "DATA with an argument": (b"DATA x\r\n", {}),
}


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
@pytest.mark.parametrize("name", STEPS)
def test_both_sides_have_the_same_transaction(name: str, depth: Depth) -> None:
    """G18 (Postfix 20260803): a command that was refused changes no transaction, here as little as at the server.

    Else a mail is recorded with paths it does not have, or is not judged at all.
    """
    between, answers = STEPS[name]
    for cut in (None, partial(cut_at_random, seed=4)):
        model = Model("strict-without-chunking", chunking=False, answers=answers)
        judge = Looker(depth)
        talk = converse(
            None, model, HELLO + ENVELOPE + between + b"DATA\r\nA: b\r\n\r\nx\r\n.\r\n" + QUIT, cut=cut, judge=judge
        )
        talk.assert_one_reading()
        assert [mail.sender for mail in model.mails] == [b"a@x.example"]
        assert talk.codes[-3:] == [354, 250, 221]
        assert len(judge.seen) == (0 if depth is Depth.STREAM else 1), "the mail was judged"


@pytest.mark.parametrize("depth", Depth, ids=lambda d: d.value)
@pytest.mark.parametrize(
    ("before", "answers"),
    [
        (b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n", {b"MAIL": b"550 5.7.1 No\r\n"}),
        (b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n", {b"RCPT": b"550 5.1.1 No\r\n"}),
        (b"MAIL FROM:<a@x.example>\r\n", {}),
        (b"RCPT TO:<b@y.example>\r\n", {}),
        (b"", {}),
        (b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nRSET\r\n", {}),
        (b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nEHLO me\r\n", {}),
    ],
    ids=["MAIL refused", "RCPT refused", "no RCPT", "no MAIL", "nothing", "RSET", "EHLO"],
)
def test_content_without_a_transaction_is_commands_to_both(
    before: bytes, answers: dict[bytes, bytes], depth: Depth
) -> None:
    """A66, G18: where DATA is refused, what a client sends as content is commands, to the records and to the server."""
    for cut in (None, partial(cut_at_random, seed=5)):
        model = Model("strict", answers=answers)
        talk = converse(
            None, model, HELLO + before + b"DATA\r\nNOOP\r\n.\r\nNOOP\r\n" + QUIT, cut=cut, judge=Looker(depth)
        )
        talk.assert_one_reading()
        assert model.mails == []
        assert model.commands.count(b"NOOP") == 2
        assert talk.codes[-5] in (503, 554)
        assert talk.codes[-4:] == [250, 500, 250, 221]


# ----------------------------------------------------------------------------------------------- no smuggling, whatever


class Said(NamedTuple):
    """A client's conversation: its octets, and how many replies it is owed at most."""

    octets: bytes
    parts: int


HOSTILE = (
    b"\r", b"\n", b".", b"\0", b"a", b": ", b"\r\n", b"\r\n.", b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n\r\n",
    b"MAIL FROM:<evil@x.example>\r\n", b"RCPT TO:<victim@y.example>\r\n", b"DATA\r\n", b"RSET\r\n", b"BDAT 3\r\n",
)  # fmt: skip
LINES = (
    b"NOOP\r\n", b"RSET\r\n", b"VRFY a\r\n", b"XYZZY\r\n", b"HELP\r\n", b"MAIL\r\n", b"RCPT TO:<c@y.example>\r\n",
    b" NOOP\r\n", b"DATA x\r\n", b"NOOP\rRSET\r\n", b"EHLO me.example\r\n", b"NOOP \0\r\n", b"\r\n",
    b"MAIL FROM: <d@x.example>\r\n",
)  # fmt: skip
hostile = st.lists(st.sampled_from(HOSTILE), max_size=12).map(b"".join)
lines = st.sampled_from(LINES)


@st.composite
def conversations(draw: st.DrawFn) -> Said:
    """EHLO, then transactions with hostile contents by DATA and BDAT, and odd commands between them, and QUIT."""
    octets = [HELLO]
    for _ in range(draw(st.integers(1, 4))):
        octets.append(b"".join(draw(st.lists(lines, max_size=2))))
        way = draw(st.sampled_from(["data", "chunks", "neither", "no recipient"]))
        if way == "neither":
            continue
        octets.append(ENVELOPE if way != "no recipient" else b"MAIL FROM:<a@x.example>\r\n")
        if way == "chunks":
            pieces = draw(st.lists(hostile, min_size=1, max_size=3))
            for at, piece in enumerate(pieces):
                octets.append(b"BDAT %d%s\r\n%s" % (len(piece), b" LAST" if at == len(pieces) - 1 else b"", piece))
        elif way == "data":
            octets.append(b"DATA\r\n" + draw(hostile) + b"\r\n.\r\n")
    return Said(b"".join(octets) + QUIT, len(octets))


VERDICTS: dict[str, Callable[[bytes], Verdict]] = {
    "pass": lambda seen: PASS,
    "rewrite": lambda seen: Verdict(Action.REWRITE, INSERTED + seen, "edit"),
    "discard": lambda seen: Verdict(Action.DISCARD, None, "discard"),
}


def untimed(records: list[dict[str, Any]]) -> list[str]:
    """Records without what is about time: their order, and whether more had come already when a command was answered.

    (The server answers between the pieces here, so that a cut is also another time.)
    """
    late = "pipelined-behind-hold"
    return sorted(
        str(sorted({**record, "anomalies": [name for name in record.get("anomalies", ()) if name != late]}.items()))
        for record in records
    )


TWO_MAILS = (
    HELLO + b"MAIL FROM:<d@x.example>\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n.\r\n" + QUIT
)
LARGE_CHUNK = HELLO + ENVELOPE + b"BDAT 58 LAST\r\n\r\n" + b"MAIL FROM:<evil@x.example>\r\n" * 2 + b"RSET\r\n" + QUIT
STRAY_BEHIND = HELLO + ENVELOPE + b"DATA\r\na\r\n\r\n\r\r\n.\r\n" + QUIT
STRAY_BEFORE = HELLO + ENVELOPE + b"DATA\r\na\n\r\n\r\nb\r\n.\r\n" + QUIT


@given(
    conversations(),
    st.sampled_from(MODELS),
    st.sampled_from(list(Depth)),
    st.sampled_from(sorted(VERDICTS)),
    st.sampled_from(["normalise", "refuse"]),
    st.sampled_from([0, 0, 40]),
    st.integers(0, 50),
)
@example(Said(TWO_MAILS, 1), MODELS[0], Depth.STREAM, "pass", "normalise", 0, 0)  # the server refuses the second MAIL
@example(Said(LARGE_CHUNK, 1), MODELS[0], Depth.HEADER, "pass", "normalise", 40, 4)  # the limit is behind the header
@example(Said(LARGE_CHUNK, 1), MODELS[0], Depth.HEADER, "discard", "normalise", 40, 4)  # as is a verdict
@example(Said(STRAY_BEHIND, 1), MODELS[0], Depth.HEADER, "discard", "refuse", 0, 9)  # a stray behind the header
@example(Said(STRAY_BEFORE, 1), MODELS[0], Depth.HEADER, "discard", "refuse", 0, 9)  # and one in it
@settings(deadline=None, derandomize=True, max_examples=500)
def test_no_smuggling(
    said: Said, model: Model, depth: Depth, verdict: str, newlines: str, limit: int, seed: int
) -> None:
    """I3, I4: whatever the conversation, the model understands the commands and the mails that are on the record.

    And any cut has the same outcome: the same told, the same understood (I6).
    """
    heard = []
    for cut in (None, partial(cut_at_random, seed=seed), octet_by_octet):
        judge = Looker(depth, VERDICTS[verdict], limit)
        talk = converse(None, model.fresh(), said.octets, cut=cut, judge=judge, newlines=newlines)
        event(f"{len(talk.model.mails)} mails")
        assert talk.model.commands == talk.sent
        if verdict == "rewrite" and depth is not Depth.STREAM:
            assert [u[:2] for u in talk.understood] == [c[:2] for c in talk.committed]
        else:
            assert talk.understood == talk.committed
        assert talk.model.idle or talk.aborted
        assert all(not command.startswith(b"MAIL FROM:<evil") or b"evil" in said.octets for command in talk.sent)
        heard.append((talk.told, talk.model.mails, talk.model.commands, untimed(talk.records)))
    assert heard[0] == heard[1]
    assert heard[0] == heard[2]


@given(hostile, st.sampled_from(MODELS), st.integers(0, 50))
@settings(deadline=None, derandomize=True, max_examples=500)
def test_a_hostile_mail_never_speaks(content: bytes, model: Model, seed: int) -> None:
    """One DATA whose content has no conforming end inside is one mail; no command in it is ever heard by any server."""
    if b"\r\n.\r\n" in b"\r\n" + content + b"\r\n":
        content = content.replace(b".", b"..")
    talk = one_mail(model, content + b"\r\n.\r\n", cut=partial(cut_at_random, seed=seed))
    assert_one_mail(talk)


def test_a_long_hostile_mail() -> None:
    """60 KB of look-alikes in a row, to every model: one mail."""
    source = random.Random(7)
    content = b"".join(source.choice(list(LOOKALIKES.values())) + b"NOOP" for _ in range(BIG // 30)) + b"\r\n.\r\n"
    for model in MODELS:
        assert_one_mail(one_mail(model, content, cut=partial(cut_at_random, seed=8)))

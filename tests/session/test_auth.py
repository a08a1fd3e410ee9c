"""AUTH (attacks.md E63–E77, RFC 4954; I8): refused in clear, passed under TLS, in lock-step; a SASL line is a secret
whatever it holds, and no secret is in any record, repr or exception."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.lines import rendered
from smtpproxy.session.session import Session
from smtpproxy.session.state import Peer, TLSInfo
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.errors import Side
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    GREETING,
    OPEN,
    Says,
    allow,
    anomalies,
    answers,
    deny,
    exchanges,
    hello,
)

AUTH = hello("AUTH PLAIN LOGIN CRAM-MD5")
SECRET = base64.b64encode(b"\0user\0CANARYcanary17").decode()
NOOP = "\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n"
CANCELLED = "    >S *\n    S> 501 cancelled\n    >C 501 Not a base64 line\n"


def secure(side: Side) -> Peer:
    """A peer whose link is encrypted."""
    peer = Peer(side)
    peer.tls = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    return peer


# ------------------------------------------------------------------------------------------- where it is let through


def test_refused_in_clear() -> None:
    """The shipped rules: not offered in clear, and 538 to whoever tries (RFC 4954 §4); nothing reaches the server."""
    records = play(
        hello("AUTH PLAIN", "AUTH=PLAIN", told=())
        + f"""
        C> AUTH PLAIN {SECRET}
        >C 538 Encryption required for requested authentication mechanism
        C> AUTH LOGIN
        >C 538 Encryption required for requested authentication mechanism
        C> auth plain
        >C 538 Encryption required for requested authentication mechanism
    """
        + NOOP
    )
    assert "CANARY" not in str(records)
    assert SECRET not in str(records)


def test_passed_under_tls() -> None:
    """The shipped rules on an encrypted link, given to the session from the start (465) …"""
    session = under_tls()
    session.client_sent(b"AUTH PLAIN " + SECRET.encode() + b"\r\n")
    assert session.to_server.endswith(b"AUTH PLAIN " + SECRET.encode() + b"\r\n")


def under_tls(record: Any = lambda record: None, judge: Any = None, offer: bytes = b"AUTH PLAIN LOGIN") -> Session:
    """A session over TLS, on both links, in which AUTH was offered."""
    client, server = secure(Side.CLIENT), secure(Side.SERVER)
    session = Session(judge=judge or allow(), record=record, clock=lambda: 0.0, client=client, server=server)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 " + offer + b"\r\n")
    assert session.to_client.endswith(b"250 " + offer + b"\r\n")
    return session


def test_passed_after_starttls() -> None:
    """… or by STARTTLS."""
    play(
        hello("STARTTLS", "AUTH PLAIN", told=("STARTTLS",))
        + f"""
        C> STARTTLS
        >S STARTTLS
        S> 220 go
        -> start-tls server

        !! tls-done server
        -> prepare-tls client

        !! tls-ready
        >C 220 go
        -> start-tls client

        !! tls-done client

        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 250 AUTH PLAIN
        >C 250-mx
        >C 250 AUTH PLAIN
        C> AUTH PLAIN {SECRET}
        >S AUTH PLAIN {SECRET}
        S> 235 in
        >C 235 in
    """
        + NOOP,
        rules=allow("STARTTLS"),
    )


def test_refused_where_it_was_not_offered() -> None:
    """A SASL dialogue changes the framing: only where it was offered (architecture §3)."""
    for before in (GREETING, hello("SIZE"), hello(verb="HELO")):
        records = play(f"{before}\n    C> AUTH PLAIN {SECRET}\n    >C 502 Command not offered here\n", rules=OPEN)
        assert "verb-not-offered" in anomalies(records)


# ---------------------------------------------------------------------------------------------------- the dialogue


@pytest.mark.parametrize(
    "code", ["235 in", "535 5.7.8 no", "454 later", "504 mechanism", "432 change", "501 syntax", "503 twice"]
)
def test_initial_response(code: str) -> None:
    """E63: one line, one reply; AUTH on record without its secret."""
    records = play(
        f"{AUTH}\n    C> AUTH PLAIN {SECRET}\n    >S AUTH PLAIN {SECRET}\n    S> {code}\n    >C {code}\n{NOOP}",
        rules=OPEN,
    )
    assert exchanges(records)[2]["asked"] == f"AUTH PLAIN <{len(SECRET)} octets>"
    event = next(r for r in records if r["kind"] == "link-auth")
    assert (event["mechanism"], event["accepted"], event["reply"]) == ("PLAIN", code.startswith("235"), int(code[:3]))


@pytest.mark.parametrize("end", ["235 in", "535 no", "454 later"])
def test_a_dialogue_of_many_lines(end: str) -> None:
    """E64: 334, response, 334, response, end; each line an exchange of its own and a secret."""
    records = play(
        f"""{AUTH}
        C> AUTH LOGIN
        >S AUTH LOGIN
        S> 334 VXNlcm5hbWU6
        >C 334 VXNlcm5hbWU6
        C> dXNlcg==
        >S dXNlcg==
        S> 334 UGFzc3dvcmQ6
        >C 334 UGFzc3dvcmQ6
        C> Q0FOQVJZ
        >S Q0FOQVJZ
        S> {end}
        >C {end}
    """
        + NOOP,
        rules=OPEN,
    )
    assert [r["asked"] for r in exchanges(records)][3:5] == ["<8 octets>", "<8 octets>"]
    assert sum(1 for r in records if r["kind"] == "link-auth") == 1


@pytest.mark.parametrize("line", ["QUIT", "STARTTLS", "RSET", "NOOPNOOP", "DATA", "MAIL", "EHLO"])
def test_a_verb_within_the_dialogue_is_sasl_data(line: str) -> None:
    """E72: QUIT is four octets of base64 there (RFC 4954 §4)."""
    good = len(line) % 4 == 0
    told = f"    >S {line}\n    S> 535 no\n    >C 535 no\n" if good else CANCELLED
    play(
        f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> {line}\n{told}{NOOP}", rules=OPEN
    )


@pytest.mark.parametrize("line", ["*", "=", "", "YQ==", "YWE=", "YWFh"])
def test_lines_that_are_sasl_lines(line: str) -> None:
    """E70: cancel, empty response, base64."""
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> {line}\n    >S {line}\n"
        f"    S> 501 x\n"
         f"    >C 501 x\n{NOOP}", rules=OPEN)  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "YQ",
        "YQ=",
        "Y Q==",
        "YQ==\\0",
        "\\0",
        "a-b_",
        "YQ==x",
        "**",
        "* ",
        " *",
        "\\xff\\xfe\\xfd\\xfc",
        "YQ==\\rYQ==",
        "{}",
        "YW\\x1bF",
    ],
)
def test_a_line_that_is_not_base64_cancels(line: str) -> None:
    """E65–E69: never forwarded: * to the server, its 501 swallowed, 501 to the client; the next line is a command."""
    records = play(
        f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> {line}\n{CANCELLED}{NOOP}",
        rules=OPEN,
    )
    assert "sasl-malformed" in anomalies(records)


def test_bare_lf_within_the_dialogue_closes() -> None:
    """C25 holds for SASL lines too."""
    records = play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> YQ==\\n\\\n"
                   "    >C 521 Lines end with CR LF, closing\n    -> close server\n"
                   "    -> close client\n", rules=OPEN)  # fmt: skip
    assert "bare-lf-in-command" in anomalies(records)


@pytest.mark.parametrize("octets", [512, 2048, 12_276, 12_288])
def test_long_responses_pass(octets: int) -> None:
    """E73–E74: 12,288 octets must pass (RFC 4954 §4.5), in the initial response and in a line."""
    line = "A" * (octets // 4 * 4)
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> {line}\n    >S {line}\n"
        f"    S> 535 n\n"
         f"    >C 535 n\n{NOOP}", rules=OPEN)  # fmt: skip
    line = "A" * ((octets - len("AUTH PLAIN ")) // 4 * 4)
    play(f"{AUTH}\n    C> AUTH PLAIN {line}\n    >S AUTH PLAIN {line}\n    S> 535 n\n    >C 535 n\n{NOOP}", rules=OPEN)


def test_an_initial_response_of_12288_octets_passes() -> None:
    """E73: the number is of the response, not of the line that holds it (RFC 4954 §4: 12,288 octets of base64)."""
    line = "A" * 12_288
    play(f"{AUTH}\n    C> AUTH PLAIN {line}\n    >S AUTH PLAIN {line}\n    S> 535 n\n    >C 535 n\n{NOOP}", rules=OPEN)


@pytest.mark.parametrize("octets", [12_292, 14_000, 100_000])
def test_too_long_responses_cancel(octets: int) -> None:
    """E75: bounded; cancelled, and the next line is a command."""
    line = f"*{octets} A"
    records = play(
        f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> {line}\n{CANCELLED}{NOOP}",
        rules=OPEN,
    )
    assert "sasl-malformed" in anomalies(records)
    records = play(f"{AUTH}\n    C> AUTH PLAIN {'A' * 14_000}\n    >C 500 Line too long\n{NOOP}", rules=OPEN)
    assert "line-too-long" in anomalies(records)


def test_an_endless_response_closes() -> None:
    """E75, C38."""
    session = under_tls()
    session.client_sent(b"AUTH LOGIN\r\n")
    session.server_sent(b"334\r\n")
    for _ in range(40):
        session.client_sent(b"A" * 65_536)
    assert session.closed
    assert b"521 " in session.to_client


def test_an_endless_dialogue_is_in_lock_step() -> None:
    """E76: 334 without end: one exchange at a time, nothing kept."""
    session = under_tls()
    session.client_sent(b"AUTH LOGIN\r\n")
    for _ in range(500):
        session.server_sent(b"334 x\r\n")
        session.client_sent(b"YQ==\r\n")
        assert len(session.ledger) == 1
        session.to_server.clear()
        session.to_client.clear()


@pytest.mark.parametrize("reply", ["334 not base64 !", "334", "334 ", "334-a\\r\\n334 b"])
def test_a_challenge_is_passed_as_it_came(reply: str) -> None:
    """E77: what a challenge holds is between client and server."""
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> {reply}\n    >C {reply}\n    C> *\n    >S *\n"
        f"    S> 501 x\n    >C 501 x\n",
         rules=OPEN)  # fmt: skip


@pytest.mark.parametrize("code", [354, 353, 355])
def test_a_go_ahead_of_another_kind_ends_the_session(code: int) -> None:
    """I9: 354 to AUTH would make the client send a mail as its password."""
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> {code} go\n{BROKEN_PLAIN}", rules=OPEN)
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> YQ==\n    >S YQ==\n"
        f"    S> {code} go\n{BROKEN_PLAIN}",
         rules=OPEN)  # fmt: skip


def test_nothing_behind_auth_is_read_before_its_reply() -> None:
    """I2: what a client sends too early is read as what the reply says it is."""
    play(f"{AUTH}\n    C> AUTH LOGIN\n    C> YQ==\n    C> NOOP\n    >S AUTH LOGIN\n\n    S> 334\n    >C 334\n"
        f"    >S YQ==\n\n"
         "    S> 535 no\n    >C 535 no\n    >S NOOP\n\n    S> 250 n\n    >C 250 n\n", rules=OPEN)  # fmt: skip
    play(f"{AUTH}\n    C> AUTH LOGIN\n    C> YQ==\n    >S AUTH LOGIN\n\n    S> 504 no\n    >C 504 no\n"
         "    >C 500 Syntax error, command unrecognized\n", rules=OPEN)  # fmt: skip


def test_within_a_transaction_the_server_keeps_the_order() -> None:
    """E71: forwarded; its 503 is told."""
    play(AUTH + ENVELOPE + "\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 503 no\n    >C 503 no\n", rules=OPEN)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("AUTH", "501 Syntax error in parameters or arguments"),
        ("AUTH ", "501 Syntax error in parameters or arguments"),
        ("AUTH PLAIN !!!", "501 Cannot decode base64"),
        ("AUTH PLAIN YQ=", "501 Cannot decode base64"),
        ("AUTH PLAIN YQ== YQ==", "501 Cannot decode base64"),
        ("AUTH PL.AIN", "501 Syntax error in parameters or arguments"),
        (" AUTH PLAIN YQ==", "500 Syntax error, command unrecognized"),
        ("AUTH\\0PLAIN YQ==", "500 Syntax error, command unrecognized"),
    ],
)
def test_malformed_auth(line: str, told: str) -> None:
    """E63–E66: answered here, and its text is not on record."""
    records = play(f"{AUTH}\n    C> {line}\n    >C {told}\n{NOOP}", rules=OPEN)
    assert "YQ" not in str(records)


def test_a_mechanism_in_odd_case_passes_as_it_came() -> None:
    """RFC 4954 §4: mechanisms are case-insensitive."""
    play(f"{AUTH}\n    C> auth plain\n    >S auth plain\n    S> 504 x\n    >C 504 x\n", rules=OPEN)


def test_odd_blanks_are_sent_on_canonically() -> None:
    """As one blank, and on record without the secret."""
    records = play(
        f"{AUTH}\n    C> AUTH  PLAIN\\t{SECRET}\n    >S AUTH PLAIN {SECRET}\n    S> 235 x\n    >C 235 x\n", rules=OPEN
    )
    assert SECRET not in str(records)


def test_a_sasl_line_refused_by_rule() -> None:
    """A rule on the reply to SASL may change the text, not the framing."""
    rules = Says(replies={"SASL": answers("535 5.7.8 No")})
    play(f"{AUTH}\n    C> AUTH LOGIN\n    >S AUTH LOGIN\n    S> 334\n    >C 334\n    C> YQ==\n    >S YQ==\n"
        f"    S> 235 in\n    >C 535 No\n",
         rules=rules)  # fmt: skip


def test_auth_on_mail_where_auth_was_offered() -> None:
    """RFC 4954 §5: passes, and its value is not on record."""
    records = play(f"{AUTH}\n    C> MAIL FROM:<a@x.example> AUTH=canary+40x\n"
        f"    >S MAIL FROM:<a@x.example> AUTH=canary+40x\n"
                   "    S> 250 m\n    >C 250 m\n", rules=OPEN)  # fmt: skip
    assert "canary" not in str(records)
    records = play(
        hello() + "\n    C> MAIL FROM:<a@x.example> AUTH=canary+40x\n    >C 555 Parameter not offered here\n",
        rules=OPEN,
    )
    assert "canary" not in str(records)


def test_denied_in_words() -> None:
    """A rule against AUTH holds under TLS as well."""
    session = Session(judge=deny("AUTH"), record=lambda record: None, clock=lambda: 0.0, client=secure(Side.CLIENT))
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 AUTH PLAIN\r\n")
    session.client_sent(b"AUTH PLAIN YQ==\r\n")
    assert b"AUTH" not in session.to_client.replace(b"authentication", b"")
    assert b"AUTH" not in session.to_server


# --------------------------------------------------------------------------------------------- I8: secrets, by property

CANARY = base64.b64encode(b"\0CANARY\0canary").decode()
SPELLINGS = [
    f"AUTH PLAIN {CANARY}", f"auth plain {CANARY}", f"AUTH\tPLAIN\t{CANARY}", f"  AUTH PLAIN {CANARY}",
    f"\tAUTH PLAIN {CANARY}",
    f"AUTH PLAIN {CANARY} x", f"AUTH PLAIN ={CANARY}", f"AUTH PLAIN {CANARY}!", f"AUTHPLAIN {CANARY}", f"AUTH {CANARY}",
    f"\0AUTH PLAIN {CANARY}", f"A\0UTH PLAIN {CANARY}", f"AU\x08UTH PLAIN {CANARY}", f"AUTH PLAIN\0{CANARY}",
    f"AUTH: PLAIN {CANARY}",
    f"\xa0AUTH PLAIN {CANARY}", f"AUTH\xa0PLAIN {CANARY}", f"AUTH=PLAIN {CANARY}", f"AUTH-PLAIN {CANARY}",
    f"NOOP AUTH PLAIN {CANARY}\r",
    f"X-EXPS NTLM {CANARY}", f"XAUTH PLAIN {CANARY}", f"AUTH LOGIN {CANARY}", CANARY, f" {CANARY}", f"{CANARY}=",
    f"MAIL FROM:<a@x> AUTH={CANARY}", f"MAIL FROM:<a@x> auth={CANARY}", f"MAIL FROM:<a@x>\tAUTH={CANARY}",
    f"MAIL FROM:a AUTH={CANARY}",
    f"MAIL FROM:<a@x> SIZE=1 AUTH={CANARY} BODY=7BIT", f"MAIL AUTH={CANARY}",
    f"BURL imap://u:{CANARY}@h/x;urlauth LAST",
    f"BURL  imap://u:{CANARY}@h/", f"burl {CANARY}", f" BURL imap://{CANARY}", f"WIZ {CANARY}", f"wiz  {CANARY}",
    f"PASS {CANARY}",
    f"LOGIN user {CANARY}", f"a1 LOGIN user {CANARY}", f"USER x\rPASS {CANARY}", f"STARTTLS\rAUTH PLAIN {CANARY}",
]  # fmt: skip


def everything(records: list[Any], session: Session) -> str:
    """All that is on record, as objects and as text, and all that the session can say of itself."""
    parts = [repr(record) + str(record) for record in records]
    parts += [str(rendered(record)) for record in records]
    for record in records:
        if record.exchange is not None:
            exchange = record.exchange
            parts += [f"{getattr(exchange, slot)!r} {getattr(exchange, slot)!s}" for slot in type(exchange).__slots__]
    parts += [repr(exchange.asked) + repr(exchange.sent) + str(exchange.asked) for exchange in session.ledger]
    return "".join(parts)


@pytest.mark.parametrize("line", SPELLINGS)
@pytest.mark.parametrize("judge", ["open", "shipped", "passes all"])
def test_no_secret_on_record(line: str, judge: str) -> None:
    """I8: whatever the line is taken for; passed by a rule, refused, malformed, in clear or under TLS."""
    rules: PassAll | Any = {
        "open": OPEN,
        "shipped": allow(),
        "passes all": Says({"UNKNOWN": answers("500 x")}, malformed=answers("500 x")),
    }[judge]
    for cut in (1, 7, 4096):
        check(line.encode("latin-1") + b"\r\n", rules, cut)


def check(octets: bytes, rules: Any, cut: int) -> None:
    """Say it as a command, as a SASL line, and behind a hold."""
    for before in ((), (b"AUTH LOGIN\r\n",)):
        records: list[Any] = []
        session = under_tls(records.append, rules, b"AUTH PLAIN LOGIN CHUNKING")
        for line in before:
            session.client_sent(line)
            session.server_sent(b"334 x\r\n")
        for at in range(0, len(octets), cut):
            session.client_sent(octets[at : at + cut])
        said = everything(records, session)
        session.server_sent(b"535 no\r\n")
        session.client_sent(b"")
        said += everything(records, session)
        for part in (CANARY, CANARY[4:], CANARY[:-4], "CANARY", CANARY.lower()):
            assert part not in said


@given(
    before=st.text(st.sampled_from("\0\t \x0b\x1b\x7f\xa0\xff.:<="), max_size=4).map(
        lambda text: text.encode("latin-1")
    ),
    word=st.sampled_from([b"AUTH", b"auth", b"AuTh", b"X-EXPS", b"WIZ", b"PASS"]),
    between=st.sampled_from([b" ", b"  ", b"\t", b"\0", b"\xa0", b"=", b":", b" PLAIN ", b" PLAIN\t", b"\x0bLOGIN "]),
    after=st.binary(max_size=6),
    cut=st.sampled_from([5, 13, 40]),
)
def test_no_secret_on_record_in_any_spelling(
    before: bytes, word: bytes, between: bytes, after: bytes, cut: int
) -> None:
    """I8 over spellings and cuts."""
    check(before + word + between + CANARY.encode() + after + b"\r\n", OPEN, cut)

"""Vendors' verbs (attacks.md E54–E62): the Exchange family, XCLIENT, BURL, TURN and ATRN, and verbs nobody has
described: refused here unless a rule lets them through, and framed exactly where one does."""

import pytest

from smtpproxy.session.session import Session
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    GREETING,
    OPEN,
    PASSED_BY_RULE,
    Says,
    allow,
    anomalies,
    deny,
    exchanges,
    hello,
)

NOOP = "\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n"
XEXCH50 = hello("XEXCH50", "CHUNKING") + ENVELOPE
ALLOWED = allow("XEXCH50")
DENIED = "502 Command not implemented"

# ----------------------------------------------------------------------------------------------------- E54–E57: XEXCH50


@pytest.mark.parametrize("verb", ["XEXCH50", "xexch50", "X-EXCH50"])
@pytest.mark.parametrize("octets", ["abcd", "\\0\\r\\n.", "\\r\\n.\\r", "NOOP", "\\xff\\xfe\\x80\\0"])
def test_octets_are_counted_exactly(verb: str, octets: str) -> None:
    """E54, E56: after 354 four octets, whatever they hold; the reply to them is its own; the next line is a command."""
    records = play(
        f"""{XEXCH50}
        C> {verb} 4 2
        >S {verb} 4 2
        S> 354 go
        >C 354 go
        C> {octets}\\
        >S {octets}\\
        S> 250 ok
        >C 250 ok
    """
        + NOOP,
        rules=ALLOWED,
    )
    assert [r["verb"] for r in exchanges(records)][-3:] == [verb.upper(), "OCTETS", "NOOP"]


def test_commands_behind_the_octets_wait_for_their_reply() -> None:
    """E56, I2: a blob that holds commands is a blob; what stands behind it is read when it was answered."""
    play(
        XEXCH50
        + """
        C> XEXCH50 6 2
        C> NOOP\\r\\nNOOP one
        C> RSET
        >S XEXCH50 6 2

        S> 354 go
        >C 354 go
        >S NOOP\\r\\n\\

        S> 500 no
        >C 500 no
        >S NOOP one
        >S RSET

        S> 250 n
        S> 250 r
        >C 250 n
        >C 250 r
    """,
        rules=ALLOWED,
    )


def test_zero_octets() -> None:
    """E54: nothing follows; the server answers all the same."""
    play(
        XEXCH50
        + """
        C> XEXCH50 0 2
        >S XEXCH50 0 2

        S> 354 go
        >C 354 go
        S> 250 ok
        >C 250 ok
    """.replace("        S> 250 ok", "\n        S> 250 ok")
        + NOOP,
        rules=ALLOWED,
    )


@pytest.mark.parametrize("reply", ["504 no", "454 later", "250 fine", "503 order", "421 bye"])
def test_refused_by_the_server(reply: str) -> None:
    """commands.md §7.4: without 354 no octets follow, and the next line is a command."""
    end = "    -> close server\n    -> close client\n" if reply.startswith("421") else NOOP
    play(f"{XEXCH50}\n    C> XEXCH50 4 2\n    >S XEXCH50 4 2\n    S> {reply}\n    >C {reply}\n{end}", rules=ALLOWED)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "4",
        "-1 2",
        "4 -1",
        "+4 2",
        "4,2",
        "0x4 2",
        "4 2 3",
        "four 2",
        "99999999999999999999999 2",
        "4\\0 2",
        "\\xef\\xbc\\x94 2",
    ],
)
def test_bad_counts(argument: str) -> None:
    """E54: MS03-046 is `XEXCH50 -1 2`: refused here, never forwarded, even where XEXCH50 is allowed."""
    line = f"XEXCH50 {argument}".rstrip()
    records = play(
        f"{XEXCH50}\n    C> {line}\n    >C 501 Syntax error in parameters or arguments\n{NOOP}", rules=ALLOWED
    )
    assert "malformed-command" in anomalies(records)


@pytest.mark.parametrize("count", ["2147483648", "4294967296", "18446744073709551615"])
def test_counts_that_overflow(count: str) -> None:
    """E55: a server that counts in 32 bits reads another number: never forwarded."""
    session = Session(judge=ALLOWED, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 XEXCH50\r\n")
    session.to_server.clear()
    session.client_sent(f"XEXCH50 {count} 2\r\n".encode())
    assert session.to_server == b""


def test_denied() -> None:
    """E57: the keyword is gone, the verb refused; the client waits for a go-ahead, so nothing follows."""
    records = play(
        hello("XEXCH50", told=())
        + "".join(f"\n    C> {verb} 4 2\n    >C {DENIED}\n" for verb in ("XEXCH50", "xexch50", "X-EXCH50"))
    )
    assert all(r["sent"] is None for r in exchanges(records)[2:])


def test_octets_sent_without_waiting_for_a_go_ahead_that_does_not_come() -> None:
    """commands.md §7.4: a client that breaks the protocol: its octets are lines, and no command of the server's."""
    play(hello("XEXCH50", told=()) + f"\n    C> XEXCH50 6 2\n    C> \\0\\0\\0\\0\\r\\n\\\n    >C {DENIED}\n"
         "    >C 500 Syntax error, command unrecognized\n" + NOOP)  # fmt: skip


def test_not_offered() -> None:
    """Allowed by rule, but the server doesn't have it: its octets would be commands."""
    play(hello("CHUNKING") + "\n    C> XEXCH50 4 2\n    >C 502 Command not offered here\n", rules=ALLOWED)


def test_the_client_ends_within_the_octets() -> None:
    """S4: cut."""
    play(f"{XEXCH50}\n    C> XEXCH50 4 2\n    >S XEXCH50 4 2\n    S> 354 go\n    >C 354 go\n    C> ab\\\n"
        f"    >S ab\\\n\n"
         "    !! end client\n    -> abort server\n    -> close client\n", rules=ALLOWED)  # fmt: skip


@pytest.mark.parametrize("fault", ["!! lost", "!! timeout client too-slow"])
def test_the_client_goes_within_the_octets(fault: str) -> None:
    """S4: half a blob must not look finished."""
    told = "    >C 421 Too slow, closing\n" if "slow" in fault else ""
    play(f"{XEXCH50}\n    C> XEXCH50 4 2\n    >S XEXCH50 4 2\n    S> 354 go\n    >C 354 go\n    C> ab\\\n"
        f"    >S ab\\\n\n"
         f"    {fault}\n{told}    -> abort server\n    -> close client\n", rules=ALLOWED)  # fmt: skip


def test_a_reply_before_the_octets_are_whole() -> None:
    """S2: a reply nobody asked for yet: a refusal may come early, a success may not."""
    asked = (
        f"{XEXCH50}\n    C> XEXCH50 4 2\n    >S XEXCH50 4 2\n    S> 354 go\n    >C 354 go\n    C> ab\\\n    >S ab\\\n\n"
    )
    play(f"{asked}    S> 250 ok\n{BROKEN_PLAIN}", rules=ALLOWED)


# ------------------------------------------------------------------------------------------ E58–E61: others of Exchange


@pytest.mark.parametrize(
    "line",
    [
        "X-LINK2STATE FIRST CHUNK={00000100} x",
        "X-LINK2STATE CHUNK={ffffffff} x",
        "X-LINK2STATE LAST CHUNK={1} " + "x" * 520,
        "X-LINK2STATE x",
    ],
)
def test_x_link2state(line: str) -> None:
    """E58: CVE-2005-0560: stripped and refused; one line in, one reply out where a rule allows it."""
    play(hello("X-LINK2STATE", told=()) + f"\n    C> {line}\n    >C {DENIED}\n" + NOOP)
    play(
        hello("X-LINK2STATE") + f"\n    C> {line}\n    >S {line}\n    S> 200 ok\n    >C 200 ok\n" + NOOP,
        rules=allow("X-LINK2STATE"),
    )


def test_x_exps() -> None:
    """E59: a second AUTH: stripped and refused; where allowed, a SASL dialogue like the first."""
    play(hello("X-EXPS GSSAPI NTLM", "X-EXPS=LOGIN", told=()) + f"\n    C> X-EXPS NTLM YQ==\n    >C {DENIED}\n" + NOOP)
    records = play(
        hello("X-EXPS GSSAPI NTLM")
        + """
        C> X-EXPS NTLM U0VDUkVU
        >S X-EXPS NTLM U0VDUkVU
        S> 334 Y2hhbGxlbmdl
        >C 334 Y2hhbGxlbmdl
        C> U0VDUkVUMg==
        >S U0VDUkVUMg==
        S> 235 in
        >C 235 in
    """
        + NOOP,
        rules=allow("X-EXPS"),
    )
    assert "U0VDUkVU" not in str(records)
    assert "link-auth" in [r["kind"] for r in records]


def test_xauth_where_a_rule_allows_it() -> None:
    """XAUTH belongs to no keyword, so it can't have been offered: the rule's word is enough."""
    play(hello() + "\n    C> XAUTH LOGIN\n    >S XAUTH LOGIN\n    S> 334 x\n    >C 334 x\n    C> YQ==\n    >S YQ==\n"
        "    S> 235 in\n"
         "    >C 235 in\n" + NOOP, rules=allow("XAUTH"))  # fmt: skip


def test_x_anonymoustls() -> None:
    """E60: a second STARTTLS, by the same rules; 454 where it is denied."""
    play(hello("X-ANONYMOUSTLS") + "\n    C> X-ANONYMOUSTLS\n    >S X-ANONYMOUSTLS\n    .. open\n")
    script = hello("X-ANONYMOUSTLS", told=()) + "\n    C> X-ANONYMOUSTLS\n    >C 454 TLS not available\n" + NOOP
    play(script, rules=deny("X-ANONYMOUSTLS"))


@pytest.mark.parametrize("last", ["", " LAST"])
def test_burl(last: str) -> None:
    """E61: the server fetches what we never see: refused; where allowed its token is a secret."""
    line = f"BURL imap://user@h/x;urlauth=submit+user:internal:CANARY{last}"
    play(hello("BURL imap", told=()) + ENVELOPE + f"\n    C> {line}\n    >C {DENIED}\n" + NOOP)
    records = play(
        hello("BURL imap") + ENVELOPE + f"\n    C> {line}\n    >S {line}\n    S> 250 q\n    >C 250 q\n",
        rules=allow("BURL"),
    )
    assert "CANARY" not in str(records)


@pytest.mark.parametrize(
    "before", ["", "    C> MAIL FROM:<a@x.example>\n    >S MAIL FROM:<a@x.example>\n    S> 250 m\n    >C 250 m\n"]
)
def test_burl_without_a_mail_is_answered_here(before: str) -> None:
    """A server that accepts BURL LAST outside of a transaction has ended a mail nobody knows: it is not asked."""
    play(
        hello("BURL imap") + f"\n{before}    C> BURL imap://h/x LAST\n    >C 503 Need MAIL and RCPT first\n" + NOOP,
        rules=allow("BURL"),
    )


def test_burl_last_ends_the_transaction() -> None:
    """A mail that was completed by BURL LAST is on record as accepted, and the next BDAT needs another MAIL."""
    records = play(
        hello("BURL imap", "CHUNKING")
        + ENVELOPE
        + "\n    C> BURL imap://h/x LAST\n    >S BURL imap://h/x LAST\n    S> 250 q\n    >C 250 q\n"
        "    C> BDAT 0 LAST\n    >C 503 Need MAIL and RCPT first\n",
        rules=allow("BURL"),
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-commit"]


@pytest.mark.parametrize(
    "line",
    [
        "XSHADOW x",
        "XSHADOWREQUEST x",
        "XQDISCARD x",
        "XPROXY x",
        "XPROXYFROM x",
        "XSESSIONPARAMS x",
        "QUEU",
        "X-ADAT y",
    ],
)
def test_verbs_of_unknown_framing_hold(line: str) -> None:
    """Registry: where the framing was never documented, nothing behind it is read before its reply; no 3yz."""
    name = line.split()[0]
    offered = hello(name) if name.startswith(("XSH", "XPR", "XSES")) else hello()
    rules = allow(name)
    play(
        f"{offered}\n    C> {line}\n    C> NOOP\n    >S {line}\n\n    S> 250 x\n    >C 250 x\n    >S NOOP\n\n"
        f"    S> 250 n\n    >C 250 n\n",
        rules=rules,
    )
    play(f"{offered}\n    C> {line}\n    >S {line}\n    S> 354 go\n{BROKEN_PLAIN}", rules=rules)


# -------------------------------------------------------------------------------------------------- E62: roles, tunnels


@pytest.mark.parametrize("line", ["TURN", "ATRN x.example", "XPROXYTO x", "XTRN x"])
def test_inspection_ends_only_by_rule_and_says_so(line: str) -> None:
    """commands.md §7.7: after 250 the octets pass unseen, both ways, and the record says from where on."""
    name = line.split()[0]
    offers = (name,) if name != "XTRN" else ()
    play(hello(*offers, told=()) + f"\n    C> {line}\n    >C {DENIED}\n" + NOOP)
    records = play(
        hello(*offers)
        + f"""
        C> {line}
        >S {line}
        S> 250 ok
        >C 250 ok
        S> 220 now the other way
        S> junk\\0\\n\\
        >C 220 now the other way
        >C junk\\0\\n\\
        C> EHLO x\\n.\\r\\
        >S EHLO x\\n.\\r\\

        !! end client
        -> close server
        -> close client
    """.replace("        S> 220", "\n        S> 220"),
        rules=allow(name),
    )
    assert anomalies(records) == ["inspection-ended"]
    assert exchanges(records)[-1]["verb"] == name


def test_a_refused_turn_changes_nothing() -> None:
    """502: inspection goes on."""
    play(hello("TURN") + "\n    C> TURN\n    >S TURN\n    S> 502 no\n    >C 502 no\n" + NOOP, rules=allow("TURN"))


def test_octets_behind_turn_pass_unseen_too() -> None:
    """What was read behind it goes on when inspection has ended."""
    session = Session(judge=allow("TURN"), record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"TURN\r\nwhatever\0\n")
    assert session.to_server == b"TURN\r\n"
    session.server_sent(b"250 ok\r\n")
    assert session.to_server == b"TURN\r\nwhatever\0\n"
    assert not session.inspected
    session.server_sent(b"")
    assert session.closed


def test_octets_of_the_server_behind_its_250_to_turn_are_not_lost() -> None:
    """Opaque means opaque: what stands behind the 250 in the same segment is the other side's greeting."""
    for octets in (b"250 ok\r\n220 me first\r\n", b"250 ok\r\n22"):
        session = Session(judge=allow("TURN"), record=lambda record: None, clock=lambda: 0.0)
        session.server_sent(b"220 mx\r\n")
        session.client_sent(b"TURN\r\n")
        session.to_client.clear()
        session.server_sent(octets)
        assert bytes(session.to_client) == octets
        assert not session.closed


# ------------------------------------------------------------------------------------------------- XCLIENT and XFORWARD

XCLIENT = hello("XCLIENT NAME ADDR", "SIZE 100", "PIPELINING")


def test_xclient_resets() -> None:
    """Postfix XCLIENT_README: 220 is a new greeting: hello and list are forgotten; lines, not TLS, follow."""
    records = play(
        XCLIENT
        + ENVELOPE
        + """
        C> XCLIENT NAME=x ADDR=192.0.2.1
        >S XCLIENT NAME=x ADDR=192.0.2.1
        S> 220 mx again
        >C 220 mx again
        C> MAIL FROM:<a@x.example> SIZE=1
        >C 555 Parameter not offered here
        C> EHLO me
        >S EHLO me
        S> 250 mx
        >C 250 mx
    """
        + ENVELOPE,
        rules=allow("XCLIENT"),
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused", "tx-begin"]


@pytest.mark.parametrize("reply", ["501 no", "503 order", "550 not you"])
def test_xclient_refused(reply: str) -> None:
    """Nothing is forgotten."""
    play(f"{XCLIENT}\n    C> XCLIENT NAME=x\n    >S XCLIENT NAME=x\n    S> {reply}\n    >C {reply}\n"
        f"    C> MAIL FROM:<a@x.example> SIZE=1\n"
         "    >S MAIL FROM:<a@x.example> SIZE=1\n    S> 250 m\n    >C 250 m\n", rules=allow("XCLIENT"))  # fmt: skip


def test_xclient_and_xforward_are_denied() -> None:
    """C47: the server trusts our address."""
    play(hello("XCLIENT NAME ADDR", "XFORWARD NAME ADDR", told=()) + f"\n    C> XCLIENT ADDR=127.0.0.1\n"
        f"    >C {DENIED}\n"
         f"    C> XFORWARD ADDR=127.0.0.1\n    >C {DENIED}\n" + NOOP)  # fmt: skip


def test_xforward_where_it_is_allowed() -> None:
    """A line and a reply."""
    play(hello("XFORWARD NAME ADDR") + "\n    C> XFORWARD NAME=x ADDR=192.0.2.1\n"
        "    >S XFORWARD NAME=x ADDR=192.0.2.1\n    S> 250 ok\n"
         "    >C 250 ok\n" + NOOP, rules=allow("XFORWARD"))  # fmt: skip


# -------------------------------------------------------------------------------------------------------- unknown verbs


def test_an_unknown_verb_in_lock_step() -> None:
    """Architecture §3: passed by a rule, byte for byte; whatever is behind it waits."""
    rules = Says({"UNKNOWN": PASSED_BY_RULE})
    records = play(
        GREETING
        + """
        C> XYZZY some words
        C> NOOP
        >S XYZZY some words

        S> 250-one
        S> 250 two
        >C 250-one
        >C 250 two
        >S NOOP

        S> 250 n
        >C 250 n
    """,
        rules=rules,
    )
    assert exchanges(records)[1]["verb"] == "UNKNOWN"
    assert exchanges(records)[1]["rule"] == "r"


@pytest.mark.parametrize("code", [300, 334, 353, 354, 355])
def test_an_unknown_verb_gets_no_3yz(code: int) -> None:
    """Architecture §3: any 3yz is a violation: nobody could frame what comes after it."""
    play(
        f"{GREETING}\n    C> XYZZY\n    >S XYZZY\n    S> {code} go\n{BROKEN_PLAIN}",
        rules=Says({"UNKNOWN": PASSED_BY_RULE}),
    )


def test_an_unknown_verb_without_a_rule() -> None:
    """Refused, counted as an error, on record with its words."""
    for rules in (OPEN, allow()):
        records = play(GREETING + "\n    C> XYZZY words\n    >C 500 Command unrecognized\n", rules=rules)
        assert anomalies(records) == ["unknown-verb"]
        assert exchanges(records)[-1]["asked"] == "XYZZY words"

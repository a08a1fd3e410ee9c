"""Each of the 33 names the project is measured by: passed when allowed, refused when denied.

Denied means: the keyword is gone from every EHLO (and LHLO) reply in every spelling, the verb is refused, its
parameters are refused, whatever hello came before; and nothing of it has reached the server (I3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.session.session import Session
from smtpproxy.smtp.errors import Side
from tests.play import play
from tests.session.judges import GREETING, NOOP, OPEN, allow, anomalies, deny, exchanges, hello, listed

PLAIN_NOOP = NOOP.replace("2.0.0 ", "")
ENVELOPE = """
    C> MAIL FROM:<a@x.example>
    >S MAIL FROM:<a@x.example>
    S> 250 m
    >C 250 m
    C> RCPT TO:<b@y.example>
    >S RCPT TO:<b@y.example>
    S> 250 r
    >C 250 r
"""
MAIL_ONLY = ENVELOPE.partition("    C> RCPT")[0]
CONTENT = "\n    C> x\n    C> .\n    >S x\n    >S .\n\n    S> 250 q\n    >C 250 q\n"
NOT_IMPLEMENTED = "502 Command not implemented"
NOT_OFFERED = "555 Parameter not offered here"


@dataclass(frozen=True)
class Name:
    """One of the 33: how it is used, and what is told where it is denied."""

    name: str
    use: str  # the transcript of its use, behind a hello that offers `offers`
    denied: str  # the transcript where it is denied, behind a hello that offers nothing
    offers: tuple[str, ...] = ()  # what the server offers for it
    needs: tuple[str, ...] = ()  # what must be offered besides
    rules: tuple[str, ...] = ()  # what must be allowed besides
    opaque: bool = False


def line(command: str, reply: str = "250 ok") -> str:
    """A command that passes."""
    return f"\n    C> {command}\n    >S {command}\n    S> {reply}\n    >C {reply}\n"


def refused(command: str, told: str = NOT_IMPLEMENTED) -> str:
    """A command answered here."""
    return f"\n    C> {command}\n    >C {told}\n"


NAMES = [
    Name("8BITMIME", line("MAIL FROM:<a@x.example> BODY=8BITMIME") + line("RSET") + line("MAIL FROM:<> BODY=7BIT"),
         refused("MAIL FROM:<a@x.example> BODY=8BITMIME", NOT_OFFERED) + refused("MAIL FROM:<> body=7bit", NOT_OFFERED),
         offers=("8BITMIME",)),
    Name("ATRN", line("ATRN x.example,y.example", "450 later") + line("ATRN", "453 no mail"),
         refused("ATRN x.example") + refused("ATRN"), offers=("ATRN",)),
    Name("AUTH", line("AUTH PLAIN AGEAYg==", "235 in"), refused("AUTH PLAIN AGEAYg==") + refused("AUTH LOGIN")
         + refused("MAIL FROM:<a@x.example> AUTH=<>", NOT_OFFERED) + refused("auth plain"),
         offers=("AUTH PLAIN LOGIN", "AUTH=PLAIN LOGIN")),
    Name("BDAT", ENVELOPE + "\n    C> BDAT 3 LAST\n    C> a\\r\\n\\\n    >S BDAT 3 LAST\n    >S a\\r\\n\\\n\n"
        "    S> 250 q\n"
         "    >C 250 q\n", ENVELOPE + "\n    C> BDAT 6 LAST\n    C> QUIT\\r\\n\\\n    >C 502 Command not implemented\n",
         needs=("CHUNKING",)),
    Name("BINARYMIME", line("MAIL FROM:<a@x.example> BODY=BINARYMIME"),
         refused("MAIL FROM:<a@x.example> BODY=BINARYMIME", NOT_OFFERED)
         + refused("MAIL FROM:<a@x.example> body=binarymime", NOT_OFFERED),
         offers=("BINARYMIME",), needs=("CHUNKING", "8BITMIME")),
    Name("CHUNKING", ENVELOPE + "\n    C> BDAT 0 LAST\n    >S BDAT 0 LAST\n    S> 250 q\n    >C 250 q\n",
         ENVELOPE + "\n    C> BDAT 6 LAST\n    C> QUIT\\r\\n\\\n"
         "    >C 502 Command not implemented\n", offers=("CHUNKING",)),
    Name("DATA", ENVELOPE + line("DATA", "354 go") + CONTENT,
         ENVELOPE + refused("DATA", "554 Transaction refused") + refused("data", "554 Transaction refused")),
    Name("DSN", line("MAIL FROM:<a@x.example> RET=HDRS ENVID=q1")
         + line("RCPT TO:<b@y.example> NOTIFY=NEVER ORCPT=rfc822;b@y.example"),
         refused("MAIL FROM:<a@x.example> RET=FULL", NOT_OFFERED) + refused("MAIL FROM:<> ENVID=q", NOT_OFFERED)
         + MAIL_ONLY + refused("RCPT TO:<b@y.example> NOTIFY=NEVER", NOT_OFFERED)
         + refused("RCPT TO:<b@y.example> orcpt=rfc822;b@y.example", NOT_OFFERED), offers=("DSN",)),
    Name("ENHANCEDSTATUSCODES", "\n    C> XYZZY\n    >C 500 5.5.1 Command unrecognized\n",
         "\n    C> XYZZY\n    >C 500 Command unrecognized\n", offers=("ENHANCEDSTATUSCODES",)),
    Name("ETRN", line("ETRN x.example", "250 started") + line("ETRN @x.example", "253 5 pending") + line("ETRN #q",
    "459 no"),
         refused("ETRN x.example") + refused("etrn #q"), offers=("ETRN",)),
    Name("EHLO", line("EHLO me.example", "250 mx"), refused("EHLO me.example") + refused("ehlo me.example")),
    Name("EXPN", line("EXPN list", "250 <a@x.example>"), refused("EXPN list") + refused("expn x y"), offers=("EXPN",)),
    Name("HELO", line("HELO me.example", "250 mx"), refused("HELO me.example", "550 Client refused")),
    Name("HELP", line("HELP", "214 text") + line("HELP MAIL", "214 text"), refused("HELP") + refused("help mail"),
         offers=("HELP",)),
    Name("MAIL", line("MAIL FROM:<a@x.example>") + line("MAIL FROM:<>", "503 nested"),
         refused("MAIL FROM:<a@x.example>", "550 Transaction refused") + refused("mail from:<>",
         "550 Transaction refused")),
    Name("NOOP", line("NOOP") + line("NOOP really"), refused("NOOP") + refused("noop x")),
    Name("ONEX", line("ONEX"), refused("ONEX") + refused("onex"), offers=("ONEX",)),
    Name("PIPELINING", "", "", offers=("PIPELINING",)),
    Name("QUEU", line("QUEU") + line("QUEU all"), refused("QUEU") + refused("queu all")),
    Name("QUIT", "\n    C> QUIT\n    >S QUIT\n    S> 221 b\n    >C 221 b\n    -> close server\n    -> close client\n",
         refused("QUIT") + refused("quit")),
    Name("RCPT", ENVELOPE, MAIL_ONLY + refused("RCPT TO:<b@y.example>", "550 Recipient refused")
         + refused("rcpt to:<b@y.example>", "550 Recipient refused")),
    Name("RSET", line("RSET"), refused("RSET") + refused("rset")),
    Name("SAML", line("SAML FROM:<a@x.example>"), refused("SAML FROM:<a@x.example>") + refused("saml from:<>"),
    offers=("SAML",)),
    Name("SEND", line("SEND FROM:<a@x.example>"), refused("SEND FROM:<a@x.example>") + refused("send from:<>"),
    offers=("SEND",)),
    Name("SIZE", line("MAIL FROM:<a@x.example> SIZE=100"), refused("MAIL FROM:<a@x.example> SIZE=100", NOT_OFFERED)
         + refused("MAIL FROM:<a@x.example> size=100", NOT_OFFERED), offers=("SIZE 1000",)),
    Name("SOML", line("SOML FROM:<a@x.example>"), refused("SOML FROM:<a@x.example>") + refused("soml from:<>"),
    offers=("SOML",)),
    Name("STARTTLS", "\n    C> STARTTLS\n    >S STARTTLS\n    S> 220 go\n    -> start-tls server\n\n"
        "    !! tls-done server\n    -> prepare-tls client\n\n    !! tls-ready\n"
         "    >C 220 go\n    -> start-tls client\n\n"
         "    !! tls-done client\n", refused("STARTTLS", "454 TLS not available")
         + refused("starttls", "454 TLS not available"), offers=("STARTTLS",)),
    Name("TICK", line("TICK 17", "250 TICK 17"), refused("TICK 17") + refused("tick 17")),
    Name("TURN", "\n    C> TURN\n    >S TURN\n    S> 502 no\n    >C 502 no\n" + "\n    C> TURN\n    >S TURN\n"
        "    S> 250 ok\n"
         "    >C 250 ok\n\n    S> 220 i am the client now\n    >C 220 i am the client now\n\n    C> \\0\\n.\\n\n"
         "    >S \\0\\n.\\n\n",
         refused("TURN") + refused("turn"), offers=("TURN",), opaque=True),
    Name("VERB", line("VERB") + line("VERB on"), refused("VERB") + refused("verb on"), offers=("VERB",)),
    Name("VRFY", line("VRFY b", "250 <b@y.example>"),
         refused("VRFY b", "252 Cannot VRFY user, but will accept message and attempt delivery")
         + refused("vrfy b", "252 Cannot VRFY user, but will accept message and attempt delivery"), offers=("VRFY",)),
    Name("XEXCH50", ENVELOPE + "\n    C> XEXCH50 4 2\n    >S XEXCH50 4 2\n    S> 354 go\n    >C 354 go\n\n"
        "    C> abcd\\\n"
         "    >S abcd\\\n    S> 250 ok\n    >C 250 ok\n", refused("XEXCH50 4 2") + refused("xexch50 4 2")
         + refused("X-EXCH50 4 2"), offers=("XEXCH50",)),
    Name("XUSR", line("XUSR"), refused("XUSR") + refused("xusr"), offers=("XUSR",)),
]  # fmt: skip
MISSION = (
    "8BITMIME ATRN AUTH BDAT BINARYMIME CHUNKING DATA DSN ENHANCEDSTATUSCODES ETRN EHLO EXPN HELO HELP MAIL NOOP ONEX "
    "PIPELINING QUEU QUIT RCPT RSET SAML SEND SIZE SOML STARTTLS TICK TURN VERB VRFY XEXCH50 XUSR"
)
each = pytest.mark.parametrize("row", NAMES, ids=[row.name for row in NAMES])
with_keyword = [row for row in NAMES if row.offers]
each_keyword = pytest.mark.parametrize("row", with_keyword, ids=[row.name for row in with_keyword])


def denied(row: Name) -> Judge:
    """The shipped rules, and this name denied in words."""
    return deny(row.name)


def allowed(row: Name) -> Judge:
    """The shipped rules, and this name allowed in words."""
    return allow(row.name, *row.rules)


def test_the_table_is_the_mission() -> None:
    """All of them, no other."""
    assert [row.name for row in NAMES] == MISSION.split()


# ------------------------------------------------------------------------------------------------------------ allowed


@each
def test_passed_when_allowed(row: Name) -> None:
    """Octet for octet to the server, and its reply to the client; the keyword is told as it was offered."""
    offered = (*row.needs, *row.offers)
    records = play(hello(*offered) + row.use, rules=allowed(row))
    assert "verb-not-offered" not in anomalies(records)
    assert ("inspection-ended" in anomalies(records)) is row.opaque


@each_keyword
def test_its_keyword_is_told_when_allowed(row: Name) -> None:
    """In the spelling of the server, and again in a second EHLO."""
    for spelling in (str.upper, str.lower, str.title):
        offered = (*row.needs, *(spelling(offer) for offer in row.offers))
        play(hello(*offered) + hello(*offered).removeprefix(GREETING), rules=allowed(row))


# ------------------------------------------------------------------------------------------------------------- denied


def hello_denied(row: Name, *offered: str, verb: str = "EHLO", told: tuple[str, ...] = ()) -> str:
    """A hello in which the denied name's keyword is offered; a name that is the hello itself is asked after HELO."""
    if row.name == verb:
        verb = "HELO" if verb == "EHLO" else "EHLO"
        offered = told = ()
    return (
        GREETING
        + f"\n    C> {verb} me.example\n    >S {verb} me.example\n"
        + listed("S>", offered)
        + listed(">C", told)
    )


@each
def test_refused_when_denied(row: Name) -> None:
    """Its verb and its parameters are answered here; the session goes on, in sync."""
    records = play(hello_denied(row, *row.offers) + row.denied + tail(row), rules=denied(row))
    assert all(
        "sent" not in r or r["sent"] is None for r in exchanges(records) if r.get("rule", "").startswith("deny-")
    )


def tail(row: Name) -> str:
    """A command that still passes."""
    return PLAIN_NOOP.replace("NOOP", "RSET") if row.name == "NOOP" else PLAIN_NOOP


@each
def test_refused_after_helo(row: Name) -> None:
    """HELO offers nothing, so nothing of it may be used either; the verb is refused as after EHLO."""
    script = row.denied
    if row.name == "HELO":
        script = hello_denied(row).removeprefix(GREETING) + script
        play(GREETING + script + tail(row), rules=denied(row))
        return
    play(hello_denied(row, verb="HELO") + script + tail(row), rules=denied(row))


@each
def test_refused_after_lhlo(row: Name) -> None:
    """LHLO's list is filtered as EHLO's."""
    from smtpproxy.policy.judge import extension_rule
    from smtpproxy.policy.rules import Treatment

    rules = Judge([extension_rule("LHLO", Treatment.ALLOW), extension_rule(row.name, Treatment.DENY)])
    play(hello_denied(row, *row.offers, verb="LHLO") + row.denied + tail(row), rules=rules)


@each
def test_refused_before_any_hello(row: Name) -> None:
    """Nothing was offered yet."""
    play(GREETING + row.denied + tail(row), rules=denied(row))


SPELLINGS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "as it is": lambda o: (o,),
    "lower case": lambda o: (o.lower(),),
    "mixed case": lambda o: (o.swapcase().title(),),
    "a trailing blank": lambda o: (o + " ",),
    "blanks and TAB": lambda o: (o.replace(" ", "\\t") + " \\t",),
    "with =": lambda o: (o.split()[0] + "=" + " ".join(o.split()[1:] or ["X"]),),
    "= and nothing": lambda o: (o.split()[0] + "=",),
    "with parameters": lambda o: (o + " FOO BAR=1",),
    "repeated": lambda o: (o, o, o.lower()),
    "twin": lambda o: (o, o.split()[0] + "=LOGIN"),
    "between others": lambda o: ("XFOO", o, "XBAR"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@each_keyword
def test_the_keyword_is_gone_in_every_spelling(row: Name, spelling: str) -> None:
    """Once, twice, first, last, alone: gone, in this EHLO and in every later one; the rest is a well-formed list."""
    offered = tuple(line for offer in row.offers[:1] for line in SPELLINGS[spelling](offer))
    neighbour = "DSN" if row.name != "DSN" else "RRVS"
    for lines, told in (
        (offered, ()),
        ((neighbour, *offered), (neighbour,)),
        ((*offered, neighbour), (neighbour,)),
        ((*offered, neighbour, *offered), (neighbour,)),
    ):
        script = hello(*lines, told=told) + hello(*lines, told=told).removeprefix(GREETING)
        records = play(script, rules=denied(row))
        assert "keyword-stripped" in anomalies(records)


@each_keyword
def test_the_keyword_is_gone_after_starttls_too(row: Name) -> None:
    """Every EHLO is filtered, the one inside TLS included (AUTH is offered there by default, and not when denied)."""
    said: list[bytes] = []
    session = Session(judge=denied(row), record=lambda record: None, clock=lambda: 0.0)
    from smtpproxy.session.state import TLSInfo

    session.client.tls = session.server.tls = TLSInfo("TLSv1.3", "x")
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n" + b"".join(b"250-%s\r\n" % o.encode() for o in row.offers) + b"250 DSN\r\n")
    said.append(bytes(session.to_client))
    keyword = row.offers[0].split()[0].encode()
    lines = [reply[4:].split()[0] for reply in said[0].split(b"\r\n")[2:] if reply]
    assert keyword not in lines
    assert session.wants(Side.CLIENT)


# ------------------------------------------------------------------------------------------------ what the default does


@each
def test_what_is_not_in_the_list_of_anybody_is_refused_by_default(row: Name) -> None:
    """The shipped rules: the core passes, the dangerous is refused; here only that the session stays in sync."""
    session = Session(judge=Judge(), record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(row.name.encode() + b" x\r\n")
    answers = session.to_client.count(b"\r\n") - 1
    asked = session.to_server.count(b"\r\n")
    assert (answers, asked) in ((1, 0), (0, 1))


def test_a_denied_verb_in_odd_case_and_with_odd_blanks() -> None:
    """commands.md §7.9: trailing blanks, TAB, case and no argument hit the same rule."""
    for command in ("EXPN x", "expn x", "ExPn\\tx", "EXPN  x", "EXPN x ", "EXPN\\tx\\t"):
        records = play(GREETING + refused(command), rules=deny("EXPN"))
        assert exchanges(records)[-1]["rule"] == "deny-expn"


def test_a_rule_answers_in_its_own_words() -> None:
    """The refusal is the rule's, where it has one."""
    play(
        hello("ENHANCEDSTATUSCODES") + refused("VRFY b", "550 5.7.1 We don't"),
        rules=deny("VRFY", reply="550 5.7.1 We don't"),
    )


def test_without_rules_what_was_offered_passes() -> None:
    """The judge without rules: everything as it came, but a verb that changes framing must have been offered."""
    play(hello("XEXCH50", "XFOO") + line("VRFY b") + refused("XFOO", "500 Command unrecognized"), rules=OPEN)
    play(hello() + refused("XEXCH50 4 2", "502 Command not offered here"), rules=OPEN)

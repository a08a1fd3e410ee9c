"""Recorded sessions, played again by the rules they were recorded with, come out as they were.

Whatever a session can do: what comes out otherwise here would be told as a difference that no rule made.
"""

from pathlib import Path

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.proving.recorded import Exchange, Record
from smtpproxy.proving.replay import Replay, Result
from smtpproxy.proving.steps import Kind, Step
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from tests.proving.audits import HELLO, QUIT, Recording, judge_of, mail, records_of, rehearsed

TLS = """
    S> 220 mx.example ESMTP
    C> EHLO me.example
    S> 250-mx.example
    S> 250 STARTTLS
    C> STARTTLS
    S> 220 Go
    C> EHLO me.example
    S> 250-mx.example
    S> 250 AUTH PLAIN LOGIN
"""
SESSIONS = {
    "mails": HELLO + mail() + mail("", "b@y.example", "c@y.example") + QUIT,
    "a refusal": HELLO + mail(reply="554 5.7.1 no") + mail() + QUIT,
    "recipients refused": HELLO
    + """
    C> MAIL FROM:<a@x.example> SIZE=12
    S> 250 Ok
    C> RCPT TO:<b@y.example> NOTIFY=NEVER
    S> 550 no
    C> DATA
    S> 554 no valid recipients
    C> RSET
    S> 250 Ok
"""
    + mail(),
    "pipelined": HELLO
    + """
    C> MAIL FROM:<a@x.example>
    C> RCPT TO:<b@y.example>
    C> DATA
    S> 250 Ok
    S> 250 Ok
    S> 354 Go
    C> .
    S> 250 Ok
"""
    + QUIT,
    "chunks": HELLO
    + """
    C> MAIL FROM:<a@x.example>
    S> 250 Ok
    C> RCPT TO:<b@y.example>
    S> 250 Ok
    C> BDAT 300000
    C> *300000 x\\
    S> 250 Ok
    C> BDAT 3 LAST
    C> x
    S> 250 Ok
""",
    "no list": """
    S> 220 mx.example
    C> HELO me.example
    S> 250-mx.example
    S> 250 welcome
"""
    + mail(),
    "verbs that are refused": HELLO
    + """
    C> VRFY b
    C> EXPN b
    C> XYZZY
    C> XEXCH50 4 2
    C> NOOP \\xff
    C> MAIL TO:<a>
    C> MAIL FROM:<a@x.example> XUNHEARD=1
    C> MAIL FROM:<a@x.example> RET=FULL
    S> 250 Ok
""",
    "a list nobody knows in full": """
    S> 220 mx.example
    C> EHLO me.example
    S> 250-mx.example at your service
    S> 250-XFOO BAR
    S> 250-xexch50
    S> 250-AUTH PLAIN
    S> 250-size 1000
    S> 250 OK
    C> NOOP
    S> 250 Ok
""",
    "TLS, and a log-in": TLS
    + """
    C> AUTH PLAIN AGFiYwBkZWZnaGkx
    S> 235 Ok
"""
    + mail()
    + QUIT,
    "a log-in of several lines": TLS
    + """
    C> AUTH LOGIN
    S> 334 VXNlcm5hbWU6
    C> YWJj
    S> 334 UGFzc3dvcmQ6
    C> !!!!
    S> 501 cancelled
    C> AUTH LOGIN YWJj
    S> 334 UGFzc3dvcmQ6
    C> ZGVmZ2hpMQ==
    S> 535 no
""",
    "TLS refused": TLS.replace("S> 220 Go", "S> 454 no"),
    "LMTP": """
    S> 220 mx.example LMTP
    C> LHLO me.example
    S> 250-mx.example
    S> 250 PIPELINING
"""
    + mail("a@x.example", "b@y.example", "c@y.example", reply="250 Ok\nS> 550 no"),
    "a server that goes": HELLO + "C> MAIL FROM:<a@x.example>\nS> 421 4.3.2 Shutting down\n",
    "a server that will not": "S> 554 no\nC> EHLO me.example\nS> 503 no\n" + QUIT,
    "silence": HELLO + "C> NOOP\n",
    "mail again and again": HELLO + mail() * 3 + "C> MAIL FROM:<a@x.example>\nS> 250 Ok\n" + mail(),
    "a mail of nobody's": HELLO + "C> DATA\nS> 503 no\n" + mail(),
}
POSTURES = {
    "mirror": Posture(),
    "implicit": Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT),
    "implicit here": Posture(ClientTLS.IMPLICIT, ServerTLS.NEVER),
    "implicit there": Posture(ClientTLS.MIRROR, ServerTLS.IMPLICIT),
    "offered": Posture(ClientTLS.OFFER, ServerTLS.NEVER),
    "refused": Posture(ClientTLS.REFUSE, ServerTLS.NEVER),
}


def again(records: list[Record], judge: Judge, folder: Path) -> tuple[Result, list[Step]]:
    """Play them by the same rules."""
    steps: list[Step] = []
    now = rehearsed("", folder)
    now.judge = judge
    return Replay(lambda connect: now, watch=lambda connect, step: steps.append(step)).play(records), steps


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("posture", POSTURES)
def test_by_the_same_rules_it_is_the_same(session: str, posture: str, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    recording.session(SESSIONS[session], posture=POSTURES[posture])
    records = records_of(tmp_path / "a")
    result, steps = again(records, recording.judge, tmp_path)
    assert [step.differences for step in steps if step.differences] == []
    assert result.rules == {}
    assert result.unread == 0
    asked = [record.asked for record in records if isinstance(record, Exchange) and record.asked is not None]
    assert [step.was.asked for step in steps if isinstance(step.was, Exchange)] == asked


UPGRADED = """
    S> 220 mx.example ESMTP
    S> 250-mx.example
    S> 250 STARTTLS
    S> 220 Go
    C> EHLO me.example
    S> 250-mx.example
    S> 250 DSN
"""


def test_what_the_proxy_said_before_the_greeting_is_said_again(tmp_path: Path) -> None:
    """The server's link was encrypted by our own STARTTLS; the record has all of that."""
    recording = Recording(tmp_path / "a")
    script = UPGRADED.replace("S> 250-mx", "!! 1\n    S> 250-mx").replace("S> 220 Go", "!! 1\n    S> 220 Go")
    recording.session(script + mail() + QUIT, posture=Posture(ClientTLS.MIRROR, ServerTLS.UPGRADE))
    records = records_of(tmp_path / "a")
    result, steps = again(records, recording.judge, tmp_path)
    assert [step.differences for step in steps if step.differences] == []
    assert (result.mails, result.unread, result.rules) == (1, 0, {})


ALLOWED = '[[rule]]\nname = "allowed"\nwhy = "test"\nextension = "XEXCH50"\nthen = "allow"\n'
BLOB = """
    S> 220 mx.example
    C> EHLO me.example
    S> 250-mx.example
    S> 250 XEXCH50
    C> MAIL FROM:<a@x.example>
    S> 250 Ok
    C> RCPT TO:<b@y.example>
    S> 250 Ok
    C> XEXCH50 40 2
    S> 354 go
    C> *40 x\\
    S> 250 Ok
    C> NOOP
    S> 250 Ok
"""


@pytest.mark.parametrize("offers", [True, False])
def test_tls_that_ends_here_ends_here_again(offers: bool, tmp_path: Path) -> None:
    """The server's link stays in clear, whether or not it could be encrypted; a password passes all the same."""
    script = TLS.replace("S> 220 Go", "!! 1")
    if not offers:
        script = script.replace("    S> 250-mx.example\n    S> 250 STARTTLS\n", "    S> 250 mx.example\n")
    recording = Recording(tmp_path / "a")
    script += "C> AUTH PLAIN AGFiYwBkZWZnaGkx\nS> 235 Ok\n"
    recording.session(script + mail() + QUIT, posture=Posture(ClientTLS.OFFER, ServerTLS.NEVER))
    records = records_of(tmp_path / "a")
    result, steps = again(records, recording.judge, tmp_path)
    assert [step.differences for step in steps if step.differences] == []
    assert (result.mails, result.unread, result.follows) == (1, 0, 0)


def test_counted_octets_are_counted_out_again(tmp_path: Path) -> None:
    """And where what announces them is not accepted any more, they are not taken for commands."""
    recording = Recording(tmp_path / "a", judge_of(ALLOWED, tmp_path))
    recording.session(BLOB)
    records = records_of(tmp_path / "a")
    result, _ = again(records, recording.judge, tmp_path)
    assert (result.rules, result.unread, result.exchanges) == ({}, 0, 7)
    result, _ = again(records, Judge(), tmp_path)
    assert (result.unread, result.follows, result.exchanges) == (0, 2, 7)
    refusing = '[[rule]]\nname = "no"\nwhy = "test"\non = "XEXCH50"\nthen = { answer = "550 no" }\n'
    result, _ = again(records, judge_of(ALLOWED + refusing, tmp_path), tmp_path)
    assert (result.rules["no"].counts[Kind.REFUSED], result.follows, result.unread) == (1, 1, 0)


def test_a_log_in_that_is_not_offered_does_not_come_about(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    recording.session(SESSIONS["TLS, and a log-in"])
    denied = '[[rule]]\nname = "no-auth"\nwhy = "test"\nextension = "AUTH"\nthen = "deny"\n'
    result, _ = again(records_of(tmp_path / "a"), judge_of(denied, tmp_path), tmp_path)
    assert result.rules["no-auth"].counts == {Kind.CHANGED: 1}
    assert result.rules["no-auth"].follows == 6


WITH_RULES = """
[[rule]]
name = "no-vrfy"
why = "test"
extension = "VRFY"
then = "deny"

[[rule]]
name = "old"
why = "test"
on = "RCPT"
when = 'rcpt.domain == "old.example"'
then = { answer = "550 5.7.1 {rcpt.domain} is gone" }

[[rule]]
name = "hidden"
why = "test"
on = "RCPT reply"
when = "reply.code == 551"
then = { rewrite = { text = "no such user" } }

[[rule]]
name = "swallowed"
why = "test"
on = "MAIL"
when = 'mail.local == "junk"'
then = "discard"

[[rule]]
name = "bare"
why = "test"
mode = "observe"
on = "MAIL"
when = '!client.hello.contains("..")'
then = { answer = "550 5.7.1 Say your name" }

[[rule]]
name = "slow"
why = "test"
on = "EHLO"
then = [{ tarpit = "2s" }, { tag = "slow" }]

[[rule]]
name = "many"
why = "test"
on = "RCPT"
then = { limit = { recipients = 3, per = "client", within = "1h", answer = "452 4.5.3 Too many" } }

[[rule]]
name = "big"
why = "test"
on = "content"
when = 'client.address == "192.0.2.88" && content.size > 1000'
then = { answer = "552 5.3.4 Too big" }

[[rule]]
name = "weak"
why = "test"
on = "tls"
when = 'client.address == "192.0.2.77"'
then = { answer = "554 5.7.0 Not with that" }

[[rule]]
name = "not-you"
why = "test"
on = "connect"
when = 'client.address == "192.0.2.66"'
then = { answer = "554 5.7.1 Not you" }
"""


def test_what_rules_did_they_do_again(tmp_path: Path) -> None:
    """Answers, rewrites, what is swallowed, limits, waits, what only observes, content, TLS, connections."""
    judge = judge_of(WITH_RULES, tmp_path)
    recording = Recording(tmp_path / "a", judge)
    recording.session(HELLO + "C> VRFY b\n" + mail())
    held = mail("d@x.example", lines=200, reply="250 of RSET").replace("S> 354 Go\n", "")
    recording.session(HELLO + held, client="192.0.2.88:1")
    held = mail(reply="354 Go\nS> 250 Ok").replace("S> 354 Go\n", "", 1)
    recording.session(HELLO + held, client="192.0.2.88:2")
    refused = """
        C> MAIL FROM:<a@x.example>
        S> 250 Ok
        C> RCPT TO:<b@old.example>
        C> RCPT TO:<c@y.example>
        S> 551 5.1.6 Try <c@z.example>
        C> RSET
        S> 250 Ok
    """
    recording.session(HELLO + refused + mail("junk@x.example"), client="192.0.2.2:1")
    recording.session(HELLO + mail("a@x.example", "b@y.example", "c@y.example", "d@y.example"), client="192.0.2.3:1")
    recording.session(HELLO + "C> MAIL FROM:<a@x.example>\nS> 250 Ok\n" + "C> RCPT TO:<b@y.example>\nS> 250 Ok\n" * 3)
    recording.session(TLS.rpartition("C> EHLO")[0] + "C> EHLO me.example\nC> QUIT\nS> 221 Bye\n", client="192.0.2.77:1")
    recording.session("", client="192.0.2.66:1")
    records = records_of(tmp_path / "a")
    text = (tmp_path / "a").read_text()
    assert [name for name in (rule.name for rule in judge.rules) if f'"{name}"' not in text] == []
    now = rehearsed(WITH_RULES, tmp_path)
    steps: list[Step] = []
    result = Replay(lambda connect: now, watch=lambda connect, step: steps.append(step)).play(records)
    assert [(step.was, step.now) for step in steps if step.differences or step.follows] == []
    assert (result.rules, result.other_rules) == ({}, 0)

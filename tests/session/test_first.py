"""Smoke."""
from tests.play import DATA, HELLO, MAIL, play
from smtpproxy.policy.judge import Judge, extension_rule
from smtpproxy.policy.rules import Treatment as T
from smtpproxy.session.verdicts import PassAll, Depth, PASS, Verdict, Action
from smtpproxy.smtp.replies import own
import pytest

def allow(*names): return Judge([extension_rule(n, T.ALLOW) for n in names])
def deny(*names): return Judge([extension_rule(n, T.DENY) for n in names])

def test_mail():
    r = play(DATA + r"""
        C> Subject: x
        C>
        C> hello
        C> ..dot
        C> .
        >S Subject: x
        >S
        >S hello
        >S ..dot
        >S .
        S> 250 2.0.0 queued
        >C 250 2.0.0 queued
        C> QUIT
        >S QUIT
        S> 221 2.0.0 Bye
        >C 221 2.0.0 Bye
        -> close server
        -> close client
    """)

def test_xexch50_allowed():
    r = play(r"""
        S> 220 mx
        >C 220 mx
        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 250 XEXCH50
        >C 250-mx
        >C 250 XEXCH50
        C> XEXCH50 4 2
        >S XEXCH50 4 2
        S> 354 go
        >C 354 go
        C> abcdNOOP
        >S abcd\
        S> 250 ok
        >C 250 ok
        >S NOOP
        S> 250 ok
        >C 250 ok
    """, rules=allow("XEXCH50"))
    for x in r: print(x)

def test_xexch50_denied():
    r = play("""
        S> 220 mx
        >C 220 mx
        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 250 XEXCH50
        >C 250 mx
        C> XEXCH50 4 2
        >C 502 5.5.1 Command not implemented
    """.replace("502 5.5.1","502"))
    for x in r: print(x)

def test_refused_bdat():
    r = play(MAIL.replace("    >C 250-CHUNKING\n","") + r"""
        C> BDAT 6 LAST
        C> NOOP
        C> RSET
        >C 502 5.5.1 Command not implemented
        >S RSET
        S> 250 ok
        >C 250 ok
    """, rules=deny("CHUNKING"))
    for x in r: print(x)

def test_size():
    r = play(MAIL.replace(">C 250-SIZE 10000000",">C 250-SIZE 20") + r"""
        C> BDAT 25 LAST
        C> *23 x
        C> NOOP
        >S RSET
        >S NOOP
        S> 250 reset
        >C 552 5.3.4 Message too big
        S> 250 noop
        >C 250 noop
    """, rules=Judge([extension_rule("SIZE", T.LIMIT, 20)]))
    for x in r: print(x)
    r = play(DATA.replace(">C 250-SIZE 10000000",">C 250-SIZE 20") + r"""
        C> *23 x
        -> abort server
        C> .
        >C 552 5.3.4 Message too big
        C> NOOP
        >C 421 4.4.2 The session to the mail server is over, try again later
        -> close client
    """, rules=Judge([extension_rule("SIZE", T.LIMIT, 20)]))
    for x in r: print(x)

class HeaderJudge(PassAll):
    def __init__(self, verdict): self.v = verdict
    def depth(self, t): return Depth.HEADER
    def header(self, h, s):
        v = self.v
        return v(h) if callable(v) else v
class WholeJudge(HeaderJudge):
    def depth(self, t): return Depth.WHOLE
    def content(self, f, s): return self.header(f.read(), s)

@pytest.mark.parametrize("kind", [HeaderJudge, WholeJudge])
def test_header_pass(kind):
    j = kind(PASS)
    play(MAIL + r"""
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> ..x
        C> .
        >S DATA
        S> 354 go
        >S A: b
        >S
        >S ..x
        >S .
        S> 250 done
        >C 250 done
    """, rules=j)
    play(MAIL + r"""
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> ..x
        C> .
        >S RSET
        S> 250 reset
        >C 550 5.7.1 no
        C> NOOP
        >S NOOP
        S> 250 ok
        >C 250 ok
    """.replace("550 5.7.1 no","550 5.7.1 no"), rules=kind(Verdict(Action.ANSWER, own("550 5.7.1 no"), "r")))
    play(MAIL + r"""
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> ..x
        C> .
        >S DATA
        S> 452 full
        >S RSET
        S> 250 reset
        >C 452 full
        C> NOOP
        >S NOOP
        S> 250 ok
        >C 250 ok
    """, rules=j)

"""Smoke."""
from tests.play import DATA, HELLO, MAIL, play


def test_hello():
    play(HELLO)

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
    for x in r: print(x)

def test_pipelining():
    play(HELLO + """
        C> MAIL FROM:<a@x.example>
        C> EXPN staff
        C> RCPT TO:<c@ok.example>
        C> DATA
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<c@ok.example>
        >S DATA
        S> 250 2.1.0 Ok
        S> 250 2.1.5 Ok
        >C 250 2.1.0 Ok
        >C 502 5.5.1 Command not implemented
        >C 250 2.1.5 Ok
        S> 354 go
        >C 354 go
        C> .
        >S .
        S> 250 ok
        >C 250 ok
    """)

def test_bdat():
    r = play(MAIL + """
        C> BDAT 5
        C> abc
        C> BDAT 5 LAST
        C> abc
        >S BDAT 5
        >S abc
        >S BDAT 5 LAST
        >S abc
        S> 250 ok
        S> 250 done
        >C 250 ok
        >C 250 done
    """)
    for x in r: print(x)

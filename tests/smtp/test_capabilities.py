"""The EHLO reply as a set of extensions: as odd as it is in the wild, and what comes out of it is clean."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.smtp.capabilities import NO_CAPABILITIES, Capabilities, Offer
from smtpproxy.smtp.readers import ReplyReader
from smtpproxy.smtp.replies import Reply, multiline


def read(*lines: bytes) -> Capabilities:
    """The capabilities of a 250 with these lines behind its first."""
    return Capabilities.from_reply(multiline(250, [b"mx.example hello", *lines]))


# line · keyword · parameters · twin
OFFERS: dict[str, tuple[bytes, bytes, tuple[bytes, ...], bool]] = {
    "a keyword": (b"PIPELINING", b"PIPELINING", (), False),
    "one of digits": (b"8BITMIME", b"8BITMIME", (), False),
    "a hyphen": (b"X-EXPS", b"X-EXPS", (), False),
    "an underscore": (b"X_FOO", b"X_FOO", (), False),
    "one parameter": (b"SIZE 1000", b"SIZE", (b"1000",), False),
    "several": (b"AUTH PLAIN LOGIN", b"AUTH", (b"PLAIN", b"LOGIN"), False),
    "small letters": (b"starttls", b"STARTTLS", (), False),
    "mixed letters": (b"StartTLS", b"STARTTLS", (), False),
    "AUTH= (draft-myers-smtp-auth)": (b"AUTH=PLAIN LOGIN", b"AUTH", (b"PLAIN", b"LOGIN"), True),
    "X-EXPS=LOGIN": (b"X-EXPS=LOGIN", b"X-EXPS", (b"LOGIN",), True),
    "= within a parameter": (b"LIMITS RCPTMAX=10 MAILMAX=2", b"LIMITS", (b"RCPTMAX=10", b"MAILMAX=2"), False),
    "= behind a blank": (b"AUTH =PLAIN", b"AUTH", (b"=PLAIN",), False),
    "blanks at the end": (b"STARTTLS  ", b"STARTTLS", (), False),
    "blanks within": (b"SIZE   1000 ", b"SIZE", (b"1000",), False),
    "TAB": (b"SIZE\t1000", b"SIZE", (b"1000",), False),
    "TAB and a blank at the end": (b"STARTTLS\t ", b"STARTTLS", (), False),
    "OK as the last line": (b"OK", b"OK", (), False),
    "a bare =": (b"AUTH=", b"AUTH", (), True),
}


@pytest.mark.parametrize("name", OFFERS)
def test_a_line_of_the_list(name: str) -> None:
    """The keyword is what stands before the first blank or `=`, in capitals; the line stays as it is."""
    line, keyword, parameters, twin = OFFERS[name]
    found = read(line)
    assert found.offers == (Offer(keyword, parameters, twin, line),)
    assert found.malformed == ()
    assert keyword in found
    assert keyword.lower() not in found, "keywords are asked for in capitals"
    assert found.to_reply().lines == [b"mx.example hello", line]


@pytest.mark.parametrize(
    "line",
    [
        b"",  # nothing
        b" ",  # blanks
        b" STARTTLS",  # a blank first
        b"-STARTTLS",  # a hyphen first
        b"=PLAIN",  # no keyword
        b"START.TLS",  # a dot
        b"STARTTLS\x0b",  # VT, which bytes.split takes as a blank
        b"STARTTLS\x00",  # NUL
        b"STARTTLS\x1b[2J",  # ESC
        b"STARTTLS\xc2\xa0",  # a no-break blank
        "STARTTL\u017f".encode(),  # long s: str.upper() makes an S of it
        "S\u0131ZE 10".encode(),  # dotless i: str.upper() makes an I of it
        b"STARTTLS;x",  # another separator
        b"SIZE 10\x7f",  # DEL in a parameter
        b"SIZE \xff",  # beyond ASCII in a parameter
        b"AUTH==PLAIN\x08",  # backspace
    ],
)
def test_what_is_no_line_of_the_list(line: bytes) -> None:
    """D51–D66: what is no keyword is not carried at all, so that nobody can read one into it."""
    found = read(b"SIZE 10", line, b"DSN")
    assert found.malformed == (line,)
    assert found.keywords == {b"SIZE", b"DSN"}
    assert found.to_reply().lines == [b"mx.example hello", b"SIZE 10", b"DSN"]


def test_keywords_that_stand_twice() -> None:
    """`AUTH` and `AUTH=` side by side are one keyword; its parameters are those of all its lines, in order."""
    found = read(b"AUTH PLAIN", b"DSN", b"AUTH=LOGIN", b"auth CRAM-MD5")
    assert found.keywords == {b"AUTH", b"DSN"}
    assert found.parameters(b"AUTH") == (b"PLAIN", b"LOGIN", b"CRAM-MD5")
    assert found.parameters(b"SIZE") == ()


def test_taking_a_keyword_out_takes_out_every_spelling() -> None:
    """RFC 5321 §4.1.1.1; S6: no spelling of what was stripped is left for a client to read."""
    found = read(b"AUTH PLAIN", b"DSN", b"AUTH=LOGIN", b"auth  X ", b"Auth")
    edited = found.edited(lambda offer: None if offer.keyword == b"AUTH" else offer.line)
    assert b"AUTH" not in edited
    assert edited.to_reply().raw == b"250-mx.example hello\r\n250 DSN\r\n"


def test_editing_a_line() -> None:
    """A changed line has its own parameters; a list that loses all its lines is its greeting alone."""
    found = read(b"SIZE 1000", b"DSN")
    edited = found.edited(lambda offer: b"SIZE 10" if offer.keyword == b"SIZE" else None)
    assert edited.parameters(b"SIZE") == (b"10",)
    assert edited.to_reply() == Reply(250, b"250-mx.example hello\r\n250 SIZE 10\r\n")
    assert found.edited(lambda offer: None).to_reply() == Reply(250, b"250 mx.example hello\r\n")
    assert found.parameters(b"SIZE") == (b"1000",), "the list itself is not changed"


@pytest.mark.parametrize("line", [b"", b"SIZE 1\r\n250 STARTTLS", b"SIZE\0", b" SIZE 1"])
def test_editing_can_not_make_what_is_no_line(line: bytes) -> None:
    """A rule's line is held to the same grammar."""
    with pytest.raises(ValueError, match="not an EHLO line"):
        read(b"SIZE 1000").edited(lambda offer: line)


def test_a_list_of_one_line() -> None:
    """No extension at all; and a greeting line that holds a keyword offers nothing."""
    found = Capabilities.from_reply(Reply(250, b"250 STARTTLS\r\n"))
    assert found.keywords == frozenset()
    assert found.greeting == b"STARTTLS"
    assert NO_CAPABILITIES.keywords == frozenset()


@given(st.lists(st.binary(max_size=12), max_size=6))
@settings(deadline=None, derandomize=True)
def test_any_list_comes_out_clean(texts: list[bytes]) -> None:
    """Whatever lines came: what goes out is a reply, and reading it again gives the same keywords."""
    lines = [text.replace(b"\r", b"").replace(b"\n", b"") for text in texts]
    found = read(*lines)
    again = Capabilities.from_reply(found.to_reply())
    assert len(found.offers) + len(found.malformed) == len(lines)
    assert (again.offers, again.malformed) == (found.offers, ())
    for reply in ReplyReader(4096, 1000).feed(found.to_reply().raw):
        assert reply == found.to_reply(), "no octet in it that the reader would replace"

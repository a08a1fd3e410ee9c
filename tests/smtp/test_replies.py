"""Replies: a server's, kept as they came; and our own, that no stranger's octet can get into."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.smtp import replies
from smtpproxy.smtp.readers import ReplyReader
from smtpproxy.smtp.replies import OwnReply, Reply, multiline, own

OURS = {name: value for name, value in vars(replies).items() if isinstance(value, OwnReply)}


# raw · lines · enhanced · text
REPLIES: dict[str, tuple[bytes, list[bytes], bytes, str]] = {
    "one line": (b"250 Ok\r\n", [b"Ok"], b"", "Ok"),
    "an enhanced code": (b"250 2.1.5 Ok\r\n", [b"2.1.5 Ok"], b"2.1.5", "2.1.5 Ok"),
    "an enhanced code alone": (b"250 2.1.5\r\n", [b"2.1.5"], b"2.1.5", "2.1.5"),
    "three digits in each part": (b"550 5.123.456 no\r\n", [b"5.123.456 no"], b"5.123.456", "5.123.456 no"),
    "the first line's enhanced code": (
        b"550-5.7.1 no\r\n550 5.7.2 really\r\n",
        [b"5.7.1 no", b"5.7.2 really"],
        b"5.7.1",
        "5.7.1 no 5.7.2 really",
    ),
    "no enhanced code: an address": (b"220 2.example\r\n", [b"2.example"], b"", "2.example"),
    "no enhanced code: four digits": (b"250 2.1.5555 Ok\r\n", [b"2.1.5555 Ok"], b"", "2.1.5555 Ok"),
    "no enhanced code: another class": (b"250 3.0.0 Ok\r\n", [b"3.0.0 Ok"], b"", "3.0.0 Ok"),
    "no enhanced code: within the text": (b"250 Ok 2.0.0\r\n", [b"Ok 2.0.0"], b"", "Ok 2.0.0"),
    "nothing behind the code": (b"250\r\n", [b""], b"", ""),
    "a blank behind the code": (b"250 \r\n", [b""], b"", ""),
    "several lines": (b"250-a\r\n250-\r\n250 c\r\n", [b"a", b"", b"c"], b"", "a  c"),
    "UTF-8": ("250 g\xfcltig\r\n".encode(), ["g\xfcltig".encode()], b"", "g\xfcltig"),
    "not UTF-8": (b"250 \xff\r\n", [b"\xff"], b"", "\\xff"),
    "NEL is no line end (A63)": ("250 a\x85b\r\n".encode(), ["a\x85b".encode()], b"", "a\x85b"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_what_a_reply_says_of_itself(name: str) -> None:
    """RFC 5321 §4.2.1, RFC 3463 §2: derived on demand from the octets it came in."""
    raw, lines, enhanced, text = REPLIES[name]
    reply = Reply(int(raw[:3]), raw)
    assert (reply.lines, reply.enhanced, reply.text) == (lines, enhanced, text)
    assert str(reply) == f"{reply.code} {text}".rstrip()
    assert reply.digit == reply.code // 100
    assert reply.odd == ()


def test_a_noise_reply_shows_three_digits() -> None:
    """VERB's 050: the code is three digits for people as well."""
    assert str(Reply(50, b"050 talk\r\n")) == "050 talk"


@given(st.sampled_from([200, 250, 354, 421, 599]), st.lists(st.binary(max_size=20), min_size=1, max_size=5))
@settings(deadline=None, derandomize=True)
def test_multiline_is_read_back(code: int, texts: list[bytes]) -> None:
    """`multiline` and the reader are inverses, for lines of text."""
    lines = [re.sub(rb"[\x00-\x1f\x7f]", b"", text) for text in texts]
    reply = multiline(code, lines)
    assert reply.lines == lines
    assert ReplyReader(512, 100).feed(reply.raw) == [reply]


@pytest.mark.parametrize("name", OURS)
def test_our_own_replies_are_tidy(name: str) -> None:
    """Each is one short line of printable ASCII in both forms, and reads back as what it is."""
    reply = OURS[name]
    for form in reply:
        assert len(form.raw) <= 512, "RFC 5321 §4.5.3.1.5"
        assert form.raw.isascii()
        assert form.raw[:-2].decode().isprintable()
        assert ReplyReader(512, 1).feed(form.raw) == [form]
    assert reply.full.code == reply.plain.code
    assert reply.plain.enhanced == b""
    assert reply.full.code == 354 or reply.full.enhanced[:1] == reply.full.raw[:1]
    assert reply.full.raw.replace(reply.full.enhanced + b" ", b"", 1) == reply.plain.raw or reply.full.code == 354


def test_the_form_follows_what_was_offered() -> None:
    """RFC 2034 §4: enhanced codes in every reply, or in none."""
    assert replies.BYE.form(True).raw == b"221 2.0.0 Bye\r\n"
    assert replies.BYE.form(False).raw == b"221 Bye\r\n"


def test_own_without_an_enhanced_code() -> None:
    """354 has none (RFC 2034 §4 asks for them in 2yz, 4yz and 5yz)."""
    assert own("354 Go") == OwnReply(Reply(354, b"354 Go\r\n"), Reply(354, b"354 Go\r\n"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a reply"),  # nothing
        ("550", "not a reply"),  # no text
        ("550 ", "not a reply"),  # no text either
        ("55 no", "not a reply"),  # two digits
        ("150 no", "not a reply"),  # 1yz is never told (I9)
        ("650 no", "not a reply"),  # no such class
        ("5\u0665\u0660 no", "not a reply"),  # Arabic digits, which int() and \d take
        ("550-no", "not a reply"),  # a line of a longer reply
        ("550 no\r\n", "not a reply"),  # its own CRLF
        ("550 no\n", "not a reply"),  # `$` would match before it
        ("550 no\r\n250 yes", "not a reply"),  # a second reply
        ("550 no\tno", "not a reply"),  # TAB
        ("550 \x1b[2J", "not a reply"),  # ESC
        ("550 caf\xe9", "not a reply"),  # beyond ASCII
        ("550 2.0.0 no", "disagree"),  # RFC 3463 §2
        ("250 5.7.1 yes", "disagree"),
        ("450 5.7.1 later", "disagree"),
        ("550 " + "x" * 507, "510"),  # RFC 5321 §4.5.3.1.5
    ],
)
def test_what_is_no_reply_of_ours(text: str, why: str) -> None:
    """A rule file can't make us say what is not one line of a reply."""
    with pytest.raises(ValueError, match=why):
        own(text)


def test_the_longest_reply_of_ours() -> None:
    """512 octets with CRLF (RFC 5321 §4.5.3.1.5)."""
    assert len(own("550 " + "x" * 506).full.raw) == 512

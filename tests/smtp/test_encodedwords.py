"""Encoded words: read as lenient readers do, written as RFC 2047 wants, in linear time."""

import email.header
import time
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.smtp.encodedwords import CHARSETS, base64, decoded, encoded, printable, text

# as it stands · what it says
READ: dict[str, tuple[bytes, str]] = {
    "plain": (b"a  b", "a  b"),
    "nothing": (b"", ""),
    "Q (RFC 2047 §8)": (b"=?ISO-8859-1?Q?a_b=E4?=", "a bä"),
    "B (RFC 2047 §8)": (b"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=", "If you can read this yo"),
    "blanks between two are not text": (b"=?us-ascii?q?a?= \r\n\t=?utf-8?q?b?=", "ab"),
    "text between two is": (b"=?us-ascii?q?a?= x =?us-ascii?q?b?=", "a x b"),
    "blanks between one and text are text": (b"x =?us-ascii?q?a?= y", "x a y"),
    "a language (RFC 2231 §5)": (b"=?us-ascii*en?q?a?=", "a"),
    "a character in two words": (b"=?utf-8?q?=C3?= =?utf-8?q?=A4?=", "ä"),
    "in the middle of a word": (b"x=?us-ascii?q?a?=y", "xay"),
    "blanks inside": (b"=?us-ascii?q?a b?=", "a b"),
    "no padding": (b"=?us-ascii?b?YWI?=", "ab"),
    "a broken end": (b"=?us-ascii?b?YWJjZ?=", "abc"),
    "not base64 at all": (b"=?us-ascii?b?%%%?=", ""),
    "not quoted-printable": (b"=?us-ascii?q?a=zz?=", "a=zz"),
    "an unknown charset": ("=?x-mine?q?ä?=".encode(), "ä"),
    "a charset Python has and mail has not": (b"=?punycode?q?a-b?=", "a-b"),
    "octets its charset has not": (b"=?us-ascii?q?=E4?=", "ä"),
    "halves of characters": (b"=?utf-7?q?+2AA-?=", "?"),
    "line ends in it": (b"=?us-ascii?q?a=0D=0A=00b?=", "a   b"),
    "raw UTF-8 (RFC 6532)": ("jürgen".encode(), "jürgen"),
    "raw Latin-1": (b"j\xfcrgen", "jürgen"),
    "no encoding": (b"=?us-ascii?x?a?=", "=?us-ascii?x?a?="),
    "no end": (b"=?us-ascii?q?a", "=?us-ascii?q?a"),
    "an endless charset": (b"=?" + b"a" * 65 + b"?q?a?=", "=?" + "a" * 65 + "?q?a?="),
}


@pytest.mark.parametrize("case", READ)
def test_read(case: str) -> None:
    written, meant = READ[case]
    assert decoded(written) == meant


@pytest.mark.parametrize("name", CHARSETS)
def test_every_charset_is_one_python_has(name: str) -> None:
    assert text(b"+AGE-" if name == "utf-7" else "a".encode(CHARSETS[name]), name.upper() + " ") == "a"


@given(st.binary(), st.sampled_from([*CHARSETS, "", "rot13", "zlib", "idna", "../x", "\0"]))
def test_any_octets_of_any_charset(octets: bytes, charset: str) -> None:
    text(octets, charset).encode()
    word = decoded(b"=?" + charset.encode() + b"?b?" + b64encode(octets) + b"?=")
    assert not {"\r", "\n"} & set(word)


@given(
    st.lists(st.sampled_from([b"=?", b"?=", b"?q?", b"?b?", b"utf-8", b"*", b" ", b"a", b"=E4", b"\xff"]), max_size=12)
)
def test_any_pieces(pieces: list[bytes]) -> None:
    decoded(b"".join(pieces)).encode()


@given(st.binary())
def test_base64(octets: bytes) -> None:
    assert base64(b64encode(octets)) == octets
    assert base64(b64encode(octets).rstrip(b"=") + b"\0") == octets
    base64(octets)


LONG = 1_048_576


@pytest.mark.parametrize(
    "piece",
    [
        b"=?",
        b"=?a",
        b"=?a?",
        b"=?a?q?",
        b"=?a?q?x?= ",
        b"=?utf-8?b?w6Q=?= ",
        b"?=",
        b"=",
        b" ",
        b"=?a*",
        b"a",
        b"\xff",
        b"_",
    ],
)
def test_a_mebibyte_takes_bounded_time(piece: bytes) -> None:
    """Python's own e-mail parser takes minutes for some of these."""
    value = (piece * (LONG // len(piece) + 1))[:LONG]
    began = time.process_time()
    decoded(value)
    decoded(b"=?utf-8?q?" + value + b"?=")
    encoded(text(value), utf8=False)
    assert time.process_time() - began < 8


@pytest.mark.parametrize("piece", ['"', r"\"", '"a', '"ü" ', "ü ", 'ü"', "=?"])
def test_writing_takes_bounded_time(piece: str) -> None:
    began = time.process_time()
    encoded('"' + piece * (LONG // len(piece) // 4), utf8=False)
    assert time.process_time() - began < 8


# value · pieces · pieces with UTF-8
WRITTEN: dict[str, tuple[str, list[str], list[str]]] = {
    "nothing": ("", [], []),
    "words": ("a  b\tc", ["a", "  b", "\tc"], ["a", "  b", "\tc"]),
    "not ASCII": ("a ü b", ["a", " =?utf-8?b?w7w=?=", " b"], ["a", " ü", " b"]),
    "neighbours are one": ("ü ü", ["=?utf-8?b?w7wgw7w=?="], ["ü", " ü"]),
    "a name and an address": ("Jürgen <a@b>", ["=?utf-8?b?SsO8cmdlbg==?=", " <a@b>"], ["Jürgen", " <a@b>"]),
    "a quoted name": (r'"J\"ü" <a@b>', ["=?utf-8?b?SiLDvA==?=", " <a@b>"], [r'"J\"ü"', " <a@b>"]),
    "a quoted name, no blank": ('"ü"<a@b>', ["=?utf-8?b?w7w=?=", " <a@b>"], ['"ü"', "<a@b>"]),
    "behind a quoted name": ('"a"ü', ['"a"', " =?utf-8?b?w7w=?="], ['"a"', "ü"]),
    "a quoted string has its blanks": ('"a b" c', ['"a b"', " c"], ['"a b"', " c"]),
    "a quote that does not end": ('a "b " "c ', ["a", ' "b "', ' "', "c"], ["a", ' "b "', ' "', "c"]),
    "what reads as an encoded word is none": ("=?a?q?b?=", ["=?utf-8?b?PT9hP3E/Yj89?="], ["=?utf-8?b?PT9hP3E/Yj89?="]),
    "control characters": ("a\r\nb\0\x85\u2028 ", ["a??b???"], ["a??b???"]),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_written(case: str) -> None:
    value, coded, plain = WRITTEN[case]
    assert [piece.decode() for piece in encoded(value, utf8=False)] == coded
    assert [piece.decode() for piece in encoded(value, utf8=True)] == plain


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_read(value: str) -> None:
    """By us, and by Python, who is nobody's friend: the same but for blanks and quotes."""
    written = b"".join(encoded(value, utf8=False))
    assert written.isascii()

    def plain(value: str) -> str:
        return "".join(value.replace('"', "").replace("\\", "").split())

    assert plain(decoded(written)) == plain(printable(value))
    theirs = str(email.header.make_header(email.header.decode_header(written.decode())))
    assert plain(theirs) == plain(printable(value))


def test_an_encoded_word_is_at_most_75_octets() -> None:
    for piece in encoded("ü" * 500 + "€" * 500 + " " + "a" * 2000, utf8=False):
        assert len(piece.strip()) <= 75
        decoded(piece).encode("utf-8")

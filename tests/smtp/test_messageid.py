"""The Message-ID, found in a header section that comes in pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.smtp.messageid import MOST, MessageId

WHOLE = b"Received: by x\r\nMESSAGE-ID:  <a.b@c.example>\r\nSubject: s\r\n\r\nMessage-ID: <body@c.example>\r\n"


def found(*pieces: bytes) -> bytes | None:
    """What is found once all of these have come."""
    finder = MessageId()
    for piece in pieces:
        if finder.found is None:
            finder.take(piece)
    return finder.found


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (WHOLE, b"<a.b@c.example>"),
        (b"Message-ID:\r\n <folded@c.example>\r\n\r\n", b"<folded@c.example>"),
        (b"Message-ID : <blank@c.example>\r\n\r\n", b"<blank@c.example>"),
        (b"Message-ID: <one@c>\r\nMessage-ID: <two@c>\r\n\r\n", b"<one@c>"),
        (b"Message-ID: none\r\n\r\n", b""),
        (b"Subject: s\r\n\r\nMessage-ID: <body@c.example>\r\n", b""),
        (b"X-Message-ID: <no@c>\r\n\r\n", b""),
        (b"\r\nMessage-ID: <body@c.example>\r\n\r\n", b""),
        (b"Message-ID: <" + b"a" * 997 + b">\r\n\r\n", b""),
        (b"Message-ID: <not whole@c>\r\n", None),
        (b"x" * MOST + b"\r\nMessage-ID: <late@c>\r\n\r\n", b""),
        (b"Message-ID: <early@c>\r\n" + b"x" * MOST, b"<early@c>"),
    ],
)
def test_what_is_found(section: bytes, expected: bytes | None) -> None:
    assert found(section) == expected


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    assert found(*(WHOLE[a:b] for a, b in itertools.pairwise(places))) == b"<a.b@c.example>"


def test_nothing_found_in_nothing() -> None:
    assert found() is None

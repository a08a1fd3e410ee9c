r"""The readers: content and replies.

What is kept here: the three rules at the top of readers.py. Any cut gives the same (I6); what is kept is bounded (I7,
S7); and what passes has one reading to every server, however lenient (I4, S1; attacks.md table A).
"""

import itertools
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpproxy.smtp.anomalies import CLOSES
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.readers import Content, ReplyReader, is_sasl_line, stuffed
from smtpproxy.smtp.replies import Reply
from tests.models import LOOKALIKES, MODELS, Model, shown

STEADY = settings(deadline=None, derandomize=True, max_examples=300)


# -------------------------------------------------------------------------------------------------------------- content


class Taken(NamedTuple):
    """What a reader gave of some octets, all in all."""

    body: bytes  # what is passed on
    plain: bytes  # the same without dot-stuffing
    done: bool
    rest: bytes  # kept back, or behind the end
    stray: bool


def take(pieces: Iterable[bytes], prefix: bytes = b"") -> Taken:
    """Everything a Content gives of these pieces; `prefix` stands before each, and is passed over by `start`."""
    reader = Content()
    kept = body = plain = b""
    for piece in pieces:
        kept += piece
        if reader.done:
            continue
        given_, after = reader.take(prefix + kept, len(prefix))
        body += given_
        plain += reader.plain
        kept = (prefix + kept)[after:]
        assert len(kept) <= 4 or reader.done, "at most four octets are kept back"
    return Taken(body, plain, reader.done, kept, reader.stray)


def cuts(octets: bytes) -> Iterator[list[bytes]]:
    """Octet by octet, every cut in two, and at random."""
    yield [octets[i : i + 1] for i in range(len(octets))]
    for i in range(len(octets) + 1):
        yield [octets[:i], octets[i:]]
    source = random.Random(len(octets))
    for _ in range(10):
        pieces = []
        at = 0
        while at < len(octets):
            size = source.randint(1, 7)
            pieces.append(octets[at : at + size])
            at += size
        yield pieces


# came · passed on (None: anything that reads as `plain`) · plain · rest
CONTENTS: dict[str, tuple[bytes, bytes | None, bytes, bytes]] = {
    # the end of data (RFC 5321 §4.1.1.4)
    "no content at all": (b".\r\n", b"", b"", b""),
    "one empty line": (b"\r\n.\r\n", b"\r\n", b"\r\n", b""),
    "one line": (b"a\r\n.\r\n", b"a\r\n", b"a\r\n", b""),
    "commands behind the end are the rest": (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"a\r\n", b"QUIT\r\n"),
    "a second end behind the end is the rest": (b"a\r\n.\r\n.\r\n", b"a\r\n", b"a\r\n", b".\r\n"),
    "an end at once and a second content": (b".\r\na\r\n.\r\n", b"", b"", b"a\r\n.\r\n"),
    "octets behind the end are nobody's business here": (b"a\r\n.\r\n\0\n\r", b"a\r\n", b"a\r\n", b"\0\n\r"),
    # transparency (§4.5.2)
    "a stuffed dot": (b"..\r\n.\r\n", b"..\r\n", b".\r\n", b""),
    "two stuffed dots": (b"...\r\n.\r\n", b"...\r\n", b"..\r\n", b""),
    "a stuffed line, first": (b"..a\r\n.\r\n", b"..a\r\n", b".a\r\n", b""),
    "a stuffed line, later": (b"a\r\n..b\r\n.\r\n", b"a\r\n..b\r\n", b"a\r\n.b\r\n", b""),
    "every line stuffed": (b"..\r\n..\r\n..\r\n.\r\n", b"..\r\n..\r\n..\r\n", b".\r\n.\r\n.\r\n", b""),
    "a dot within a line is no stuffing": (b"a.b\r\na.\r\n.\r\n", b"a.b\r\na.\r\n", b"a.b\r\na.\r\n", b""),
    "a dot not stuffed loses its dot (§4.5.2)": (b".a\r\n.\r\n", b".a\r\n", b"a\r\n", b""),
    "a dot and a blank is no end (A64)": (b". \r\n.\r\n", b". \r\n", b" \r\n", b""),
    "a blank and a dot is no end (A64)": (b" .\r\n.\r\n", b" .\r\n", b" .\r\n", b""),
    "an empty line before the end": (b"a\r\n\r\n.\r\n", b"a\r\n\r\n", b"a\r\n\r\n", b""),
    # the places where only the cut matters
    "dot, CR, not LF at the start": (b".\ra\r\n.\r\n", None, b" a\r\n", b""),
    "dot, CR, not LF later": (b"a\r\n.\rb\r\n.\r\n", None, b"a\r\n b\r\n", b""),
    "an end begun and broken off, twice": (b"\r\n.a\r\n.\r\n", b"\r\n.a\r\n", b"\r\na\r\n", b""),
    # what is not 7-bit text passes as it is (A63, F01–F15)
    "8-bit": (b"\xff\xfe\x80\r\n.\r\n", b"\xff\xfe\x80\r\n", b"\xff\xfe\x80\r\n", b""),
    "NEL, LS, PS, VT, FF, FS, GS, RS are no line ends (A63)": (
        b"a\xc2\x85.\xc2\x85b\xe2\x80\xa8.\xe2\x80\xa9\x0b.\x0c.\x1c.\x1d.\x1e.\r\n.\r\n",
        None,
        b"a\xc2\x85.\xc2\x85b\xe2\x80\xa8.\xe2\x80\xa9\x0b.\x0c.\x1c.\x1d.\x1e.\r\n",
        b"",
    ),
    "high-bit CR and LF (A63)": (b"a\x8d\x8a.\x8d\x8ab\r\n.\r\n", None, b"a\x8d\x8a.\x8d\x8ab\r\n", b""),
    "overlong CR and LF (A63)": (b"a\xc0\x8d\xc0\x8a.\xc0\x8d\xc0\x8ab\r\n.\r\n", None,
                                 b"a\xc0\x8d\xc0\x8a.\xc0\x8d\xc0\x8ab\r\n", b""),
    "U+560A: its low octet is LF (A63)": (b"\xe5\x98\x8d\xe5\x98\x8a.\r\n.\r\n", None, b"\xe5\x98\x8d\xe5\x98\x8a.\r\n",
                                          b""),
    "quoted-printable spells an end (A64)": (b"=0D=0A.=0D=0A\r\n.\r\n", None, b"=0D=0A.=0D=0A\r\n", b""),
    "blanks at line ends": (b"a \r\n\t\r\n \r\n.\r\n", b"a \r\n\t\r\n \r\n", b"a \r\n\t\r\n \r\n", b""),
    # strays: replaced, never deleted, and stuffed again behind the CRLF that was made (A54, A55)
    "LF alone": (b"a\nb\r\n.\r\n", b"a\r\nb\r\n", b"a\r\nb\r\n", b""),
    "LF alone, first": (b"\na\r\n.\r\n", b"\r\na\r\n", b"\r\na\r\n", b""),
    "LF alone, last but the end": (b"a\n\r\n.\r\n", b"a\r\n\r\n", b"a\r\n\r\n", b""),
    "LF dot is stuffed": (b"a\n.b\r\n.\r\n", b"a\r\n..b\r\n", b"a\r\n.b\r\n", b""),
    "LF dot LF": (b"a\n.\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n", b"a\r\n.\r\nb\r\n", b""),
    "LF dot CRLF (aiosmtpd 1.4.4)": (b"a\n.\r\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n", b"a\r\n.\r\nb\r\n", b""),
    "LF dot dot": (b"a\n..\r\n.\r\n", b"a\r\n...\r\n", b"a\r\n..\r\n", b""),
    "CRLF dot LF": (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\r\nb\r\n", b"a\r\n\r\nb\r\n", b""),
    "CRLF dot LF, first": (b".\nb\r\n.\r\n", b"\r\nb\r\n", b"\r\nb\r\n", b""),
    "CR alone": (b"a\rb\r\n.\r\n", b"a b\r\n", b"a b\r\n", b""),
    "CR alone, first": (b"\ra\r\n.\r\n", b" a\r\n", b" a\r\n", b""),
    "CR before CRLF": (b"a\r\r\n.\r\n", b"a \r\n", b"a \r\n", b""),
    "CR dot CR": (b"a\r.\rb\r\n.\r\n", b"a . b\r\n", b"a . b\r\n", b""),
    "CR dot CRLF": (b"a\r.\r\nb\r\n.\r\n", b"a .\r\nb\r\n", b"a .\r\nb\r\n", b""),
    "CRLF dot CR CRLF (Postfix)": (b"a\r\n.\r\r\nb\r\n.\r\n", None, b"a\r\n \r\nb\r\n", b""),
    "LF CR is both": (b"a\n\rb\r\n.\r\n", b"a\r\n b\r\n", b"a\r\n b\r\n", b""),
    "NUL": (b"a\0b\r\n.\r\n", b"a b\r\n", b"a b\r\n", b""),
    "CRLF NUL dot CRLF (A54)": (b"a\r\n\0.\r\nb\r\n.\r\n", b"a\r\n .\r\nb\r\n", b"a\r\n .\r\nb\r\n", b""),
    "CRLF dot NUL CRLF (A54)": (b"a\r\n.\0\r\nb\r\n.\r\n", None, b"a\r\n \r\nb\r\n", b""),
    "CR NUL LF (A54)": (b"a\r\0\n.\r\nb\r\n.\r\n", b"a  \r\n..\r\nb\r\n", b"a  \r\n.\r\nb\r\n", b""),
    "NUL dot at the start (A56)": (b"\0.\r\n.\r\n", b" .\r\n", b" .\r\n", b""),
    "stuffed dot behind a stray": (b"a\nb\r\n..\r\n.\r\n", b"a\r\nb\r\n..\r\n", b"a\r\nb\r\n.\r\n", b""),
    "CR CRLF dot CRLF holds a conforming end": (b"a\r\r\n.\r\nX", b"a \r\n", b"a \r\n", b"X"),
    # a dot that is no stuffing, and a stray behind it: both go the way the content goes, in any cut
    "a dot not stuffed and a stray on its line": (b".a\n\r\n.\r\n", None, b"a\r\n\r\n", b""),
    "a dot not stuffed and a stray elsewhere": (b"a\r\n.b\r\nc\rd\r\n.\r\n", None, b"a\r\nb\r\nc d\r\n", b""),
    # no end yet
    "unfinished, nothing yet": (b"", b"", b"", b""),
    "unfinished": (b"abc", b"abc", b"abc", b""),
    "unfinished, in the middle of an end": (b"abc\r\n.\r", b"abc", b"abc", b"\r\n.\r"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_content_in_any_cut(name: str) -> None:
    """I6: whole, octet by octet, in two pieces at every place and at random, with octets before it: the same."""
    came, body, plain, rest = CONTENTS[name]
    done = not name.startswith("unfinished")
    whole = take([came])
    assert whole == Taken(whole.body if body is None else body, plain, done, rest, whole.stray)
    assert unstuffed(whole.body) == plain
    assert whole.stray or came.startswith(whole.body), "without strays it passes as it came"
    assert whole.stray == any(octet in came[: len(came) - len(rest)].replace(b"\r\n", b"") for octet in b"\r\n\0")
    for pieces in cuts(came):
        assert take(pieces) == whole
        assert take(pieces, prefix=b"DATA\r\n") == whole, "where content begins in the octets is no matter"
        assert take(pieces, prefix=b"\r\n.\r\n") == whole, "octets before it are not looked at"


@pytest.mark.parametrize("kept", [b"\r", b"\r\n", b"\r\n.", b"\r\n.\r"], ids=shown)
def test_what_may_become_an_end_is_kept_back(kept: bytes) -> None:
    """The longest end of the octets that begins CRLF . CRLF stays, and nothing else does (A60)."""
    reader = Content()
    assert reader.take(b"abc" + kept, 0) == (b"abc", 3)
    assert reader.take(kept, 0) == (b"", 0), "asked again with nothing more, nothing more is given"
    assert reader.plain == b""
    assert reader.take(kept + b"x", 0)[0].endswith(b"x")
    assert not reader.done


@pytest.mark.parametrize("kept", [b".", b".\r"], ids=shown)
def test_content_that_begins_with_its_end_is_kept_back(kept: bytes) -> None:
    """The start of the content is the start of a line (A56)."""
    reader = Content()
    assert reader.take(kept, 0) == (b"", 0)
    assert reader.take(kept, 0) == (b"", 0)
    assert reader.take(b".\r\nNOOP\r\n", 0) == (b"", 3)
    assert reader.done


@pytest.mark.parametrize(
    "tail", [b"a", b".", b"\n", b"\r\r", b"a.", b"\r\n..", b"\r\n.\r.", b"\n.\r\n", b"\0"], ids=shown
)
def test_only_the_beginning_of_an_end_is_kept_back(tail: bytes) -> None:
    """Whatever else content ends in at the moment, it goes on at once (but for a last CR or CRLF of it)."""
    _, after = Content().take(b"abc" + tail, 0)
    keep = next((len(k) for k in (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r") if tail.endswith(k)), 0)
    assert after == len(b"abc" + tail) - keep


@pytest.mark.parametrize("before", [998, 999, 4094, 4095, 4096, 8191, 65535, 65536])
def test_a_dot_deep_in_a_line_is_no_line_start(before: int) -> None:
    """A59: a dot right behind 998 … 65,536 octets of a line, in pieces: no unstuffing, no end, no stuffing."""
    octets = b"x" * before + b".\r\n" + b"x" * before + b"..\r\n"
    for pieces in ([octets + b".\r\n"], [octets[:before], octets[before:] + b".\r\n"], [octets, b".", b"\r", b"\n"]):
        assert take(pieces) == Taken(octets, octets, True, b"", False)


@pytest.mark.parametrize("size", [4096, 8192, 65536])
@pytest.mark.parametrize("back", range(6))
def test_an_end_straddles_reads(size: int, back: int) -> None:
    """A60: an end of data across the border of two reads of `size` is one end."""
    octets = b"x" * (size - back) + b"\r\n.\r\nNOOP\r\n"
    got = take([octets[:size], octets[size:]])
    assert got == Taken(b"x" * (size - back) + b"\r\n", b"x" * (size - back) + b"\r\n", True, b"NOOP\r\n", False)


def understood(model: Model, passed: bytes) -> Model:
    """A model that has heard one transaction whose content is `passed`."""
    fresh = model.fresh()
    fresh.feed(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
    fresh.feed(passed)
    return fresh


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("number", LOOKALIKES)
def test_every_lookalike_reads_as_content(number: str, model: Model) -> None:
    """A01–A53: in the body, at its start, at its end: exactly one end of data to every reader, and that at its end."""
    sequence = LOOKALIKES[number]
    for before, after in itertools.product((b"Subject: x\r\n\r\nbody", b""), (b"MAIL FROM:<evil@x>\r\n", b"\r\n")):
        got = take([before + sequence + after + b".\r\n"])
        assert got.done
        assert got.rest == b""
        heard = understood(model, got.body + b".\r\n")
        assert [mail.content for mail in heard.mails] == [got.plain]
        assert len(heard.commands) == 3, "nothing of the content is a command"
        assert heard.idle


def test_models_do_read_differently() -> None:
    """The models are worth something: each of the lenient ones falls for a sequence that is passed on as it came."""
    fallen = {
        model.name
        for model in MODELS
        for sequence in LOOKALIKES.values()
        if len(understood(model, b"body" + sequence + b"NOOP\r\n\r\n.\r\n").mails) > 1
        or len(understood(model, b"body" + sequence + b"NOOP\r\n\r\n.\r\n").commands) > 3
    }
    assert fallen == {model.name for model in MODELS} - {"strict", "strict-without-chunking"}


hostile = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"a", b"\r\n", b"\r\n.", b"\n.\n"]), max_size=24).map(
    b"".join
)


@st.composite
def cut_content(draw: st.DrawFn) -> list[bytes]:
    """Hostile octets and a real end, in pieces."""
    octets = draw(hostile) + draw(st.sampled_from([b"\r\n.\r\n", b"a\r\n.\r\n"]))
    places = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    return [octets[a:b] for a, b in itertools.pairwise([0, *places, len(octets)])]


@given(cut_content())
@example([b"\n", b".\n\r\n.\r\n"])
@example([b"\r\n.\n", b".\r\n\r\n.\r\n"])
@example([b"a\n", b".\r\n\r\n.\r\n"])
@example([b"a\r", b"\0", b"\n", b".", b"\0\r\n\r\n.\r\n"])
@STEADY
def test_any_content_has_one_reading(pieces: list[bytes]) -> None:
    """S1, I4: whatever came in whatever cut, every lenient reader finds one end of data, at its end, one content."""
    whole = take([b"".join(pieces)])
    got = take(pieces)
    assert got == whole
    assert got.done
    for model in MODELS:
        heard = understood(model, got.body + b".\r\n")
        assert [mail.content for mail in heard.mails] == [got.plain], model
        assert heard.idle
        assert len(heard.commands) == 3


def unstuffed(octets: bytes) -> bytes:
    """RFC 5321 §4.5.2, line by line: of a line that begins with a dot, the first character is deleted."""
    lines = octets.split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


@given(st.lists(st.sampled_from([b"", b"a", b".", b"..", b".a", b"a.", b" ."]), max_size=8), st.integers(0, 30))
@STEADY
def test_content_without_strays_passes_as_it_came(lines: list[bytes], place: int) -> None:
    """Transparency: not an octet is changed, and `plain` is what RFC 5321 §4.5.2 has a receiver make of it."""
    stop = lines.index(b".") if b"." in lines else len(lines)
    octets = b"".join(line + b"\r\n" for line in lines[:stop])
    came = octets + b".\r\n"
    got = take([came[:place], came[place:]])
    assert got == Taken(octets, unstuffed(octets), True, b"", False)


@given(st.lists(st.sampled_from([b"", b"a", b".", b"..", b".a", b"a."]), max_size=8))
@STEADY
def test_stuffing_is_undone_by_reading(lines: list[bytes]) -> None:
    """`stuffed` and the reader are inverses, for whole content of whole lines."""
    plain = b"".join(line + b"\r\n" for line in lines)
    assert take([stuffed(plain) + b".\r\n"]) == Taken(stuffed(plain), plain, True, b"", False)


@pytest.mark.parametrize(
    ("plain", "wire"),
    [
        (b"", b""),  # nothing
        (b"a\r\n", b"a\r\n"),  # no dot
        (b".", b".."),  # the start of the content is the start of a line
        (b".\r\n.\r\n", b"..\r\n..\r\n"),  # every line
        (b"\r\n.", b"\r\n.."),  # a last line without its end
        (b"a.b\r\na.\r\n", b"a.b\r\na.\r\n"),  # dots elsewhere
        (b"..\r\n", b"...\r\n"),  # one more, whatever there is
    ],
)
def test_stuffed(plain: bytes, wire: bytes) -> None:
    """RFC 5321 §4.5.2: a dot more before each dot that begins a line."""
    assert stuffed(plain) == wire


# -------------------------------------------------------------------------------------------------------------- replies


class Heard(NamedTuple):
    """What a reader made of some octets: the replies, and the violation if there was one."""

    replies: list[Reply]
    broken: tuple[str, str] | None


def hear(pieces: Iterable[bytes], *, noise: bool = False, max_line: int = 512, max_lines: int = 8) -> Heard:
    """Feed the pieces until the end, or a violation."""
    reader = ReplyReader(max_line, max_lines)
    reader.noise = noise
    replies: list[Reply] = []
    for piece in pieces:
        more, broken = reader.feed_until_broken(piece)
        replies += more
        if broken is not None:
            assert broken.side is Side.SERVER
            return Heard(replies, (broken.anomaly, str(broken)))
    return Heard(replies, None)


REPLIES: dict[str, tuple[bytes, list[Reply]]] = {
    "one line": (b"250 Ok\r\n", [Reply(250, b"250 Ok\r\n")]),
    "several replies": (b"250 a\r\n354 b\r\n", [Reply(250, b"250 a\r\n"), Reply(354, b"354 b\r\n")]),
    "several lines": (b"250-a\r\n250-b\r\n250 c\r\n", [Reply(250, b"250-a\r\n250-b\r\n250 c\r\n")]),
    "blank and no text": (b"250 \r\n", [Reply(250, b"250 \r\n")]),
    "hyphen and no text": (b"250-\r\n250 \r\n", [Reply(250, b"250-\r\n250 \r\n")]),
    "nothing behind the code (RFC 5321 §4.2)": (b"250\r\n", [Reply(250, b"250\r\n", ("reply-no-text",))]),
    "a last line without text": (b"250-a\r\n250\r\n", [Reply(250, b"250-a\r\n250\r\n", ("reply-no-text",))]),
    "any code from 200 to 599": (b"200 a\r\n599 b\r\n", [Reply(200, b"200 a\r\n"), Reply(599, b"599 b\r\n")]),
    "8-bit text (D24)": (b"250 \xe9\xff\r\n", [Reply(250, b"250 \xe9\xff\r\n")]),
    "TAB in the text": (b"250 a\tb\r\n", [Reply(250, b"250 a\tb\r\n")]),
    "ESC and DEL are replaced (D23)": (b"250 \x1b[2J\x7f\r\n", [Reply(250, b"250 ?[2J?\r\n", ("reply-control",))]),
    "VT, FF, FS and backspace too": (b"250 \x0b\x0c\x1c\x08\r\n", [Reply(250, b"250 ????\r\n", ("reply-control",))]),
    "control octets and no text": (
        b"250-\x07\r\n250\r\n",
        [Reply(250, b"250-?\r\n250\r\n", ("reply-control", "reply-no-text"))],
    ),
    "the longest line": (b"250 " + b"x" * 506 + b"\r\n", [Reply(250, b"250 " + b"x" * 506 + b"\r\n")]),
    "the most lines": (b"250-a\r\n" * 7 + b"250 a\r\n", [Reply(250, b"250-a\r\n" * 7 + b"250 a\r\n")]),
    "half a reply": (b"250-a\r\n250", []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_in_any_cut(name: str) -> None:
    """I6: the same replies however they arrive; multi-line ones whole (RFC 5321 §4.2.1)."""
    octets, replies = REPLIES[name]
    assert hear([octets]) == Heard(replies, None)
    for pieces in cuts(octets):
        assert hear(pieces) == Heard(replies, None)


def test_pending_says_that_a_reply_is_unfinished() -> None:
    """An unfinished reply is kept, whole lines of it too."""
    reader = ReplyReader(512, 8)
    assert not reader.pending
    for octets, pending in ((b"25", True), (b"0-a\r\n", True), (b"250 b\r\n", False), (b"250 c\r\n2", True)):
        reader.feed(octets)
        assert reader.pending is pending


# what the server says · the anomaly · how many replies before it are whole
VIOLATIONS: dict[str, tuple[bytes, str, int]] = {
    "no code": (b"hello\r\n", "reply-malformed", 0),
    "empty line (D14)": (b"\r\n", "reply-malformed", 0),
    "blank line": (b"   \r\n", "reply-malformed", 0),
    "two digits (D06)": (b"25 Ok\r\n", "reply-malformed", 0),
    "four digits": (b"2500 Ok\r\n", "reply-malformed", 0),
    "letters in the code": (b"25O Ok\r\n", "reply-malformed", 0),
    "fullwidth digits (int() takes them)": ("２５０ Ok\r\n".encode(), "reply-malformed", 0),
    "a sign (int() takes it)": (b"+25 Ok\r\n", "reply-malformed", 0),
    "blank before the code": (b" 250 Ok\r\n", "reply-malformed", 0),
    "TAB behind the code": (b"250\tOk\r\n", "reply-malformed", 0),
    "another separator": (b"250_Ok\r\n", "reply-malformed", 0),
    "whole replies stand before it": (b"250 a\r\n251 b\r\nnonsense\r\n", "reply-malformed", 2),
    "1yz (I9)": (b"100 a\r\n", "reply-code-out-of-range", 0),
    "0yz": (b"050 a\r\n", "reply-code-out-of-range", 0),
    "6yz": (b"600 a\r\n", "reply-code-out-of-range", 0),
    "9yz in a multi-line reply": (b"999-a\r\n999 a\r\n", "reply-code-out-of-range", 0),
    "codes differ (D01)": (b"250-a\r\n251 b\r\n", "reply-codes-differ", 0),
    "codes differ, success then failure (D02)": (b"550-a\r\n250 b\r\n", "reply-codes-differ", 0),
    "codes differ in the middle": (b"250-a\r\n354-b\r\n250 c\r\n", "reply-codes-differ", 0),
    "LF alone ends the line (D18)": (b"250 a\n", "reply-bare-lf", 0),
    "LF alone hides a reply (D19)": (b"250 a\n550 b\r\n", "reply-bare-lf", 0),
    "LF alone at once": (b"\n", "reply-bare-lf", 0),
    "CR inside (D20)": (b"250 a\rb\r\n", "reply-bare-cr", 0),
    "CR CRLF": (b"250 a\r\r\n", "reply-bare-cr", 0),
    "NUL (D22)": (b"250 a\0b\r\n", "reply-nul", 0),
    "NUL in the code": (b"2\x0050 a\r\n", "reply-nul", 0),
    "NUL without an end": (b"250 \0", "reply-nul", 0),
    "one octet too long (D25)": (b"250 " + b"x" * 507 + b"\r\n", "reply-line-too-long", 0),
    "too long and no end (D28)": (b"250 " + b"x" * 2000, "reply-line-too-long", 0),
    "too long, second line": (b"250-a\r\n250 " + b"x" * 507 + b"\r\n", "reply-line-too-long", 0),
    "too long, LF alone behind it": (b"250 " + b"x" * 600 + b"\n", "reply-line-too-long", 0),
    "too long, NUL behind the limit": (b"250 " + b"x" * 600 + b"\0\r\n", "reply-line-too-long", 0),
    "too long, NUL one behind the limit": (b"250 " + b"x" * 509 + b"\0\r\n", "reply-line-too-long", 0),
    "one line too many (D29)": (b"250-a\r\n" * 8 + b"250 a\r\n", "reply-too-many-lines", 0),
    "lines without end (D30)": (b"250-a\r\n" * 100, "reply-too-many-lines", 0),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations_by_name(name: str) -> None:
    """D01–D31: each has its name, the replies before it are given, and the name does not depend on the cut (I6)."""
    octets, anomaly, whole = VIOLATIONS[name]
    assert anomaly in CLOSES
    heard = hear([octets])
    assert heard.broken is not None
    assert (heard.broken[0], len(heard.replies)) == (anomaly, whole)
    for pieces in cuts(octets):
        other = hear(pieces)
        assert other.broken is not None
        assert (other.broken[0], other.replies) == (anomaly, heard.replies)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_is_recorded_of_a_violation_does_not_depend_on_the_cut(name: str) -> None:
    """I6: same octets, any cut, same records: the words of a violation go into the record too."""
    octets, _, _ = VIOLATIONS[name]
    assert {hear(pieces).broken for pieces in cuts(octets)} == {hear([octets]).broken}


def test_the_words_of_a_violation_are_one_printable_line() -> None:
    """What a server said is shown escaped: no record and no terminal can be written to by it (J8)."""
    heard = hear([b"\x1b]0;x\x07 250 \xff\n"])
    assert heard.broken is not None
    assert heard.broken[1].isprintable()
    assert heard.broken[1].isascii()


def test_feed_raises_the_violation() -> None:
    """`feed` is `feed_until_broken` for who has no use for what stood before."""
    with pytest.raises(ProtocolError, match="reply-malformed"):
        ReplyReader(512, 8).feed(b"250 a\r\nnonsense\r\n")
    assert ReplyReader(512, 8).feed(b"250 a\r\n") == [Reply(250, b"250 a\r\n")]


def test_noise_is_given_only_where_it_is_expected() -> None:
    """VERB's `050` lines are replies of their own once VERB was accepted; other codes out of range never."""
    octets = b"050 talk\r\n250 Ok\r\n"
    for pieces in cuts(octets):
        assert hear(pieces, noise=True) == Heard([Reply(50, b"050 talk\r\n"), Reply(250, b"250 Ok\r\n")], None)
    for octets in (b"100 a\r\n", b"600 a\r\n"):
        broken = hear([octets], noise=True).broken
        assert broken is not None
        assert broken[0] == "reply-code-out-of-range"
    broken = hear([b"250-a\r\n050 talk\r\n250 b\r\n"], noise=True).broken
    assert broken is not None
    assert broken[0] == "reply-codes-differ"


def test_a_line_of_30_megabytes_is_never_kept() -> None:
    """D28, I7: a line without end is refused at its limit; memory stays flat however the octets come."""
    for size in (1, 1000, 65536):
        reader = ReplyReader(4096, 1000)
        fed = 0
        tracemalloc.start()
        try:
            piece = b"x" * size
            reader.feed_until_broken(b"250 ")
            broken = None
            while broken is None and fed < 30_000_000:
                _, broken = reader.feed_until_broken(piece)
                fed += size
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert broken is not None
        assert broken.anomaly == "reply-line-too-long"
        assert fed <= 4096 + size
        assert peak < 400_000


def test_lines_without_end_are_never_kept() -> None:
    """D30, I7: what is kept of one reply never exceeds lines × line."""
    reader = ReplyReader(64, 16)
    kept = 0
    for _ in range(2_000_000):
        kept += 1
        _, broken = reader.feed_until_broken(b"250-" + b"x" * 58 + b"\r\n")
        if broken is not None:
            break
    assert broken is not None
    assert broken.anomaly == "reply-too-many-lines"
    assert kept <= 16


def test_a_long_reply_in_small_pieces() -> None:
    """S7: a reply of 512 KiB within its limits, in small pieces, is not read anew from its first line at each piece."""
    octets = (b"250-" + b"x" * 4090 + b"\r\n") * 127 + b"250 end\r\n"
    reader = ReplyReader(4096, 1000)
    replies: list[Reply] = []
    view = memoryview(octets)
    for at in range(0, len(octets), 64):
        replies += reader.feed(bytes(view[at : at + 64]))
    assert [reply.raw for reply in replies] == [octets]


said = st.sampled_from([b"2", b"5", b"0", b"250", b"-", b" ", b"\r", b"\n", b"\r\n", b"\0", b"x", b"250 a\r\n"])


@given(st.lists(said, max_size=20).map(b"".join), st.lists(st.integers(0, 60), max_size=5))
@STEADY
def test_any_octets_are_replies_or_one_violation(octets: bytes, places: list[int]) -> None:
    """Garbage in: whole, tidy replies out or one violation from the catalogue, the same in any cut (I6)."""
    heard = hear([octets], max_line=32, max_lines=3)
    pieces = [octets[a:b] for a, b in itertools.pairwise([0, *sorted(places), len(octets)])]
    other = hear(pieces, max_line=32, max_lines=3)
    assert other.replies == heard.replies
    assert (other.broken and other.broken[0]) == (heard.broken and heard.broken[0])
    assert heard.broken is None or heard.broken[0] in CLOSES
    for reply in heard.replies:
        assert reply.raw.endswith(b"\r\n")
        assert all(line.startswith(b"%03d" % reply.code) for line in reply.raw[:-2].split(b"\r\n"))
        assert not any(octet in reply.raw.replace(b"\r\n", b"") for octet in b"\r\n\0")


# ----------------------------------------------------------------------------------------------------------------- SASL


@pytest.mark.parametrize(
    "line",
    [
        b"",  # an empty response
        b"*",  # cancel (RFC 4954 §4)
        b"=",  # an empty initial response, here harmless
        b"AGEAYg==",  # two fill characters
        b"AGFiYmM=",  # one
        b"AGFiYmMx",  # none
        b"+/+/",  # the two odd characters of base64
        b"QUIT",  # four characters of base64 are data, whatever they spell (E63–E77)
        b"STARTTLS",
        b"A" * 12288,
    ],
)
def test_sasl_lines(line: bytes) -> None:
    """RFC 4648 §4: base64, `=` or `*`."""
    assert is_sasl_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"A",  # not a multiple of four
        b"AB",
        b"ABC",
        b"A===",  # three fill characters
        b"AB=C",  # fill in the middle
        b"====",
        b"AA==AA==",  # something behind the fill
        b"AB==\n",  # `$` would match before it (attacks.md §4)
        b"\n",
        b"*\r",
        b"**",
        b"AB CD===",  # a blank
        b" QUIT",
        b"AB-_",  # base64url
        b"\xc3\xa9AB",  # beyond ASCII
        b"\xef\xbc\xa1\xef\xbc\xa1",  # fullwidth A
        b"AAA\0",
    ],
)
def test_no_sasl_lines(line: bytes) -> None:
    """Anything else is not forwarded as a secret."""
    assert not is_sasl_line(line)

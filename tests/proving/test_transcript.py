"""Transcripts: lines read into steps, and the ways to cut what is sent."""

from pathlib import Path

import pytest

from smtpproxy.proving.transcript import (
    MismatchError,
    Step,
    content_of,
    cuttings,
    difference,
    octets_of,
    parse,
    parse_lines,
    shown,
)


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("NOOP", b"NOOP\r\n"),
        ("", b"\r\n"),
        ("NOOP ", b"NOOP \r\n"),
        (r"a\r\n\0\t\\b", b"a\r\n\0\t\\b\r\n"),
        (r"\x00\xFF\xe9", b"\x00\xff\xe9\r\n"),
        ("NOOP\\", b"NOOP"),
        (r"back\\", b"back\\\r\n"),
        ("*3 ab", b"ababab\r\n"),
        (r"*2 a\n", b"a\na\n\r\n"),
        ("* 3 ab", b"* 3 ab\r\n"),
        (r"\q", b"\\q\r\n"),
    ],
)
@pytest.mark.parametrize("utf8", [True, False])
def test_a_line_as_it_is_on_the_wire(text: str, octets: bytes, utf8: bool) -> None:
    assert octets_of(text, utf8=utf8) == octets


def test_characters_are_octets_in_python_and_utf8_in_files() -> None:
    assert octets_of("é€") == b"\xe9" + "€\r\n".encode()
    assert octets_of("é€", utf8=True) == "é€\r\n".encode()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (b"", b".\r\n"),
        (b"a\nb", b"a\r\nb\r\n.\r\n"),
        (b"a\r\n\r\n.b\r\n", b"a\r\n\r\n..b\r\n.\r\n"),
        (b".\n", b"..\r\n.\r\n"),
    ],
)
def test_a_file_as_content(file: bytes, content: bytes) -> None:
    assert content_of(file) == content


def test_lines_of_one_tag_are_one_write() -> None:
    first, second, third = parse(
        "C> A\nC> B\n# not a blank line\nC> C\n\nC> D\n>S A\n>C 250 x\n-> close client\n!! lost\n"
    )
    assert (first.octets, first.line) == (b"A\r\nB\r\nC\r\n", 1)
    assert second == Step(
        "C>", b"D\r\n", client=b"250 x\r\n", server=b"A\r\n", effects=["close client"], line=6, where="line 6,"
    )
    assert (third.tag, third.words) == ("!!", "lost")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("C> A\nhello", "line 2: no line of a transcript"),
        (">C 250 x", "line 1, >C an output before any input"),
        ("=> pass", "line 1: no line of a transcript"),
        ("C> A\nC< mail.eml", "line 2: no line of a transcript"),
    ],
)
def test_what_is_no_transcript(script: str, said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        parse(script)


def test_playbooks_have_more_tags(tmp_path: Path) -> None:
    (tmp_path / "mail.eml").write_bytes(b"a\n.b\n")
    lines = list(enumerate(["C< mail.eml", "=> answer  a", "# a comment parts two writes", "C> A", "# so", "C> B"], 7))
    first, second, third = parse_lines(lines, "x.play:{}:", folder=tmp_path)
    assert (first.tag, first.octets, first.told) == ("C>", b"a\r\n..b\r\n.\r\n", ["answer a"])
    assert (second.octets, third.octets) == (b"A\r\n", b"B\r\n")
    assert str(third) == "x.play:12: C> b'B\\r\\n'"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["C< none.eml"], "x.play:1: .*none.eml can't be read"),
        ([".. wait 1", "=> pass"], "x.play:2: => an output before any input"),
    ],
)
def test_what_is_no_playbook(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=said):
        parse_lines(enumerate(lines, 1), "x.play:{}:", folder=tmp_path)


@pytest.mark.parametrize(("octets", "ways"), [(10, 22), (20_001, 21), (200_001, 4)])
def test_every_cutting_gives_all_octets(octets: int, ways: int) -> None:
    data = bytes(range(256)) * (octets // 256) + b"x" * (octets % 256)
    cuts = list(cuttings([Step("C>", data)]))
    assert len(cuts) == ways
    for how, cut in cuts:
        pieces = list(cut(data))
        assert b"".join(pieces) == data, how
        assert how != "octet by octet" or {len(piece) for piece in pieces} == {1}


def test_without_steps_there_is_nothing_to_cut() -> None:
    assert [list(cut(b"")) for how, cut in cuttings([]) if how == "octet by octet"] == [[]]


def test_a_difference_is_in_lines_of_a_transcript() -> None:
    wanted, got = shown(b"250 a\r\n", b"", ["close client"]), shown(b"550 a\r\n", b"X\r\n", [])
    assert difference(wanted, got).splitlines()[0] == "+ >S b'X\\r\\n'"
    assert "- -> close client" in difference(wanted, got)

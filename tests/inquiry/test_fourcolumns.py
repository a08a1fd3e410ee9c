"""Four texts side by side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.inquiry.fourcolumns import CLOCK, GAP, LONGEST, NARROWEST, Cell, Columns


def laid_out(width: int, *texts: str, whole: bool = False) -> list[str]:
    columns = Columns(width, whole=whole)
    cells = [Cell(text) for text in texts]
    columns.fit([cells])
    return ["".join(text for text, _ in pieces) for pieces in columns.lines("0.5", cells)]


def test_each_column_is_as_wide_as_it_has_to_be() -> None:
    columns = Columns(200)
    columns.fit([[Cell("EHLO me"), Cell("="), Cell("250 mx"), Cell("=")]])
    assert columns.heads() == "     TIME  ASKED    SENT  GOT     TOLD"
    assert laid_out(200, "EHLO me", "=", "250 mx", "=") == ["      0.5  EHLO me  =     250 mx  ="]


def test_the_widest_gives_way() -> None:
    found = laid_out(80, "MAIL FROM:<" + "a" * 100 + "@example.org> SIZE=1", "=", "250 Ok", "=")
    assert len(found) > 1
    assert found[0].endswith("  =     250 Ok  =")
    assert all(len(line) <= 80 for line in found)


def test_it_is_broken_at_blanks_and_at_line_ends() -> None:
    assert laid_out(80, "a", "=", "250-mx\r\n250 SIZE", "=") == [
        "      0.5  a      =     250-mx    =",
        " " * 24 + "250 SIZE",
    ]


def test_what_is_very_long_is_cut_off() -> None:
    shown = "\n".join(laid_out(80, "x" * (LONGEST + 1234), "=", "", ""))
    assert shown.count("x") == LONGEST
    assert "(and 1,234 more" in shown
    whole = "\n".join(laid_out(80, "x" * (LONGEST + 1234), "=", "", "", whole=True))
    assert whole.count("x") == LONGEST + 1234


def test_colours_go_with_their_texts() -> None:
    columns = Columns(80)
    cells = [Cell("a"), Cell("b", "yellow"), Cell("c"), Cell("d", "red")]
    columns.fit([cells])
    ((*pieces,),) = columns.lines("0", cells)
    assert [(text.strip(), colour) for text, colour in pieces] == [
        ("0", None), ("a", None), ("b", "yellow"), ("c", None), ("d", "red"),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1, 40, 80, 200])
@given(texts=st.lists(st.text(max_size=300), min_size=4, max_size=4))
def test_whatever_peers_write(width: int, texts: list[str]) -> None:
    """No line is wider than there is room, nothing but what can be printed comes out, nothing visible is lost."""
    lines = laid_out(width, *texts)
    assert all(len(line) <= max(width, NARROWEST) for line in lines)
    assert all(line.isprintable() for line in lines)
    seen = "".join(sorted("".join(lines).replace(" ", "")))
    said = [character for text in texts for line in text.split("\n") for character in line.removesuffix("\r")]
    expected = "".join(sorted("".join(c if c.isprintable() else "?" for c in said).replace(" ", "") + "0.5"))
    assert seen == expected
    assert len(GAP) * 4 + CLOCK < NARROWEST

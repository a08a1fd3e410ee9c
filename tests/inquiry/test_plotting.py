"""Bars."""

import pytest

from smtpproxy.inquiry.plotting import bar, bars


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1, "██████████"), (0.5, "█████"), (0.55, "█████▌"), (0.001, "▏"), (0.9999, "██████████"), (1 / 80, "▏")],
)
def test_a_bar_is_as_long_as_its_share(share: float, drawn: str) -> None:
    assert bar(share, 10) == drawn


@pytest.mark.parametrize(("share", "drawn"), [(0, ""), (1, "##########"), (0.5, "#####"), (0.001, "#")])
def test_a_bar_of_signs(share: float, drawn: str) -> None:
    assert bar(share, 10, ascii_only=True) == drawn


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_are_as_wide_as_the_terminal(width: int, ascii_only: bool) -> None:
    found = list(bars([("one", 1_234_567), ("another", 0), ("third", 3)], width, ascii_only=ascii_only))
    assert [len(line) <= width for line in found] == [True] * 3
    assert len(found[0]) == width
    assert found[1] == f"another  {'0':>9}"
    assert found[2].startswith("third            3  ")


def test_a_narrow_terminal_has_bars_too() -> None:
    assert list(bars([("a" * 50, 2), ("b", 1)], 20)) == [f"{'a' * 50}  2  {'█' * 10}", f"{'b':<50}  1  {'█' * 5}"]


def test_names_are_cut_and_made_printable() -> None:
    (line,) = bars([("x" * 100 + "\x1b[31m", 1)], 100)
    assert line.startswith("x" * 59 + "…  1  █")
    (line,) = bars([("\x1b[31mé\n", 1)], 100, ascii_only=True)
    assert line.startswith("?[31m??  1  #")
    (line,) = bars([("é" * 100, 1)], 100, ascii_only=True)
    assert line.startswith("?" * 57 + "...  1")
    assert line.isascii()


def test_nothing_is_nothing() -> None:
    assert list(bars([], 80)) == []
    assert list(bars([("a", 0)], 80)) == ["a  0"]

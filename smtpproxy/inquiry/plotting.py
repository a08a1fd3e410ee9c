"""Counts as bars, in a terminal: as long as they are many, in eighths of a character, or of # where that is all there
is."""

from collections.abc import Iterator, Sequence
from typing import Final

from smtpproxy.columns import printable

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_LEAST: Final = 10  # characters of a bar, however narrow the terminal is
_LONGEST_NAME: Final = 60


def bar(share: float, width: int, *, ascii_only: bool = False) -> str:
    """A bar of a share of the width. What is more than nothing is seen."""
    if share <= 0:
        return ""
    if ascii_only:
        return "#" * max(1, round(share * width))
    eighths = max(1, round(share * width * 8))
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def bars(counts: Sequence[tuple[str, int]], width: int, *, ascii_only: bool = False) -> Iterator[str]:
    """A line for each: the name, how many, the bar; the longest is of the one with the most.

    Args:
        counts: names and numbers.
        width: columns of the terminal.
        ascii_only: no characters beside those of US-ASCII are to be had.
    """
    if not counts:
        return
    names = [_short(printable(name), ascii_only) for name, _ in counts]
    numbers = [f"{number:,}" for _, number in counts]
    left, middle = max(map(len, names)), max(map(len, numbers))
    room = max(_LEAST, width - left - middle - 4)
    most = max(number for _, number in counts)
    for name, text, (_, number) in zip(names, numbers, counts, strict=True):
        drawn = bar(number / most if most else 0.0, room, ascii_only=ascii_only)
        yield f"{name:<{left}}  {text:>{middle}}  {drawn}".rstrip()


def _short(name: str, ascii_only: bool) -> str:
    name = name.encode("ascii", "replace").decode() if ascii_only else name
    dots = "..." if ascii_only else "…"
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - len(dots)] + dots

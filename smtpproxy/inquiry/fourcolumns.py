"""Four texts side by side: what the client asked, what was sent to the server, what was got, what the client was told.

Each text is broken into lines of its column's width; the columns share what the terminal has. Where the second is the
first, or the fourth the third, there is an `=`: what differs is seen without colour. Peers wrote these texts: what
comes here is made printable piece by piece, and one that is very long is cut off, with how much that was.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from smtpproxy.columns import printable

NARROWEST: Final = 80  # columns of a terminal that are made use of, also where it has fewer
CLOCK: Final = 9  # columns of the time, and behind it two blanks
GAP: Final = "  "
LONGEST: Final = 400  # characters of a text that are shown
SAME: Final = "="
HEADS: Final = ("ASKED", "SENT", "GOT", "TOLD")


class Cell(NamedTuple):
    """A text of a hop, and its colour; `None`: as it is."""

    text: str
    colour: str | None = None


class Columns:
    """Lays four texts out.

    Args:
        width: of the terminal.
        whole: no text is cut off.
    """

    def __init__(self, width: int, *, whole: bool = False) -> None:
        self._room = max(width, NARROWEST) - CLOCK - 4 * len(GAP)
        self._widths = [self._room // 4] * 4
        self._whole = whole

    def fit(self, exchanges: Iterable[Sequence[Cell]]) -> None:
        """Make the columns as wide as these need it, and where that is too wide, the widest ones narrower."""
        needs = list(map(len, HEADS))
        for cells in exchanges:
            longest = (max(map(len, cell.text.split("\n"))) for cell in cells)
            needs = [max(need, min(length, self._room)) for need, length in zip(needs, longest, strict=True)]
        while sum(needs) > self._room:
            needs[needs.index(max(needs))] -= 1
        self._widths = needs

    def heads(self) -> str:
        """The line above all."""
        cells = [head.ljust(width) for head, width in zip(HEADS, self._widths, strict=True)]
        return ("TIME".rjust(CLOCK) + GAP + GAP.join(cells)).rstrip()

    def lines(self, time: str, cells: Sequence[Cell]) -> Iterator[list[tuple[str, str | None]]]:
        """The lines of one exchange, each as pieces of text and their colours; without blanks at their ends."""
        broken = [list(self._broken(cell.text, width)) for cell, width in zip(cells, self._widths, strict=True)]
        for row in range(max(1, *map(len, broken))):
            pieces: list[tuple[str, str | None]] = [((time if row == 0 else "").rjust(CLOCK), None)]
            for lines, width, cell in zip(broken, self._widths, cells, strict=True):
                text = lines[row] if row < len(lines) else ""
                pieces.append((GAP + text.ljust(width), cell.colour))
            while len(pieces) > 1 and not pieces[-1][0].strip():
                pieces.pop()
            text, colour = pieces[-1]
            pieces[-1] = (text.rstrip(), colour)
            yield pieces

    def _broken(self, text: str, width: int) -> Iterator[str]:
        left = 0
        if not self._whole and len(text) > LONGEST:
            left, text = len(text) - LONGEST, text[:LONGEST]
        for line in text.split("\n"):
            yield from _wrapped(printable(line.removesuffix("\r")), width)
        if left:
            yield from _wrapped(f"(and {left:,} more characters)", width)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most this width, broken at blanks where there are any that late."""
    while len(text) > width:
        at = text.rfind(" ", width // 2, width + 1)
        if at < 0:
            at = width
        yield text[:at].rstrip()
        text = text[at:].lstrip(" ")
    yield text

"""Text for terminals: tables, counts, and what peers chose made safe to print."""

from collections.abc import Iterable, Iterator, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """Lines, with columns as wide as what is in them.

    Args:
        heads: of the columns.
        rows: a cell for each.
        right: the columns that stand to the right, by number.
    """
    lines = [tuple(heads), *(tuple(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = enumerate(zip(line, widths, strict=True))
        yield "  ".join(cell.rjust(width) if at in right else cell.ljust(width) for at, (cell, width) in cells).rstrip()


def printable(text: str) -> str:
    """What is no text for a terminal as ?: peers chose some of it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def count(number: int, what: str) -> str:
    """`1 rule`, `1,000 rules`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"

"""Rows that are about no record there is: who puts some beside the record has them found all the same, because search
and show ask the tables. Nothing reads the lines of such rows, and a recorder makes none."""

from collections.abc import Iterator
from typing import Final

from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import GATEWAY_SHIFT
from smtpproxy.store.store import SUBTREE

_MASK: Final = (1 << GATEWAY_SHIFT) - 1
# The last number in each table, and what is found by it.
_LAST: Final = (
    ("SELECT first FROM block ORDER BY first DESC LIMIT 1", "lines stand"),
    ("SELECT id FROM session ORDER BY id DESC LIMIT 1", "a session stands"),
    ("SELECT last FROM session WHERE last IS NOT NULL ORDER BY last DESC LIMIT 1", "a session ends"),
    ("SELECT id FROM mail ORDER BY id DESC LIMIT 1", "a mail stands"),
    ("SELECT mail FROM recipient ORDER BY mail DESC LIMIT 1", "a recipient stands"),
    ("SELECT max(session) FROM mark", "a mark stands"),
    ("SELECT max(mail) FROM mark", "a mark stands"),
)


def outside(reader: Reader, size: int, *, copy: bool) -> Iterator[tuple[int, str]]:
    """What stands in the tables behind the last record: numbers and words.

    Args:
        reader: of one gateway.
        size: the number behind the last.
        copy: it is a database of several, where numbers have their gateway before them.
    """
    mask = _MASK if copy else -1
    for query, what in _LAST:
        for (number,) in reader.rows(query):
            if number is not None and int(number) & mask >= size:
                yield size, f"{what} behind the last record, at {int(number) & mask}: nothing proves it"
    for (n,) in reader.rows("SELECT n FROM subtree ORDER BY n DESC LIMIT 1"):
        if n >= size // SUBTREE:
            yield size, f"a hash stands behind the last record, of those from {n * SUBTREE} on"

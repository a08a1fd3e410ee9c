"""What was counted, as values: added up over processes, and put into octets to get from one to the other.

Who reads these octets can't trust who wrote them: a worker reads what peers send, and may have been taken over by one.
What is not exactly as it should be is nothing.

What must never happen: that it grows without an end. Each set of totals has room for so many octets; when they are used
up, what is new is counted as `other`.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from smtpproxy.metrics.catalogue import BY_NAME, FAMILIES, OTHER, Family, Kind

Key = tuple[str, ...]  # the metric's name and the values of its labels

HEAD: Final = 64  # octets of the whole beside its series
_OWN: Final = 16  # octets of a series beside its words and numbers, at most
_NUMBER: Final = 9  # octets of a number, at most
_encode = msgspec.msgpack.Encoder().encode


class TotalsError(ValueError):
    """Octets that are no totals."""


class _Written(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """As it is in octets."""

    counters: list[tuple[tuple[str, ...], float]]
    gauges: list[tuple[tuple[str, ...], float]]
    histograms: list[tuple[tuple[str, ...], list[float]]]


_decode = msgspec.msgpack.Decoder(_Written).decode


def cost(key: Key) -> int:
    """How many octets a series takes, at most."""
    return sum(len(word.encode()) + 5 for word in key) + _OWN + _NUMBER * _numbers(BY_NAME[key[0]])


def _numbers(family: Family) -> int:
    """Of one series: a histogram has its sum, its buckets and the one beyond them."""
    return len(family.bounds) + 2 if family.kind is Kind.HISTOGRAM else 1


def _others(family: Family) -> Key:
    """What is counted there where there is no room."""
    return (family.name, *(OTHER for _ in family.labels))


# Room that is always kept: `other` of each metric.
RESERVE: Final = HEAD + sum(cost(_others(family)) for family in FAMILIES)


class Totals:
    """Counters, gauges and histograms by their keys. A histogram is its sum, and how many fell into each bucket.

    Args:
        room: octets that `octets` may come to, at most. At least `RESERVE`.
    """

    def __init__(self, room: int) -> None:
        self.counters: dict[Key, float] = {}
        self.gauges: dict[Key, float] = {}
        self.histograms: dict[Key, list[float]] = {}
        self._left = room - RESERVE

    def key(self, *key: str) -> Key:
        """The key to count this by, which is not counted yet: that one, or `other` where there is no room for it."""
        price = cost(key)
        if price > self._left:
            return _others(BY_NAME[key[0]])
        self._left -= price
        return key

    def count(self, *key: str, by: float = 1) -> None:
        """Count it."""
        counters = self.counters
        if key not in counters:
            key = self.key(*key)
        counters[key] = counters.get(key, 0) + by

    def histogram(self, *key: str) -> list[float]:
        """The one of this key, to be changed in place."""
        found = self.histograms.get(key)
        if found is None:
            key = self.key(*key)
            found = self.histograms.setdefault(key, [0.0] * _numbers(BY_NAME[key[0]]))
        return found

    def add(self, other: "Totals", *, gauges: bool = False) -> None:
        """What somebody else has counted; what he had is added where it is asked for."""
        for key, value in other.counters.items():
            self.count(*key, by=value)
        for key, values in other.histograms.items():
            own = self.histogram(*key)
            own[:] = map(sum, zip(own, values, strict=True))
        for key, value in other.gauges.items() if gauges else ():
            self.gauges[key] = self.gauges.get(key, 0) + value

    def octets(self) -> bytes:
        """To be read by `totals_of`."""
        return _encode((list(self.counters.items()), list(self.gauges.items()), list(self.histograms.items())))


def totals_of(octets: bytes, room: int) -> Totals:
    """What these octets say.

    Raises:
        TotalsError: nothing that makes sense.
    """
    try:
        written = _decode(octets)
    except (msgspec.MsgspecError, ValueError) as error:  # UnicodeDecodeError is one
        raise TotalsError(str(error)) from None
    made = Totals(room)
    made.counters = dict(_checked(written.counters, Kind.COUNTER))
    made.gauges = dict(_checked(written.gauges, Kind.GAUGE))
    made.histograms = dict(_checked(written.histograms, Kind.HISTOGRAM))
    return made


def _checked(series: Iterable[tuple[Key, Any]], kind: Kind) -> Iterator[tuple[Key, Any]]:
    """Those series, each of which is one of the catalogue's."""
    for key, value in series:
        family = BY_NAME.get(key[0]) if key else None
        if family is None or family.kind is not kind or len(key) != len(family.labels) + 1:
            raise TotalsError(f"there is no {kind.value} {key}")
        numbers = value if kind is Kind.HISTOGRAM else [value]
        if len(numbers) != _numbers(family) or not all(math.isfinite(n) and n >= 0 for n in numbers):
            raise TotalsError(f"no numbers for {key[0]}: {value}")
        yield key, value

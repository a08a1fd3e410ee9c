"""What is kept for how long: the recorder looks once an hour, and prunes what is older."""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from smtpproxy.store.pruning import prune
from smtpproxy.store.store import Store

EVERY: Final = 3600.0  # seconds
DAY: Final = 86_400.0


class Bounds(NamedTuple):
    """How much is kept; 0 is no bound."""

    days: int = 0
    octets: int = 0


class Retention:
    """Prunes a store, as far as somebody said so.

    Args:
        bounds: what was said.
        floor: the number of the first record that somebody else has not had yet; None: there is nobody.
        clock: seconds since 1970.
    """

    def __init__(
        self, bounds: Bounds, *, floor: Callable[[], int | None] = lambda: None, clock: Callable[[], float] = time.time
    ) -> None:
        self._bounds = bounds
        self._floor = floor
        self._clock = clock
        self._at = float("-inf")

    def check(self, store: Store) -> bool:
        """Prune, if it is time for it; whether it was.

        Raises:
            StoreError: it can't be done now.
        """
        now = self._clock()
        if not any(self._bounds) or 0 <= now - self._at < EVERY:  # below 0: the clock was set back
            return False
        self._at = now
        if self._bounds.days:
            prune(store, now - self._bounds.days * DAY, floor=self._floor())
        if self._bounds.octets and (octets := store.octets) > self._bounds.octets:
            _prune_to(store, 1 - self._bounds.octets / octets, self._floor())
        return True


def _prune_to(store: Store, share: float, floor: int | None) -> None:
    """Take away about this share of the records, the oldest."""
    number = store.first + int((store.size - store.first) * share)
    found = store.connection.execute(
        "SELECT at FROM block WHERE first >= min(?, (SELECT max(first) FROM block)) ORDER BY first LIMIT 1", (number,)
    ).fetchone()
    if found is not None:
        prune(store, found[0], floor=floor)

"""Failures that come again and again, told in the log once and then counted: one line a minute for each reason.

The record has every one of them. The log is for whoever looks why mail does not go, and must not be filled by a peer.
"""

import structlog

log = structlog.get_logger()

AGAIN = 60.0  # seconds until the same is told again, with its count
KINDS = 100  # reasons told apart


class Troubles:
    """What goes wrong with one thing, by reason."""

    def __init__(self, event: str, **about: object) -> None:
        """`event` and `about` stand in every line."""
        self._event = event
        self._about = about
        self._told: dict[str, tuple[float, int]] = {}  # reason: when it was told, how often it has happened since

    def add(self, why: str, now: float, **about: object) -> None:
        """It happened. `now` is monotonic, in seconds."""
        known = self._told.get(why)
        if known is not None:
            self._told[why] = known[0], known[1] + 1
        elif len(self._told) < KINDS:
            self._told[why] = now, 0
            log.warning(self._event, **self._about, **about, why=why)

    def check(self, now: float) -> None:
        """Called about once a second."""
        for why, (told, count) in [*self._told.items()]:
            if now - told < AGAIN:
                continue
            if count:
                self._told[why] = now, 0
                log.warning(self._event, **self._about, why=why, times=count)
            else:
                del self._told[why]

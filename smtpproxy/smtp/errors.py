"""A violation: a peer broke the protocol in a way that leaves no safe way to go on.

A violation knows three things: which peer broke it (`side`), under which stable name it is recorded (`anomaly`, a key
of `anomalies.ANOMALIES`), and what happened in words (`why`, for the record, never for a peer: the text of an
exception is not told to anybody). What the peers are told is decided by the session.
"""

from enum import Enum


class Side(Enum):
    """The two peers: the one at the far end of each link."""

    CLIENT = "client"
    SERVER = "server"

    # Members are looked up by identity on every octet run; Enum's own __hash__ is a Python call.
    __hash__ = object.__hash__

    @property
    def other(self) -> "Side":
        """The peer at the end of the other link."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class ProtocolError(Exception):
    """A peer broke framing or order (RFC 5321 §4.1.1, §4.2): the session can only be closed.

    Raised inside `smtp/` and `session/` only, and caught in `Session.client_sent` and `Session.server_sent`.
    """

    def __init__(self, side: Side, anomaly: str, why: str) -> None:
        super().__init__(f"{side.value}: {anomaly}: {why}")
        self.side = side
        self.anomaly = anomaly
        self.why = why

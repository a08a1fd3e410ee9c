"""How far a mail is looked into, and what is raised where that is not far enough.

What is not looked at to its end is not judged: who catches `MimeLimit` must refuse the mail.
"""

from dataclasses import dataclass
from typing import Final


class MimeLimit(Exception):  # noqa: N818 - it is no mistake of anybody
    """A mail is beyond a bound; `reason` is the name of the bound."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"beyond what is looked into: {reason}")
        self.reason = reason


_PASSES: Final = 8  # times what was unpacked may be gone through


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one mail, all its attachments and archives together."""

    content: int = 268_435_456  # octets; they are in memory while the mail is walked
    parts: int = 1_000  # body parts, in all readings
    depth: int = 20  # multiparts, mails and archives within each other
    header: int = 262_144  # octets of one header section
    readings: int = 16  # ways to understand one part
    members: int = 10_000  # of archives
    unpacked: int = 268_435_456  # octets that are decoded or unpacked to be looked at
    ratio: int = 200  # what an archive says it unpacks to, of its size, beyond `declared`
    declared: int = 67_108_864  # octets
    work: int = 40  # how many times the octets are gone through
    slack: int = 67_108_864  # octets that may be gone through in any case


class Budget:
    """What is left of the bounds."""

    __slots__ = ("_members", "_parts", "_unpacked", "_work", "bounds")

    def __init__(self, bounds: Bounds, size: int) -> None:
        self.bounds = bounds
        self._parts = bounds.parts
        self._members = bounds.members
        self._unpacked = bounds.unpacked
        self._work = bounds.work * size + bounds.slack

    @property
    def unpacked(self) -> int:
        """Octets that may still be unpacked."""
        return self._unpacked

    def part(self, depth: int) -> None:
        """One part more, this deep.

        Raises:
            MimeLimit: parts, depth.
        """
        self._parts -= 1
        if self._parts < 0:
            raise MimeLimit("parts")
        self.deep(depth)

    def deep(self, depth: int) -> None:
        """Something lies this deep.

        Raises:
            MimeLimit: depth.
        """
        if depth > self.bounds.depth:
            raise MimeLimit("depth")

    def member(self) -> None:
        """One member of an archive more.

        Raises:
            MimeLimit: members.
        """
        self._members -= 1
        if self._members < 0:
            raise MimeLimit("members")

    def unpack(self, octets: int) -> None:
        """So many octets were decoded or unpacked.

        Raises:
            MimeLimit: unpacked.
        """
        self._unpacked -= octets
        if self._unpacked < 0:
            raise MimeLimit("unpacked")
        self._work += _PASSES * octets

    def work(self, octets: int) -> None:
        """So many octets are gone through.

        Raises:
            MimeLimit: work.
        """
        self._work -= octets
        if self._work < 0:
            raise MimeLimit("work")

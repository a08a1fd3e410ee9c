"""The memory in which processes leave what they have counted."""

import os
import signal

import pytest

from smtpproxy.metrics.regions import ROOM, Regions


def test_each_has_its_own() -> None:
    regions = Regions(3)
    for region in (None, 0, 2):
        regions.write(region, f"of {region}".encode())
    assert (regions.read(None), regions.read(0), regions.read(1), regions.read(2)) == (
        b"of None",
        b"of 0",
        b"",
        b"of 2",
    )
    assert sorted(regions.read_all()) == sorted([b"of None", b"of 0", b"of 2"])
    regions.clear(0)
    assert regions.read(0) == b""
    with pytest.raises(ValueError, match="there is no region 3"):
        regions.read(3)


def test_what_is_read_is_always_whole() -> None:
    """While another process writes, and after it was killed over it."""
    regions = Regions(1)
    regions.write(0, b"0" * 1000)
    child = os.fork()
    if not child:
        try:
            for number in range(1 << 30):
                regions.write(0, str(number % 10).encode() * (1000 + number % 60_000))
        finally:
            os._exit(1)
    seen = set()
    try:
        for _ in range(3000):
            octets = regions.read(0)
            assert len(set(octets)) == 1
            seen.add(len(octets))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(set(regions.read(0))) == 1
    assert len(seen) > 1


def test_there_is_room_for_so_much() -> None:
    regions = Regions(1)
    regions.write(0, b"x" * ROOM)
    assert len(regions.read(0)) == ROOM


def test_a_move_is_seen_as_one() -> None:
    """What moves from one region into another is in exactly one of them."""
    regions = Regions(1)
    regions.write(0, b"moved")
    with regions.moving():
        regions.write(None, b"moved")
        regions.clear(0)
    assert regions.read_all() == [b"moved"]


def test_when_it_was_last_told() -> None:
    regions = Regions(1)
    regions.tell(123.5)
    assert regions.told_at == 123.5

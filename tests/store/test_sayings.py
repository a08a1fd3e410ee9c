"""What records say of each other: numbers without a gap, a clock that goes on, erasures that somebody owned up to."""

import json
from typing import Any

import pytest

from smtpproxy.store.sayings import MOST, Finding, Report, Sayings

SALTED = b'{"v":1,"salt":"AAAAAAAAAAAAAAAAAAAAAA","asked":"NOOP"}'
ERASED = b'{"v":1,"personal":"2jmj7l5rSw0yVb_vlWAYkK_YBwk"}'


def _line(seq: int = 0, session: str = "a-1", at: str = "2026-11-16T10:00:00Z", up: float = 1.0, **more: Any) -> bytes:
    said = {"v": 1, "at": at, "up": up, "seq": seq, "session": session, "kind": "note", **more}
    return json.dumps({key: value for key, value in said.items() if value != 0}).encode()


def _own(kind: str, **more: Any) -> bytes:
    return _line(session="", kind=kind, **more)


def _looked_at(*found: bytes, whole: bool = True, start: int = 0, sound: bool = True) -> tuple[Report, Sayings]:
    report = Report()
    sayings = Sayings(report, whole=whole)
    for number, line in enumerate(found, start):
        sayings.look_at(number, line, sound=sound)
    sayings.compare_erased()
    return report, sayings


def _findings(*found: bytes, whole: bool = True, start: int = 0) -> list[tuple[int | None, str]]:
    return [(number, text) for number, text in _looked_at(*found, whole=whole, start=start)[0].findings]


# --------------------------------------------------------------------------------------------------- who comes when


def test_numbers_without_a_gap() -> None:
    assert _findings(_line(1), _line(1, "b-1"), _line(2), _line(2, "b-2"), _line(3), _own("audit-cut")) == []


def test_one_that_never_came() -> None:
    assert _findings(_line(1), _line(3)) == [(1, "record 2 of worker a never came here: 1 is its 3")]


def test_some_that_never_came() -> None:
    assert _findings(_line(4), _line(9)) == [
        (0, "records 1 to 3 of worker a never came here: 0 is its 4"),
        (1, "records 5 to 8 of worker a never came here: 1 is its 9"),
    ]


def test_where_it_does_not_begin_with_the_first_nobody_knows_of_those_before() -> None:
    assert _findings(_line(4), _line(5), _line(2, "b-1"), whole=False) == []
    assert len(_findings(_line(4), _line(6), whole=False)) == 1


@pytest.mark.parametrize("seq", [1, 2])
def test_one_that_is_there_twice_or_before_its_time(seq: int) -> None:
    assert _findings(_line(1), _line(2), _line(seq)) == [
        (2, f"record 2 is number {seq} of worker a, which comes after 2")
    ]


def test_after_a_finding_it_goes_on_from_there() -> None:
    assert len(_findings(_line(1), _line(5), _line(6), _line(7))) == 1


def test_a_gap_that_is_explained_is_none() -> None:
    """Records are missing there, and that was told already."""
    assert _looked_at(_line(1), _line(5), sound=False)[0].findings == []


@pytest.mark.parametrize("line", [b"", b"{", b"5", b'{"kind":"\xff"}', b'{"seq":"x"}', b'{"x":' + b"[" * 100_000])
def test_what_is_no_record_is_noted(line: bytes) -> None:
    report, _ = _looked_at(_line(1), line, _line(2))
    assert report.findings == []
    assert report.notes == ["record 1 is no JSON"]


def test_no_more_than_so_many_are_told() -> None:
    assert len(_findings(*(_line(2 * n + 1) for n in range(MOST + 50)))) == MOST


# -------------------------------------------------------------------------------------------------------- the clock


def _notes(*found: bytes) -> list[str]:
    return _looked_at(*found)[0].notes


def test_a_clock_that_was_set_back_is_noted() -> None:
    assert _notes(
        _line(1, at="2026-11-16T10:00:00Z", up=10.0), _line(2, at="2026-11-16T09:00:00Z", up=11.0), _line(3, up=12.0)
    ) == [
        "the clock was set back between the records 0 and 1: from 2026-11-16T10:00:00Z to 2026-11-16T09:00:00Z"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("at", "up"),
    [
        ("2026-11-16T10:00:00Z", 11.0),
        ("2026-11-16T11:00:00Z", 11.0),
        ("2026-11-16T09:59:59.5Z", 11.0),  # workers write one after the other
        ("2026-11-16T09:00:00Z", 9.0),  # recorded before, by another worker; or the machine was started anew
        ("yesterday", 11.0),
        ("2026-11-16T09:00:00", 11.0),
        ("", 11.0),
    ],
)
def test_a_clock_that_was_not(at: str, up: float) -> None:
    assert _notes(_line(1, up=10.0), _line(1, "b-1", at=at, up=up)) == []


def test_times_are_compared_as_times() -> None:
    """Whole seconds have no fraction: as text they sort behind those that have one."""
    assert _notes(_line(1, at="2026-11-16T10:00:00.5Z", up=1.0), _line(2, at="2026-11-16T10:00:01Z", up=2.0)) == []
    assert _notes(_line(1, at="2026-11-16T10:00:00Z", up=1.0), _line(2, at="2026-11-16T10:00:00.5Z", up=2.0)) == []


# -------------------------------------------------------------------------------------------------- what is erased


def test_an_erasure_that_is_owned_up_to() -> None:
    report, _ = _looked_at(SALTED, ERASED, ERASED, SALTED, ERASED, _own("audit-erase", ranges=[[1, 2], [4, 4]]))
    assert report.findings == []
    assert report.notes == ["what is personal was erased from 3 records"]


def test_several_that_cover_it_together() -> None:
    """In any order."""
    first, second = _own("audit-erase", ranges=[[2, 3]]), _own("audit-erase", ranges=[[0, 1]])
    found = [ERASED, ERASED, ERASED, ERASED, first, second]
    assert _findings(*found) == []


@pytest.mark.parametrize(
    ("ranges", "number"),
    [([], 1), ([[2, 3]], 1), ([[1, 2]], 3), ([[1, 1], [3, 3]], 2), ([[0, 0], [4, 9]], 1), ([[1, 3], [1, 1]], None),
     ([[3, 1]], 1), (["1-3"], 1), ([[1]], 1), ([[1, 3, 5]], 1), ([[1, "3"]], 1), ("1-3", 1), (5, 1), ([[-5, 9]], None),
     ([[1, 2], [3, 3]], None)],
)  # fmt: skip
def test_one_that_nobody_owns_up_to(ranges: Any, number: int | None) -> None:
    found = _findings(SALTED, ERASED, ERASED, ERASED, _own("audit-erase", ranges=ranges))
    expected = f"what is personal in record {number} is withheld, and no record says so"
    assert found == ([] if number is None else [(number, expected)])


def test_what_a_worker_says_is_no_owning_up() -> None:
    """Its own records have a number in their process; those of the recorder have none."""
    found = _findings(ERASED, _line(1, kind="audit-erase", ranges=[[0, 0]]))
    assert found == [(0, "what is personal in record 0 is withheld, and no record says so")]


def test_a_text_that_looks_like_it_is_not_erased() -> None:
    line = b'{"v":1,"salt":"AAAAAAAAAAAAAAAAAAAAAA","asked":"\\",\\"personal\\":\\""}'
    report, _ = _looked_at(line, b'{"v":1,"why":"x"}')
    assert (report.findings, report.notes) == ([], [])


# ------------------------------------------------------------------------------------------- what else is said


def test_how_far_was_pruned() -> None:
    _, sayings = _looked_at(
        _own("audit-prune", first=512), _own("audit-prune", first=256), _own("audit-prune", first="9")
    )
    assert sayings.pruned_to == 512


def test_keys_that_were_introduced() -> None:
    _, sayings = _looked_at(_line(1), _own("audit-key", previous="a+b", note="text"), _own("audit-key", note=5))
    assert sayings.successions == [(1, "a+b", "text")]


def test_a_line_cut_off_is_noted() -> None:
    assert _notes(_own("audit-cut", octets=5)) == ["record 0: a line was cut off by a crash while it was written"]


def test_a_finding_has_a_number_or_none() -> None:
    report = Report()
    report.find(None, "nothing")
    assert report.findings == [Finding(None, "nothing")]


def test_one_before_what_it_permits() -> None:
    """Said in advance, of all there will ever be: what is withheld behind it is not what it means."""
    found = _findings(_own("audit-erase", ranges=[[0, 2**60]]), ERASED)
    assert found == [(1, "what is personal in record 1 is withheld, and no record says so")]

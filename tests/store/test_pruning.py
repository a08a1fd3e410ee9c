"""Pruning: what goes is gone, and what remains is proved as before."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from smtpproxy.store.pruning import prune
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.store.filling import BEGIN
from tests.store.signing import signed, signer, tampered, verified

KEY = signer()


def _after(milliseconds: int) -> float:
    """A record a millisecond: the time of the record of this number, about."""
    return (BEGIN + timedelta(milliseconds=milliseconds)).timestamp()


def _rows(directory: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(directory / "audit.db")
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, list[str]]:
    directory = tmp_path / "store"
    return directory, signed(directory, every=100)


def test_what_remains_is_proved_as_before(store: tuple[Path, list[str]]) -> None:
    directory, notes = store
    writing = Store(directory)
    assert prune(writing, _after(1000)) == (768, 768)
    assert writing.first == 768
    writing.close()
    report = verified(directory, vkey=KEY.vkey, kept=tuple(notes))
    assert not report.findings
    assert sum("fits" in note for note in report.notes) == len(notes)  # also those in the middle of what is gone
    reader = open_reader(str(directory))
    assert next(reader.lines())[0] == 768
    reader.close()


def test_a_kept_checkpoint_of_before_still_tells_of_rewriting(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    directory, _ = store
    other = signed(tmp_path / "other", every=100, mails=150)
    writing = Store(directory)
    prune(writing, _after(1000))
    writing.close()
    assert any("rewritten" in finding.text for finding in verified(directory, kept=(other[3],)).findings)


def test_the_index_goes_with_it(store: tuple[Path, list[str]]) -> None:
    directory, _ = store
    writing = Store(directory)
    prune(writing, _after(1000))
    writing.close()
    assert _rows(directory, "SELECT count(*) FROM mail WHERE id < 768") == [(0,)]
    assert _rows(directory, "SELECT count(*) FROM recipient WHERE mail < 768") == [(0,)]
    assert _rows(directory, "SELECT count(*) FROM session WHERE last < 768") == [(0,)]
    assert _rows(directory, "SELECT count(*) FROM mark WHERE mail > 0 AND mail < 768 AND session < 700") == [(0,)]
    assert _rows(directory, "SELECT count(*) FROM mail WHERE id >= 768") != [(0,)]
    assert _rows(directory, "PRAGMA freelist_count") == [(0,)]


def test_twice_and_on(store: tuple[Path, list[str]]) -> None:
    directory, notes = store
    writing = Store(directory)
    prune(writing, _after(600))
    assert prune(writing, _after(600)).records == 0
    assert prune(writing, _after(1200)) == (1024, 512)
    writing.close()
    assert not verified(directory, vkey=KEY.vkey, kept=tuple(notes)).findings


def test_a_floor(store: tuple[Path, list[str]]) -> None:
    writing = Store(store[0])
    assert prune(writing, _after(1000), floor=600) == (512, 512)
    writing.close()


def test_a_dry_run_changes_nothing(store: tuple[Path, list[str]]) -> None:
    writing = Store(store[0])
    size = writing.size
    assert prune(writing, _after(1000), dry_run=True).records == 768
    assert (writing.first, writing.size) == (0, size)
    writing.close()


def test_all_of_it(store: tuple[Path, list[str]]) -> None:
    writing = Store(store[0])
    size = writing.size
    assert prune(writing, _after(10_000_000)).first == size // 256 * 256
    writing.close()
    assert not verified(store[0], vkey=KEY.vkey).findings


def test_taken_away_without_a_word(store: tuple[Path, list[str]]) -> None:
    """The same by hand: the hashes fit, and no record says that somebody pruned."""
    directory, _ = store
    tampered(directory, lambda c: c.execute("DELETE FROM block WHERE first < 768"))
    tampered(directory, lambda c: c.execute("UPDATE meta SET value = '768' WHERE name = 'first'"))
    found = [finding.text for finding in verified(directory, vkey=KEY.vkey).findings]
    assert found == ["records 768 to 799 are missing"] or (
        found[-1] == "the records 0 to 767 are gone, and no record says that they were pruned"
    )


def test_an_interrupted_one_is_finished_by_the_next(
    store: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, notes = store
    writing = Store(directory)
    with monkeypatch.context() as patch:
        patch.setattr("smtpproxy.store.pruning._remove", lambda store, first: None)
        prune(writing, _after(1000))
    assert not verified(directory, vkey=KEY.vkey, kept=tuple(notes)).findings
    prune(writing, _after(1400))
    writing.close()
    assert _rows(directory, "SELECT count(*) FROM block WHERE first < 1280") == [(0,)]
    assert not verified(directory, vkey=KEY.vkey, kept=tuple(notes)).findings


def test_it_goes_on_behind_it(store: tuple[Path, list[str]]) -> None:
    directory, _ = store
    writing = Store(directory)
    prune(writing, _after(1000))
    writing.close()
    again = Store(directory)
    again.append([b'{"v":1}'])
    again.close()
    assert not verified(directory, vkey=KEY.vkey).findings

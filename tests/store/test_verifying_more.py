"""Attacks by who can write the store, and knows how it is verified: what is taken away or put in so that it fits."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.keys import succeed
from smtpproxy.audit.notes import Checkpoint
from smtpproxy.audit.tree import Frontier
from smtpproxy.store.errors import StoreError
from smtpproxy.store.proving import prove
from smtpproxy.store.reading import open_reader
from smtpproxy.store.recorder import Recorder, Terms
from smtpproxy.store.store import Store
from smtpproxy.store.verifying import Verifying
from tests.store.filling import Writer, lines
from tests.store.signing import ORIGIN, checkpoint, signed, signer, tampered, verified

KEY = signer()


def _found(directory: Path, **options: Any) -> list[str]:
    return [finding.text for finding in verified(directory, vkey=KEY.vkey, **options).findings]


def _lines(directory: Path) -> list[bytes]:
    reader = open_reader(str(directory))
    try:
        return [line for _, line in reader.lines()]
    finally:
        reader.close()


def _replace_all(directory: Path, known: list[bytes], first: int = 0) -> None:
    """The whole record, with all that goes with it but for what was signed."""

    def change(connection: sqlite3.Connection) -> None:
        for table in ("block", "subtree"):
            connection.execute(f"DELETE FROM {table}")
        tree, part = Frontier(), Frontier()
        for number, line in enumerate(known):
            leaf = leaf_of(line)
            if number >= first:
                connection.execute("INSERT INTO block VALUES (?, 1, 0, ?, ?)", (number, line, leaf[:8]))
            tree.append(leaf)
            part.append(leaf)
            if part.size == 256:
                connection.execute("INSERT INTO subtree VALUES (?, ?)", (number // 256, part.root()))
                part = Frontier()
        values = {"size": str(len(known)), "first": str(first), "frontier": tree.to_bytes().hex()}
        for name, value in values.items():
            connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    tampered(directory, change)


def _changed(known: list[bytes]) -> list[bytes]:
    """One mail has another outcome."""
    at = next(at for at, line in enumerate(known) if b'"kind":"tx-commit"' in line)
    known[at] = known[at].replace(b'"code":250', b'"code":251')
    return known


def test_all_checkpoints_are_gone(store: Path) -> None:
    _replace_all(store, _changed(_lines(store)))
    tampered(store, lambda connection: connection.execute("DELETE FROM checkpoint"))
    assert _found(store) == ["there is no checkpoint that the key signed: so it proves nothing here"]


def test_more_is_unsigned_than_a_recorder_leaves(tmp_path: Path) -> None:
    """The last checkpoints are gone, and what is behind those that are left lasts for hours."""
    known = list(lines(40))
    store = Store(tmp_path, create=True)
    store.append(known[:50])
    checkpoint(store, KEY)
    store.append([b'{"kind":"note","at":"2026-11-24T%02d:00:00Z"}' % hour for hour in range(9)])
    store.close()
    assert _found(tmp_path) == [
        "9 records are behind the last checkpoint, of 8.0 hours: no recorder leaves that unsigned"
    ]


def test_what_was_left_unsigned_by_a_crash_is_signed_at_once(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    store = Store(tmp_path, create=True)
    store.append(list(lines(5)))
    store.close()
    recorder = Recorder(tmp_path, Terms(ORIGIN, KEY))
    try:
        recorder.step()
        assert recorder.progress.signed == recorder.store.size
    finally:
        recorder.close()


def test_the_new_key_does_not_change_what_the_old_one_handed_over(tmp_path: Path) -> None:
    """The old key is destroyed, the new one stolen."""
    new = signer(2)
    store = Store(tmp_path, create=True)
    writer = Writer()
    store.append(list(lines(100, writer=writer)))
    checkpoint(store, KEY)
    note = succeed(KEY, new.vkey, Checkpoint(ORIGIN, store.size, store.frontier.root()))
    size = store.size
    store.say("audit-key", {"vkey": new.vkey, "previous": KEY.vkey, "note": note})
    store.append(list(lines(30, writer=writer)))
    checkpoint(store, new)
    store.close()
    assert not _found(tmp_path)
    _replace_all(tmp_path, _changed(_lines(tmp_path)))
    tampered(tmp_path, lambda connection: connection.execute("DELETE FROM checkpoint"))
    store = Store(tmp_path)
    checkpoint(store, new)
    store.close()
    assert f"among the records 0 to {size - 1} something was changed" in _found(tmp_path)[0]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("INSERT INTO block SELECT first + 5000, count, at, lines, leaves FROM block LIMIT 1", "lines stand"),
        ("UPDATE session SET id = id + 5000 WHERE id = (SELECT max(id) FROM session)", "a session stands"),
        ("UPDATE session SET id = id + (1 << 40) WHERE id = (SELECT max(id) FROM session)", "a session stands"),
        ("UPDATE mail SET id = id + 5000 WHERE id = (SELECT max(id) FROM mail)", "a mail stands"),
        (
            "UPDATE recipient SET mail = 5000 WHERE mail = (SELECT max(mail) FROM recipient)",
            "a recipient stands",
        ),
        ("INSERT INTO subtree VALUES (77, zeroblob(32))", "a hash stands"),
    ],
)
def test_put_in_behind_the_end(store: Path, statement: str, what: str) -> None:
    tampered(store, lambda connection: connection.execute(statement))
    found = _found(store)
    assert any(text.startswith(f"{what} behind the last record") for text in found), found


def test_a_kept_checkpoint_that_can_not_be_compared(store: Path, original: tuple[Path, list[str]]) -> None:
    """All it is about is said to be pruned, and its row is gone."""
    known = [b'{"kind":"x"}'] * 2560
    known[2100] = b'{"v":1,"at":"2026-11-24T10:00:00Z","session":"","kind":"audit-prune","first":2048}'
    _replace_all(store, known, first=2048)
    tampered(store, lambda connection: connection.execute("DELETE FROM checkpoint"))
    found = _found(store, kept=(original[1][0],))
    assert "the kept checkpoint of 300 records can't be compared: what it is about was taken away" in found


@pytest.mark.parametrize("last", [b"]", b" ", b"\x00", b"\xfd"])
def test_the_last_octet(store: Path, last: bytes) -> None:
    known = _lines(store)
    at = next(at for at, line in enumerate(known) if b'"salt"' in line)
    known[at] = known[at][:-1] + last
    _replace_all(store, known)
    assert _found(store)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = '1000000000000' WHERE name = 'first'",
        "UPDATE meta SET value = '9223372036854775807' WHERE name = 'first'",
        "UPDATE meta SET value = 'abc' WHERE name = 'size'",
        "UPDATE meta SET value = '9223372036854775807' WHERE name IN ('size', 'first')",
        "UPDATE meta SET value = '-5' WHERE name = 'size'",
        "UPDATE block SET lines = 'text'",
        "UPDATE block SET lines = NULL",
        "UPDATE block SET leaves = NULL",
        "UPDATE block SET count = 'many'",
        "UPDATE subtree SET hash = 5 WHERE n = 1",
        "UPDATE subtree SET hash = x'00' WHERE n = 1",
        "UPDATE subtree SET hash = 'text'",
        "UPDATE checkpoint SET root = NULL",
        "UPDATE checkpoint SET root = 'text'",
        "UPDATE checkpoint SET bridge = 'text'",
    ],
)
def test_what_no_recorder_writes(store: Path, statement: str) -> None:
    """It is found, whatever it is, and nothing fails or goes on for ever."""
    tampered(store, lambda connection: connection.execute(statement))
    assert _found(store)


def test_while_it_is_written(tmp_path: Path) -> None:
    """What comes while it is looked at is not looked at."""
    signed(tmp_path, mails=60)
    store = Store(tmp_path)
    reader = open_reader(str(tmp_path))

    def write(_: int) -> None:
        store.append(list(lines(3, writer=Writer("bb" * 5))))
        checkpoint(store, KEY)

    before = store.size
    try:
        report = Verifying(reader, vkey=KEY.vkey, progress=write).run()
        assert not report.findings
        assert report.size == before < store.size
    finally:
        reader.close()
        store.close()


def test_a_kept_checkpoint_of_who_has_no_key(tmp_path: Path) -> None:
    """Nobody signed it; it is compared all the same."""
    store = Store(tmp_path, create=True)
    store.append(list(lines(60)))
    text = checkpoint(store)
    store.close()
    report = verified(tmp_path, kept=(text,))
    assert not report.findings
    assert any(note.endswith("fits") for note in report.notes)
    _replace_all(tmp_path, _changed(_lines(tmp_path)))
    assert any("the record was rewritten" in finding.text for finding in verified(tmp_path, kept=(text,)).findings)
    reader = open_reader(str(tmp_path))
    try:
        with pytest.raises(StoreError, match="a proof needs a key that signs"):
            prove(reader, 3)
    finally:
        reader.close()

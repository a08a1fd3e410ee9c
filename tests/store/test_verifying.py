"""Attacks on the record (J1 to J9 of its threats): each is found, and named."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.audit.keys import succeed
from smtpproxy.audit.notes import Checkpoint
from smtpproxy.audit.tree import Frontier
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.store.filling import Writer, lines
from tests.store.signing import ORIGIN, checkpoint, edited, signed, signer, tampered, verified

KEY = signer()


def _found(directory: Path, **options: object) -> list[str]:
    return [finding.text for finding in verified(directory, vkey=KEY.vkey, **options).findings]  # type: ignore[arg-type]


def _rewritten(directory: Path, act: Callable[[list[bytes]], object]) -> None:
    """All of it, made to fit again but for what was signed: lines, leaves, subtrees, the state."""
    reader = open_reader(str(directory))
    known = [line for _, line in reader.lines()]
    reader.close()
    act(known)

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM block")
        connection.execute("DELETE FROM subtree")
        tree, part = Frontier(), Frontier()
        for number, line in enumerate(known):
            leaf = leaf_of(line)
            connection.execute("INSERT INTO block VALUES (?, 1, 0, ?, ?)", (number, line, leaf[:8]))
            tree.append(leaf)
            part.append(leaf)
            if part.size == 256:
                connection.execute("INSERT INTO subtree VALUES (?, ?)", (number // 256, part.root()))
                part = Frontier()
        for name, value in (("size", str(len(known))), ("frontier", tree.to_bytes().hex())):
            connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    tampered(directory, change)


def test_healthy(original: tuple[Path, list[str]]) -> None:
    report = verified(original[0], vkey=KEY.vkey, kept=tuple(original[1]))
    assert not report.findings
    assert report.records == report.size == report.anchored
    assert report.checkpoints == len(original[1])
    assert sum("fits" in note for note in report.notes) == len(original[1])


@pytest.mark.parametrize("number", [0, 255, 256, 299, 300, 1000])
@pytest.mark.parametrize("place", [1, 40, -30, -2])
def test_one_bit(store: Path, number: int, place: int) -> None:
    def flip(found: list[bytes], at: int) -> None:
        octets = bytearray(found[at])
        octets[place] ^= 1
        found[at] = bytes(octets)

    edited(store, number, flip)
    assert _found(store) == [f"record {number} was changed"]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda found, at: found.pop(at), "record 700 is missing"),
        (lambda found, at: found.__delitem__(slice(at, at + 3)), "records 700 to 702 are missing"),
        (lambda found, at: found.insert(at, b'{"v":1}'), "1 record was inserted before record 700"),
        (lambda found, at: found.insert(at, found[at - 5]), "a copy of record 695 stands at 700"),
        (
            lambda found, at: found.__setitem__(slice(at, at + 2), found[at : at + 2][::-1]),
            "record 700 is not in its place: records were reordered from here on",
        ),
        (lambda found, at: found.__setitem__(slice(at, at + 2), [b"{}", b"[]"]), "records 700 to 701 were changed"),
    ],
)
def test_lines_of_a_block(store: Path, act: Callable[[list[bytes], int], object], expected: str) -> None:
    edited(store, 700, act)
    assert _found(store)[0] == expected


def test_a_block_that_is_gone(store: Path) -> None:
    tampered(store, lambda c: c.execute("DELETE FROM block WHERE first = 600"))
    assert _found(store) == ["records 600 to 899 are missing"]


def test_a_block_that_is_there_twice(store: Path) -> None:
    tampered(
        store,
        lambda c: c.execute(
            "INSERT INTO block SELECT first + 10, count, at, lines, leaves FROM block WHERE first = 600"
        ),
    )
    assert _found(store)[0] == "records are there twice: a block begins with 610, and 900 is to come"


def test_the_end_that_is_gone(store: Path) -> None:
    size = verified(store).size
    tampered(store, lambda c: c.execute("DELETE FROM block WHERE first >= 1500"))
    assert _found(store) == [f"records 1500 to {size - 1} are missing"]


def test_the_end_cut_off_so_that_it_fits(original: tuple[Path, list[str]], store: Path) -> None:
    """J3: behind the last checkpoint nobody can tell; before it, a checkpoint does."""
    size = verified(store).size
    _rewritten(store, lambda known: known.__delitem__(slice(1500, None)))
    assert f"{1800 - 1500} records are missing at the end: a checkpoint is of 1800" in _found(store)
    tampered(store, lambda c: c.execute("DELETE FROM checkpoint WHERE size > 1500"))
    assert all("behind the last record" in text for text in _found(store))
    for table, column in (
        ("session", "id"),
        ("session", "last"),
        ("mail", "id"),
        ("recipient", "mail"),
        ("mark", "at"),
    ):
        where = "mail >= 1500 OR session >= 1500" if table == "mark" else f"{column} >= 1500"
        tampered(store, lambda c, text=f"DELETE FROM {table} WHERE {where}": c.execute(text))  # type: ignore[misc]
    report = verified(store, vkey=KEY.vkey)
    assert not report.findings
    (only,) = _found(store, kept=(original[1][-1],))
    assert only == (
        f"{size - 1500} records are missing: the kept checkpoint is of {size}, and there are 1500; this is an older"
        " copy, or its end was cut off"
    )


def test_an_older_copy(original: tuple[Path, list[str]], tmp_path: Path) -> None:
    """J4."""
    older = tmp_path / "older"
    signed(older, mails=20)
    report = verified(older, vkey=KEY.vkey, kept=(original[1][-1],))
    assert "this is an older copy, or its end was cut off" in report.findings[-1].text


def test_the_tail_behind_the_last_checkpoint_is_said(store: Path) -> None:
    writing = Store(store)
    writing.append(list(lines(3, writer=Writer("aa" * 5))))
    more = writing.size
    writing.close()
    report = verified(store, vkey=KEY.vkey)
    assert not report.findings
    assert f"{more - report.anchored} records are behind the last checkpoint" in report.notes


def test_everything_made_to_fit_but_the_signatures(store: Path) -> None:
    def change(known: list[bytes]) -> None:
        known[1000] = known[1000].replace(b'"code"', b'"kode"').replace(b'"tx"', b'"ty"').replace(b"Ok", b"OK")

    _rewritten(store, change)
    (only,) = _found(store)
    assert only == (
        "among the records 900 to 1199 something was changed, and what names it, too: they are not what the checkpoint"
        " of 1200 records signs"
    )


def test_everything_made_anew_with_the_key(original: tuple[Path, list[str]], tmp_path: Path) -> None:
    """J5: the key was stolen; a checkpoint that was kept before tells all the same."""
    other = tmp_path / "other"
    signed(other, writer=Writer("ff" * 5))
    assert not _found(other)
    assert _found(other, kept=(original[1][2],)) == [
        "the record was rewritten: its first 900 are not those of the kept checkpoint"
    ]


def test_two_histories(original: tuple[Path, list[str]], tmp_path: Path) -> None:
    """J6: two auditors compare their checkpoints."""
    other = tmp_path / "other"
    notes = signed(other, writer=Writer("ff" * 5))
    found = _found(original[0], kept=(original[1][1], notes[1]))
    assert found == ["two checkpoints of 600 records differ: two histories were signed (a split view)"]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("UPDATE subtree SET hash = zeroblob(32) WHERE n = 2", "among the records 512 to 767 something was changed"),
        ("DELETE FROM subtree WHERE n = 2", "the hash of the records 512 to 767 is missing"),
        ("UPDATE block SET leaves = zeroblob(8) WHERE first = 600", "what names the records 600 to 899 was changed"),
        ("UPDATE checkpoint SET root = zeroblob(32) WHERE size = 600", "the checkpoint of 600 records says something"),
        ("UPDATE checkpoint SET note = 'x' WHERE size = 600", "the checkpoint of 600 records is not signed as it"),
        ("UPDATE meta SET value = 'x' WHERE name = 'frontier'", "the state of the tree can't be read"),
        ("UPDATE block SET count = 299 WHERE first = 600", "the count of the records from 600 on was changed"),
    ],
)
def test_what_stands_beside_the_lines(store: Path, sql: str, expected: str) -> None:
    tampered(store, lambda c: c.execute(sql))
    assert _found(store)[0].startswith(expected)


def test_another_key(store: Path) -> None:
    report = verified(store, vkey=signer(2).vkey)
    assert report.findings
    *each, last = [finding.text for finding in report.findings]
    assert all("not signed as it should be" in text for text in each)
    assert last == "there is no checkpoint that the key signed: so it proves nothing here"


def test_the_stores_own_word_is_called_that(original: tuple[Path, list[str]]) -> None:
    assert "the key is the store's own word: --key or --checkpoint proves more" in verified(original[0]).notes


def test_without_a_key(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    store.append(list(lines(5)))
    checkpoint(store)
    store.close()
    report = verified(tmp_path)
    assert not report.findings
    assert "no checkpoint is signed: who can write the store can make another one of it" in report.notes


def test_a_new_key_introduced_by_the_old_one(store: Path) -> None:
    new = signer(2)
    writing = Store(store)
    note = succeed(KEY, new.vkey, Checkpoint(ORIGIN, writing.size, writing.frontier.root()))
    with writing.changing():
        writing.say("audit-key", {"vkey": new.vkey, "previous": KEY.vkey, "note": note})
        writing.keep("vkey", new.vkey)
    writing.append(list(lines(5, writer=Writer("aa" * 5))))
    checkpoint(writing, new)
    writing.close()
    assert not verified(store, vkey=KEY.vkey).findings
    assert not verified(store).findings
    assert verified(store, vkey=signer(3).vkey).findings


def test_a_key_that_nobody_introduced(store: Path) -> None:
    writing = Store(store)
    writing.append(list(lines(5, writer=Writer("aa" * 5))))
    checkpoint(writing, signer(2))
    writing.close()
    assert "not signed as it should be" in _found(store)[0]


def test_a_line_that_never_came(tmp_path: Path) -> None:
    """Nothing was changed; a worker's own numbers tell that one is not there."""
    store = Store(tmp_path, create=True)
    known = list(lines(10))
    del known[20]
    store.append(known)
    checkpoint(store, KEY)
    store.close()
    assert _found(tmp_path) == ["record 21 of worker 0123456789 never came here: 20 is its 22"]


def test_the_clock_was_set_back(tmp_path: Path) -> None:
    """J9: no tampering, and said."""
    store = Store(tmp_path, create=True)
    writer = Writer()
    store.append(list(writer.session()))
    writer.now = writer.now.replace(hour=9)
    store.append(list(writer.session()))
    store.close()
    report = verified(tmp_path)
    assert not report.findings
    assert "the clock was set back between the records 10 and 11" in report.notes[0]


def test_a_cut_line_is_no_tampering(tmp_path: Path) -> None:
    """J7."""
    store = Store(tmp_path, create=True)
    store.say("audit-cut", {"octets": 7, "sha256": "00"})
    store.close()
    report = verified(tmp_path)
    assert not report.findings
    assert "record 0: a line was cut off by a crash while it was written" in report.notes


def test_what_is_personal_withheld_without_a_word(store: Path) -> None:
    edited(store, 702, lambda found, at: found.__setitem__(at, entry_of(found[at])))
    assert _found(store) == ["what is personal in record 702 is withheld, and no record says so"]


def test_a_range(store: Path) -> None:
    edited(store, 100, lambda found, at: found.__setitem__(at, b"{}"))
    assert _found(store, start=0) == ["record 100 was changed"]
    assert not _found(store, start=600)


def test_hostile_records_do_not_stop_it(tmp_path: Path) -> None:
    """J8, and worse."""
    store = Store(tmp_path, create=True)
    store.append(
        [
            b"\xff\xfe",
            b"{}",
            b'{"kind":"audit-erase","ranges":[1,[2],["a","b"],[9,1]]}',
            b'{"kind":"audit-key","note":3}',
            b'{"kind":"audit-key","note":"nonsense"}',
            b'{"kind":"audit-prune","first":"x"}',
            b'{"at":"nonsense","up":1}',
            b'{"at":"a","up":1}',
            b'{"kind":"note","why":"\\u001b[2J\\r\\n,\\"salt\\":\\"x"}',
        ]
    )
    checkpoint(store, KEY)
    store.close()
    report = verified(tmp_path)
    assert report.records == 9

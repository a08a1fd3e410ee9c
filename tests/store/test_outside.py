"""Rows about no record, in a gateway's own store and in a copy of several."""

import sqlite3
from pathlib import Path

import pytest

from smtpproxy.store.outside import outside
from smtpproxy.store.reading import open_reader
from tests.store.signing import signed, tampered


def _found(directory: Path, *, copy: bool = False) -> list[str]:
    reader = open_reader(str(directory))
    try:
        return [text for _, text in outside(reader, int(reader.meta("size")), copy=copy)]
    finally:
        reader.close()


def test_none(tmp_path: Path) -> None:
    signed(tmp_path, mails=60)
    assert _found(tmp_path) == _found(tmp_path, copy=True) == []


@pytest.mark.parametrize("copy", [False, True])
def test_with_a_gateway_before_the_number(tmp_path: Path, copy: bool) -> None:
    """In a gateway's own store there is none before it."""
    signed(tmp_path, mails=60)

    def move(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE session SET id = id + (1 << 40) WHERE id = (SELECT max(id) FROM session)")

    tampered(tmp_path, move)
    assert any(text.startswith("a session stands behind the last record") for text in _found(tmp_path)) is True
    assert bool(_found(tmp_path, copy=copy)) is not copy

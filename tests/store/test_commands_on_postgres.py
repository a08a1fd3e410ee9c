"""The commands that read, on a PostgreSQL database: they say what they say of the store that it follows."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.audit_cli import audit
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.store import Store
from tests.store.signing import edited, signed, signer

KEY = signer().vkey


def run(where: str, *words: str) -> Result:
    return CliRunner().invoke(audit, [*words, "--store", where], env={"COLUMNS": "120"})


@pytest.fixture
def followed(database: str, tmp_path: Path) -> tuple[str, str]:
    """A store, and the database that has all of it."""
    (tmp_path / "kept").write_text("".join(signed(tmp_path, 60)))
    sink, store = PostgresSink(database, tmp_path), Store(tmp_path)
    sink.send(list(store.lines(0)))
    sink.rest()
    sink.close()
    store.close()
    return str(tmp_path), database


def test_they_say_the_same(followed: tuple[str, str]) -> None:
    store, database = followed
    for words in (
        ["verify", "--key", KEY, "--checkpoint", f"{store}/kept"],
        ["checkpoint"],
        ["prove", "3"],
        ["search", "--limit", "5"],
        ["stats", "--by", "rule"],
        ["show", "0123456789-2", "--full", "--json"],
        ["export", "--format", "jsonl"],
        ["export", "--format", "jsonl", "--rule", "no-macros"],
    ):
        one, other = run(store, *words), run(database, *words)
        assert (one.exit_code, one.output) == (other.exit_code, other.output), words
        assert one.exit_code == 0
        assert one.output
    shown = run(database, "show", "0123456789-2")
    assert shown.exit_code == 0
    assert "gateway      1\n" in shown.stdout


def test_pruned(followed: tuple[str, str]) -> None:
    """What is left is proved as before; that something is gone is said."""
    _, database = followed
    done = run(database, "prune", "--keep", "1d")
    assert done.exit_code == 0
    assert re.search(r"gw1.example.org/audit: begins with record [1-9][0-9]* now; it was 0", done.stdout)
    after = run(database, "verify", "--key", KEY)
    assert after.exit_code == 0, after.output
    assert "they were pruned here, and the gateway may have them" in after.stdout
    assert run(database, "prune", "--keep", "1d", "--dry-run").exit_code == 2


def test_what_was_taken_out_of_the_gateway_s_store_by_hand(followed: tuple[str, str]) -> None:
    """The database has it still, and proves it."""
    store, database = followed
    edited(Path(store), 300, lambda found, at: found.pop(at))
    assert run(store, "verify", "--key", KEY).exit_code == 1
    assert run(database, "verify", "--key", KEY).exit_code == 0


def test_nobody_is_erased_there(followed: tuple[str, str]) -> None:
    done = run(followed[1], "erase", "--address", "a@b.example", "--yes")
    assert done.exit_code == 2
    assert "the gateway's own store" in done.stderr

"""`smtpproxy audit show`, as somebody uses it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.audit_cli import audit
from smtpproxy.store.store import Store
from tests.inquiry.mails import of_the_page
from tests.store.filling import Writer

DEADLINE = 30.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("shown") / "store"
    of_the_page(directory)
    return str(directory)


def run(store: str, *words: str) -> Result:
    return CliRunner().invoke(audit, ["show", "--store", store, *words], env={"COLUMNS": "120"})


def test_it_is_shown(store: str) -> None:
    done = run(store, "4d9d6b028f-1")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("4d9d6b028f-1  2026-11-24 08:35:00 UTC")
    assert "answer: by rule no-macros" in done.stdout
    assert (
        "mail 1 from <news@shop.example> to <ann@example.org>: came to nothing (server), 554, 88,200 octets"
        in done.stdout
    )
    assert "\x1b" not in done.stdout
    assert run(store, "4d9d6b028f").stdout == done.stdout  # the beginning is enough


def test_several(store: str) -> None:
    """Each once, with an empty line between."""
    both = run(store, "4d9d6b028f-1", "4d9d6b0009-1", "4d9d6b028f-1")
    one, other = run(store, "4d9d6b028f-1"), run(store, "4d9d6b0009-1")
    assert both.stdout == f"{one.stdout}\n{other.stdout}"


def test_by_message_id(store: str) -> None:
    done = run(store, "--message-id", "4711@partner.example")
    assert done.stdout.startswith("4d9d6b0000-1 ")
    none = run(store, "--message-id", "x")
    assert (none.exit_code, none.stdout, none.stderr) == (2, "", "smtpproxy: no mail has the Message-ID x\n")


@pytest.mark.parametrize("name", ["", "*", "\U0010ffff", "4\U0010ffff", "\ud7ff", "x" * 100_000, "\udcff", "\x1b[31m"])
def test_names_that_no_session_has(store: str, name: str) -> None:
    for words in ((name,), ("--message-id", name)):
        done = run(store, *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert isinstance(done.exception, SystemExit)
        assert all(c.isprintable() for line in done.stderr.splitlines() for c in line)


def test_what_a_terminal_would_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is escaped there and nowhere else; what is shown means the same."""
    wild = "a\x7f\x9b31m\u202eb"
    directory = tmp_path / "store"
    directory.mkdir()
    made = Store(directory, create=True)
    made.append(list(Writer().session(identity=wild)))
    made.close()
    plain = run(str(directory), "0123456789-1", "--json").stdout
    assert wild in plain
    monkeypatch.setattr("smtpproxy.audit_options.is_terminal", lambda: True)
    shown = run(str(directory), "0123456789-1", "--json", "--colour", "never").stdout
    assert all(c.isprintable() for line in shown.splitlines() for c in line)
    assert [json.loads(line) for line in shown.splitlines()] == [json.loads(line) for line in plain.splitlines()]


def test_as_json(store: str) -> None:
    """The lines as they are."""
    done = run(store, "4d9d6b028f-1", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [records[0]["kind"], records[-1]["kind"]] == ["link-connect", "link-close"]
    assert {record["session"] for record in records} == {"4d9d6b028f-1"}


def test_colour(store: str) -> None:
    assert "\x1b[31m" in run(store, "4d9d6b028f-1", "--colour", "always").stdout
    assert "\x1b" not in run(store, "4d9d6b028f-1", "--color", "never").stdout


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_on_a_terminal(store: str, no_color: str) -> None:
    parent, child = pty.openpty()
    argv = [sys.executable, "-m", "smtpproxy", "audit", "show", "--store", store, "4d9d6b0009-1"]
    done = subprocess.run(argv, stdout=child, env={**os.environ, "NO_COLOR": no_color}, timeout=DEADLINE, check=False)
    os.close(child)
    seen = os.read(parent, 65536)
    os.close(parent)
    assert done.returncode == 0
    assert (b"\x1b[" in seen) is (no_color == "")


def test_width(store: str) -> None:
    narrow, wide = run(store, "4d9d6b028f-1", "--width", "80"), run(store, "4d9d6b028f-1", "--width", "300")
    table = [line for line in narrow.stdout.splitlines() if "=" in line]
    assert max(map(len, table)) <= 80
    assert "MAIL FROM:<news@shop.example> SIZE=88200" in wide.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "Which session?"),
        (("4d9d6b028e-1",), "there is no session '4d9d6b028e-1'; did you mean 4d9d6b02be-1 or 4d9d6b028f-1"),
        (("zzz\x1b",), "there is no session 'zzz\\x1b'\n"),
        (("4d9d6b02",), "'4d9d6b02' may be several: 4d9d6b0280-1, "),
    ],
)
def test_no_such_session(store: str, words: tuple[str, ...], why: str) -> None:
    done = run(store, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert why in done.stderr


def test_a_store_that_is_none(tmp_path: Path) -> None:
    done = run(str(tmp_path), "x")
    assert (done.exit_code, done.stdout) == (3, "")


def test_who_reads_has_seen_enough(store: str) -> None:
    shell = f"{sys.executable} -m smtpproxy audit show --store {store} 4d9d6b0009-1 --json | head -n 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["kind"] == "link-connect"

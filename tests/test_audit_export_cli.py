"""`smtpproxy audit export`, and the page about it."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from smtpproxy import audit_export_cli
from smtpproxy.audit_cli import audit
from smtpproxy.inquiry import ecs, ocsf, parquet
from smtpproxy.inquiry.exporting import Mail, mails
from smtpproxy.inquiry.parquet import row
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import asked, of_the_page, varied
from tests.inquiry.published import wrong_as_ecs, wrong_as_ocsf
from tests.store.filling import Writer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "audit-export.md").read_text(encoding="utf-8")
DEADLINE = 60.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("exported") / "store"
    varied(directory).close()
    return str(directory)


def run(store: str, *words: str) -> Result:
    return CliRunner().invoke(audit, ["export", "--store", store, *words])


def in_it(store: str, **words: str) -> list[Mail]:
    reader = open_reader(store)
    found = list(mails(reader, asked(**words)))
    reader.close()
    return found


# ---------------------------------------------------------------------------------------------------------- as text


def test_the_records(store: str) -> None:
    done = run(store)
    assert done.exit_code == 0
    reader = open_reader(store)
    assert done.stdout.encode() == b"".join(line + b"\n" for _, line in reader.lines())
    reader.close()
    assert run(store, "--format", "jsonl").stdout == done.stdout


@pytest.mark.parametrize("form", ["ecs", "ocsf"])
def test_documents(store: str, form: str) -> None:
    done = run(store, "--format", form)
    assert done.exit_code == 0
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    check = wrong_as_ecs if form == "ecs" else wrong_as_ocsf
    assert [wrong for document in documents for wrong in check(document)] == []
    there = in_it(store)
    assert len(documents) == len(there)


def test_the_filters_are_those_of_a_search(store: str) -> None:
    found = CliRunner().invoke(audit, ["search", "--store", store, "--rule", "no-macros", "--json", "--limit", "0"])
    done = run(store, "--format", "ecs", "--rule", "no-macros")
    assert len(done.stdout.splitlines()) == len(found.stdout.splitlines()) > 0
    assert (
        "there is no rule 'no-macro' in this record; did you mean no-macros?" in run(store, "--rule", "no-macro").stderr
    )
    assert run(store, "--since", "tomorrowish").exit_code == 2


def test_to_a_file(store: str, tmp_path: Path) -> None:
    done = run(store, "--format", "ecs", "--output", str(tmp_path / "mails.ndjson"))
    assert (done.exit_code, done.stdout) == (0, "")
    assert (tmp_path / "mails.ndjson").read_text() == run(store, "--format", "ecs").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mails.ndjson"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_file_is_whole_or_not_there(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """What was there before stays, and nothing is left beside it."""

    def broken(*args: Any) -> Any:
        yield from ()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smtpproxy.audit_export_cli.records", broken)
    monkeypatch.setattr("smtpproxy.audit_export_cli.mails", broken)
    (tmp_path / "out").write_text("before")
    done = run(store, "--format", form, "--output", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert "can't be written: No space left on device" in done.stderr
    assert (tmp_path / "out").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_is_not_there(store: str, tmp_path: Path) -> None:
    for form in ("jsonl", "parquet"):
        done = run(store, "--format", form, "--output", str(tmp_path / "no" / "out"))
        assert (done.exit_code, done.stdout) == (3, "")
        assert "can't be written: No such file or directory" in done.stderr


@pytest.mark.parametrize("form", ["jsonl", "ecs", "parquet"])
def test_what_is_no_file_is_not_replaced_by_one(store: str, tmp_path: Path, form: str) -> None:
    """Not a device (or whoever may write all of /dev has no /dev/null any more), not a pipe, not a directory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link", "."):
        done = run(store, "--format", form, "--output", str(tmp_path / name))
        assert (done.exit_code, done.stdout) == (2, "")
        assert "is no file" in done.stderr or "is a directory" in done.stderr
    assert run(store, "--format", form, "--output=").exit_code == 2
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("form", ["jsonl", "ecs"])
def test_a_link_leads_to_the_file(store: str, tmp_path: Path, form: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/out")
    assert run(store, "--format", form, "--output", str(tmp_path / "link")).exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "out").read_text() == run(store, "--format", form).stdout


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["x" * 300, "circle", "b\udcff"])
def test_names_that_no_file_can_have(store: str, tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    done = run(store, "--format", form, "--output", str(tmp_path / name))
    if name == "b\udcff" and form == "jsonl":  # it can, but DuckDB does not take it
        assert done.exit_code == 0
        return
    assert (done.exit_code, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle"]


def test_what_a_terminal_would_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is escaped there and nowhere else: a file has the octets that are proved."""
    wild = "a\x7f\x9b31m\u202eb\u2066\U000e0001 é"
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    store.append(list(Writer().session(identity=wild)))
    store.close()
    where = str(tmp_path / "store")
    plain = run(where).stdout
    assert wild in plain
    monkeypatch.setattr("smtpproxy.audit_options.is_terminal", lambda: True)
    shown = run(where).stdout
    assert all(c.isprintable() for line in shown.splitlines() for c in line)
    assert "\\u009b31m\\u202eb" in shown
    assert "é" in shown
    assert [json.loads(line) for line in shown.splitlines()] == [json.loads(line) for line in plain.splitlines()]
    assert run(where, "--output", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_text() == plain


def test_standard_output_has_no_room_for_all_of_it(tmp_path: Path, store: str) -> None:
    """A file that is full, and one that was never open."""
    for to, code, said in ((">/dev/full", 3, 1), (">&-", 0, 0), ("| true", 0, 0)):
        for command in (
            "export",
            "export --format ecs",
            "search",
            "search --json",
            "tail",
            "stats",
            "show 0123456789-1",
        ):
            shell = f"{sys.executable} -m smtpproxy audit {command} --store {store} {to}"
            done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=DEADLINE, check=False)
            lines = [line for line in done.stderr.splitlines() if "there may be more" not in line]
            assert (len(lines), done.returncode) == (said, code), (command, to, done.stderr)
            assert not said or lines == ["smtpproxy: standard output can't be written: No space left on device"]


def test_who_presses_ctrl_c_is_not_told_it_is_done(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any) -> Any:
        yield b"{}"
        raise KeyboardInterrupt

    monkeypatch.setattr("smtpproxy.audit_export_cli.records", stopped)
    assert run(store, "--output", str(tmp_path / "out")).exit_code == 130
    assert run(store).exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_who_reads_has_seen_enough(store: str) -> None:
    shell = f"{sys.executable} -m smtpproxy audit export --store {store} --format ecs | head -n 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["ecs"]


def test_no_store(tmp_path: Path) -> None:
    assert run(str(tmp_path)).exit_code == 3


# ---------------------------------------------------------------------------------------------------------- Parquet


def test_parquet(store: str, tmp_path: Path) -> None:
    """All mails; tests/inquiry/test_parquet.py has what is in them."""
    duckdb = pytest.importorskip("duckdb", reason="pip install 'smtpproxy[export]'")
    done = run(store, "--format", "parquet", "-o", str(tmp_path / "mails.parquet"))
    assert done.exit_code == 0, done.stderr
    table = duckdb.sql(f"SELECT * FROM '{tmp_path}/mails.parquet' ORDER BY number")
    assert table.columns == [column.name for column in parquet.COLUMNS]
    assert [str(kind) for kind in table.types] == [column.type for column in parquet.COLUMNS]
    numbers = duckdb.sql(f"SELECT number FROM '{tmp_path}/mails.parquet'").fetchall()
    assert numbers == [(row(mail)["number"],) for mail in in_it(store)]
    assert stat.S_IMODE((tmp_path / "mails.parquet").stat().st_mode) == 0o600


def test_parquet_is_no_text(store: str) -> None:
    done = run(store, "--format", "parquet")
    assert done.exit_code == 2
    assert "say --output FILE" in done.stderr


def test_without_the_extra(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    done = run(store, "--format", "parquet", "-o", str(tmp_path / "x"))
    assert done.exit_code == 2
    assert 'pip install "smtpproxy[export]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_tables_of_the_page() -> None:
    """Row for row as the code has them."""
    expected = {
        "ECS": [(one.path, one.source) for one in ecs.FIELDS],
        "OCSF": [(one.path, one.source) for one in ocsf.FIELDS],
        "Parquet": [(one.name, f"`{one.type}` | {one.source}") for one in parquet.COLUMNS],
    }
    for title, rows in expected.items():
        section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE) == rows
        assert {"ECS": ecs.VERSION, "OCSF": ocsf.VERSION}.get(title, "") in section


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_page(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        if not command.startswith("smtpproxy "):
            assert command.startswith(("duckdb ", "pip "))
            continue
        words = shlex.split(re.split(r" [|>] ", command)[0])[2:]
        done = run("store", *words[1:])
        assert done.exit_code == 0, (command, done.stderr)


@pytest.mark.parametrize("form", ["jsonl", "ecs", "parquet"])
def test_what_is_no_file_stays_what_it_is(store: str, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """No file is put in the place of a device."""

    def replace(*names: object) -> None:
        raise AssertionError(names)

    monkeypatch.setattr("os.replace", replace)
    result = run(store, "--format", form, "--output", "/dev/null")
    assert result.exit_code == 2, result.output
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("form", ["jsonl", "ecs", "parquet"])
def test_told_to_end_it_leaves_nothing(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """What was there before stays, too."""
    (tmp_path / "out").write_text("before")
    began = signal.getsignal(signal.SIGTERM)
    for name in ("records", "mails"):
        real = getattr(audit_export_cli, name)

        def killed(*args: Any, real: Any = real) -> Iterator[Any]:
            found = real(*args)
            yield next(found)
            os.kill(os.getpid(), signal.SIGTERM)
            yield from found

        monkeypatch.setattr(audit_export_cli, name, killed)
    done = run(store, "--format", form, "--output", str(tmp_path / "out"))
    assert done.exit_code == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "before"
    assert signal.getsignal(signal.SIGTERM) == began

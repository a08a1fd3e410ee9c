"""`smtpproxy quarantine`: what is shown of kept mails, and what becomes of them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from smtpproxy.quarantine.store import Store
from smtpproxy.quarantine_cli import quarantine
from tests.quarantine.kept import CONTENT, EMPTY, RELEASED_ONE, Wall, keep, made, tree
from tests.quarantine.talking import talking

COMMANDS = ["list", "show", "release", "delete", "expire"]
DAY = 86_400


def run(*words: str) -> Result:
    return CliRunner().invoke(quarantine, words, prog_name="smtpproxy quarantine")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a configuration says it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smtpproxy.toml").write_text('[quarantine]\ndirectory = "mails"\n')
    return tmp_path / "mails"


@pytest.fixture
def wall() -> Wall:
    found = Wall()
    found.now = float(int(time.time()))
    return found


@pytest.fixture
def store(here: Path, wall: Wall) -> Store:
    return made(here, wall=wall)


C = ("--config", "smtpproxy.toml")

# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_help_has_a_paragraph_examples_and_exit_codes(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    _, examples = result.stdout.split("  Examples:\n")
    assert f"    smtpproxy {' '.join(['quarantine', *command])}" in examples
    assert re.findall(r"^    (\d)  ", result.stdout, re.MULTILINE) == ["0", "1", "2"]


def test_the_examples_name_options_that_exist() -> None:
    assert sorted(quarantine.commands) == sorted(COMMANDS)
    parts = [run(name, "--help").stdout.split("Examples:")[1].split("Options:") for name in COMMANDS]
    options = "".join(part[1] for part in parts)
    for examples, _ in parts:
        for option in re.findall(r"(?<!\S)--[a-z-]+", examples):
            assert option in options


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.quarantine_cli import quarantine\n"
        "try: quarantine(['list', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'smtplib', 'tree_sitter', 'smtpproxy.smtp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --------------------------------------------------------------------------------------------------------------- which


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "Say --config FILE, or --directory D."),
        ([*C, "--directory", "mails"], "Say --config FILE, or --directory D."),
        (["--config", "no.toml"], "no.toml can't be read: No such file"),
        (["--config", "bad.toml"], "bad.toml is no TOML"),
        (["--config", "none.toml"], "none.toml names no quarantine: say directory = "),
        (["--directory", "nowhere"], "there is no quarantine in nowhere"),
        ([*C, "--since", "yesterday"], "is not a duration"),
        ([*C, "--since", "2026-13-01"], "is no date and no duration"),
    ],
)
def test_what_makes_no_sense_ends_with_2(store: Store, words: list[str], why: str) -> None:
    Path("bad.toml").write_text("= 1")
    Path("none.toml").write_text("quarantine = 3\n")
    result = run("list", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr


def test_the_directory_is_relative_to_the_configuration(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store)
    monkeypatch.chdir("/")
    assert "no-macros" in run("list", "--config", str(here.parent / "smtpproxy.toml")).stdout
    assert "no-macros" in run("list", "--directory", str(here)).stdout


# ---------------------------------------------------------------------------------------------------------------- list


def test_mails_are_listed_the_oldest_first(store: Store, wall: Wall) -> None:
    first = keep(store)
    wall.now += 1
    second = keep(store, rule="no\x1b[31m", mail="", rcpt=["one@y.example"])
    result = run("list", *C)
    assert (result.exit_code, result.stderr) == (0, "")
    heads, *rows = result.stdout.splitlines()
    assert heads.split() == ["NAME", "RULE", "OCTETS", "FROM", "TO"]
    assert re.split(" {2,}", rows[0]) == [
        first, "no-macros", str(len(CONTENT)), "<a@x.example>", "<b@y.example> and 1 more",
    ]  # fmt: skip
    assert re.split(" {2,}", rows[1]) == [second, "no?[31m", str(len(CONTENT)), "<>", "<one@y.example>"]


def test_where_there_is_nothing_nothing_is_said(store: Store) -> None:
    for words in ((), ("--json",)):
        assert (run("list", *C, *words).exit_code, run("list", *C, *words).output) == (0, "")


def listed(*words: str) -> list[str]:
    result = run("list", *C, "--json", *words)
    assert result.exit_code == 0
    return [json.loads(line)["name"] for line in result.stdout.splitlines()]


def test_those_that_are_looked_for(store: Store, wall: Wall) -> None:
    wall.now -= 3 * DAY
    old = keep(store, rule="other", mail="Ann@X.example", rcpt=["one@y.example"])
    wall.now += 3 * DAY
    new = keep(store)
    assert listed() == [old, new]
    assert listed("--rule", "other") == listed("--recipient", "ONE@*") == listed("--sender", "ann@x.example") == [old]
    assert listed("--sender", "*@x.example") == [old, new]
    assert listed("--recipient", "c@y.example") == listed("--since", "2d") == [new]
    assert listed("--since", "4d", "--rule", "no-macros") == [new]
    assert listed("--since", time.strftime("%Y-%m-%d", time.gmtime(wall.now - DAY))) == [new]
    assert listed("--since", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall.now - 3 * DAY))) == [old, new]
    assert listed("--sender", "x.example") == listed("--released") == []


def test_what_is_listed_as_json_is_the_record(store: Store, here: Path) -> None:
    name = keep(store)
    (line,) = run("list", *C, "--json").stdout.splitlines()
    assert json.loads(line) == {**json.loads((here / "new" / f"{name}.json").read_bytes()), "state": "new"}


def test_a_mail_whose_record_is_none_is_listed_all_the_same(store: Store, here: Path) -> None:
    name = keep(store)
    (here / "new" / f"{name}.json").write_bytes(b"x")
    assert f"{name}  (no record)" in run("list", *C).stdout
    assert listed() == [name]
    assert listed("--sender", "*") == []
    result = run("release", *C, name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"smtpproxy: {name} was not released: its record names no server: say --server\n"


# ---------------------------------------------------------------------------------------------------------------- show


def test_a_mail_is_shown_with_its_header_section(store: Store) -> None:
    name = keep(store, b"Subject: \x1b[31mred\r\nX: gr\xc3\xbcn\r\n\r\nthe body\r\n")
    result = run("show", *C, name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("state           new\n")
    assert f"\nname            {name}\n" in result.stdout
    assert '\nrcpt            ["b@y.example", "c@y.example"]\n' in result.stdout
    assert result.stdout.endswith("\n\nSubject: ?[31mred\nX: grün\n")


def test_its_content_is_given_out_octet_for_octet(store: Store) -> None:
    content = os.urandom(100_000)
    name = keep(store, content)
    result = run("show", *C, "--content", name)
    assert (result.exit_code, result.stdout_bytes) == (0, content)


def test_its_record_is_given_out_as_json(store: Store) -> None:
    name = keep(store)
    assert json.loads(run("show", *C, "--json", name).stdout)["rule"] == "no-macros"
    assert run("show", *C, "--json", "--content", name).exit_code == 2


def test_no_content_for_a_terminal(store: Store, here: Path) -> None:
    name = keep(store, b"\x1b[31m\r\n")
    ours, its = os.openpty()
    command = [sys.executable, "-m", "smtpproxy", "quarantine", "show", "--content", "--directory", str(here), name]
    done = subprocess.run(command, stdout=its, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(its)
    os.close(ours)
    assert done.returncode == 2
    assert "A content may hold what a terminal obeys" in done.stderr


@pytest.mark.parametrize("command", ["show", "release", "delete"])
def test_a_mail_that_is_not_there(store: Store, command: str) -> None:
    result = run(command, *C, "20251123T101500Z-0123456789ab")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "smtpproxy: there is no mail 20251123T101500Z-0123456789ab in mails\n"


# ------------------------------------------------------------------------------------------------------------- release


def test_mails_are_released_once(store: Store, here: Path) -> None:
    with talking() as server:
        name = keep(store, server=f"127.0.0.1:{server.port}", parameters={"X-ODD": "1"})
        result = run("release", *C, name, name)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == (
            f"{name} released to 127.0.0.1:{server.port}: 250 2.0.0 queued as 1; not told: X-ODD\n"
        )
        assert run("release", *C, name).stdout == f"{name} was released already\n"
        assert run("release", *C, "--again", name).exit_code == 0
    assert len(server.contents) == 2
    assert tree(here) == RELEASED_ONE
    assert listed("--released") == [name]


def test_each_for_itself(store: Store) -> None:
    """What can't be released hinders none of the others."""
    with talking() as server:
        names = [keep(store, server=f"127.0.0.1:{port}") for port in (server.port, 1, server.port)]
        result = run("release", *C, *names)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [names[0], names[2]]
    assert result.stderr.startswith(f"smtpproxy: {names[1]} was not released: 127.0.0.1:1: ")
    assert listed() == [names[1]]


def test_elsewhere_and_to_others(store: Store) -> None:
    with talking() as server:
        name = keep(store)
        words = ("--server", f"127.0.0.1:{server.port}", "--to", "p@y.example", "--to", "q@y.example", "--tls", "never")
        assert run("release", *C, *words, name).exit_code == 0
    assert [line for line in server.lines if b"RCPT" in line] == [b"RCPT TO:<p@y.example>", b"RCPT TO:<q@y.example>"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--server", "a:b"], "--server: "),
        (["--to", "a b@y.example"], "is no address"),
        (["--to", "<b@y.example>"], "is no address"),
        (["--tls", "perhaps"], "--tls"),
    ],
)
def test_what_can_not_be_meant_is_not_tried(store: Store, words: list[str], why: str) -> None:
    result = run("release", *C, *words, keep(store))
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr


# ------------------------------------------------------------------------------------------------------------- erasing


def test_mails_are_deleted(store: Store, here: Path) -> None:
    names = [keep(store), keep(store)]
    result = run("delete", *C, *names)
    assert (result.exit_code, result.stdout) == (0, f"{names[0]} erased\n{names[1]} erased\n")
    assert tree(here) == EMPTY


def test_one_that_is_being_released_is_not_deleted(store: Store) -> None:
    name = keep(store)
    with store.claimed(name):
        result = run("delete", *C, name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"smtpproxy: {name} is being released or erased by another\n"
    assert listed() == [name]


def test_old_ones_expire(store: Store, here: Path, wall: Wall) -> None:
    wall.now -= 31 * DAY
    keep(store)
    (here / "new" / "20251123T101500Z-0123456789ab.eml").write_bytes(b"left by a crash")
    wall.now += 2 * DAY
    name = keep(store)
    assert run("expire", *C, "--older", "32d").stdout == "0 erased\n"
    assert run("expire", *C, "--older", "30d").stdout == "1 erased\n"
    assert listed() == [name]
    assert len(list((here / "new").iterdir())) == 2
    assert run("expire", *C).exit_code == 2


def test_a_failing_disk_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name = keep(store)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "unlink", fails)
    result = run("delete", *C, name)
    assert (result.exit_code, result.stderr) == (1, f"smtpproxy: {name} can't be erased: Input/output error\n")

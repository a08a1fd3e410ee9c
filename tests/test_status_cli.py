"""`smtpproxy status`: what is shown of a running proxy, and what whoever watches it is told."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner, Result

from smtpproxy.net.control import Bound, Control, Status, Worker
from smtpproxy.status_cli import _lasting, status

NOW = 1_700_000_000.0
SERVING = Worker(pid=1241, generation=3, state="serving", sessions=6, accepted=2300, uptime=725.0, beat=0.42)
WELL = Status(
    version="1.2",
    pid=1200,
    since=NOW - 90_000,
    generation=3,
    loaded=NOW - 725,
    sessions=7,
    accepted=4711,
    restarts=1,
    workers=(
        SERVING,
        Worker(pid=900, generation=2, state="draining", sessions=1, accepted=11, uptime=89_000.0, beat=0.2),
        Worker(pid=1300, generation=3, state="starting"),
    ),
    listeners=(
        Bound("in", "forward", ("192.0.2.1:25", "[2001:db8::1]:25"), "mx.example:25"),
        Bound("gateway", "tproxy", ("0.0.0.0:2525",)),
    ),
)
UNWELL = Status("1.2", 1200, NOW, 3, workers=(Worker(1241, 3, "starting"),))


def run(*words: str) -> Result:
    return CliRunner().invoke(status, words, prog_name="smtpproxy status")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return str(tmp_path / "control")


@contextmanager
def running(path: str, now: Status = WELL) -> Iterator[None]:
    """A proxy that is doing so."""
    control = Control(path, lambda: now)
    reading, writing = os.pipe()

    def serve() -> None:
        while reading not in select.select([control.fileno(), reading], [], [])[0]:
            control.handle()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(writing)
        thread.join(20)
        os.close(reading)
        control.close()


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_has_a_paragraph_and_examples_with_options_that_exist() -> None:
    text = run("--help").stdout
    examples, options = text.split("Examples:\n")[1].split("Options:")
    assert "    smtpproxy status --c" in examples
    assert set(re.findall(r"(?<!\S)--[a-z-]+", examples)) <= set(re.findall(r"(?<!\S)--[a-z-]+", options))
    assert re.findall(r"^    (\d)  ", text, re.MULTILINE) == ["0", "1", "2"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.status_cli import status\n"
        "try: status(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'msgspec', 'smtpproxy.net.control'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_asking_imports_no_configuration(path: str) -> None:
    """It is done every few seconds by who watches."""
    code = (
        "import sys\nfrom smtpproxy.status_cli import status\n"
        "try: status(['--control', sys.argv[1], '--check'])\nexcept SystemExit as end: assert end.code == 0, end\n"
        "assert not {'trio', 'pydantic', 'cryptography'} & set(sys.modules)"
    )
    with running(path):
        subprocess.run([sys.executable, "-c", code, path], check=True, timeout=30)


# --------------------------------------------------------------------------------------------------------------- shown


def test_people_are_shown_tables(path: str) -> None:
    with running(path):
        result = run("--control", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        result.stdout
        == """\
smtpproxy 1.2, pid 1200: serving, since 2023-11-13 21:13:20 UTC (1 d 1 h ago)
configuration read 2023-11-14 22:01:15 UTC (12 min ago), generation 3
workers: 1 serving, 1 draining, 1 starting; 7 sessions, 4711 accepted; 1 worker had to be replaced

 PID  STATE     GENERATION  SESSIONS  ACCEPTED  UPTIME   LAST BEAT
1241  serving            3         6      2300  12 min   0.4 s ago
 900  draining           2         1        11  1 d 0 h  0.2 s ago
1300  starting           3         0         0  0 s      -

LISTENER  MODE     LISTENS ON                     SERVER
in        forward  192.0.2.1:25 [2001:db8::1]:25  mx.example:25
gateway   tproxy   0.0.0.0:2525                   where clients go
"""
    )


def test_what_is_not_known_is_left_out(path: str) -> None:
    with running(path, Status("1.2", 1200, NOW, 1, state="starting")):
        lines = run("--control", path).stdout.splitlines()
    assert lines[0] == "smtpproxy 1.2, pid 1200: starting, since 2023-11-14 22:13:20 UTC (0 s ago)"
    assert lines[1] == "workers: none; 0 sessions, 0 accepted"


def test_a_terminal_gets_text_only(path: str) -> None:
    with running(path, Status("1.2", 1200, NOW, 1, listeners=(Bound("a\x1b[2J", "forward", ("b\n",)),))):
        result = run("--control", path)
    assert "a?[2J" in result.stdout
    assert "b?" in result.stdout


def test_programs_are_given_json_as_it_was_said(path: str) -> None:
    with running(path):
        result = run("--control", path, "--json")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["accepted"], said["workers"][0]["beat"]) == (0, 4711, 0.42)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (86_399, "23 h 59 min"),
     (86_400, "1 d 0 h"), (900_000, "10 d 10 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert _lasting(seconds) == text


# --------------------------------------------------------------------------------------------------------------- check


def test_one_that_is_well(path: str) -> None:
    with running(path):
        result = run("--control", path, "--check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "ok: workers: 1 serving, 1 draining, 1 starting; 7 sessions, 4711 accepted\n"


def test_one_that_is_not_well(path: str) -> None:
    with running(path, UNWELL):
        result = run("--control", path, "--check")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "smtpproxy: no worker serves: starting\n")


def test_without_check_it_is_shown_as_it_is(path: str) -> None:
    with running(path, UNWELL):
        assert run("--control", path).exit_code == 0


@pytest.mark.parametrize(("now", "code"), [(WELL, 0), (UNWELL, 1)])
def test_check_with_json_is_both(path: str, now: Status, code: int) -> None:
    with running(path, now):
        result = run("--control", path, "--check", "--json")
    assert (result.exit_code, json.loads(result.stdout)["pid"]) == (code, 1200)


@pytest.mark.parametrize("options", [[], ["--check"], ["--json"]])
def test_nobody_there(path: str, options: list[str]) -> None:
    result = run("--control", path, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"smtpproxy: nobody answers at {path}: No such file or directory\n"


def test_one_that_is_not_understood(path: str) -> None:
    with running(path, json_of_another_kind()):
        result = run("--control", path, "--check")
    assert result.exit_code == 1
    assert "does not understand" in result.stderr


def json_of_another_kind() -> Status:
    """What an smtpproxy of another time may say."""
    return cast(Status, {"version": "9", "state": ["many"]})


# ----------------------------------------------------------------------------------------------------------- which one


@pytest.mark.parametrize("written", ["control", "./control", "../{here}/control", "{path}"])
def test_the_configuration_says_where(path: str, tmp_path: Path, written: str) -> None:
    """Relative to its own file, from wherever it is asked."""
    config = tmp_path / "smtpproxy.toml"
    config.write_text(f'[process]\ncontrol = "{written.format(here=tmp_path.name, path=path)}"\n')
    with running(path):
        assert run("--config", str(config), "--check").exit_code == 0
        with contextlib.chdir(tmp_path):
            assert run("--config", "smtpproxy.toml", "--check").exit_code == 0


def test_a_configuration_that_is_wrong_by_now_keeps_nobody_from_asking(path: str, tmp_path: Path) -> None:
    """Somebody is just changing it; what runs is as well as it was."""
    config = tmp_path / "smtpproxy.toml"
    config.write_text('rulez = 1\n[process]\ncontrol = "control"\nworkers = "many"\n[[listener]]\n')
    with running(path):
        assert run("--config", str(config), "--check").exit_code == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", 'names no control socket: say control = "/run/smtpproxy/control" under [process]'),
        ("process = 1\n", "names no control socket"),
        ("[process]\ncontrol = 1\n", "names no control socket"),
        ('[process]\ncontrol = ""\n', "names no control socket"),
        ("[process\n", "is no TOML: "),
    ],
)
def test_a_configuration_that_does_not_say_where(tmp_path: Path, text: str, why: str) -> None:
    config = tmp_path / "smtpproxy.toml"
    config.write_text(text)
    result = run("--config", str(config), "--check")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"smtpproxy: {config} {why}")


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    result = run("--config", str(tmp_path / "missing"))
    assert (result.exit_code, result.stderr) == (
        2,
        f"smtpproxy: {tmp_path / 'missing'} can't be read: No such file or directory\n",
    )


@pytest.mark.parametrize("words", [[], ["--config", "a", "--control", "b"]])
def test_one_of_both_must_be_said(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Say --config FILE, or --control PATH." in result.stderr

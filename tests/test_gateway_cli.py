"""`smtpproxy nft` and `smtpproxy doctor` as commands; what they print is looked at in tests/gateway."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner, Result

from smtpproxy import gateway_cli
from smtpproxy.config import load_config
from smtpproxy.config.inline import Mode, WhenDown
from smtpproxy.gateway.nft import Options, text
from smtpproxy.gateway.scene import Finding
from smtpproxy.gateway_cli import doctor, nft

COMMANDS = {"nft": nft, "doctor": doctor}
LISTENER = '[[listener]]\nname = "mx"\nlisten = "0.0.0.0:2525"\nmode = "{}"\n'


def run(name: str, *words: str | Path) -> Result:
    return CliRunner().invoke(COMMANDS[name], [str(word) for word in words], prog_name=f"smtpproxy {name}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "smtpproxy.toml"
    path.write_text(LISTENER.format("tproxy"))
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_a_paragraph_and_examples_with_options_that_exist(name: str) -> None:
    said = run(name, "--help")
    assert said.exit_code == 0
    examples, options = said.stdout.split("Examples:")[1].split("Options:")
    assert f"smtpproxy {name} " in examples
    for option in re.findall(r"(?<!\S)--[a-z-]+", examples):
        assert option in options


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.gateway_cli import nft\n"
        "try: nft(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'smtpproxy.gateway'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_words_are_those_of_the_configuration() -> None:
    assert get_args(Mode) == gateway_cli.MODES
    assert get_args(WhenDown) == gateway_cli.WHEN_DOWN


def test_nft_prints_and_says_nothing_else(file: Path) -> None:
    said = run("nft", "tproxy", "--config", file)
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout == text(load_config(file), Options(("tproxy",)), str(file))
    said = run("nft", "tproxy", "tproxy", "--config", file, "--when-down", "hold", "--watchdog")
    assert said.stdout == text(load_config(file), Options(("tproxy",), "hold", watchdog=True), str(file))


def test_nft_needs_no_files_but_the_configuration(file: Path) -> None:
    """It may be printed on another machine, by somebody who can't read the keys."""
    file.write_text(LISTENER.format("tproxy") + 'tls.certificates = [{ chain = "nowhere.pem" }]\n')
    assert run("nft", "tproxy", "--config", file).exit_code == 0


@pytest.mark.parametrize(
    ("mode", "words", "said"),
    [
        ("redirect", ["tproxy"], 'no listener has mode = "tproxy": `smtpproxy nft redirect` is for those there are'),
        ("redirect", [], "Missing argument 'MODE...'"),
        ("redirect", ["nat"], "'nat' is not one of 'forward', 'redirect', 'tproxy'"),
        ("redirect", ["redirect", "--when-down", "die"], "'die' is not one of"),
        ("mirror", ["redirect"], '"mirror" is not one of its values'),
    ],
)
def test_what_is_wrong_ends_with_2(file: Path, mode: str, words: list[str], said: str) -> None:
    file.write_text(LISTENER.format(mode))
    result = run("nft", *words, "--config", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_configuration_must_be_named(name: str) -> None:
    assert run(name, *["tproxy"] * (name == "nft")).exit_code == 2


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([Finding("router", "warning", "a route will end", "sysctl -w x=2")], 0),
        ([Finding("router", "warning", "a", "b"), Finding("rules", "error", "no rule", "smtpproxy nft | nft -f -")], 1),
    ],
)
def test_doctor_says_each_with_its_mend_and_errors_end_with_1(
    file: Path, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int
) -> None:
    monkeypatch.setattr(
        "smtpproxy.gateway.doctor.examine", lambda config, path: findings if path == str(file) else None
    )
    result = run("doctor", "--config", file)
    assert (result.exit_code, result.stderr) == (code, "")
    if findings:
        assert result.stdout == "".join(f"{f.severity}: {f.check}: {f.what}\n    {f.mend}\n" for f in findings)
    else:
        assert result.stdout == "ok: nothing is missing\n"
    result = run("doctor", "--config", file, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == {"ok": code == 0, "findings": [finding._asdict() for finding in findings]}


def test_they_are_commands_of_smtpproxy() -> None:
    from smtpproxy.cli import cli

    assert isinstance(cli, click.Group)
    assert {name: cli.commands.get(name) for name in COMMANDS} == COMMANDS


def test_nft_writes_a_file_whole_or_not_at_all(file: Path, tmp_path: Path) -> None:
    """An empty file would load, and say nothing."""
    path = tmp_path / "smtpproxy.nft"
    said = run("nft", "tproxy", "--config", file, "--output", path)
    assert (said.exit_code, said.stdout, said.stderr) == (0, "", "")
    assert path.read_text() == run("nft", "tproxy", "--config", file).stdout
    path.write_text("of yesterday")
    assert run("nft", "redirect", "--config", file, "--output", path).exit_code == 2
    assert path.read_text() == "of yesterday"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["smtpproxy.nft", "smtpproxy.toml"]


@pytest.mark.parametrize("control", ["", '[process]\ncontrol = "/run/smtpproxy/control"\n'])
def test_a_watchdog_that_could_ask_nobody_is_warned_of(file: Path, control: str) -> None:
    file.write_text(LISTENER.format("redirect") + '[listener.intercept]\nwhen_down = "bypass"\n' + control)
    said = run("nft", "redirect", "--config", file)
    assert said.exit_code == 0
    assert bool(said.stderr) is not bool(control)

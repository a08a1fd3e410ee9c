"""docs/rules-testing.md: its rules load, its playbooks pass by them, and the command prints what it shows."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.proving.facts import FACTS
from smtpproxy.rules_cli import rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules-testing.md").read_text(encoding="utf-8")
PROGRAM = (
    "Subject: look\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n"
    'Content-Type: application/octet-stream\nContent-Disposition: attachment; filename="look.exe"\n\nMZ\n--b--\n'
)


def blocks(kind: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for word, text in fenced if word == kind]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.eml").write_text(PROGRAM)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(rules, ["test", *words])


def test_every_example_passes_and_every_rule_is_tested(folder: Path) -> None:
    (folder / "site.toml").write_text("\n".join(blocks("toml")))
    (folder / "site.play").write_text("\n".join(blocks("play")))
    said = run("site.toml", "--strict")
    assert said.exit_code == 0, said.output


def test_the_run_that_is_shown(folder: Path) -> None:
    (folder / "site.toml").write_text(blocks("toml")[0])
    (folder / "site.play").write_text(blocks("play")[0])
    shown = [block for block in blocks("") if block.startswith("$ smtpproxy")]
    (printed,) = [block.partition("\n")[2] for block in shown]
    assert [_timeless(line) for line in run("site.toml").stdout.splitlines()] == list(
        map(_timeless, printed.splitlines())
    )


def test_the_difference_that_is_shown(folder: Path) -> None:
    (folder / "site.toml").write_text(blocks("toml")[0])
    (folder / "site.play").write_text(blocks("play")[0].replace("That domain is no more", "No such domain", 1))
    (shown,) = [block for block in blocks("") if block.startswith("FAIL")]
    printed = [line for line in run("site.toml").stdout.splitlines() if not line.startswith("      ?")]
    assert printed[:5] == shown.splitlines()


def test_every_fact_is_explained() -> None:
    said = set(re.findall(r"`\.\. ([a-z]+)", PAGE))
    assert FACTS.keys() | {"time", "wait", "session", "decide"} <= said


def _timeless(line: str) -> str:
    return re.sub(r"\d+\.\d\d s", "0.00 s", line)

"""`smtpproxy rules replay`, `report` and `explain`: what they print, their exit codes, and the page that shows them."""

import gzip
import io
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import cli
from smtpproxy.proving.steps import Kind
from smtpproxy.rehearse_cli import explain, replay, report
from tests.proving.audits import HELLO, QUIT, Recording, judge_of, mail

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "rules-rehearsing.md").read_text(encoding="utf-8")
RULES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
OBSERVING = (
    '[[rule]]\nname = "old"\nwhy = "test"\nmode = "observe"\non = "RCPT"\nthen = { answer = "550 5.7.1 Not here" }\n'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the audit and the rules of the page, and a configuration."""
    recording = Recording(tmp_path / "audit.jsonl")
    recording.session(HELLO + mail("anna@x.example", "ben@y.example", "sales@old.example") + QUIT)
    recording.session(HELLO + mail("printer7@x.example", "it@y.example", lines=9) + QUIT, client="192.0.2.7:50120")
    recording.session(HELLO + mail("", "ben@y.example") + QUIT, client="198.51.100.4:33012")
    recording.close()
    (tmp_path / "new.toml").write_text(RULES)
    (tmp_path / "smtpproxy.toml").write_text(
        'rules = ["new.toml"]\n[[listener]]\nname = "mx"\nlisten = "127.0.0.1:0"\nserver = "mx.example"\n'
        '[[match]]\nname = "lab"\nclients = ["192.0.2.7"]\nrules = ["lab.toml"]\n'
    )
    (tmp_path / "lab.toml").write_text(OBSERVING)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, stdin: bytes = b"") -> Result:
    """As it is typed, without the name of the program."""
    return CliRunner().invoke(cli, shlex.split(f"rules {command}"), input=stdin)


def test_the_page_shows_what_is_printed(folder: Path) -> None:
    shown = re.findall(r"```console\n\$ smtpproxy rules (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 2
    for command, output in shown:
        result = run(command)
        assert (result.output.rstrip(), result.exit_code) == (output.rstrip(), 0)


def test_the_columns_are_the_kinds() -> None:
    """In the help, in the page, and in what is printed."""
    for kind in Kind:
        assert f"\n  {kind.name} " in run("replay --help").output
        assert f"\n| {kind.name} |" in PAGE


@pytest.mark.parametrize(("over", "code"), [("0", 1), ("1", 1), ("2", 0), ("9%", 1), ("9.5%", 0)])
def test_the_exit_code_says_whether_it_is_too_much(folder: Path, over: str, code: int) -> None:
    result = run(f"replay --rules new.toml --against audit.jsonl --fail-over {over} --json")
    said = json.loads(result.output)
    assert (result.exit_code, said["over"]) == (code, bool(code))
    assert (said["sessions"], said["exchanges"], said["differing"], said["follows"]) == (3, 22, 2, 3)
    assert {one["rule"]: one.get("refused") for one in said["rules"] if one["examples"]} == {
        "old-domain": 1,
        "printers-stay-inside": 1,
    }


@pytest.mark.parametrize("over", ["x", "-1", "1.5", "%", "1 %%"])
def test_a_threshold_that_is_none(folder: Path, over: str) -> None:
    result = run(f"replay --rules new.toml --against audit.jsonl --fail-over={shlex.quote(over)}")
    assert (result.exit_code, "say a count such as 10, or percent such as 0.5%" in result.stderr) == (2, True)


def test_rules_have_to_be_said(folder: Path) -> None:
    result = run("replay --against audit.jsonl")
    assert (result.exit_code, "Say --rules PATH, or --config FILE." in result.stderr) == (2, True)


def test_a_configuration_has_its_rules_and_those_of_its_blocks(folder: Path) -> None:
    """The block's are tried before the general ones, for the sessions that fit it."""
    audit = folder / "audit.jsonl"
    lines = audit.read_text().splitlines(keepends=True)
    audit.write_text("".join(line.replace('"listener"', '"match":"lab","listener"') for line in lines))
    said = json.loads(run("replay --config smtpproxy.toml --against audit.jsonl --json").output)
    found = {one["rule"]: one for one in said["rules"]}
    assert found["old-domain"]["refused"] == 1
    assert found["old"]["observed"] == 3
    result = run("replay --config smtpproxy.toml --rules lab.toml --against audit.jsonl --json --no-shipped-rules")
    assert [one["rule"] for one in json.loads(result.output)["rules"]] == ["old"]


def test_wrong_rules_and_wrong_files_are_told(folder: Path) -> None:
    (folder / "wrong.toml").write_text(RULES.replace("rcpt.domain ==", "rcpt.domian =="))
    result = run("replay --rules wrong.toml --against audit.jsonl")
    assert (result.exit_code, "rcpt.domain" in result.stderr) == (2, True)
    (folder / "smtpproxy.toml").write_text("nonsense = 1\n")
    assert run("replay --config smtpproxy.toml --against audit.jsonl").exit_code == 2
    for command in ("replay --rules new.toml", "report", "explain x"):
        result = run(f"{command} --against nowhere")
        assert (result.exit_code, result.stderr) == (2, "smtpproxy: nowhere: No such file or directory\n")
        result = run(f"{command} --against new.toml")
        assert (result.exit_code, "no line of it is a record" in result.stderr) == (2, True)
    result = run("report --against audit.jsonl --since yesterday")
    assert (result.exit_code, "no span such as 7d" in result.stderr) == (2, True)


def test_standard_input_and_several_files(folder: Path) -> None:
    octets = (folder / "audit.jsonl").read_bytes()
    lines = octets.splitlines(keepends=True)
    (folder / "one.gz").write_bytes(gzip.compress(b"".join(lines[:12])))
    (folder / "two").write_bytes(b"".join(lines[12:]))
    whole = run("replay --rules new.toml --against audit.jsonl").output
    assert run("replay --rules new.toml --against two --against one.gz").output == whole
    assert run("replay --rules new.toml --against -", octets).output == whole


def test_a_period_without_sessions(folder: Path) -> None:
    result = run("replay --rules new.toml --against audit.jsonl --until 2026-01-01 --fail-over 0")
    assert (result.exit_code, result.output.splitlines()[0]) == (0, "replayed 0 sessions, 0 exchanges, 0 mails")


def test_what_could_not_be_read_or_played_is_noted(folder: Path) -> None:
    lines = (folder / "audit.jsonl").read_text().splitlines(keepends=True)
    (folder / "part").write_text("".join(lines[1:]) + '{"v":1,"at":"20')
    result = run("replay --rules new.toml --against part")
    assert "note: sessions that began before the record, and were left out: 1" in result.stdout
    assert "lines that could not be read: 1, first part:34" in result.stderr
    assert result.exit_code == 0


def test_what_a_peer_said_does_not_write_to_the_terminal(folder: Path) -> None:
    lines = (folder / "audit.jsonl").read_text()
    (folder / "odd").write_text(lines.replace("sales@old.example>", "sales@old.example>\\u001b[2J"))
    assert "\x1b" not in run("explain 4d9d6b7a53-1 --against odd").output


# -------------------------------------------------------------------------------------------------------------- report


@pytest.fixture
def observed(folder: Path) -> Path:
    recording = Recording(folder / "watched.jsonl", judge_of(OBSERVING, folder))
    refused = "C> MAIL FROM:<c@x.example>\nS> 250 Ok\nC> RCPT TO:<d@old.example>\nS> 550 5.1.1 no\n"
    recording.session(HELLO + mail() + refused)
    recording.close()
    return folder


def test_a_report_sets_what_would_be_beside_what_was(observed: Path) -> None:
    result = run("report --against watched.jsonl --examples 1")
    assert result.exit_code == 0
    beside = "old: observed 2 (answer 2); refused anyway by the server 1, by another rule 0; would change 1"
    assert beside in result.output
    assert "was told 250 2.1.5 Ok; would be answer 550 5.7.1 Not here" in result.output
    assert re.search(r"old +- +2 +1 +1 +2 +2026-11-16 10:00:00", result.output)


def test_a_report_as_json_and_of_some_rules(observed: Path) -> None:
    said = json.loads(run("report --against watched.jsonl --json").output)
    (rule,) = said["rules"]
    assert (rule["rule"], rule["observed"], rule["refused_by_server"], rule["would_change"]) == (
        "old",
        {"answer": 2},
        1,
        1,
    )
    assert said["lines"] == 13
    assert "no rule had a say" in run("report --against watched.jsonl --rule other").output


def test_a_report_of_what_was_enforced(observed: Path) -> None:
    recording = Recording(observed / "b", judge_of(OBSERVING.replace("observe", "enforce"), observed))
    recording.session(HELLO + "C> MAIL FROM:<a@x.example>\nS> 250 Ok\nC> RCPT TO:<b@y.example>\n")
    assert "old: enforced 1 (answer 1)" in run("report --against b").output


# ------------------------------------------------------------------------------------------------------------- explain


def test_a_session_that_is_not_there(folder: Path) -> None:
    result = run("explain 4d9d6b7a53-77 --against audit.jsonl")
    assert (result.exit_code, "has no session 4d9d6b7a53-77" in result.stderr) == (1, True)


def test_an_explanation_says_by_which_rules(observed: Path) -> None:
    assert (
        "rules: those that were in force ("
        in run("explain 4d9d6b7a53-1 --against watched.jsonl --rules then.toml --no-shipped-rules").output
    )
    result = run("explain 4d9d6b7a53-1 --against watched.jsonl --rules new.toml")
    assert "rules: not those that were in force (then " in result.output
    said = json.loads(run("explain 4d9d6b7a53-1 --against watched.jsonl --rules new.toml --json").output)
    assert (said["same_rules"], said["complete"], said["client"]) == (False, True, "192.0.2.1:4025")
    (last,) = [one for one in said["exchanges"] if one["asked"] == "RCPT TO:<d@old.example>"]
    assert last["tried"][0] == {
        "subject": "RCPT",
        "rule": "old-domain",
        "held": True,
        "deed": "answer",
        "values": {"rcpt.domain": "old.example"},
    }


def test_sessions_that_are_hardly_on_record(folder: Path) -> None:
    lines = (folder / "audit.jsonl").read_text().splitlines(keepends=True)
    (folder / "begun").write_text("".join(lines[:4]))
    assert "its end is not on record" in run("explain 4d9d6b7a53-1 --against begun").output
    (folder / "refused").write_text(lines[0].replace('"listener"', '"refused":"too many","listener"'))
    assert "no rule was asked: too many" in run("explain 4d9d6b7a53-1 --against refused").output
    result = run("explain 4d9d6b7a53-3 --against audit.jsonl --rules new.toml")
    assert "can't tell no-invoices-from-nobody: it reads the mail" in result.output
    result = run("explain 4d9d6b7a53-2 --against audit.jsonl --rules new.toml")
    assert "now  would not come about: printers-stay-inside decided otherwise before" in result.output


# ---------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("command", [replay, report, explain])
def test_the_examples_of_the_help_have_the_options_of_the_command(command: click.Command) -> None:
    lines = re.findall(rf"smtpproxy rules {command.name} ([^|\n]*)", command.help or "")
    assert len(lines) >= 3
    options = {name for option in command.params for name in option.opts}
    for line in lines:
        assert set(re.findall(r"--[a-z-]+", line)) <= options
    assert "Exit codes:" in (command.epilog or "")


def test_how_far_it_is_is_shown_on_a_terminal_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert run("replay --rules new.toml --against audit.jsonl").stderr == ""
    terminal = Terminal()
    monkeypatch.setattr("smtpproxy.rehearse_cli.sys.stderr", terminal)
    with pytest.raises(SystemExit):
        replay.main(["--rules", "new.toml", "--against", "audit.jsonl"], standalone_mode=False)
    assert "replaying" in terminal.getvalue()
    assert "100%" in terminal.getvalue()

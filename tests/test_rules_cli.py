"""`smtpproxy rules list` and `smtpproxy rules test` as commands."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import cli
from smtpproxy.rules_cli import rules

SITE = """
[[rule]]
name = "no-vrfy"
why = "Nobody here is asked after."
tags = ["harvesting"]
extension = "VRFY"
then = { answer = "252 2.5.0 Cannot say" }

[[rule]]
name = "no-old-domain"
why = "The domain was given up."
tags = ["recipients", "old"]
on = "RCPT"
when = 'rcpt.domain == "old.example"'
then = { answer = "550 5.1.2 No such domain" }

[[rule]]
name = "sees-large-mail"
why = "How many would a smaller limit refuse?"
on = ["MAIL", "EHLO reply"]
mode = "observe"
then = { tag = "seen" }
"""
LATER = """
[[rule]]
name = "no-vrfy"
why = "The server says it well enough."
extension = "VRFY"
then = "allow"

[[rule]]
name = "strip-expn"
why = "Somebody needs it."
mode = "off"
"""
PLAYBOOK = """
== VRFY is answered here
.. hello
C> VRFY ann
>C 252 2.5.0 Cannot say
=> answer no-vrfy

== no mail for a domain that was given up
.. mail TO=<>
C> RCPT TO:<b@old.example>
>C 550 5.1.2 No such domain
=> answer no-old-domain
"""
WRONG = "\n== VRFY is told\n.. hello\nC> VRFY ann\n>C 250 2.5.0 ann\n"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(rules, [str(word) for word in words], prog_name="smtpproxy rules")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "site.play").write_text(PLAYBOOK)
    return tmp_path


@pytest.mark.parametrize("name", sorted(rules.commands))
def test_every_help_has_a_paragraph_and_examples_with_options_that_exist(name: str) -> None:
    said = run(name, "--help")
    assert said.exit_code == 0
    examples, options = said.stdout.split("Examples:")[1].split("Options:")
    assert f"smtpproxy rules {name}" in examples
    for option in re.findall(r"(?<!\S)--[a-z-]+", examples.replace("| jq", "")):
        assert option in options, option


def test_the_group_is_a_command_of_smtpproxy() -> None:
    said = CliRunner().invoke(cli, ["rules", "--help"])
    assert {"list", "test"} <= set(re.findall(r"^  ([a-z]+) ", said.stdout, re.MULTILINE))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.rules_cli import rules\n"
        "try: rules(['test', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'smtpproxy.proving'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------------- list


def names(said: Result) -> list[str]:
    assert (said.exit_code, said.stderr) == (0, "")
    head, *lines = said.stdout.splitlines()
    assert head.split() == ["NAME", "ON", "MODE", "TAGS", "FROM"]
    return [line.split()[0] for line in lines]


def test_rules_are_listed_as_they_are_tried(folder: Path) -> None:
    said = run("list", "--rules", folder / "site.toml", "--no-shipped-rules")
    assert names(said) == ["no-vrfy", "no-old-domain", "sees-large-mail"]
    lines = said.stdout.splitlines()
    columns = [lines[0].index(head) for head in ("ON", "MODE", "TAGS", "FROM")]
    cells = [line[at:].split("  ")[0] for line in lines[2:] for at in columns]
    assert cells[:4] == ["RCPT", "enforce", "recipients old", f"{folder}/site.toml:9"]
    assert cells[4:] == ["MAIL, EHLO reply", "observe", "", f"{folder}/site.toml:17"]


def test_the_shipped_rules_are_listed_when_nothing_is_said() -> None:
    listed = names(run("list"))
    assert "strip-xexch50" in listed
    assert "size-limit" not in listed
    assert names(run("list", "--rules", "set:size", "--no-shipped-rules")) == ["size-limit"]


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        (["--on", "rcpt"], ["no-old-domain"]),
        (["--on", "EHLO reply"], ["sees-large-mail"]),
        (["--on", "ehlo  reply"], ["sees-large-mail"]),
        (["--on", "SEND"], ["sees-large-mail"]),  # as good as MAIL
        (["--on", "EHLO"], []),
        (["--on", "VRFY"], ["no-vrfy"]),
        (["--on", "content"], []),
        (["--tag", "old"], ["no-old-domain"]),
        (["--tag", "old", "--on", "MAIL"], []),
    ],
)
def test_some_of_them(words: list[str], listed: list[str], folder: Path) -> None:
    assert names(run("list", "--rules", folder, "--no-shipped-rules", *words)) == listed


def test_what_was_replaced_or_is_off_is_listed_when_asked_for(folder: Path) -> None:
    (folder / "z.toml").write_text(LATER)
    said = run("list", "--rules", folder, "--all")
    listed = names(said)
    assert listed.count("no-vrfy") == 2
    assert listed.count("strip-expn") == 2
    (line,) = [line for line in said.stdout.splitlines() if f"replaces {folder}/site.toml:2" in line]
    assert line.startswith("no-vrfy ")
    said = run("list", "--rules", folder, "--all", "--json")
    found = [json.loads(line) for line in said.stdout.splitlines()]
    (old,) = [one for one in found if one["replaced_by"] and one["name"] == "no-vrfy"]
    assert (old["replaced_by"], old["in_force"]) == (f"{folder}/z.toml:2", False)
    (off,) = [one for one in found if one["mode"] == "off"]
    assert (off["name"], off["why"], off["in_force"], off["on"]) == ("strip-expn", "Somebody needs it.", False, "-")
    assert len(names(run("list", "--rules", folder))) == len([one for one in found if one["in_force"]])


def test_rules_of_a_configuration_and_of_its_match_blocks(folder: Path) -> None:
    (folder / "lab.toml").write_text(LATER.partition("\n\n")[0] + "\n")
    config = folder / "smtpproxy.toml"
    config.write_text(
        'rules = ["site.toml"]\nshipped_rules = false\n[[listener]]\nname = "mx"\nlisten = "127.0.0.1:2525"\n'
        'server = "mx.example"\n[[match]]\nname = "lab"\nclients = ["192.0.2.0/24"]\nrules = ["lab.toml"]\n'
    )
    assert names(run("list", "--config", config)) == ["no-vrfy", "no-old-domain", "sees-large-mail"]
    said = run("list", "--config", config, "--match", "lab", "--on", "VRFY")
    assert f"{folder}/lab.toml:2" in said.stdout
    said = run("list", "--config", config, "--match", "lob")
    assert (said.exit_code, "has no match block 'lob' (it has lab)" in said.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--rules", "none.toml"], "none.toml: no such file or directory"),
        (["--config", "none.toml"], "none.toml"),
        (["--config", "x.toml", "--rules", "y.toml"], "Say --config, or --rules"),
        (["--match", "lab"], "--match goes with --config"),
    ],
)
def test_what_cant_be_listed(words: list[str], wrong: str) -> None:
    said = run("list", *words)
    assert (said.exit_code, said.stdout) == (2, "")
    assert wrong in said.stderr


# ---------------------------------------------------------------------------------------------------------------- test


def test_all_cases_pass(folder: Path) -> None:
    said = run("test", folder)
    assert (said.exit_code, said.stderr) == (0, "")
    first, second, empty, cases, covered, note = said.stdout.splitlines()
    assert first == f"pass  {folder}/site.play:2: VRFY is answered here"
    assert second == f"pass  {folder}/site.play:8: no mail for a domain that was given up"
    assert re.fullmatch(r"2 cases: 2 passed, 0 failed, in \d+\.\d\d s", cases)
    assert (empty, covered) == ("", "3 rules: 2 tested (66 %)")
    assert note == f"note  {folder}/site.toml:17: rule sees-large-mail has no test"
    assert run("test", folder / "site.play").stdout.splitlines()[:2] == [first, second]


def test_a_case_fails(folder: Path) -> None:
    (folder / "site.play").write_text(PLAYBOOK + WRONG)
    said = run("test", folder / "site.toml")
    assert said.exit_code == 1
    lines = said.stdout.splitlines()
    assert lines[2:4] == [
        f"FAIL  {folder}/site.play:14: VRFY is told",
        f"      {folder}/site.play:16: C> b'VRFY ann\\r\\n' (whole):",
    ]
    assert "3 cases: 2 passed, 1 failed" in said.stdout


def test_a_rule_without_a_test_fails_where_it_is_to(folder: Path) -> None:
    said = run("test", folder, "--strict", "--junit", folder / "results.xml")
    assert said.exit_code == 1
    assert said.stdout.splitlines()[-1] == f"FAIL  {folder}/site.toml:17: rule sees-large-mail has no test"
    root = ElementTree.fromstring((folder / "results.xml").read_bytes())
    assert (root.get("tests"), root.get("failures")) == ("3", "1")


def test_which_case_tests_which_rule(folder: Path) -> None:
    said = run("test", folder, "--coverage")
    assert re.search(r"^  no-vrfy +\S+:2 +1 +decided +VRFY is answered here$", said.stdout, re.MULTILINE)
    assert re.search(r"^  sees-large-mail +\S+:17 +0 +NO TEST$", said.stdout, re.MULTILINE)


def test_other_rules_than_those_beside_the_playbook(folder: Path) -> None:
    (folder / "other.toml").write_text(LATER)
    said = run("test", folder / "site.play", "--rules", folder / "other.toml")
    assert said.exit_code == 1
    assert "2 cases: 0 passed, 2 failed" in said.stdout


def test_rules_without_playbooks(folder: Path) -> None:
    (folder / "site.play").unlink()
    said = run("test", folder)
    assert said.exit_code == 1
    assert f"no playbook (NAME.play) belongs to {folder}" in said.stderr


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("site.play", "== a\nhello", "site.play:2:1: no line of a transcript"),
        ("site.toml", "[[rule]]\nname = 1", "site.toml:"),
    ],
)
def test_what_cant_be_played(name: str, text: str, wrong: str, folder: Path) -> None:
    (folder / name).write_text(text)
    said = run("test", folder)
    assert (said.exit_code, said.stdout) == (2, "")
    assert wrong in said.stderr


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in ("none.play", "none.toml", "none"):
        said = run("test", tmp_path / name)
        assert (said.exit_code, f"There is no {tmp_path / name}" in said.stderr) == (2, True)
    said = run("test", tmp_path, "--junit", tmp_path / "none" / "results.xml")
    assert (said.exit_code, "results.xml can't be written" in said.stderr) == (2, True)

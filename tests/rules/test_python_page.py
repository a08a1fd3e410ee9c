"""docs/rules-python.md: its example is found, decides by a real database, and its playbook passes."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from smtpproxy.policy import decisions, entrypoints
from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rules import Rule
from smtpproxy.rules_cli import rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules-python.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, as the page says it lies, and a database."""
    database = tmp_path / "users.sqlite"
    with closing(sqlite3.connect(database)) as users, users:
        users.execute("create table users (address text primary key, left integer not null)")
        users.executemany("insert into users values (?, ?)", [("ann@example.com", 0), ("tom@example.com", 1)])
    module = block("python").replace("/var/lib/mail/users.sqlite", str(database))
    assert str(database) in module
    for name, text in {"site.toml": block("toml"), "site.play": block("play"), "python/recipients.py": module}.items():
        file = tmp_path / name
        file.parent.mkdir(mode=0o755, exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(*words: str) -> Result:
    return CliRunner().invoke(rules, ["test", *words])


def test_the_playbook_of_the_page_passes(folder: Path) -> None:
    said = play("site.toml", "--strict")
    assert said.exit_code == 0, said.output


def test_the_function_decides_by_the_database(folder: Path) -> None:
    """The same cases, and nobody decides in its place."""
    there, gone = "S> 250 2.1.5 Ok\n>C 250 2.1.5 Ok\n=> pass\n", ">C 551 5.1.6 Not here any more\n"
    (folder / "site.play").write_text(
        "== who is not there is refused\n.. mail TO=<>\nC> RCPT TO:<nobody@example.com>\n"
        ">C 550 5.1.1 No such user here\n=> answer known-recipients\n\n"
        "== who is there goes on, in whatever letters\n.. mail TO=<>\n"
        f"C> RCPT TO:<Ann@Example.com>\n>S RCPT TO:<Ann@Example.com>\n{there}\n"
        f"== who has left\n.. mail TO=<>\nC> RCPT TO:<tom@example.com>\n{gone}"
        "=> answer known-recipients\n=> tag to-one-who-left\n\n"
        '== nobody breaks out of the question\n.. mail TO=<>\nC> RCPT TO:<"x\' or 1=1 --"@example.com>\n'
        ">C 550 5.1.1 No such user here\n=> answer known-recipients\n"
    )
    said = play("site.toml")
    assert said.exit_code == 0, said.output


def test_without_its_database_nobody_is_refused_for_good(folder: Path) -> None:
    (folder / "users.sqlite").unlink()
    (folder / "site.play").write_text(
        "== the database is gone\n.. mail TO=<>\nC> RCPT TO:<nobody@example.com>\n"
        ">C 451 4.3.0 Cannot look that up now, try again later\n=> answer known-recipients\n"
    )
    said = play("site.toml")
    assert said.exit_code == 0, said.output


def test_the_function_alone_is_a_function(folder: Path) -> None:
    (rule,) = [rule for rule in load_rules([folder / "site.toml"], shipped=False).rules if isinstance(rule, Rule)]
    assert rule.python is not None
    assert rule.deadline == 2.0
    check: Callable[..., Any] = rule.python.function
    assert check(rcpt_local="nobody", rcpt_domain="example.com") == entrypoints.Answer("550 5.1.1 No such user here")
    assert check(rcpt_local="ann", rcpt_domain="example.com") is entrypoints.ABSTAIN


def test_every_decision_is_on_the_page() -> None:
    named = set(re.findall(r"`\[?([A-Z][A-Za-z]+)\b", PAGE))
    kinds = {kind.__name__ for kind in decisions.Decision.__args__}
    assert kinds - {"Pass", "Abstain"} <= named
    assert {"PASS", "ABSTAIN"} <= named
    assert kinds | {"PASS", "ABSTAIN", "Facts"} <= set(entrypoints.__all__)

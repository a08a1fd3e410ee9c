"""docs/quarantine.md is so: its configuration and rule load, its commands work, its keys are those of the record."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpproxy.cli import cli
from smtpproxy.net.keeping import facts
from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rules import Quarantine, Rule
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Recipient, TLSInfo, Transaction
from smtpproxy.session.verdicts import Keep, PassAll
from smtpproxy.smtp.values import Path as Mailbox
from tests.quarantine.kept import keep, made
from tests.quarantine.talking import talking

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "quarantine.md").read_text(encoding="utf-8")
CONFIG, RULE = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "site.toml").write_text(RULE)
    text = CONFIG.replace("0.0.0.0:25", "localhost:0").replace("/var/lib/smtpproxy/quarantine", "mails")
    (tmp_path / "smtpproxy.toml").write_text(text)
    return tmp_path


def test_the_configuration_and_the_rule_are_right(site: Path) -> None:
    result = CliRunner().invoke(cli, ["check", "--config", "smtpproxy.toml"])
    assert (result.exit_code, result.stderr) == (0, "")
    (rule,) = (one for one in load_rules([site / "rules"], shipped=False).rules)
    assert isinstance(rule, Rule)
    assert isinstance(rule.then[0], Quarantine)


def test_without_a_quarantine_the_rule_is_an_error(site: Path) -> None:
    text = (site / "smtpproxy.toml").read_text()
    (site / "smtpproxy.toml").write_text(text.partition("[quarantine]")[0])
    result = CliRunner().invoke(cli, ["check", "--config", "smtpproxy.toml"])
    assert result.exit_code == 2
    assert "keeps mails in the quarantine, and the configuration has none" in result.stdout


def test_every_way_of_telling_is_one(tmp_path: Path) -> None:
    ways = re.findall(r"^\| `(\{ quarantine = .*?)` \|", PAGE, re.MULTILINE)
    assert len(ways) == 3
    for way in ways:
        (tmp_path / "rules.toml").write_text(RULE.replace('{ quarantine = "accept" }', way))
        assert load_rules([tmp_path / "rules.toml"], shipped=False).problems == ()


def test_the_commands_do_it(site: Path) -> None:
    kept = made(site / "mails")
    commands = [shlex.split(line.partition(" | ")[0])[1:] for line in SHELL if line.startswith("smtpproxy ")]
    assert [command[:2] for command in commands] == [
        ["quarantine", word] for word in ("list", "list", "list", "release", "delete", "expire")
    ]
    with talking() as server:
        for command in commands:
            name = keep(kept, server=f"127.0.0.1:{server.port}")
            words = [{"/etc/smtpproxy/smtpproxy.toml": "smtpproxy.toml", "NAME": name}.get(one, one) for one in command]
            result = CliRunner().invoke(cli, words)
            assert (result.exit_code, result.stderr) == (0, ""), command
    assert len(server.contents) == 1


def test_the_keys_of_the_record_are_these(site: Path) -> None:
    session = Session(
        judge=PassAll(), record=lambda item: None, clock=lambda: 0.0, facts=Facts("l", "m", "c", 1, "s", 2)
    )
    session.client.tls = TLSInfo("TLSv1.3", "x")
    session.client.hello, session.client.lmtp, session.identity = b"me", True, "ann"
    session.client.address = session.server.address = "192.0.2.1:25"
    transaction = session.transaction = Transaction(1, Mailbox(b"", b""), ())
    transaction.tags["odd"] = None
    recipient = Recipient(Mailbox(b"b", b"y.example"), ())
    recipient.accepted = True
    transaction.recipients.append(recipient)
    kept = made(site / "mails")
    name = kept.keep(io.BytesIO(b""), facts("s-1", session, Keep("r", "why", None, {"told": "250"})))
    with kept.claimed(name) as mail:
        kept.release(mail, {})
    result = CliRunner().invoke(cli, ["quarantine", "show", "--config", "smtpproxy.toml", "--json", name])
    table = PAGE.partition("| key | |\n")[2].partition("\n\n")[0]
    keys = [key for line in table.splitlines() for key in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(json.loads(result.stdout)) == sorted(keys)

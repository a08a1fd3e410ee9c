"""What the README and the docs show is so: examples load and run, lists are whole."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpproxy.audit.lines import rendered
from smtpproxy.cli import cli
from smtpproxy.policy.load import load_rules
from smtpproxy.policy.rules import ExtensionRule
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import PassAll
from smtpproxy.smtp.leniencies import NAMES
from smtpproxy.tls.minting import likeness_of, self_signed
from tests.peers import unavailable

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
AUDIT = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")

WHOLE = (
    (0, b"220 mx\r\n"), (1, b"EHLO me\r\n"), (0, b"250-mx\r\n250 XEXCH50\r\n"), (1, b"MAIL FROM:<a@x.example>\r\n"),
    (0, b"250 m\r\n"), (1, b"RCPT TO:<b@y.example>\r\n"), (0, b"250 r\r\n"), (1, b"DATA\r\n"), (0, b"354 go\r\n"),
    (1, b"x\n\r\n.\r\n"), (0, b"250 queued\r\n"), (1, b"QUIT\r\n"), (0, b"221 bye\r\n"),
)  # fmt: skip


def test_the_rules_of_the_readme_load(tmp_path: Path) -> None:
    examples = [block for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "[[rule]]" in block]
    (tmp_path / "site.toml").write_text("\n".join(examples))
    loaded = load_rules([tmp_path / "site.toml"])
    assert loaded.problems == ()
    found = {rule.name: rule for rule in loaded.rules}
    size = found["size-25m"]
    assert isinstance(size, ExtensionRule)
    assert size.limit == 25 * 2**20
    assert "no-programs" in found


@pytest.mark.parametrize("page", ["README.md", "docs/tls.md"])
def test_the_tls_table_of_the_page_is_one(page: str, tmp_path: Path) -> None:
    """Behind a listener, and with the files it names."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    example = [block for block in blocks if "listener.tls" in block][-1]
    if "[[listener]]" not in example:
        example = f'[[listener]]\nname = "mx"\nlisten = "127.0.0.1:0"\nserver = "mx.example"\n{example}'
    leaf = self_signed(likeness_of("mx.example", time.time()), time.time(), 30)
    (tmp_path / "mx.pem").write_bytes(leaf.chain + leaf.key)
    (tmp_path / "smtpproxy.toml").write_text(example.replace("/etc/smtpproxy/", ""))
    result = CliRunner().invoke(cli, ["check", "--config", str(tmp_path / "smtpproxy.toml")])
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_commands_of_the_readme_are_commands() -> None:
    """Each with an option it has; `explain` for real."""
    lines = re.findall(r"^smtpproxy ((?:rules|audit) \w+|\w+)([^#\n]*)", README, re.MULTILINE)
    expected = {"serve", "explain", "check", "nft", "doctor", "rules", "audit"}
    assert {name.partition(" ")[0] for name, _ in lines} == expected
    for name, rest in lines:
        help_text = CliRunner().invoke(cli, [*name.split(), "--help"]).output
        assert all(option in help_text for option in re.findall(r"--[a-z-]+", rest)), (name, rest)
    assert "MS03-046" in CliRunner().invoke(cli, ["explain", "XEXCH50"]).output


@pytest.mark.parametrize("page", [README, *(p.read_text("utf-8") for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target


def test_every_leniency_has_its_changelog_line() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in sorted(NAMES) if f"`{name}`" not in changelog] == []


def _audit(path: Path) -> None:
    """A conversation as the audit has it."""
    lines: list[str] = []

    def record(item: AuditRecord) -> None:
        lines.append(json.dumps({"at": "2026-01-01T00:00:00Z", "session": "4d9d6b7a53-1", **rendered(item)}))

    session = Session(judge=PassAll(), record=record, clock=lambda: 0.0)
    for client, octets in WHOLE:
        (session.client_sent if client else session.server_sent)(octets)
    assert session.closed
    server = {"sni": "mx.example", "verified": False, "result": "certificate-expired", "why": "its time is over"}
    record(AuditRecord(Kind.TLS, 0.0, detail={"client": None, "server": server}))
    path.write_text("\n".join(lines))


def test_the_questions_of_the_audit_page_have_answers(tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        unavailable("jq is missing")
    _audit(tmp_path / "audit.jsonl")
    questions = [line for line in AUDIT.splitlines() if line.startswith("jq ")]
    assert len(questions) == 4
    answers = [
        subprocess.run(["sh", "-c", q], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=10).stdout
        for q in questions
    ]
    assert answers[0].split("\t")[1:4] == ["a@x.example", "b@y.example", "5\n"]
    assert "stray-newline-normalised" in answers[1]
    assert json.loads(answers[2]) == {"sni": "mx.example", "result": "certificate-expired", "why": "its time is over"}
    assert answers[3].count('"kind"') > 8

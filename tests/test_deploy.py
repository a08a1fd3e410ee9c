"""The pages about running it: what they tell to write is right, what they tell to run is there, what they quote is so.

The files of deploy/ themselves are tried in tests/deploy/, and those of the gateway in tests/gateway/.
"""

import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpproxy.cli import cli
from smtpproxy.config.tables import TABLES
from smtpproxy.policy.load import load_rules
from smtpproxy.tls.minting import likeness_of, self_signed

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/operations.md", "docs/moving.md", "docs/sizing.md", "deploy/README.md", "deploy/ha/README.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
SHIPPED = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("systemd", "container", "kubernetes", "ha")
    for path in (ROOT / "deploy" / folder).rglob("*")
    if path.is_file()
}
BLOCKS = [(page, block) for page, text in TEXTS.items() for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
LISTENER = '[[listener]]\nname = "inbound"\nlisten = "127.0.0.1:0"\nserver = "mx.example"\n'


def _is_rules(block: str) -> bool:
    return "[[rule]]" in block


@pytest.mark.parametrize("block", [block for _, block in BLOCKS if _is_rules(block)])
def test_rules_are_rules(block: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(block, encoding="utf-8")
    loaded = load_rules([tmp_path / "site.toml"])
    assert [problem for problem in loaded.problems if problem.severity == "error"] == []
    assert len(loaded.rules) > len(load_rules([]).rules)


@pytest.mark.parametrize("block", [block for _, block in BLOCKS if not _is_rules(block)])
def test_configurations_are_right(block: str, tmp_path: Path) -> None:
    """Each by itself, with the files it names, behind a listener if it has none."""
    for name in re.findall(r'"([\w.]+\.toml)"', block):
        (tmp_path / name).touch()
    (tmp_path / "rules").mkdir()
    leaf = self_signed(likeness_of("mx.example", time.time()), time.time(), 30)
    (tmp_path / "mx.pem").write_bytes(leaf.chain + leaf.key)
    for place in ("/run/smtpproxy", "/var/log/smtpproxy"):
        block = block.replace(place, str(tmp_path))
    (tmp_path / "smtpproxy.toml").write_text((LISTENER if "[[listener]]" not in block else "") + block)
    result = CliRunner().invoke(cli, ["check", "--config", str(tmp_path / "smtpproxy.toml")])
    assert result.exit_code == 0, result.output


def test_there_are_examples_of_both() -> None:
    assert {(page, _is_rules(block)) for page, block in BLOCKS} >= {
        (page, rules) for page in ("docs/operations.md", "docs/moving.md") for rules in (True, False)
    }


def _commands(text: str) -> list[tuple[str, ...]]:
    """`smtpproxy NAME …`, whatever is around it: name and options."""
    said = re.findall(r"(?<![\w/.-])(?:/opt/\S+/)?smtpproxy\"?[ ,]+\"?([a-z]+)([^`\n|#;)]*)", text)
    names = set(cli.commands)
    return [(name, *re.findall(r"(?<=[ \"])--[a-z-]+", rest)) for name, rest in said if name in names]


@pytest.mark.parametrize("name", [*TEXTS, *SHIPPED])
def test_commands_have_the_options_they_are_given(name: str) -> None:
    for command, *options in _commands({**TEXTS, **SHIPPED}[name]):
        result = CliRunner().invoke(cli, [command, "--help"])
        assert result.exit_code == 0
        assert all(option in result.output for option in options), (command, options)


def test_commands_are_found() -> None:
    """The test above has something to look at."""
    for page, command in (
        ("docs/operations.md", ("check", "--config")),
        ("docs/operations.md", ("status", "--config", "--check")),
        ("deploy/systemd/smtpproxy.service", ("serve", "--config")),
        ("deploy/container/Dockerfile", ("status", "--check", "--control")),
        ("deploy/kubernetes/in-path.yaml", ("nft", "--config")),
        ("deploy/ha/keepalived.conf", ("status", "--check", "--control")),
    ):
        assert command in _commands({**TEXTS, **SHIPPED}[page]), page


@pytest.mark.parametrize("page", TEXTS)
def test_settings_are_settings(page: str) -> None:
    """`[table] key`, and keys beside it."""
    for table, rest in re.findall(r"`\[\[?([\w.]+)\]\]?`?((?:[ ,]+`?[a-z_]+(?= ?=|`)(?: = [^`]*)?`?)+)", TEXTS[page]):
        model = TABLES[tuple(table.split("."))]
        for key in re.findall(r"[a-z_]+(?= ?=|`)", rest):
            assert key in model.model_fields, f"[{table}] {key}"


def test_what_is_quoted_of_the_log_is_said() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "smtpproxy").rglob("*.py"))
    prose = re.sub(r"```.*?```", "", TEXTS["docs/operations.md"], flags=re.DOTALL)
    quoted = re.findall(r'"([a-z][^"\n=]{20,})"', prose)
    assert len(quoted) == 3
    for text in quoted:
        assert text in source, text


def test_exit_codes_are_those_of_the_command_line() -> None:
    table = re.findall(r"^\| (\d) \| (.*?) \|$", TEXTS["docs/operations.md"], re.M)
    said = re.findall(r"^ +(\d)  \S", CliRunner().invoke(cli, ["--help"]).output, re.M)
    assert [code for code, _ in table] == said


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", TEXTS[page]):
        file = (ROOT / page).parent / target
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings]

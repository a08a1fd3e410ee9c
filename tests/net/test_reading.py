"""A configuration and its rules, read together."""

from pathlib import Path

import pytest

from smtpproxy.config import Override
from smtpproxy.net.reading import read
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.rates import Counters

LISTENER = '[[listener]]\nname = "mx"\nlisten = "127.0.0.1:0"\nserver = "127.0.0.1:9"\n'
DENY = '[[rule]]\nname = "{}"\nwhy = "a test"\nextension = "{}"\nthen = "deny"\n'


def put(folder: Path, config: str, **rules: str) -> Path:
    for name, text in rules.items():
        (folder / f"{name}.toml").write_text(text)
    path = folder / "smtpproxy.toml"
    path.write_text(config)
    return path


def test_what_is_right_is_a_setup(tmp_path: Path) -> None:
    path = put(tmp_path, f'rules = ["site.toml"]\n{LISTENER}', site=DENY.format("no-dsn", "DSN"))
    found = read(path)
    assert found.problems == ()
    assert found.setup is not None
    assert found.setup.config.listeners[0].name == "mx"
    assert found.rules > 1
    assert set(found.setup.judges) == {""}


def test_a_block_with_rules_has_a_judge_of_its_own(tmp_path: Path) -> None:
    """Its rules stand behind the general ones; a block without any is judged like all others."""
    blocks = '[[match]]\nname = "own"\nports = [587]\nrules = ["own.toml"]\n[[match]]\nname = "same"\nports = [465]\n'
    path = put(
        tmp_path,
        f'rules = ["site.toml"]\n{LISTENER}{blocks}server = "127.0.0.1:10"\n',
        site=DENY.format("no-dsn", "DSN"),
        own=DENY.format("no-chunks", "CHUNKING"),
    )
    found = read(path)
    assert found.problems == ()
    assert found.setup is not None
    assert set(found.setup.judges) == {"", "own"}
    general, own = found.setup.judges[""], found.setup.judges["own"]
    assert general is not own
    assert "BDAT" in own.commands
    assert "BDAT" not in general.commands


def test_all_that_is_read_counts_in_what_it_is_given(tmp_path: Path) -> None:
    """Of all workers, and of what is read later: so a reload forgets nothing."""
    blocks = '[[match]]\nname = "own"\nports = [587]\nrules = ["own.toml"]\n'
    path = put(tmp_path, f"{LISTENER}{blocks}", own=DENY.format("no-dsn", "DSN"))
    counters = Counters(64)
    for _ in range(2):
        setup = read(path, counters=counters).setup
        assert setup is not None
        judges = [judge for judge in setup.judges.values() if isinstance(judge, Judge)]
        assert [judge.counters is counters for judge in judges] == [True, True]


@pytest.mark.parametrize(
    ("config", "rules", "said"),
    [
        (LISTENER.replace("listen =", "lisen ="), DENY.format("no-dsn", "DSN"), "lisen"),
        (f'rules = ["site.toml"]\n{LISTENER}', DENY.format("no-dsn", "DSNN"), "DSNN"),
        (
            f'{LISTENER}[[match]]\nname = "own"\nports = [587]\nrules = ["site.toml"]\n',
            DENY.format("no-dsn", "DSNN"),
            "DSNN",
        ),
    ],
    ids=["configuration", "rules", "rules of a block"],
)
def test_what_is_wrong_is_no_setup(tmp_path: Path, config: str, rules: str, said: str) -> None:
    """With every problem; `serve` and a reload go no further."""
    found = read(put(tmp_path, config, site=rules))
    assert found.setup is None
    assert any(said in problem.show() for problem in found.problems)
    assert len(set(found.problems)) == len(found.problems)


def test_rules_are_looked_at_where_the_configuration_can_not_say_which(tmp_path: Path) -> None:
    path = put(tmp_path, "[[listener]\n", site=DENY.format("no-dsn", "DSNN"))
    said = [problem.show() for problem in read(path, rules=[tmp_path / "site.toml"]).problems]
    assert any("smtpproxy.toml" in line for line in said)
    assert any("DSNN" in line for line in said)


def test_the_command_line_is_enough() -> None:
    listener = [{"name": "smtp-1", "listen": "127.0.0.1:0", "server": "127.0.0.1:9"}]
    found = read(None, [Override(("listener",), listener, "--listen")])
    assert found.setup is not None
    assert read(None).setup is None
    assert read(None, listeners=False).setup is not None

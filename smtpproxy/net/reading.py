"""A configuration and its rules, read together: by `serve`, again at each reload, and by `check`.

Everything that is wrong is found in one go. The rules of a match block stand behind the general ones, so each block
that has some has a judge of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smtpproxy.config import Config, ConfigError, Override, load_config
from smtpproxy.net.looking import look, look_at_rules
from smtpproxy.net.setup import Setup
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import Loaded, load_rules
from smtpproxy.policy.rates import Counters
from smtpproxy.policy.toml import Problem


class Read(NamedTuple):
    """What was read: `setup` is None if there is an error among the problems."""

    setup: Setup | None
    config: Config | None
    rules: int  # general ones
    problems: tuple[Problem, ...]


def read(
    path: Path | None,
    overrides: Sequence[Override] = (),
    *,
    rules: Sequence[Path] = (),
    shipped: bool = True,
    listeners: bool = True,
    counters: Counters | None = None,
) -> Read:
    """Read the configuration, with what the command line says in place of it, and its rules.

    Args:
        path: of the configuration; None: the command line has all of it.
        overrides: what the command line says.
        rules, shipped: which rules are looked at all the same where the configuration can't say.
        listeners: there must be one.
        counters: what rules count in, all of them and those read later, too; None: each reading's own.
    """
    counters = counters or Counters()
    problems: list[Problem] = []
    config: Config | None = None
    try:
        config = load_config(path, overrides, listeners=listeners, look=look, warn=problems.append)
    except ConfigError as error:
        problems += error.problems
    paths = config.rule_paths if config else rules
    loaded = load_rules(paths, shipped=config.shipped_rules if config else shipped, counters=counters)
    judges: dict[str, Judge] = {}
    problems += loaded.problems
    if config is not None:
        problems += look_at_rules(config, loaded.rules)
        judges[""] = _judge(config, loaded, counters)
        for match in config.matches:
            if match.rules:
                block = [*map(Path, match.rules)]
                own = load_rules(config.rule_paths, block=block, shipped=config.shipped_rules, counters=counters)
                problems += [*own.problems, *look_at_rules(config, own.rules, match.name)]
                judges[match.name] = _judge(config, own, counters)
    problems = list(dict.fromkeys(problems))
    wrong = config is None or any(problem.severity == "error" for problem in problems)
    setup = None if wrong or config is None else Setup(config, judges)
    return Read(setup, config, len(loaded.rules), tuple(problems))


def _judge(config: Config, loaded: Loaded, counters: Counters) -> Judge:
    recipients = config.limits_table().recipients
    return Judge(loaded.rules, recipients=recipients, counters=counters, digest=loaded.digest)

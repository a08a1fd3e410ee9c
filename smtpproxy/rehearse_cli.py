"""The commands `smtpproxy rules replay`, `rules report` and `rules explain`: rules and what was recorded, side by side.

They only read: an audit that is being written may be read, and nothing is served or asked. What is heavy to import is
imported by the command that needs it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

if TYPE_CHECKING:
    from smtpproxy.policy.toml import Problem
    from smtpproxy.proving.history import Audit
    from smtpproxy.proving.recorded import Connect
    from smtpproxy.proving.rehearsed import Rehearsed
    from smtpproxy.session.limits import Limits

OVER, WRONG = 1, 2
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_REPLAY_CODES = """\
\b
Exit codes:
  0  it was replayed
  1  with --fail-over: more exchanges than that would have another outcome
  2  the rules, the configuration, the audit or the command line is wrong
"""
_REPORT_CODES = """\
\b
Exit codes:
  0  the report was made, if of nothing too
  2  the audit or the command line is wrong
"""
_EXPLAIN_CODES = """\
\b
Exit codes:
  0  the session was explained
  1  the audit does not have it, or not its beginning
  2  the rules, the configuration, the audit or the command line is wrong
"""

_against = click.option(
    "--against",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="AUDIT",
    help="A file of the audit, also one compressed by gzip; - is standard input. May be repeated: rotated files and"
    " those of several machines are put in order.",
)
_since = click.option(
    "--since", metavar="WHEN", help="Only what came after: 7d or 12h ago, or a date or time such as 2026-11-16."
)
_until = click.option("--until", metavar="WHEN", help="Only what came before.")
_rules = click.option(
    "--rules",
    multiple=True,
    metavar="PATH",
    help="The rules: a file, a directory of them, or set:NAME; in place of the configuration's, if there is one. May be"
    " repeated.",
)
_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration: its rules where --rules says none, those of its match blocks for the sessions that fit"
    " them, and its limits.",
)
_shipped = click.option("--no-shipped-rules", is_flag=True, help="Without the rules that come with smtpproxy.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


# -------------------------------------------------------------------------------------------------------------- replay


@click.command(
    short_help="Put recorded sessions through rules, and show what would be otherwise.",
    epilog=_REPLAY_CODES,
    context_settings=_HELP,
)
@_rules
@_against
@_since
@_until
@_config
@_shipped
@click.option(
    "--fail-over",
    metavar="N|N%",
    help="End with 1 if more exchanges than this would have another outcome: a count, or percent of those replayed.",
)
@click.option("--examples", type=click.IntRange(0, 1000), default=3, metavar="N", help="How many of each; 3.")
@_json
def replay(
    rules: Sequence[str],
    against: Sequence[Path],
    since: str | None,
    until: str | None,
    config: Path | None,
    no_shipped_rules: bool,
    fail_over: str | None,
    examples: int,
    as_json: bool,
) -> None:
    """Put recorded sessions through rules, and show by rule what would have been otherwise: refused, passed, changed.

    What clients asked and servers said is taken from the record, with its times, so rates and limits count as they
    would have. Each difference is set down to the rule that makes it; what only follows (the recipients of a mail that
    is refused) is counted apart.

    \b
    REFUSED     was let through, and would be refused
    PASSED      was refused by a rule, and would be let through
    TAKEN       250 would be told and the server get nothing: discarded, or kept in the quarantine
    CHANGED     another reply, another command for the server, another refusal
    BESIDE      the rule would act beside that: a tag, a wait, a longer record
    OBSERVED    a rule in mode "observe" would say so
    FOLLOWS     exchanges that would not have come about like that any more
    CAN'T TELL  mails for which the rule could hold, but it reads header or content, or calls a function

    The record has size and digest of a mail, not its content. What rules that read content would say is not guessed.

    \b
    Examples:
      smtpproxy rules replay --rules new.toml --against /var/log/smtpproxy/audit.jsonl --since 7d
      smtpproxy rules replay --config smtpproxy.toml --rules new/ --against audit.jsonl.1.gz --against audit.jsonl
      smtpproxy rules replay --rules new.toml --against audit.jsonl --fail-over 0.1% --json | jq '.rules[].rule'
      ssh mx1 cat /var/log/smtpproxy/audit.jsonl | smtpproxy rules replay --rules new.toml --against -
    """
    threshold = _threshold(fail_over)
    if not rules and config is None:
        raise click.UsageError("Say --rules PATH, or --config FILE.")
    audit = _audit(against, since, until)
    given = _given(rules, config, shipped=not no_shipped_rules)

    from smtpproxy.columns import printable
    from smtpproxy.proving.replay import Replay
    from smtpproxy.proving.showing import replay_json, replayed

    player = Replay(given.rules, limits=given.limits, examples=examples)
    with _reading(audit, "replaying") as tick:
        result = player.play(audit, tick)
    over = threshold is not None and result.beyond(threshold[0], percent=threshold[1])
    if as_json:
        click.echo(json.dumps({**replay_json(result), **_audit_json(audit), "over": over}))
    else:
        for line in replayed(result):
            click.echo(printable(line))
        _complain(audit)
    sys.exit(OVER if over else 0)


def _threshold(text: str | None) -> tuple[float, bool] | None:
    """The number, and whether it is percent."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if found is None or ("." in found[1] and not found[2]):
        raise click.UsageError(f"--fail-over {text}: say a count such as 10, or percent such as 0.5%.")
    return float(found[1]), bool(found[2])


class _Given(NamedTuple):
    """The rules of each session, and the limits."""

    rules: "Callable[[Connect], Rehearsed]"
    limits: "Limits"


def _given(rules: Sequence[str], path: Path | None, *, shipped: bool) -> _Given:
    """The rules, with those of match blocks behind them where there is a configuration."""
    from smtpproxy.config import Config, ConfigError, load_config
    from smtpproxy.policy.load import load_rules
    from smtpproxy.policy.rates import Counters
    from smtpproxy.proving.rehearsed import Rehearsed
    from smtpproxy.session.limits import LIMITS

    config: Config | None = None
    if path is not None:
        try:  # whether the files it names are there is for `check` to say
            config = load_config(path, look=lambda config: ())
        except ConfigError as error:
            _give_up(error.problems)
    limits = config.limits_table() if config is not None else LIMITS
    counters = Counters()
    general = [*map(Path, rules)] or [*(config.rule_paths if config is not None else ())]
    below = shipped and (config is None or config.shipped_rules)

    def made(more: Sequence[str] = ()) -> Rehearsed:
        loaded = load_rules(general, block=[*map(Path, more)], shipped=below, counters=counters)
        if not loaded.ok:
            _give_up(problem for problem in loaded.problems if problem.severity == "error")
        return Rehearsed(loaded.rules, recipients=limits.recipients, counters=counters, digest=loaded.digest)

    every = made()
    blocks = {match.name: made(match.rules) for match in config.matches if match.rules} if config is not None else {}
    return _Given(lambda connect: blocks.get(connect.match, every), limits)


# -------------------------------------------------------------------------------------------------------------- report


@click.command(
    short_help="Show what rules did, and what those that observe would have done.",
    epilog=_REPORT_CODES,
    context_settings=_HELP,
)
@_against
@_since
@_until
@click.option("--rule", "names", multiple=True, metavar="NAME", help="Only this rule. May be repeated.")
@click.option("--examples", type=click.IntRange(0, 1000), default=3, metavar="N", help="How many of each rule; 3.")
@_json
def report(
    against: Sequence[Path],
    since: str | None,
    until: str | None,
    names: Sequence[str],
    examples: int,
    as_json: bool,
) -> None:
    """Show by the record what each rule did, how often, to how many clients and senders, when first and last.

    Of a rule in mode "observe" it is what it would have done, beside what happened all the same: what the server, or
    another rule, refused anyway would be no loss. What is left is what enforcing it would change.

    \b
    Examples:
      smtpproxy rules report --against /var/log/smtpproxy/audit.jsonl --since 7d
      smtpproxy rules report --against audit.jsonl --rule no-old-domains --examples 20
      smtpproxy rules report --against audit.jsonl --json | jq '.rules[] | select(.would_change == 0) | .rule'
    """
    audit = _audit(against, since, until)

    from smtpproxy.columns import printable
    from smtpproxy.proving.report import report as make
    from smtpproxy.proving.showing import report_json, reported

    with _reading(audit, "reading") as tick:
        found = make(_ticking(audit, tick), examples=examples)
    rules = [one for name, one in sorted(found.rules.items()) if not names or name in names]
    if as_json:
        click.echo(json.dumps({**report_json(found, rules), **_audit_json(audit)}))
        return
    for line in reported(found, rules):
        click.echo(printable(line))
    _complain(audit)


# ------------------------------------------------------------------------------------------------------------- explain


@click.command(
    short_help="Walk through one recorded session: which rules were tried, which decided, and why.",
    epilog=_EXPLAIN_CODES,
    context_settings=_HELP,
)
@click.argument("session", metavar="SESSION")
@_against
@_rules
@_config
@_shipped
@_json
def explain(
    session: str,
    against: Sequence[Path],
    rules: Sequence[str],
    config: Path | None,
    no_shipped_rules: bool,
    as_json: bool,
) -> None:
    """Walk through a recorded SESSION, command by command: what came of it, which rules were tried, which of them held,
    and what the fields in their conditions were.

    The session is played by the rules given here, without them by those that come with smtpproxy. Say the ones that
    were in force: if these are others, that is said, and what comes of a command now stands beside what was recorded.
    Each session has its name in the record, under "session".

    \b
    Examples:
      smtpproxy rules explain 4d9d6b7a53-1 --against /var/log/smtpproxy/audit.jsonl --config smtpproxy.toml
      smtpproxy rules explain 4d9d6b7a53-1 --against audit.jsonl --rules new.toml
      smtpproxy rules explain 4d9d6b7a53-1 --against audit.jsonl --json | jq '.exchanges[].tried'
    """
    audit = _audit(against, None, None)
    given = _given(rules, config, shipped=not no_shipped_rules)

    from smtpproxy.columns import printable
    from smtpproxy.proving.explaining import explain as make
    from smtpproxy.proving.history import sessions
    from smtpproxy.proving.showing import explain_json, explained

    with _reading(audit, "reading") as tick:
        wanted = _ticking(audit, tick)
        found = next(sessions(wanted, wanted=lambda name: name == session), None)
    if found is None:
        click.echo(f"smtpproxy: the audit has no session {session}, or not its beginning", err=True)
        sys.exit(OVER)
    told = make(found, given.rules(found.connect), limits=given.limits)
    if as_json:
        click.echo(json.dumps(explain_json(told), default=str))
        return
    for line in explained(told):
        click.echo(printable(line))


# ---------------------------------------------------------------------------------------------------------------- both


def _audit(paths: Sequence[Path], since: str | None, until: str | None) -> "Audit":
    from smtpproxy.proving.history import Audit, HistoryError, moment

    now = datetime.now(UTC)
    try:
        begin, end = (moment(text, now) if text is not None else None for text in (since, until))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        return Audit(paths, begin, end, stdin=sys.stdin.buffer)
    except HistoryError as error:
        _fail(error)


@contextmanager
def _reading(audit: "Audit", label: str) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, if that is a terminal and it is known how much there is."""
    from smtpproxy.proving.history import HistoryError

    try:
        if not (sys.stderr.isatty() and audit.size):
            yield lambda: None
            return
        with click.progressbar(length=audit.size, label=label, file=sys.stderr) as bar:
            yield lambda: bar.update(audit.position - bar.pos)
            bar.update(audit.size - bar.pos)
    except HistoryError as error:
        _fail(error)


def _ticking(audit: "Audit", tick: Callable[[], None]) -> Iterator[Any]:
    for number, record in enumerate(audit):
        if number % 5_000 == 0:
            tick()
        yield record


def _audit_json(audit: "Audit") -> dict[str, Any]:
    seen = audit.seen
    return {"lines": seen.lines, "broken_lines": seen.broken, "first_broken": seen.first_broken or None}


def _complain(audit: "Audit") -> None:
    seen = audit.seen
    if seen.broken:
        click.echo(f"smtpproxy: lines that could not be read: {seen.broken:,}, first {seen.first_broken}", err=True)


def _give_up(problems: "Iterable[Problem]") -> NoReturn:
    for problem in problems:
        click.echo(problem.show(), err=True)
    sys.exit(WRONG)


def _fail(why: object) -> NoReturn:
    click.echo(f"smtpproxy: {why}", err=True)
    sys.exit(WRONG)

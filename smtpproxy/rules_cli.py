"""The commands `smtpproxy rules list` and `smtpproxy rules test`: which rules are in force, and whether they do what
their playbooks say. The other commands of the group are in rehearse_cli.py.

Nothing is served and nobody is asked. What is heavy to import is imported by the command that needs it.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from smtpproxy.columns import count, printable, table
from smtpproxy.rehearse_cli import explain, replay, report

if TYPE_CHECKING:
    from smtpproxy.policy.entries import Listed
    from smtpproxy.policy.load import Loaded
    from smtpproxy.policy.rates import Counters
    from smtpproxy.policy.toml import Problem
    from smtpproxy.proving.testing import Covered, Result

FAILED, WRONG = 1, 2
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_LIST_CODES = """\
\b
Exit codes:
  0  the rules were listed, if none too
  2  the configuration, the rules or the command line is wrong
"""
_TEST_CODES = """\
\b
Exit codes:
  0  every case of every playbook came out as it says
  1  one did not; with --strict, or a rule has no test
  2  the rules, a playbook or the command line is wrong, and nothing was played
"""

_rules = click.option(
    "--rules",
    multiple=True,
    metavar="PATH",
    help="A rule file, a directory of them, or set:NAME for one of the sets that come with smtpproxy. May be repeated.",
)
_shipped = click.option("--no-shipped-rules", is_flag=True, help="Without the rules that come with smtpproxy.")


@click.group(
    "rules",
    commands=[explain, replay, report],
    short_help="List rules, test them, rehearse them.",
    context_settings=_HELP,
)
def rules() -> None:
    """See which rules are in force, test them, rehearse them against recorded sessions, and see what they did.

    \b
    Examples:
      smtpproxy rules list --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy rules test /etc/smtpproxy/rules
      smtpproxy rules replay --rules /etc/smtpproxy/rules-new --against /var/log/smtpproxy.jsonl
    """


# ---------------------------------------------------------------------------------------------------------------- list


@rules.command("list", short_help="List the rules in force, and where each comes from.", epilog=_LIST_CODES)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration (smtpproxy.toml).")
@click.option("--match", "block", metavar="NAME", help="With --config: the rules of this match block.")
@_rules
@_shipped
@click.option("--on", "subject", metavar="SUBJECT", help="Only rules on this: a subject, e.g. RCPT, or an extension.")
@click.option("--tag", metavar="LABEL", help="Only rules with this tag.")
@click.option("--all", "everything", is_flag=True, help="Also those that are off or that another one has replaced.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a rule, with its why.")
def list_rules(
    config: Path | None,
    block: str | None,
    rules: Sequence[str],
    no_shipped_rules: bool,
    subject: str | None,
    tag: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """List the rules in force, in the order they are tried: what each is about, its mode, its tags, where it stands.

    The last column tells what becomes of it: which rule of the same name it replaces, and that it never gets a word in
    because another one always decides first. With --all, rules that are off or were replaced follow.

    Without --config and --rules these are the rules that come with smtpproxy.

    \b
    Examples:
      smtpproxy rules list --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy rules list --config /etc/smtpproxy/smtpproxy.toml --match lab --on RCPT
      smtpproxy rules list --rules /etc/smtpproxy/rules --rules set:outbound-guard --no-shipped-rules
      smtpproxy rules list --rules site.toml --all --json | jq -r 'select(.replaced_by) | .name'
    """
    if config is not None and (rules or no_shipped_rules):
        raise click.UsageError("Say --config, or --rules and --no-shipped-rules.")
    if block is not None and config is None:
        raise click.UsageError("--match goes with --config.")
    loaded = _of_config(config, block) if config is not None else _loaded(map(Path, rules), not no_shipped_rules)
    shown = [
        one
        for one in loaded.listed
        if (everything or one.in_force)
        and (subject is None or _is_on(one, subject))
        and (tag is None or (one.rule is not None and tag in one.rule.tags))
    ]
    if as_json:
        for one in shown:
            click.echo(json.dumps(_as_json(one)))
        return
    rows = [(one.name, _about(one), one.mode, " ".join(_tags(one)), str(one.source), _remark(one)) for one in shown]
    for line in table(("NAME", "ON", "MODE", "TAGS", "FROM", ""), rows):
        click.echo(line)


def _of_config(path: Path, block: str | None) -> "Loaded":
    """The rules that are in force by a configuration, or in one of its match blocks."""
    from smtpproxy.config import ConfigError, load_config

    try:  # whether the files it names are there is for `check` to say
        config = load_config(path, look=lambda config: ())
    except ConfigError as error:
        _give_up(error.problems)
    own: list[Path] = []
    if block is not None:
        found = [match for match in config.matches if match.name == block]
        if not found:
            names = ", ".join(match.name for match in config.matches) or "none"
            raise click.UsageError(f"{path} has no match block {block!r} (it has {names}).")
        own += map(Path, found[0].rules)
    return _loaded(config.rule_paths, config.shipped_rules, block=own)


def _loaded(
    paths: Iterable[Path], shipped: bool, counters: "Counters | None" = None, block: Sequence[Path] = ()
) -> "Loaded":
    """The rules; if anything is wrong with them, it is told and that is the end."""
    from smtpproxy.policy.load import load_rules

    loaded = load_rules(list(paths), block=block, shipped=shipped, counters=counters)
    if not loaded.ok:
        _give_up(problem for problem in loaded.problems if problem.severity == "error")
    return loaded


def _is_on(one: "Listed", subject: str) -> bool:
    """The rule is about it: a subject, in any case and by any alias of a verb, or an extension."""
    from smtpproxy.policy.rules import ExtensionRule
    from smtpproxy.policy.subjects import subject as find
    from smtpproxy.smtp.registry.features import feature

    rule, about, asked = one.rule, find(subject), feature(subject)
    if rule is None:
        return False
    if isinstance(rule, ExtensionRule):
        mine = rule.feature
        return asked is not None and (
            asked.name == mine.name or bool(asked.keywords & mine.keywords) or bool(asked.verbs & mine.verbs)
        )
    if about is None:
        return False
    return any(
        about == mine or (about.group is mine.group and bool({about.verb, *about.verbs} & {mine.verb, *mine.verbs}))
        for mine in rule.subjects
    )


def _about(one: "Listed") -> str:
    from smtpproxy.policy.rules import ExtensionRule

    if one.rule is None:
        return "-"
    if isinstance(one.rule, ExtensionRule):
        return f"extension {one.rule.feature.name}"
    return ", ".join(map(str, one.rule.subjects))


def _tags(one: "Listed") -> tuple[str, ...]:
    return one.rule.tags if one.rule is not None else ()


def _remark(one: "Listed") -> str:
    """What becomes of it beside what it says."""
    said = []
    if one.replaced is not None:
        said.append(f"replaced by {one.replaced}")
    if one.shadowed:
        said.append(f"{one.shadowed} always decides first")
    if one.replaces and one.replaced is None:
        said.append(f"{'takes out' if one.rule is None else 'replaces'} {one.replaces[0]}")
    return "; ".join(said)


def _as_json(one: "Listed") -> dict[str, Any]:
    return {
        "name": one.name,
        "on": _about(one),
        "mode": one.mode,
        "in_force": one.in_force,
        "tags": list(_tags(one)),
        "origin": one.origin,
        "file": one.source.file,
        "line": one.source.line,
        "why": one.why,
        "replaces": list(map(str, one.replaces)),
        "replaced_by": str(one.replaced) if one.replaced is not None else None,
        "shadowed_by": one.shadowed or None,
    }


# ---------------------------------------------------------------------------------------------------------------- test


@rules.command("test", short_help="Test rules by their playbooks.", epilog=_TEST_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--rules",
    multiple=True,
    metavar="PATH",
    help="Play by these rules, in place of those that stand beside the playbooks. May be repeated.",
)
@_shipped
@click.option("--strict", is_flag=True, help="A rule without a test is a failure.")
@click.option("--coverage", "show_coverage", is_flag=True, help="Show for each rule the cases that test it.")
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the results as JUnit's XML."
)
def test(
    paths: Sequence[str],
    rules: Sequence[str],
    no_shipped_rules: bool,
    strict: bool,
    show_coverage: bool,
    junit: Path | None,
) -> None:
    """Test rules by their playbooks: sessions written down line by line, played by the rules, and compared.

    A PATH is a rule file, a playbook, a directory of both, or set:NAME. The playbook NAME.play belongs to the rules
    NAME.toml beside it. All rules that are named, and those that come with smtpproxy, are in force together; each case
    is played whole, octet by octet, and cut at random. docs/rules-testing.md says how playbooks are written.

    What went wrong is told with the line of the playbook and the difference: - should have been, + was. Then comes
    which of the rules no case shows at work.

    \b
    Examples:
      smtpproxy rules test /etc/smtpproxy/rules
      smtpproxy rules test rules/30-limits.toml rules/40-quarantine.play --coverage
      smtpproxy rules test tests/ --rules rules/ --strict --junit results.xml
    """
    from smtpproxy.policy.rates import Counters
    from smtpproxy.proving import playbook, testing

    given = testing.gather(paths)
    missing = [path for path in map(Path, paths) if not str(path).startswith(testing.SET) and not path.exists()]
    if missing:
        raise click.UsageError(f"There is no {missing[0]}.")
    cases, problems = testing.cases_of(given.playbooks)
    by = [*map(Path, rules)] or [*given.rules]
    counters = Counters()
    loaded = _loaded(by, not no_shipped_rules, counters)
    if problems:
        _give_up(problems)
    if not cases:
        click.echo(f"smtpproxy: no playbook (NAME{playbook.SUFFIX}) belongs to {' '.join(paths)}", err=True)
    results = []
    for result in testing.run(cases, loaded.rules, counters):
        results.append(result)
        _tell(result)
    covered = testing.coverage(testing.rules_from(loaded, by), results)
    untested = [one.rule for one in covered if not one.cases]
    _sum_up(results, covered, strict, show_coverage)
    if junit is not None:
        _write(junit, testing.junit(results, untested if strict else ()))
    failed = any(result.wrong for result in results) or (strict and bool(untested)) or not cases
    sys.exit(FAILED if failed else 0)


def _tell(result: "Result") -> None:
    """One line a case; what is wrong with it below."""
    click.echo(f"{'FAIL' if result.wrong else 'pass'}  {result.case.where}: {result.case.name}")
    for line in result.wrong.splitlines():
        click.echo(f"      {printable(line)}")


def _sum_up(results: "Sequence[Result]", covered: "Sequence[Covered]", strict: bool, whole: bool) -> None:
    failed = sum(bool(result.wrong) for result in results)
    seconds = sum(result.seconds for result in results)
    click.echo()
    click.echo(f"{count(len(results), 'case')}: {len(results) - failed} passed, {failed} failed, in {seconds:.2f} s")
    with_test = sum(bool(one.cases) for one in covered)
    if covered:
        percent = with_test * 100 // len(covered)
        click.echo(f"{count(len(covered), 'rule')}: {with_test} tested ({percent} %)")
    if whole:
        rows = [(one.rule.name, str(one.rule.source), *_shown(one)) for one in covered]
        for line in table(("RULE", "FROM", "CASES", "SHOWN AS", "IN"), rows):
            click.echo(f"  {line}")
        return
    word = "FAIL" if strict else "note"
    for one in covered:
        if not one.cases:
            click.echo(f"{word}  {one.rule.source}: rule {one.rule.name} has no test")


def _shown(one: "Covered") -> tuple[str, str, str]:
    hows = sorted({how for _, shown in one.cases for how in shown})
    return str(len(one.cases)), ", ".join(hows) or "NO TEST", "; ".join(case.name for case, _ in one.cases)


def _write(path: Path, octets: bytes) -> None:
    """All of it or nothing."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(octets)
        beside.replace(path)
    except OSError as error:
        click.echo(f"smtpproxy: {path} can't be written: {error.strerror}", err=True)
        sys.exit(WRONG)


# ---------------------------------------------------------------------------------------------------------------- both


def _give_up(problems: "Iterable[Problem]") -> NoReturn:
    for problem in problems:
        click.echo(problem.show(), err=True)
    sys.exit(WRONG)

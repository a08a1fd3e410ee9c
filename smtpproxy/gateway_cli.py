"""The commands `smtpproxy nft` and `smtpproxy doctor`: what a gateway has to be given, and what this one lacks.

Both only print. What is heavy to import is imported by the command that needs it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpproxy.config import Config
    from smtpproxy.config.inline import Mode, WhenDown

# As in config.inline, which is not imported to say --help; a test compares them.
MODES = ("forward", "redirect", "tproxy")
WHEN_DOWN = ("bypass", "refuse", "hold")

MISSING, WRONG = 1, 2
_HELP = {"help_option_names": ["-h", "--help"]}

_config = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration (smtpproxy.toml).",
)


@click.command(short_help="Print the nftables rules that lead connections to the proxy.", context_settings=_HELP)
@click.argument("modes", nargs=-1, required=True, metavar="MODE...", type=click.Choice(MODES))
@_config
@click.option(
    "--when-down",
    type=click.Choice(WHEN_DOWN),
    help="What clients meet while there is no proxy, in place of what each listener says: bypass, they reach the server"
    " directly; refuse, a reset; hold, no answer, and their TCP asks again.",
)
@click.option(
    "--watchdog",
    is_flag=True,
    help="For all listeners the proxy counts as down, too, when smtpproxy-watchdog gets no answer of it. Mode redirect"
    " with bypass or hold is always so.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the text there; on an error what is there stays.",
)
def nft(modes: "Sequence[Mode]", path: Path, when_down: "WhenDown | None", watchdog: bool, output: Path | None) -> None:
    """Print the nftables rules that lead connections to the listeners of a MODE: redirect or tproxy, or both of them;
    forward is for listeners with source = "client", whose servers' answers have to find back.

    Nothing is applied. The comments at the top say how to load the text, which routes and sysctls it needs, and how to
    take it all away. What is led here is said by [listener.intercept] in the configuration. This machine's own
    addresses never are; nor is a connection that began before the rules were loaded.

    \b
    Examples:
      smtpproxy nft tproxy --config /etc/smtpproxy/smtpproxy.toml --output /etc/smtpproxy/smtpproxy.nft
      smtpproxy nft redirect --config /etc/smtpproxy/smtpproxy.toml | nft -f -
      smtpproxy nft tproxy redirect --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy nft tproxy --config /etc/smtpproxy/smtpproxy.toml --when-down bypass --watchdog
    """
    from smtpproxy.gateway.nft import SAY_CONTROL, NftError, Options, needs_watchdog, text

    config = _load(path)
    options = Options(tuple(dict.fromkeys(modes)), when_down, watchdog)
    try:
        printed = text(config, options, str(path))
        if output is None:
            click.echo(printed, nl=False)
        else:
            _write(output, printed)
    except (NftError, OSError) as error:
        click.echo(f"smtpproxy: {error}", err=True)
        sys.exit(WRONG)
    if needs_watchdog(config, options) and not config.process.control:
        click.echo(f"smtpproxy: warning: smtpproxy-watchdog has to ask the proxy how it is: {SAY_CONTROL}", err=True)


@click.command(short_help="Tell what this machine lacks for what is configured.", context_settings=_HELP)
@_config
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def doctor(path: Path, as_json: bool) -> None:
    """Tell what this machine lacks for the listeners that are configured, and the command that mends it.

    Privileges, sysctls, routes, nftables rules, what the kernel can do, and limits. Nothing is changed. Run it as root
    on the gateway itself: others can't see all of it, and what was not seen is said.

    An error ends it with 1: mail will not get through, or will go uninspected. A warning does not. 2: the configuration
    is wrong.

    \b
    Examples:
      smtpproxy doctor --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy doctor --config smtpproxy.toml --json | jq -r '.findings[].mend'
    """
    from smtpproxy.gateway.doctor import examine

    findings = examine(_load(path), str(path))
    missing = any(finding.severity == "error" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not missing, "findings": [finding._asdict() for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.severity}: {finding.check}: {finding.what}")
            click.echo(f"    {finding.mend}")
        if not findings:
            click.echo("ok: nothing is missing")
    sys.exit(MISSING if missing else 0)


def _write(path: Path, text: str) -> None:
    """All of it or nothing: who loads the file meanwhile finds the one or the other."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _load(path: Path) -> "Config":
    from smtpproxy.config import ConfigError, load_config

    try:  # whether the files it names are there is for `check` to say
        return load_config(path, look=lambda config: ())
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem.show(), err=True)
        sys.exit(WRONG)

"""The command `smtpproxy explain`: what is known of a name, of SMTP's or of rules."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence

import click
from click.shell_completion import CompletionItem

WRONG = 2
KINDS = ("field", "subject", "act", "function")  # as in explain_rules, which is not imported to say --help


def _complete_name(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from smtpproxy import explain, explain_rules

    said: Sequence[str] = context.params.get("names") or ()
    if said and said[0] in KINDS:
        return _items(explain_rules.names(said[0]), begun)
    kinds = [(kind, f"a {kind} of rules") for kind in KINDS if not said]
    return _items(kinds, begun) + _items(explain.names(), begun.upper())


def _items(names: Iterable[tuple[str, str]], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=what) for name, what in names if name.startswith(begun)]


@click.command(short_help="Tell what is known of a name of SMTP's, or of rules.")
@click.argument("names", nargs=-1, metavar="[KIND] NAME...", shell_complete=_complete_name)
@click.option("--list", "as_list", is_flag=True, help="All the names that can be explained.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
def explain(names: Sequence[str], as_list: bool, as_json: bool) -> None:
    """Tell what is known of a verb, EHLO keyword, parameter or reply code; or of what rules are made of.

    What it is for, its grammar, what it does to the session, what smtpproxy does with it when no rule says otherwise
    and why, and where it is documented.

    With KIND (field, subject, act or function) the names are those of rules, and without a NAME all of them are listed.

    \b
    Examples:
      smtpproxy explain BDAT
      smtpproxy explain xexch50 552
      smtpproxy explain --list
      smtpproxy explain AUTH --json | jq '.parts[].default'
      smtpproxy explain field rcpt.domain
      smtpproxy explain subject "RCPT reply"
      smtpproxy explain act
    """
    from smtpproxy import explain as registry
    from smtpproxy import explain_rules as rules

    if names and names[0] in KINDS:
        kind, names = names[0], names[1:]
        if as_list and names:
            raise click.UsageError("Say a NAME, or --list.")
        if not names:
            _list(rules.names(kind), as_json)
        else:
            _tell(names, lambda name: rules.explain(kind, name), lambda name: rules.explain_json(kind, name), as_json)
        return
    if as_list == bool(names):
        raise click.UsageError("Say a NAME, or --list.")
    if as_list:
        _list(registry.names(), as_json)
    else:
        _tell(names, registry.explain, registry.explain_json, as_json)


def _list(names: Iterable[tuple[str, str]], as_json: bool) -> None:
    for name, what in names:
        click.echo(json.dumps({"name": name, "is": what}) if as_json else f"{name:<20} {what}")


def _tell(
    names: Iterable[str], text: Callable[[str], str], values: Callable[[str], dict[str, object]], as_json: bool
) -> None:
    from smtpproxy.explain import UnknownName

    told, unknown = [], []
    for name in names:
        try:
            told.append(json.dumps(values(name)) + "\n" if as_json else text(name))
        except UnknownName as error:
            unknown.append(f"smtpproxy: {error}" + (f" (nearest: {', '.join(error.nearest)})" if error.nearest else ""))
    click.echo(("" if as_json else "\n").join(told), nl=False)
    for line in unknown:
        click.echo(line, err=True)
    if unknown:
        sys.exit(WRONG)

"""The commands `smtpproxy audit search`, `tail` and `stats`: asking the record.

All three have the same filters (inquiry/filters.py). What they print was chosen by peers in part, and is made printable
before it goes anywhere (inquiry/wording.py).
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

import click

from smtpproxy.audit_options import prints, say, store_option, write
from smtpproxy.columns import printable
from smtpproxy.inquiry import wording
from smtpproxy.inquiry.counting import NAMES, Count, Counting
from smtpproxy.inquiry.filters import OPTIONS, Question, question
from smtpproxy.inquiry.matching import Tail
from smtpproxy.inquiry.plotting import bars
from smtpproxy.inquiry.searching import Search, unknown
from smtpproxy.store.reading import Reader, open_reader

_NUMBER: Final = click.IntRange(0, 1_000_000_000)  # of what is shown
POLL: Final = 0.2  # seconds between two looks at what has come
_HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SUMMARY: Final = ("outcome", "verdict", "rule", "anomaly", "reply", "tls", "domain", "day")
_MOST_IN_SUMMARY: Final = 5
_DAYS_IN_SUMMARY: Final = 31

_EXIT_CODES: Final = """\
\b
Exit codes:
  0  the record was asked, whatever was found
  2  the configuration or the command line is wrong
  3  the store can't be read
"""


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which mails are meant, as `asked`, a Question."""

    @functools.wraps(command)
    def narrowed(*args: Any, since: str | None, until: str | None, **options: Any) -> None:
        words = {name: options.pop(name.replace("-", "_")) for name in OPTIONS}
        try:
            asked = question(words, since=since, until=until, now=time.time())
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        command(*args, asked=asked, **options)

    decorated: Callable[..., None] = narrowed
    for name, option in reversed(OPTIONS.items()):
        decorated = click.option(f"--{name}", multiple=True, metavar=option.metavar, help=option.help)(decorated)
    until_help = "Before then; a day is until its end."
    decorated = click.option("--until", metavar="WHEN", help=until_help)(decorated)
    since_help = "From then on: 2h, yesterday, 2026-11-24, 2026-11-24T10:00:00Z. Without a zone it is UTC."
    return click.option("--since", metavar="WHEN", help=since_help)(decorated)


# -------------------------------------------------------------------------------------------------------------- search


@click.command(short_help="Find mails, and sessions without any.", epilog=_EXIT_CODES, context_settings=_HELP)
@filters
@click.option("--limit", type=_NUMBER, default=100, show_default=True, help="So many at most; 0 is all.")
@click.option("--oldest-first", is_flag=True, help="The oldest, in place of the newest.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV, with a head.")
@store_option
def search(where: str, asked: Question, limit: int, oldest_first: bool, as_json: bool, as_csv: bool) -> None:
    """Find mails, the newest first; and sessions that never had one.

    All filters must hold. Of an option that is said several times, one value must. In names and addresses * stands for
    anything.

    \b
    Examples:
      smtpproxy audit search --recipient alice@example.org --since 2h
      smtpproxy audit search --sender '*@example.org' --outcome server --reply 4xx
      smtpproxy audit search --client 192.0.2.0/24 --tls none --since yesterday --until yesterday
      smtpproxy audit search --rule no-macros --size '>1M' --limit 0 --csv > mails.csv
      smtpproxy audit search --message-id 20261124.1234@example.org --json | jq -r .session
    """
    _one_format(as_json, as_csv)
    with closing(open_reader(where)) as reader:
        check_names(reader, asked)
        results = Search(reader, asked).newest(limit, oldest=oldest_first)
        if as_json:
            write(map(wording.json_line, results))
        elif as_csv:
            write(wording.csv_of(results))
        elif found := list(results):
            for line, colour in wording.rows(found):
                say(line, colour)
            if len(found) == limit:
                click.echo(f"smtpproxy: there may be more than these {limit}: --limit 0 shows all", err=True)


# ---------------------------------------------------------------------------------------------------------------- tail


@click.command(short_help="Show what comes.", epilog=_EXIT_CODES, context_settings=_HELP)
@filters
@click.option("-f", "--follow", is_flag=True, help="Go on, and show what comes.")
@click.option("-n", "number", type=_NUMBER, default=20, show_default=True, help="The last so many before.")
@click.option("--records", is_flag=True, help="Every record.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
@store_option
def tail(where: str, asked: Question, follow: bool, number: int, records: bool, as_json: bool) -> None:
    """Show the end of the record: mails, commands that were refused, anomalies, what rules did.

    The filters are those of a search. Ctrl-C ends it.

    \b
    Examples:
      smtpproxy audit tail -n 50
      smtpproxy audit tail --follow --domain example.org
      smtpproxy audit tail --follow --reply 4xx --reply 5xx
      smtpproxy audit tail --follow --records --session 4d9d6b7a53-1 --json
    """
    with closing(open_reader(where)) as reader:
        check_names(reader, asked)
        shown = Tail(reader, asked, records=records)
        found: Iterable[Any] = shown.last(number)
        if follow:
            found = itertools.chain(found, shown.follow(_wait))
        for one in found:
            say(wording.json_line(one) if as_json else wording.line(one), None if as_json else wording.colour(one))


def _wait() -> None:
    time.sleep(POLL)


# --------------------------------------------------------------------------------------------------------------- stats


@click.command(short_help="Count mails, and show them as bars.", epilog=_EXIT_CODES, context_settings=_HELP)
@filters
@click.option("--by", type=click.Choice(NAMES), metavar="WHAT", help=f"Count by this: {', '.join(NAMES)}.")
@click.option("--limit", type=_NUMBER, default=20, show_default=True, help="So many names; 0 is all.")
@click.option("--ascii", "ascii_only", is_flag=True, help="Bars of # signs.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV, with a head.")
@store_option
def stats(
    where: str, asked: Question, by: str | None, limit: int, ascii_only: bool, as_json: bool, as_csv: bool
) -> None:
    """Count mails, and sessions that never had one; without --by, by what is most often asked for.

    A mail counts for each of its names: with recipients in two domains it counts for both. Hours and days are UTC's.

    \b
    Examples:
      smtpproxy audit stats --since 7d
      smtpproxy audit stats --by rule --verdict answer --since yesterday
      smtpproxy audit stats --by hour --since today
      smtpproxy audit stats --by sender-domain --reply 5xx --limit 0 --csv
    """
    _one_format(as_json, as_csv)
    with closing(open_reader(where)) as reader:
        check_names(reader, asked)
        counting = Counting(reader, asked)
        try:
            counts = [(name, counting.by(name)) for name in ([by] if by else _SUMMARY)]
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        kept = [(name, _kept(name, found, limit, whole=by is not None)) for name, found in counts]
        flat = [(name, one) for name, found in kept for one in found]
        if as_json:
            write(wording.json_of_count(name, one) for name, one in flat)
        elif as_csv:
            write(wording.csv_of_counts(flat))
        elif by:
            _draw(kept[0][1], ascii_only)
            _left_out(len(counts[0][1]) - len(kept[0][1]))
        else:
            say(f"{counting.total():,} mails and sessions without any")
            for name, found in kept:
                if found:
                    say(f"\n{name.upper()}")
                    _draw(found, ascii_only)


def _kept(name: str, found: list[Count], limit: int, *, whole: bool) -> list[Count]:
    """Those that are shown. Days and hours are in order, and not cut but in a summary, which has the last."""
    if name in ("hour", "day"):
        return found if whole else found[-_DAYS_IN_SUMMARY:]
    most = limit if whole else min(limit or _MOST_IN_SUMMARY, _MOST_IN_SUMMARY)
    return found[:most] if most else found


def _draw(found: list[Count], ascii_only: bool) -> None:
    plain = ascii_only or not prints("█▏…")
    for line in bars(found, shutil.get_terminal_size().columns, ascii_only=plain):
        say(line)


def _left_out(number: int) -> None:
    if number > 0:
        click.echo(f"smtpproxy: {number:,} more: --limit 0 shows all", err=True)


# -------------------------------------------------------------------------------------------------------------- shared


def _one_format(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise click.UsageError("Say --json or --csv, not both.")


def check_names(reader: Reader, asked: Question) -> None:
    """A name that can't be is an error; of one that only does not occur there may be some tomorrow."""
    for wrong, text in unknown(reader, asked):
        if wrong:
            raise click.UsageError(printable(text))
        click.echo(f"smtpproxy: {printable(text)}", err=True)


COMMANDS: Final = [search, tail, stats]

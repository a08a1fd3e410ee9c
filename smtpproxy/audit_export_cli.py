"""The command `smtpproxy audit export`: the record for other programs."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import click

from smtpproxy.audit_asking_cli import check_names, filters
from smtpproxy.audit_options import UNREADABLE, USAGE, fail, of_record, store_option, write
from smtpproxy.columns import printable
from smtpproxy.inquiry import ecs, ocsf, parquet
from smtpproxy.inquiry.exporting import mails, records
from smtpproxy.inquiry.filters import Question
from smtpproxy.store.reading import Reader, open_reader

INTERRUPTED: Final = 130  # exit code, as shells have it after Ctrl-C
FORMATS: Final = ("jsonl", "ecs", "ocsf", "parquet")


@click.command(short_help="Hand the record on: as it is, as ECS, OCSF or Parquet.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="What it becomes."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file: for its owner alone, and there once it is whole.",
)
@filters
@store_option
def export(where: str, asked: Question, form: str, output: Path | None) -> None:
    """Hand the record on, the oldest first.

    \b
    jsonl    the records as they are in the store: of the time that is said, or
             with other filters all of the sessions whose mails pass
    ecs      a document of the Elastic Common Schema for each mail, a line each
    ocsf     an event of OCSF for each mail (Email Activity) and each session
             without one (Network Activity), a line each
    parquet  a table of the mails; it takes the extra smtpproxy[export]

    The filters are those of a search.

    \b
    Examples:
      smtpproxy audit export --format ecs --since yesterday > mails.ndjson
      smtpproxy audit export --format ocsf --verdict answer --since 7d
      smtpproxy audit export --format parquet --output november.parquet --since 2026-11-01
      smtpproxy audit export --session 4d9d6b7a53-1 | jq -c .
    \b
    Exit codes: 0 done · 2 the command line is wrong · 3 the store can't be read,
    or the file not written · 130 Ctrl-C
    """
    if form == "parquet" and output is None:
        raise click.UsageError("A Parquet file is no text: say --output FILE.")
    if output is not None:
        output = _place(output)
    with closing(open_reader(where)) as reader:
        check_names(reader, asked)
        try:
            if form == "parquet" and output is not None:
                with _ending_in_order():
                    parquet.write(mails(reader, asked), output)
            elif output is not None:
                with _ending_in_order():
                    _to_file(_lines(reader, asked, form, bytes.decode), output)
            else:
                write(_lines(reader, asked, form, of_record))
        except ImportError as error:
            fail(f'Parquet needs more, and {error.name} can\'t be imported: pip install "smtpproxy[export]"', USAGE)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)  # it is not whole: who goes on only if all is well must not go on
        except OSError as error:
            if output is None:
                raise  # which is seen to where nobody reads on, too
            fail(f"{output} can't be written: {error.strerror or error}", UNREADABLE)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Told to end (SIGTERM), it takes away what it began, as after Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines(reader: Reader, asked: Question, form: str, as_text: Callable[[bytes], str]) -> Iterator[str]:
    if form == "jsonl":
        yield from map(as_text, records(reader, asked))
        return
    for mail in mails(reader, asked):
        yield json.dumps(ecs.document(mail) if form == "ecs" else ocsf.event(mail), separators=(",", ":"))


def _place(output: Path) -> Path:
    """Where the file goes: a link stays, and leads to it. What is there and is no file must not be replaced by one."""
    try:
        place = output.resolve()
        if not place.exists() or place.is_file():
            return place
    except (OSError, RuntimeError) as error:  # a name that is too long, a link that leads to itself
        fail(f"{output} can't be written: {getattr(error, 'strerror', None) or error}", UNREADABLE)
    raise click.UsageError(f"{printable(str(output))} is no file. Without --output it goes to standard output.")


def _to_file(lines: Iterator[str], output: Path) -> None:
    """All of it, or nothing."""
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, output)
    except BaseException:
        os.unlink(name)
        raise


COMMANDS: Final[list[click.Command]] = [export]

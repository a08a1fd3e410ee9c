"""The command `smtpproxy audit show`: a session as it was, in four columns."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import click

from smtpproxy.audit_options import USAGE, coloured, fail, of_record, say, store_option
from smtpproxy.inquiry.fourcolumns import Columns
from smtpproxy.inquiry.showing import MOST, Piece, find, nearest, of_message, shown
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.schema import GATEWAY_SHIFT

_COLOURS: Final = ("auto", "always", "never")


@click.command(short_help="Show a session: what was asked, sent, got and told.")
@click.argument("session", nargs=-1)
@click.option("--message-id", metavar="ID", help="The session of the mail with this Message-ID.")
@click.option("--full", is_flag=True, help="Nothing is cut off; transcripts and digests too.")
@click.option("--width", type=click.IntRange(40, 10_000), help="Columns; else as many as the terminal has.")
@click.option("--colour", "--color", type=click.Choice(_COLOURS), default="auto", show_default=True, help="When.")
@click.option("--json", "as_json", is_flag=True, help="The records themselves, one JSON object a line.")
@store_option
def show(
    where: str,
    session: tuple[str, ...],
    message_id: str | None,
    full: bool,
    width: int | None,
    colour: str,
    as_json: bool,
) -> None:
    """Show sessions: in four columns what the client asked, what was sent to the server, what was got from it, what the
    client was told.

    An = stands where what went on is what came in. Below are the rules that acted, anomalies and tags, and where a mail
    was over, what became of it. The beginning of a session's name is enough, if it fits no other.

    \b
    Examples:
      smtpproxy audit show 4d9d6b7a53-1
      smtpproxy audit show --message-id '<1@example.org>' --full
      smtpproxy audit show 4d9d6b7a53-1 --json | jq -c 'select(.anomalies)'
    \b
    Exit codes: 0 it was shown · 2 there is no such session · 3 the store can't be read
    """
    if not session and message_id is None:
        raise click.UsageError("Which session? Say its name, as `smtpproxy audit search` shows it, or --message-id ID.")
    for text in (*session, message_id or ""):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"{text!r} is no UTF-8, and so is no name") from None
    with closing(open_reader(where)) as reader:
        found = _of_message(reader, message_id) if message_id is not None else []
        for name in session:
            found.append(_one(reader, name))
        columns = Columns(width or shutil.get_terminal_size().columns, whole=full)
        painted = colour == "always" or (colour == "auto" and coloured())
        for at, number in enumerate(dict.fromkeys(found)):
            lines = reader.session_lines(number)
            if as_json:
                for _, line in lines:
                    say(of_record(line))
                continue
            if at:
                say("")
            for text in _painted(shown(lines, columns, full=full, gateway=number >> GATEWAY_SHIFT), painted=painted):
                say(text, painted=painted)


def _of_message(reader: Reader, message_id: str) -> list[int]:
    found = of_message(reader, message_id)
    if not found:
        fail(f"no mail has the Message-ID {message_id}", USAGE)
    return [number for number, _ in found]


def _one(reader: Reader, name: str) -> int:
    found = find(reader, name)
    if not found:
        meant = nearest(reader, name)
        fail(f"there is no session {name!r}" + (f"; did you mean {' or '.join(meant)}?" if meant else ""), USAGE)
    if len(found) > 1:
        more = " …" if len(found) > MOST else ""
        fail(f"{name!r} may be several: {', '.join(text for _, text in found[:MOST])}{more}", USAGE)
    return found[0][0]


def _painted(lines: Iterator[list[Piece]], *, painted: bool) -> Iterator[str]:
    for pieces in lines:
        if painted:
            yield "".join(_paint(text, colour) for text, colour in pieces)
        else:
            yield "".join(text for text, _ in pieces)


def _paint(text: str, colour: str | None) -> str:
    if colour is None or not text.strip():
        return text
    return (
        click.style(text, dim=True)
        if colour == "dim"
        else (click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour))
    )


COMMANDS: Final[list[click.Command]] = [show]

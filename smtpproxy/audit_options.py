"""What the commands of `smtpproxy audit` have in common: which store they are about, how they print, how they fail."""

import io
import itertools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from smtpproxy.columns import printable
from smtpproxy.store.errors import StoreError

CONFIG: Final = "/etc/smtpproxy/smtpproxy.toml"
FOUND, USAGE, UNREADABLE = 1, 2, 3  # exit codes: the record is not whole; what was asked makes no sense; no store
AT_ONCE: Final = 500  # lines that are written together

_Command = TypeVar("_Command", bound=Callable[..., Any])


def store_option(command: _Command) -> _Command:
    """Gives a command `where`, a directory or the address of a database, and has it end well where the store can't be
    read, where nobody reads on, where what is printed has no room, and at Ctrl-C."""

    @click.option("--store", "store", metavar="STORE", help="Its directory, or postgresql://…; else as configured.")
    @click.option("--config", "config", metavar="FILE", help=f"The configuration that names it, not {CONFIG}.")
    @wraps(command)
    def asked(*args: Any, store: str | None, config: str | None, **options: Any) -> Any:
        try:
            return command(*args, where=store or configured(config), **options)
        except StoreError as error:
            fail(str(error), UNREADABLE)
        except BrokenPipeError:  # who read has seen enough
            _print_no_more()
            sys.exit(0)
        except OSError as error:
            _print_no_more()
            fail(f"{error.filename or 'standard output'} can't be written: {error.strerror or error}", UNREADABLE)
        except KeyboardInterrupt:
            sys.exit(0)

    return asked  # type: ignore[return-value]


def _print_no_more() -> None:
    """Nothing is left to be flushed to standard output when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def configured(config: str | None) -> str:
    """The store that a proxy of this configuration keeps; the rest of the file may be wrong by now. Ends the program
    if there is none."""
    path = Path(config or CONFIG)
    if config is None and not path.exists():
        fail(f"which store? Say --store DIR, or --config FILE: there is no {CONFIG}", USAGE)
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{path} can't be read: {error.strerror}", USAGE)
    except ValueError as error:
        fail(f"{path} is no TOML: {error}", USAGE)
    table = said.get("audit")
    store = table.get("store") if isinstance(table, dict) else None
    if not isinstance(store, str) or not store:
        fail(f'{path} names no store: say store = "/var/lib/smtpproxy/audit" under [audit]', USAGE)
    return str(path.parent / store)


def fail(why: str, code: int) -> NoReturn:
    """Say so on standard error, and end."""
    click.echo(f"smtpproxy: {printable(why)}", err=True)
    sys.exit(code)


def prints(text: str) -> bool:
    """Whether standard output has room for these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def is_terminal() -> bool:
    """Whether standard output is one; it may also be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def coloured() -> bool:
    """Whether standard output is a terminal, and nobody minds colours."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def say(line: str, colour: str | None = None, *, painted: bool = False) -> None:
    """A line on standard output; in colour, if that is a terminal and nobody minds. `painted`: colours are in it, and
    stay there whatever standard output is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal has not is no reason to stop
    if colour and coloured():
        line = click.style(line, fg=colour)
    click.echo(line, color=True if painted else None)


def of_record(line: bytes) -> str:
    """A record as it was written. What a terminal would obey, or standard output can't have, stands as \\u…, which
    means the same in JSON."""
    text = line.decode(errors="replace")
    if not is_terminal():
        return text if text.isascii() or prints(text) else "".join(c if prints(c) else _escaped(c) for c in text)
    return "".join(c if c.isprintable() and prints(c) else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if character < "\x80" else json.dumps(character)[1:-1]


def write(lines: Iterable[str]) -> None:
    """Lines on standard output, many at once."""
    lines = iter(lines)
    while some := list(itertools.islice(lines, AT_ONCE)):
        say("\n".join(some))

"""The command `smtpproxy status`: asks the proxy that runs, and shows what it says, or whether it is well.

It is asked again and again by those who watch a service, so it reads of the configuration only where the proxy can be
asked, and says in one line what is not well.
"""

import json
import os
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from smtpproxy.columns import count, table

if TYPE_CHECKING:
    from smtpproxy.net.control import Status, Worker

WRONG = 2  # as everywhere on the command line
UNWELL = 1

_EXIT_CODES = """\
\b
Exit codes:
  0  the proxy answers; with --check, it is well: a worker serves the configuration in force
  1  nobody answers; with --check, or it is not well
  2  the configuration or the command line is wrong
"""


@click.command(
    short_help="Show how the proxy that runs is doing.",
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration (smtpproxy.toml), whose [process] says where the control socket is.",
)
@click.option(
    "--control", metavar="PATH", help="The control socket itself, for who watches: no file can be in the way then."
)
@click.option("--check", is_flag=True, help="Only tell whether it is well, in one line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output: all that it says.")
def status(config: Path | None, control: str | None, check: bool, as_json: bool) -> None:
    """Show how the proxy that runs is doing: its workers, their sessions, where it listens, since when.

    It is asked at its control socket, which answers root and the user it runs as. Workers of a generation before the
    one in force drain: they serve what they began, by the rules they began with.

    \b
    Examples:
      smtpproxy status --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy status --control /run/smtpproxy/control --check
      smtpproxy status --config /etc/smtpproxy/smtpproxy.toml --json | jq .sessions
    """
    if (config is None) == (control is None):
        raise click.UsageError("Say --config FILE, or --control PATH.")

    from smtpproxy.net.control import ControlError, ask, understood, unwell

    path = _control_of(config) if config is not None else control
    try:
        answer = ask(str(path))
        now = understood(answer)
    except ControlError as error:
        _fail(error, UNWELL)
    if as_json:
        click.echo(json.dumps(answer))
    elif not check:
        click.echo("\n".join(_shown(now, time.time())))
    if check and (why := unwell(now)):
        _fail(why, UNWELL)
    if check and not as_json:
        click.echo(f"ok: {_summary(now)}")


def _control_of(config: Path) -> Path:
    """Where a proxy of this configuration can be asked; the rest of the file may be wrong by now."""
    try:
        said = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        _fail(f"{config} can't be read: {error.strerror}")
    except ValueError as error:
        _fail(f"{config} is no TOML: {error}")
    process = said.get("process")
    control = process.get("control") if isinstance(process, dict) else None
    if not isinstance(control, str) or not control:
        _fail(f'{config} names no control socket: say control = "/run/smtpproxy/control" under [process]')
    path = config.parent / control
    if ".." in path.parts:  # as the proxy does: there is not much room in the name of a socket
        path = Path(os.path.realpath(path.parent), path.name)
    return path


def _shown(now: "Status", wall: float) -> Iterator[str]:
    """All of it, for people."""
    yield f"smtpproxy {now.version}, pid {now.pid}: {now.state}, since {_when(now.since, wall)}"
    if now.loaded:
        yield f"configuration read {_when(now.loaded, wall)}, generation {now.generation}"
    yield _summary(now) + (f"; {count(now.restarts, 'worker')} had to be replaced" if now.restarts else "")
    yield ""
    heads = ("PID", "STATE", "GENERATION", "SESSIONS", "ACCEPTED", "UPTIME", "LAST BEAT")
    yield from table(heads, map(_worker, now.workers), right=(0, 2, 3, 4))
    yield ""
    bound = [(one.name, one.mode, " ".join(one.addresses), one.server or "where clients go") for one in now.listeners]
    yield from table(("LISTENER", "MODE", "LISTENS ON", "SERVER"), bound)


def _worker(one: "Worker") -> tuple[str, ...]:
    beat = "-" if one.beat is None else f"{one.beat:.1f} s ago"
    numbers = (one.generation, one.sessions, one.accepted)
    return (str(one.pid), one.state, *map(str, numbers), _lasting(one.uptime), beat)


def _summary(now: "Status") -> str:
    states = Counter(worker.state for worker in now.workers)
    workers = ", ".join(f"{number} {state}" for state, number in states.items()) or "none"
    return f"workers: {workers}; {count(now.sessions, 'session')}, {now.accepted} accepted"


def _when(at: float, wall: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC ({_lasting(max(wall - at, 0))} ago)"


def _lasting(seconds: float) -> str:
    """How long that is, to two units: 12 s, 5 min, 3 h 20 min, 4 d 3 h."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _fail(why: object, code: int = WRONG) -> NoReturn:
    click.echo(f"smtpproxy: {why}", err=True)
    sys.exit(code)

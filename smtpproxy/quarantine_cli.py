"""The command `smtpproxy quarantine`: list the mails that rules kept, show, release, delete and expire them.

It works on the directory itself, whether a proxy runs or not. What it prints of a mail was written by strangers: what
is no text for a terminal is shown as ?, and a content goes to a pipe or a file only.
"""

import contextlib
import json
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from smtpproxy.columns import printable, table

if TYPE_CHECKING:
    from smtpproxy.quarantine.sending import Encryption
    from smtpproxy.quarantine.store import Mail, Store

FAILED = 1
WRONG = 2  # as everywhere on the command line
_HEADER = 65_536  # octets of a header section that are shown
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_EXIT_CODES = """\
\b
Exit codes:
  0  done, to every mail that was named
  1  not done to one at least, which is said on standard error; done to the others
  2  the configuration, the quarantine or the command line is wrong, and nothing was done
"""


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """Which quarantine."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The configuration (smtpproxy.toml), whose [quarantine] says where the mails are.",
    )
    directory = click.option(
        "--directory", type=click.Path(path_type=Path), metavar="D", help="The directory itself, in place of --config."
    )
    return config(directory(command))


class _Duration(click.ParamType[float]):
    """A duration, in seconds: 12h, 30d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Seconds."""
        from smtpproxy.policy.toml import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error} (e.g. 12h, 30d)", param, ctx)


class _Moment(_Duration):
    """A moment: a date, a date and time (UTC), or how long ago; in seconds since 1970."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Seconds since 1970."""
        if not isinstance(value, str) or not re.match(r"\d{4}-", value):
            return time.time() - super().convert(value, param, ctx)
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date and no duration (e.g. 2026-11-23, 2026-11-23T10:00, 12h)", param, ctx)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


@click.group(
    short_help="List, show, release and erase the mails that rules kept.",
    epilog=_EXIT_CODES,
    context_settings=_HELP,
)
def quarantine() -> None:
    """List the mails that rules kept back, look at them, send them on, erase them.

    A rule with `quarantine` keeps a mail in the directory of [quarantine]. Nothing happens to it there until one of
    these commands is given, or it is older than `days` says.

    \b
    Examples:
      smtpproxy quarantine list --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy quarantine show --config /etc/smtpproxy/smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine release --config /etc/smtpproxy/smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine delete --config /etc/smtpproxy/smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine expire --config /etc/smtpproxy/smtpproxy.toml --older 30d
    """


# --------------------------------------------------------------------------------------------------------------- list


@quarantine.command("list", short_help="List the mails.", epilog=_EXIT_CODES)
@_where
@click.option("--rule", metavar="NAME", help="Those that this rule kept.")
@click.option("--sender", metavar="ADDRESS", help="Those from there; * stands for anything: '*@x.example'.")
@click.option("--recipient", metavar="ADDRESS", help="Those to there, among others; * stands for anything.")
@click.option("--since", type=_Moment(), metavar="WHEN", help="Those kept since a date (UTC), or 12h, 7d ago.")
@click.option("--released", is_flag=True, help="Those that were released, in place of those that were not.")
@click.option("--json", "as_json", is_flag=True, help="Their records: JSON, one object a line.")
def list_(
    config: Path | None,
    directory: Path | None,
    rule: str | None,
    sender: str | None,
    recipient: str | None,
    since: float | None,
    released: bool,
    as_json: bool,
) -> None:
    """List the mails, the oldest first: name, the rule that kept it, octets, from whom, to whom.

    \b
    Examples:
      smtpproxy quarantine list --directory /var/lib/smtpproxy/quarantine
      smtpproxy quarantine list --config smtpproxy.toml --rule no-macros --since 7d
      smtpproxy quarantine list --config smtpproxy.toml --sender '*@partner.example' --json | jq -r .name
      smtpproxy quarantine list --config smtpproxy.toml --released --recipient ann@here.example
    """
    from smtpproxy.quarantine.store import NEW, RELEASED

    with _opened(config, directory) as store:
        found = [
            mail
            for mail in store.mails(RELEASED if released else NEW)
            if (rule is None or mail.record.get("rule") == rule)
            and (since is None or mail.kept_at >= since)
            and (sender is None or _fits(sender, [mail.record.get("mail")]))
            and (recipient is None or _fits(recipient, mail.record.get("rcpt")))
        ]
    if as_json:
        for mail in found:
            click.echo(json.dumps({**mail.record, "name": mail.name, "state": mail.state}))
    elif found:
        rows = [_row(mail) for mail in found]
        click.echo("\n".join(table(("NAME", "RULE", "OCTETS", "FROM", "TO"), rows)))


def _fits(pattern: str, addresses: object) -> bool:
    """One of the addresses does, in any case."""
    if not isinstance(addresses, list):
        return False
    return any(isinstance(one, str) and fnmatchcase(one.casefold(), pattern.casefold()) for one in addresses)


def _row(mail: "Mail") -> tuple[str, ...]:
    record = mail.record
    if not record:
        return mail.name, "(no record)", "", "", ""
    rcpt = record.get("rcpt")
    first = [str(one) for one in rcpt] if isinstance(rcpt, list) else []
    more = f" and {len(first) - 1} more" if len(first) > 1 else ""
    return (
        mail.name,
        str(record.get("rule", "")),
        str(record.get("octets", "")),
        f"<{record.get('mail', '')}>",
        (f"<{first[0]}>{more}" if first else ""),
    )


# --------------------------------------------------------------------------------------------------------------- show


@quarantine.command(short_help="Show a mail: its record, its header section, its content.", epilog=_EXIT_CODES)
@_where
@click.option("--content", is_flag=True, help="Its content and nothing else, octet for octet; not for a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Its record: one JSON object.")
@click.argument("name", metavar="NAME")
def show(config: Path | None, directory: Path | None, content: bool, as_json: bool, name: str) -> None:
    """Show a mail: its record, and behind an empty line its header section.

    \b
    Examples:
      smtpproxy quarantine show --config smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine show --config smtpproxy.toml --content 20261123T101500Z-0123456789ab > mail.eml
      smtpproxy quarantine show --config smtpproxy.toml --json 20261123T101500Z-0123456789ab | jq .rcpt
    """
    from smtpproxy.quarantine.store import QuarantineError

    if content and as_json:
        raise click.UsageError("Say --content or --json, not both.")
    if content and sys.stdout.isatty():
        raise click.UsageError("A content may hold what a terminal obeys: say > FILE, or | less.")
    with _opened(config, directory) as store:
        try:
            mail = store.find(name)
            with store.content(mail) as file:
                if content:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                    return
                header = file.read(_HEADER)
        except QuarantineError as error:
            _fail(error, FAILED)
    if as_json:
        click.echo(json.dumps({**mail.record, "name": mail.name, "state": mail.state}))
        return
    for key, value in {"state": mail.state, **mail.record}.items():
        click.echo(f"{key:<16}{_plain(value)}")
    click.echo()
    section = header.partition(b"\r\n\r\n")[0]
    for line in section.decode("utf-8", "replace").split("\r\n"):
        click.echo(printable(line))


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)


# ------------------------------------------------------------------------------------------------------------ release


@quarantine.command(short_help="Send mails on.", epilog=_EXIT_CODES)
@_where
@click.option(
    "--server", metavar="HOST:PORT", help="Where to, in place of the server it was meant for. Without a port it is 25."
)
@click.option(
    "--to", multiple=True, metavar="ADDRESS", help="To whom, in place of its recipients. May be repeated, not for all."
)
@click.option(
    "--tls",
    "encryption",
    type=click.Choice(["offered", "verify", "never"]),
    default="offered",
    show_default=True,
    help="offered: STARTTLS where the server offers it, with any certificate; where the mail came encrypted, it must."
    " verify: in any case, with a certificate that is valid for the host. never: in clear. At port 465 TLS is from the"
    " first octet.",
)
@click.option("--again", is_flag=True, help="Even if it was released already.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def release(
    config: Path | None,
    directory: Path | None,
    server: str | None,
    to: Sequence[str],
    encryption: "Encryption",
    again: bool,
    names: Sequence[str],
) -> None:
    """Send mails on by SMTP, to the servers they were meant for: the same octets, the same sender and recipients.

    Nothing is added. A mail counts as released when the server has said 250; it then is under --released, and is not
    sent a second time unless you say --again. All of its recipients must be taken, or it stays. Where a server's answer
    is lost at the very end the mail stays too, and that is said: it may have arrived.

    No proxy is on the way, if you don't name it: what is released is not judged again. Nobody logs in: a server that
    asks for that (of submission, most often) takes the mail at another port or from another host, say --server.

    \b
    Examples:
      smtpproxy quarantine release --config smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine release --config smtpproxy.toml --server 192.0.2.7 20261123T101500Z-0123456789ab
      smtpproxy quarantine release --config smtpproxy.toml --to postmaster@here.example 20261123T101500Z-0123456789ab
    """
    from smtpproxy.config import parse_endpoint
    from smtpproxy.quarantine import releasing

    for address in to:
        if not re.fullmatch(r"[^\s<>]{1,1000}", address):
            raise click.UsageError(f"--to {address!r} is no address.")
    where = None
    if server is not None:
        try:
            endpoint = parse_endpoint(server)
        except ValueError as error:
            raise click.UsageError(f"--server: {error}") from None
        where = endpoint.host, endpoint.port
    way = releasing.Way(where, to, encryption, again)
    with _opened(config, directory) as store:

        def send(name: str) -> str:
            found = releasing.release(store, name, way, time.time())
            if found is None:
                return "was released already"
            left_out = f"; not told: {', '.join(found.sent.left_out)}" if found.sent.left_out else ""
            return f"released to {found.server}: {found.sent.reply}{left_out}"

        _each(names, send)


# ------------------------------------------------------------------------------------------------------------- erasing


@quarantine.command(short_help="Erase mails.", epilog=_EXIT_CODES)
@_where
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(config: Path | None, directory: Path | None, names: Sequence[str]) -> None:
    """Erase mails, released or not. Nobody is told of it, and there is no way back.

    \b
    Examples:
      smtpproxy quarantine delete --config smtpproxy.toml 20261123T101500Z-0123456789ab
      smtpproxy quarantine list --config smtpproxy.toml --rule no-macros --json | jq -r .name |
          xargs smtpproxy quarantine delete --config smtpproxy.toml
    """
    with _opened(config, directory) as store:

        def erase(name: str) -> str:
            with store.claimed(name) as mail:
                store.erase(mail)
            return "erased"

        _each(names, erase)


@quarantine.command(short_help="Erase the mails that are too old.", epilog=_EXIT_CODES)
@_where
@click.option("--older", type=_Duration(), required=True, metavar="TIME", help="Than this: 12h, 30d.")
def expire(config: Path | None, directory: Path | None, older: float) -> None:
    """Erase the mails that were kept longer ago than that, released or not, and what a crash left behind.

    With `days` in [quarantine] the proxy does the same once an hour.

    \b
    Examples:
      smtpproxy quarantine expire --config smtpproxy.toml --older 30d
    """
    from smtpproxy.quarantine.store import QuarantineError

    with _opened(config, directory) as store:
        try:
            erased = store.expire(older)
            store.sweep()
        except QuarantineError as error:
            _fail(error, FAILED)
    click.echo(f"{len(erased)} erased")


# -------------------------------------------------------------------------------------------------------------- shared


def _each(names: Sequence[str], act: Callable[[str], str]) -> None:
    """Do it to each, and end with 1 if it could not be done to one."""
    from smtpproxy.quarantine.sending import NotSent
    from smtpproxy.quarantine.store import QuarantineError

    failed = False
    for name in dict.fromkeys(names):
        try:
            click.echo(f"{name} {printable(act(name))}")
        except NotSent as error:
            click.echo(f"smtpproxy: {name} was not released: {error}", err=True)
            failed = True
        except QuarantineError as error:
            click.echo(f"smtpproxy: {error}", err=True)
            failed = True
    if failed:
        sys.exit(FAILED)


@contextlib.contextmanager
def _opened(config: Path | None, directory: Path | None) -> Iterator["Store"]:
    """The quarantine that is meant."""
    from smtpproxy.quarantine.folders import Folders
    from smtpproxy.quarantine.store import QuarantineError, Store

    if (config is None) == (directory is None):
        raise click.UsageError("Say --config FILE, or --directory D.")
    path = directory if directory is not None else _directory_of(Path(str(config)))
    try:
        store = Store(Folders(path))
    except QuarantineError as error:
        _fail(error)
    try:
        yield store
    except QuarantineError as error:
        _fail(error)
    finally:
        store.close()


def _directory_of(config: Path) -> Path:
    """Where a proxy of this configuration keeps mails; the rest of the file may be wrong by now."""
    try:
        said = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        _fail(f"{config} can't be read: {error.strerror}")
    except ValueError as error:
        _fail(f"{config} is no TOML: {error}")
    table = said.get("quarantine")
    directory = table.get("directory") if isinstance(table, dict) else None
    if not isinstance(directory, str) or not directory:
        _fail(f'{config} names no quarantine: say directory = "/var/lib/smtpproxy/quarantine" under [quarantine]')
    return config.parent / directory


def _fail(why: object, code: int = WRONG) -> NoReturn:
    click.echo(f"smtpproxy: {printable(str(why))}", err=True)
    sys.exit(code)

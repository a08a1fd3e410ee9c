"""`smtpproxy audit pseudonym-key`, `identify`, `auditor-key`, `unseal`: keys of privacy, and what only they can do."""

import sys
from pathlib import Path
from typing import IO, Final

import click
import msgspec

from smtpproxy.audit import privacy, sealing
from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit_options import FOUND, USAGE, fail

NO_LINE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # raised for what is no JSON object


@click.group("pseudonym-key", short_help="The key of pseudonyms: make it, add a newer one.")
def pseudonym_key() -> None:
    """The key of pseudonyms (`[audit] pseudonym_key`, and addresses = "pseudonym" of a listener)."""


@pseudonym_key.command("init", short_help="Make a key file.")
@click.argument("file", type=click.Path(path_type=Path))
def init_pseudonyms(file: Path) -> None:
    """Make a key file. Who has it can tell who is meant by a pseudonym; keep it where the record is not."""
    try:
        privacy.create(file)
    except KeyFileError as error:
        fail(str(error), USAGE)


@pseudonym_key.command("rotate", short_help="Add a newer key.")
@click.argument("file", type=click.Path(path_type=Path))
def rotate_pseudonyms(file: Path) -> None:
    """Add a newer key: after a reload, everybody has another pseudonym. The older keys stay in the file, to tell who is
    meant by older pseudonyms; take their lines away and nobody can."""
    try:
        click.echo(privacy.rotate(file))
    except KeyFileError as error:
        fail(str(error), USAGE)


@click.command("identify", short_help="Whom a pseudonym stands for, among candidates.")
@click.argument("address", nargs=-1, required=True)
@click.option("--key", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The key of pseudonyms.")
@click.option("--pseudonym", metavar="TEXT", help="Print only who of the ADDRESSes this stands for.")
def identify(address: tuple[str, ...], key: Path, pseudonym: str | None) -> None:
    """Print the pseudonyms of addresses, by every key of the file: what to search the record for.

    \b
    Examples:
      smtpproxy audit identify --key pseudonyms.key alice@example.org
      smtpproxy audit identify --key pseudonyms.key --pseudonym '~k1.3xq7…@~k1.5tzw…' $(cat staff.txt)
    """
    try:
        pseudonyms = privacy.Pseudonyms(privacy.load(key))
    except KeyFileError as error:
        fail(str(error), USAGE)
    known = False
    for one in address:
        for name, text in pseudonyms.of(one).items():
            if pseudonym is None:
                click.echo(f"{one}\t{name}\t{text}")
            elif pseudonym in (text, text.partition("@")[0]):
                click.echo(one)
                known = True
    if pseudonym is not None and not known:
        fail("it stands for none of these", FOUND)


@click.group("auditor-key", short_help="The key that transcripts are sealed to.")
def auditor_key() -> None:
    """The key that transcripts are sealed to (`[audit] auditor` has its public half)."""


@auditor_key.command("init", short_help="Make a key.")
@click.argument("file", type=click.Path(path_type=Path))
def init_auditor(file: Path) -> None:
    """Make a key: FILE, which the auditor keeps and the proxy never sees, and FILE.pub for the proxy."""
    try:
        sealing.create(file)
    except KeyFileError as error:
        fail(str(error), USAGE)


@click.command("unseal", short_help="Open sealed transcripts.")
@click.argument("lines", type=click.File("rb"), default="-")
@click.option("--key", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The auditor's key.")
def unseal(lines: IO[bytes], key: Path) -> None:
    """Open the sealed transcripts in lines of the record, and print the lines with them.

    \b
    Example:
      smtpproxy audit export --format jsonl | smtpproxy audit unseal --key auditor.key
    """
    try:
        opened = sealing.opener(key)
    except KeyFileError as error:
        fail(str(error), USAGE)
    failed = False
    for line in lines:
        try:
            record = msgspec.json.decode(line, type=dict[str, object])
        except NO_LINE:
            click.echo(line, nl=False)
            continue
        transcript = record.get("transcript")
        if isinstance(transcript, dict) and isinstance(transcript.get("sealed"), str):
            try:
                about = f"{record.get('session', '')}:{record.get('seq', 0)}".encode()
                record["transcript"] = msgspec.json.decode(opened(transcript["sealed"], about))
            except (sealing.SealError, *NO_LINE) as error:
                failed = True
                click.echo(f"smtpproxy: {record.get('session')}: {error}", err=True)
            line = msgspec.json.encode(record) + b"\n"
        click.echo(line, nl=False)
    sys.exit(FOUND if failed else 0)


COMMANDS: Final[list[click.Command]] = [pseudonym_key, identify, auditor_key, unseal]

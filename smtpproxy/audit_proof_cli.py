"""`smtpproxy audit verify`, `checkpoint`, `prove`, `check-proof`, `prune`, `erase`: that the record is as it was, and
what may be taken out of it all the same."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import click

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.keys import KeyFileError, follow_from, load_verifiers, open_checkpoint
from smtpproxy.audit.notes import NoteError, Verifier
from smtpproxy.audit.proofs import parse_proof
from smtpproxy.audit.tree import check_inclusion
from smtpproxy.audit_options import FOUND, UNREADABLE, USAGE, fail, store_option
from smtpproxy.columns import count, printable
from smtpproxy.store.emptying import settled
from smtpproxy.store.erasing import erase, pattern_of
from smtpproxy.store.errors import StoreError
from smtpproxy.store.proving import newest, prove
from smtpproxy.store.pruning import owed, prune
from smtpproxy.store.reading import POSTGRES, Reader, open_reader
from smtpproxy.store.store import Store, rfc3339
from smtpproxy.store.verifying import Verifying

DAY: Final = 86_400.0
MOST_DIGITS: Final = 12  # of the number of a record, which is below 2^40
SHOWN: Final = 20  # findings that are printed, without --all
_AGE = re.compile(r"([0-9]+)([smhdwy])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY, "y": 365 * DAY}


class _Place(click.ParamType[int | datetime]):
    """A record by its number, or a time."""

    name = "NUMBER|TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        if not isinstance(value, str):
            return value  # type: ignore[return-value]
        if value.isdecimal() and value.isascii():
            if len(value) > MOST_DIGITS:
                self.fail(f"there is no record {value[:40]}", param, ctx)
            return int(value)
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither the number of a record nor a time like 2026-11-24T10:00", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


class _Age(click.ParamType[float]):
    """How old."""

    name = "AGE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return value  # type: ignore[return-value]
        found = _AGE.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no age: 90d, 12h, 2w, 1y", param, ctx)
        return min(int(found[1]) * _UNITS[found[2]], time.time())  # nothing is older than 1970


@click.command("verify", short_help="Check that nothing was changed, inserted or taken away.")
@click.option("--key", metavar="VKEY|FILE", help="The key that is trusted, as `audit key init` printed it.")
@click.option(
    "--checkpoint", "kept", metavar="FILE", type=click.File(), multiple=True, help="Kept elsewhere; - reads one."
)
@click.option("--from", "start", type=_Place(), help="Begin here, not at the first record.")
@click.option("--to", "stop", type=_Place(), help="End before this one.")
@click.option("--all", "everything", is_flag=True, help=f"Print all findings, not the first {SHOWN}.")
@store_option
def verify(
    where: str,
    key: str | None,
    kept: tuple[IO[str], ...],
    start: int | datetime | None,
    stop: int | datetime | None,
    everything: bool,
) -> None:
    """Hash everything again, and compare it with what was signed.

    Names the first record that is missing, changed, inserted or out of its place. A store can prove nothing alone: give
    it a checkpoint that was kept where nobody who can write the store can write (`smtpproxy audit checkpoint`), and the
    key that `smtpproxy audit key init` printed.

    \b
    Exit codes: 0 it is as it was · 1 it is not · 2 the command is wrong · 3 the store can't be read
    \b
    Examples:
      smtpproxy audit verify --key audit.key.vkey --checkpoint kept.txt
      smtpproxy audit verify --from 2026-11-24
    """
    reader = open_reader(where)
    try:
        total = int(reader.meta("size") or 0)
        notes = _kept(kept)
        begin, end = _number(reader, start) or 0, _number(reader, stop)
        if end is not None and begin >= min(end, total):
            fail(f"there is no record from {begin} to before {end}: the store has {total}", USAGE)
        if begin and begin >= total:
            fail(f"there is no record {begin}: the store has {total}", USAGE)
        with _progress((total if end is None else min(end, total)) - begin) as progress:
            options: dict[str, Any] = {"vkey": _vkey(key), "kept": notes, "copy": where.startswith(POSTGRES)}
            report = Verifying(reader, start=begin, stop=end, progress=progress, **options).run()
    finally:
        reader.close()
    shown = report.findings if everything else report.findings[:SHOWN]
    for finding in shown:
        click.echo(printable(finding.text))
    if len(report.findings) > len(shown):
        click.echo(f"and {count(len(report.findings) - len(shown), 'more finding')}: --all prints them")
    for note in report.notes:
        click.echo(f"note: {printable(note)}")
    click.echo(
        f"{count(report.records, 'record')} of {report.size:,} looked at, {count(report.checkpoints, 'checkpoint')}:"
        f" {'as it was' if not report.findings else 'NOT AS IT WAS'}"
    )
    sys.exit(FOUND if report.findings else 0)


def _vkey(key: str | None) -> str:
    """A key as text, or the one of a file."""
    if key is None:
        return ""
    try:
        if "+" in key and not Path(key).exists():
            return Verifier(key).vkey
        keys = load_verifiers(Path(key))
    except (KeyFileError, NoteError) as error:
        fail(str(error), USAGE)
    if len(keys) > 1:
        fail(f"{key} has {len(keys)} keys: give one, the first that was handed out", USAGE)
    return keys[0].vkey


def _kept(files: tuple[IO[str], ...]) -> list[str]:
    """The checkpoints in files; each has one."""
    found: list[str] = []
    for file in files:
        try:
            notes = list(_notes(file.read()))
        except UnicodeDecodeError:
            notes = []
        if not notes:
            fail(f"{file.name} has no checkpoint in it", USAGE)
        found += notes
    return found


def _notes(text: str) -> Iterator[str]:
    """The notes of a file, one after the other: each ends with its signatures."""
    note: list[str] = []
    signed = False
    for line in text.splitlines(keepends=True):
        if signed and not line.startswith("\N{EM DASH} "):
            yield "".join(note)
            note, signed = [], False
        if note or line.strip():
            note.append(line)
            signed = line.startswith("\N{EM DASH} ")
    if note:
        yield "".join(note)


def _number(reader: Reader, place: int | datetime | None) -> int | None:
    """The record that is meant."""
    if not isinstance(place, datetime):
        return place
    for (first,) in reader.rows("SELECT min(first) FROM block WHERE at >= ?", (place.timestamp(),)):
        if first is not None:
            return int(first) & ((1 << 40) - 1)
    return int(reader.meta("size") or 0)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if somebody looks."""
    if not sys.stderr.isatty():
        yield lambda records: None
        return
    with click.progressbar(length=max(total, 0), label="verifying", file=sys.stderr, show_pos=True) as bar:
        yield lambda records: bar.update(records - bar.pos)
        bar.update(max(total - bar.pos, 0))


@click.command("checkpoint", short_help="Print the newest checkpoint, to be kept elsewhere.")
@store_option
def checkpoint(where: str) -> None:
    """Print the newest signed checkpoint.

    Kept, mailed or printed where nobody who can write the store gets at it, it proves that nothing before it was
    rewritten (`smtpproxy audit verify --checkpoint`).
    """
    reader = open_reader(where)
    try:
        note = newest(reader)
    finally:
        reader.close()
    if not note:
        fail("there is no checkpoint yet", UNREADABLE)
    click.echo(note, nl=False)


@click.command("prove", short_help="A proof that one record is in the log, for somebody else.")
@click.argument("number", type=click.IntRange(0, (1 << 40) - 1), required=False)
@click.option("--message-id", metavar="ID", help="The end of the mail with this Message-ID.")
@click.option("--line/--no-line", default=True, help="Print the record itself on standard error, too.")
@store_option
def prove_(where: str, number: int | None, message_id: str | None, line: bool) -> None:
    """Print a proof that a record is in the tree of a signed checkpoint: two kilobytes, for whoever has the key.

    \b
    Example:
      smtpproxy audit prove --message-id '<1@example.org>' >mail.proof 2>mail.json
      smtpproxy audit check-proof mail.proof mail.json --key audit.key.vkey
    """
    if (number is None) == (message_id is None):
        raise click.UsageError("Say which record: its NUMBER, or --message-id ID.")
    reader = open_reader(where)
    try:
        if number is None:
            wanted = (message_id, f"<{str(message_id).strip('<>')}>")
            found = list(reader.rows("SELECT id FROM mail WHERE message_id IN (?, ?) ORDER BY at DESC LIMIT 1", wanted))
            if not found:
                fail(f"no mail has the Message-ID {message_id}", UNREADABLE)
            number = int(found[0][0]) & ((1 << 40) - 1)
        click.echo(prove(reader, number), nl=False)
        if line:
            for _, text in reader.lines(number, number + 1):
                click.echo(text, err=True)
    finally:
        reader.close()


@click.command("check-proof", short_help="Check such a proof; no store is needed.")
@click.argument("proof", type=click.File())
@click.argument("record", type=click.File("rb"))
@click.option("--key", metavar="VKEY|FILE", required=True, help="The key that is trusted.")
def check_proof(proof: IO[str], record: IO[bytes], key: str) -> None:
    """Check that a record is in the log that a key signs.

    PROOF is what `smtpproxy audit prove` printed, RECORD the record's line. Nothing else is needed but the key, be it
    the one that signs now or one before it.
    """
    try:
        read = parse_proof(proof.read())
        signed = open_checkpoint(read.note, follow_from(_vkey(key), read.successions))
    except (NoteError, ValueError) as error:
        fail(str(error), FOUND)
    leaf = leaf_of(record.read().rstrip(b"\n"))
    if not check_inclusion(leaf, read.number, signed.size, read.hashes, signed.root):
        fail(f"this is not record {read.number} of {signed.origin}", FOUND)
    click.echo(f"record {read.number} of {signed.origin}, as signed with {signed.size:,} records")


@click.command("prune", short_help="Take away old records; what remains is proved as before.")
@click.option("--keep", type=_Age(), required=True, help="How old records may be: 90d, 12h, 2w, 1y.")
@click.option("--force", is_flag=True, help="Also what a sink has not had yet that is to have everything.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@store_option
def prune_(where: str, keep: float, force: bool, dry_run: bool) -> None:
    """Take away records older than this, in groups of 256.

    Their hashes stay (0.2 octets a record), so the rest of the tree, and every checkpoint, can still be verified.
    That it was done is on record.

    \b
    Example:
      smtpproxy audit prune --keep 90d
    """
    before = time.time() - keep
    if where.startswith(POSTGRES):
        _prune_postgres(where, before, dry_run)
        return
    store = Store(Path(where), indexes=False)
    try:
        floor = None if force else owed(store)
        records = prune(store, before, floor=floor, dry_run=dry_run).records
        kept = prune(store, before, dry_run=True).records
    finally:
        store.close()
    click.echo(f"{count(records, 'record')} from before {rfc3339(before)} {'would go' if dry_run else 'taken away'}")
    if (stay := kept - records if dry_run else kept) > 0:
        click.echo(f"{count(stay, 'more record')} stay, because a sink has not had them yet: --force takes them, too")


def _prune_postgres(where: str, before: float, dry_run: bool) -> None:
    from smtpproxy.store.postgres_pruning import prune_postgres  # an extra

    if dry_run:
        fail("--dry-run is for a gateway's own store: a database is pruned by whole days", USAGE)
    for pruned in prune_postgres(where, before):
        click.echo(f"{pruned.origin}: begins with record {pruned.now} now; it was {pruned.before}")


@click.command("erase", short_help="Take one person's fields out of the record; its proof stays whole.")
@click.option("--address", default="", metavar="ADDRESS", help="Who: a mail address, sender, recipient or log-in.")
@click.option("--client", default="", metavar="IP", help="Who: the address of a client.")
@click.option("--identity", default="", metavar="NAME", help="Who: the name of a log-in.")
@click.option("--from", "start", type=_Place(), help="Begin here, not at the first record.")
@click.option("--to", "stop", type=_Place(), help="End before this one.")
@click.option("--why", default="", metavar="TEXT", help="Put on record; it should name nobody.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@store_option
def erase_(
    where: str,
    address: str,
    client: str,
    identity: str,
    start: int | datetime | None,
    stop: int | datetime | None,
    why: str,
    dry_run: bool,
    yes: bool,
) -> None:
    """Take what is personal out of every record that names somebody.

    What is public in it stays (that there was a mail, when, what was decided), and so does the proof: records hold
    salted commitments of what is personal. It can't be undone. How many records it was is put on record, not whose.

    What was given elsewhere is not reached: the file of JSON lines, sinks, exports, backups.
    """
    try:
        pattern = pattern_of(address=address, client=client, identity=identity)
    except ValueError:
        raise click.UsageError("Say who: --address, --client or --identity.") from None
    if where.startswith(POSTGRES):
        fail("erase what is in PostgreSQL with the gateway's own store first, then with --store of each", USAGE)
    if not yes and not dry_run:
        click.confirm("What is taken out is gone for good. Go on?", abort=True, err=True)
    if not dry_run:
        settled(Path(where))
    reader = open_reader(where)
    try:
        begin, end = _number(reader, start) or 0, _number(reader, stop)
    finally:
        reader.close()
    store = Store(Path(where), indexes=False)
    try:
        erased = erase(
            store,
            pattern,
            address=address,
            client=client,
            identity=identity,
            start=begin,
            stop=end,
            why=why,
            dry_run=dry_run,
        )
    finally:
        store.close()
    click.echo(f"{count(erased.records, 'record')} {'would lose' if dry_run else 'lost'} what is personal in them")
    if not dry_run and not erased.gone:
        raise StoreError(
            "somebody reads the store just now: until they are done, its -wal file has old octets; run it again"
        )


COMMANDS: Final[list[click.Command]] = [verify, checkpoint, prove_, check_proof, prune_, erase_]

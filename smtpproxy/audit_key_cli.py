"""`smtpproxy audit key`: the key that signs checkpoints."""

import os
import stat
from pathlib import Path

import click
import msgspec

from smtpproxy.audit.keys import KeyFileError, create, keep_names, load, succeed, write_file
from smtpproxy.audit.notes import Checkpoint, NoteError
from smtpproxy.audit_options import UNREADABLE, USAGE, fail, store_option
from smtpproxy.store.owning import take
from smtpproxy.store.proving import SUCCESSIONS, successions
from smtpproxy.store.reading import POSTGRES
from smtpproxy.store.store import Store


@click.group("key", short_help="The key that signs checkpoints: make it, replace it, show its other half.")
def key() -> None:
    """The key that signs checkpoints (Ed25519).

    Its other half, the vkey, goes to whoever is to verify the record: the line that `init` prints, and FILE.vkey.
    """


@key.command("init", short_help="Make a key.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--name", metavar="NAME", help="What the log is called, e.g. gw1.example.org/audit; else by this machine."
)
def init(file: Path, name: str | None) -> None:
    """Make a key: FILE, for `[audit] key`, and FILE.vkey, for whoever verifies.

    It must be readable for who starts the proxy, and for nobody else. A new store wants a new key.

    \b
    Example:
      smtpproxy audit key init /etc/smtpproxy/audit.key --name gw1.example.org/audit
    """
    called = name or f"smtpproxy/{os.uname().nodename}"
    try:
        called.encode()
        click.echo(create(file, called))
    except UnicodeEncodeError:
        fail(f"{called!r} is no UTF-8, and so is no name for a key", USAGE)
    except (KeyFileError, NoteError) as error:
        fail(str(error), USAGE)


@key.command("show", short_help="Print a key's other half.")
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print the vkey of a key file."""
    try:
        click.echo(load(file).vkey)
    except KeyFileError as error:
        fail(str(error), USAGE)


@key.command("rotate", short_help="Replace the key; the old one signs for the new one.")
@click.argument("file", type=click.Path(path_type=Path))
@store_option
def rotate(file: Path, where: str) -> None:
    """Replace the key of a store. The old key signs that the new one goes on from here; that is put on record and
    printed. Then the old one is erased: who gets at this machine later can't sign the past again.

    The proxy must not run meanwhile: stop it, rotate, start it. Who has the old vkey needs nothing new. If this was cut
    off, do it once more: it goes on from where it was.

    \b
    Example:
      smtpproxy audit key rotate /etc/smtpproxy/audit.key --store /var/lib/smtpproxy/audit
    \b
    Exit codes: 0 done · 2 the key or the command line is wrong, or a proxy runs
    · 3 the store can't be read, or a file not written
    """
    if where.startswith(POSTGRES):
        fail("a key is replaced at the gateway that signs by it: say the directory of its store", USAGE)
    new = file.with_name(f"{file.name}.new")
    try:
        old = load(file)
        lock = take(Path(where))
        store = Store(Path(where), indexes=False)
    except KeyFileError as error:
        fail(str(error), USAGE)
    if lock is None:
        store.close()
        fail(f"a proxy keeps its record in {where} just now: stop it first", USAGE)
    try:
        known = store.value("vkey")
        if known not in ("", old.vkey):
            if new.exists() and load(new).vkey == known:
                _replace(file, new, known)
                click.echo(f"the new key had been introduced, and is in its place now: {known}")
                return
            fail(f"{file} is not the key that this store is signed by: that is {known}", USAGE)
        _take_away(new)  # of a rotation that was cut off before it was introduced
        vkey = create(new, old.name)
        note = succeed(old, vkey, Checkpoint(old.name, store.size, store.frontier.root()))
        with store.on_disk(), store.changing():
            store.say("audit-key", {"vkey": vkey, "previous": old.vkey, "note": note})
            store.keep("vkey", vkey)
            store.keep(SUCCESSIONS, msgspec.json.encode([*successions(store.value), note]).decode())
        _replace(file, new, vkey)
    except (KeyFileError, NoteError) as error:
        fail(str(error), USAGE)
    except OSError as error:
        # Whether the new key is introduced by now is for the next attempt to find out: it has to stay.
        fail(f"{error.filename or new} can't be written: {error.strerror}; mend it, and do this once more", UNREADABLE)
    finally:
        store.close()
        os.close(lock)
    click.echo(note, nl=False)


def _replace(file: Path, new: Path, vkey: str) -> None:
    """Put the new key in the place of the old one, for the same owner. It can be cut off anywhere, and done again."""
    owner = file.stat()
    if os.geteuid() == 0:
        os.chown(new, owner.st_uid, owner.st_gid)
    new.chmod(stat.S_IMODE(owner.st_mode))
    public = _vkey_of(new)
    public.unlink(missing_ok=True)  # it has its new name already, or it is not whole
    write_file(public, vkey.encode() + b"\n", 0o644)
    os.replace(public, _vkey_of(file))
    os.replace(new, file)
    keep_names(file.parent)


def _take_away(key: Path) -> None:
    for made in (key, _vkey_of(key)):
        made.unlink(missing_ok=True)


def _vkey_of(key: Path) -> Path:
    return key.with_name(f"{key.name}.vkey")

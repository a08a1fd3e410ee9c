"""The command `smtpproxy ca`: make the local CA, show it, and give out its certificate.

The CA's key is read by none of these: `init` makes it; `show` looks at the mode of its file and at the label it begins
with, which tells whether it is encrypted; the signing process of the proxy is the only one that reads it. Everything
that is wrong is said on standard error and ends with 2.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

if TYPE_CHECKING:
    from cryptography import x509

WRONG = 2  # as everywhere on the command line

_INSTALL = """\
\b
Whoever is to trust it installs ca.crt (never ca.key):
  Debian, Ubuntu    cp ca.crt /usr/local/share/ca-certificates/smtpproxy.crt; update-ca-certificates
  Red Hat, Fedora   cp ca.crt /etc/pki/ca-trust/source/anchors/smtpproxy.crt; update-ca-trust
  Postfix client    smtp_tls_CAfile = /etc/postfix/smtpproxy.crt
  msmtp             tls_trust_file /etc/msmtp/smtpproxy.crt
  Thunderbird       Settings, Privacy & Security, Manage Certificates, Authorities, Import
"""

_ENCRYPTED = b"-----BEGIN ENCRYPTED"
_PLAIN = b"-----BEGIN PRIVATE K"  # as many octets
_WORDS = {True: "yes", False: "no", None: "not seen"}

_directory = click.option(
    "--directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="D",
    help="Where the CA is: the directory that [ca] names in smtpproxy.toml.",
)


@click.group(
    short_help="Make, show and export the local CA.",
    epilog=_INSTALL,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def ca() -> None:
    """Make, show and export the local CA that certificates for clients are signed by.

    Without it, clients that verify need certificates that you give the proxy. With it the proxy makes them: each shows
    the names of the server's own, for as long as that is valid, and only for a server that was verified. Each
    installation has a CA of its own; nobody trusts it until its certificate is installed.

    \b
    Examples:
      smtpproxy ca init --directory /etc/smtpproxy/ca
      smtpproxy ca show --directory /etc/smtpproxy/ca
      smtpproxy ca export --directory /etc/smtpproxy/ca --out smtpproxy.crt
    """


@ca.command(short_help="Make a CA.")
@_directory
@click.option("--name", metavar="NAME", help="What clients see as the issuer. [default: smtpproxy CA of this host]")
@click.option(
    "--days", type=click.IntRange(1, 7300), default=3650, show_default=True, help="How long the CA is good for."
)
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Encrypt the key with the first line of this file; the proxy needs the same file ([ca] passphrase_file).",
)
@click.option(
    "--ask-passphrase",
    is_flag=True,
    help="Encrypt the key with a passphrase that is asked for; the proxy needs it in a file.",
)
def init(directory: Path, name: str | None, days: int, passphrase_file: Path | None, ask_passphrase: bool) -> None:
    """Make a CA: a P-256 key and its certificate, ca.key and ca.crt. Nothing is overwritten.

    Run it as the user the proxy runs as: the key is readable by that user alone (0600), and a key that others can read
    is not used. A passphrase helps where backups of the directory are kept elsewhere than the passphrase; take a long
    one, it is not stretched by much.

    \b
    Examples:
      smtpproxy ca init --directory /etc/smtpproxy/ca
      smtpproxy ca init --directory /etc/smtpproxy/ca --name "Example mail inspection" --days 1825
      sudo -u smtpproxy smtpproxy ca init --directory /etc/smtpproxy/ca --passphrase-file /etc/smtpproxy/passphrase
    """
    from smtpproxy.tls import authority

    if passphrase_file is not None and ask_passphrase:
        raise click.UsageError("Say --passphrase-file or --ask-passphrase, not both.")
    try:
        passphrase = b""
        if passphrase_file is not None:
            passphrase = authority.read_passphrase(passphrase_file)
        elif ask_passphrase:
            passphrase = _ask(authority.SHORTEST)
        made = authority.create(directory, _name(name, authority.LONGEST_NAME), days, passphrase)
    except authority.AuthorityError as error:
        _fail(error)
    click.echo(f"made {directory / authority.KEY} (keep it) and {directory / authority.CERTIFICATE} (give it out)")
    for what, value in _facts(made.certificate).items():
        click.echo(f"{what:<13}{value}")
    click.echo(f'next: directory = "{directory.absolute()}" under [ca] in smtpproxy.toml;')
    click.echo("`smtpproxy ca --help` says how clients come to trust it")


@ca.command(short_help="Show the CA's certificate and the state of its key file.")
@_directory
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def show(directory: Path, as_json: bool) -> None:
    """Show the CA's certificate: whose it is, its fingerprint, how long it is good for. Of the key's file it shows the
    mode and whether the key is encrypted; the key itself is not read.

    Compare the fingerprint with what a client shows before you trust the CA there. A CA that can't sign (its key is
    missing or open to others, its time is over) ends it with 2, which a monitoring script can look at.

    \b
    Examples:
      smtpproxy ca show --directory /etc/smtpproxy/ca
      smtpproxy ca show --directory /etc/smtpproxy/ca --json | jq -r .sha256
    """
    found = _certificate(directory)
    key = _look_at_key(directory)
    facts = {**_facts(found), "key": key.state, "encrypted": key.encrypted}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for what, value in facts.items():
            click.echo(f"{what:<13}{value if what != 'encrypted' else _WORDS[key.encrypted]}")
    wrong = [f"the key is {key.state}"] if key.wrong else []
    if time.time() >= found.not_valid_after_utc.timestamp():
        wrong.append("the CA has expired: make a new one with `smtpproxy ca init` in another directory")
    elif time.time() < found.not_valid_before_utc.timestamp():
        wrong.append("the CA is not valid yet: look at this machine's clock with `date -u`")
    for why in wrong:
        click.echo(f"smtpproxy: {why}", err=True)
    if wrong:
        sys.exit(WRONG)


@ca.command(short_help="Give out the CA's certificate, for those who are to trust it.", epilog=_INSTALL)
@_directory
@click.option("--der", is_flag=True, help="DER in place of PEM, as Java and Windows want it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="F",
    help="A new file, in place of standard output. One that is there is not overwritten.",
)
def export(directory: Path, der: bool, out: Path | None) -> None:
    """Give out the CA's certificate: the certificate only, never the key.

    \b
    Examples:
      smtpproxy ca export --directory /etc/smtpproxy/ca > smtpproxy.crt
      smtpproxy ca export --directory /etc/smtpproxy/ca --out smtpproxy.crt
      smtpproxy ca export --directory /etc/smtpproxy/ca --der --out smtpproxy.der
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    octets = _certificate(directory).public_bytes(Encoding.DER if der else Encoding.PEM)
    if out is None:
        if der and sys.stdout.isatty():
            raise click.UsageError("DER is nothing for a terminal: say --out F.")
        click.echo(octets, nl=False)
        return
    try:
        with open(out, "xb") as file:
            file.write(octets)
    except FileExistsError:
        _fail(f"{out} is there already and is not overwritten")
    except OSError as error:
        _fail(f"{out} can't be written: {error.strerror}")


def _certificate(directory: Path) -> "x509.Certificate":
    from smtpproxy.tls import authority

    try:
        return authority.certificate(directory)
    except authority.AuthorityError as error:
        _fail(error)


def _facts(certificate: "x509.Certificate") -> dict[str, str | int]:
    """What is shown of a certificate; the keys of `show --json`."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import NameOID

    after = certificate.not_valid_after_utc
    return {
        "subject": certificate.subject.rfc4514_string({NameOID.SERIAL_NUMBER: "serialNumber"}),
        "sha256": certificate.fingerprint(SHA256()).hex(":").upper(),
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{after:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": int((after.timestamp() - time.time()) // 86_400),
    }


class _Key(NamedTuple):
    """What is seen of the key without reading it; `encrypted` is None where that is not seen."""

    state: str
    encrypted: bool | None = None
    wrong: bool = False  # nothing can be signed with it


def _look_at_key(directory: Path) -> _Key:
    """Whether the key is there, closed to others, encrypted."""
    from smtpproxy.tls.authority import KEY

    path = directory / KEY
    try:
        mode = path.stat().st_mode & 0o7777
    except FileNotFoundError:
        return _Key("missing: nothing can be signed", wrong=True)
    except OSError as error:
        return _Key(f"not to be looked at: {error.strerror}", wrong=True)
    encrypted = _label(path)
    if mode & 0o077:
        return _Key(f"open to others (mode {mode:04o}), not used: chmod 600 {path}", encrypted, wrong=True)
    return _Key(f"mode {mode:04o}", encrypted)


def _label(path: Path) -> bool | None:
    """Whether the label of PEM it begins with says ENCRYPTED (RFC 7468 §11). No octet behind the label is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
        try:
            begun = os.read(descriptor, len(_ENCRYPTED))
        finally:
            os.close(descriptor)
    except OSError:  # it is another user's
        return None
    return True if begun == _ENCRYPTED else False if begun == _PLAIN else None


def _name(name: str | None, longest: int) -> str:
    return f"smtpproxy CA of {socket.gethostname()}"[:longest] if name is None else name  # host names are ASCII


def _ask(shortest: int) -> bytes:
    passphrase: str = click.prompt(
        f"Passphrase ({shortest} characters at least)", hide_input=True, confirmation_prompt=True, err=True
    )
    return os.fsencode(passphrase)


def _fail(why: object) -> NoReturn:
    click.echo(f"smtpproxy: {why}", err=True)
    sys.exit(WRONG)

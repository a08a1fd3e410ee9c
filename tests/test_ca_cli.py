"""`smtpproxy ca`: what it makes, shows and gives out, and how it fails."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from smtpproxy.ca_cli import ca
from smtpproxy.tls.authority import certificate, create, load

WORD = "correct horse battery"
COMMANDS = ["init", "show", "export"]


def run(*words: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(ca, words, prog_name="smtpproxy ca", input=typed)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CA in the directory `ca` beside the one that is current."""
    monkeypatch.chdir(tmp_path)
    assert run("init", "--directory", "ca", "--name", "our CA").exit_code == 0
    return tmp_path / "ca"


# ---------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_help_has_a_paragraph_and_examples(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    _, examples = result.stdout.split("  Examples:\n")
    assert f"    smtpproxy {' '.join(['ca', *command])}" in examples


def test_the_examples_name_options_that_exist() -> None:
    assert sorted(ca.commands) == sorted(COMMANDS)
    for name in COMMANDS:
        examples, options = run(name, "--help").stdout.split("Examples:")[1].split("Options:")
        for option in re.findall(r"(?<!\S)--[a-z-]+", examples):
            assert option in options


@pytest.mark.parametrize("command", [[], ["export"]], ids=["ca", "export"])
def test_help_says_how_it_comes_to_be_trusted(command: list[str]) -> None:
    text = run(*command, "--help").stdout
    assert "update-ca-certificates" in text
    assert "update-ca-trust" in text
    assert "tls_trust_file" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.ca_cli import ca\n"
        "try: ca(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'cryptography', 'smtpproxy.tls'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------- init


def test_init_makes_a_ca_and_says_what_comes_next(tmp_path: Path) -> None:
    result = run("init", "--directory", str(tmp_path / "ca"), "--days", "10")
    assert (result.exit_code, result.stderr) == (0, "")
    found = load(tmp_path / "ca").certificate
    digest = hashlib.sha256(found.public_bytes(Encoding.DER)).hexdigest().upper()
    assert f"sha256       {':'.join(re.findall('..', digest))}\n" in result.stdout
    assert f'directory = "{tmp_path / "ca"}" under [ca]' in result.stdout
    assert "CN=smtpproxy CA of " in result.stdout
    assert "PRIVATE" not in result.stdout
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 11


def test_init_overwrites_nothing(made: Path) -> None:
    before = (made / "ca.key").read_bytes()
    result = run("init", "--directory", "ca")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("smtpproxy: ca/ca.key is there already and is not overwritten")
    assert (made / "ca.key").read_bytes() == before


def test_init_takes_a_passphrase_from_a_file(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.touch(0o600)
    word.write_text(WORD + "\n")
    result = run("init", "--directory", str(tmp_path / "ca"), "--passphrase-file", str(word))
    assert result.exit_code == 0
    assert WORD not in result.output
    load(tmp_path / "ca", WORD.encode())


def test_init_asks_for_a_passphrase(tmp_path: Path) -> None:
    result = run("init", "--directory", str(tmp_path / "ca"), "--ask-passphrase", typed=f"{WORD}\nno\n{WORD}\n{WORD}\n")
    assert result.exit_code == 0, result.output
    assert WORD not in result.output
    load(tmp_path / "ca", WORD.encode())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--passphrase-file", "word", "--ask-passphrase"], "not both"),
        (["--passphrase-file", "word"], "word is open to others (mode 0644): `chmod 600 word`"),
        (["--passphrase-file", "none"], "the passphrase file none is not there"),
        (["--passphrase-file", "short"], "the passphrase has 5 octets: take 12 to 1024"),
        (["--days", "0"], "--days"),
        (["--days", "99999"], "--days"),
        (["--name", ""], "no name for a CA"),
        (["--name", "a" * 65], "no name for a CA"),
    ],
)
def test_init_with_what_makes_no_sense_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("word").write_text(WORD)
    Path("word").chmod(0o644)
    Path("short").touch(0o600)
    Path("short").write_text("short")
    result = run("init", "--directory", "ca", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr
    assert not Path("ca").exists()


def test_a_long_name_of_this_host_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "a" * 64)
    assert run("init", "--directory", str(tmp_path)).exit_code == 0
    assert f"CN=smtpproxy CA of {'a' * 48}" in certificate(tmp_path).subject.rfc4514_string()


# ---------------------------------------------------------------------------------------------------------- show


def test_show_tells_the_certificate_and_the_keys_state(made: Path) -> None:
    facts = json.loads(run("show", "--directory", "ca", "--json").stdout)
    found = certificate(made)
    digest = hashlib.sha256(found.public_bytes(Encoding.DER)).hexdigest()
    assert facts["sha256"].replace(":", "").lower() == digest
    assert re.fullmatch(r"serialNumber=[0-9a-f]{16},CN=our CA", facts["subject"])
    assert facts["not_after"] == f"{found.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert (facts["days_left"], facts["key"], facts["encrypted"]) == (3649, "mode 0600", False)
    result = run("show", "--directory", "ca")
    assert (result.exit_code, result.stderr) == (0, "")
    told = {**facts, "encrypted": "no"}
    assert all(f"{what:<13}{value}" in result.stdout.splitlines() for what, value in told.items())


def test_show_and_export_need_no_key(made: Path) -> None:
    """But without one that can be used nothing can be signed, and that is told by the exit code too."""
    (made / "ca.key").write_text("unreadable garbage")
    (made / "ca.key").chmod(0o640)
    result = run("show", "--directory", "ca")
    assert "key          open to others (mode 0640), not used: chmod 600 ca/ca.key" in result.stdout
    assert "encrypted    not seen" in result.stdout
    assert (result.exit_code, result.stderr.startswith("smtpproxy: the key is open to others")) == (2, True)
    (made / "ca.key").unlink()
    result = run("show", "--directory", "ca")
    assert "missing: nothing can be signed" in result.stdout
    assert result.exit_code == 2
    assert run("export", "--directory", "ca").exit_code == 0
    os.symlink("ca.key", made / "ca.key")
    result = run("show", "--directory", "ca", "--json")
    assert json.loads(result.stdout)["key"].startswith("not to be looked at: ")
    assert result.exit_code == 2


def test_show_tells_an_encrypted_key_by_its_label_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an octet of the key is read."""
    read = os.read
    octets: list[bytes] = []

    def watched(descriptor: int, most: int) -> bytes:
        octets.append(read(descriptor, most))
        return octets[-1]

    monkeypatch.setattr("os.read", watched)
    create(tmp_path, "our CA", 10, WORD.encode())
    result = run("show", "--directory", str(tmp_path))
    assert "encrypted    yes" in result.stdout
    assert result.exit_code == 0
    assert octets == [b"-----BEGIN ENCRYPTED"]


@pytest.mark.parametrize(("days", "why"), [(11, "the CA has expired: make"), (-3, "the CA is not valid yet: ")])
def test_show_of_a_ca_that_is_out_of_date_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, why: str
) -> None:
    create(tmp_path, "our CA", 10)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 86_400 * days)
    result = run("show", "--directory", str(tmp_path))
    assert (result.exit_code, result.stderr.startswith(f"smtpproxy: {why}")) == (2, True)
    assert "sha256 " in result.stdout


@pytest.mark.parametrize("command", ["show", "export"])
def test_what_is_not_there_is_not_shown(tmp_path: Path, command: str) -> None:
    result = run(command, "--directory", str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "ca.crt is not there: `smtpproxy ca init --directory " in result.stderr
    assert run(command).exit_code == 2


# -------------------------------------------------------------------------------------------------------- export


def test_export_gives_the_certificate_only(made: Path) -> None:
    pem = (made / "ca.crt").read_bytes()
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    assert run("export", "--directory", "ca").stdout_bytes == pem
    assert run("export", "--directory", "ca", "--der").stdout_bytes == der
    assert run("export", "--directory", "ca", "--out", "out.crt").output == ""
    assert run("export", "--directory", "ca", "--der", "--out", "out.der").output == ""
    assert (Path("out.crt").read_bytes(), Path("out.der").read_bytes()) == (pem, der)
    assert x509.load_pem_x509_certificate(pem) == certificate(made)


def test_export_overwrites_nothing(made: Path) -> None:
    """The key is one of the files that could be named by mistake."""
    key = (made / "ca.key").read_bytes()
    result = run("export", "--directory", "ca", "--out", "ca/ca.key")
    assert (result.exit_code, result.stderr) == (2, "smtpproxy: ca/ca.key is there already and is not overwritten\n")
    assert (made / "ca.key").read_bytes() == key
    result = run("export", "--directory", "ca", "--out", "nowhere/out.crt")
    assert (result.exit_code, result.stderr) == (
        2,
        "smtpproxy: nowhere/out.crt can't be written: No such file or directory\n",
    )


def test_der_is_nothing_for_a_terminal(made: Path) -> None:
    """A pseudo-terminal of its own."""
    ours, its = os.openpty()
    code = "from smtpproxy.ca_cli import ca; ca(['export', '--directory', 'ca', '--der'], prog_name='smtpproxy ca')"
    try:
        ended = subprocess.run([sys.executable, "-c", code], stdout=its, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(its)
        os.close(ours)
    assert ended.returncode == click.UsageError.exit_code == 2
    assert b"DER is nothing for a terminal: say --out F." in ended.stderr

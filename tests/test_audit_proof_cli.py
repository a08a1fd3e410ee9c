"""`smtpproxy audit verify`, `checkpoint`, `prove`, `check-proof`, `prune`, `erase`, as somebody uses them."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.audit_cli import audit
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.store.signing import edited, signed, signer, tampered

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "audit-proof.md").read_text(encoding="utf-8")
VKEY = signer().vkey


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some hundred mails; beside it the checkpoints that were kept, and the key."""
    base = tmp_path_factory.mktemp("original")
    notes = signed(base / "store")
    (base / "kept").write_text("".join(notes))
    (base / "gw1.vkey").write_text(VKEY + "\n")
    return base


@pytest.fixture
def site(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str, store: str = "store", stdin: str = "") -> Result:
    where = [] if args[0] == "check-proof" else ["--store", store]
    return CliRunner().invoke(audit, [*args, *where], input=stdin)


def gone(directory: Path, number: int) -> None:
    edited(directory, number, lambda found, at: found.pop(at))


# ---------------------------------------------------------------------------------------------------------- verify


def test_all_is_as_it_was(site: Path) -> None:
    done = run("verify", "--key", "gw1.vkey", "--checkpoint", "kept")
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"([0-9,]+) records of \1 looked at, 7 checkpoints: as it was", last), last
    assert done.stdout.count("fits") == 7
    assert done.stderr == ""  # a bar is for terminals


@pytest.mark.parametrize("key", [VKEY, "gw1.vkey"])
def test_what_is_wrong_is_named(site: Path, key: str) -> None:
    gone(site / "store", 700)
    done = run("verify", "--key", key)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0] == "record 700 is missing"
    assert done.stdout.splitlines()[-1].endswith("NOT AS IT WAS")


def test_many_findings(site: Path) -> None:
    for number in range(0, 1500, 50):
        edited(site / "store", number, lambda found, at: found.__setitem__(at, found[at].replace(b'"v":1', b'"v":2')))
    some, every = run("verify"), run("verify", "--all")
    assert some.stdout.splitlines()[0] == every.stdout.splitlines()[0] == "record 0 was changed"
    assert "and 10 more findings: --all prints them" in some.stdout
    assert every.stdout.count("was changed") == 30


def test_a_part(site: Path) -> None:
    gone(site / "store", 700)
    assert run("verify", "--from", "1024").exit_code == 0
    assert run("verify", "--to", "512").exit_code == 0
    assert run("verify", "--from", "300", "--to", "900").exit_code == 1
    reader = open_reader("store")
    at = next(re.findall(rb'"at":"([^"]*)"', line)[0].decode() for _, line in reader.lines(1024, 1025))
    reader.close()
    assert run("verify", "--from", at).exit_code == 0
    assert run("verify", "--from", "yesterday").exit_code == 2


def test_checkpoints_by_standard_input(site: Path) -> None:
    kept = (site / "kept").read_text()
    assert run("verify", "--checkpoint", "-", stdin=kept).exit_code == 0
    assert run("verify", "--checkpoint", "-", stdin="nonsense\n").exit_code == 1


def test_an_older_copy_in_its_place(site: Path, tmp_path: Path) -> None:
    """It is whole in itself; the kept checkpoint tells."""
    shutil.rmtree("store")
    signed(site / "store", 100)
    assert run("verify", "--key", "gw1.vkey").exit_code == 0
    done = run("verify", "--key", "gw1.vkey", "--checkpoint", "kept")
    assert done.exit_code == 1
    assert "this is an older copy, or its end was cut off" in done.stdout


def test_a_key_that_is_none(site: Path) -> None:
    for key in ("nowhere", "kept"):
        done = run("verify", "--key", key)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("smtpproxy: ")


def test_a_bar_on_a_terminal(site: Path) -> None:
    parent, child = os.openpty()
    argv = [sys.executable, "-m", "smtpproxy", "audit", "verify", "--store", "store"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=child, timeout=60, check=False)
    os.close(child)
    bar = os.read(parent, 65536).decode()
    os.close(parent)
    assert done.returncode == 0
    assert "verifying" in bar
    assert re.search(r" ([0-9]{4})/\1", bar), bar[-200:]


def test_what_peers_said_can_t_reach_the_terminal(site: Path) -> None:
    """What a finding quotes may be anything by now."""
    tampered(site / "store", lambda db: db.execute("UPDATE checkpoint SET note = 'x\x1b[31m\n\n'"))
    done = run("verify", "--key", "gw1.vkey")
    assert done.exit_code == 1
    assert "\x1b" not in done.stdout


# ---------------------------------------------------------------------------------------------------------- proofs


def test_a_proof_for_somebody_else(site: Path) -> None:
    message_id = "<1.1@client.example.org>"
    made = run("prove", "--message-id", message_id)
    assert made.exit_code == 0, made.stderr
    (site / "proof").write_text(made.stdout)
    (site / "record").write_text(made.stderr)
    assert message_id in made.stderr
    checked = run("check-proof", "proof", "record", "--key", "gw1.vkey")
    assert checked.exit_code == 0, checked.stderr
    assert "of gw1.example.org/audit, as signed with" in checked.stdout
    (site / "record").write_text(made.stderr.replace("client.example", "client.exampel"))
    refused = run("check-proof", "proof", "record", "--key", "gw1.vkey")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "this is not record" in refused.stderr
    other = run("check-proof", "proof", "record", "--key", signer(2).vkey)
    assert other.exit_code == 1
    (site / "proof").write_text("nonsense")
    assert run("check-proof", "proof", "record", "--key", "gw1.vkey").exit_code == 1


def test_proofs_that_can_t_be(site: Path) -> None:
    assert run("prove").exit_code == 2
    assert run("prove", "1", "--message-id", "x").exit_code == 2
    none = run("prove", "--message-id", "nobody@nowhere")
    assert (none.exit_code, none.stdout) == (3, "")
    assert "no mail has the Message-ID nobody@nowhere" in none.stderr
    assert run("prove", "99999999").exit_code == 3
    assert run("prove", "3", "--no-line").stderr == ""


def test_the_newest_checkpoint(site: Path) -> None:
    done = run("checkpoint")
    assert done.exit_code == 0
    assert (site / "kept").read_text().endswith(done.stdout)
    (site / "new").mkdir()
    Store(site / "new", create=True).close()
    empty = run("checkpoint", store="new")
    assert (empty.exit_code, empty.stdout) == (3, "")
    assert "there is no checkpoint yet" in empty.stderr


# ------------------------------------------------------------------------------------------------- prune and erase


def test_prune(site: Path) -> None:
    """The mails are from a day in January; nothing is younger."""
    would = run("prune", "--keep", "1d", "--dry-run")
    assert would.exit_code == 0
    assert re.match(r"[0-9,]+ records from before .* would go", would.stdout)
    assert run("verify", "--key", "gw1.vkey").exit_code == 0
    done = run("prune", "--keep", "1d")
    assert done.stdout == would.stdout.replace("would go", "taken away").replace(
        re.findall(r"before (\S+)", would.stdout)[0], re.findall(r"before (\S+)", done.stdout)[0]
    )
    after = run("verify", "--key", "gw1.vkey", "--checkpoint", "kept")
    assert after.exit_code == 0, after.stdout
    with closing(Store(site / "store")) as store:
        assert store.first > 0
    assert run("prune", "--keep", "100y").stdout.startswith("0 records")
    for age in ("90", "d", "90 d", "-1d"):
        assert run("prune", "--keep", age).exit_code == 2


def octets_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def address_in(directory: Path) -> str:
    """Somebody who is in the record."""
    with sqlite3.connect(directory / "audit.db") as db:
        (key,) = db.execute("SELECT sender FROM mail WHERE sender IS NOT NULL AND sender LIKE '%@%' LIMIT 1").fetchone()
    domain, _, local = key.rpartition("@")
    return f"{local}@{'.'.join(reversed(domain.split('.')))}"


def test_erase(site: Path) -> None:
    who = address_in(site / "store")
    assert who.encode() in octets_of(site / "store")
    refused = CliRunner().invoke(audit, ["erase", "--address", who, "--store", "store"], input="n\n")
    assert refused.exit_code == 1
    would = run("erase", "--address", who, "--dry-run")
    assert re.match(r"[0-9,]+ records would lose what is personal in them", would.stdout)
    assert who.encode() in octets_of(site / "store")
    done = run("erase", "--address", who, "--why", "request 17", "--yes")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == would.stdout.replace("would lose", "lost")
    assert who.encode() not in octets_of(site / "store").lower()
    after = run("verify", "--key", "gw1.vkey", "--checkpoint", "kept")
    assert after.exit_code == 0, after.stdout
    assert "note: what is personal was erased from" in after.stdout
    assert run("erase", "--address", who, "--yes").stdout.startswith("0 records")


def test_erasing_while_somebody_reads(site: Path) -> None:
    """It is done, and said that there are old octets in the log of the database still."""
    who = address_in(site / "store")
    reader = sqlite3.connect(site / "store" / "audit.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM mail").fetchone()
    done = run("erase", "--address", who, "--yes")
    assert done.exit_code == 3
    assert "run it again" in done.stderr
    reader.execute("COMMIT")
    reader.close()
    assert run("erase", "--address", who, "--yes").exit_code == 0
    assert who.encode() not in octets_of(site / "store").lower()


def test_nobody_is_named(site: Path) -> None:
    refused = run("erase", "--yes")
    assert refused.exit_code == 2
    assert "Say who" in refused.stderr


# ------------------------------------------------------------------------------------------------------------ store


def test_the_configured_store(site: Path) -> None:
    (site / "smtpproxy.toml").write_text('[audit]\nstore = "store"\n')
    invoke = CliRunner().invoke
    assert invoke(audit, ["verify", "--config", "smtpproxy.toml"]).exit_code == 0
    for text, why in (("x = [", "is no TOML"), ("", "names no store"), ('audit = "x"', "names no store")):
        (site / "smtpproxy.toml").write_text(text)
        failed = invoke(audit, ["verify", "--config", "smtpproxy.toml"])
        assert failed.exit_code == 2
        assert why in failed.stderr
    failed = invoke(audit, ["verify", "--config", "nowhere.toml"])
    assert (failed.exit_code, "nowhere.toml can't be read" in failed.stderr) == (2, True)
    assert run("verify", store="nowhere").exit_code == 3


def test_help_has_all_commands() -> None:
    told = CliRunner().invoke(audit, ["--help"]).stdout
    for name in ("search", "show", "tail", "stats", "export", "verify", "checkpoint", "prove", "prune", "erase", "key"):
        assert re.search(rf"^  {name} ", told, re.MULTILINE), name


# -------------------------------------------------------------------------------------------------------------- docs


def test_the_page_does_what_it_says(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in order, with files of here in the place of those of a gateway."""
    (site / "smtpproxy.toml").write_text('[audit]\nstore = "store"\n')
    monkeypatch.setattr("smtpproxy.audit_options.CONFIG", "smtpproxy.toml")
    monkeypatch.setattr("time.time", lambda: 1_767_605_400.0 + 3600)  # the hour after the mails
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    done = []
    for command in commands:
        if not command.startswith("smtpproxy "):
            assert command.startswith("systemctl ")
            continue
        text, _, _ = command.partition(" >")
        words = shlex.split(text)[1:]
        here = {"/mnt/elsewhere/gw1.checkpoints": "kept", "<1@example.org>": "<1.1@client.example.org>"}
        words = [here.get(one, one).replace("/etc/smtpproxy/", "") for one in words]
        if words[1] == "key":
            words[3] = words[3].replace("audit.key", f"{words[2]}.key")
            if words[2] == "rotate":
                continue  # tests/test_audit_key_cli.py does
        answer = "y\n" if words[1] == "erase" else ""
        result = CliRunner().invoke(audit, words[1:], input=answer)
        assert result.exit_code == 0, (command, result.output)
        if words[1] == "prove":
            (site / "mail.tlog-proof").write_text(result.stdout)
            (site / "mail.json").write_text(result.stderr)
        done.append(words[1])
    assert done == ["key", "checkpoint", "verify", "prove", "check-proof", "prune", "erase"]


def test_every_finding_of_the_page_is_one() -> None:
    """What the table quotes is what is said, numbers aside."""
    table = PAGE.partition("What it says, and what it means:")[2].partition("Not everything odd")[0]
    quoted = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[2:]
    paths = [DOCS.parent / "smtpproxy" / "store" / name for name in ("verifying.py", "sayings.py", "outside.py")]
    sources = re.sub(r'"\n *f?"', "", "".join(path.read_text(encoding="utf-8") for path in paths))
    for finding in quoted:
        for piece in re.split(r"[0-9]+|\b(?:records?|were|was|are|is|inserted)\b", finding):
            assert piece.strip(" ;:,") in sources, (finding, piece)
    assert len(quoted) > 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--from", "9223372036854775807"],
        ["verify", "--from", "500000"],
        ["verify", "--from", "500", "--to", "100"],
        ["verify", "--key", "a+b"],
        ["verify", "--checkpoint", "{empty}"],
        ["verify", "--checkpoint", "{binary}"],
        ["prove", "100000000000000000000000"],
    ],
)
def test_what_can_not_be_meant(tmp_path: Path, arguments: list[str]) -> None:
    """A line that says so, and nothing that looks like a finding."""
    signed(tmp_path / "store", mails=20)
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    names = {"empty": tmp_path / "empty", "binary": tmp_path / "binary"}
    result = CliRunner().invoke(
        audit, [*(each.format(**names) for each in arguments), "--store", str(tmp_path / "store")]
    )
    assert result.exit_code == 2, result.output
    assert "NOT AS IT WAS" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("age", ["3000y", "99999999999999y"])
def test_an_age_before_all_time(tmp_path: Path, age: str) -> None:
    signed(tmp_path / "store", mails=20)
    result = CliRunner().invoke(audit, ["prune", "--keep", age, "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("0 records")


def test_what_a_sink_has_not_had_stays(tmp_path: Path) -> None:
    signed(tmp_path / "store", mails=100)
    store = Store(tmp_path / "store")
    with store.changing() as connection:
        connection.execute("INSERT INTO sink VALUES ('syslog', 300, 0, ''), ('otel', 5, 0, '')")
        store.keep("owed", "syslog\nother")
    size = store.size
    store.close()
    command = ["prune", "--keep", "0s", "--store", str(tmp_path / "store")]
    kept = CliRunner().invoke(audit, command).output
    assert kept.startswith("256 records")
    assert f"{size // 256 * 256 - 256:,} more records stay, because a sink has not had them yet" in kept
    assert CliRunner().invoke(audit, [*command, "--force"]).output.startswith(f"{size // 256 * 256 - 256:,} records")

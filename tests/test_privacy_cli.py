"""`smtpproxy audit pseudonym-key`, `identify`, `auditor-key`, `unseal`, as they are typed."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.audit.sealing import sealer
from smtpproxy.audit_cli import audit


def _run(*args: str | Path, lines: bytes | None = None) -> Result:
    return CliRunner().invoke(audit, list(map(str, args)), input=lines)


def _fails(result: Result, why: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert why in result.stderr
    assert "Traceback" not in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


# ---------------------------------------------------------------------------------------------- pseudonyms


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "pseudonyms.key"
    assert _run("pseudonym-key", "init", path).exit_code == 0
    return path


def test_identify_prints_what_to_search_for_by_each_key(key: Path) -> None:
    first = _run("identify", "--key", key, "alice@example.org").stdout
    address, name, pseudonym = first.rstrip("\n").split("\t")
    assert (address, name) == ("alice@example.org", "k1")
    assert pseudonym.startswith("~k1.")
    assert _run("pseudonym-key", "rotate", key).stdout == "k2\n"
    both = _run("identify", "--key", key, "alice@example.org").stdout.splitlines()
    assert both[0] + "\n" == first
    assert both[1].split("\t")[1] == "k2"


def test_identify_tells_who_of_them_it_is(key: Path) -> None:
    text = _run("identify", "--key", key, "alice@example.org").stdout.split("\t")[2].strip()
    crowd = ("bob@example.org", "alice@example.org", "alice@example.com")
    for known in (text, text.partition("@")[0]):
        found = _run("identify", "--key", key, "--pseudonym", known, *crowd)
        assert (found.exit_code, found.stdout) == (0, "alice@example.org\n")
    _fails(_run("identify", "--key", key, "--pseudonym", text, "bob@example.org"), "it stands for none of these", 1)


def test_a_key_that_is_there_is_not_overwritten(key: Path) -> None:
    before = key.read_bytes()
    _fails(_run("pseudonym-key", "init", key), "is there already and is not overwritten")
    assert key.read_bytes() == before


@pytest.mark.parametrize("command", [("pseudonym-key", "rotate"), ("identify", "alice@example.org", "--key")])
def test_a_key_that_is_none(tmp_path: Path, command: tuple[str, ...]) -> None:
    _fails(_run(*command, tmp_path / "none"), "is not there")
    (tmp_path / "other").write_bytes(b"\xff\n")
    (tmp_path / "other").chmod(0o600)
    _fails(_run(*command, tmp_path / "other"), "is no key of pseudonyms")
    _fails(_run(*command, tmp_path), "is not a file")


def test_a_newer_key_leaves_the_file_to_who_had_it(key: Path) -> None:
    key.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(key, 65534, 65534)
    before = key.stat()
    (key.parent / "pseudonyms.key.new").write_text("k9 of a rotation that was cut off\n")
    assert _run("pseudonym-key", "rotate", key).stdout == "k2\n"
    after = key.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_uid, before.st_gid, 0o640)
    assert [path.name for path in key.parent.iterdir()] == ["pseudonyms.key"]


def test_a_newer_key_that_can_not_be_put_there(key: Path) -> None:
    (key.parent / "pseudonyms.key.new").mkdir()
    (key.parent / "pseudonyms.key.new" / "x").touch()
    before = key.read_bytes()
    _fails(_run("pseudonym-key", "rotate", key), "can't be replaced")
    assert key.read_bytes() == before


# ---------------------------------------------------------------------------------------------- transcripts


@pytest.fixture
def auditor(tmp_path: Path) -> Path:
    path = tmp_path / "auditor.key"
    assert _run("auditor-key", "init", path).exit_code == 0
    return path


def _record(auditor: Path, seq: int = 7, about: bytes = b"a-1:7") -> dict[str, object]:
    seal = sealer(auditor.with_name("auditor.key.pub"))
    sealed = seal(json.dumps({"content": "To: bob@example.org"}).encode(), about)
    return {"session": "a-1", "seq": seq, "kind": "exchange", "transcript": {"sealed": sealed}}


def test_the_keys_of_an_auditor(auditor: Path) -> None:
    assert stat.S_IMODE(auditor.stat().st_mode) == 0o600
    assert stat.S_IMODE(auditor.with_name("auditor.key.pub").stat().st_mode) == 0o644
    _fails(_run("auditor-key", "init", auditor), "is there already and is not overwritten")


def test_unseal_opens_what_is_sealed_and_leaves_the_rest_as_it_is(auditor: Path, tmp_path: Path) -> None:
    sealed = json.dumps(_record(auditor)).encode() + b"\n"
    others = [
        b'{"kind":"note",  "x":1}\n',
        b"no JSON\n",
        b'{"x":"\xff"}\n',
        b"[" * 100_000 + b"\n",
        b'{"transcript":3}\n',
    ]
    lines = b"".join([*others, sealed])
    for result in (
        _run("unseal", "--key", auditor, lines=lines),
        _run("unseal", "--key", auditor, _written(tmp_path / "lines", lines)),
    ):
        assert result.exit_code == 0, result.stderr
        got = result.stdout_bytes.splitlines(keepends=True)
        assert got[:-1] == others
        assert json.loads(got[-1])["transcript"] == {"content": "To: bob@example.org"}


def test_unseal_says_what_it_can_not_open_and_goes_on(auditor: Path) -> None:
    moved, good = _record(auditor, seq=8), _record(auditor)
    broken = _record(auditor) | {"transcript": {"sealed": "AAAA"}}
    result = _run(
        "unseal", "--key", auditor, lines="".join(json.dumps(r) + "\n" for r in (moved, broken, good)).encode()
    )
    _fails(result, "a-1: it was sealed to another key, for another record, or was changed", 1)
    got = [json.loads(line)["transcript"] for line in result.stdout.splitlines()]
    assert got == [moved["transcript"], broken["transcript"], {"content": "To: bob@example.org"}]


def test_unseal_with_what_is_no_key(auditor: Path, tmp_path: Path) -> None:
    _fails(_run("unseal", "--key", tmp_path / "none", lines=b""), "is not there")
    _fails(_run("unseal", "--key", _written(tmp_path / "x", b"x", 0o600), lines=b""), "is no auditor's key")
    auditor.chmod(0o644)
    _fails(_run("unseal", "--key", auditor, lines=b""), "is open to others")
    _fails(_run("unseal", "--key", auditor, tmp_path / "none"), "none")


def _written(path: Path, data: bytes, mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path

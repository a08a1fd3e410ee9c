"""`smtpproxy audit key`, as somebody uses it."""

import itertools
import os
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.audit.keys import load, load_verifiers
from smtpproxy.audit_cli import audit
from smtpproxy.store.owning import take
from smtpproxy.store.store import Store
from tests.store.filling import Writer, lines
from tests.store.signing import checkpoint, verified


def run(*args: object) -> Result:
    return CliRunner().invoke(audit, ["key", *map(str, args)])


def test_a_key_is_made(tmp_path: Path) -> None:
    made = run("init", tmp_path / "a.key", "--name", "gw.example/audit")
    assert made.exit_code == 0
    vkey = made.stdout.strip()
    assert vkey.startswith("gw.example/audit+")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert (tmp_path / "a.key.vkey").read_text().strip() == vkey
    assert run("show", tmp_path / "a.key").stdout.strip() == vkey
    again = run("init", tmp_path / "a.key")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "a.key" in again.stderr
    assert run("show", tmp_path / "a.key").stdout.strip() == vkey  # it is the old one


def test_this_machine_s_name_is_the_default(tmp_path: Path) -> None:
    assert run("init", tmp_path / "a.key").stdout.startswith(f"smtpproxy/{os.uname().nodename}+")


@pytest.mark.parametrize(
    "args",
    [
        ("show", "nowhere"),
        ("init", "a.key", "--name", "a b"),
        ("rotate", "nowhere", "--store", "s"),
        ("rotate", "a.key", "--store", "postgresql://x/y"),
        ("init", "a.key", "--name", "\udcff"),
    ],
)
def test_what_can_t_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    failed = run(*args)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.startswith("smtpproxy: ")
    assert list(tmp_path.iterdir()) == []


class Site:
    """A key, and a store that it signs."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "audit.key"
        self.store = directory / "store"
        self.store.mkdir()
        self.writer = Writer()
        self.vkey = run("init", self.file, "--name", "gw.example/audit").stdout.strip()
        with_key = Store(self.store, create=True)
        with with_key.changing():
            with_key.keep("origin", "gw.example/audit")
            with_key.keep("vkey", self.vkey)
        with_key.close()
        self.grow()

    def grow(self, mails: int = 60) -> None:
        """As long as it is signed by the key that is in the file."""
        store = Store(self.store)
        signer = load(self.file)
        assert store.value("vkey") == signer.vkey
        store.append(list(lines(mails, writer=self.writer)))
        checkpoint(store, signer)
        store.close()

    def rotate(self) -> Result:
        return run("rotate", self.file, "--store", self.store)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_key_is_replaced(site: Site) -> None:
    """Who has the first vkey verifies all of it; the new one alone proves nothing of the time before."""
    for _ in range(2):
        before = load(site.file).vkey
        done = site.rotate()
        assert done.exit_code == 0, done.stderr
        assert load(site.file).vkey != before
        assert load_verifiers(Path(f"{site.file}.vkey"))[0].vkey == load(site.file).vkey
        assert not Path(f"{site.file}.new").exists()
        assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
        site.grow()
    report = verified(site.store, vkey=site.vkey)
    assert report.findings == []
    assert report.checkpoints == 3


def test_a_proof_leads_from_any_key_to_the_one_that_signed(site: Site, tmp_path: Path) -> None:
    keys = [site.vkey]
    for _ in range(2):
        assert site.rotate().exit_code == 0
        site.grow()
        keys.append(load(site.file).vkey)
    proved = CliRunner().invoke(audit, ["prove", "5", "--store", str(site.store)])
    assert proved.exit_code == 0, proved.stderr
    assert len(proved.stdout) < 4000
    proof, record = tmp_path / "proof", tmp_path / "record"
    proof.write_text(proved.stdout)
    record.write_text(proved.stderr)
    stranger = run("init", tmp_path / "stranger.key", "--name", "gw.example/audit").stdout.strip()
    for vkey, code in (*((each, 0) for each in keys), (stranger, 1)):
        assert CliRunner().invoke(audit, ["check-proof", str(proof), str(record), "--key", vkey]).exit_code == code
    proof.write_text("".join(line for line in proved.stdout.splitlines(keepends=True) if not line.startswith("extra ")))
    for vkey, code in zip(keys, (1, 1, 0), strict=True):
        assert CliRunner().invoke(audit, ["check-proof", str(proof), str(record), "--key", vkey]).exit_code == code


def test_not_while_a_proxy_has_the_store(site: Site) -> None:
    lock = take(site.store)
    assert lock is not None
    before = site.file.read_bytes()
    refused = site.rotate()
    assert refused.exit_code == 2
    assert "just now: stop it first" in refused.stderr
    assert site.file.read_bytes() == before
    os.close(lock)
    assert site.rotate().exit_code == 0


def test_not_with_another_key(site: Site, tmp_path: Path) -> None:
    run("init", tmp_path / "other.key", "--name", "gw.example/audit")
    refused = run("rotate", tmp_path / "other.key", "--store", site.store)
    assert refused.exit_code == 2
    assert site.vkey in refused.stderr
    assert not (tmp_path / "other.key.new").exists()


def test_cut_off_before_the_new_key_was_introduced(site: Site) -> None:
    """A new key lies there that nobody knows of."""
    run("init", f"{site.file}.new", "--name", "gw.example/audit")
    done = site.rotate()
    assert done.exit_code == 0, done.stderr
    site.grow()
    assert verified(site.store, vkey=site.vkey).findings == []


def test_cut_off_before_the_old_key_was_gone(site: Site) -> None:
    """The store knows the new key, and the old one is in its place still."""
    old = site.file.read_bytes()
    assert site.rotate().exit_code == 0
    new = site.file.read_bytes()
    Path(f"{site.file}.new").write_bytes(new)
    Path(f"{site.file}.new.vkey").write_bytes(Path(f"{site.file}.vkey").read_bytes())
    site.file.write_bytes(old)
    os.chmod(f"{site.file}.new", 0o600)
    done = site.rotate()
    assert done.exit_code == 0
    assert "is in its place now" in done.stdout
    assert site.file.read_bytes() == new
    site.grow()
    assert verified(site.store, vkey=site.vkey).findings == []


def test_cut_off_anywhere(tmp_path: Path) -> None:
    """Killed before each of its calls that changes a file or asks the store: done once more, it is done."""
    for step in itertools.count(1):
        directory = tmp_path / str(step)
        directory.mkdir()
        site = Site(directory)
        before = load(site.file).vkey
        killed = killed_at(step, site)
        done = site.rotate()
        assert done.exit_code == 0, (step, done.output)
        assert load(site.file).vkey != before
        assert load_verifiers(Path(f"{site.file}.vkey"))[0].vkey == load(site.file).vkey
        assert sorted(path.name for path in directory.iterdir()) == ["audit.key", "audit.key.vkey", "store"]
        assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
        site.grow(5)
        assert verified(site.store, vkey=site.vkey).findings == [], step
        if not killed:
            break
    assert step > 20


def killed_at(step: int, site: Site) -> bool:
    """Rotate in a process that ends, as by a signal, before that step; whether it had so many."""
    child = os.fork()
    if not child:
        steps = itertools.count(1)

        def watch(frame: object, event: str, called: object) -> None:
            if event == "c_call" and getattr(called, "__name__", "") in _STEPS and next(steps) == step:
                os._exit(9)

        sys.setprofile(watch)
        result = site.rotate()
        sys.setprofile(None)
        os._exit(result.exit_code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


_STEPS = frozenset({"replace", "unlink", "write", "fsync", "chmod", "chown", "execute", "executemany"})


def test_files_that_can_t_be_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so; and once that is mended, it goes on."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        failed = site.rotate()
    assert failed.exit_code == 3
    assert "No space left on device; mend it, and do this once more" in failed.stderr
    assert "is in its place now" in site.rotate().stdout
    site.grow()
    assert verified(site.store, vkey=site.vkey).findings == []


def test_a_store_that_is_none(tmp_path: Path) -> None:
    run("init", tmp_path / "a.key")
    failed = run("rotate", tmp_path / "a.key", "--store", tmp_path / "nowhere")
    assert failed.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.key", "a.key.vkey"]

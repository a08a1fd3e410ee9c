"""The store of the quarantine: what is kept is whole and there for good, whatever happens; what is refused is gone."""

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.quarantine import folders, store
from smtpproxy.quarantine.folders import Folders
from smtpproxy.quarantine.store import NEW, RELEASED, Bounds, Full, NotWanted, QuarantineError, Store
from tests.quarantine.kept import CONTENT, EMPTY, FACTS, NOW, ONE, RELEASED_ONE, Wall, keep, made, record, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


# ------------------------------------------------------------------------------------------------------------- keeping


def test_a_mail_is_kept_as_it_came_with_its_record(here: Path) -> None:
    made_store = made(here)
    name = keep(made_store)
    assert re.fullmatch(r"20251123T101500Z-[0-9a-f]{12}", name)
    assert (here / "new" / f"{name}.eml").read_bytes() == CONTENT
    assert record(here, name) == {
        **FACTS,
        "v": 1,
        "name": name,
        "at": "2025-11-23T10:15:00.500Z",
        "octets": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    assert tree(here) == ONE
    mail = made_store.find(name)
    assert (mail.name, mail.state, mail.kept_at) == (name, NEW, int(NOW))
    with made_store.content(mail) as file:
        assert file.read() == CONTENT


def test_only_its_owner_can_look(here: Path) -> None:
    before = os.umask(0)
    try:
        keep(made(here))
    finally:
        os.umask(before)
    modes = {path.relative_to(here).parts[0]: path.stat().st_mode & 0o777 for path in [*here.iterdir()]}
    assert modes == {"tmp": 0o700, "new": 0o700, "released": 0o700, "lock": 0o600}
    assert here.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (here / "new").iterdir()} == {0o600}


def test_what_is_no_utf8_comes_back_as_it_was(here: Path) -> None:
    name = keep(made(here), mail="\udcffé@x.example", identity=b"j\xf6", count=3)
    found = record(here, name)
    assert found["mail"].encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9@x.example"
    assert found["identity"].encode("utf-8", "surrogateescape") == b"j\xf6"
    assert found["count"] == 3


def test_facts_do_not_say_what_the_content_is(here: Path) -> None:
    name = keep(made(here), octets=1, sha256="x")
    assert record(here, name)["octets"] == len(CONTENT)
    assert record(here, name)["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_a_large_one_and_an_empty_one(here: Path) -> None:
    kept = made(here, octets=10**7)
    large = os.urandom(store.PIECE * 3 + 17)
    assert (here / "new" / f"{keep(kept, large)}.eml").read_bytes() == large
    assert (here / "new" / f"{keep(kept, b'')}.eml").read_bytes() == b""


def test_all_is_on_the_disk_before_it_is_said_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, record, then the moves in this order, each synced before the next."""
    kept = made(here)
    said: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        said.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
        fsync(descriptor)

    def renamed(old: str, new: str, **where: int) -> None:
        said.append("move " + Path(old).suffix)
        rename(old, new, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    keep(kept)
    assert said == ["sync .eml", "sync .json", "move .eml", "sync ", "move .json", "sync "]


# -------------------------------------------------------------------------------------------------------------- bounds


def test_when_there_are_as_many_as_may_be_another_is_refused(here: Path) -> None:
    kept = made(here, mails=2)
    names = [keep(kept), keep(kept)]
    with pytest.raises(Full, match="`mails` is 2"):
        keep(kept)
    assert sorted(mail.name for mail in kept.mails()) == sorted(names)
    with kept.claimed(names[0]) as mail:
        kept.erase(mail)
    keep(kept)


def test_released_mails_count_too(here: Path) -> None:
    kept = made(here, mails=1)
    with kept.claimed(keep(kept)) as mail:
        kept.release(mail, {})
    with pytest.raises(Full):
        keep(kept)


def test_no_more_octets_than_may_be(here: Path) -> None:
    kept = made(here)
    keep(kept)
    one = kept.usage()[1]
    assert one == sum(file.stat().st_size for file in (here / "new").iterdir())
    kept = made(here, octets=2 * one)
    keep(kept)
    with pytest.raises(Full, match="what is left of `size`"):
        keep(kept)
    assert tree(here) == {**EMPTY, "new": [".eml", ".eml", ".json", ".json"]}


def test_one_that_is_larger_than_all_is_not_written_to_its_end(here: Path) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    content = Endless()
    with pytest.raises(Full, match="`size` is 1000"):
        made(here, octets=1000).keep(content, FACTS)
    assert content.given == store.PIECE
    assert tree(here) == EMPTY


def test_a_full_one_is_not_written_to(here: Path) -> None:
    content = io.BytesIO(CONTENT)
    kept = made(here, mails=1)
    keep(kept)
    with pytest.raises(Full):
        kept.keep(content, FACTS)
    assert content.tell() == 0


def test_what_was_counted_is_known_until_somebody_else_changes_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, looked = made(here), list[int]()
    scandir = os.scandir

    def scans(folder: int) -> Any:
        looked.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scans)
    names = [keep(kept) for _ in range(5)]
    assert len(looked) == 2  # both directories, once
    os.unlink(here / "new" / f"{names[0]}.json")
    os.utime(here / "new")  # a directory's time is as coarse as the kernel's tick
    assert kept.usage()[0] == 4
    assert len(looked) == 4


@pytest.mark.parametrize("rubbish", [b"", b"1 2 3\n", b"x y z a\n", b"7 7 7 7\n", b"9 9"])
def test_a_note_that_is_none_is_not_believed(here: Path, rubbish: bytes) -> None:
    kept = made(here)
    keep(kept)
    right = kept.usage()
    (here / "lock").write_bytes(rubbish)
    assert kept.usage() == right == (1, sum(file.stat().st_size for file in (here / "new").iterdir()))


def _many(path: Path, number: int) -> None:
    kept = made(path, mails=30)
    for _ in range(number):
        with pytest.raises(Full) if kept.usage()[0] >= 30 else _nothing():
            keep(kept)


class _nothing:  # noqa: N801 - as contextlib.nullcontext, but for what another was quicker to do
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is Full


def test_several_processes_keep_at_once_and_stay_within_bounds(here: Path) -> None:
    made(here).close()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_many, args=(here, 12)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    kept = made(here)
    assert kept.usage()[0] == len(list(kept.mails())) == 30
    (here / "lock").write_bytes(b"")
    assert kept.usage()[0] == 30
    assert tree(here)["tmp"] == []


def test_several_threads_keep_at_once(here: Path) -> None:
    kept = made(here)
    threads = [threading.Thread(target=lambda: [keep(kept) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.usage()[0] == len({mail.name for mail in kept.mails()}) == 40


# --------------------------------------------------------------------------------------------------------- not wanted


def test_who_has_given_up_has_nothing_kept(here: Path) -> None:
    kept = made(here)
    for asked in range(1, 3):  # while it is copied; when it was
        answers = iter([*[True] * (asked - 1), *[False] * 9])
        with pytest.raises(NotWanted):
            kept.keep(io.BytesIO(CONTENT), FACTS, wanted=lambda answers=answers: next(answers))  # type: ignore[misc]
        assert tree(here) == EMPTY


def test_the_lock_is_not_waited_for_longer_than_wanted(here: Path) -> None:
    kept = made(here)
    kept.usage()
    other = os.open(here / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    answers = iter([True, True, False])
    with pytest.raises(NotWanted, match="lock"):
        kept.keep(io.BytesIO(CONTENT), FACTS, wanted=lambda: next(answers))
    os.close(other)
    keep(kept)


# ----------------------------------------------------------------------------------------------------------- what fails


def _failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """The so-manyth call of a function of `os` fails."""
    real, left = getattr(os, call), [number]

    def fails(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return real(*given, **more)

    monkeypatch.setattr(os, call, fails)


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", 1), ("write", 2), ("fsync", 1), ("fsync", 2), ("fsync", 3), ("fsync", 4), ("rename", 1), ("rename", 2)],
)
def test_where_a_step_fails_it_is_said_and_nothing_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    kept = made(here)
    before = keep(kept)
    with monkeypatch.context() as patch:
        _failing(patch, call, number)
        with pytest.raises(QuarantineError, match="can't be written: No space left on device"):
            keep(kept)
    assert tree(here) == ONE
    assert [mail.name for mail in kept.mails()] == [before]
    assert kept.usage()[0] == 1
    keep(kept)


class Killed(BaseException):
    """As if the process had ended there: nobody tidies up."""


@pytest.mark.parametrize("step", range(1, 5))
def test_after_a_crash_between_two_steps_there_is_a_whole_mail_or_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    kept = made(here)
    moved, left = Folders.move, [step]

    def counted() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def moves(self: Folders, name: str, old: str, new: str) -> None:
        counted()
        moved(self, name, old, new)
        counted()

    with monkeypatch.context() as patch:
        patch.setattr(Folders, "move", moves)
        patch.setattr(Folders, "remove", lambda self, folder, name: None)
        with pytest.raises(Killed):
            keep(kept)
    whole = step == 4
    again = made(here)
    assert len(list(again.mails())) == whole
    for mail in again.mails():
        with again.content(mail) as file:
            assert file.read() == CONTENT
    for path in (here / "tmp").iterdir():
        os.utime(path, (NOW - 90_000, NOW - 90_000))
    left_over = {1: 2, 2: 2, 3: 2, 4: 0}[step]
    assert again.sweep() == left_over
    assert tree(here) == (ONE if whole else EMPTY)
    assert again.usage()[0] == whole


def test_a_process_that_is_killed_leaves_no_half_mail(here: Path) -> None:
    """Again and again, wherever it was just then."""
    code = (
        "import sys, pathlib\nfrom tests.quarantine.kept import made, keep\n"
        "kept = made(pathlib.Path(sys.argv[1]), octets=10**9, mails=10**6)\nprint('go', flush=True)\n"
        "while True: keep(kept, bytes(100_000))"
    )
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code, str(here)], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            start = len(list((here / "new").glob("*.json")))
            while len(list((here / "new").glob("*.json"))) < start + 3:
                pass
            process.send_signal(signal.SIGKILL)
        kept = made(here, octets=10**9, mails=10**6)
        for mail in kept.mails():
            with kept.content(mail) as file:
                assert hashlib.sha256(file.read()).hexdigest() == mail.record["sha256"]
        kept.sweep()
        names = {file.stem for file in (here / "new").iterdir()}
        assert {file.stem for file in (here / "new").glob("*.json")} == names
        kept.close()


def test_where_the_disk_is_full_it_is_said(here: Path) -> None:
    """RLIMIT_FSIZE stands for it: the kernel takes a part of what is written, and then no more."""
    code = (
        "import sys, pathlib, resource, signal\nfrom tests.quarantine.kept import made, keep, tree, EMPTY\n"
        "from smtpproxy.quarantine.store import QuarantineError\n"
        "path = pathlib.Path(sys.argv[1])\nkept = made(path)\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: keep(kept, bytes(60_000))\n"
        "except QuarantineError as error: assert 'File too large' in str(error), error\n"
        "else: raise AssertionError\n"
        "assert tree(path) == EMPTY\nkeep(kept)"
    )
    subprocess.run([sys.executable, "-c", code, str(here)], cwd=ROOT, check=True, timeout=60)
    assert tree(here) == ONE


# ------------------------------------------------------------------------------------------------------------ releasing


@pytest.fixture
def kept(here: Path) -> Iterator[Store]:
    found = made(here)
    yield found
    found.close()


def test_a_released_mail_is_elsewhere_and_its_record_says_when(kept: Store, here: Path) -> None:
    name = keep(kept)
    for number in (1, 2):
        with kept.claimed(name) as mail:
            kept.release(mail, {"at": number})
    assert tree(here) == RELEASED_ONE
    assert record(here, name, "released")["released"] == [{"at": 1}, {"at": 2}]
    assert kept.find(name).state == RELEASED
    assert [mail.name for mail in kept.mails(RELEASED)] == [name]
    assert list(kept.mails(NEW)) == []
    with kept.content(kept.find(name)) as file:
        assert file.read() == CONTENT
    assert kept.usage() == (1, sum(file.stat().st_size for file in (here / "released").iterdir()))


@pytest.mark.parametrize("step", range(1, 7))
def test_after_a_crash_while_it_is_moved_it_is_there_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    kept = made(here)
    name = keep(kept)
    left = [step]

    def breaks(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*given, **more)

        return call

    with monkeypatch.context() as patch, kept.claimed(name) as mail:
        for call in ("link", "rename", "unlink"):
            patch.setattr(os, call, breaks(getattr(os, call)))
        with pytest.raises(Killed):
            kept.release(mail, {})
    again = made(here)
    (mail,) = again.mails()
    with again.content(mail) as file:
        assert file.read() == CONTENT
    again.sweep()
    for path in (here / "tmp").iterdir():
        path.unlink()
    assert tree(here) == (RELEASED_ONE if mail.state == RELEASED else ONE)
    assert [(mail.name, mail.state) for mail in again.mails()] == [(name, mail.state)]


def test_who_has_it_claimed_has_it_alone(kept: Store, here: Path) -> None:
    name = keep(kept)
    other = Store(Folders(here))
    with kept.claimed(name):
        with pytest.raises(QuarantineError, match="is being released or erased by another"), other.claimed(name):
            pass
        assert other.expire(-(10**6)) == []
    with other.claimed(name) as mail:
        assert mail.name == name


def test_who_comes_second_gets_it_as_it_is_by_then(kept: Store, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was found in new/, and moves before it is claimed."""
    name = keep(kept)
    other = Store(Folders(here))
    find, moved = Store.find, list[str]()

    def finds(self: Store, wanted: str) -> Any:
        found = find(self, wanted)
        if self is other and not moved:
            moved.append(wanted)
            with kept.claimed(name) as mail:
                kept.release(mail, {})
        return found

    monkeypatch.setattr(Store, "find", finds)
    with other.claimed(name) as mail:
        assert mail.state == RELEASED


def test_erased_is_gone(kept: Store, here: Path) -> None:
    name, other = keep(kept), keep(kept)
    with kept.claimed(name) as mail:
        kept.release(mail, {})
    for one in (name, other):
        with kept.claimed(one) as mail:
            kept.erase(mail)
        with pytest.raises(QuarantineError, match=f"there is no mail {one} in"):
            kept.find(one)
    assert tree(here) == EMPTY
    assert kept.usage() == (0, 0)


def test_what_is_old_expires(here: Path) -> None:
    wall = Wall()
    kept = made(here, wall=wall)
    old, released = keep(kept), keep(kept)
    with kept.claimed(released) as mail:
        kept.release(mail, {})
    wall.now += 86_400
    new = keep(kept)
    assert kept.expire(2 * 86_400) == []
    wall.now += 86_400
    assert sorted(mail.name for mail in kept.expire(1.5 * 86_400)) == sorted([old, released])
    assert [mail.name for mail in kept.mails()] == [new]


def test_a_sweep_leaves_what_is_being_written_and_what_is_not_ours(kept: Store, here: Path) -> None:
    keep(kept)
    for name in ("tmp", "new", "released"):
        (here / name / "README").write_text("ours\n")
    (here / "tmp" / "20251123T101500Z-0123456789ab.eml").write_bytes(b"half")
    assert kept.sweep() == 0
    assert (here / "tmp" / "20251123T101500Z-0123456789ab.eml").exists()
    assert len(list(kept.mails())) == 1


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_record_that_is_none_hides_no_mail(kept: Store, here: Path, text: bytes) -> None:
    name = keep(kept)
    (here / "new" / f"{name}.json").write_bytes(text)
    (mail,) = kept.mails()
    assert (mail.name, mail.record) == (name, {})
    with kept.claimed(name) as claimed:
        kept.erase(claimed)


@pytest.mark.parametrize("name", ["", "../new/x", "20251123T101500Z-0123456789ab", "x\x1b[0m", "/etc/passwd"])
def test_a_name_that_is_none_is_said_so(kept: Store, name: str) -> None:
    with pytest.raises(QuarantineError, match="there is no mail") as caught:
        kept.find(name)
    assert str(caught.value).isprintable()


def test_links_are_not_followed(kept: Store, here: Path, tmp_path: Path) -> None:
    """Root may look into the directory of a service that was taken over."""
    (tmp_path / "secret").write_bytes(b"secret")
    name = keep(kept)
    content = here / "new" / f"{name}.eml"
    content.unlink()
    content.symlink_to(tmp_path / "secret")
    with pytest.raises(QuarantineError, match=f"the content of {name} can't be read"):
        kept.content(kept.find(name))
    content.unlink()
    os.mkfifo(content)
    with pytest.raises(QuarantineError, match="it is no file"):
        kept.content(kept.find(name))
    (here / "moved").mkdir()
    os.rename(here / "released", here / "moved" / "released")
    (here / "released").symlink_to(here / "moved" / "released")
    with pytest.raises(QuarantineError, match="can't be opened"):
        Folders(here)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(QuarantineError, match=f"there is no quarantine in {tmp_path}"):
        Folders(tmp_path)
    with pytest.raises(QuarantineError, match="can't be opened: No such file"):
        Folders(tmp_path / "no" / "where", make=True)
    (tmp_path / "file").touch()
    with pytest.raises(QuarantineError, match="can't be opened: Not a directory"):
        Folders(tmp_path / "file", make=True)


def test_no_descriptor_is_left_open(here: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = made(here, mails=3)
    name = keep(kept)
    with kept.claimed(name) as mail:
        kept.release(mail, {})
    kept.expire(0)
    kept.sweep()
    kept.usable()
    with pytest.raises(QuarantineError), kept.claimed("x"):
        pass
    kept.close()
    kept.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_root_makes_is_the_workers(here: Path) -> None:
    """A worker makes it before it gives up its privileges; later root releases a mail there."""
    kept = Store(Folders(here, make=True, owner=(65_534, 65_534)), bounds=Bounds(10**6, 9), wall=Wall())
    name = keep(kept)
    with kept.claimed(name) as mail:
        kept.release(mail, {})
    keep(kept)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [here, *here.rglob("*")]}
    assert owners == {(65_534, 65_534)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_of_somebody_else_is_not_usable(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\nfrom smtpproxy.quarantine.folders import Folders, QuarantineError\n"
        "folders = Folders(pathlib.Path(sys.argv[1]), make=True)\n"
        "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
        "try: folders.usable()\nexcept QuarantineError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "q")], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert said == f"{tmp_path}/q/tmp can't be written to: it must belong to who the workers are\n"


def test_a_record_is_json_on_one_line(kept: Store, here: Path) -> None:
    name = keep(kept, why="a\nb é")
    text = (here / "new" / f"{name}.json").read_bytes()
    assert text.count(b"\n") == 1
    assert json.loads(text)["why"] == "a\nb é"
    assert folders.is_name(name)

"""How a generation comes to be: all of what its setup names, or nothing."""

import gc
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.appending import WriteLock
from smtpproxy.config import Config
from smtpproxy.net import listening
from smtpproxy.net.founding import CannotServeError, Shared, close_record, found, open_record
from smtpproxy.net.generation import Failure, Generation
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.metering import Metering
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tallies
from smtpproxy.session.verdicts import PassAll
from smtpproxy.tls.authority import create

# ------------------------------------------------------------------------------------------------- the audit


def test_who_writes_the_same_file_shares_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    first = open_record(str(path), ())
    shared = [Shared(first.lock, first.file)]
    second = open_record(str(path), shared)
    assert second.lock is first.lock
    assert second.descriptor != first.descriptor
    path.rename(tmp_path / "audit.1")
    third = open_record(str(path), shared)
    assert third.lock is not first.lock
    os.write(second.descriptor, b"old\n")
    os.write(third.descriptor, b"new\n")
    assert (path.read_bytes(), (tmp_path / "audit.1").read_bytes()) == (b"new\n", b"old\n")
    close_record(second, shared)
    os.fstat(first.lock.fileno())  # somebody else has it
    close_record(first, ())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first.lock.fileno())
    close_record(third, ())


def test_standard_output_is_never_opened_nor_closed() -> None:
    record = open_record("-", ())
    assert record.descriptor > 2
    assert os.fstat(record.descriptor).st_ino == os.fstat(1).st_ino
    close_record(record, ())
    os.fstat(1)


# ------------------------------------------------------------------------------------------------- a generation


class Ground:
    """What a supervisor has."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.tallies = Tallies(4)
        self.metering = Metering(4)
        self.made: list[Generation] = []

    def found(self, settings: Mapping[str, Any], held: tuple[Held, ...] = (), shared: tuple[Shared, ...] = ()) -> Any:
        """A generation."""
        config = Config.model_validate(settings)
        setup = Setup(config, {"": PassAll()})
        self.made.append(found(1, setup, held, shared, loop=self.loop, tallies=self.tallies, metering=self.metering))
        return self.made[-1]

    def close(self) -> None:
        """All that is left."""
        for generation in self.made:
            generation.close()
            for held in generation.held:
                listening.close(held)
            close_record(generation.record, ())
        self.metering.close()
        self.loop.close()


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Closed at the end."""
    made = Ground()
    yield made
    made.close()


def _settings(folder: Path, **more: Any) -> dict[str, Any]:
    listener = {"name": "in", "listen": "127.0.0.1:0", "server": "192.0.2.1"}
    return {"listener": [listener], "audit": {"file": str(folder / "audit")}, "process": {"workers": 3}, **more}


def test_a_generation_has_all_that_its_setup_names(tmp_path: Path, ground: Ground) -> None:
    made = ground.found(_settings(tmp_path))
    assert [held.name for held in made.held] == ["in"]
    assert made.signing is None
    assert len(made.slots) == 3
    again = ground.found(_settings(tmp_path), made.held, (Shared(made.record.lock, made.record.file),))
    assert again.held == made.held
    assert again.record.lock is made.record.lock
    ground.made.remove(made)
    made.close()
    os.close(made.record.descriptor)


def test_each_has_a_signing_process_of_its_own_with_a_place_for_each_worker(tmp_path: Path, ground: Ground) -> None:
    create(tmp_path / "ca", "Test", 100)
    made = ground.found(_settings(tmp_path, ca={"directory": str(tmp_path / "ca")}))
    assert made.signing.pid
    assert b"BEGIN CERTIFICATE" in made.signing.certificate
    assert len({made.signing.socket_of(slot).fileno() for slot in range(3)}) == 3


@pytest.mark.parametrize(
    ("more", "failure"),
    [
        ({"process": {"user": "no-such-user"}}, Failure(2, "there is no user 'no-such-user'")),
        ({"ca": {"directory": "{folder}/none"}}, Failure(2, "the signing process can't be started: ")),
        (
            {"audit": {"file": "{folder}/none/audit"}},
            Failure(3, "the audit {folder}/none/audit can't be opened: No such"),
        ),
        (
            {"listener": [{"name": "in", "listen": "192.0.2.1:25", "server": "192.0.2.2"}]},
            Failure(3, "can't listen on 192.0.2.1:25: "),
        ),
    ],
)
def test_what_can_not_be_had_leaves_nothing_behind(
    tmp_path: Path, ground: Ground, more: dict[str, Any], failure: Failure
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        lock = WriteLock()
        gc.collect()  # what others left behind goes now, not meanwhile
        before = sorted(os.listdir("/proc/self/fd"))
        more = _in(tmp_path, more)
        with pytest.raises(CannotServeError) as caught:
            ground.found(_settings(tmp_path, **more), (Held("in", "127.0.0.1:0", (sock,)),), (Shared(lock, (0, 0)),))
        assert caught.value.failure.code == failure.code
        assert str(caught.value).startswith(failure.text.format(folder=tmp_path))
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert sock.getsockname()
        os.close(lock.fileno())


def _in(folder: Path, value: Any) -> Any:
    """With the folder's name where it is wanted."""
    if isinstance(value, dict):
        return {key: _in(folder, one) for key, one in value.items()}
    return value.format(folder=folder) if isinstance(value, str) else value

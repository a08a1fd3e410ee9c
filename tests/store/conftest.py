"""What the tests of the store share. The PostgreSQL server is started at its first use and ended with the test session;
who stops it or changes what concerns all of it has one of its own (pg_rig.running)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.gateway import folder
from tests.store.pg_rig import Cluster, running
from tests.store.signing import signed


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.fixture
def database(server: Cluster) -> str:
    """A new one, by its address."""
    return server.database()


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory for a whole gateway."""
    with folder() as path:
        yield path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of about 1,900 records with a checkpoint every 300, and their notes."""
    directory = tmp_path_factory.mktemp("original")
    return directory, signed(directory)


@pytest.fixture
def store(original: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    directory = tmp_path / "store"
    shutil.copytree(original[0], directory)
    return directory

"""The PostgreSQL server of `tests/store`, started at its first use and ended with the test session. Who stops it or
changes what concerns all of it has one of its own (pg_rig.running)."""

from collections.abc import Iterator

import pytest

from tests.store.pg_rig import Cluster, running


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.fixture
def database(server: Cluster) -> str:
    """A new one, by its address."""
    return server.database()

"""The servers of `tests/peers`, each started at its first use and ended with the test session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.servers import SERVERS, Server


class Servers:
    """A server stays up for the tests of other clients; mails are told apart by their addresses."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: dict[str, Server | Exception] = {}

    def __getitem__(self, name: str) -> Server:
        if name not in self._started:
            try:
                self._started[name] = self._stack.enter_context(SERVERS[name]())
            except Exception as error:  # one attempt for all tests that want it
                self._started[name] = error
        found = self._started[name]
        if isinstance(found, PeerUnavailable):
            unavailable(found)
        if isinstance(found, Exception):
            raise found
        return found

    def running(self) -> list[Server]:
        return [server for server in self._started.values() if isinstance(server, Server)]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)

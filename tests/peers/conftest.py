"""The servers of `tests/peers`, each started at its first use and ended with the test session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import Scratch
from tests.peers.servers import SERVERS, Server
from tests.peers.tls import Authority


class Servers:
    """A server stays up for the tests of other clients; mails are told apart by their addresses."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: dict[tuple[str, str], Server | Exception] = {}
        directory = Scratch("authority")
        stack.callback(directory.remove)
        self.authority = Authority(directory.path)  # of the servers' certificates

    def __getitem__(self, name: str) -> Server:
        """The server without TLS."""
        return self._get(name, "clear")

    def starttls(self, name: str) -> Server:
        return self._get(name, "starttls")

    def implicit(self, name: str) -> Server:
        return self._get(name, "implicit")

    def _get(self, name: str, link: str) -> Server:
        if (name, link) not in self._started:
            try:
                identity = None  # keys of both kinds are in use
                if link != "clear":
                    identity = self.authority.identity(SERVERS[name].hostname, rsa=link == "implicit")
                server = SERVERS[name](identity, implicit=link == "implicit")
                self._started[name, link] = self._stack.enter_context(server)
            except Exception as error:  # one attempt for all tests that want it
                self._started[name, link] = error
        found = self._started[name, link]
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

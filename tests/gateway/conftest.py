"""A network of its own for each test that asks for one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.gateway.namespaces import Network
from tests.peers import PeerUnavailable, unavailable


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network().__enter__()
    except PeerUnavailable as error:
        unavailable(error)
    with made.stack:
        yield made


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    found: socket.AddressFamily = request.param
    return found

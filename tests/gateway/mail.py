"""Mail across the three machines: the proxy itself on the gateway, real servers behind it, real clients before it.

What is made here runs in a namespace from its start (`Namespace.inside`: children belong to it), and is as on any
machine otherwise: tests/peers has the programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from smtpproxy.config import load_config
from smtpproxy.gateway.nft import modes_of
from tests.gateway.namespaces import Namespace, Network
from tests.peers.clients import PostfixRelay
from tests.peers.process import Program, Scratch
from tests.peers.proxy import smtpproxy
from tests.peers.servers import start_postfix
from tests.peers.serving import Serving

SECONDS = 20.0
NUMBERS = count(1)  # each mail has addresses of its own


class GatewayProxy(Serving):
    """The proxy on one of the machines."""

    def __init__(
        self,
        machine: Namespace,
        listeners: Sequence[Mapping[str, object]],
        tables: Mapping[str, Mapping[str, object]] | None = None,
        matches: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self._machine = machine
        super().__init__(listeners, tables, matches)

    def command(self, argv: list[str]) -> list[str]:
        return self._machine.command(argv)

    def printed(self, *options: str) -> str:
        """What `smtpproxy nft` prints for all that needs it."""
        return smtpproxy("nft", *modes_of(load_config(self.config)), "--config", str(self.config), *options)


class Route(NamedTuple):
    """Where mail for a domain goes: to port 25 of `address`, in TLS.

    With `verified` the certificate has to be from the sender's roots and for `name`.
    """

    address: str
    name: str
    verified: bool = False

    @property
    def hop(self) -> str:
        """One for each way of TLS, which Postfix looks up by what is written here. They are the same place."""
        return f"[{self.address}]" if self.verified else f"[{self.address}]:25"


class Sender(PostfixRelay):
    """A Postfix on the client's machine. `routes`: where it takes mail for which domain."""

    def __init__(
        self, machine: Namespace, routes: Mapping[str, Route], roots: Path | None = None, settings: str = ""
    ) -> None:
        super().__init__("", 25)
        self._machine = machine
        self._routes = routes
        self._roots = roots
        self._settings = settings

    def __enter__(self) -> Self:
        with self._machine.inside():
            return super().__enter__()

    def submit(self, sender: str, recipients: Sequence[str], content: bytes) -> str:
        with self._machine.inside():
            return super().submit(sender, recipients, content)

    def start(self, scratch: Scratch) -> Program:
        policies = {
            route.hop: f"{f'secure match={route.name}' if route.verified else 'encrypt'} servername={route.name}"
            for route in self._routes.values()
        }
        routes = {domain: f"smtp:{route.hop}" for domain, route in self._routes.items()}
        settings = SENDER.format(
            routes=scratch.write("routes", "".join(f"{key} {value}\n" for key, value in routes.items())),
            policies=scratch.write("policies", "".join(f"{key} {value}\n" for key, value in policies.items())),
            roots=self._roots or "",
        )
        return start_postfix(scratch, self._port, settings + self._settings)


SENDER = """\
myhostname = sender.src.example
inet_protocols = all
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_connection_cache_on_demand = no
transport_maps = texthash:{routes}
smtp_tls_policy_maps = texthash:{policies}
smtp_tls_security_level = encrypt
smtp_tls_CAfile = {roots}
smtp_tls_loglevel = 1
"""


def loaded(network: Network, proxy: GatewayProxy, *options: str) -> str:
    """What the proxy's configuration needs of its gateway is done there, as the printed text says."""
    text = proxy.printed(*options)
    network.load(text)
    return text

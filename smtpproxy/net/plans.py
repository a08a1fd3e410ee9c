"""What is done with a session of a listener: the listener's own plan, and one for each `[[match]]` block of it.

A plan is chosen once, when it is known who the client is and where it was going; the first block that fits counts. All
of it is made before the first connection is accepted, and what is the same is shared: a server, and within a listener
TLS towards it.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import structlog
import trio

from smtpproxy.config import Endpoint, ListenerConfig, MatchConfig, TLSConfig
from smtpproxy.net.dialling import Address
from smtpproxy.net.handshakes import ListenerTLS
from smtpproxy.net.machine import Where, family_of
from smtpproxy.net.materials import Materials
from smtpproxy.net.origin import Network, Origin
from smtpproxy.net.setup import Setup
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.verdicts import Judge

log = structlog.get_logger()

REFRESH = 60.0  # seconds a looked-up name is good for
RETRY = 5.0  # seconds until one that is not known at all is looked up again
_WITHOUT_TLS = Posture(ClientTLS.REFUSE, ServerTLS.NEVER)


class Destination:
    """A server by address or name. `addresses` are in the resolver's order."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.addresses: list[Address] = []
        self.literal = False
        with contextlib.suppress(ValueError):
            version = ipaddress.ip_address(endpoint.host).version
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            self.addresses = [(family, (endpoint.host, endpoint.port))]
            self.literal = True

    def __str__(self) -> str:
        return str(self.endpoint)

    async def look_up(self) -> None:
        """Ask the resolver; what was known stays if it does not answer."""
        if self.literal:
            return
        try:
            found = await trio.socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            log.warning("the server's name can't be looked up", server=str(self.endpoint), why=str(error))
            return
        self.addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))

    async def keep_fresh(self) -> None:
        """Look the name up again and again."""
        while not self.literal:
            await trio.sleep(REFRESH if self.addresses else RETRY)
            await self.look_up()


class Plan(NamedTuple):
    """What is done with a session.

    Attributes:
        name: of the match block; "" if none fits.
        entry: the listener's settings, with what the block says in place of them.
        destination: the configured server; None: where the client was going.
        unseen: octets pass uninspected.
        redirects: the servers that rules lead to.
    """

    name: str
    entry: ListenerConfig
    destination: Destination | None
    tls: ListenerTLS | None
    posture: Posture
    judge: Judge
    unseen: bool = False
    redirects: Mapping[tuple[str, int], tuple[Destination, ListenerTLS | None]] = MappingProxyType({})

    def elsewhere(self, host: str, port: int) -> tuple[list[Address], ListenerTLS | None]:
        """A server that a rule leads to: the addresses to try, and TLS towards it."""
        destination, tls = self.redirects[host, port]
        return list(destination.addresses), tls

    def going(self, origin: Origin) -> Where:
        """The server a session is meant for."""
        if self.destination is None:
            return origin.going
        return self.destination.endpoint.host, self.destination.endpoint.port

    def server(self, origin: Origin) -> tuple[str, list[Address]]:
        """Where this session goes: as it is written, and the addresses to try."""
        if self.destination is not None:
            return str(self.destination), list(self.destination.addresses)
        host, port = origin.going
        return str(Endpoint(host, port)), [(family_of(host), (host, port))]

    def tls_for(self, origin: Origin) -> ListenerTLS | None:
        """TLS towards the server of this session, which may be known by its address alone."""
        if self.tls is None or self.entry.server_name:
            return self.tls
        return self.tls.for_host(origin.going[0])


class Plans:
    """The plans of one listener."""

    def __init__(self, entry: ListenerConfig, default: Plan, matches: Iterable[tuple[MatchConfig, Plan]] = ()) -> None:
        self.entry = entry
        self.default = default
        self.matches = tuple(matches)

    def choose(self, origin: Origin) -> Plan:
        """The first that fits."""
        for match, plan in self.matches:
            if fits(match, origin.client, origin.aim):
                return plan
        return self.default


def fits(match: MatchConfig, client: Where, aim: Where) -> bool:
    """All of a block's conditions hold."""
    return (
        (not match.ports or aim[1] in match.ports)
        and (not match.clients or is_in(client[0], match.clients))
        and (not match.servers or is_in(aim[0], match.servers))
    )


def is_in(host: str, networks: Sequence[Network]) -> bool:
    """The address is in one of them."""
    if not networks:
        return False
    address = ipaddress.ip_address(host)
    return any(address in network for network in networks)


class Making:
    """All plans, made from a setup. `destinations` are what has to be kept fresh."""

    def __init__(self, setup: Setup, materials: Materials | None) -> None:
        self._setup = setup
        self._materials = materials
        self._destinations: dict[Endpoint, Destination] = {}
        self._tls: dict[tuple[str, TLSConfig, Endpoint | None], ListenerTLS] = {}

    @property
    def destinations(self) -> list[Destination]:
        """Each server once."""
        return list(self._destinations.values())

    def plans(self) -> list[Plans]:
        """Those of each listener, in the order of the configuration. Reads files: not for the event loop's thread.

        Raises:
            MaterialError: what is configured for TLS can't work.
        """
        config = self._setup.config
        made = []
        for entry in config.listeners:
            default = self._plan(entry, "", self._setup.judges)
            matches = []
            for match in config.matches:
                if not match.listeners or entry.name in match.listeners:
                    plan = self._plan(config.effective(entry, match), match.name, self._setup.judges)
                    matches.append((match, plan._replace(unseen=match.unseen)))
            made.append(Plans(entry, default, matches))
        return made

    def _plan(self, entry: ListenerConfig, name: str, judges: Mapping[str, Judge]) -> Plan:
        destination = None
        if entry.server is not None:
            destination = self._destinations.setdefault(entry.server, Destination(entry.server))
        judge = judges[name] if name in judges else judges[""]
        tls = self._tls_of(entry)
        posture = entry.posture() if tls is not None else _WITHOUT_TLS
        redirects = {(host, port): self._elsewhere(entry, Endpoint(host, port)) for host, port in judge.redirects}
        return Plan(name, entry, destination, tls, posture, judge, redirects=redirects)

    def _tls_of(self, entry: ListenerConfig) -> ListenerTLS | None:
        if self._materials is None:
            return None
        key = entry.name, entry.tls, entry.server  # tickets of one listener are nothing to another
        found = self._tls[key] = self._tls.get(key) or self._materials.listener(entry)
        return found

    def _elsewhere(self, entry: ListenerConfig, server: Endpoint) -> tuple[Destination, ListenerTLS | None]:
        destination = self._destinations.setdefault(server, Destination(server))
        return destination, self._tls_of(entry.model_copy(update={"server": server}))

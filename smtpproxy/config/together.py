"""What of the whole configuration can't be meant: settings that are right each for itself, and not beside the others.

Each is an error at the place of the setting that has to go or to change. What could be meant and does nothing is in
`idle`; what is wrong within one listener's TLS is told with the listener itself (`tables`).
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Final

from smtpproxy.config.inline import MatchConfig
from smtpproxy.config.tables import Config, ListenerConfig
from smtpproxy.config.tls import ca_mistakes, listener_mistakes, resolver_mistakes
from smtpproxy.config.values import Endpoint, Mistake, is_address
from smtpproxy.policy.toml import KeyPath, nearest, shown

WILDCARDS: Final = ("0.0.0.0", "::")
BOTH: Final = frozenset((4, 6))


def together(config: Config) -> Iterator[Mistake]:
    """All of it; places are within the whole."""
    for mistake in ca_mistakes(config.ca):
        yield mistake._replace(place=("ca", *mistake.place))
    if any(variant.entry.tls.verify == "dane" for variant in config.variants()):
        yield from resolver_mistakes(config.dns)
    yield from _of_addresses(config.listeners)
    for index, listener in enumerate(config.listeners):
        if listener.addresses == "pseudonym" and not config.audit.pseudonym_key:
            mend = "`[audit] pseudonym_key`, which `smtpproxy audit pseudonym-key init FILE` makes"
            yield Mistake(("listener", index, "addresses"), "pseudonyms are made with a key, and none is named", mend)
    names = [listener.name for listener in config.listeners]
    before: set[str] = set()
    for index, match in enumerate(config.matches):
        place = ("match", index)
        if match.name in before:
            yield Mistake((*place, "name"), f"two matches are called {shown(match.name)}", "a name of its own for each")
        before.add(match.name)
        yield from _of_match(match, place, names)
    yield from _of_variants(config)


def _of_addresses(listeners: Sequence[ListenerConfig]) -> Iterator[Mistake]:
    """Only one can listen on an address; who comes second would not start."""
    for index, listener in enumerate(listeners):
        for other in listeners[:index]:
            if _collide(listener.listen, other.listen):
                yield Mistake(
                    ("listener", index, "listen"),
                    f"listener {shown(other.name)} listens on {other.listen} already",
                    "an address or port of its own for each",
                )
                break


def _collide(one: Endpoint, other: Endpoint) -> bool:
    if one.port != other.port or not one.port:
        return False
    hosts = {host_of(one), host_of(other)}
    if len(hosts) == 1:
        return True
    return not hosts.isdisjoint(WILDCARDS) and families(one) == families(other) != BOTH


def host_of(endpoint: Endpoint) -> str:
    """Its host in one spelling."""
    if is_address(endpoint.host):
        return str(ipaddress.ip_address(endpoint.host))
    return endpoint.host.rstrip(".").lower()


def families(endpoint: Endpoint) -> frozenset[int]:
    """The versions of IP its addresses may have; an IPv6 listener takes no IPv4."""
    if not is_address(endpoint.host):
        return BOTH
    return frozenset((ipaddress.ip_address(endpoint.host).version,))


def _of_match(match: MatchConfig, place: KeyPath, names: Sequence[str]) -> Iterator[Mistake]:
    """What is wrong with one block."""
    for number, name in enumerate(match.listeners):
        if name not in names:
            near = tuple(nearest(name, names))
            expected = "" if near else " or ".join(map(shown, names))
            message = f"no listener is called {shown(name)}"
            yield Mistake((*place, "listeners", number), message, expected, nearest=near)
    if not (match.listeners or match.clients or match.servers or match.ports):
        yield Mistake(place, "is for all connections of all listeners", "listeners, clients, servers or ports")
    if match.unseen:
        why = "does not go with unseen = true: what is not looked at"
        if match.rules:
            yield Mistake((*place, "rules"), f"{why} is not decided about", "the one or the other")
        if match.tls is not None:
            yield Mistake((*place, "tls"), f"{why} is neither decrypted nor encrypted", "the one or the other")


def _of_variants(config: Config) -> Iterator[Mistake]:
    """What is wrong with what listeners and blocks come to."""
    for variant in config.variants():
        entry, here = variant.entry, ("listener", variant.listener)
        if variant.match is not None:
            match = config.matches[variant.match]
            for mistake in listener_mistakes(entry.tls, entry.server):
                message = f"with what listener {shown(entry.name)} says, {mistake.message}"
                place = _place(match, ("match", variant.match), str(mistake.place[-1]))
                yield mistake._replace(place=place, message=message)
            if match.server is None:
                continue  # the family is told with the listener
            here = ("match", variant.match)
        if entry.server is not None and entry.keeps_client and not entry.proxy_from:
            clients, servers = families(entry.listen), families(entry.server)
            if clients.isdisjoint(servers):
                (client,), (server,) = clients, servers
                yield Mistake(
                    (*here, "server"),
                    f"{entry.server.host} is an IPv{server} address, and the clients of listener {shown(entry.name)},"
                    f" whose own addresses it is to see, have IPv{client} ones",
                    'a server of their kind, or source = "own"',
                )


def _place(match: MatchConfig, place: KeyPath, key: str) -> KeyPath:
    """Where a block says what does not go with its listener."""
    if match.tls is not None and key in match.tls.model_fields_set:
        return (*place, "tls", key)
    return (*place, "server") if match.server is not None else (*place, "tls")

"""Whether a `[[match]]` block, or a line of `[listener.intercept]`, can ever apply to anything.

Only what is certain is told. A block is one of networks, ports and names; a connection that fits an earlier block
wholly around it never gets to it.
"""

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from smtpproxy.config.inline import InterceptConfig, MatchConfig
from smtpproxy.config.tables import Config, ListenerConfig
from smtpproxy.config.together import BOTH, WILDCARDS, families, host_of
from smtpproxy.config.values import Network, is_address
from smtpproxy.policy.toml import KeyPath, shown

_EVERYWHERE: Final = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))

Found = tuple[KeyPath, str]


def never(config: Config) -> Iterator[Found]:
    """Blocks and interceptions that never apply, or change nothing where they do, and why."""
    for index, match in enumerate(config.matches):
        place = ("match", index)
        theirs = [one for one in config.listeners if not match.listeners or one.name in match.listeners]
        before = next((one for one in config.matches[:index] if _covers(one, match, config.listeners)), None)
        if before is not None:
            yield place, f"never applies: all it is for fits match {shown(before.name)} before it"
        elif theirs and not any(_may_apply(match, one) for one in theirs):
            yield place, "never applies: no connection of these listeners has such addresses or ports"
        elif index == len(config.matches) - 1 and not (match.unseen or match.server or match.rules or match.tls):
            yield place, "has no effect: it changes nothing, and keeps nothing from a block behind it"
    led = [(index, one) for index, one in enumerate(config.listeners) if one.mode != "forward"]
    for position, (index, listener) in enumerate(led):
        for _, other in led[:position]:
            if families(listener.listen) <= families(other.listen) != BOTH and _takes(
                other.intercept, listener.intercept
            ):
                why = f"never applies: all it is for is led to listener {shown(other.name)} before it"
                yield ("listener", index, "intercept"), why
                break


def twice(config: Config) -> Iterator[Found]:
    """What stands twice in one list."""
    for index, listener in enumerate(config.listeners):
        for key in ("reach", "proxy_from"):
            yield from _again(getattr(listener, key), ("listener", index, key))
        for key in ("ports", "clients", "servers", "interfaces"):
            yield from _again(getattr(listener.intercept, key), ("listener", index, "intercept", key))
    for index, match in enumerate(config.matches):
        for key in ("listeners", "clients", "servers", "ports", "rules"):
            yield from _again(getattr(match, key), ("match", index, key))
        for number, path in enumerate(match.rules):
            if path in config.rules:
                yield ("match", index, "rules", number), "has no effect: these rules are for all connections already"


def _again(values: Sequence[Any], place: KeyPath) -> Iterator[Found]:
    for number, value in enumerate(values):
        if value in values[:number]:
            yield (*place, number), f"{value} stands there already"


def _covers(one: MatchConfig, other: MatchConfig, listeners: Iterable[ListenerConfig]) -> bool:
    """Whatever fits the other fits this one."""
    names = [listener.name for listener in listeners]
    return (
        _holds(one.listeners, other.listeners or names)
        and _holds(one.ports, other.ports)
        and _spans(one.clients, other.clients)
        and _spans(one.servers, other.servers)
    )


def _takes(one: InterceptConfig, other: InterceptConfig) -> bool:
    """Whatever the other is for, this one is for too."""
    return (
        _holds(one.ports, other.ports)
        and _holds(one.interfaces, other.interfaces)
        and _spans(one.clients, other.clients)
        and _spans(one.servers, other.servers)
    )


def _holds(one: Collection[object], other: Collection[object]) -> bool:
    """All of the other is in this one; an empty one is everything."""
    return not one or (bool(other) and set(other) <= set(one))


def _spans(one: Iterable[Network], other: Sequence[Network]) -> bool:
    """All of the other's addresses are in this one; an empty one is everything."""
    whole: list[Network] = [
        *ipaddress.collapse_addresses(network for network in one if isinstance(network, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(network for network in one if isinstance(network, ipaddress.IPv6Network)),
    ]
    return not whole or all(any(_inside(inner, outer) for outer in whole) for inner in other or _EVERYWHERE)


def _inside(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _may_apply(match: MatchConfig, listener: ListenerConfig) -> bool:
    """There may be a connection that fits, as far as that can be told from the listener's address."""
    versions = BOTH if listener.proxy_from else families(listener.listen)
    for networks in (match.clients, match.servers):
        versions &= {network.version for network in networks} or BOTH
    if not versions:
        return False
    if listener.mode != "forward" or listener.proxy_from:
        return True
    # Where the client was going is where it came in.
    host, port = host_of(listener.listen), listener.listen.port
    if match.ports and port and port not in match.ports:
        return False
    if not match.servers or host in WILDCARDS or not is_address(host):
        return True
    return any(ipaddress.ip_address(host) in network for network in match.servers)

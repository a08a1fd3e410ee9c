"""What loaded nftables rules do for the proxy, as far as it can be told from reading them (`nft -j list ruleset`).

Rules need not be those of `smtpproxy nft`: what counts is that one, in a chain that packets get to from the prerouting
hook, leads to the port. Of its conditions only the version of IP is looked at.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from smtpproxy.gateway.nft import ALIVE, PRINTED, TABLE

_VERSIONS: Final = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
_SAYS: Final = {"ipv4": 4, "ip": 4, "ipv6": 6, "ip6": 6}
_Chain = tuple[str, str, str]  # family, table, name


class Ruleset:
    """Rules that were loaded."""

    def __init__(self, items: Iterable[dict[str, Any]]) -> None:
        self._rules: dict[_Chain, list[dict[str, Any]]] = {}
        self._sets: set[tuple[str, str, str]] = set()
        entries: list[_Chain] = []
        for item in items:
            for kind, value in item.items():
                if kind == "rule":
                    self._rules.setdefault(_chain(value, "chain"), []).append(value)
                elif kind == "chain" and value.get("hook") == "prerouting":
                    entries.append(_chain(value, "name"))
                elif kind == "set":
                    self._sets.add(_chain(value, "name"))
        self._reached = self._follow(entries)

    @property
    def printed(self) -> str | None:
        """Which text of `smtpproxy nft` it is, or None."""
        rules = self._rules.get(("inet", TABLE, PRINTED), ())
        return next((str(rule.get("comment", "")) for rule in rules), None)

    @property
    def watched(self) -> bool:
        """There is the dead-man switch."""
        return ("inet", TABLE, ALIVE) in self._sets

    @property
    def opaque(self) -> bool:
        """There are rules of iptables in it, which say nothing in JSON."""
        return any("xt" in word for rules in self._rules.values() for rule in rules for word in _words(rule))

    def leads(self, mode: str, version: int, port: int) -> bool:
        """A rule leads connections of this version to this port, in this mode."""
        names = ("tproxy",) if mode == "tproxy" else ("redirect", "dnat")
        statements = (word.get(name) for rule in self._of(version) for word in _words(rule) for name in names)
        found = (one for one in statements if isinstance(one, dict) and one.get("port") == port)
        return any(version in _VERSIONS.get(one.get("family", "inet"), ()) for one in found)

    def holds(self, version: int, mark: int) -> bool:
        """A rule gives the mark to packets of sockets that are transparent."""
        rules = (list(_words(rule)) for rule in self._of(version))
        return any(any(map(_is_transparent, words)) and any(_marks(word, mark) for word in words) for words in rules)

    def _of(self, version: int) -> Iterator[dict[str, Any]]:
        """The rules that packets of this version get to."""
        for chain, versions in self._reached.items():
            if version in versions:
                yield from (rule for rule in self._rules.get(chain, ()) if version in _versions(rule))

    def _follow(self, chains: Iterable[_Chain]) -> dict[_Chain, frozenset[int]]:
        """Those chains, and all that they lead to, with the versions of packets that come there."""
        waiting = [(chain, frozenset(_VERSIONS.get(chain[0], ()))) for chain in chains]
        found: dict[_Chain, frozenset[int]] = {}
        while waiting:
            chain, versions = waiting.pop()
            known = found.get(chain, frozenset())
            if versions <= known:
                continue
            found[chain] = known | versions
            for rule in self._rules.get(chain, ()):
                there = versions & _versions(rule)
                waiting += (((*chain[:2], name), there) for name in _targets(rule.get("expr", ())))
        return found


def _chain(item: dict[str, Any], key: str) -> _Chain:
    return str(item.get("family")), str(item.get("table")), str(item.get(key))


def _words(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (word for word in rule.get("expr", ()) if isinstance(word, dict))


def _versions(rule: dict[str, Any]) -> frozenset[int]:
    """Those of the packets that a rule may fit."""
    for word in _words(rule):
        match = word.get("match", {})
        left, right = match.get("left"), match.get("right")
        if isinstance(left, dict) and match.get("op") == "==":
            said = right if left == {"meta": {"key": "nfproto"}} else left.get("payload", {}).get("protocol")
            if isinstance(said, str) and said in _SAYS:
                return frozenset({_SAYS[said]})
    return frozenset((4, 6))


def _targets(value: Any) -> Iterator[str]:
    """Where a rule goes, in verdict maps too."""
    if isinstance(value, list):
        for one in value:
            yield from _targets(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in ("jump", "goto") and isinstance(one, dict):
                yield str(one.get("target"))
            else:
                yield from _targets(one)


def _is_transparent(word: dict[str, Any]) -> bool:
    match = word.get("match", {})
    return bool(match.get("left") == {"socket": {"key": "transparent"}} and match.get("right") == 1)


def _marks(word: dict[str, Any], mark: int) -> bool:
    mangle = word.get("mangle", {})
    return bool(mangle.get("key") == {"meta": {"key": "mark"}} and mangle.get("value") == mark)

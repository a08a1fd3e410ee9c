"""Which lists a value is in: one index for all lists of a kind, so that one list costs as much to ask as many.

What must never happen: a value that is taken for being in no list because it is written in another way. Case does not
matter in any kind; an IPv4 address within an IPv6 one is the IPv4 address.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, Protocol, cast

Names = tuple[str, ...]
Network = tuple[int, int, int]  # version, how many bits count, and these bits
_WIDTH: Final = MappingProxyType({4: 32, 6: 128})
_NONE: Final[Names] = ()


class Kind(Enum):
    """Kinds of lists, by their word in the file."""

    DOMAINS = "domains"
    ADDRESSES = "addresses"
    NETWORKS = "networks"
    DIGESTS = "digests"
    WORDS = "words"

    __hash__ = object.__hash__


def fold(kind: Kind, entry: str) -> str:
    """How an entry is written in an index. Two domains may differ in `ß` and `ss`; words never do."""
    return entry.lower() if kind in (Kind.DOMAINS, Kind.ADDRESSES) else entry.casefold()


class Index(Protocol):
    """All lists of one kind."""

    def add(self, name: str, entries: Iterable[object]) -> None:
        """Take a list in."""

    def find(self, value: str) -> Names:
        """The names of the lists the value is in."""


class _Exact:
    """Entries are what they are, small letters and capitals being the same."""

    def __init__(self) -> None:
        self._names: dict[object, Names] = {}

    def add(self, name: str, entries: Iterable[object]) -> None:
        known = self._names
        own = (name,)
        if not known:
            self._names = dict.fromkeys(entries, own)
            return
        sets: dict[Names, Names] = {}  # the same tuple for all that are in the same lists
        for entry in entries:
            before = known.get(entry)
            known[entry] = own if before is None else sets.setdefault(before, (*before, name))

    def find(self, value: str) -> Names:
        return self._names.get(value.casefold(), _NONE)


class _Domains(_Exact):
    """A domain stands for itself and all below it. Of an address, the domain counts."""

    def find(self, value: str) -> Names:
        known = self._names
        rest = value.rpartition("@")[2].lower().rstrip(".")
        found = known.get(rest, _NONE)
        while (dot := rest.find(".")) >= 0:
            rest = rest[dot + 1 :]
            more = known.get(rest)
            if more is not None:
                found += more
        return found


class _Addresses(_Exact):
    """An address stands for itself, `@domain` for all of that domain."""

    def find(self, value: str) -> Names:
        known = self._names
        folded = value.lower()
        return known.get(folded, _NONE) + known.get(folded[folded.rfind("@") :] if "@" in folded else "", _NONE)


class _Networks:
    """Networks, longest prefixes first; each length there is is looked up once."""

    def __init__(self) -> None:
        self._lengths: dict[int, dict[int, dict[int, Names]]] = {4: {}, 6: {}}

    def add(self, name: str, entries: Iterable[object]) -> None:
        for entry in entries:
            version, length, bits = cast("Network", entry)
            known = self._lengths[version].setdefault(_WIDTH[version] - length, {})
            known[bits] = (*known.get(bits, _NONE), name)

    def find(self, value: str) -> Names:
        version, number = number_of(value)
        found = _NONE
        if version:
            for shift, known in self._lengths[version].items():
                names = known.get(number >> shift)
                if names is not None:
                    found += names
        return found


@lru_cache(maxsize=4096)
def number_of(address: str) -> tuple[int, int]:
    """Version and number of an IP address; 0 for what is none."""
    if len(address) > 60:
        return 0, 0
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return 0, 0
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.version, int(found)


def index_of(kind: Kind) -> Index:
    """An empty index for lists of this kind."""
    return _INDEXES[kind]()


_INDEXES: Final[Mapping[Kind, type[_Exact | _Networks]]] = MappingProxyType(
    {
        Kind.DOMAINS: _Domains,
        Kind.ADDRESSES: _Addresses,
        Kind.NETWORKS: _Networks,
        Kind.DIGESTS: _Exact,
        Kind.WORDS: _Exact,
    }
)

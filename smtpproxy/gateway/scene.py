"""What the checks of the doctor look at, and what they say."""

import itertools
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Final, Literal, NamedTuple

from smtpproxy.config import Config
from smtpproxy.config.together import families
from smtpproxy.gateway import machine
from smtpproxy.gateway.machine import Interface
from smtpproxy.gateway.nft import Version, marked, modes_of
from smtpproxy.gateway.ruleset import Ruleset

UNIT: Final = "smtpproxy.service"

Severity = Literal["error", "warning"]
Found = tuple[Severity, str, str]  # how bad, what is missing, the command that mends it


class Finding(NamedTuple):
    """One thing that is missing."""

    check: str
    severity: Severity
    what: str
    mend: str


class Scene:
    """What is configured, and what of this machine more than one check looks at."""

    def __init__(self, config: Config, path: str = "", *, whole: bool = True) -> None:
        self.config = config
        self.path = path
        self.whole = whole
        self.led = [entry for entry in config.listeners if entry.mode != "forward"]
        self.modes = modes_of(config)
        self.versions = frozenset(itertools.chain.from_iterable(families(entry.listen) for entry in self.led))

    @cached_property
    def interfaces(self) -> list[Interface]:
        return machine.interfaces()

    @cached_property
    def ruleset(self) -> Ruleset:
        return Ruleset(machine.ruleset())

    @cached_property
    def unit(self) -> Mapping[str, str] | None:
        wanted = ("User", "DynamicUser", "AmbientCapabilities", "LimitNOFILE", "TriggeredBy")
        return machine.unit(UNIT, wanted) if self.whole else None

    @cached_property
    def marked(self) -> tuple[Version, ...]:
        """The versions of which packets are marked, as far as this machine has them."""
        return tuple(version for version in marked(self.config, self.modes) if self.speaks(version))

    def speaks(self, version: int) -> bool:
        """The kernel has this version of IP, and it is not switched off."""
        if version == 4:
            return True
        off = machine.sysctl("net", "ipv6", "conf", "all", "disable_ipv6")
        return off == 0 if off is not None else _makes_ipv6_sockets()

    @property
    def load(self) -> str:
        """The command that loads the rules."""
        return f"smtpproxy nft {' '.join(self.modes)} --config {self.path} | nft -f -"


Check = Callable[[Scene], Iterator[Found]]


def _makes_ipv6_sockets() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True

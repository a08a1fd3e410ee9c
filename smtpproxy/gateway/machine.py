"""What this machine says of itself: files of /proc/sys, and the programs ip, nft and systemctl, asked with a time-out.

Nothing is changed. What can't be seen is `CannotLook`, with why and what would help: whoever asks says so, and goes on.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from smtpproxy.gateway.nft import Version

PATIENCE: Final = 5.0  # seconds for a program; they take milliseconds
_PLACES: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"  # beside PATH, which often has none of the first
_PACKAGES: Final = {"ip": ("iproute2", "iproute"), "nft": ("nftables", "nftables")}
_SYSCTLS: Final = Path("/proc/sys")
_LOCAL_ROUTE: Final = "2"  # RTN_LOCAL, linux/rtnetlink.h
ROUTER_ADVERTISEMENT: Final = "9"  # RTPROT_RA


class CannotLook(Exception):  # noqa: N818 (what is looked for may be well)
    """Something can't be seen."""

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why)
        self.why = why
        self.mend = mend


class Interface(NamedTuple):
    """One of the machine's; the addresses in their canonical form."""

    name: str
    up: bool
    loopback: bool
    addresses: tuple[tuple[int, str], ...]  # version, address
    link_local: tuple[str, ...]

    def reachable(self, version: int) -> bool:
        """It has an address that NAT can lead to."""
        return any(has == version and address not in self.link_local for has, address in self.addresses)


def sysctl(*name: str) -> int | None:
    """A number of the kernel's; None where there is none or it is not to be seen."""
    try:
        return int(_SYSCTLS.joinpath(*name).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def sees_sysctls() -> bool:
    """They are not hidden, as they are in some sandboxes."""
    return (_SYSCTLS / "net").is_dir()


def ask(program: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What a program says, whatever its exit code.

    Raises:
        CannotLook: it is not there, can't be started, or takes too long.
    """
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PLACES}")
    if path is None:
        debian, red_hat = _PACKAGES.get(program, (program, program))
        raise CannotLook(f"{program} is not installed", f"apt-get install {debian}, or dnf install {red_hat}")
    command = " ".join((program, *words))
    try:
        return subprocess.run(  # noqa: S603 (a program of the system's, by its full path)
            [path, *words],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotLook(f"`{command}` did not answer within {PATIENCE:g} s", f"try it by hand: {command}") from None
    except OSError as error:
        raise CannotLook(f"`{command}` can't be run: {error.strerror}", f"try it by hand: {command}") from None


def interfaces() -> list[Interface]:
    """All of them, as `ip address` has them."""
    found = []
    for link in _ip("address", "show"):
        own = link.get("addr_info", ())
        found.append(
            Interface(
                str(link.get("ifname", "")),
                "UP" in link.get("flags", ()),
                "LOOPBACK" in link.get("flags", ()),
                tuple((6 if one.get("family") == "inet6" else 4, str(one.get("local"))) for one in own),
                tuple(str(one.get("local")) for one in own if one.get("scope") in ("253", "link")),
            )
        )
    return found


class PolicyRule(NamedTuple):
    """A rule that has packets with the mark look into the table; `everywhere`: wherever they come from."""

    everywhere: bool


def policy_rule(version: Version, mark: int, table: int) -> PolicyRule | None:
    """The rule, or None."""
    for rule in _ip(f"-{version}", "rule", "show"):
        mask = int(str(rule.get("fwmask", "0xffffffff")), 0)
        if "fwmark" in rule and str(rule.get("table")) == str(table) and "not" not in rule:
            said = int(str(rule["fwmark"]), 0)
            if said & mask == mark & mask and rule.get("src", "all") == "all":
                return PolicyRule("iif" not in rule)
    return None


def has_local_default(version: Version, table: int) -> bool:
    """Everything that is looked up in this table is this machine's own."""
    found = _ip(f"-{version}", "route", "show", "table", str(table))
    return any(route.get("dst") == "default" and str(route.get("type")) == _LOCAL_ROUTE for route in found)


def stays_here(version: Version, address: str, mark: int) -> tuple[bool, str]:
    """Whether a packet with the mark for this address would stay on this machine; and if not, by which table."""
    for route in _ip(f"-{version}", "route", "get", address, "mark", str(mark)):
        return str(route.get("type", "1")) == _LOCAL_ROUTE, str(route.get("table", "main"))
    return False, "no"


def advertised(version: Version = 6) -> list[str]:
    """The interfaces by which a default route leads that a router has advertised, and the kernel has taken."""
    found = _ip(f"-{version}", "route", "show", "default")
    return [
        str(route["dev"]) for route in found if str(route.get("protocol")) == ROUTER_ADVERTISEMENT and "dev" in route
    ]


def ruleset() -> list[dict[str, Any]]:
    """All of nftables, without the elements of sets, which may be many."""
    return _nft("-t", "list", "ruleset")


def elements(table: str, name: str) -> list[Any]:
    """What is in a set of family inet."""
    for item in _nft("list", "set", "inet", table, name):
        if "set" in item:
            return list(item["set"].get("elem", ()))
    return []


def listening() -> set[int]:
    """The ports somebody listens at."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/thread-self/net/{name}", encoding="ascii") as table:
            fields = (line.split() for line in table)
            found |= {int(line[1].rpartition(":")[2], 16) for line in fields if line[3] == "0A"}
    return found


def try_rules(text: str) -> str:
    """What nft and the kernel find wrong with a text, or ""; nothing is loaded."""
    done = ask("nft", "-c", "-f", "-", stdin=text)
    if done.returncode:
        _privileged(done.stderr)
        return next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    return ""


def unit(name: str, properties: Sequence[str]) -> Mapping[str, str] | None:
    """What systemd knows of a unit; None where it has none of that name, or there is no systemd."""
    try:
        done = ask("systemctl", "show", name, f"--property={','.join(('LoadState', *properties))}")
    except CannotLook:
        return None
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found if found.get("LoadState") == "loaded" else None


def _ip(*words: str) -> list[dict[str, Any]]:
    """Numbers in place of names, as JSON. What is not there (a table, a family, a way) is nothing."""
    done = ask("ip", "-N", "-j", *words)
    found = _json(done.stdout)
    if found is None and not any(said in done.stderr for said in ("RTNETLINK", "does not exist")) and done.stderr:
        why = done.stderr.strip().splitlines()[0]
        raise CannotLook(
            f"`ip -N -j {' '.join(words)}` says: {why}", "apt-get install iproute2, or dnf install iproute"
        )
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _nft(*words: str) -> list[dict[str, Any]]:
    done = ask("nft", "-j", *words)
    if done.returncode:
        _privileged(done.stderr)
        return []
    found = _json(done.stdout)
    items = found.get("nftables", ()) if isinstance(found, dict) else ()
    return [item for item in items if isinstance(item, dict)]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _privileged(said: str) -> None:
    if "not permitted" in said:
        raise CannotLook("nftables can't be seen without CAP_NET_ADMIN", "run it as root")

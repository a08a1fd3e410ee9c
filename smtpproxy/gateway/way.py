"""Checks of the doctor: the way that packets take through this machine."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from smtpproxy.config.together import families
from smtpproxy.gateway import machine
from smtpproxy.gateway.machine import CannotLook
from smtpproxy.gateway.nft import VERSIONS, Version, forwarding, routes
from smtpproxy.gateway.scene import Found, Scene

_STRICT: Final = 1  # rp_filter
_ELSEWHERE: Final[Mapping[Version, str]] = {4: "203.0.113.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849: nobody has them


def forwarded(scene: Scene) -> Iterator[Found]:
    if scene.whole and not machine.sees_sysctls():
        raise CannotLook("/proc/sys is hidden here", "run it as root, and not in the sandbox of the service")
    for version in VERSIONS:
        theirs = [entry for entry in scene.led if version in families(entry.listen)]
        name = forwarding(version)
        if theirs and scene.speaks(version) and machine.sysctl(*name.split(".")) == 0:
            bypass = any(entry.intercept.when_down == "bypass" for entry in theirs)
            what = f"IPv{version} is not forwarded: " + (
                'with when_down = "bypass" nothing gets through when there is no proxy'
                if bypass
                else "nothing gets through this machine but by the proxy"
            )
            yield "error" if bypass else "warning", what, f"sysctl -w {name}=1"


def by_the_mark(scene: Scene) -> Iterator[Found]:
    """By src_valid_mark a packet's source is looked for in the table of the mark, where all is this machine."""
    if 4 not in scene.marked:
        return

    def of(interface: str, key: str) -> int:
        return machine.sysctl("net", "ipv4", "conf", interface, key) or 0

    def broken(interface: str) -> bool:
        if not (of("all", "src_valid_mark") or of(interface, "src_valid_mark")):
            return False
        allowed = of("all", "accept_local") or of(interface, "accept_local")
        return not allowed or max(of("all", "rp_filter"), of(interface, "rp_filter")) == _STRICT

    names = [interface.name for interface in scene.interfaces if not interface.loopback]
    taken = [entry.intercept.interfaces for entry in scene.led if entry.mode == "tproxy"]
    if all(taken) and not any(entry.keeps_client for entry in scene.config.listeners):
        names = [name for name in names if name in itertools.chain.from_iterable(taken)]  # answers come unmarked
    if wrong := [name for name in names if broken(name)]:
        what = f"src_valid_mark is on: packets with the mark that come by {', '.join(wrong)} are dropped as forged"
        settings = [name for name in ("all", *wrong) if of(name, "src_valid_mark")]
        yield "error", what, " ".join(["sysctl -w", *(f"net.ipv4.conf.{name}.src_valid_mark=0" for name in settings)])


def interfaces(scene: Scene) -> Iterator[Found]:
    there = {interface.name: interface for interface in scene.interfaces}
    loopback = next((interface for interface in scene.interfaces if interface.loopback), None)
    if scene.marked and loopback is not None and not loopback.up:
        yield "error", f"{loopback.name} is down, and packets with the mark go by it", f"ip link set {loopback.name} up"
    for entry in scene.led:
        for name in dict.fromkeys(entry.intercept.interfaces):
            here = there.get(name)
            if here is None:
                what = f"listener {entry.name} is for clients behind {name}, which is not here"
                yield "warning", what, f"one of these, in the configuration: {', '.join(there)}"
            elif not here.up:
                yield "warning", f"{name}, behind which clients of {entry.name} are, is down", f"ip link set {name} up"
            elif entry.mode == "redirect":
                for version in families(entry.listen):
                    if scene.speaks(version) and not here.reachable(version):
                        what = f"{name} has no IPv{version} address: NAT has nothing to lead clients of {entry.name} to"
                        yield "error", what, f"ip -{version} address add … dev {name}"


def policy_rule(scene: Scene) -> Iterator[Found]:
    mark, table = scene.config.gateway.mark, scene.config.gateway.table
    for version in scene.marked:
        if machine.policy_rule(version, mark, table) is None:
            what = f"IPv{version} has no rule by which packets with the mark {mark:#x} stay on this machine"
            yield "error", what, routes(scene.config, version)[0]


def policy_route(scene: Scene) -> Iterator[Found]:
    mark, table = scene.config.gateway.mark, scene.config.gateway.table
    if any(interface.loopback and not interface.up for interface in scene.interfaces):
        return  # that comes first, and takes routes with it
    for version in scene.marked:
        if not machine.has_local_default(version, table):
            what = f"IPv{version} has no route in table {table} by which packets with the mark stay on this machine"
            yield "error", what, routes(scene.config, version)[1]
            continue
        rule = machine.policy_rule(version, mark, table)
        if rule is None or not rule.everywhere:
            continue
        stays, other = machine.stays_here(version, _ELSEWHERE[version], mark)
        if not stays:
            what = f"IPv{version} packets with the mark {mark:#x} leave by table {other}: its rule comes first"
            yield "error", what, f"ip -{version} rule add pref 1 fwmark {mark:#x} lookup {table}"


def around(scene: Scene) -> Iterator[Found]:
    """The other version of IP, by which the same clients may get to the same servers."""
    for version in VERSIONS:
        if not scene.led or version in scene.versions or not scene.speaks(version):
            continue
        reached = any(i.reachable(version) and not i.loopback for i in scene.interfaces)
        if reached and machine.sysctl(*forwarding(version).split(".")):
            host = "[::]" if version == 6 else "0.0.0.0"
            what = f"IPv{version} is forwarded, and no listener has it: connections by it go around the proxy"
            yield "warning", what, f'a [[listener]] with listen = "{host}:{scene.led[0].listen.port or 2525}"'


def router(scene: Scene) -> Iterator[Found]:
    if scene.led and scene.speaks(6) and machine.sysctl("net", "ipv6", "conf", "all", "forwarding"):
        for name in dict.fromkeys(machine.advertised()):
            if machine.sysctl("net", "ipv6", "conf", name, "accept_ra") == 1:
                what = f"the IPv6 route by {name} will end: who forwards no longer listens to routers"
                yield "warning", what, f"sysctl -w net.ipv6.conf.{name}.accept_ra=2"

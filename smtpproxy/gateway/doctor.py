"""What this machine lacks for what is configured: each with the command that mends it.

`examine` looks at everything, and says what it could not see. `look` is the part of it that takes no time, for the
start of the proxy. Neither changes anything. What a mode needs, and what it can do without, was found by taking each
away in turn (tests/gateway/test_doctor.py).

A finding is an error where mail will not get through, or will pass uninspected; and a warning where it may.
"""

import errno
import ipaddress
import resource
import socket
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from smtpproxy.config import Config, ListenerConfig
from smtpproxy.config.together import WILDCARDS, families, host_of
from smtpproxy.config.values import Endpoint, is_address
from smtpproxy.gateway import machine, way
from smtpproxy.gateway.machine import CannotLook
from smtpproxy.gateway.nft import ALIVE, SAY_CONTROL, TABLE, NftError, Options, fingerprints, modes_of, not_led, text
from smtpproxy.gateway.scene import UNIT, Check, Finding, Found, Scene, Severity
from smtpproxy.net.privileges import CAP_NET_BIND_SERVICE, has

BACKLOG: Final = 4096  # what listeners ask for
_SOME: Final = 64  # descriptors that are none of a session's


def examine(config: Config, path: str) -> list[Finding]:
    """Everything that is missing, and what could not be seen."""
    return _run(Scene(config, path), CHECKS)


def look(config: Config) -> list[Finding]:
    """What can be told in no time, and is seen from here; nothing where no gateway is needed."""
    if not modes_of(config):
        return []
    quick = {name: CHECKS[name] for name in QUICK}
    return _run(Scene(config, whole=False), quick)


def _run(scene: Scene, checks: Mapping[str, Check]) -> list[Finding]:
    found: list[Finding] = []
    unseen: dict[str, Finding] = {}
    for name, check in checks.items():
        try:
            found += (Finding(name, *one) for one in check(scene))
        except CannotLook as error:
            unseen.setdefault(error.why, Finding(name, "warning", f"not looked at: {error.why}", error.mend))
    return found + list(unseen.values()) if scene.whole else found


# ------------------------------------------------------------------------------------------- the listeners, the process


def _listen(scene: Scene) -> Iterator[Found]:
    for entry in scene.led:
        if why := not_led(entry):
            yield "error", f"nothing can be led to listener {entry.name}: {why}", "change it in the configuration"


def _ipv6(scene: Scene) -> Iterator[Found]:
    entries = [entry.name for entry in scene.config.listeners if families(entry.listen) == {6}]
    if entries and not scene.speaks(6):
        what = f"IPv6 is switched off, and {', '.join(entries)} listen{'s' if len(entries) == 1 else ''} on it"
        yield "error", what, "sysctl -w net.ipv6.conf.all.disable_ipv6=0"


def _privileges(scene: Scene) -> Iterator[Found]:
    """Those of this process; and where systemd starts the proxy as somebody who has none, those of the unit."""
    needs: dict[str, str] = {}
    transparent = [e.name for e in scene.config.listeners if e.mode == "tproxy" or e.keeps_client]
    if transparent:
        needs["CAP_NET_RAW"] = f"other machines' addresses ({', '.join(transparent)}) take"
        if why := _why_not_transparent():
            yield "error", f"{needs['CAP_NET_RAW']} CAP_NET_RAW: {why}", _give("CAP_NET_RAW")
    start = machine.sysctl("net", "ipv4", "ip_unprivileged_port_start")
    low = [e.name for e in scene.config.listeners if 0 < e.listen.port < (1024 if start is None else start)]
    unit = scene.unit
    if low and scene.whole and ".socket" not in (unit or {}).get("TriggeredBy", ""):  # systemd opens them then
        needs["CAP_NET_BIND_SERVICE"] = f"low ports ({', '.join(low)}) take"
        if not has(CAP_NET_BIND_SERVICE):
            what = f"{needs['CAP_NET_BIND_SERVICE']} CAP_NET_BIND_SERVICE: it is not here"
            yield "error", what, _give("CAP_NET_BIND_SERVICE")
    if unit is not None and (unit.get("DynamicUser") == "yes" or unit.get("User", "root") not in ("", "root", "0")):
        for capability, what in needs.items():
            if capability.lower() not in unit.get("AmbientCapabilities", "").split():
                yield (
                    "error",
                    f"{what} {capability}: {UNIT} does not have it",
                    f"systemctl edit {UNIT}, and under [Service]: AmbientCapabilities={' '.join(needs)}",
                )


def _give(capability: str) -> str:
    return f"run it as root, or AmbientCapabilities={capability} in {UNIT}"


def _why_not_transparent() -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    except OSError as error:
        return "it is not here" if error.errno == errno.EPERM else f"or rather a kernel that can ({error.strerror})"
    return ""


def _servers(scene: Scene) -> Iterator[Found]:
    """A server that is this machine: perhaps a listener of ours; perhaps one that would answer the client directly."""
    own = {address for interface in scene.interfaces for _, address in interface.addresses}
    for entry, server in _configured(scene.config):
        if server is None or not is_address(server.host):
            continue
        host = host_of(server)
        if host not in own and not ipaddress.ip_address(host).is_loopback:
            continue
        if any(_listens(other, host, server.port) for other in scene.config.listeners):
            what = f"the server of listener {entry.name}, {server}, is a listener of the proxy itself: a loop"
            yield "error", what, "server = where the mail server is, in the configuration"
        elif entry.keeps_client:
            what = f"the server of listener {entry.name}, {server}, is this machine: it answers clients past the proxy"
            yield "error", what, f'source = "own" for listener {entry.name}, in the configuration'


def _configured(config: Config) -> Iterator[tuple[ListenerConfig, Endpoint | None]]:
    for entry in config.listeners:
        yield entry, entry.server
        for match in config.matches:
            if not match.listeners or entry.name in match.listeners:
                yield entry, match.server


def _listens(entry: ListenerConfig, host: str, port: int) -> bool:
    own = host_of(entry.listen)
    same = families(Endpoint(host, port)) <= families(entry.listen)
    return entry.listen.port == port and same and (own in WILDCARDS or own == host)


# ----------------------------------------------------------------------------------------------------- nftables, limits


def _kernel(scene: Scene) -> Iterator[Found]:
    """The printed text passes: nft knows it all, and so does the kernel with what modules it has or loads."""
    if not scene.modes:
        return
    try:
        printed = text(scene.config, Options(scene.modes, watchdog=True), scene.path)
    except NftError:
        return  # told by `_listen`
    wrong = machine.try_rules(printed)
    if wrong:
        lacking = [probe for probe in _PROBES if probe.word in printed and machine.try_rules(_probe(probe))]
        for probe in lacking:
            what = f"nftables can't do {probe.what} here (Linux 5.11 and nft 0.9.8 can)"
            yield "error", what, f"modprobe -a {probe.modules}"
        if not lacking:
            yield "error", f"nft does not take the text: {wrong}", scene.load.replace("nft -f", "nft -c -f")


class _Probe(NamedTuple):
    """Something that the text may need: what of it says so, what people call it, and a rule of it alone."""

    word: str
    what: str
    rule: str
    modules: str
    hook: str = "type filter hook prerouting priority mangle"


_NAT: Final = "type nat hook prerouting priority dstnat"
_RAW: Final = "type filter hook prerouting priority raw"
_PROBES: Final = (
    _Probe("tproxy ip to", "tproxy for IPv4", "meta l4proto tcp tproxy ip to :1", "nft_tproxy nf_tproxy_ipv4"),
    _Probe("tproxy ip6 to", "tproxy for IPv6", "meta l4proto tcp tproxy ip6 to :1", "nft_tproxy nf_tproxy_ipv6"),
    _Probe("socket", "socket", "socket wildcard 0 socket transparent 1", "nft_socket nf_socket_ipv4 nf_socket_ipv6"),
    _Probe("redirect to", "redirect", "meta l4proto tcp redirect to :1", "nft_redir nft_chain_nat", _NAT),
    _Probe("fib", "fib", "fib daddr type local", "nft_fib_inet nft_fib_ipv4 nft_fib_ipv6"),
    _Probe("reject", "reject", "meta l4proto tcp reject with tcp reset", "nft_reject_inet"),
    _Probe("ct zone", "zones of connection tracking", "ct zone set 1", "nft_ct nf_conntrack", _RAW),
    _Probe("ct state", "connection tracking", "ct state invalid", "nft_ct nf_conntrack"),
)


def _probe(probe: _Probe) -> str:
    return f"table inet {TABLE}-probe {{\nchain probe {{\n{probe.hook};\n{probe.rule}\n}}\n}}\n"


def _rules(scene: Scene) -> Iterator[Found]:
    severity: Severity = "error"
    doubt = ""
    if scene.modes and scene.ruleset.opaque:
        severity, doubt = "warning", " (there are rules of iptables, which can't be looked into)"
    missing: set[int] = set()
    for entry in (entry for entry in scene.led if not not_led(entry)):
        for version in filter(scene.speaks, families(entry.listen)):
            if not scene.ruleset.leads(entry.mode, version, entry.listen.port):
                missing.add(version)
                what = f"no nftables rule leads IPv{version} to listener {entry.name} at port {entry.listen.port}"
                yield severity, what + doubt, scene.load
    for version in scene.marked:
        if version not in missing and not scene.ruleset.holds(version, scene.config.gateway.mark):
            what = f"no nftables rule keeps packets of the proxy's IPv{version} connections here, by the mark"
            yield severity, what + doubt, scene.load


def _printed(scene: Scene) -> Iterator[Found]:
    """What is loaded is what would be printed now."""
    if not scene.modes or scene.ruleset.printed is None or any(map(not_led, scene.led)):
        return
    if scene.ruleset.printed not in fingerprints(scene.config):
        yield "warning", "the nftables rules are of another configuration, or another version", scene.load


def _watchdog(scene: Scene) -> Iterator[Found]:
    if scene.modes and scene.ruleset.watched and not machine.elements(TABLE, ALIVE):
        what = "the rules have had no word of smtpproxy-watchdog for some time: they do what when_down says"
        asked = scene.config.process.control
        yield (
            "error",
            what,
            "systemctl restart smtpproxy-watchdog" if asked else f"it can't ask the proxy: {SAY_CONTROL}",
        )


def _running(scene: Scene) -> Iterator[Found]:
    """Where something is led to a port, somebody should listen there."""
    if not scene.modes or scene.ruleset.printed is None:
        return
    listening = machine.listening()
    for entry in scene.led:
        if entry.listen.port and entry.listen.port not in listening:
            what = f"nobody listens at port {entry.listen.port}, where listener {entry.name} should: clients meet what"
            yield "warning", f"{what} when_down says ({entry.intercept.when_down})", "systemctl start smtpproxy"


def _limits(scene: Scene) -> Iterator[Found]:
    sessions = scene.config.connections
    wanted = 2 * sessions + _SOME
    allowed = _descriptors(scene)
    if allowed is not None and allowed < wanted:
        what = f"{allowed} descriptors for {sessions} sessions ([limits] connections), of two each"
        yield "warning", what, f"LimitNOFILE={wanted} in {UNIT}, or ulimit -n {wanted}"
    tracked = machine.sysctl("net", "netfilter", "nf_conntrack_max")
    if scene.modes and tracked and tracked < 2 * sessions:
        what = f"{tracked} connections can be tracked, and {sessions} sessions ([limits] connections) are two each"
        yield "warning", what, f"sysctl -w net.netfilter.nf_conntrack_max={4 * sessions}"
    queue = machine.sysctl("net", "core", "somaxconn")
    if queue is not None and queue < BACKLOG:
        what = f"{queue} connections may wait to be accepted; more that come at once are lost for seconds"
        yield "warning", what, f"sysctl -w net.core.somaxconn={BACKLOG}"


def _descriptors(scene: Scene) -> int | None:
    """As many as the proxy may have, started by systemd or else from here; None: any number."""
    said = (scene.unit or {}).get("LimitNOFILE", "")
    if said:
        return int(said) if said.isdigit() else None
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # which the proxy takes for its own
    return None if hard == resource.RLIM_INFINITY else hard


CHECKS: Final[Mapping[str, Check]] = {
    "listen": _listen,
    "ipv6": _ipv6,
    "privileges": _privileges,
    "server": _servers,
    "forwarding": way.forwarded,
    "src-valid-mark": way.by_the_mark,
    "interface": way.interfaces,
    "policy-rule": way.policy_rule,
    "policy-route": way.policy_route,
    "around": way.around,
    "router": way.router,
    "kernel": _kernel,
    "rules": _rules,
    "running": _running,
    "printed": _printed,
    "watchdog": _watchdog,
    "limits": _limits,
}
QUICK: Final = (
    "listen", "ipv6", "privileges", "server", "forwarding", "src-valid-mark", "interface", "policy-rule",
    "policy-route", "around", "limits",
)  # fmt: skip

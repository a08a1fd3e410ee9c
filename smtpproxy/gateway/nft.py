"""The nftables text that leads connections to the proxy. It is printed for an administrator to load, and never applied.

One table, `inet smtpproxy`, holds all of it and replaces itself in one transaction: loaded again nothing is twice, and
no packet sees half of it. How a packet goes through it:

    the first packet (SYN) of a connection to a server      to the listener; where none is there, as `when_down` says
    any other packet of a connection that the proxy holds   to the socket that holds it (mode tproxy, source client)
    all else                                                where it goes anyway

What the design rests on, each tried in tests/gateway/test_nft.py:

- Only a SYN is led here, whatever other flags it has. A connection that began directly, before this was loaded or while
  it was bypassed, goes on directly to its end.
- What the machine itself is addressed by (`fib daddr type local`) is never led here: its ssh and its mail server stay.
- `tproxy` looks for the listener itself, and the rest of a rule is not done where there is none: what stands behind it
  is what `when_down` says. NAT does not look, so there a set says whether the proxy lives (`alive`): its element ends
  by itself in the kernel unless smtpproxy-watchdog, which asks the proxy, puts it there anew.
- `socket transparent` finds listeners too. One on the very port that is intercepted would get every packet to that
  port, so who is bound to no address (`socket wildcard`) is left out first, in a rule of its own: sockets that are just
  opening or closing can't be asked for it, and must be found.
- With the client's address and port on both links of a session there are two connections with the same four numbers.
  Connection tracking would take them for one, call half of the packets invalid, and with NAT lead the proxy to itself.
  So the server's link is tracked in a zone of its own.
- ICMP errors about connections that the proxy holds are addressed to the client or server whose address it uses. They
  belong to the proxy: without them it never learns that a path takes only smaller packets, and large mails get stuck.
"""

import hashlib
import ipaddress
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, get_args

from smtpproxy.config import Config, ListenerConfig
from smtpproxy.config.inline import Mode, WhenDown
from smtpproxy.config.together import WILDCARDS, families, host_of

Version = Literal[4, 6]

TABLE: Final = "smtpproxy"
ALIVE: Final = "alive"
ALIVE_SECONDS: Final = 10
PRINTED: Final = "printed"  # the chain whose only rule says which text this is
PREFERENCE: Final = 25  # of the policy rules: before those of the system, and only once there
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
WHEN_DOWN: Final[tuple[WhenDown, ...]] = get_args(WhenDown)
VERSIONS: Final[tuple[Version, ...]] = get_args(Version)
_ZONE: Final = 2525  # of connection tracking; 16 bits

_FAMILY = {4: "ip", 6: "ip6"}
_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# Bits from the ICMP header to the ports of the packet it is about: 8 octets of its own, then an IP header.
_ERRORS = {
    4: ("icmp type { destination-unreachable, time-exceeded, parameter-problem }", (8 + 20) * 8),
    6: ("icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }", (8 + 40) * 8),
}
_SYN = "tcp flags & (syn | ack) == syn"  # whatever else is set
_DOWN: dict[str, tuple[str, str]] = {
    "bypass": ("accept", "straight to the server"),
    "refuse": ("reject with tcp reset", "the client keeps its mail and comes back"),
    "hold": ("drop", "the client's TCP asks again"),
}


SAY_CONTROL: Final = 'say where with control = "/run/smtpproxy/control" under [process]'


class NftError(ValueError):
    """What is asked for can't be printed; its text says why and what to do."""


class Options(NamedTuple):
    """What is said on the command line."""

    modes: tuple[Mode, ...]
    when_down: WhenDown | None = None  # in place of what each listener says
    watchdog: bool = False  # the set `alive` for all of them


class Led(NamedTuple):
    """A listener that connections are led to."""

    entry: ListenerConfig
    version: Version
    when_down: WhenDown
    watched: bool

    @property
    def name(self) -> str:
        return self.entry.name


def modes_of(config: Config) -> tuple[Mode, ...]:
    """The modes that need a text: those that connections are led by, and any with which the server sees the client."""
    return tuple(
        mode
        for mode in MODES
        if any(entry.mode == mode and (mode != "forward" or entry.keeps_client) for entry in config.listeners)
    )


def chosen(config: Config, modes: Sequence[Mode]) -> list[ListenerConfig]:
    """The listeners of these modes that need a text.

    Raises:
        NftError: there are none of one mode, or one listens where nothing can be led to.
    """
    for mode in modes:
        if mode not in modes_of(config):
            others = " ".join(modes_of(config))
            what = f'listener has mode = "{mode}"' + (' and source = "client"' if mode == "forward" else "")
            mend = f"`smtpproxy nft {others}` is for those there are" if others else "nothing has to be loaded"
            raise NftError(f"no {what}: {mend}")
    found = [entry for entry in config.listeners if entry.mode in modes and (entry.keeps_client or _is_led(entry))]
    for entry in found:
        if _is_led(entry) and (why := not_led(entry)):
            raise NftError(f"listener {entry.name}: {why}")
    return found


def not_led(entry: ListenerConfig) -> str:
    """Why nothing can be led to a listener, or ""."""
    host, port = entry.listen.host, entry.listen.port
    if host_of(entry.listen) not in WILDCARDS:
        right = "[::]" if families(entry.listen) == {6} else "0.0.0.0"
        return f"{host} is one address, and what is led here was going to others: listen on {right}:{port or 2525}"
    if not port:
        return "port 0 is another one each time: say which"
    version = _version(entry)
    for key in ("clients", "servers"):
        networks = getattr(entry.intercept, key)
        if networks and not _of(networks, version):
            return f"it listens for IPv{version}, and its intercept {key} have no IPv{version} network"
    return ""


def needs_watchdog(config: Config, options: Options) -> bool:
    """The text holds only while smtpproxy-watchdog finds the proxy well."""
    return any(_led(entry, options).watched for entry in chosen(config, options.modes) if _is_led(entry))


def text(config: Config, options: Options, path: str) -> str:
    """All that `nft -f` is to be given; `path` is the configuration's, for what it says of itself.

    Raises:
        NftError: see `chosen`.
    """
    entries = chosen(config, options.modes)
    led = [_led(entry, options) for entry in entries if _is_led(entry)]
    body = "\n".join(_body(config, entries, led))
    return "\n".join(
        [
            *(f"# {line}".rstrip() for line in _header(config, options, path, entries, led)),
            "",
            f"add table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            "\t# Which text this is; nothing comes through here. `smtpproxy doctor` compares.",
            f"\tchain {PRINTED} {{",
            f'\t\treturn comment "{hashlib.sha256(body.encode()).hexdigest()[:16]}"',
            "\t}",
            "",
            body,
            "}",
            "",
        ]
    )


def fingerprints(config: Config) -> frozenset[str]:
    """What the chain `printed` may say with this configuration, whatever was said on the command line."""
    modes = modes_of(config)
    sets = itertools.chain.from_iterable(itertools.combinations(modes, size) for size in range(1, len(modes) + 1))
    said = itertools.product(sets, (None, *WHEN_DOWN), (False, True))
    return frozenset(_fingerprint(text(config, Options(*options), "")) for options in said)


def _fingerprint(printed: str) -> str:
    return printed.partition('return comment "')[2].partition('"')[0]


# ------------------------------------------------------------------------------------- beside the table: kernel, routes


def marked(config: Config, modes: Sequence[Mode]) -> tuple[Version, ...]:
    """The versions of IP of which packets are given the mark."""
    return tuple(
        version for version in VERSIONS if any(version in _marks(e) for e in config.listeners if e.mode in modes)
    )


def routes(config: Config, version: Version) -> list[str]:
    """The commands that keep packets with the mark on this machine."""
    mark, table = f"{config.gateway.mark:#x}", config.gateway.table
    return [
        f"ip -{version} rule add pref {PREFERENCE} fwmark {mark} lookup {table}",
        f"ip -{version} route replace local default dev lo table {table}",
    ]


def no_routes(config: Config, version: Version) -> list[str]:
    """The commands that take them away."""
    mark, table = f"{config.gateway.mark:#x}", config.gateway.table
    return [
        f"ip -{version} rule delete pref {PREFERENCE} fwmark {mark} lookup {table}",
        f"ip -{version} route flush table {table}",
    ]


def forwarding(version: int) -> str:
    """The sysctl that makes a machine a gateway."""
    return _FORWARDING[version]


def _marks(entry: ListenerConfig) -> frozenset[int]:
    if entry.keeps_client and entry.proxy_from:
        return frozenset(VERSIONS)  # clients are who a load balancer says, of either kind
    return families(entry.listen) if entry.keeps_client or entry.mode == "tproxy" else frozenset()


# --------------------------------------------------------------------------------------------------------- the comments


def _header(
    config: Config, options: Options, path: str, entries: Sequence[ListenerConfig], led: Sequence[Led]
) -> Iterator[str]:
    words = ["smtpproxy nft", *options.modes, f"--config {path}"]
    words += [f"--when-down {options.when_down}"] * bool(options.when_down) + ["--watchdog"] * options.watchdog
    versions = [version for version in VERSIONS if any(version in families(entry.listen) for entry in entries)]
    yield "For smtpproxy; printed, and not applied, by"
    yield f"    {' '.join(words)}"
    yield ""
    for entry in entries:
        down = next((f", without it: {one.when_down}" for one in led if one.entry is entry), "")
        source = "the client's address" if entry.keeps_client else "an address of this machine"
        yield f"  {entry.name}: {entry.listen}, {entry.mode}; the server sees {source}{down}"
    if left := [entry.name for entry in config.listeners if _is_led(entry) and entry.mode not in options.modes]:
        yield ""
        yield f"Not in here: {', '.join(left)}. There is one table for all, and loading this takes theirs away:"
        yield f"`smtpproxy nft {' '.join(modes_of(config))}` prints all of them."
    yield ""
    yield "Load it. Loaded again it takes its own place, all at once; what is connected stays so."
    yield "    nft -f smtpproxy.nft"
    yield ""
    yield "This machine has to be a gateway for what is not led to the proxy (deploy/sysctl)."
    yield from (f"    sysctl -w {_FORWARDING[version]}=1" for version in versions)
    if marked(config, options.modes):
        yield ""
        yield "Packets with the mark stay on this machine. Neither outlives a restart of it."
        for version in marked(config, options.modes):
            yield from (f"    {command}" for command in routes(config, version))
    if any(one.watched for one in led):
        yield ""
        yield "smtpproxy-watchdog (deploy/watchdog) has to run:"
        yield f"after {ALIVE_SECONDS} seconds without a word of it, it is as if there were no proxy."
    if led:
        yield ""
        yield "Lead nothing to the proxy any more, and leave it what it has, until this is loaded again."
        for mode in dict.fromkeys(one.entry.mode for one in led):
            yield f"    nft flush chain inet {TABLE} new-{mode}"
    yield ""
    yield "Take it away. That cuts what goes on: do the above first, and wait for its end." if led else "Take it away."
    yield f"    nft delete table inet {TABLE}"
    for version in marked(config, options.modes):
        yield from (f"    {command}" for command in no_routes(config, version))


# ------------------------------------------------------------------------------------------------------------ the table


def _body(config: Config, entries: Sequence[ListenerConfig], led: Sequence[Led]) -> list[str]:
    taken = [one for one in led if one.entry.mode == "tproxy"]
    turned = [one for one in led if one.entry.mode == "redirect"]
    keeping = [entry for entry in entries if entry.keeps_client]
    ports = _ports(port for one in taken for port in one.entry.intercept.ports)
    servers = _ports(port for entry in keeping for port in _server_ports(config, entry))
    mark = f"{config.gateway.mark:#x}"
    blocks: list[list[str]] = []
    if any(one.watched for one in led):
        blocks.append(
            [
                "# Here as long as smtpproxy-watchdog finds the proxy well; else the kernel lets it go.",
                f"set {ALIVE} {{",
                "\ttype inet_proto",
                "\tflags timeout",
                f"\telements = {{ tcp timeout {ALIVE_SECONDS}s }}",
                "}",
            ]
        )
    for one in led:
        blocks += _sets(one)
    if led or keeping:
        blocks.append(_arrivals(ports, _ports(port for one in turned for port in one.entry.intercept.ports), servers))
    if turned:
        blocks.append(
            [
                "chain redirects {",
                "\ttype nat hook prerouting priority dstnat; policy accept;",
                f'\tmeta mark {mark} accept comment "taken already"',
                f"\t{_SYN} fib daddr type != local goto new-redirect",
                "}",
            ]
        )
    for mode, some in (("tproxy", taken), ("redirect", turned)):
        if some:
            what = "# The first packet of a connection goes to the first listener that it fits."
            blocks.append([what, f"chain new-{mode} {{", *(f"\t{_fits(one)} goto to-{one.name}" for one in some), "}"])
    blocks += [_to(one, mark) for one in led]
    if taken or keeping:
        blocks.append(
            [
                "# Packets that belong to a socket of the proxy; listeners have no address of their own.",
                "chain held {",
                "\tsocket wildcard 1 return",
                f"\tsocket transparent 1 meta mark set {mark} accept",
                "}",
            ]
        )
    if servers:
        blocks += _zones(servers)
    lines = [line for block in blocks for line in (*block, "")][:-1]
    return [f"\t{line}" if line else "" for line in lines]


def _sets(one: Led) -> Iterator[list[str]]:
    for key in ("clients", "servers"):
        networks = _of(getattr(one.entry.intercept, key), one.version)
        if _limits(networks):
            elements = ", ".join(str(n.network_address if n.prefixlen == n.max_prefixlen else n) for n in networks)
            yield [
                f"set {key}-{one.name} {{",
                f"\ttype {_ADDRESS[one.version]}",
                "\tflags interval",
                f"\telements = {{ {elements} }}",
                "}",
            ]


def _arrivals(taken: str, turned: str, servers: str) -> list[str]:
    """By the ports that clients of each mode go to, and those of servers that see the client's address."""
    lines = ["chain arrivals {", "\ttype filter hook prerouting priority mangle; policy accept;"]
    first = f"{_SYN} tcp dport"
    if taken:
        lines.append(f"\t{first} {taken} fib daddr type != local goto new-tproxy")
        lines.append(f'\ttcp dport {taken} goto held comment "from the client"')
    if turned:  # NAT is not asked about them, and some servers take SYN with FIN for a beginning
        why = "would go around NAT"
        lines.append(f'\t{first} {turned} fib daddr type != local ct state invalid counter drop comment "{why}"')
    if servers:
        lines.append(f'\ttcp sport {servers} goto held comment "from the server, to the client\'s address"')
    for errors, offset in _ERRORS.values():
        if taken:
            lines.append(f"\t{errors} @th,{offset},16 {taken} goto held")
        if servers:
            lines.append(f"\t{errors} @th,{offset + 16},16 {servers} goto held")
    return [*lines, "}"]


def _to(one: Led, mark: str) -> list[str]:
    """What becomes of a connection that fits a listener."""
    verdict, why = _DOWN[one.when_down]
    down = f'counter {verdict} comment "{one.when_down}: {why}"'
    lines = [f"# {one.name}: {one.entry.listen}", f"chain to-{one.name} {{"]
    if one.watched:
        lines.append(f"\tmeta l4proto != @{ALIVE} {down}")
    port = one.entry.listen.port
    if one.entry.mode == "tproxy":
        lines.append(f"\tmeta l4proto tcp tproxy {_FAMILY[one.version]} to :{port} meta mark set {mark} counter accept")
        lines.append(f"\t{down}")
    else:
        lines.append(f"\tmeta l4proto tcp counter redirect to :{port}")
    return [*lines, "}"]


def _fits(one: Led) -> str:
    """The condition, as it is configured."""
    intercept, family = one.entry.intercept, _FAMILY[one.version]
    words = []
    if intercept.interfaces:
        words.append(f"iifname {{ {', '.join(_quoted(name) for name in dict.fromkeys(intercept.interfaces))} }}")
    for key, field in (("clients", "saddr"), ("servers", "daddr")):
        if _limits(_of(getattr(intercept, key), one.version)):
            words.append(f"{family} {field} @{key}-{one.name}")
    if not any(word.startswith(f"{family} ") for word in words):
        words.append(f"meta nfproto ipv{one.version}")
    return f"{' '.join(words)} tcp dport {_ports(intercept.ports)}"


def _zones(servers: str) -> Iterator[list[str]]:
    zone = f"ct zone set {_ZONE}"
    yield [
        "# The server's link, where it has the client's address, is tracked apart from the client's.",
        "chain departures {",
        "\ttype filter hook output priority raw; policy accept;",
        f"\ttcp dport {servers} fib saddr type != local {zone}",
        "}",
    ]
    lines = [f"\ttcp sport {servers} goto server-link"]
    for errors, offset in _ERRORS.values():
        lines.append(f"\t{errors} @th,{offset + 16},16 {servers} goto server-link")
    yield ["chain answers {", "\ttype filter hook prerouting priority raw; policy accept;", *lines, "}"]
    yield ["chain server-link {", "\tsocket wildcard 1 return", f"\tsocket transparent 1 {zone}", "}"]


def _led(entry: ListenerConfig, options: Options) -> Led:
    when_down = options.when_down or entry.intercept.when_down
    # Without a listener the stack itself refuses; for all else NAT has to be told.
    watched = options.watchdog or (entry.mode == "redirect" and when_down != "refuse")
    return Led(entry, _version(entry), when_down, watched)


def _is_led(entry: ListenerConfig) -> bool:
    return entry.mode != "forward"


def _version(entry: ListenerConfig) -> Version:
    return 6 if families(entry.listen) == {6} else 4


def _server_ports(config: Config, entry: ListenerConfig) -> Iterator[int]:
    """The ports of the servers that a listener's sessions go to."""
    matches = [match for match in config.matches if not match.listeners or entry.name in match.listeners]
    yield from (match.server.port for match in matches if match.server)
    yield from (entry.server.port,) if entry.server else entry.intercept.ports


def _of(
    networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network], version: Version
) -> list[ipaddress.IPv4Network] | list[ipaddress.IPv6Network]:
    """Those of one version, none within another: elements of a set may not overlap."""
    if version == 6:
        return list(ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network)))
    return list(ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network)))


def _limits(networks: Sequence[ipaddress.IPv4Network] | Sequence[ipaddress.IPv6Network]) -> bool:
    """They are not simply all."""
    return bool(networks) and networks[0].prefixlen > 0


def _ports(ports: Iterable[int]) -> str:
    found = ", ".join(map(str, sorted(set(ports))))
    return f"{{ {found} }}" if found else ""


def _quoted(name: str) -> str:
    return f'"{name}"'

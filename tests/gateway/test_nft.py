"""The printed text at work: loaded into a gateway with a client on one side and a server on the other."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from tests.gateway.namespaces import (
    CLIENT,
    CLIENTS,
    FAR,
    GATEWAY,
    OTHER_CLIENT,
    OTHER_SERVER,
    SERVER,
    Network,
    eventually,
)
from tests.gateway.standin import (
    PORT,
    SMTP,
    Proxy,
    begin,
    both,
    call,
    carries,
    config,
    connects,
    ends,
    held,
    listener,
    printed,
    refused,
    watchdog_silent,
    watchdog_speaks,
)
from tests.peers import PeerError

Family = socket.AddressFamily
TCP_CLOSE = b"\x07"  # net/tcp_states.h, the first octet of tcp_info

# A firewall as people have them: what connection tracking calls invalid is dropped, and what is not known is too.
FIREWALL = f"""
table inet firewall {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state invalid drop
        ct state established,related accept
        iifname lo accept
        meta l4proto ipv6-icmp accept
        meta mark 0x25 accept
        ct status dnat accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        ct state established,related accept
        iifname {CLIENTS} accept
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        ct state invalid drop
    }}
}}
"""


# --------------------------------------------------------------------------------------------------- a proxy that is up


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_a_connection_comes_to_the_proxy_which_knows_both_ends(network: Network, family: Family, mode: str) -> None:
    network.load(printed(both(mode)))
    proxy = Proxy(network, family, mode)
    client = call(network, family)
    accepted = proxy.accept()
    assert client.getpeername()[:2] == (SERVER.of(family), SMTP)
    assert accepted.getpeername()[:2] == (CLIENT.of(family), client.getsockname()[1])
    assert proxy.destination(accepted) == (SERVER.of(family), SMTP)
    assert carries(client, accepted, 100_000)
    assert ends(accepted, client)


@pytest.mark.parametrize("mode", ["tproxy", "redirect", "forward"])
@pytest.mark.parametrize("firewall", ["", FIREWALL], ids=["open", "firewall"])
def test_the_server_sees_the_clients_address_and_port(
    network: Network, family: Family, mode: str, firewall: str
) -> None:
    """Both links have the same four numbers then: connection tracking has to keep them apart."""
    server = {"server": f"[{SERVER.v6}]" if family == socket.AF_INET6 else SERVER.v4}
    network.load(printed(config(listener(mode, family, source="client", **server))))
    if firewall:
        network.gateway.nft(firewall)
        if mode == "forward":
            network.gateway.nft(f"add rule inet firewall input tcp dport {PORT} accept")
    proxy = Proxy(network, family, mode)
    smtp = network.server.listen(family, SMTP)
    client = call(network, family, PORT, GATEWAY.of(family)) if mode == "forward" else call(network, family)
    accepted = proxy.accept()
    if mode == "forward":
        link = network.gateway.connect(SERVER.of(family), SMTP, accepted.getpeername()[:2], transparent=True)
    else:
        link = proxy.dial(accepted)
    seen = network.server.accept(smtp)
    assert seen.getpeername()[:2] == client.getsockname()[:2]
    for _ in range(5):
        assert carries(client, accepted, 3_000)
        assert carries(link, seen, 100_000)
    link.close()  # forgotten but for the kernel, which waits for the server's last packet
    assert seen.recv(1) == b""
    eventually("the server's acknowledgement", lambda: network.gateway.has_socket_in_state("05"))  # FIN_WAIT2
    seen.shutdown(socket.SHUT_WR)
    eventually("the last acknowledgement", lambda: seen.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1) == TCP_CLOSE)
    assert ends(accepted, client)


def test_an_address_of_the_proxys_own_needs_nothing_more(network: Network, family: Family) -> None:
    network.load(printed(both("tproxy", source="own")))
    proxy, smtp = Proxy(network, family), network.server.listen(family, SMTP)
    client = call(network, family)
    accepted = proxy.accept()
    link = proxy.dial(accepted, keep=False)
    seen = network.server.accept(smtp)
    assert seen.getpeername()[0] != CLIENT.of(family)
    assert carries(client, accepted)
    assert carries(link, seen)


@pytest.mark.parametrize("closes", ["proxy", "client"])
def test_a_client_may_use_its_port_again_at_once(network: Network, family: Family, closes: str) -> None:
    """Whoever closed first keeps the old connection in mind for a while."""
    network.load(printed(both("tproxy")))
    proxy = Proxy(network, family)
    source = (CLIENT.of(family), 40_025)
    for _ in range(2):
        client = network.client.connect(SERVER.of(family), SMTP, source)
        accepted = proxy.accept()
        assert accepted.getpeername()[:2] == source
        assert ends(accepted, client) if closes == "proxy" else ends(client, accepted)


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_what_is_addressed_to_the_gateway_is_its_own(network: Network, family: Family, mode: str) -> None:
    """Its mail server, its ssh, by all of its addresses."""
    network.load(printed(both(mode, intercept={"ports": [SMTP, 22]})))
    proxy = Proxy(network, family, mode)
    addresses = [GATEWAY.of(family)]
    if family == socket.AF_INET6:
        addresses.append(f"{network.gateway.link_local(CLIENTS)}%uplink")
    for port in (SMTP, 22):
        own = network.gateway.listen(family, port)
        for address in addresses:
            client = network.client.tcp(family)
            with network.client.inside():
                where = socket.getaddrinfo(address, port)[0][4]
            client.connect(where)
            assert carries(client, network.gateway.accept(own))
    call(network, family)
    assert proxy.destination(proxy.accept())[0] == SERVER.of(family)


@pytest.mark.parametrize("key", ["ports", "clients", "servers", "interfaces"])
@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_what_is_not_for_the_listener_goes_its_way(network: Network, family: Family, mode: str, key: str) -> None:
    """Also where the listener is on the very port that is intercepted."""
    networks = {"clients": CLIENT, "servers": SERVER}
    others = {
        "ports": [587, 465],
        "clients": [str(networks["clients"].of(family)), "10.0.0.0/8", "10.1.0.0/16", "2001:db8:9::/48"],
        "servers": [str(networks["servers"].of(family)), "10.0.0.0/8", "2001:db8:9::/48"],
        "interfaces": [CLIENTS, "other0"],
    }
    entry = listener(mode, family, intercept={key: others[key]})
    port = 587 if key == "ports" else SMTP
    network.load(printed(config({**entry, "listen": entry["listen"].replace(str(PORT), str(port))})))
    proxy = Proxy(network, family, mode, port)
    smtp = network.server.listen(family, SMTP)
    outside = {
        "ports": lambda: call(network, family, SMTP),
        "clients": lambda: network.client.connect(SERVER.of(family), SMTP, (OTHER_CLIENT.of(family), 0)),
        "servers": lambda: call(network, family, host=OTHER_SERVER.of(family)),
    }
    if key == "interfaces":
        back = network.client.listen(family, SMTP)
        direct = network.server.connect(CLIENT.of(family), SMTP)
        assert carries(direct, network.client.accept(back), 10_000)
    else:
        direct = outside[key]()
        assert carries(direct, network.server.accept(smtp), 10_000)
    client = call(network, family, port)
    assert carries(client, proxy.accept(), 10_000)


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_the_first_listener_that_fits_has_it(network: Network, family: Family, mode: str) -> None:
    def entry(number: int, **intercept: Any) -> dict[str, Any]:
        made = listener(mode, family, intercept=intercept)
        return {**made, "name": f"n-{number}", "listen": made["listen"].replace(str(PORT), str(PORT + number))}

    network.load(printed(config(entry(1, clients=[OTHER_CLIENT.of(family)]), entry(2), entry(3))))
    first, second, third = (Proxy(network, family, mode, PORT + number) for number in (1, 2, 3))
    client = call(network, family)
    assert carries(client, second.accept())
    client = network.client.connect(SERVER.of(family), SMTP, (OTHER_CLIENT.of(family), 0))
    assert carries(client, first.accept())
    second.stop()
    third.stop()
    assert refused(network, family)  # and not the third, when it is up: what fits goes to no other


def test_both_modes_at_once(network: Network, family: Family) -> None:
    turned = listener("redirect", family, intercept={"ports": [SMTP, 587]})
    turned["listen"] = turned["listen"].replace(str(PORT), "2526")
    network.load(printed(config(listener("tproxy", family), turned)))
    taken, other = Proxy(network, family), Proxy(network, family, "redirect", 2526)
    client = call(network, family)
    accepted = taken.accept()
    assert taken.destination(accepted) == (SERVER.of(family), SMTP)
    assert carries(client, accepted)
    client = call(network, family, 587)
    accepted = other.accept()
    assert other.destination(accepted) == (SERVER.of(family), 587)
    assert carries(client, accepted)


# ------------------------------------------------------------------------------------------------- down, and up again


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_refuse_no_proxy_no_connection(network: Network, family: Family, mode: str) -> None:
    network.load(printed(both(mode)))
    network.server.listen(family, SMTP)
    proxy = Proxy(network, family, mode)
    client = call(network, family)
    accepted = proxy.accept()
    proxy.stop()
    for _ in range(3):
        assert refused(network, family)
    assert carries(client, accepted)  # what it has, it keeps
    proxy = Proxy(network, family, mode)
    client = call(network, family)
    assert carries(client, proxy.accept())


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_bypass_no_proxy_straight_to_the_server(network: Network, family: Family, mode: str) -> None:
    network.load(printed(both(mode, intercept={"when_down": "bypass"})))
    smtp = network.server.listen(family, SMTP)
    proxy = Proxy(network, family, mode)
    inspected = call(network, family)
    accepted = proxy.accept()
    proxy.stop()
    down(network, mode)
    direct = call(network, family)
    seen = network.server.accept(smtp)
    assert seen.getpeername()[:2] == direct.getsockname()[:2]
    assert carries(direct, seen)
    assert carries(inspected, accepted)

    proxy = Proxy(network, family, mode)
    up(network, mode)
    client = call(network, family)
    assert carries(client, proxy.accept())
    assert carries(direct, seen, 10_000)  # what began directly goes on so
    assert ends(direct, seen)


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_hold_the_clients_tcp_waits_for_the_proxy(network: Network, family: Family, mode: str) -> None:
    settings = both(mode, intercept={"when_down": "hold"})
    network.load(printed(settings))
    network.server.listen(family, SMTP)
    if mode == "redirect":
        down(network, mode)
    client = begin(network, family)
    chain = f"to-{settings.listeners[family == socket.AF_INET6].name}"
    held(network, chain)
    proxy = Proxy(network, family, mode)
    up(network, mode)
    assert connects(client)
    client.settimeout(10)
    assert carries(client, proxy.accept())


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_a_listener_that_nobody_answers_at_counts_as_down(network: Network, family: Family, mode: str) -> None:
    """With the watchdog: the socket is there, and the proxy hangs."""
    network.load(printed(both(mode), watchdog=True))
    proxy = Proxy(network, family, mode)
    client = call(network, family)  # a text just loaded says up, until the watchdog says more
    assert carries(client, proxy.accept())
    down(network)
    assert refused(network, family)
    up(network)
    client = call(network, family)
    assert carries(client, proxy.accept())


@pytest.mark.parametrize("how", ["bypass", "refuse", "hold"])
def test_what_is_said_when_it_is_printed_holds_over_the_configuration(network: Network, how: str) -> None:
    family = socket.AF_INET
    network.load(
        printed(both("tproxy", intercept={"when_down": "refuse" if how != "refuse" else "hold"}), when_down=how)
    )
    smtp = network.server.listen(family, SMTP)
    if how == "bypass":
        direct = call(network, family)
        assert carries(direct, network.server.accept(smtp))
    elif how == "refuse":
        assert refused(network, family)
    else:
        begin(network, family)
        held(network, "to-tproxy-v4")


# --------------------------------------------------------------------------------- loading it, and taking it away again


def test_what_was_connected_before_it_was_loaded_stays_so(network: Network, family: Family) -> None:
    """Also where the listener is on the port that is intercepted, and the text is loaded again and again."""
    entry = listener("tproxy", family)
    text = printed(config({**entry, "listen": entry["listen"].replace(str(PORT), str(SMTP))}))
    smtp, proxy = network.server.listen(family, SMTP), Proxy(network, family, port=SMTP)
    before = call(network, family)
    seen = network.server.accept(smtp)
    network.load(text)
    assert carries(before, seen, 10_000)
    client = call(network, family)
    accepted = proxy.accept()
    link = proxy.dial(accepted)
    server = network.server.accept(smtp)
    for again in (text, text, text.replace("counter reject with tcp reset", "counter drop")):
        network.gateway.nft(again)
        assert network.gateway.run("nft", "list", "ruleset").stdout.count("goto to-") == 1
        assert carries(client, accepted, 10_000)
        assert carries(link, server, 10_000)
        assert carries(before, seen, 10_000)


def test_a_text_that_is_wrong_leaves_the_one_before(network: Network) -> None:
    text = printed(both("tproxy"))
    network.load(text)
    before = network.gateway.run("nft", "list", "ruleset").stdout
    with pytest.raises(PeerError, match="syntax error"):
        network.gateway.nft(text.rstrip().removesuffix("}"))
    assert network.gateway.run("nft", "list", "ruleset").stdout == before


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_taken_away_as_it_says_nothing_is_left(network: Network, mode: str) -> None:
    def everything() -> list[str]:
        words = (
            "nft list ruleset",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
        )
        return [network.gateway.run(*word.split()).stdout for word in words]

    before = everything()
    text = printed(both(mode, source="client"))
    network.load(text)
    assert everything()[0]
    network.unload(text)
    assert everything() == before
    smtp = network.server.listen(socket.AF_INET, SMTP)
    client = call(network, socket.AF_INET)
    assert carries(client, network.server.accept(smtp))


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_by_hand_nothing_more_is_led_here_and_sessions_go_on(network: Network, family: Family, mode: str) -> None:
    """In the way the text tells; loaded again it leads here again."""
    text = printed(both(mode, source="client"))
    network.load(text)
    proxy, smtp = Proxy(network, family, mode), network.server.listen(family, SMTP)
    client = call(network, family)
    accepted = proxy.accept()
    link = proxy.dial(accepted)
    seen = network.server.accept(smtp)
    network.follow(text, "Lead nothing")
    direct = call(network, family)
    through = network.server.accept(smtp)
    assert through.getpeername()[:2] == direct.getsockname()[:2]
    assert carries(client, accepted, 10_000)
    assert carries(link, seen, 10_000)
    network.gateway.nft(text)
    assert carries(call(network, family), proxy.accept())
    assert carries(direct, through, 10_000)


# --------------------------------------------------------------------------------------------------- harder packets


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
@pytest.mark.parametrize("firewall", ["", FIREWALL], ids=["open", "firewall"])
def test_the_proxy_learns_how_much_the_servers_path_takes(
    network: Network, family: Family, mode: str, firewall: str
) -> None:
    """The error is addressed to the client, whose address the proxy uses. Without it large mails get stuck."""
    far = network.beyond(network.server, 1400)
    network.load(printed(both(mode, source="client")))
    if firewall:
        network.gateway.nft(firewall)
    proxy, smtp = Proxy(network, family, mode), far.listen(family, SMTP)
    client = call(network, family, host=FAR.of(family))
    accepted = proxy.accept()
    link = proxy.dial(accepted)
    assert carries(link, far.accept(smtp), 100_000)
    assert carries(client, accepted, 100_000)
    assert mtu(link) == 1400


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_the_proxy_learns_how_much_the_clients_path_takes(network: Network, family: Family, mode: str) -> None:
    """The error is addressed to the server, whose address the proxy uses."""
    far = network.beyond(network.client, 1400)
    network.load(printed(both(mode)))
    proxy = Proxy(network, family, mode)
    client = far.connect(SERVER.of(family), SMTP)
    accepted = proxy.accept()
    assert carries(accepted, client, 100_000)
    assert mtu(accepted) == 1400


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_a_first_packet_with_other_flags_finds_no_other_way(network: Network, mode: str) -> None:
    """Some servers take SYN with FIN for the beginning of a connection."""
    network.load(printed(both(mode)))
    network.server.nft(
        "table inet seen { chain input { type filter hook input priority 0; policy accept;\ntcp dport 25 counter\n}\n}"
    )
    with network.client.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for flags in (0x02, 0x03, 0x06, 0x07, 0x2B, 0xC2):  # SYN; FIN, RST, URG and PSH, ECN beside it
            raw.sendto(segment(40_000 + flags, flags), (SERVER.v4, 0))
        assert refused(network, socket.AF_INET)  # and by then those have been there, too
    assert "counter packets 0" in network.server.run("nft", "list", "table", "inet", "seen").stdout


def segment(source: int, flags: int) -> bytes:
    """A TCP header from the client to the server."""
    header = struct.pack("!HHIIBBHHH", source, SMTP, 1, 0, 5 << 4, flags, 65_535, 0, 0)
    pseudo = socket.inet_aton(CLIENT.v4) + socket.inet_aton(SERVER.v4) + struct.pack("!BBH", 0, 6, len(header))
    total = sum(struct.unpack(f"!{len(pseudo + header) // 2}H", pseudo + header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return header[:16] + struct.pack("!H", checksum) + header[18:]


def mtu(sock: socket.socket) -> int:
    """What the kernel knows of the path: IP_MTU, IPV6_MTU of linux/in.h, in6.h."""
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, 24)
    return sock.getsockopt(socket.SOL_IP, 14)


def down(network: Network, mode: str = "redirect") -> None:
    """What `tproxy` does without a watchdog it sees itself."""
    if mode == "redirect":
        watchdog_silent(network)


def up(network: Network, mode: str = "redirect") -> None:
    if mode == "redirect":
        watchdog_speaks(network)

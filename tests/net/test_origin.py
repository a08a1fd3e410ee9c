"""Who a client is and where it was going; where it may be led. What the kernel's NAT and transparent sockets say of
that is tested where there are such (tests/gateway)."""

import errno
import os
import socket
from ipaddress import ip_network

import pytest

from smtpproxy.config import Config
from smtpproxy.net.machine import Machine, Where
from smtpproxy.net.origin import Loops, Origin, Reach, bind_as, open_sockets, origin_of, outgoing_key
from smtpproxy.net.proxyheader import encode, parse

CLIENT, BALANCER, LOCAL, SERVER = ("198.51.100.7", 4711), ("10.0.0.9", 999), ("10.0.0.1", 2525), ("203.0.113.5", 25)


def machine(*hosts: str) -> Machine:
    return Machine(lambda: 0.0, lambda: frozenset(hosts))


def pair(family: socket.AddressFamily, host: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A listening socket, a client, and our end of its connection."""
    listening = socket.create_server((host, 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
    listening.settimeout(5)
    client = socket.create_connection(("127.0.0.1" if host == "::" else host, listening.getsockname()[1]), timeout=5)
    return listening, client, listening.accept()[0]


@pytest.mark.parametrize("mode", ["forward", "tproxy"])
def test_our_end_says_where_it_was_going(mode: str) -> None:
    listening, client, ours = pair(socket.AF_INET, "127.0.0.1")
    with listening, client, ours:
        origin = origin_of(mode, ours, client.getsockname())
        assert origin == Origin(
            client.getsockname(), listening.getsockname(), client.getsockname(), listening.getsockname()
        )
        assert origin.going == origin.aim == listening.getsockname()


def test_ipv4_on_a_socket_for_both_families_is_ipv4() -> None:
    """As systemd opens them: the peer is ::ffff:127.0.0.1 to the kernel."""
    listening, client, ours = pair(socket.AF_INET6, "::")
    with listening, client, ours:
        assert ours.getsockname()[0] == "::ffff:127.0.0.1"
        assert origin_of("forward", ours, client.getsockname()).local[0] == "127.0.0.1"


def test_a_connection_that_is_gone_is_an_error() -> None:
    listening, client, ours = pair(socket.AF_INET, "127.0.0.1")
    with listening, client:
        ours.close()
        with pytest.raises(OSError, match="Bad file"):
            origin_of("forward", ours, client.getsockname())


def test_a_load_balancer_says_who_the_client_is() -> None:
    origin = Origin(BALANCER, LOCAL, BALANCER, LOCAL)
    header = parse(encode(2, CLIENT, SERVER))
    assert header is not None
    told = origin.told(header)
    assert (told.peer, told.client, told.aim) == (BALANCER, CLIENT, SERVER)
    assert told.going == LOCAL, "what it says of the destination is never connected to"


def test_a_load_balancer_on_its_own_account_is_the_client() -> None:
    """PROXY UNKNOWN, or LOCAL: a health check."""
    origin = Origin(BALANCER, LOCAL, BALANCER, LOCAL)
    for header in (parse(b"PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2\r\n"), parse(encode(2, None, None))):
        assert header is not None
        told = origin.told(header)
        assert (told.client, told.aim, told.header) == (BALANCER, LOCAL, header)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "a loopback address"),
        ("127.255.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("0.0.0.0", "no address"),
        ("::", "no address"),
        ("0.1.2.3", "no host's address"),
        ("255.255.255.255", "no host's address"),
        ("169.254.169.254", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("192.0.2.1", "this machine's own"),
        ("2001:db8::1", "this machine's own"),
        ("192.0.2.2", ""),
        ("10.0.0.1", ""),
        ("2001:db8::2", ""),
    ],
)
def test_where_nobody_is_led(host: str, why: str) -> None:
    """No open door to what only the gateway itself can reach."""
    said = Reach((), machine("192.0.2.1", "2001:db8::1")).why_not((host, 25))
    assert said.endswith(why)
    assert bool(said) == bool(why)


def test_what_is_written_down_may_be_reached_and_nothing_else() -> None:
    reach = Reach([ip_network("127.0.0.2/32"), ip_network("2001:db8::/32")], machine("2001:db8::1"))
    assert not reach.why_not(("127.0.0.2", 25))
    assert not reach.why_not(("2001:db8::1", 25))
    for host in ("127.0.0.1", "192.0.2.1", "2001:db9::1"):
        assert "none of the networks of `reach`" in reach.why_not((host, 25))


@pytest.mark.parametrize(
    ("where", "ours"),
    [
        (("192.0.2.1", 2525), True),
        (("192.0.2.1", 25), False),
        (("192.0.2.9", 2525), False),
        (("127.0.0.1", 2525), True),
        (("2001:db8::1", 2526), True),
        (("2001:db8::2", 2526), False),
        (("198.51.100.1", 587), True),
        (("192.0.2.1", 587), False),
    ],
)
def test_our_own_listeners_are_known(where: Where, ours: bool) -> None:
    listening = [("0.0.0.0", 2525), ("::", 2526), ("198.51.100.1", 587)]
    assert Loops(listening, machine("192.0.2.1", "2001:db8::1")).listens(where) is ours


def test_a_connection_has_one_key_from_both_ends() -> None:
    assert outgoing_key(CLIENT, SERVER) == outgoing_key(CLIENT, SERVER)
    assert len({outgoing_key(CLIENT, SERVER), outgoing_key(SERVER, CLIENT), outgoing_key(CLIENT, LOCAL)}) == 3


def entry(listen: str, mode: str = "forward") -> Config:
    return Config.model_validate(
        {"listener": [{"name": "smtp", "listen": listen, "mode": mode, "server": "192.0.2.1:25"}]}
    )


def test_a_transparent_socket_is_one() -> None:
    """Runs where it may (root, as in CI): without the capability the error says which it takes."""
    (listener,) = entry("127.0.0.1:0", "tproxy").listeners
    try:
        (sock,) = open_sockets(listener)
    except PermissionError as error:
        assert "CAP_NET_RAW" in str(error)  # noqa: PT017 - both are right, on different machines
        return
    with sock:
        assert sock.getsockopt(socket.SOL_IP, socket.IP_TRANSPARENT) == 1


def test_an_ordinary_listener_is_not_transparent() -> None:
    (listener,) = entry("127.0.0.1:0").listeners
    (sock,) = open_sockets(listener)
    with sock:
        assert sock.getsockopt(socket.SOL_IP, socket.IP_TRANSPARENT) == 0


def test_the_port_of_the_client_is_kept_where_it_is_free() -> None:
    with socket.socket() as holder, socket.socket() as first, socket.socket() as second:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()
        try:
            bind_as(first, taken)
        except PermissionError:
            return  # not root; tests/gateway has it
        assert first.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] != taken[1]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()
        bind_as(second, free)
        assert second.getsockname() == free


def test_an_address_that_can_not_be_had_is_an_error() -> None:
    with socket.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match=r".") as caught:
        bind_as(sock, ("ff02::1", 2525))
    assert caught.value.errno in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EPERM)


@pytest.mark.parametrize(("text", "count"), [("127.0.0.1:0", 1), ("[::1]:0", 1), ("[::]:0", 1), ("0.0.0.0:0", 1)])
def test_open_sockets(text: str, count: int) -> None:
    sockets = open_sockets(entry(text).listeners[0])
    assert len(sockets) == count
    for sock in sockets:
        assert not sock.getblocking()
        with socket.create_connection((sock.getsockname()[0], sock.getsockname()[1]), timeout=5):
            pass
        sock.close()


def test_an_address_in_use_is_an_error_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="in use"):
            open_sockets(entry(f"localhost:{taken.getsockname()[1]}").listeners[0])
        assert os.listdir("/proc/self/fd") == before

"""The way to the server: never to ourselves, and known while it lasts."""

import errno
import socket
from pathlib import Path

import pytest

from smtpproxy.net.dialling import Dial
from smtpproxy.net.machine import Machine, Where
from smtpproxy.net.origin import Loops, outgoing_key
from smtpproxy.net.tally import Tally
from tests.net.rig import Rig, rig, settled

NOBODY = Machine(lambda: 0.0, frozenset)


def dial(*listening: Where, source: Where | None = None, tally: Tally | None = None) -> Dial:
    return Dial(Loops(listening, NOBODY), tally or Tally.alone(), source)


@pytest.mark.parametrize("listening", [("127.0.0.1", 2525), ("0.0.0.0", 2525)])
def test_our_own_listener_is_not_connected_to(listening: Where) -> None:
    with pytest.raises(OSError, match="this proxy itself") as caught:
        dial(listening)((socket.AF_INET, ("127.0.0.1", 2525)))
    assert caught.value.errno == errno.ELOOP


def test_a_client_s_address_has_one_family() -> None:
    with pytest.raises(OSError, match="family of the client"):
        dial(source=("2001:db8::1", 4711))((socket.AF_INET, ("127.0.0.1", 25)))


@pytest.mark.parametrize(
    "address",
    [
        (12345, ("192.0.2.1", 25)),
        (socket.AF_INET6, ("fe80::1%nowhere", 25)),
        (socket.AF_INET, ("0.0.0.0", 25)),  # a resolver that blocks says so; the kernel would take the loopback
        (socket.AF_INET6, ("::", 25)),
    ],
)
def test_what_can_not_be_tried_is_an_error(address: tuple[int, Where]) -> None:
    """And leaves no descriptor behind, which the warning about it would tell."""
    with pytest.raises(OSError, match=r"."):
        dial()(address)


def test_a_connection_of_our_own_is_known_while_it_lasts() -> None:
    tally = Tally.alone()
    one = dial(tally=tally)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
        sock, _ = one((socket.AF_INET, where))
        with sock:
            first = outgoing_key(sock.getsockname(), where)
            assert tally.ours(first)
            assert not tally.ours(outgoing_key(where, sock.getsockname()))
        again, _ = one((socket.AF_INET, where))  # the next address of the same server
        with again:
            second = outgoing_key(again.getsockname(), where)
            assert tally.ours(second)
            assert first == second or not tally.ours(first)
            one.over()
            one.over()
            assert not tally.ours(second)


def test_a_client_s_own_port_is_kept_and_another_is_taken_where_there_is_a_connection_from_it_already() -> None:
    """The first has the ends of the client's own connection, so a client that comes again must not be taken for it."""
    tally = Tally.alone()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as probe:
        where = server.getsockname()
        probe.bind(("127.0.0.1", 0))
        source: Where = probe.getsockname()
        probe.close()
        first, second = dial(source=source, tally=tally), dial(source=source, tally=tally)
        try:
            sock, _ = first((socket.AF_INET, where))
        except PermissionError:
            return  # not root; tests/gateway has it
        with sock:
            assert sock.getsockname() == source
            assert not tally.ours(outgoing_key(source, where))
            again, _ = second((socket.AF_INET, where))
            with again:
                host, port = again.getsockname()
                assert host == source[0]
                assert port != source[1]
                assert tally.ours(outgoing_key((host, port), where))
                second.over()
                assert not tally.ours(outgoing_key((host, port), where))


async def looped(r: Rig) -> None:
    """Refused, with the reason, and no server is asked again."""
    record = (await r.record("link-connect", refused="the proxy's own connection came back to it"))["refused"]
    assert record
    assert not r.server.ends


async def test_a_connection_through_ourselves_twice_is_refused(tmp_path: Path) -> None:
    """As if the way to the server led back here: it is seen by both ends of the connection."""
    async with rig(tmp_path) as r:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            r.sessions.tally.outgoing(outgoing_key(sock.getsockname(), r.address))
            sock.connect(r.address)
            await looped(r)
            assert sock.recv(100).startswith(b"421 ")
            await settled()


async def test_a_server_that_is_ourselves_is_told_so(tmp_path: Path) -> None:
    """Misconfigured: refused before it is connected to, not after a hundred turns."""
    async with rig(tmp_path) as r:
        r.destination.addresses = [(socket.AF_INET, r.address)]
        client = await r.connect()
        assert (await client.reply()).startswith(b"421 ")
        client.close()
        await r.over()
        assert len(r.records("link-connect")) == 1
        (greeting,) = r.records("exchange")
        assert "this proxy itself" in str(greeting) + str(r.records("note"))

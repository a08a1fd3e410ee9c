"""Links: what epoll says and what a read or send then finds."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

import pytest

from smtpproxy.net.link import Link, State

Pair = tuple[Link, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    peer.settimeout(5)
    yield Link(ours, 100.0), peer
    ours.close()
    peer.close()


@pytest.mark.parametrize("mask", [EPOLLIN, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLIN | EPOLLOUT])
def test_every_event_that_a_read_can_tell_more_of_makes_a_link_readable(pair: Pair, mask: int) -> None:
    link, _ = pair
    link.event(mask)
    assert link.readable
    assert link.ended is bool(mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))


def test_room_to_send_unblocks_and_says_nothing_of_reading(pair: Pair) -> None:
    link, _ = pair
    link.blocked = True
    link.event(EPOLLOUT)
    assert not link.blocked
    assert not link.readable


def test_a_short_read_means_that_nothing_is_left(pair: Pair) -> None:
    link, peer = pair
    peer.sendall(b"NOOP\r\n")
    link.event(EPOLLIN)
    assert link.receive(100) == b"NOOP\r\n"
    assert not link.readable
    assert link.received == 6


def test_a_full_read_means_that_more_may_be_left(pair: Pair) -> None:
    link, peer = pair
    peer.sendall(b"NOOP\r\n")
    link.event(EPOLLIN)
    assert link.receive(6) == b"NOOP\r\n"
    assert link.readable
    assert link.receive(6) is None
    assert not link.readable


def test_once_the_end_is_known_a_link_is_read_until_it_is_reached(pair: Pair) -> None:
    link, peer = pair
    peer.sendall(b"QUIT\r\n")
    peer.shutdown(socket.SHUT_WR)
    link.event(EPOLLIN | EPOLLRDHUP)
    assert link.receive(100) == b"QUIT\r\n"
    assert link.readable  # no edge tells of the end again
    assert link.receive(100) == b""


def test_a_reset_is_raised(pair: Pair) -> None:
    link, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    link.event(EPOLLERR | EPOLLHUP)
    with pytest.raises(ConnectionResetError):
        link.receive(100)


def test_what_is_sent_is_taken_off_and_counted(pair: Pair) -> None:
    link, peer = pair
    octets = bytearray(b"250 Ok\r\n")
    assert link.send(octets, 101.0)
    assert octets == b""
    assert (link.sent, link.moved_at, link.blocked) == (8, 101.0, False)
    assert peer.recv(100) == b"250 Ok\r\n"


def test_what_the_kernel_does_not_take_stays_in_order(pair: Pair) -> None:
    link, peer = pair
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    whole = bytes(range(256)) * 4_000
    octets = bytearray(whole)
    assert not link.send(octets, 101.0)
    assert link.blocked
    assert link.sent == len(whole) - len(octets) > 0
    assert octets == whole[link.sent :]
    got = bytearray()
    while len(got) < len(whole):
        readable, writable, _ = select.select([peer], [link.socket] if octets else [], [], 5)
        assert readable or writable
        if readable:
            got += peer.recv(1_000_000)
        if writable:
            link.send(octets, 102.0)
    assert got == whole


def test_a_full_window_leaves_everything_and_does_not_count_as_movement(pair: Pair) -> None:
    link, _ = pair
    octets = bytearray(50_000_000)
    while not link.blocked:
        link.send(octets, 101.0)
    left = len(octets)
    for _ in range(100):  # until the kernel has put away what it took
        if not link.send(octets, 102.0) and len(octets) == left:
            break
        left = len(octets)
    link.moved_at = 0.0
    assert not link.send(octets, 103.0)
    assert (len(octets), link.moved_at, link.blocked) == (left, 0.0, True)


def test_shut_ends_our_side_behind_the_last_octet_and_reads_on(pair: Pair) -> None:
    link, peer = pair
    link.send(bytearray(b"421 Bye\r\n"), 101.0)
    link.shut()
    assert link.state is State.LINGERING
    assert peer.recv(100) == b"421 Bye\r\n"
    assert peer.recv(100) == b""
    peer.sendall(b"still talking")
    assert link.receive(100) == b"still talking"


def test_shut_of_a_broken_link_is_no_error(pair: Pair) -> None:
    link, _ = pair
    link.socket.close()
    link.shut()
    assert link.state is State.LINGERING


def test_close_ends_in_order(pair: Pair) -> None:
    link, peer = pair
    link.close()
    assert link.state is State.CLOSED
    assert peer.recv(100) == b""


def test_close_by_reset(pair: Pair) -> None:
    link, peer = pair
    link.close(reset=True)
    with pytest.raises(ConnectionResetError):
        peer.recv(100)


def test_a_closed_link_has_no_number_any_more(pair: Pair) -> None:
    """The kernel gives the number to the next who asks: nobody must be able to act on it through this link."""
    link, _ = pair
    link.close()
    assert link.fd == -1
    link.close(reset=True)  # twice is once


def test_close_of_a_socket_that_is_gone_is_no_error(pair: Pair) -> None:
    link, _ = pair
    link.socket.close()
    link.close(reset=True)
    assert link.state is State.CLOSED


def test_talked_sees_octets_and_leaves_them(pair: Pair) -> None:
    link, peer = pair
    assert not link.talked()
    peer.sendall(b"EHLO\r\n")
    assert link.receive(0) in (b"", None)
    assert link.talked()
    assert link.receive(100) == b"EHLO\r\n"


def test_an_end_or_a_reset_is_no_talk(pair: Pair) -> None:
    link, peer = pair
    peer.shutdown(socket.SHUT_WR)
    assert not link.talked()
    link.socket.close()
    assert not link.talked()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        link.receive(1)

"""This machine's addresses, and addresses as they are written."""

import errno
import socket
import subprocess

import pytest

from smtpproxy.net.machine import FRESH, Machine, family_of, own_addresses, plain, printable


class Kernel:
    """What the kernel says, and the time."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = frozenset(hosts)
        self.error: OSError | None = None
        self.asked = 0
        self.now = 100.0

    def ask(self) -> frozenset[str]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.hosts

    def machine(self) -> Machine:
        return Machine(lambda: self.now, self.ask)


def test_addresses_are_asked_for_again_when_they_are_old() -> None:
    """A virtual address moves from one gateway to another while the proxy runs."""
    kernel = Kernel("192.0.2.1")
    machine = kernel.machine()
    assert machine.has("192.0.2.1")
    assert not machine.has("192.0.2.2")
    kernel.hosts = frozenset({"192.0.2.2"})
    assert not machine.has("192.0.2.2")
    assert kernel.asked == 1
    kernel.now += FRESH + 0.1
    assert machine.has("192.0.2.2")
    assert not machine.has("192.0.2.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_always_this_machine(host: str) -> None:
    assert Kernel().machine().has(host)


def test_where_the_kernel_can_not_be_asked_what_was_known_holds(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = Kernel("192.0.2.1")
    machine = kernel.machine()
    assert machine.has("192.0.2.1")
    kernel.error = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    for _ in range(3):
        kernel.now += FRESH + 0.1
        assert machine.has("192.0.2.1")
        assert not machine.has("192.0.2.2")
    assert capsys.readouterr().out.count("addresses can't be known") == 1


def test_where_it_was_never_known_any_address_may_be_ours() -> None:
    """Fail closed: no session is led to this machine's own services for want of AF_NETLINK."""
    kernel = Kernel()
    kernel.error = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    assert kernel.machine().has("192.0.2.1")


def test_the_kernel_is_understood() -> None:
    """The same addresses as ip(8) shows."""
    shown = subprocess.run(["ip", "-o", "address"], check=True, capture_output=True, text=True, timeout=10).stdout
    listed = {line.split()[3].partition("/")[0] for line in shown.splitlines()}
    assert own_addresses() == listed
    assert "127.0.0.1" in listed


@pytest.mark.parametrize(
    ("address", "written"),
    [
        (("192.0.2.1", 25), ("192.0.2.1", 25)),
        (("::ffff:192.0.2.1", 25, 0, 0), ("192.0.2.1", 25)),
        (("::ffff:7f00:1", 25), ("127.0.0.1", 25)),
        (("2001:DB8:0::1", 25, 0, 0), ("2001:db8::1", 25)),
        (("fe80::1%eth0", 25, 0, 3), ("fe80::1", 25)),
    ],
)
def test_an_address_is_written_in_one_way(address: tuple[str, int], written: tuple[str, int]) -> None:
    """Else what is looked for in a list of networks could be there in another spelling."""
    assert plain(address) == written


def test_printable() -> None:
    assert printable(("192.0.2.1", 25)) == "192.0.2.1:25"
    assert printable(("2001:db8::1", 25, 0, 0)) == "[2001:db8::1]:25"


def test_family() -> None:
    assert family_of("192.0.2.1") == socket.AF_INET
    assert family_of("2001:db8::1") == socket.AF_INET6

"""deploy/ha: each program takes its configuration, the routes lead both ways through one gateway, and addresses move
when the text says so. Everything in network namespaces of its own."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rig import DEPLOY, until
from tests.peers import unavailable

HA = DEPLOY / "ha"
README = (HA / "README.md").read_text(encoding="utf-8")
PATIENCE = 30


def _need(*programs: str) -> None:
    if os.geteuid() != 0:
        unavailable("network namespaces need root")
    if lacking := [name for name in programs if shutil.which(name) is None]:
        unavailable(f"{lacking[0]} is missing")


class Network:
    """A network namespace, and a place of its own for what programs leave in /run."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount",
             "sh", "-c", "mount -t tmpfs tmpfs /run && ip link set lo up && echo && cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self._holder.pid
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # it is ready

    def command(self, *command: str) -> list[str]:
        """The command that runs a command in it."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--wd=/", "--", *command]

    def run(self, *command: str, fails: bool = False) -> str:
        """What a command prints in it."""
        done = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def interface(self, name: str) -> None:
        """An interface that leads nowhere."""
        self.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-end")
        self.run("ip", "link", "set", name, "up")
        self.run("ip", "link", "set", f"{name}-end", "up")

    def close(self) -> None:
        """It is gone, and what is in it."""
        self._holder.communicate()


@contextlib.contextmanager
def _networks(count: int) -> Iterator[list[Network]]:
    _need("unshare", "nsenter", "ip")
    with contextlib.ExitStack() as ends:
        yield [ends.enter_context(contextlib.closing(Network())) for _ in range(count)]


@pytest.mark.parametrize("name", ["keepalived.conf", "ipvs.conf"])
def test_keepalived_takes_its_configuration(name: str, tmp_path: Path) -> None:
    _need("keepalived")
    with _networks(1) as (network,):
        network.interface("eth0")
        text = (HA / name).read_text(encoding="utf-8").replace("/opt/smtpproxy/bin/smtpproxy", "/bin/true")
        (tmp_path / name).write_text(text, encoding="utf-8")
        network.run("keepalived", "--config-test", "-f", str(tmp_path / name))
        (tmp_path / name).write_text(text.replace("{", "{\n  no_such_word", 1), encoding="utf-8")
        network.run("keepalived", "--config-test", "-f", str(tmp_path / name), fails=True)


def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    _need("haproxy")
    with _networks(1) as (network,):
        network.run("haproxy", "-c", "-f", str(HA / "haproxy.cfg"))
        (tmp_path / "wrong.cfg").write_text((HA / "haproxy.cfg").read_text().replace("send-proxy-v2", "send-proxy-v3"))
        network.run("haproxy", "-c", "-f", str(tmp_path / "wrong.cfg"), fails=True)


def test_both_ways_of_a_connection_lead_through_one_gateway() -> None:
    """The routes of the readme, asked of the kernel: there, back, and not again for what comes from a gateway."""
    (routes,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    with _networks(1) as (router,):
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for name, v4, v6 in (
            ("clients", "198.51.100.254/24", "2001:db8:1::fe/48"),
            ("gateways", "192.0.2.254/24", "2001:db8::fe/64"),
            ("servers", "203.0.113.254/24", "2001:db8:3::fe/48"),
        ):
            router.interface(name)
            router.run("ip", "addr", "add", v4, "dev", name)
            router.run("ip", "addr", "add", v6, "dev", name, "nodad")
        router.run("sh", "-euc", routes)
        for client, server, gateway in (
            ("198.51.100.5", "203.0.113.25", "192.0.2.11"),
            ("198.51.100.200", "203.0.113.25", "192.0.2.12"),
            ("2001:db8:1::5", "2001:db8:3::25", "2001:db8::11"),
            ("2001:db8:1:8000::5", "2001:db8:3::25", "2001:db8::12"),
        ):
            there = ("from", client, "ipproto", "tcp", "sport", "40000", "dport", "25")
            back = ("from", server, "ipproto", "tcp", "sport", "25", "dport", "40000")
            assert f"via {gateway} " in router.run("ip", "route", "get", server, *there, "iif", "clients")
            assert f"via {gateway} " in router.run("ip", "route", "get", client, *back, "iif", "servers")
            assert "dev servers" in router.run("ip", "route", "get", server, *there, "iif", "gateways")
            assert "dev clients" in router.run("ip", "route", "get", client, *back, "iif", "gateways")
            web = ("from", client, "ipproto", "tcp", "sport", "40000", "dport", "443")
            assert "dev servers" in router.run("ip", "route", "get", server, *web, "iif", "clients")


class Gateway:
    """One of two, with keepalived; `well` is what its script finds."""

    def __init__(self, number: int, network: Network, folder: Path) -> None:
        self.network = network
        self._well = folder / f"well-{number}"
        self._log = folder / f"log-{number}"
        self.well(True)
        other = 3 - number
        text = (HA / "keepalived.conf").read_text(encoding="utf-8")
        text = re.sub(r'script "(.*)"', f'script "/usr/bin/test -e {self._well}"', text)
        text = re.sub(r"interval \d+", "interval 1", re.sub(r"(fall|rise) \d+", r"\1 1", text))
        text = text.replace("advert_int 1", "advert_int 0.1")
        for family in ("192.0.2.1", "2001:db8::1"):
            text = re.sub(rf"unicast_src_ip {family}\d", f"unicast_src_ip {family}{number}", text)
            text = re.sub(rf"^        {family}\d$", f"        {family}{other}", text, flags=re.M)
        configuration = folder / f"{number}.conf"
        configuration.write_text(text, encoding="utf-8")
        command = ["keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(configuration)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                network.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def well(self, so: bool) -> None:
        """What the script will find."""
        if so:
            self._well.touch()
        else:
            self._well.unlink()

    def has(self, *, all_of_them: bool) -> bool:
        """Whether it has the addresses."""
        there = self.network.run("ip", "-brief", "addr", "show", "eth0").split()
        found = [address in there for address in ("192.0.2.1/24", "2001:db8::1/64", "fe80::25:1/64")]
        return all(found) if all_of_them else any(found)

    def says(self, word: str) -> int:
        """How often that is in its log."""
        return self._log.read_text().count(word)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)


def test_addresses_move_when_their_gateway_is_not_well_and_at_no_other_time(tmp_path: Path) -> None:
    """As deploy/ha/README.md has it: away from who fails; not back; not if both fail."""
    _need("keepalived")
    with _networks(2) as networks, contextlib.ExitStack() as ends:
        one, two = networks
        one.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(two.pid))
        for number, network in enumerate(networks, 1):
            network.run("ip", "link", "set", "eth0", "up")
            network.run("ip", "addr", "add", f"192.0.2.1{number}/24", "dev", "eth0")
            network.run("ip", "addr", "add", f"2001:db8::1{number}/64", "dev", "eth0", "nodad")
        gateways = [
            ends.enter_context(contextlib.closing(Gateway(number, network, tmp_path)))
            for number, network in enumerate(networks, 1)
        ]

        def holder(them: tuple[Gateway, ...]) -> bool:
            return them[0].has(all_of_them=True) and not them[1].has(all_of_them=False)

        pairs = (gateways[0], gateways[1]), (gateways[1], gateways[0])
        until(lambda: any(holder(pair) for pair in pairs))
        (first,) = [pair for pair in pairs if holder(pair)]
        had, other = first
        had.well(False)
        until(lambda: holder((other, had)))
        had.well(True)
        until(lambda: had.says("Changing effective priority from 80 to 100") == 2)
        had.well(False)
        until(lambda: had.says("Changing effective priority from 100 to 80") == 4)
        other.well(False)
        until(lambda: other.says("Changing effective priority from 100 to 80") == 2)
        assert holder((other, had)), "with both unwell, and after the first had recovered meanwhile"
        assert [gateway.says("Entering MASTER STATE") for gateway in gateways] == [2, 2], "each once, for both families"

"""deploy/watchdog at work: with a program in the proxy's place that says it is well as long as a file is there."""

from __future__ import annotations

import re
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.gateway.namespaces import DEADLINE, Network, end, eventually
from tests.gateway.standin import PORT, SMTP, both, call, carries, printed, refused
from tests.peers.process import REPOSITORY, find

WATCHDOG = REPOSITORY / "deploy" / "watchdog" / "smtpproxy-watchdog"
FAMILY = socket.AF_INET
PACE = {
    "SMTPPROXY_WATCHDOG_EVERY": "0.1",
    "SMTPPROXY_WATCHDOG_PATIENCE": "0.5",
    "SMTPPROXY_WATCHDOG_ALIVE": "2",
}
STATUS = """#!/bin/sh
[ "$*" = "status --config the.toml --check" ] || { echo "not so: $*"; exit 2; }
[ ! -e hangs ] || exec sleep 60
[ -e well ] || { echo "no worker answers"; exit 1; }
"""


class Dog:
    """The watchdog on the gateway, and the proxy it asks."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network = network
        self._folder = folder
        self.log = folder / "log"
        self.log.touch()
        program = folder / "smtpproxy"
        program.write_text(STATUS)
        program.chmod(0o755)

    def set(self, **files: bool) -> None:
        for name, there in files.items():
            (self._folder / name).touch() if there else (self._folder / name).unlink(missing_ok=True)

    def start(self, **said: str) -> subprocess.Popen[bytes]:
        env = {**PACE, **said, "SMTPPROXY": str(self._folder / "smtpproxy")}
        command = ["env", f"--chdir={self._folder}", str(WATCHDOG), "the.toml"]
        return self._network.gateway.start(*command, log=self.log, env=env)

    def says(self, text: str) -> bool:
        return eventually(f"the watchdog says {text!r}", lambda: text in self.log.read_text())

    def left(self) -> int:
        """Milliseconds that the rules go on believing that the proxy is well."""
        told = self._network.gateway.run("nft", "list", "set", "inet", "smtpproxy", "alive").stdout
        found = re.search(r"expires (?:(\d+)s)?(?:(\d+)ms)?", told)
        return int(found[1] or 0) * 1_000 + int(found[2] or 0) if found else 0


@pytest.fixture
def dog(network: Network, tmp_path: Path) -> Dog:
    return Dog(network, tmp_path)


def test_mail_goes_around_a_proxy_that_is_not_well_and_comes_back_to_it(network: Network, dog: Dog) -> None:
    network.load(printed(both("redirect", intercept={"when_down": "bypass"})))
    ends = {network.gateway.listen(FAMILY, PORT): "the proxy", network.server.listen(FAMILY, SMTP): "the server"}

    def comes_to(name: str) -> bool:
        with call(network, FAMILY) as client:
            ready, _, _ = select.select(list(ends), [], [], DEADLINE)
            with ready[0].accept()[0] as sock:
                sock.settimeout(DEADLINE)
                return carries(client, sock) and ends[ready[0]] == name

    def goes_to(name: str) -> None:
        eventually(f"a connection to {name}", lambda: comes_to(name))

    dog.set(well=True)
    running = dog.start()
    dog.says("the proxy is well")
    goes_to("the proxy")
    for trouble in ({"well": False}, {"hangs": True}):
        dog.set(**trouble)
        goes_to("the server")
        dog.set(well=True, hangs=False)
        goes_to("the proxy")
    end(running)  # nobody says anything any more
    goes_to("the server")
    dog.start()
    goes_to("the proxy")
    assert "is not well: no worker answers" in dog.log.read_text()
    assert "is not well: no answer in 0.5 s" in dog.log.read_text()


def test_a_good_answer_begins_the_time_anew_long_before_it_is_over(network: Network, dog: Dog) -> None:
    """An element that is only added once more keeps its old time, and would be missing in between."""
    network.load(printed(both("tproxy"), watchdog=True))
    dog.set(well=True)
    dog.start(SMTPPROXY_WATCHDOG_ALIVE="30")
    dog.says("the proxy is well")
    before = dog.left()
    while (now := dog.left()) <= before:
        before = now
    assert before > 15_000


def test_rules_that_come_later_are_told_too(network: Network, dog: Dog) -> None:
    dog.set(well=True)
    dog.start()
    dog.says("the rules can't be told: ")
    network.load(printed(both("tproxy"), watchdog=True))
    network.gateway.nft("flush set inet smtpproxy alive")
    network.gateway.listen(FAMILY, PORT, transparent=True)
    eventually("a word to the rules", lambda: not refused(network, FAMILY))
    dog.says("the proxy is well")


def test_it_ends_when_it_is_told_to(network: Network, dog: Dog) -> None:
    running = dog.start()
    dog.says("not well")
    running.terminate()
    assert running.wait(5) == 0


def test_the_script_is_posix_and_can_be_run() -> None:
    subprocess.run([find("dash"), "-n", str(WATCHDOG)], check=True, timeout=10)
    assert WATCHDOG.stat().st_mode & 0o111

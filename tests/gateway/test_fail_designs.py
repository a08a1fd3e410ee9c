"""What a mail server meets while there is no proxy, as it was chosen, and that it is over by itself.

All designs are there at once, each before an address of its own of the server: mode, `when_down`, family. The proxy,
the rules it prints and the watchdog are the shipped ones, and the client is a Postfix that nobody helps.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import pytest

from tests.gateway.mail import NUMBERS, SECONDS, GatewayProxy, Route, Sender, loaded
from tests.gateway.namespaces import CLIENT, Network, eventually
from tests.gateway.standin import packets
from tests.peers import PeerUnavailable, unavailable
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.process import REPOSITORY, Scratch
from tests.peers.servers import Postfix
from tests.peers.tls import Authority

pytestmark = pytest.mark.peers

CONTENT = HEADER + CONTENTS["dots"]
WATCHDOG = REPOSITORY / "deploy" / "watchdog" / "smtpproxy-watchdog"
PACE = {"SMTPPROXY_WATCHDOG_EVERY": "0.5", "SMTPPROXY_WATCHDOG_PATIENCE": "5", "SMTPPROXY_WATCHDOG_ALIVE": "6"}
IMPATIENT = """\
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 1s
"""


class Design(NamedTuple):
    """One of them, and the server's address that it is before."""

    mode: str
    when_down: str
    family: socket.AddressFamily
    number: int

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.when_down}-{'v6' if self.family == socket.AF_INET6 else 'v4'}"

    @property
    def address(self) -> str:
        return f"2001:db8:2::{self.number}" if self.family == socket.AF_INET6 else f"198.51.100.{self.number}"

    @property
    def listener(self) -> dict[str, object]:
        host = "[::]" if self.family == socket.AF_INET6 else "0.0.0.0"
        intercept = {"servers": [self.address], "when_down": self.when_down}
        listen = f"{host}:{2500 + self.number}"
        return {"name": self.name, "listen": listen, "mode": self.mode, "intercept": intercept}


DESIGNS = [
    Design(mode, when_down, family, number)
    for number, (mode, when_down, family) in enumerate(
        (
            (mode, when_down, family)
            for mode in ("tproxy", "redirect")
            for when_down in ("bypass", "refuse", "hold")
            for family in (socket.AF_INET, socket.AF_INET6)
        ),
        start=40,
    )
]


class Rig:
    """The three machines with everything on them that there is."""

    def __init__(self, stack: ExitStack) -> None:
        self.network = stack.enter_context(Network())
        scratch = Scratch("designs")
        stack.callback(scratch.remove)
        for design in DESIGNS:
            bits = ["64", "nodad"] if design.family == socket.AF_INET6 else ["24"]
            self.network.server.ip("address", "add", f"{design.address}/{bits[0]}", "dev", "uplink", *bits[1:])
        with self.network.server.inside():
            identity = Authority(scratch.path).identity(Postfix.hostname)
            self.server = stack.enter_context(Postfix(identity, at=("0.0.0.0", "::")))
        routes = {domain(design): Route(design.address, Postfix.hostname) for design in DESIGNS}
        self.sender = stack.enter_context(Sender(self.network.client, routes, settings=IMPATIENT))
        self.proxy = stack.enter_context(GatewayProxy(self.network.gateway, [design.listener for design in DESIGNS]))
        loaded(self.network, self.proxy)
        program = scratch.write(
            "smtpproxy", f'#!/bin/sh\ncd {REPOSITORY}\nexec {sys.executable} -m smtpproxy "$@"\n', 0o755
        )
        self._watchdog_log = scratch.path / "watchdog"
        self.network.gateway.start(
            WATCHDOG, self.proxy.config, log=self._watchdog_log, env={**PACE, "SMTPPROXY": str(program)}
        )
        eventually("a watchdog that finds it well", lambda: "is well" in self._watchdog_log.read_text(), SECONDS)

    def send(self) -> dict[Design, str]:
        """One mail to each: the recipients."""
        number = next(NUMBERS)
        mails = {design: f"to-{number}@{domain(design)}" for design in DESIGNS}
        for recipient in mails.values():
            self.sender.submit(f"from-{number}@src.example", [recipient], CONTENT)
        return mails

    def stored(self, recipient: str) -> bool:
        found = [mail for mail in self.server.mails() if recipient in mail.recipients]
        assert all(mail.wire == CONTENT for mail in found)
        return bool(found)

    def inspected(self, recipient: str) -> bool:
        return any(
            recipient in record.get("rcpt", ()) for record in self.proxy.records() if record["kind"] == "tx-commit"
        )

    def deferred(self, recipient: str) -> bool:
        said = [line for line in self.sender.log().splitlines() if f"to=<{recipient}>" in line]
        assert all("status=deferred" in line and "Connection refused" in line for line in said)
        return bool(said)

    def alive(self) -> bool:
        items = self.network.gateway.nft_json("list", "set", "inet", "smtpproxy", "alive")
        return any(item.get("set", {}).get("elem") for item in items)

    def dropped(self, design: Design) -> int:
        return packets(self.network.gateway, f"to-{design.name}", "drop")


def domain(design: Design) -> str:
    return f"{design.name}.example"


def everyone(what: str, designs: list[Design], look: Callable[[Design], object]) -> None:
    """True of each of them sooner or later."""
    for design in designs:
        eventually(f"{design.name}: {what}", partial(look, design), SECONDS)


def those(when_down: str) -> list[Design]:
    return [design for design in DESIGNS if design.when_down == when_down]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        try:
            made = Rig(stack)
        except PeerUnavailable as error:
            unavailable(error)
        yield made


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_down_and_up_again(rig: Rig, how: str) -> None:
    before = rig.send()
    everyone("inspected while the proxy is there", DESIGNS, lambda design: rig.stored(before[design]))
    everyone("on record", DESIGNS, lambda design: rig.inspected(before[design]))

    held_before = {design: rig.dropped(design) for design in those("hold")}
    if how == "stopped":
        rig.proxy.stop()
    else:
        rig.proxy.kill()
    eventually("the watchdog finds it gone", lambda: not rig.alive(), SECONDS)
    down = rig.send()
    everyone("delivered directly", those("bypass"), lambda design: rig.stored(down[design]))
    everyone("refused", those("refuse"), lambda design: rig.deferred(down[design]))
    everyone("held back", those("hold"), lambda design: rig.dropped(design) > held_before[design])
    for design in (*those("refuse"), *those("hold")):
        assert not rig.stored(down[design]), design.name
    assert not any(rig.inspected(recipient) for recipient in down.values())
    for design in those("bypass"):
        (mail,) = (mail for mail in rig.server.mails() if down[design] in mail.recipients)
        assert (
            f"[{'IPv6:' if ':' in CLIENT.of(design.family) else ''}{CLIENT.of(design.family)}]".encode() in mail.content
        )

    rig.proxy.start()
    everyone("delivered after all", DESIGNS, lambda design: rig.stored(down[design]))
    everyone("on record", [*those("refuse"), *those("hold")], lambda design: rig.inspected(down[design]))
    assert not any(rig.inspected(down[design]) for design in those("bypass"))
    eventually("the watchdog finds it again", rig.alive, SECONDS)
    after = rig.send()
    everyone("delivered", DESIGNS, lambda design: rig.stored(after[design]))
    everyone("inspected again", DESIGNS, lambda design: rig.inspected(after[design]))
    arrived = [recipient for mail in rig.server.mails() for recipient in mail.recipients]
    assert len(arrived) == len(set(arrived)), "a mail came twice"

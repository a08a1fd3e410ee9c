"""The units in deploy/nftables and deploy/watchdog, and what docs/interception.md shows."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from smtpproxy.config import load_config
from smtpproxy.gateway.doctor import CHECKS, QUICK, examine
from smtpproxy.gateway.nft import MODES, Options, no_routes, routes, text
from tests.gateway.namespaces import Network
from tests.gateway.standin import FAMILIES, Proxy, both, call, carries, config, listener, printed
from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import REPOSITORY, find

DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "nftables" / "smtpproxy-rules.service"
WATCHDOG = DEPLOY / "watchdog" / "smtpproxy-watchdog.service"
LOADED = "/etc/smtpproxy/smtpproxy.nft"


def lines(key: str) -> list[tuple[bool, list[str]]]:
    """Commands, and whether they must succeed."""
    found = re.findall(rf"^{key}=(-?)(.*)$", RULES.read_text(encoding="utf-8"), re.MULTILINE)
    return [(not may_fail, line.split()) for may_fail, line in found]


@pytest.mark.parametrize("unit", [RULES, WATCHDOG], ids=lambda path: path.stem)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    try:
        analyze = find("systemd-analyze")
    except PeerUnavailable as error:
        unavailable(error)
    there = tmp_path / unit.name
    program = str(DEPLOY / "watchdog" / "smtpproxy-watchdog")
    there.write_text(unit.read_text(encoding="utf-8").replace("/usr/local/sbin/smtpproxy-watchdog", program))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(there)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_of_the_rules_has_the_routes_that_the_text_names() -> None:
    settings = both("tproxy")
    for key, told in (("ExecStart", routes), ("ExecStop", no_routes)):
        said = {" ".join(words).removeprefix("/usr/sbin/") for _, words in lines(key)}
        assert {command for version in (4, 6) for command in told(settings, version)} <= said


def test_the_unit_of_the_rules_makes_a_gateway_as_often_as_it_is_started(network: Network, tmp_path: Path) -> None:
    """And leaves nothing behind it."""
    settings = config(*(listener("tproxy", family) for family in FAMILIES), limits={"connections": 100})
    (tmp_path / "smtpproxy.nft").write_text(printed(settings))

    def do(key: str) -> None:
        for must, words in lines(key):
            here = [str(tmp_path / "smtpproxy.nft") if word == LOADED else word for word in words]
            network.gateway.run(*here, check=must)

    before = [network.gateway.run("ip", f"-{version}", "rule").stdout for version in (4, 6)]
    for _ in range(2):
        do("ExecStart")
        do("ExecStartPost")
        with network.gateway.inside():
            # No proxy is there yet.
            assert [one for one in examine(settings, "the.toml") if one.check != "running"] == []
    proxy = Proxy(network, socket.AF_INET)
    client = call(network, socket.AF_INET)
    accepted = proxy.accept()
    do("ExecReload")
    assert carries(client, accepted)
    do("ExecStop")
    assert [network.gateway.run("ip", f"-{version}", "rule").stdout for version in (4, 6)] == before
    assert network.gateway.run("nft", "list", "ruleset").stdout == ""


def test_the_unit_of_the_rules_fails_without_rules(network: Network) -> None:
    """An empty text loads without a word."""
    network.gateway.run("nft", "-f", "-", stdin="")
    ((must, words),) = lines("ExecStartPost")
    assert must
    assert network.gateway.run(*words, check=False).returncode != 0
    for mode in ("tproxy", "redirect"):
        network.load(printed(both(mode)))
        network.gateway.run(*words)


def test_the_unit_of_the_rules_deletes_no_rule_of_others(network: Network) -> None:
    """Though it has the preference of ours."""
    network.gateway.run("ip", "-4", "rule", "add", "pref", "25", "fwmark", "0x99", "lookup", "99")
    for must, words in lines("ExecStart"):
        if words[0].endswith("/ip"):
            network.gateway.run(*words, check=must)
    assert "fwmark 0x99 lookup 99" in network.gateway.run("ip", "-4", "rule").stdout


# ------------------------------------------------------------------------------------------------- docs/interception.md

PAGE = (REPOSITORY / "docs" / "interception.md").read_text(encoding="utf-8")


def test_the_configurations_of_the_page_are_printed(network: Network, tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```.*?smtpproxy nft (\w+) ", PAGE, re.DOTALL)
    assert [mode for _, mode in examples] == ["tproxy", "redirect", "forward"]
    for example, mode in examples:
        (tmp_path / "the.toml").write_text(example)
        settings = load_config(tmp_path / "the.toml")
        (found,) = (one for one in MODES if one == mode)
        network.gateway.nft(text(settings, Options((found,)), "the.toml"))


def test_the_page_has_every_check_and_those_of_the_start() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (yes|no) \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(CHECKS)
    assert [name for name, quick in rows if quick == "yes"] == list(QUICK)


def test_the_files_that_the_page_installs_are_there() -> None:
    files = re.findall(r"install .*?(deploy/\S+)", PAGE)
    assert len(files) >= 6
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []

"""What the printed text says, and what can't be printed; nothing is loaded but to be checked."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from smtpproxy.config import Config
from smtpproxy.gateway.nft import MODES, WHEN_DOWN, NftError, Options, fingerprints, marked, modes_of, text
from tests.gateway.examples import EXAMPLES, FOLDER
from tests.gateway.namespaces import Network, commands
from tests.gateway.standin import FAMILIES, both, config, listener, printed

V4, V6 = FAMILIES


def entry(listen: str, mode: str = "tproxy", **said: Any) -> dict[str, Any]:
    return {"name": f"n{len(listen)}", "listen": listen, "mode": mode, **said}


@pytest.mark.parametrize("mode", ["tproxy", "redirect", "forward"])
@pytest.mark.parametrize("when_down", WHEN_DOWN)
def test_every_text_is_one_for_nft(network: Network, mode: str, when_down: str) -> None:
    """With every setting there is, and any of them alone."""
    said: dict[str, Any] = {"server": "mx.example:26"} if mode == "forward" else {}
    full = {"ports": [25, 587, 465], "interfaces": ["eth0", "br-lan.7@x"], "when_down": when_down}
    nets = {
        "clients": ["192.0.2.0/24", "192.0.2.0/25", "2001:db8::/32"],
        "servers": ["0.0.0.0/0", "::/0", "10.0.0.1", "::7"],
    }
    plain, rich = {"when_down": when_down}, {**full, **nets}
    match = [{"name": "b", "ports": [587], "server": "[2001:db8::9]:2587"}]
    for intercept in (plain, rich, *({key: value} for key, value in rich.items())):
        entries = [listener(mode, family, source="client", **said) for family in FAMILIES]
        if mode != "forward":
            entries = [{**one, "intercept": intercept} for one in entries]
        settings = config(*entries, match=match, gateway={"mark": 2**32 - 1, "table": 2**32 - 1})
        for watchdog in (False, True):
            network.gateway.run("nft", "-c", "-f", "-", stdin=printed(settings, watchdog=watchdog))


def test_listeners_that_look_like_words_of_nft(network: Network) -> None:
    names = ["accept", "tcp", "0", "th", "a-", "25", "alive", "arrivals"]
    entries = [
        {**listener("tproxy", V4), "name": name, "listen": f"0.0.0.0:{3000 + n}"} for n, name in enumerate(names)
    ]
    entries = [{**one, "intercept": {"clients": ["192.0.2.0/25"], "servers": ["192.0.2.1"]}} for one in entries]
    network.gateway.run("nft", "-c", "-f", "-", stdin=printed(config(*entries)))


# ------------------------------------------------------------------------------------------------------- what it leads


def test_networks_are_sets_without_overlap_of_the_listeners_own_version() -> None:
    said = {"clients": ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"], "servers": ["192.0.2.1", "2001:db8:1::1"]}
    body = printed(both("tproxy", intercept=said))
    assert re.findall(r"elements = \{ (.*) \}", body) == ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "2001:db8:1::1"]
    assert body.count("flags interval") == 4
    assert "ip saddr @clients-tproxy-v4 ip daddr @servers-tproxy-v4 tcp dport { 25 }" in body
    assert "ip6 saddr @clients-tproxy-v6 ip6 daddr @servers-tproxy-v6 tcp dport { 25 }" in body


def test_all_networks_are_no_condition() -> None:
    body = printed(both("tproxy", intercept={"clients": ["0.0.0.0/0", "::/0"]}))
    assert "@clients" not in body
    assert "meta nfproto ipv4 tcp dport { 25 } goto to-tproxy-v4" in body


def test_the_ports_of_servers_are_those_that_sessions_go_to() -> None:
    """Of listeners whose servers see the client's address: its own, those of its blocks, or wherever clients go."""
    blocks = [
        {"name": "all", "ports": [1], "server": "a.example:1001"},
        {"name": "one", "listeners": ["mine"], "unseen": True, "server": "b.example:1002"},
        {"name": "other", "listeners": ["theirs"], "server": "c.example:1003"},
    ]
    mine = {**listener("tproxy", V4, intercept={"ports": [25, 587]}), "name": "mine"}
    theirs = {**listener("redirect", V6, intercept={"ports": [465]}), "name": "theirs", "listen": "[::]:2526"}
    body = printed(config(mine, theirs, match=blocks))
    assert "tcp sport { 25, 587, 1001, 1002 } goto held" in body
    assert "tcp dport { 25, 587, 1001, 1002 } fib saddr type != local ct zone set" in body
    body = printed(config({**mine, "server": "d.example:1004"}, match=blocks[:2]))
    assert "tcp sport { 1001, 1002, 1004 } goto held" in body
    assert "tcp dport { 25, 587 } goto held" in body


@pytest.mark.parametrize(
    ("mode", "said", "versions", "has", "lacks"),
    [
        ("tproxy", {}, (4, 6), ["tproxy ip to", "chain held", "ct zone"], ["type nat", "alive"]),
        (
            "tproxy",
            {"source": "own"},
            (4, 6),
            ["tproxy ip6 to", "chain held"],
            ["type nat", "ct zone", "tcp sport"],
        ),
        ("redirect", {}, (), ["type nat"], ["held", "zone", "fwmark", "alive"]),
        (
            "redirect",
            {"source": "client"},
            (4, 6),
            ["type nat", "chain held", "ct zone"],
            ["tcp dport { 25 } goto held"],
        ),
        (
            "forward",
            {"source": "client", "server": "mx.example"},
            (4, 6),
            ["held", "ct zone"],
            ["type nat", "tproxy", "new-"],
        ),
    ],
)
def test_nothing_is_in_it_that_its_mode_does_not_need(
    mode: str, said: dict[str, Any], versions: tuple[int, ...], has: list[str], lacks: list[str]
) -> None:
    settings = both(mode, **said)
    whole = printed(settings)
    assert marked(settings, modes_of(settings)) == versions
    assert [int(command[1][1:]) for command in commands(whole, "Packets with the mark")[::2]] == list(versions)
    assert not [word for word in has if word not in whole]
    body = whole.partition("\nadd table")[2]
    assert not [word for word in lacks if word in body]


def test_one_version_alone_has_routes_for_that_alone() -> None:
    assert marked(config(listener("tproxy", V6)), ("tproxy",)) == (6,)
    behind = listener("forward", V4, source="client", server="mx.example", proxy_from=["192.0.2.0/24"])
    assert marked(config(behind), ("forward",)) == (4, 6)  # clients are who the load balancer says


@pytest.mark.parametrize(
    ("mode", "when_down", "said", "watched"),
    [
        ("tproxy", "bypass", False, False),
        ("tproxy", "hold", False, False),
        ("tproxy", "refuse", True, True),
        ("redirect", "refuse", False, False),
        ("redirect", "refuse", True, True),
        ("redirect", "bypass", False, True),
        ("redirect", "hold", False, True),
    ],
)
def test_the_watchdog_is_asked_for_where_the_kernel_can_not_know(
    mode: str, when_down: str, said: bool, watched: bool
) -> None:
    for whole in (
        printed(both(mode, intercept={"when_down": when_down}), watchdog=said),
        printed(both(mode), watchdog=said, when_down=when_down),
    ):
        assert ("set alive" in whole) is watched
        assert (whole.count("meta l4proto != @alive") == 2) is watched
        assert ("smtpproxy-watchdog (deploy/watchdog) has to run" in whole) is watched


# ----------------------------------------------------------------------------------------------- what it says of itself


def test_it_says_how_it_was_made_and_what_is_in_it() -> None:
    settings = both("tproxy", intercept={"when_down": "hold"})
    whole = text(settings, Options(("tproxy",), "bypass", watchdog=True), "/etc/the.toml")
    by = "#     smtpproxy nft tproxy --config /etc/the.toml --when-down bypass --watchdog"
    assert whole.splitlines()[:3] == ["# For smtpproxy; printed, and not applied, by", by, "#"]
    assert "tproxy-v6: [::]:2525, tproxy; the server sees the client's address, without it: bypass\n" in whole
    assert commands(whole, "Load it") == [["nft", "-f", "smtpproxy.nft"]]
    assert commands(whole, "This machine") == [
        ["sysctl", "-w", "net.ipv4.ip_forward=1"],
        ["sysctl", "-w", "net.ipv6.conf.all.forwarding=1"],
    ]
    assert all(len(line) <= 120 for line in whole.splitlines() if line.startswith("#"))


def test_a_mode_that_is_left_out_is_told() -> None:
    turned = {**listener("redirect", V4), "listen": "0.0.0.0:2526"}
    settings = config(listener("tproxy", V4), turned)
    whole = text(settings, Options(("tproxy",)), "the.toml")
    assert "# Not in here: redirect-v4." in whole
    assert "# `smtpproxy nft redirect tproxy` prints all of them." in whole
    assert "Not in here" not in text(settings, Options(("tproxy", "redirect")), "the.toml")


def test_the_fingerprint_is_of_the_rules_and_not_of_the_words() -> None:
    settings, other = both("tproxy"), both("tproxy", intercept={"ports": [26]})
    prints = [re.findall('return comment "(.*)"', text(settings, Options(("tproxy",)), path))[0] for path in ("a", "b")]
    assert prints[0] == prints[1]
    assert prints[0] in fingerprints(settings)
    assert prints[0] not in fingerprints(other)


@pytest.mark.parametrize(
    ("entries", "modes", "said"),
    [
        ([], ["tproxy"], 'no listener has mode = "tproxy": nothing has to be loaded'),
        ([entry("0.0.0.0:25", "redirect")], ["tproxy"], "`smtpproxy nft redirect` is for those there are"),
        ([entry("0.0.0.0:25"), entry("[::]:25", "redirect")], ["forward"], "`smtpproxy nft redirect tproxy`"),
        ([entry("0.0.0.0:25", "forward", server="mx.example")], ["forward"], 'and source = "client": nothing has to'),
        ([entry("192.0.2.1:2525")], ["tproxy"], "192.0.2.1 is one address, and what is led here was going to others"),
        ([entry("[2001:db8::1]:2525")], ["tproxy"], r"listen on \[::\]:2525"),
        ([entry("localhost:0", "redirect")], ["redirect"], "listen on 0.0.0.0:2525"),
        ([entry("0.0.0.0:0")], ["tproxy"], "port 0 is another one each time"),
        ([entry("[::]:25", intercept={"clients": ["192.0.2.0/24"]})], ["tproxy"], "clients have no IPv6 network"),
        ([entry("0.0.0.0:25", intercept={"servers": ["::1"]})], ["tproxy"], "servers have no IPv4 network"),
    ],
)
def test_what_can_not_be_printed_is_told(entries: list[dict[str, Any]], modes: Any, said: str) -> None:
    settings = Config.model_validate({"listener": entries})
    with pytest.raises(NftError, match=said):
        text(settings, Options(tuple(modes)), "the.toml")


def test_the_modes_are_those_of_the_configuration() -> None:
    assert MODES == ("forward", "redirect", "tproxy")
    assert modes_of(both("forward", server="mx.example")) == ()


# --------------------------------------------------------------------------------------------------------- the examples


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_is_printed_and_nft_takes_them(network: Network, name: str) -> None:
    """`python -m tests.gateway.examples` writes them anew."""
    shipped = (FOLDER / f"{name}.nft").read_text(encoding="utf-8")
    assert shipped == EXAMPLES[name].printed()
    network.gateway.run("nft", "-c", "-f", FOLDER / f"{name}.nft")
    network.load(shipped)


def test_every_example_is_in_the_table_of_the_folder() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in FOLDER.glob("*.nft")} == set(EXAMPLES)
    assert {path.stem for path in FOLDER.glob("*.nft")} == set(re.findall(r"\((\S+)\.nft\)", page))


def test_the_sysctls_that_are_shipped_are_those_it_names() -> None:
    shipped = (FOLDER.parent / "sysctl" / "60-smtpproxy.conf").read_text(encoding="utf-8")
    said = dict(line.split(" = ") for line in shipped.splitlines() if line and not line.startswith("#"))
    for command in commands(printed(both("tproxy")), "This machine"):
        name, _, value = command[2].partition("=")
        assert said[name] == value
    assert said["net.ipv4.conf.all.src_valid_mark"] == "0"
    assert int(said["net.core.somaxconn"]) >= socket.SOMAXCONN

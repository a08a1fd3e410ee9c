"""`smtpproxy doctor` on a gateway that has everything, and on one from which one thing was taken."""

from __future__ import annotations

import json
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.config import Config, ProcessConfig
from smtpproxy.gateway import machine
from smtpproxy.gateway.doctor import CHECKS, QUICK, examine, look
from smtpproxy.gateway.scene import Finding
from tests.gateway.namespaces import (
    CLIENTS,
    FAR,
    GATEWAY,
    GATEWAY_OUTSIDE,
    SERVER,
    SERVERS,
    Network,
)
from tests.gateway.standin import ANY, FAMILIES, PORT, Proxy, both, config, listener, printed, watchdog_silent

Family = socket.AddressFamily
Taken = Callable[[Network, int], Any]
FEW = {"limits": {"connections": 100}}  # any machine has enough for so many


LISTENING = machine.listening


@pytest.fixture(autouse=True)
def _somebody_listens() -> Iterator[None]:
    """What is looked for here is the way to the proxy, not the proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "listening", lambda: {25, PORT, PORT + 1})
        yield


def all_of(mode: str, **said: Any) -> Config:
    return config(*(listener(mode, family, **said) for family in FAMILIES), **FEW)


def seen(network: Network, settings: Config) -> list[Finding]:
    with network.gateway.inside():
        return examine(settings, "the.toml")


def names(findings: Sequence[Finding]) -> list[str]:
    return [finding.check for finding in findings]


def version_of(family: Family) -> int:
    return 6 if family == socket.AF_INET6 else 4


WAYS = {
    "tproxy": all_of("tproxy"),
    "tproxy-own": all_of("tproxy", source="own", intercept={"interfaces": [CLIENTS]}),
    "tproxy-bypass": all_of("tproxy", intercept={"when_down": "bypass"}),
    "redirect": all_of("redirect", intercept={"interfaces": [CLIENTS]}),
    "redirect-client": all_of("redirect", source="client"),
    "redirect-hold": all_of("redirect", intercept={"when_down": "hold"}),
    "forward-client": config(
        listener("forward", socket.AF_INET, source="client", server=SERVER.v4),
        listener("forward", socket.AF_INET6, source="client", server=f"[{SERVER.v6}]"),
        **FEW,
    ),
    "forward": config(*(listener("forward", family, server="mx.example") for family in FAMILIES), **FEW),
}
MARKED = ("tproxy", "tproxy-own", "redirect-client", "forward-client")
LED = ("tproxy", "tproxy-own", "redirect", "redirect-client")


@pytest.mark.parametrize("way", WAYS)
def test_where_everything_is_there_nothing_is_missing(network: Network, way: str) -> None:
    settings = WAYS[way]
    if way != "forward":
        network.load(printed(settings))
    assert seen(network, settings) == []
    with network.gateway.inside():
        began = time.perf_counter()
        assert look(settings) == []
        assert time.perf_counter() - began < 2  # tens of milliseconds where nothing else runs


def test_a_forwarding_proxy_alone_needs_no_gateway(network: Network) -> None:
    """On a machine that routes nothing and has no rules."""
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        network.gateway.sysctl(name, 0)
    assert seen(network, WAYS["forward"]) == []


# ------------------------------------------------------------------------------------- one thing is taken, one is named


def forward_off(network: Network, version: int) -> None:
    network.gateway.sysctl("net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding", 0)


def no_rule(network: Network, version: int) -> None:
    network.gateway.ip(f"-{version}", "rule", "delete", "fwmark", "0x25")


def no_route(network: Network, version: int) -> None:
    network.gateway.ip(f"-{version}", "route", "flush", "table", "2525")


def rule_of_others(network: Network, version: int) -> None:
    """A VPN's, as they are: everything goes there."""
    via = SERVER.v4 if version == 4 else SERVER.v6
    network.gateway.ip(f"-{version}", "route", "add", "default", "via", via, "table", "99")
    network.gateway.ip(f"-{version}", "rule", "add", "pref", "10", "lookup", "99")


@pytest.mark.parametrize(
    ("way", "taken", "check", "severity", "mend"),
    [
        *((way, forward_off, "forwarding", "warning", "sysctl -w net.ipv") for way in LED),
        ("tproxy-bypass", forward_off, "forwarding", "error", "sysctl -w net.ipv"),
        *((way, no_rule, "policy-rule", "error", "ip -{} rule add pref 25 fwmark 0x25 lookup 2525") for way in MARKED),
        *((way, no_route, "policy-route", "error", "ip -{} route replace local default dev lo") for way in MARKED),
        *((way, rule_of_others, "policy-route", "error", "ip -{} rule add pref 1 fwmark 0x25") for way in MARKED),
    ],
)
def test_what_was_taken_from_one_version_is_named(
    network: Network, family: Family, way: str, taken: Taken, check: str, severity: str, mend: str
) -> None:
    """Once, with the command that mends it; nothing else is, and the other version has nothing."""
    version = version_of(family)
    network.load(printed(WAYS[way]))
    taken(network, version)
    (finding,) = seen(network, WAYS[way])
    assert (finding.check, finding.severity) == (check, severity)
    assert finding.mend.startswith(mend.format(version))
    assert f"IPv{version}" in finding.what
    mended(network, WAYS[way], finding)


def mended(network: Network, settings: Config, finding: Finding) -> None:
    """By the very command."""
    command = finding.mend.split()
    if command[0] == "sysctl":
        for setting in command[2:]:
            name, _, value = setting.partition("=")
            network.gateway.sysctl(name, int(value))
    else:
        network.gateway.run(*command)
    assert seen(network, settings) == []


@pytest.mark.parametrize("way", MARKED)
def test_the_loopback_interface_is_a_part_of_it(network: Network, way: str) -> None:
    network.load(printed(WAYS[way]))
    network.gateway.ip("link", "set", "lo", "down")
    findings = seen(network, WAYS[way])
    assert names(findings) == ["interface"]
    assert findings[0].mend == "ip link set lo up"


@pytest.mark.parametrize("way", [*LED, "forward-client"])
def test_rules_that_are_not_loaded_are_missed(network: Network, way: str) -> None:
    settings = WAYS[way]
    network.load(printed(settings))
    network.gateway.nft("delete table inet smtpproxy")
    findings = seen(network, settings)
    assert names(findings) == ["rules", "rules"]  # for each version
    mode = way.partition("-")[0]
    for finding, version in zip(findings, (4, 6), strict=True):
        assert f"IPv{version}" in finding.what
        assert finding.mend == f"smtpproxy nft {mode} --config the.toml | nft -f -"
    if mode != "forward":
        assert "listener " + settings.listeners[1].name in findings[1].what


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_a_rule_of_one_version_is_no_rule_of_the_other(network: Network, family: Family, mode: str) -> None:
    """And another listener's port is not this one's."""
    settings = all_of(mode)
    other = next(entry for entry in FAMILIES if entry != family)
    network.load(printed(settings))
    elsewhere = listener(mode, family)
    elsewhere["listen"] = elsewhere["listen"].replace(str(PORT), "2626")
    network.gateway.nft(printed(config(listener(mode, other), elsewhere)))
    findings = seen(network, settings)
    assert names(findings) == ["rules", "printed"]
    assert f"IPv{version_of(family)}" in findings[0].what


@pytest.mark.parametrize("way", MARKED)
def test_what_keeps_connections_here_is_missed(network: Network, way: str) -> None:
    text = printed(WAYS[way])
    network.load(text)
    network.gateway.nft(text.replace("socket transparent 1 meta mark set 0x25 accept", "socket transparent 1 accept"))
    found = seen(network, WAYS[way])
    assert names(found) == ["rules", "rules"]
    assert all(
        f"of the proxy's IPv{version} connections" in one.what for one, version in zip(found, (4, 6), strict=True)
    )


def test_rules_of_the_administrators_own_making_are_rules(network: Network) -> None:
    """In tables of other families, over maps and chains; and a rule that nothing leads to is none."""
    settings = all_of("tproxy")
    network.load(printed(settings))
    own = """
        table {family} own {{
            chain dead {{ {dead} }}
            chain mail {{ meta l4proto tcp tproxy to :{port} meta mark set 0x25 accept\n }}
            chain first {{
                type filter hook prerouting priority -149; policy accept;
                tcp dport vmap {{ 25 : {verdict} mail }}
                socket transparent 1 meta mark set 0x25 accept
            }}
        }}
    """
    network.gateway.nft("delete table inet smtpproxy")
    for family in ("ip", "ip6"):
        network.gateway.nft(own.format(family=family, port=PORT, dead="", verdict="jump"))
    assert seen(network, settings) == []
    network.gateway.nft(
        "flush chain ip6 own first\nadd rule ip6 own first socket transparent 1 meta mark set 0x25 accept"
    )
    (finding,) = seen(network, settings)
    assert (finding.check, "IPv6" in finding.what) == ("rules", True)


def test_a_text_of_another_configuration_is_noticed(network: Network) -> None:
    narrow = all_of("tproxy", intercept={"clients": ["192.0.2.0/24", "2001:db8:1::/64"]})
    network.load(printed(narrow))
    assert seen(network, narrow) == []
    (finding,) = seen(network, WAYS["tproxy"])
    assert (finding.check, finding.severity) == ("printed", "warning")
    for options in ({"when_down": "bypass"}, {"watchdog": True}, {"when_down": "hold", "watchdog": True}):
        network.gateway.nft(printed(narrow, **options))
        assert seen(network, narrow) == []  # what was said on the command line is no other configuration


def test_rules_that_have_had_no_word_are_noticed(network: Network) -> None:
    settings = WAYS["redirect-hold"]
    network.load(printed(settings))
    watchdog_silent(network)
    (finding,) = seen(network, settings)
    assert (finding.check, finding.severity) == ("watchdog", "error")
    assert "under [process]" in finding.mend  # there is nothing it could ask
    asked = all_of("redirect", intercept={"when_down": "hold"}).model_copy(
        update={"process": ProcessConfig(control="/run/smtpproxy/control")}
    )
    (finding,) = seen(network, asked)
    assert finding.mend == "systemctl restart smtpproxy-watchdog"


# ------------------------------------------------------------------------- src_valid_mark: where it breaks, it is named


@pytest.mark.parametrize("way", ["tproxy", "tproxy-own", "redirect", "redirect-client"])
@pytest.mark.parametrize("where", ["all", CLIENTS, SERVERS])
@pytest.mark.parametrize(("accept_local", "rp_filter"), [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)])
def test_src_valid_mark_is_named_where_and_only_where_it_breaks_something(
    network: Network, way: str, where: str, accept_local: int, rp_filter: int
) -> None:
    settings = WAYS[way]
    network.load(printed(settings))
    for name, value in {"accept_local": accept_local, "rp_filter": rp_filter}.items():
        for interface in ("all", CLIENTS, SERVERS):
            network.gateway.sysctl(f"net.ipv4.conf.{interface}.{name}", value)
    assert seen(network, settings) == []
    network.gateway.sysctl(f"net.ipv4.conf.{where}.src_valid_mark", 1)
    # Behind which interface servers are nobody says: where clients are, there may be servers too.
    works = passes(network, way) and (way != "redirect-client" or where != CLIENTS or (accept_local and rp_filter != 1))
    findings = seen(network, settings)
    assert names(findings) == ([] if works else ["src-valid-mark"])
    for finding in findings:
        mended(network, settings, finding)
        assert passes(network, way)


def passes(network: Network, way: str) -> bool:
    """Both links of a session come to be."""
    mode, _, source = way.partition("-")
    smtp = network.server.listen(socket.AF_INET, 25)
    proxy = Proxy(network, socket.AF_INET, mode)
    try:
        client = network.client.tcp(socket.AF_INET)
        client.settimeout(0.5)
        client.connect((SERVER.v4, 25))
        accepted = proxy.accept()
        keep = source == "client" or way == "tproxy"
        link = network.gateway.tcp(socket.AF_INET, transparent=keep)
        link.settimeout(0.5)
        if keep:
            link.bind(accepted.getpeername())
        link.connect((SERVER.v4, 25))
    except TimeoutError:
        return False
    finally:
        proxy.stop()
        smtp.close()
    return True


# ----------------------------------------------------------------------------------- the configuration and this machine


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_an_address_is_no_place_to_be_led_to(network: Network, mode: str) -> None:
    for listen, why in (
        ("192.0.2.1:2525", "0.0.0.0:2525"),
        ("[2001:db8:1::1]:2525", "[::]:2525"),
        ("[::]:0", "port 0"),
    ):
        settings = config({"name": "mx", "listen": listen, "mode": mode}, **FEW)
        findings = [finding for finding in seen(network, settings) if finding.severity == "error"]
        assert "listen" in names(findings)
        assert why in findings[0].what


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_ipv6_that_is_switched_off_is_named_and_nothing_of_it_is_missed(network: Network, mode: str) -> None:
    network.load(printed(all_of(mode)))
    for interface in ("all", "default"):
        network.gateway.sysctl(f"net.ipv6.conf.{interface}.disable_ipv6", 1)
    (finding,) = seen(network, all_of(mode))
    assert (finding.check, finding.mend) == ("ipv6", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
    assert f"{mode}-v6 listens" in finding.what


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_the_other_version_goes_around_and_that_is_said(network: Network, family: Family, mode: str) -> None:
    settings = config(listener(mode, family), **FEW)
    network.load(printed(settings))
    (finding,) = seen(network, settings)
    assert (finding.check, finding.severity) == ("around", "warning")
    other = {4: "[::]", 6: "0.0.0.0"}[version_of(family)]
    assert f'"{other}:{PORT}"' in finding.mend
    forward_off(network, 10 - version_of(family))
    assert seen(network, settings) == []


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_interfaces_that_are_not_there_down_or_without_address(network: Network, family: Family, mode: str) -> None:
    settings = all_of(mode, intercept={"interfaces": [CLIENTS, "lan7"]})
    network.load(printed(settings))
    found = seen(network, settings)
    assert names(found) == ["interface", "interface"]
    assert "behind lan7, which is not here" in found[0].what
    assert CLIENTS in found[0].mend

    settings = all_of(mode, intercept={"interfaces": [CLIENTS]})
    network.gateway.nft(printed(settings))
    version = version_of(family)
    network.gateway.ip(f"-{version}", "address", "flush", "dev", CLIENTS, "scope", "global")
    found = seen(network, settings)
    assert names(found) == (["interface"] if mode == "redirect" else [])
    assert all(f"no IPv{version} address" in finding.what for finding in found)
    network.gateway.ip("link", "set", CLIENTS, "down")
    assert {finding.what for finding in seen(network, settings)} == {
        f"{CLIENTS}, behind which clients of {entry.name} are, is down" for entry in settings.listeners
    }


@pytest.mark.parametrize(
    ("where", "source", "check"),
    [
        (GATEWAY_OUTSIDE, "own", None),
        (GATEWAY_OUTSIDE, "client", "answers clients past the proxy"),
        (FAR, "client", None),
    ],
)
def test_a_server_on_this_machine(network: Network, family: Family, where: Any, source: str, check: str | None) -> None:
    """It may be one, if it is not to see the client's address; a listener of ours it may never be."""
    host = f"[{where.of(family)}]" if family == socket.AF_INET6 else where.of(family)
    for port, expected in ((2626, check), (PORT, "a loop" if where is not FAR else None)):
        entries = [listener("tproxy", entry, source=source) for entry in FAMILIES]
        entries[FAMILIES.index(family)]["server"] = f"{host}:{port}"
        settings = config(*entries, **FEW)
        network.load(printed(settings)) if port == 2626 else network.gateway.nft(printed(settings))
        found = seen(network, settings)
        assert names(found) == (["server"] if expected else [])
        assert all(expected in finding.what for finding in found if expected)


def test_a_server_of_a_match_block_is_looked_at_too(network: Network) -> None:
    block = {"name": "old", "clients": ["192.0.2.0/25"], "server": f"{GATEWAY.v4}:{PORT}"}
    settings = config(*(listener("redirect", family) for family in FAMILIES), match=[block], **FEW)
    network.load(printed(settings))
    assert [finding.check for finding in seen(network, settings)] == ["server", "server"]  # for both listeners


def test_a_route_that_a_router_advertised_is_about_to_end(network: Network) -> None:
    network.load(printed(WAYS["tproxy"]))
    network.gateway.ip("-6", "route", "add", "default", "via", SERVER.v6, "dev", SERVERS, "proto", "ra")
    assert seen(network, WAYS["tproxy"]) == []  # somebody else sees to it
    network.gateway.sysctl(f"net.ipv6.conf.{SERVERS}.accept_ra", 1)
    (finding,) = seen(network, WAYS["tproxy"])
    assert (finding.check, finding.severity) == ("router", "warning")
    mended(network, WAYS["tproxy"], finding)


def test_somebody_should_listen_where_connections_are_led(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules without a proxy: clients meet what when_down says, and nobody has told why."""
    monkeypatch.setattr(machine, "listening", LISTENING)
    network.load(printed(WAYS["tproxy"]))
    found = seen(network, WAYS["tproxy"])
    assert set(names(found)) == {"running"}
    assert {(one.severity, one.mend) for one in found} == {("warning", "systemctl start smtpproxy")}
    for family in FAMILIES:
        network.gateway.listen(family, PORT, "::" if family == socket.AF_INET6 else "0.0.0.0")
    assert seen(network, WAYS["tproxy"]) == []


def test_limits_are_held_against_the_sessions_there_may_be(network: Network) -> None:
    network.load(printed(WAYS["tproxy"]))
    network.gateway.sysctl("net.core.somaxconn", 128)
    (finding,) = seen(network, WAYS["tproxy"])
    assert (finding.check, finding.severity, finding.mend) == ("limits", "warning", "sysctl -w net.core.somaxconn=4096")
    network.gateway.sysctl("net.core.somaxconn", 4096)
    many = config(*(listener("tproxy", family) for family in FAMILIES), limits={"connections": 10**8})
    found = seen(network, many)
    assert set(names(found)) == {"limits"}
    assert "LimitNOFILE=200000064" in found[0].mend


# ---------------------------------------------------------------------------------- who looks, and what can't be seen


DOCTOR = "import sys; from smtpproxy.gateway_cli import doctor; doctor(sys.argv[1:], prog_name='smtpproxy doctor')"
TOML = "".join(
    f'[[listener]]\nname = "mx{number}"\nlisten = "{host}:2525"\nmode = "tproxy"\n'
    for number, host in enumerate(("0.0.0.0", "[::]"))
)


def test_without_privileges_that_is_what_is_missing(network: Network, tmp_path: Path) -> None:
    """And what could not be seen is said."""
    file = tmp_path / "the.toml"
    file.write_text(TOML.replace("[::]:2525", "[::]:25") + "[limits]\nconnections = 100\n")
    tmp_path.chmod(0o755)
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    done = network.gateway.run(*bare, sys.executable, "-c", DOCTOR, "--config", file, "--json", check=False)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert not found["ok"]
    privileges = [finding for finding in found["findings"] if finding["check"] == "privileges"]
    assert ["CAP_NET_RAW" in finding["what"] for finding in privileges] == [True, False]
    assert "CAP_NET_BIND_SERVICE" in privileges[1]["mend"]
    unseen = [finding for finding in found["findings"] if finding["what"].startswith("not looked at")]
    assert [finding["what"] for finding in unseen] == ["not looked at: nftables can't be seen without CAP_NET_ADMIN"]
    assert {finding["severity"] for finding in unseen} == {"warning"}


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs stand before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


def test_programs_that_are_not_there_are_said_once(
    network: Network, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.load(printed(WAYS["tproxy"]))
    monkeypatch.setattr("smtpproxy.gateway.machine._PLACES", "")
    monkeypatch.setenv("PATH", str(programs))
    found = seen(network, WAYS["tproxy"])
    assert [finding.what for finding in found] == [f"not looked at: {name} is not installed" for name in ("ip", "nft")]
    assert "apt-get install iproute2" in found[0].mend
    with network.gateway.inside():
        assert look(WAYS["tproxy"]) == []


def test_programs_are_found_where_no_path_leads(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.load(printed(WAYS["tproxy"]))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert seen(network, WAYS["tproxy"]) == []


def test_a_program_that_does_not_answer_is_said(
    network: Network, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.load(printed(WAYS["tproxy"]))
    monkeypatch.setattr("smtpproxy.gateway.machine.PATIENCE", 0.2)
    program(programs, "nft", "exec sleep 60")
    found = seen(network, WAYS["tproxy"])
    assert found
    assert all("did not answer within 0.2 s" in finding.what for finding in found)


def test_another_ip_than_that_of_iproute2_is_said(network: Network, programs: Path) -> None:
    """What it does not understand is not missing."""
    network.load(printed(WAYS["tproxy"]))
    program(programs, "ip", "echo \"ip: invalid option -- 'N'\" >&2; exit 1")
    found = seen(network, WAYS["tproxy"])
    assert found
    assert all("says: ip: invalid option -- 'N'" in finding.what for finding in found)
    program(programs, "ip", "exit 126")
    (programs / "ip").write_text("#!/nonexistent\n")
    (finding, *_) = found = seen(network, WAYS["tproxy"])
    assert all("can't be run: No such file" in one.what for one in found)
    assert finding.mend.startswith("try it by hand: ip ")


def test_where_proc_sys_is_hidden_that_is_said_and_nothing_else(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the sandbox of the service; what is not seen is not taken for missing."""
    network.load(printed(WAYS["tproxy"]))
    monkeypatch.setattr("smtpproxy.gateway.machine._SYSCTLS", tmp_path)
    (finding,) = seen(network, WAYS["tproxy"])
    assert (finding.what, finding.severity) == ("not looked at: /proc/sys is hidden here", "warning")
    with network.gateway.inside():
        assert look(WAYS["tproxy"]) == []


def test_a_kernel_that_lacks_something_is_named_by_what_it_lacks(network: Network, programs: Path) -> None:
    network.load(printed(WAYS["tproxy"]))
    program(
        programs,
        "nft",
        'case "$*" in *-c*) if grep -q "tproxy ip6 to"; then echo "Error: no such thing" >&2; exit 1; fi ;;'
        ' *) exec /usr/sbin/nft "$@" ;; esac',
    )
    (finding,) = seen(network, WAYS["tproxy"])
    assert (finding.check, finding.severity) == ("kernel", "error")
    assert "tproxy for IPv6" in finding.what
    assert finding.mend == "modprobe -a nft_tproxy nf_tproxy_ipv6"

    program(
        programs, "nft", 'case "$*" in *-c*) grep -q printed && exit 1; exit 0 ;; *) exec /usr/sbin/nft "$@" ;; esac'
    )
    (finding,) = seen(network, WAYS["tproxy"])
    assert "nft does not take the text: exit code 1" in finding.what
    assert finding.mend == "smtpproxy nft tproxy --config the.toml | nft -c -f -"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (["DynamicUser=yes", "AmbientCapabilities=cap_net_bind_service cap_net_raw", "LimitNOFILE=65536"], []),
        (["DynamicUser=yes", "AmbientCapabilities=cap_net_bind_service"], ["CAP_NET_RAW: smtpproxy.service does not"]),
        (["User=smtpproxy", "AmbientCapabilities="], ["CAP_NET_RAW: smtp", "CAP_NET_BIND_SERVICE: smtp"]),
        (["User=smtpproxy", "AmbientCapabilities=cap_net_raw", "TriggeredBy=smtpproxy.socket"], []),
        (["User=", "AmbientCapabilities="], []),
        (["User=", "LimitNOFILE=100"], ["100 descriptors for 100 sessions"]),
        (["User=", "LimitNOFILE=infinity"], []),
    ],
)
def test_the_unit_is_looked_at_where_there_is_one(
    network: Network, programs: Path, said: Sequence[str], what: Sequence[str]
) -> None:
    """Root may do everything, and learns nothing from trying it about whom systemd makes of the proxy."""
    entries = [{**listener("tproxy", family), "listen": f"{ANY[family]}:25"} for family in FAMILIES]
    settings = config(*entries, **FEW)
    network.load(printed(settings))
    program(programs, "systemctl", f"printf '%s\\n' LoadState=loaded {' '.join(map(repr, said))}")
    found = seen(network, settings)
    assert len(found) == len(what)
    for finding, part in zip(found, what, strict=True):
        assert part in finding.what


def test_iptables_rules_are_not_read_and_not_denied(network: Network, programs: Path) -> None:
    network.load(printed(WAYS["tproxy"]))
    network.gateway.nft("delete table inet smtpproxy")
    rule = {"rule": {"family": "ip", "table": "mangle", "chain": "PREROUTING", "expr": [{"xt": None}]}}
    listed = json.dumps({"nftables": [rule]})
    program(programs, "nft", f'case "$*" in *-j*) echo \'{listed}\' ;; *) exec /usr/sbin/nft "$@" ;; esac')
    found = seen(network, WAYS["tproxy"])
    assert [(finding.check, finding.severity) for finding in found] == [("rules", "warning")] * 2
    assert all("iptables" in finding.what for finding in found)


def test_the_quick_look_is_a_part_of_the_whole(network: Network) -> None:
    assert set(QUICK) < set(CHECKS)
    settings = WAYS["tproxy"]
    with network.gateway.inside():
        quick = look(settings)
    whole = seen(network, settings)
    assert [finding for finding in whole if finding.check in QUICK] == quick
    assert {"policy-rule", "policy-route"} == set(names(quick))
    assert {"rules"} == set(names(whole)) - set(names(quick))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_says_it_and_ends_with_a_code(network: Network, tmp_path: Path, as_json: bool) -> None:
    file = tmp_path / "the.toml"
    file.write_text(TOML + "[limits]\nconnections = 100\n")

    def run() -> tuple[int, str]:
        words: list[str | Path] = [sys.executable, "-c", DOCTOR, "--config", file, *(["--json"] if as_json else [])]
        done = network.gateway.run(*words, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = run()
    assert code == 1
    if as_json:
        assert {finding["check"] for finding in json.loads(said)["findings"]} == {
            "policy-rule",
            "policy-route",
            "rules",
        }
    else:
        assert "error: policy-rule: IPv4 has no rule" in said
        assert "    ip -4 rule add pref 25 fwmark 0x25 lookup 2525\n" in said
    network.load(printed(both("tproxy")).replace("tproxy-v4", "mx0").replace("tproxy-v6", "mx1"))
    network.gateway.nft("flush chain inet smtpproxy printed")
    code, said = run()
    assert (code, said) == (0, '{"ok": true, "findings": []}\n' if as_json else "ok: nothing is missing\n")

    file.write_text(TOML.replace("mode", "mood"))
    code, said = run()
    assert code == 2
    assert "mood" in said

"""The settings of a proxy in line: how connections come, `[[match]]` blocks, processes; what can't be meant of them,
what has no effect, and what a block makes of its listener.
"""

import grp
import os
import pwd
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import get_args

import pytest

from smtpproxy.config import (
    Config,
    ConfigError,
    Endpoint,
    ListenerConfig,
    Override,
    ProcessConfig,
    files,
    load_config,
    parse_network,
)
from smtpproxy.config.cpus import usable_cpus
from smtpproxy.config.inline import MOST_WORKERS, Mode, Source
from smtpproxy.policy.toml import Problem
from smtpproxy.session.postures import ClientTLS, ServerTLS
from tests.test_config import ANOTHER, LISTENER, load, mistakes

GATE = '[[listener]]\nname = "gate"\nlisten = "0.0.0.0:2525"\nmode = "tproxy"\n'
SIX = '[[listener]]\nname = "six"\nlisten = "[::]:2525"\nmode = "tproxy"\n'
MATCH = '[[match]]\nname = "few"\n'


def warnings(tmp_path: Path, text: str, *overrides: Override) -> list[str]:
    (tmp_path / "smtpproxy.toml").write_text(text)
    found: list[Problem] = []
    load_config(tmp_path / "smtpproxy.toml", overrides, look=lambda config: (), warn=found.append)
    assert {problem.severity for problem in found} <= {"warning"}
    return [str(problem).removeprefix(f"{tmp_path}/smtpproxy.toml:") for problem in found]


# -------------------------------------------------------------------------------------------------------- defaults


def test_nothing_has_to_be_said(tmp_path: Path) -> None:
    config = load(tmp_path, LISTENER)
    (listener,) = config.listeners
    assert (listener.mode, listener.source, listener.keeps_client, listener.announce) == (
        "forward",
        None,
        False,
        "none",
    )
    assert (listener.reach, listener.proxy_from, listener.proxy_only) == ((), (), True)
    intercept = listener.intercept
    assert (intercept.ports, intercept.clients, intercept.servers, intercept.interfaces) == ((25,), (), (), ())
    assert intercept.when_down == "refuse"
    assert config.matches == ()
    process = config.process
    assert (process.workers, process.user, process.group, process.control) == (0, "", "", "")
    assert (config.gateway.mark, config.gateway.table) == (0x25, 2525)


def test_all_of_it_can_be_said(tmp_path: Path) -> None:
    for name in ("own.toml", "roots.pem"):
        (tmp_path / name).touch()
    config = load(
        tmp_path,
        LISTENER
        + """\
mode = "redirect"
source = "client"
reach = ["10.0.0.0/8", "fd00::/8"]
proxy_from = ["192.0.2.7"]
proxy_only = false
announce = "proxy-v2"
[listener.intercept]
ports = [25, 587]
clients = ["10.0.0.0/8"]
servers = ["2001:db8::1"]
interfaces = ["eth0", "br-lan.7"]
when_down = "hold"
[[match]]
name = "one"
listeners = ["in"]
clients = ["10.1.0.0/16"]
servers = ["192.0.2.0/24", "192.0.2.9/32"]
ports = [25]
server = "other.example:26"
rules = ["own.toml"]
[match.tls]
roots = "roots.pem"
client = "offer"
[[match]]
name = "two"
ports = [587]
unseen = true
[process]
workers = 3
user = "root"
group = "0"
control = "run/control"
[gateway]
mark = 0x4000_0000
table = 100
""",
    )
    (listener,) = config.listeners
    assert (listener.mode, listener.source, listener.keeps_client) == ("redirect", "client", True)
    assert listener.reach == (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8"))
    assert listener.proxy_from == (IPv4Network("192.0.2.7/32"),)
    assert (listener.proxy_only, listener.announce) == (False, "proxy-v2")
    intercept = listener.intercept
    assert (intercept.ports, intercept.servers) == ((25, 587), (IPv6Network("2001:db8::1/128"),))
    assert (intercept.interfaces, intercept.when_down) == (("eth0", "br-lan.7"), "hold")
    one, two = config.matches
    assert (one.name, one.listeners, one.ports, one.unseen) == ("one", ("in",), (25,), False)
    assert one.servers == (IPv4Network("192.0.2.0/24"), IPv4Network("192.0.2.9/32"))
    assert (one.server, one.rules) == (Endpoint("other.example", 26), (f"{tmp_path}/own.toml",))
    assert one.tls is not None
    assert (one.tls.roots, one.tls.model_fields_set) == (f"{tmp_path}/roots.pem", {"roots", "client"})
    assert (two.unseen, two.tls, two.server) == (True, None, None)
    assert (config.process.user, config.process.group, config.worker_count) == ("root", "0", 3)
    assert config.process.control == f"{tmp_path}/run/control"
    assert (config.gateway.mark, config.gateway.table) == (0x4000_0000, 100)


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("source", [None, *get_args(Source)])
def test_the_server_sees_the_clients_address_where_that_is_said_or_meant(
    tmp_path: Path, mode: str, source: str | None
) -> None:
    text = f'{LISTENER}mode = "{mode}"\n' + (f'source = "{source}"\n' if source else "")
    (listener,) = load(tmp_path, text).listeners
    assert listener.keeps_client is (source == "client" or (mode == "tproxy" and source != "own"))


def test_the_server_need_not_be_said_where_clients_go_elsewhere(tmp_path: Path) -> None:
    (listener,) = load(tmp_path, GATE).listeners
    assert (listener.server, listener.server_name) == (None, "")
    (listener,) = load(tmp_path, GATE + '[listener.tls]\nserver_name = "MX.example."\n').listeners
    assert listener.server_name == "mx.example"


def test_the_control_socket_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the configuration is named by a relative path."""
    monkeypatch.chdir(tmp_path)
    Path("smtpproxy.toml").write_text(LISTENER + '[process]\ncontrol = "c"\n')
    assert load_config(Path("smtpproxy.toml")).process.control == f"{tmp_path}/c"


# -------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8:0:0::1", "2001:db8::1/128"),
        ("::/0", "::/0"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1/24", "192.0.2.1/24 is no network; 192.0.2.0/24 is"),
        ("2001:db8::1/64", "2001:db8::1/64 is no network; 2001:db8::/64 is"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/255.255.255.0 is no network; 192.0.2.0/24 is"),
        ("192.0.2.9/0.0.0.255", "192.0.2.9/0.0.0.255 is no network; 192.0.2.0/24 is"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7 is no network; 192.0.2.7/32 is"),
        ("::ffff:192.0.2.0/120", "::ffff:192.0.2.0/120 is no network; 192.0.2.0/24 is"),
        ("::ffff:192.0.2.1/120", "::ffff:192.0.2.1/120 is no network; 192.0.2.0/24 is"),
        ("::ffff:0:0/95", "::ffff:0:0/95 is no network; ::fffe:0:0/95 is"),
        ("fe80::1%eth0", '"fe80::1%eth0" is not a network: it has an interface in it'),
        ("192.0.2.0/33", '"192.0.2.0/33" is not a network'),
        ("192.0.2", '"192.0.2" is not a network'),
        ("[::1]", r'"\[::1\]" is not a network'),
        ("192.0.2.0/٢٤", "is not a network"),
        ("mx.example", '"mx.example" is not a network'),
        ("", '"" is not a network'),
    ],
)
def test_no_networks(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}$"):
        parse_network(text)


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            LISTENER + 'mode = "transparent"\n',
            (
                '5:8: listener 1 "in": mode: "transparent" is not one of its values'
                ' (expected "forward" or "redirect" or "tproxy")'
            ),
        ),
        (LISTENER + 'source = "clients"\n', '(expected "own" or "client"; nearest: client)'),
        (LISTENER + 'announce = "proxy_v2"\n', "nearest: proxy-v2, proxy-v1)"),
        (
            GATE + 'reach = ["192.0.2.0/24", "192.0.2.1/24"]\n',
            (
                '5:26: listener 1 "gate": reach 2: 192.0.2.1/24 is no network; 192.0.2.0/24 is'
                ' (expected e.g. "192.0.2.0/24", "2001:db8::/32", "192.0.2.7")'
            ),
        ),
        (GATE + 'reach = "192.0.2.0/24"\n', 'reach: "192.0.2.0/24" is not an array (expected ["192.0.2.0/24"])'),
        (GATE + "proxy_from = [7]\n", "proxy_from 1: 7 is not a string"),
        (GATE + "proxy_only = 1\n", "proxy_only: 1 is not true or false"),
        (GATE + "[listener.intercept]\nports = [0]\n", "intercept.ports 1: 0 is too small (expected more than 0)"),
        (GATE + "[listener.intercept]\nports = [65536]\n", "intercept.ports 1: 65536 is too large"),
        (GATE + "[listener.intercept]\nports = 25\n", "intercept.ports: 25 is not an array (expected [25])"),
        (
            GATE + '[listener.intercept]\ninterfaces = ["eth0", "e:1"]\n',
            (
                '6:23: listener 1 "gate": intercept.interfaces 2: "e:1" is not the name of an interface'
                ' (expected e.g. "eth0", as `ip link` tells them)'
            ),
        ),
        (GATE + f'[listener.intercept]\ninterfaces = ["{"e" * 16}"]\n', "is not the name of an interface"),
        (GATE + '[listener.intercept]\ninterfaces = [".."]\n', "is not the name of an interface"),
        (GATE + '[listener.intercept]\nwhen_down = "holds"\n', "nearest: hold"),
        (GATE + "intercept = 3\n", "(expected [listener.intercept] behind its [[listener]], or intercept = {"),
        (
            GATE + "[listener.intercept]\nport = [25]\n",
            '6:1: listener 1 "gate": intercept: unknown key "port" (nearest: ports)',
        ),
        (LISTENER + "[intercept]\nports = [1]\n", 'unknown key "intercept" here: it belongs into [[listener]]'),
        (LISTENER + "[gateway]\nworkers = 3\n", 'gateway: unknown key "workers" here: it belongs into [process]'),
        (LISTENER + "unseen = true\n", 'unknown key "unseen" here: it belongs into [[match]]'),
        (LISTENER + "when_down = 1\n", 'unknown key "when_down" here: it belongs into [listener.intercept]'),
        (
            LISTENER + MATCH + "rulez = []\n",
            '7:1: match 1 "few": unknown key "rulez" (nearest: rules)',
        ),
        (LISTENER + '[match]\nname = "x"\n', "5:1: match: a table is not an array (expected [[match]])"),
        (LISTENER + "[[match]]\nports = [25]\n", "match 1: name is missing (expected what the record calls it)"),
        (LISTENER + MATCH + 'tls = "require"\n', "(expected [match.tls] behind its [[match]], or tls = {"),
        (
            LISTENER + MATCH + 'ports = [25]\n[match.tls]\nclient = "offr"\n',
            '9:10: match 1 "few": tls.client: "offr" is not one of its values',
        ),
        (
            LISTENER + MATCH + 'tls = { certificates = ["x"] }\n',
            'tls.certificates 1: "x" is not a table (expected { ch',
        ),
        (LISTENER + MATCH + 'server = "mx:0"\n', 'match 1 "few": server: a server is not at port 0'),
        (LISTENER + "[process]\nworkers = -1\n", "process.workers: -1 is too small (expected at least 0)"),
        (LISTENER + "[process]\nworkers = 1025\n", f"1025 is too large (expected at most {MOST_WORKERS})"),
        (LISTENER + "[process]\nuser = 'a b'\n", '"a b" is neither the name of an account nor its number'),
        (LISTENER + f'[process]\ncontrol = "/{"x" * 107}"\n', "is too long for a socket (expected at most 107 octets)"),
        (LISTENER + "[gateway]\nmark = 0\n", "gateway.mark: 0 is too small"),
        (LISTENER + "[gateway]\nmark = 0x1_0000_0000\n", "gateway.mark: 4294967296 is too large"),
        (
            LISTENER + "[gateway]\ntable = 254\n",
            "6:9: gateway.table: 254 is the system's own table `main` (expected one that nobody else uses)",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, mistake: str) -> None:
    (only,) = mistakes(tmp_path, text)
    assert mistake in only


def test_a_control_socket_without_a_file_to_be_relative_to() -> None:
    with pytest.raises(ConfigError, match='"run/control" is not an absolute path'):
        load_config(None, [Override(("process", "control"), "run/control", "--x")], listeners=False)


def test_a_missing_server_is_told_with_the_other_mistakes(tmp_path: Path) -> None:
    text = GATE.replace("tproxy", "forward") + 'reach = ["x"]\n' + SIX.replace("tproxy", "t")
    assert [one.removeprefix("smtpproxy.toml:").split(" (")[0] for one in mistakes(tmp_path, text)] == [
        '1:1: listener 1 "gate": server is missing',
        '5:10: listener 1 "gate": reach 1: "x" is not a network',
        '9:8: listener 2 "six": mode: "t" is not one of its values',
    ]


# ------------------------------------------------------------------------------------------------ what goes together


@pytest.mark.parametrize("verify", ["verify", "dane", "mta-sts"])
def test_a_server_without_a_name_can_not_be_verified(tmp_path: Path, verify: str) -> None:
    text = f'{GATE}[listener.tls]\npolicy_domain = "example"\nverify = "{verify}"\n'
    assert mistakes(tmp_path, text) == [
        (
            f'smtpproxy.toml:7:10: listener 1 "gate": tls.verify: verify = "{verify}" needs the server\'s name, and'
            " where a client is going is known by its address alone (expected the name in server_name, or server;"
            " a [[match]] for each server, where there are several)"
        )
    ]
    assert load(tmp_path, text + 'server_name = "mx.example"\n').listeners
    assert load(tmp_path, text.replace("[listener.tls]", 'server = "mx.example"\n[listener.tls]')).listeners
    assert load(tmp_path, text.replace(f'"{verify}"', '"record"')).listeners


@pytest.mark.parametrize(
    ("one", "other", "fine"),
    [
        ("127.0.0.1:25", "127.0.0.1:25", False),
        ("127.0.0.1:25", "127.0.0.1:26", True),
        ("127.0.0.1:25", "127.0.0.2:25", True),
        ("127.0.0.1:0", "127.0.0.1:0", True),
        ("0.0.0.0:25", "127.0.0.1:25", False),
        ("127.0.0.1:25", "0.0.0.0:25", False),
        ("0.0.0.0:25", "[::]:25", True),
        ("[::]:25", "[0::0]:25", False),
        ("[::]:25", "[::1]:25", False),
        ("[::]:25", "127.0.0.1:25", True),
        ("[::]:25", "mx.example:25", True),  # nobody knows which addresses that has
        ("mx.example:25", "MX.example.:25", False),
    ],
)
def test_two_listeners_on_one_address(tmp_path: Path, one: str, other: str, fine: bool) -> None:
    text = LISTENER.replace("127.0.0.1:2525", one) + ANOTHER.replace("127.0.0.1:2526", other)
    if fine:
        assert len(load(tmp_path, text).listeners) == 2
        return
    (only,) = mistakes(tmp_path, text)
    assert f'smtpproxy.toml:7:10: listener 2 "out": listen: listener "in" listens on {one} already' in only


@pytest.mark.parametrize(
    ("block", "mistake"),
    [
        (
            'listeners = ["in", "uot"]\n',
            '12:20: match 1 "few": listeners 2: no listener is called "uot" (nearest: out)',
        ),
        (
            'listeners = ["zzz"]\n',
            '12:14: match 1 "few": listeners 1: no listener is called "zzz" (expected "in" or "out")',
        ),
        (
            "",
            (
                '10:1: match 1 "few": is for all connections of all listeners'
                " (expected listeners, clients, servers or ports)"
            ),
        ),
        ('clients = []\nserver = "mx.example"\n', '10:1: match 1 "few": is for all connections'),
        (
            'ports = [25]\nunseen = true\nrules = ["x"]\n',
            '14:9: match 1 "few": rules: does not go with unseen = true: what is not looked at is not decided about',
        ),
        (
            "ports = [25]\nunseen = true\n[match.tls]\nlegacy = true\n",
            '14:1: match 1 "few": tls: does not go with unseen = true: what is not looked at is neither decrypted nor',
        ),
        (
            'ports = [25]\n[match.tls]\nverify = "mta-sts"\n',
            '14:10: match 1 "few": tls.verify: with what listener "in" says, verify = "mta-sts" needs policy_domain',
        ),
        (
            'ports = [25]\n[match.tls]\nserver = "never"\n',
            '14:10: match 1 "few": tls.server: with what listener "in" says, server = "never" does not go with',
        ),
        (
            f"ports = [25]\n{MATCH}ports = [26]\n",
            '14:8: match 2 "few": name: two matches are called "few" (expected a name of its own for each)',
        ),
    ],
)
def test_a_block_that_can_not_be_meant(tmp_path: Path, block: str, mistake: str) -> None:
    found = mistakes(tmp_path, LISTENER + ANOTHER + "\n" + MATCH + block)
    assert mistake in found[0]
    assert len(found) == (2 if "[match.tls]" in block and "unseen" not in block else 1)  # one for each listener


def test_what_a_block_makes_of_a_listener_is_checked_where_the_block_says_it(tmp_path: Path) -> None:
    """Here the listener's own word (verify) is right for it, and wrong for another server."""
    text = LISTENER + f'[listener.tls]\nverify = "dane"\n{MATCH}ports = [25]\n'
    (only,) = mistakes(tmp_path, text + 'server = "192.0.2.1"\n')
    assert 'smtpproxy.toml:10:10: match 1 "few": server: with what listener "in" says, verify = "dane"' in only
    assert "192.0.2.1 is an address (expected its name in server_name)" in only
    (only,) = mistakes(tmp_path, text + 'tls = { server = "never", client = "offer" }\n')
    assert 'smtpproxy.toml:10:7: match 1 "few": tls: with what listener "in" says, verify = "dane" can\'t' in only
    assert load(tmp_path, text + 'server = "192.0.2.1"\ntls = { server_name = "mx.example" }\n').matches
    assert load(tmp_path, text + 'server = "192.0.2.1"\nunseen = true\n').matches  # nothing is verified there


def test_dane_of_a_block_needs_a_resolver_too(tmp_path: Path) -> None:
    text = LISTENER + f'{MATCH}clients = ["10.0.0.0/8"]\ntls = {{ verify = "dane" }}\n[dns]\nservers = ["192.0.2.1"]\n'
    (only,) = mistakes(tmp_path, text)
    assert 'dns.servers: a listener has verify = "dane", and the word of none of these counts' in only


@pytest.mark.parametrize(
    ("listen", "server", "more", "fine"),
    [
        ("0.0.0.0:2525", "192.0.2.1", "", True),
        ("0.0.0.0:2525", "[2001:db8::1]", "", False),
        ("[::]:2525", "192.0.2.1", "", False),
        ("0.0.0.0:2525", "mx.example", "", True),
        ("localhost:2525", "[2001:db8::1]", "", True),
        ("0.0.0.0:2525", "[2001:db8::1]", 'source = "own"\n', True),
        ("0.0.0.0:2525", "[2001:db8::1]", 'proxy_from = ["192.0.2.1"]\n', True),  # its clients may have any
    ],
)
def test_a_clients_own_address_towards_a_server_of_the_other_family(
    tmp_path: Path, listen: str, server: str, more: str, fine: bool
) -> None:
    said = f'server = "{server}"\n'
    listener = GATE.replace("0.0.0.0:2525", listen) + more
    for text, place in ((listener + said, "listener 1"), (listener + f"{MATCH}ports = [25]\n{said}", "match 1")):
        if fine:
            assert load(tmp_path, text).listeners
            continue
        (only,) = mistakes(tmp_path, text)
        assert place in only
        assert 'and the clients of listener "gate", whose own addresses it is to see, have IPv' in only
        assert '(expected a server of their kind, or source = "own")' in only


# ---------------------------------------------------------------------------------------- what is and what is not there


def test_rules_and_files_of_a_block_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    text = LISTENER + MATCH + 'ports = [25]\nrules = ["rules", "x.toml", "set:size"]\n[match.tls]\nroots = "r.pem"\n'
    assert [one.replace(f"{tmp_path}/", "") for one in mistakes(tmp_path, text)] == [
        'smtpproxy.toml:8:19: match 1 "few": rules 2: rules x.toml: no such file or directory',
        'smtpproxy.toml:10:9: match 1 "few": tls.roots: roots r.pem: no such file or directory',
    ]
    (tmp_path / "x.toml").touch()
    (tmp_path / "r.pem").touch()
    named = [(file.path.name, file.use, file.place) for file in files(load(tmp_path, text))]
    assert named == [
        ("rules", "rules", ("match", 0, "rules", 0)),
        ("x.toml", "rules", ("match", 0, "rules", 1)),
        ("r.pem", "read", ("match", 0, "tls", "roots")),
    ]


def test_who_the_processes_are_to_be_must_be_known_here(tmp_path: Path) -> None:
    user = pwd.getpwuid(0).pw_name
    group = grp.getgrgid(0).gr_name
    text = LISTENER + f'[process]\nuser = "{user}"\ngroup = "{group}"\n'
    assert load(tmp_path, text).process.user == user
    assert load(tmp_path, LISTENER + '[process]\nuser = "4294967"\n').process.user == "4294967"
    first, second = mistakes(tmp_path, f'{LISTENER}[process]\nuser = "{user}xyz"\ngroup = "no-such-group"\n')
    assert first.startswith(f'smtpproxy.toml:6:8: process.user: there is no user "{user}xyz" here (expected `user')
    assert f"nearest: {user}" in first
    assert 'process.group: there is no group "no-such-group" here (expected `groupadd --system no-such-gr' in second
    (only,) = mistakes(tmp_path, LISTENER, Override(("process", "user"), "no-such-user", "--user"))
    assert only.startswith('command line: --user: there is no user "no-such-user" here')


# ----------------------------------------------------------------------------------------- settings without effect


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (LISTENER, None),
        (GATE, None),
        (LISTENER + 'source = "client"\n', None),
        (
            LISTENER + '[listener.intercept]\nwhen_down = "hold"\n',
            '5:1: warning: listener 1 "in": intercept: has',
        ),
        (GATE + '[listener.intercept]\nwhen_down = "hold"\n', None),
        (LISTENER + 'reach = ["10.0.0.0/8"]\n', "reach: has no effect: everything goes to `server`"),
        (GATE + 'server = "mx.example"\nreach = ["10.0.0.0/8"]\n', "reach: has no effect: everything goes to `server`"),
        (GATE + 'reach = ["10.0.0.0/8"]\n', None),
        (LISTENER + "proxy_only = true\n", "proxy_only: has no effect: it is about `proxy_from`, which is not said"),
        (LISTENER + "[quarantine]\nmails = 3\n", "quarantine.mails: has no effect: it is about `directory`"),
        (LISTENER + "proxy_only = false\n", "proxy_only: has no effect"),
        (LISTENER + 'proxy_only = true\nproxy_from = ["10.0.0.1"]\n', None),
        (GATE + "[listener.intercept]\nports = [25, 587, 25]\n", "intercept.ports 3: 25 stands there already"),
        (GATE + 'reach = ["10.0.0.1", "10.0.0.1/32"]\n', '5:22: warning: listener 1 "gate": reach 2: 10.0.0.1/32 stan'),
        (GATE + MATCH + 'ports = [25, 25]\nserver = "mx.example"\n', 'match 1 "few": ports 2: 25 stands there already'),
        (
            'rules = ["a"]\n' + GATE + MATCH + 'ports = [25]\nrules = ["b", "a"]\n',
            'match 1 "few": rules 2: has no effect: these rules are for all connections already',
        ),
        (
            LISTENER + f'announce = "xforward"\n{MATCH}clients = ["10.0.0.0/8"]\nunseen = true\n',
            'match 1 "few": unseen: the server is not told who these clients are: announce = "xforward" of listener',
        ),
        (LISTENER + f'announce = "proxy-v1"\n{MATCH}clients = ["10.0.0.0/8"]\nunseen = true\n', None),
        (
            LISTENER + f'announce = "xforward"\n{ANOTHER}{MATCH}listeners = ["out"]\nunseen = true\n',
            None,
        ),
        (
            GATE + MATCH + "ports = [25]\n",
            '5:1: warning: match 1 "few": has no effect: it changes nothing, and keeps nothing from a block behind it',
        ),
    ],
)
def test_settings_without_effect_are_warnings(tmp_path: Path, text: str, warning: str | None) -> None:
    found = warnings(tmp_path, text)
    assert len(found) == (warning is not None), found
    assert not found or (warning or "") in found[0]


def blocks(*conditions: str) -> str:
    """Blocks of these conditions, each with something to it."""
    return "".join(
        f'[[match]]\nname = "m{number}"\nserver = "mx.example"\n{one}\n' for number, one in enumerate(conditions, 1)
    )


@pytest.mark.parametrize(
    ("conditions", "covered"),
    [
        (('clients = ["10.0.0.0/8"]', 'clients = ["10.1.0.0/16"]'), True),
        (('clients = ["10.1.0.0/16"]', 'clients = ["10.0.0.0/8"]'), False),
        (('clients = ["10.0.0.0/9", "10.128.0.0/9"]', 'clients = ["10.0.0.0/8"]'), True),
        (('clients = ["10.0.0.0/9"]', 'clients = ["10.0.0.0/8"]'), False),
        (('clients = ["10.0.0.0/8"]', 'clients = ["10.1.0.0/16"]\nports = [25]'), True),
        (('clients = ["10.0.0.0/8"]\nports = [25]', 'clients = ["10.1.0.0/16"]'), False),
        (('clients = ["10.0.0.0/8"]\nports = [25, 26]', 'clients = ["10.1.0.0/16"]\nports = [26]'), True),
        (("ports = [25]", 'servers = ["192.0.2.0/24"]\nports = [25]'), True),
        (('servers = ["192.0.2.0/24"]\nports = [25]', "ports = [25]"), False),
        (('clients = ["0.0.0.0/0", "::/0"]', "ports = [25]"), True),
        (('clients = ["0.0.0.0/0"]', 'listeners = ["gate"]'), False),
        (('listeners = ["gate", "six"]', "ports = [25]"), True),
        (('listeners = ["gate"]', "ports = [25]"), False),
        (("ports = [25]", 'listeners = ["gate"]\nports = [25]'), True),
        (('listeners = ["six"]', 'listeners = ["gate"]'), False),
        (('clients = ["2001:db8::/32"]', 'clients = ["2001:db8:1::/48"]'), True),
        (('clients = ["::/0"]', 'clients = ["10.0.0.0/8"]'), False),
    ],
)
def test_a_block_behind_one_that_takes_all_it_is_for(
    tmp_path: Path, conditions: tuple[str, str], covered: bool
) -> None:
    found = warnings(tmp_path, GATE + SIX + blocks(*conditions))
    if covered:
        (only,) = found
        assert 'warning: match 2 "m2": never applies: all it is for fits match "m1" before it' in only
    else:
        assert found == []


@pytest.mark.parametrize(
    ("listener", "condition", "applies"),
    [
        (GATE, 'clients = ["2001:db8::/32"]', False),
        (GATE, 'clients = ["2001:db8::/32", "10.0.0.0/8"]', True),
        (GATE + SIX, 'clients = ["2001:db8::/32"]', True),
        (GATE + SIX, 'clients = ["2001:db8::/32"]\nlisteners = ["gate"]', False),
        (GATE, 'servers = ["2001:db8::/32"]', False),
        (SIX, 'clients = ["2001:db8::/32"]\nservers = ["192.0.2.0/24"]', False),
        (GATE + 'proxy_from = ["10.0.0.0/8"]\n', 'clients = ["2001:db8::/32"]', True),
        (GATE + 'proxy_from = ["10.0.0.0/8"]\n', 'clients = ["2001:db8::/32"]\nservers = ["192.0.2.0/24"]', False),
        (GATE.replace("0.0.0.0", "localhost"), 'clients = ["2001:db8::/32"]', True),
        (LISTENER, "ports = [25]", False),  # where the client was going is where it came in
        (LISTENER, "ports = [25, 2525]", True),
        (LISTENER.replace("2525", "0"), "ports = [25]", True),
        (LISTENER, 'servers = ["192.0.2.0/24"]', False),
        (LISTENER, 'servers = ["127.0.0.0/8"]', True),
        (LISTENER.replace("127.0.0.1", "0.0.0.0"), 'servers = ["192.0.2.0/24"]', True),
        (LISTENER.replace("127.0.0.1", "localhost"), 'servers = ["192.0.2.0/24"]', True),
        (LISTENER + 'proxy_from = ["10.0.0.0/8"]\n', 'servers = ["192.0.2.0/24"]', True),
    ],
)
def test_a_block_for_what_can_not_come(tmp_path: Path, listener: str, condition: str, applies: bool) -> None:
    found = warnings(tmp_path, listener + blocks(condition))
    if applies:
        assert found == []
    else:
        (only,) = found
        assert 'warning: match 1 "m1": never applies: no connection of these listeners has such addresses or p' in only


def test_a_block_without_effect_may_keep_connections_from_those_behind_it(tmp_path: Path) -> None:
    text = GATE + '[[match]]\nname = "as-it-is"\nclients = ["10.1.0.0/16"]\n' + blocks('clients = ["10.0.0.0/8"]')
    assert warnings(tmp_path, text) == []


@pytest.mark.parametrize(
    ("one", "other", "covered"),
    [
        ("", "", True),
        ("", "ports = [587]", False),
        ("ports = [25, 587]", "ports = [587]", True),
        ("", 'clients = ["10.0.0.0/8"]', True),
        ('clients = ["10.0.0.0/8"]', "", False),
        ('interfaces = ["eth0"]', 'interfaces = ["eth1"]', False),
        ('interfaces = ["eth0", "eth1"]', 'interfaces = ["eth1"]', True),
        ('servers = ["192.0.2.0/24"]', 'servers = ["192.0.2.1"]', True),
    ],
)
def test_two_listeners_that_the_same_is_led_to(tmp_path: Path, one: str, other: str, covered: bool) -> None:
    second = GATE.replace("gate", "next").replace("2525", "2526")
    text = f"{GATE}[listener.intercept]\n{one}\n{second}[listener.intercept]\n{other}\n"
    found = warnings(tmp_path, text)
    if covered:
        (only,) = found
        assert 'listener 2 "next": intercept: never applies: all it is for is led to listener "gate" before' in only
    else:
        assert found == []
    assert warnings(tmp_path, text.replace(second, SIX)) == []  # connections of the other family


# ------------------------------------------------------------------------------------------- what a block comes to


def only_variant(config: Config) -> ListenerConfig:
    _, found = config.variants()
    assert (found.listener, found.match) == (0, 0)
    assert found.entry == config.effective(config.listeners[0], config.matches[0])
    return found.entry


def test_only_what_a_block_says_stands_in_place_of_what_its_listener_says(tmp_path: Path) -> None:
    text = LISTENER + '[listener.tls]\nclient = "offer"\nlegacy = true\nserver_name = "a.example"\n'
    block = MATCH + 'clients = ["10.0.0.0/8"]\n[match.tls]\nserver = "require"\nlegacy = false\n'
    config = load(tmp_path, text + block)
    entry = only_variant(config)
    assert (entry.tls.client, entry.tls.server, entry.tls.legacy) == (ClientTLS.OFFER, ServerTLS.REQUIRE, False)
    assert (entry.server, entry.server_name) == (Endpoint("mx.example", 25), "a.example")
    assert (entry.name, entry.listen) == ("in", Endpoint("127.0.0.1", 2525))
    (listener,) = config.listeners
    assert (listener.tls.server, listener.tls.legacy) == (ServerTLS.MIRROR, True)


def test_the_name_of_a_certificate_goes_with_its_server(tmp_path: Path) -> None:
    """What was said of the listener's server is not asked of another."""
    text = LISTENER + f'[listener.tls]\nserver_name = "a.example"\n{MATCH}ports = [2525]\nserver = "b.example:26"\n'
    entry = only_variant(load(tmp_path, text))
    assert (entry.server, entry.server_name) == (Endpoint("b.example", 26), "b.example")
    entry = only_variant(load(tmp_path, text + 'tls = { server_name = "c.example" }\n'))
    assert entry.server_name == "c.example"


def test_a_block_is_for_the_listeners_it_names_or_for_all(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        GATE
        + SIX
        + blocks('listeners = ["six"]', "ports = [26]")
        + '[[match]]\nname = "x"\nports = [9]\nunseen = true\n',
    )
    assert [(one.listener, one.match) for one in config.variants()] == [(0, None), (0, 1), (1, None), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("listener", "block", "idle"),
    [
        ('policy_domain = "a.example"\n', 'verify = "mta-sts"\n', []),
        ('policy_domain = "a.example"\n', 'verify = "mta-sts"\npolicy_domain = "b.example"\n', ["listener 1"]),
        ('policy_domain = "a.example"\n', "legacy = true\n", ["listener 1"]),
        ("", 'policy_domain = "b.example"\n', ["match 1"]),
        ("", 'hello = "a.example"\nserver = "require"\n', []),
        ("", 'roots = "r"\nclient = "refuse"\n', ["match 1"]),
    ],
)
def test_a_listeners_setting_may_be_there_for_a_block(
    tmp_path: Path, listener: str, block: str, idle: list[str]
) -> None:
    text = f'{LISTENER}[listener.tls]\n{listener}{MATCH}clients = ["10.0.0.0/8"]\n[match.tls]\n{block}'
    found = warnings(tmp_path, text)
    assert [one.split("warning: ")[1].partition(' "')[0] for one in found] == idle


def test_dns_and_ca_may_be_there_for_a_block(tmp_path: Path) -> None:
    more = '[ca]\ndirectory = "ca"\n[dns]\ntrusted = true\n'
    refuse = LISTENER + '[listener.tls]\nclient = "refuse"\nserver = "require"\n'
    assert len(warnings(tmp_path, refuse + more)) == 2
    block = f'{MATCH}clients = ["10.0.0.0/8"]\ntls = {{ client = "offer", verify = "dane" }}\n'
    assert warnings(tmp_path, refuse + block + more) == []


def test_a_ca_that_is_never_used_for_what_a_block_is_for(tmp_path: Path) -> None:
    block = f'{MATCH}clients = ["10.0.0.0/8"]\nserver = "192.0.2.1"\n'
    (only,) = warnings(tmp_path, LISTENER + block + '[ca]\ndirectory = "ca"\n')
    assert only.startswith(
        '8:10: warning: match 1 "few": server: 192.0.2.1 is an address, which hardly any certificate'
    )
    assert warnings(tmp_path, GATE + '[ca]\ndirectory = "ca"\n') == []  # each server is asked for its own name there


# ------------------------------------------------------------------------------------------------------- processes


def test_as_many_workers_as_are_said_or_as_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config(process=ProcessConfig(workers=5)).worker_count == 5
    monkeypatch.setattr("smtpproxy.config.tables.usable_cpus", lambda: 3)
    assert Config().worker_count == 3
    monkeypatch.setattr("smtpproxy.config.tables.usable_cpus", lambda: 5000)
    assert Config().worker_count == MOST_WORKERS


@pytest.mark.parametrize(
    ("limits", "own", "cpus"),
    [
        ({}, "0::/\n", 4),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 4),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "10000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "900000 100000\n"}, "0::/\n", 4),
        ({"a/cpu.max": "300000 100000\n"}, "1:cpu:/x\n0::/a/b\n", 3),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 100000\n"}, "0::/a/b\n", 1),
        ({"a/cpu.max": "100000 100000\n"}, "0::/b\n", 4),
        ({"a/cpu.max": "100000 100000\n"}, "1:cpu:/a\n", 4),
        ({"cpu.max": "nonsense"}, "0::/../..\n", 4),
        ({"cpu.max": "5 0"}, "", 4),
    ],
)
def test_cpus_are_those_a_process_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], own: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == cpus


def test_there_is_at_least_one_cpu_here() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


def test_who_passes_unseen_must_not_say_xclient_in_our_place(tmp_path: Path) -> None:
    """The server lets the proxy's address say it, and would believe the client."""
    text = LISTENER + f'announce = "xclient"\n{MATCH}clients = ["10.0.0.0/8"]\nunseen = true\n'
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match="a client may say XCLIENT itself"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text(text + 'server = "192.0.2.77"\n')
    load_config(tmp_path / "b.toml")


def test_somewhere_clients_must_be_going(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GATE + "[listener.intercept]\nports = []\n")
    with pytest.raises(ConfigError, match="no port, and so nothing"):
        load_config(tmp_path / "a.toml")

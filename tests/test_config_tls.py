"""The settings of TLS: defaults, what does not go together, and the files that must be there."""

import os
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import pytest
from pydantic import BaseModel

from smtpproxy.config import (
    TABLES,
    Config,
    ConfigError,
    Endpoint,
    Mistake,
    Override,
    exposed,
    files,
    keys_of,
    load_config,
)
from smtpproxy.config.paths import NamedFile, Use, trouble
from smtpproxy.config.tls import Verify, hello_of, listener_mistakes, machine_address, machine_hello
from smtpproxy.config.values import is_hello
from smtpproxy.policy.toml import Problem
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from tests.test_config import ANOTHER, LISTENER, load, mistakes

TLS = LISTENER + "[listener.tls]\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Every file there could be, next to smtpproxy.toml. What is in them is nobody's business here."""
    (tmp_path / "ca").mkdir()
    for name in ("mx.pem", "mx.key", "own.pem", "roots.pem", "secret", "ca/ca.key", "ca/ca.crt"):
        (tmp_path / name).write_text("x")
    return tmp_path


ALL = (
    TLS
    + """\
client = "require"
server = "upgrade"
certificates = [{ chain = "mx.pem", key = "mx.key" }, { chain = "mx.pem" }]
verify = "mta-sts"
server_name = "MX.example."
roots = "roots.pem"
policy_domain = "example"
client_certificate = { chain = "own.pem" }
legacy = true
hello = "proxy.example"
[tls]
keylog = "keys.log"
[ca]
directory = "ca"
passphrase_file = "secret"
days = 7
rate = 5
burst = 50
[dns]
servers = ["127.0.0.1", "[2001:db8::1]:5353"]
trusted = true
"""
)


# -------------------------------------------------------------------------------------------------------- defaults


def test_nothing_has_to_be_said_about_tls(tmp_path: Path) -> None:
    config = load(tmp_path, LISTENER)
    (listener,) = config.listeners
    tls = listener.tls
    assert (tls.client, tls.server, tls.verify, tls.legacy) == (ClientTLS.MIRROR, ServerTLS.MIRROR, "record", False)
    assert (tls.certificates, tls.client_certificate, tls.roots, tls.hello) == ((), None, "", "")
    assert listener.posture() == Posture()
    assert listener.server_name == "mx.example"
    assert (config.tls.keylog, config.ca.directory, config.ca.passphrase_file) == ("", "", "")
    assert (config.ca.days, config.ca.rate, config.ca.burst) == (30, 100, 1000)
    assert (config.dns.servers, config.dns.trusted) == ((), False)
    assert files(config) == []


def test_all_of_it_can_be_said(site: Path) -> None:
    config = load(site, ALL)
    (listener,) = config.listeners
    tls = listener.tls
    assert listener.posture() == Posture(ClientTLS.REQUIRE, ServerTLS.UPGRADE, b"proxy.example")
    assert [(one.chain, one.key) for one in tls.certificates] == [
        (f"{site}/mx.pem", f"{site}/mx.key"),
        (f"{site}/mx.pem", ""),
    ]
    assert tls.client_certificate is not None
    assert (tls.client_certificate.chain, tls.client_certificate.key) == (f"{site}/own.pem", "")
    assert (tls.verify, tls.policy_domain, tls.roots, tls.legacy) == ("mta-sts", "example", f"{site}/roots.pem", True)
    assert listener.server_name == "mx.example"  # as SNI has it: RFC 6066 §3
    assert config.tls.keylog == f"{site}/keys.log"
    assert (config.ca.directory, config.ca.passphrase_file) == (f"{site}/ca", f"{site}/secret")
    assert (config.ca.days, config.ca.rate, config.ca.burst) == (7, 5, 50)
    assert config.dns.servers == (Endpoint("127.0.0.1", 53), Endpoint("2001:db8::1", 5353))
    assert config.dns.trusted


def test_each_listener_has_its_own(tmp_path: Path) -> None:
    text = TLS + 'client = "refuse"\n' + ANOTHER + 'tls = { client = "offer" }\n'
    assert [one.tls.client for one in load(tmp_path, text).listeners] == [ClientTLS.REFUSE, ClientTLS.OFFER]


@pytest.mark.parametrize("name", ["client", "server"])
def test_every_posture_can_be_said(tmp_path: Path, name: str) -> None:
    """Each by its word, with something that goes with it on the other side."""
    for posture in ClientTLS if name == "client" else ServerTLS:
        other = 'client = "offer"\n' if posture is ServerTLS.NEVER else ""
        (listener,) = load(tmp_path, f'{TLS}{other}{name} = "{posture.value}"\n').listeners
        assert getattr(listener.tls, name) is posture


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            TLS + 'client = "mirrror"',
            (
                'smtpproxy.toml:6:10: listener 1 "in": tls.client: "mirrror" is not one of its values (expected'
                ' "mirror" or "offer" or "require" or "implicit" or "refuse" or "passthrough"; nearest: mirror)'
            ),
        ),
        (TLS + "client = true", "tls.client: true is not one of its values"),
        (TLS + 'server = ["never"]', "tls.server: an array is not one of its values"),
        (TLS + 'verify = "yes"', '(expected "record" or "verify" or "dane" or "mta-sts")'),
        (TLS + "legacy = 1", "tls.legacy: 1 is not true or false"),
        (TLS + 'certificate = "x"', 'tls: unknown key "certificate" (nearest: certificates'),
        (TLS + 'certificates = "x"', 'tls.certificates: "x" is not an array (expected [{ chain = "mx.pem" }])'),
        (TLS + 'certificates = ["x"]', 'tls.certificates 1: "x" is not a table (expected { chain = "mx.pem" })'),
        (
            TLS + 'certificates = [{ chain = "x" }, { key = "y" }]',
            "tls.certificates 2: chain is missing (expected the certificate, and behind it those of the CAs",
        ),
        (
            TLS + 'certificates = [{ chain = "x", kye = "y" }]',
            'smtpproxy.toml:6:32: listener 1 "in": tls.certificates 1: unknown key "kye" (nearest: key)',
        ),
        (TLS + 'certificates = [{ chain = "" }]', 'tls.certificates 1: chain: "" names no file'),
        (TLS + 'roots = "a\\u0000b"', "tls.roots: "),
        (TLS + 'client_certificate = "x"', 'tls.client_certificate: "x" is not a table'),
        (TLS + "client_certificate = { chain = 3 }", "tls.client_certificate.chain: 3 is not a string"),
        (TLS + 'server_name = "a b"', 'tls.server_name: "a b" is not a host'),
        (TLS + 'server_name = "mx.example:25"', 'tls.server_name: "mx.example:25" is not a host'),
        (TLS + f'server_name = "{"a" * 255}"', "is not a host"),
        (
            TLS + 'policy_domain = "münchen.example"',
            '"münchen.example" is not a domain (expected e.g. "mx.example"; wh',
        ),
        (TLS + 'policy_domain = "192.0.2.1"', '"192.0.2.1" is not a domain'),
        (TLS + 'hello = "a b\\r\\nMAIL"', "is not what EHLO may say"),
        (TLS + 'hello = "192.0.2.1"', "is not what EHLO may say"),
        ("tls = 3\n" + LISTENER, "smtpproxy.toml:1:7: tls: 3 is not a table"),
        (LISTENER + "[tls]\nkeylog = 1", "tls.keylog: 1 is not a string"),
        (
            LISTENER + '[tls]\nverify = "dane"',
            'smtpproxy.toml:6:1: tls: unknown key "verify" here: it belongs into [listener.tls]',
        ),
        (LISTENER + "[tls]\nkeylogs = 3", 'tls: unknown key "keylogs" (nearest: keylog)'),
        (LISTENER + "[listener.ca]", 'listener 1 "in": unknown key "ca" here: it belongs into [ca]'),
        (LISTENER + "rules = []", 'unknown key "rules" here: it belongs into the top of the file'),
        (LISTENER + "[dns]\nlisten = 1", 'dns: unknown key "listen" here: it belongs into [[listener]]'),
        (LISTENER + "[dns]\nserver = 1", 'unknown key "server" here: it belongs into [[listener]] or [listener.tls]'),
        (LISTENER + 'tls = "require"', "(expected [listener.tls] behind its [[listener]], or tls = { client ="),
        (TLS + 'client_certificate = "x"', '"x" is not a table (expected { chain = "ours.pem" })'),
        (LISTENER + '[dns]\nservers = "127.0.0.1"', 'is not an array (expected ["127.0.0.1"])'),
        (LISTENER + "[ca]\ndays = 826", "ca.days: 826 is too large (expected at most 825)"),
        (LISTENER + "[ca]\nrate = 0", "ca.rate: 0 is too small"),
        (LISTENER + "[ca]\nburst = 1.5", "ca.burst: 1.5 is not a whole number"),
        (LISTENER + '[dns]\nservers = ["dns.example"]', 'dns.servers 1: "dns.example" is not an address, and it is'),
        (LISTENER + '[dns]\nservers = ["::1"]', "an IPv6 address stands in brackets: [::1]"),
        (LISTENER + '[dns]\nservers = ["127.0.0.1:0"]', "dns.servers 1: a resolver is not at port 0"),
        (LISTENER + "[dns]\nservers = [53]", "dns.servers 1: 53 is not a string"),
        (LISTENER + '[dns]\ntrusted = "yes"', 'dns.trusted: "yes" is not true or false'),
    ],
)
def test_mistakes(tmp_path: Path, text: str, mistake: str) -> None:
    (only,) = mistakes(tmp_path, text)
    assert mistake in only


# ------------------------------------------------------------------------------------------------ what goes together


@pytest.mark.parametrize("server", ["upgrade", "require", "implicit", "never"])
def test_passthrough_leaves_tls_to_the_peers(tmp_path: Path, server: str) -> None:
    assert mistakes(tmp_path, f'{TLS}client = "passthrough"\nserver = "{server}"\n') == [
        (
            f'smtpproxy.toml:7:10: listener 1 "in": tls.server: server = "{server}" does not go with'
            ' client = "passthrough": TLS is the peers\' own (expected server = "mirror")'
        )
    ]


def test_mirror_of_a_link_that_is_never_encrypted(tmp_path: Path) -> None:
    assert mistakes(tmp_path, TLS + 'server = "never"\n') == [
        (
            'smtpproxy.toml:6:10: listener 1 "in": tls.server: server = "never" does not go with client = "mirror":'
            ' nothing would ever be encrypted (expected client = "offer" or "require" for TLS that ends here,'
            ' client = "refuse" for none)'
        )
    ]


@pytest.mark.parametrize("verify", ["verify", "dane", "mta-sts"])
@pytest.mark.parametrize(
    ("client", "server", "why"),
    [
        ("passthrough", "mirror", 'does not go with client = "passthrough": the proxy does not see the certificate'),
        ("offer", "never", "can't be kept: the server's link is never encrypted"),
        ("refuse", "never", "can't be kept: the server's link is never encrypted"),
        ("refuse", "mirror", "can't be kept: the server's link is never encrypted"),
    ],
)
def test_a_server_that_can_not_be_verified(tmp_path: Path, verify: str, client: str, server: str, why: str) -> None:
    """Whoever says so believes the server's link to be safe."""
    text = f'client = "{client}"\nserver = "{server}"\nverify = "{verify}"\npolicy_domain = "example"\n'
    (only,) = mistakes(tmp_path, TLS + text)
    assert f'smtpproxy.toml:8:10: listener 1 "in": tls.verify: verify = "{verify}" {why}' in only


def test_mta_sts_needs_a_domain(tmp_path: Path) -> None:
    assert mistakes(tmp_path, TLS + 'verify = "mta-sts"\n') == [
        (
            'smtpproxy.toml:6:10: listener 1 "in": tls.verify: verify = "mta-sts" needs policy_domain'
            " (expected the recipients' domain in policy_domain)"
        )
    ]


@pytest.mark.parametrize("verify", ["dane", "mta-sts"])
@pytest.mark.parametrize("address", ["192.0.2.1", "[2001:db8::1]:25"])
def test_dane_and_mta_sts_need_a_name(tmp_path: Path, verify: str, address: str) -> None:
    text = TLS.replace("mx.example", address) + f'policy_domain = "example"\nverify = "{verify}"\n'
    (only,) = mistakes(tmp_path, text)
    assert f'7:10: listener 1 "in": tls.verify: verify = "{verify}" needs the server\'s name, and ' in only
    assert load(tmp_path, text + 'server_name = "mx.example"\n').listeners[0].server_name == "mx.example"
    (only,) = mistakes(tmp_path, text + 'server_name = "192.0.2.7"\n')
    assert 'smtpproxy.toml:8:15: listener 1 "in": tls.server_name: ' in only
    assert "192.0.2.7 is an address (expected its name in server_name)" in only


def test_verify_takes_an_address(tmp_path: Path) -> None:
    """A certificate may be for one (an iPAddress in its names)."""
    (listener,) = load(tmp_path, TLS.replace("mx.example", "[::1]") + 'verify = "verify"\n').listeners
    assert listener.server_name == "::1"


@pytest.mark.parametrize(
    ("dns", "fine"),
    [
        ("", True),  # the system's: whether they count is seen when they are asked
        ('servers = ["192.0.2.1"]', False),
        ('servers = ["192.0.2.1"]\ntrusted = true', True),
        ('servers = ["192.0.2.1", "[::1]:5353"]', True),
        ('servers = ["[0:0:0:0:0:0:0:1]"]', True),
        ('servers = ["127.0.0.53"]', True),
    ],
)
def test_dane_needs_a_resolver_whose_word_counts(tmp_path: Path, dns: str, fine: bool) -> None:
    text = f"{TLS}verify = 'dane'\n[dns]\n{dns}\n"
    if fine:
        assert load(tmp_path, text).listeners[0].tls.verify == "dane"
        return
    (only,) = mistakes(tmp_path, text)
    assert 'smtpproxy.toml:8:11: dns.servers: a listener has verify = "dane", and the word of none of these' in only
    assert load(tmp_path, text.replace("dane", "record")).dns.servers


def test_a_passphrase_is_for_a_ca(site: Path) -> None:
    (only,) = mistakes(site, LISTENER + '[ca]\npassphrase_file = "secret"\n')
    assert "smtpproxy.toml:6:19: ca.passphrase_file: a passphrase, and no CA it could be for" in only


def test_all_that_does_not_go_together_is_told_at_once(tmp_path: Path) -> None:
    """With the other mistakes, and in the order of the file."""
    text = TLS + 'client = "passthrough"\nserver = "never"\nverify = "mta-sts"\n' + "[limits]\nrecipients = 0\n"
    assert [one.split(": ")[0].removeprefix("smtpproxy.toml:") for one in mistakes(tmp_path, text)] == [
        "7:10",
        "8:10",
        "8:10",
        "10:14",
    ]


def test_the_table_of_postures(tmp_path: Path) -> None:
    """Every pair is taken or named, whatever the certificate must be; and none that is taken is a promise not kept."""
    (listener,) = load(tmp_path, LISTENER).listeners
    for client, server in product(ClientTLS, ServerTLS):
        for verify in get_args(Verify):
            tls = listener.tls.model_copy(
                update={"client": client, "server": server, "verify": verify, "policy_domain": "example"}
            )
            named = {mistake.place for mistake in listener_mistakes(tls, listener.server)}
            blind = client is ClientTLS.PASSTHROUGH
            apart = (blind and server is not ServerTLS.MIRROR) or (client, server) == (
                ClientTLS.MIRROR,
                ServerTLS.NEVER,
            )
            assert (("tls", "server") in named) is apart, (client, server)
            assert (("tls", "verify") in named) is (verify != "record" and (blind or tls.never_encrypted))


# ----------------------------------------------------------------------------------------- settings without effect


def _warnings(tmp_path: Path, text: str, *overrides: Override) -> list[str]:
    (tmp_path / "smtpproxy.toml").write_text(text)
    found: list[Problem] = []
    load_config(tmp_path / "smtpproxy.toml", overrides, look=lambda config: (), warn=found.append)
    assert {problem.severity for problem in found} <= {"warning"}
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in found]


CERTIFICATES = 'certificates = [{ chain = "mx.pem" }]\n'
OWN = 'client_certificate = { chain = "own.pem" }\n'
CA = '[ca]\ndirectory = "ca"\n'


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        (TLS, []),
        (ALL, ["ca.directory"]),
        (TLS + 'client = "refuse"\n' + CERTIFICATES, ["tls.certificates"]),
        (TLS + 'client = "refuse"\nserver = "require"\nlegacy = true\nroots = "r"\nhello = "a.example"\n' + OWN, []),
        (
            TLS
            + 'client = "refuse"\nlegacy = true\nroots = "r"\nserver_name = "a.example"\nhello = "a.example"\n'
            + OWN,
            ["tls.legacy", "tls.roots", "tls.server_name", "tls.hello", "tls.client_certificate"],
        ),
        (
            TLS
            + 'client = "passthrough"\nlegacy = true\nroots = "r"\nserver_name = "a.example"\n'
            + OWN
            + CERTIFICATES
            + CA,
            [
                "tls.legacy",
                "tls.roots",
                "tls.server_name",
                "tls.client_certificate",
                "tls.certificates",
                "ca.directory",
            ],
        ),
        (
            TLS + 'client = "offer"\nserver = "never"\nlegacy = true\nroots = "r"\nserver_name = "a.example"\n' + OWN,
            ["tls.roots", "tls.client_certificate"],
        ),
        (TLS + 'verify = "dane"\nroots = "r"\n[dns]\ntrusted = true\n', ["tls.roots"]),
        (TLS + 'verify = "mta-sts"\npolicy_domain = "a.example"\nroots = "r"\n[dns]\ntrusted = true\n', []),
        (TLS + 'policy_domain = "a.example"\n', ["tls.policy_domain"]),
        (TLS + 'hello = "a.example"\n', ["tls.hello"]),
        (TLS + 'hello = "a.example"\nserver = "implicit"\n', ["tls.hello"]),
        (TLS + 'hello = "a.example"\nserver = "upgrade"\n', []),
        (TLS + 'hello = "a.example"\nclient = "implicit"\n', []),
        (TLS + '[dns]\nservers = ["127.0.0.1"]\n', ["dns.servers"]),
        (TLS + "[dns]\ntrusted = true\n", ["dns.trusted"]),
        (TLS + "[ca]\ndays = 3\n", ["ca.days"]),
        (TLS + CA, []),
    ],
)
def test_settings_without_effect_are_warnings(tmp_path: Path, text: str, idle: list[str]) -> None:
    found = _warnings(tmp_path, text)
    assert [one.partition("has no effect: ")[0].rpartition(" ")[0].split()[-1].rstrip(":") for one in found] == idle


def test_a_warning_has_its_place_or_its_option(tmp_path: Path) -> None:
    assert _warnings(tmp_path, TLS + 'policy_domain = "a.example"\n') == [
        'smtpproxy.toml:6:17: warning: listener 1 "in": tls.policy_domain: has no effect: it is for verify = "mta-sts"'
    ]
    option = Override(("ca", "directory"), "ca", "--ca")
    assert _warnings(tmp_path, TLS + CERTIFICATES, option) == [
        "command line: warning: --ca: has no effect: every listener has certificates, or needs none"
    ]


@pytest.mark.parametrize(
    ("tls", "warned"),
    [
        ("", "smtpproxy.toml:4:10: "),
        ('server_name = "192.0.2.7"', "smtpproxy.toml:6:15: "),
        ('server_name = "mx.example"', ""),
        ('roots = "r"', ""),  # a CA of one's own certifies addresses too
        ('client = "offer"\nserver = "never"', ""),  # then it is made for the address, and signed
        (CERTIFICATES, ""),
        ('client = "refuse"\nserver = "require"', ""),
    ],
)
def test_a_ca_that_is_never_used_because_the_server_is_an_address(tmp_path: Path, tls: str, warned: str) -> None:
    """Clients would see self-signed certificates, and nobody would know why."""
    found = _warnings(tmp_path, TLS.replace("mx.example", "192.0.2.1") + tls + "\n" + CA)
    found = [one for one in found if "is an address, which hardly any certificate is for" in one]
    assert [one[: len(warned)] for one in found] == [warned] * bool(warned)


def test_a_warning_is_told_only_where_there_is_no_error(tmp_path: Path) -> None:
    found: list[Problem] = []
    (tmp_path / "smtpproxy.toml").write_text(TLS + 'policy_domain = "a.example"\nroots = "nowhere"\n')
    with pytest.raises(ConfigError):
        load_config(tmp_path / "smtpproxy.toml", warn=found.append)
    assert found == []


# ------------------------------------------------------------------------------------------------ the command line


def test_options_take_the_place_of_the_file(site: Path) -> None:
    config = load(
        site,
        ALL,
        Override(("listener", "*", "tls", "client"), "offer", "--client-tls"),
        Override(("listener", "*", "tls", "server"), "never", "--server-tls"),
        Override(("listener", "*", "tls", "verify"), "record", "--verify"),
        Override(("listener", "*", "tls", "certificates"), [{"chain": f"{site}/own.pem"}], "--certificate"),
    )
    (listener,) = config.listeners
    assert listener.posture()[:2] == (ClientTLS.OFFER, ServerTLS.NEVER)
    assert [one.chain for one in listener.tls.certificates] == [f"{site}/own.pem"]


def test_an_option_that_does_not_go_with_the_file_is_told_as_one(site: Path) -> None:
    overrides = [
        Override(("listener", "*", "tls", "client"), "passthrough", "--client-tls"),
        Override(("listener", "*", "tls", "verify"), "verify", "--verify"),
        Override(("listener", "*", "tls", "certificates"), [{"chain": "/nowhere/x.pem"}], "--certificate"),
    ]
    assert mistakes(site, TLS + 'server = "require"\n', *overrides) == [
        (
            'command line: --verify: verify = "verify" does not go with client = "passthrough": the proxy does not see'
            ' the certificate (expected verify = "record")'
        ),
        (
            'smtpproxy.toml:6:10: listener 1 "in": tls.server: server = "require" does not go with'
            ' client = "passthrough": TLS is the peers\' own (expected server = "mirror")'
        ),
    ]
    assert mistakes(site, LISTENER, overrides[2]) == [
        "command line: --certificate: certificate chain /nowhere/x.pem: no such file or directory"
    ]


def test_a_file_named_for_two_listeners_is_missed_once() -> None:
    listeners = [{"name": name, "listen": "localhost:0", "server": "mx.example"} for name in "ab"]
    overrides = [
        Override(("listener",), listeners, "--listen"),
        Override(("listener", "*", "tls", "certificates"), [{"chain": "/nowhere/x.pem"}], "--certificate"),
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert [problem.where for problem in caught.value.problems] == ["--certificate"]


# ----------------------------------------------------------------------------------------------------- files it names


def test_every_file_it_names(site: Path) -> None:
    named = [(file.what, file.path.relative_to(site).as_posix(), file.use) for file in files(load(site, ALL))]
    assert named == [
        ("certificate chain", "mx.pem", "read"),
        ("private key", "mx.key", "read"),
        ("certificate chain", "mx.pem", "read"),
        ("client certificate chain", "own.pem", "read"),
        ("roots", "roots.pem", "read"),
        ("key log", "keys.log", "written"),
        ("directory of the CA", "ca", "directory"),
        ("certificate of the CA", "ca/ca.crt", "read"),
        ("private key of the CA", "ca/ca.key", "read"),
        ("passphrase", "secret", "read"),
    ]


def test_every_setting_that_names_a_file_is_relative_to_the_configuration() -> None:
    """And none is forgotten: these are all the settings that are paths."""
    described = {path: names for path, model in TABLES.items() if (names := [*_marked(model)])}
    assert described == {
        (): ["rules"],
        ("listener", "tls"): ["roots"],
        ("listener", "tls", "certificates"): ["chain", "key"],
        ("listener", "tls", "client_certificate"): ["chain", "key"],
        ("match",): ["rules"],
        ("match", "tls"): ["roots"],
        ("match", "tls", "certificates"): ["chain", "key"],
        ("match", "tls", "client_certificate"): ["chain", "key"],
        ("process",): ["control"],
        ("tls",): ["keylog"],
        ("ca",): ["directory", "passphrase_file"],
        ("audit",): ["file", "store", "key", "pseudonym_key", "auditor"],
        ("audit", "syslog"): ["roots"],
        ("audit", "syslog", "client_certificate"): ["chain", "key"],
        ("audit", "otel"): ["roots", "headers_file"],
        ("audit", "otel", "client_certificate"): ["chain", "key"],
        ("quarantine",): ["directory"],
    }


def _marked(model: type[BaseModel]) -> Iterator[str]:
    for key, field in keys_of(model).items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("path"):
            yield key


def test_all_that_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    there = f"{tmp_path}/"
    assert [one.replace(there, "") for one in mistakes(tmp_path, ALL)] == [
        (
            'smtpproxy.toml:8:27: listener 1 "in": tls.certificates 1: chain: certificate chain mx.pem: no such file or'
            " directory"
        ),
        'smtpproxy.toml:8:43: listener 1 "in": tls.certificates 1: key: private key mx.key: no such file or directory',
        (
            'smtpproxy.toml:8:65: listener 1 "in": tls.certificates 2: chain: certificate chain mx.pem: no such file or'
            " directory"
        ),
        'smtpproxy.toml:11:9: listener 1 "in": tls.roots: roots roots.pem: no such file or directory',
        (
            'smtpproxy.toml:13:32: listener 1 "in": tls.client_certificate.chain: client certificate chain own.pem: no'
            " such file or directory"
        ),
        (
            "smtpproxy.toml:19:13: ca.directory: directory of the CA ca: no such file or directory"
            " (expected what `smtpproxy ca init --directory ca` makes)"
        ),
        "smtpproxy.toml:20:19: ca.passphrase_file: passphrase secret: no such file or directory",
    ]


def test_a_directory_without_a_ca(site: Path) -> None:
    (site / "ca" / "ca.key").unlink()
    (only,) = mistakes(site, ALL)
    assert f"ca.directory: private key of the CA {site}/ca/ca.key: no such file or directory" in only
    assert f"(expected what `smtpproxy ca init --directory {site}/ca` makes)" in only


@pytest.mark.parametrize(
    ("name", "use", "why"),
    [
        ("mx.pem", "read", ""),
        ("ca", "read", "is a directory"),
        ("pipe", "read", "is not a file"),
        ("mx.pem/x", "read", "not a directory"),
        ("x" * 300, "read", "file name too long"),
        ("ca", "directory", ""),
        ("mx.pem", "directory", "is not a directory"),
        ("mx.pem", "written", ""),
        ("new", "written", ""),
        ("ca", "written", "is a directory"),
        ("nowhere/new", "written", "there is no such directory"),
    ],
)
def test_what_is_wrong_with_a_file(site: Path, name: str, use: Use, why: str) -> None:
    os.mkfifo(site / "pipe")  # opening it would wait for ever
    assert trouble(NamedFile("file", site / name, use, ())) == why


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may do everything, so where the tests run as root, somebody else does this one."""
    if os.geteuid():
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("name", "use"), [("key", "read"), ("key", "written"), ("", "directory"), ("new", "written"), ("ca/x", "read")]
)
def test_what_may_not_be_used(name: str, use: Use) -> None:
    with TemporaryDirectory() as where:
        (Path(where) / "key").touch(0)
        (Path(where) / "ca").mkdir(0)
        Path(where).chmod(0 if use == "directory" else 0o500)
        assert trouble(NamedFile("file", Path(where) / name, use, ())) == "permission denied"
        Path(where).chmod(0o700)


def test_files_are_looked_at_when_the_settings_are_right(tmp_path: Path) -> None:
    """Before that, what they are is not known."""
    (only,) = mistakes(tmp_path, TLS + 'roots = "nowhere.pem"\n[limits]\nrecipients = 0\n')
    assert "limits.recipients" in only


def test_a_path_is_told_whole_and_on_one_line(tmp_path: Path) -> None:
    (only,) = mistakes(tmp_path, TLS + f'roots = "{"x" * 100}\\n\\u001b[2J"\n')
    assert f"tls.roots: roots {tmp_path}/{'x' * 100}\\n\\x1b[2J: no such file or directory" in only


def test_who_can_read_the_files_says_more(site: Path) -> None:
    """The hook: what it says is told at the place it names, like everything else."""

    def look(config: Config) -> Iterator[Mistake]:
        assert config.listeners[0].tls.certificates
        yield Mistake(("listener", 0, "tls", "certificates", 1, "chain"), "no certificate in it", "PEM")

    (site / "smtpproxy.toml").write_text(ALL)
    with pytest.raises(ConfigError) as caught:
        load_config(site / "smtpproxy.toml", look=look)
    assert str(caught.value).removeprefix(f"{site}/") == (
        'smtpproxy.toml:8:65: listener 1 "in": tls.certificates 2: chain: no certificate in it (expected PEM)'
    )


# ----------------------------------------------------------------------------------------------------- our own EHLO


@pytest.mark.parametrize(
    ("name", "address", "says"),
    [
        ("mx.example.org", "192.0.2.1", "mx.example.org"),
        ("MX.Example.ORG.", "192.0.2.1", "mx.example.org"),
        ("mx", "192.0.2.1", "[192.0.2.1]"),
        ("localhost", "127.0.0.1", "[127.0.0.1]"),
        ("localhost.localdomain", "192.0.2.1", "[192.0.2.1]"),
        ("1.0.0.127.in-addr.arpa", "192.0.2.1", "[192.0.2.1]"),
        ("192.0.2.7", "192.0.2.1", "[192.0.2.1]"),
        ("a b.example", "2001:db8::1", "[IPv6:2001:db8::1]"),
        ("", "2001:db8::1", "[IPv6:2001:db8::1]"),
    ],
)
def test_what_a_machine_calls_itself(name: str, address: str, says: str) -> None:
    assert hello_of(name, address) == says
    assert is_hello(says)


@pytest.mark.parametrize("text", ["mx.example", "mx", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[IPv6:::ffff:192.0.2.1]"])
def test_hellos(text: str) -> None:
    assert is_hello(text)


@pytest.mark.parametrize(
    "text",
    ["", "192.0.2.1", "::1", "[::1]", "[192.0.2.999]", "[IPv6:192.0.2.1]", "[IPv6:]", "mx.example.", "a b", "a\r\n"],
)
def test_no_hellos(text: str) -> None:
    assert not is_hello(text)


def test_this_machine_has_a_hello() -> None:
    assert is_hello(machine_hello())


def test_the_address_is_the_one_on_the_way_out() -> None:
    """Where there is no way, here by an address that nobody may connect to, it is that of the machine to itself."""
    nowhere = (socket.AF_INET, "255.255.255.255")
    assert machine_address([(socket.AF_INET, "127.0.0.9")]) == "127.0.0.1"
    assert machine_address([nowhere]) == "127.0.0.1"
    assert machine_address([nowhere, (socket.AF_INET6, "::1"), nowhere]) in ("::1", "127.0.0.1")  # without IPv6


@pytest.mark.parametrize(
    ("client", "server", "speaks"),
    [
        ("mirror", "mirror", False),
        ("require", "mirror", False),
        ("implicit", "implicit", False),
        ("implicit", "never", False),
        ("mirror", "upgrade", True),
        ("refuse", "require", True),
        ("implicit", "mirror", True),
    ],
)
def test_the_machine_is_asked_for_its_name_only_where_it_is_said(
    tmp_path: Path, client: str, server: str, speaks: bool
) -> None:
    """It may take seconds where DNS does not answer."""
    (listener,) = load(tmp_path, f'{TLS}client = "{client}"\nserver = "{server}"\n').listeners
    assert listener.posture().hello.decode() == (machine_hello() if speaks else Posture().hello.decode())


# -------------------------------------------------------------------------------------------------------- quarantine


def test_where_mails_are_kept_is_looked_at(site: Path) -> None:
    kept = LISTENER + '[quarantine]\ndirectory = "kept"\n'
    assert load(site, kept).quarantine.directory == str(site / "kept")
    (site / "kept").mkdir(0o700)
    load(site, kept)
    (site / "kept").rmdir()
    (site / "kept").touch()
    (found,) = mistakes(site, kept)
    assert found.endswith(f"quarantine.directory: quarantine {site}/kept: is not a directory")
    (found,) = mistakes(site, kept.replace('"kept"', '"no/kept"'))
    assert found.endswith(f"quarantine.directory: quarantine {site}/no/kept: there is no such directory")


def test_a_quarantine_that_others_can_read_is_told(site: Path) -> None:
    (site / "kept").mkdir()
    (site / "kept").chmod(0o755)
    config = load(site, LISTENER + '[quarantine]\ndirectory = "kept"\n')
    (found,) = exposed(config)
    assert found.severity == "warning"
    assert (found.message, found.expected) == (
        f"quarantine {site}/kept: is open to others (mode 0755)",
        f"`chmod 700 {site}/kept`",
    )

"""smtpproxy.toml: defaults, mistakes in their places, the command line in place of the file, and the example of it.

What is said about TLS is in test_config_tls.py.
"""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from smtpproxy.config import (
    TABLES,
    Config,
    ConfigError,
    Endpoint,
    Override,
    keys_of,
    load_config,
    parse_endpoint,
)
from smtpproxy.session.limits import LIMITS, PATIENCE, Limits, Patience

REPOSITORY = Path(__file__).resolve().parents[1]
LISTENER = '[[listener]]\nname = "in"\nlisten = "127.0.0.1:2525"\nserver = "mx.example"\n'
ANOTHER = LISTENER.replace('"in"', '"out"').replace("2525", "2526")


def load(tmp_path: Path, text: str, *overrides: Override) -> Config:
    file = tmp_path / "smtpproxy.toml"
    file.write_text(text)
    return load_config(file, overrides)


def mistakes(tmp_path: Path, text: str, *overrides: Override) -> list[str]:
    """The problems without the directory."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


# -------------------------------------------------------------------------------------------------------- defaults


def test_a_listener_is_all_that_has_to_be_said(tmp_path: Path) -> None:
    config = load(tmp_path, LISTENER)
    (listener,) = config.listeners
    assert (listener.name, listener.newlines) == ("in", "normalise")
    assert (listener.listen, listener.server) == (Endpoint("127.0.0.1", 2525), Endpoint("mx.example", 25))
    assert (config.rules, config.shipped_rules, config.rule_paths) == ((), True, ())
    assert (config.connections, config.connections_per_client) == (10_000, 100)
    assert (config.audit.file, config.log.level, config.log.format) == ("-", "info", "text")
    assert config.limits_table() == LIMITS
    assert config.patience_table() == PATIENCE


def test_every_number_of_a_session_is_a_setting(tmp_path: Path) -> None:
    limits = {number.name: index for index, number in enumerate(fields(Limits), 1)}
    patience = {number.name: index + 0.5 for index, number in enumerate(fields(Patience), 1)}
    text = LISTENER + "[limits]\nconnections = 7\nconnections_per_client = 3\n"
    text += "".join(f"{name} = {value}\n" for name, value in limits.items())
    text += "[patience]\n" + "".join(f"{name} = {value}\n" for name, value in patience.items())
    config = load(tmp_path, text)
    assert config.limits_table() == Limits(**limits)
    assert config.patience_table() == Patience(**patience)
    assert (config.connections, config.connections_per_client) == (7, 3)


def test_octets_may_be_written_as_sizes_and_seconds_as_whole_numbers(tmp_path: Path) -> None:
    config = load(tmp_path, LISTENER + '[limits]\nheader = "1 MiB"\n[patience]\nend = 5\n')
    assert config.limits_table().header == 1_048_576
    assert config.patience_table().end == 5.0


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    config = load(tmp_path, LISTENER)
    with pytest.raises(ValueError, match="frozen"):
        config.limits.connections = 5


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = 'rules = ["rules", "/etc/rules"]\n[audit]\nfile = "log/audit.jsonl"\n' + LISTENER
    config = load(tmp_path, text)
    assert config.rule_paths == (tmp_path / "rules", Path("/etc/rules"))
    assert config.audit.file == f"{tmp_path}/log/audit.jsonl"
    assert load(tmp_path, '[audit]\nfile = "-"\n' + LISTENER).audit.file == "-"


def test_a_set_of_shipped_rules_is_no_path(tmp_path: Path) -> None:
    config = load(tmp_path, 'rules = ["set:size", "site.toml"]\n' + LISTENER)
    assert config.rules == ("set:size", str(tmp_path / "site.toml"))


def test_a_path_is_told_without_the_way_back(tmp_path: Path) -> None:
    """What stands behind the last `..` stays as it is: links that are renewed (certificates) must not be followed once
    and for all. A link before it is followed, as the system does."""
    (tmp_path / "elsewhere" / "inside").mkdir(parents=True)
    (tmp_path / "live").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cfg").symlink_to(tmp_path / "elsewhere" / "inside")
    text = 'rules = ["cfg/../x", "elsewhere/inside/../../live/y", "live/z", "../.."]\n' + LISTENER
    real = tmp_path.resolve()
    assert load(tmp_path, text).rules == (
        f"{real}/elsewhere/x",
        f"{real}/live/y",
        f"{tmp_path}/live/z",
        str(real.parents[1]),
    )


def test_a_table_of_a_list_before_the_list(tmp_path: Path) -> None:
    (only,) = mistakes(tmp_path, '[listener.tls]\nclient = "offer"\n' + LISTENER)
    assert only.startswith("smtpproxy.toml:3:")
    assert only.endswith("(expected [[listener]] before its [listener.tls], which stands in line 1)")


# -------------------------------------------------------------------------------------------------------- mistakes

MANY = """\
rulez = ["x"]
[[listener]]
name = "in"
listen = "::1"
servr = "mx.example"
newlines = "normalize"
[limits]
recipients = 0
comand_line = 512
header = "25 Mb"
[log]
level = "loud"
"""


def test_all_mistakes_are_told_with_place_and_nearest_name(tmp_path: Path) -> None:
    assert mistakes(tmp_path, MANY) == [
        'smtpproxy.toml:1:1: unknown key "rulez" (nearest: rules)',
        (
            'smtpproxy.toml:2:1: listener 1 "in": server is missing (expected the server behind it;'
            ' or mode = "redirect" or "tproxy", which know where to go)'
        ),
        (
            'smtpproxy.toml:4:10: listener 1 "in": listen: "::1" is not host:port;'
            " an IPv6 address stands in brackets: [::1]"
            ' (expected e.g. "127.0.0.1:2525", "[::]:25" for all of IPv6, "localhost:0" for any free port)'
        ),
        'smtpproxy.toml:5:1: listener 1 "in": unknown key "servr" (nearest: server)',
        (
            'smtpproxy.toml:6:12: listener 1 "in": newlines: "normalize" is not one of its values'
            ' (expected "normalise" or "refuse"; nearest: normalise)'
        ),
        "smtpproxy.toml:8:14: limits.recipients: 0 is too small (expected more than 0)",
        'smtpproxy.toml:9:1: limits: unknown key "comand_line" (nearest: command_line, endless_line, auth_line)',
        (
            'smtpproxy.toml:10:10: limits.header: "25 Mb" is not a size'
            ' (expected a size, e.g. "25 MiB"; nearest: 25 MB, 25 MiB)'
        ),
        (
            'smtpproxy.toml:12:9: log.level: "loud" is not one of its values'
            ' (expected "debug" or "info" or "warning" or "error")'
        ),
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("x = ", "smtpproxy.toml:1:5: not TOML: Invalid value"),
        ("", "smtpproxy.toml: nothing to listen on (expected --listen and --server, or a [[listener]]"),
        ("listener = 5", "smtpproxy.toml:1:12: listener: 5 is not an array"),
        ("listener = [5]", "smtpproxy.toml:1:13: listener 1: 5 is not a table"),
        ("[listener]", "smtpproxy.toml:1:1: listener: a table is not an array"),
        (LISTENER + LISTENER, 'smtpproxy.toml:1:1: listener: two listeners are called "in"'),
        (LISTENER.replace('"in"', '"In 1"'), 'listener 1 "In 1": name: "In 1" is not a name'),
        (LISTENER.replace('"in"', "1"), "listener 1: name: 1 is not a string"),
        (LISTENER.replace('"mx.example"', '"mx.example:0"'), "server: a server is not at port 0"),
        (LISTENER.replace('"mx.example"', "25"), "server: 25 is not a string"),
        ('rules = "x"\n' + LISTENER, 'smtpproxy.toml:1:9: rules: "x" is not an array'),
        ('rules = ["x", 3]\n' + LISTENER, "smtpproxy.toml:1:15: rules 2: 3 is not a string"),
        ("shipped_rules = 1\n" + LISTENER, "shipped_rules: 1 is not true or false"),
        (LISTENER + "[limits]\nrecipients = true", "limits.recipients: true is not a whole number"),
        (LISTENER + "[limits]\nrecipients = 10.0", "limits.recipients: 10.0 is not a whole number"),
        (LISTENER + '[limits]\nrecipients = "1 kB"', 'limits.recipients: "1 kB" is not a whole number'),
        (LISTENER + "[limits]\nheader = 99999999999999999999", "limits.header: 99999999999999999999 is too large"),
        (LISTENER + "[limits]\nconnections = -1", "limits.connections: -1 is too small"),
        (LISTENER + "[patience]\nend = 0", "patience.end: 0 is too small (expected more than 0.0)"),
        (LISTENER + "[patience]\nend = inf", "patience.end: inf is not a finite number"),
        (LISTENER + '[patience]\nend = "5 min"', 'patience.end: "5 min" is not a number'),
        (LISTENER + "[audit]\nfile = 3", "audit.file: 3 is not a string"),
        (
            LISTENER + ANOTHER.replace("2526", "2525"),
            (
                'smtpproxy.toml:7:10: listener 2 "out": listen: listener "in" listens on 127.0.0.1:2525 already'
                " (expected an address or port of its own for each)"
            ),
        ),
        (LISTENER + ANOTHER.replace("127.0.0.1:2526", "0.0.0.0:2525"), 'listener "in" listens on 127.0.0.1:2525'),
        ("audit = 3\n" + LISTENER, "smtpproxy.toml:1:9: audit: 3 is not a table"),
        (LISTENER + "[patience]\nsmile = 1", 'unknown key "smile" (expected connect, greeting'),
    ],
)
def test_mistakes(tmp_path: Path, text: str, mistake: str) -> None:
    (only,) = mistakes(tmp_path, text)
    assert mistake in only


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        load_config(tmp_path / "x.toml")


# ------------------------------------------------------------------------------------------------ the command line


def test_no_file_is_needed() -> None:
    listeners = [{"name": "a", "listen": "localhost:0"}, {"name": "b", "listen": "[::1]:0"}]
    config = load_config(
        None,
        [
            Override(("listener",), listeners, "--listen"),
            Override(("listener", "*", "server"), "mx.example:26", "--server"),
            Override(("audit", "file"), "x.jsonl", "--audit"),
        ],
    )
    assert [str(listener.listen) for listener in config.listeners] == ["localhost:0", "[::1]:0"]
    assert {str(listener.server) for listener in config.listeners} == {"mx.example:26"}
    assert config.audit.file == "x.jsonl"
    assert load_config(None, listeners=False).listeners == ()


def test_options_take_the_place_of_the_file(tmp_path: Path) -> None:
    text = 'rules = ["a"]\n' + LISTENER + ANOTHER + '[log]\nlevel = "debug"\n'
    config = load(
        tmp_path,
        text,
        Override(("listener", "*", "server"), "other.example", "--server"),
        Override(("rules",), ["b"], "--rules"),
        Override(("log", "level"), "error", "--log-level"),
    )
    assert [str(listener.server) for listener in config.listeners] == ["other.example:25"] * 2
    assert config.rules == ("b",)
    assert config.log.level == "error"


def test_a_mistake_of_the_command_line_is_told_as_one(tmp_path: Path) -> None:
    listeners = [{"name": "a", "listen": "::1"}]
    assert mistakes(
        tmp_path,
        LISTENER + "[limits]\nrecipients = 0\n",
        Override(("listener",), listeners, "--listen"),
        Override(("log", "level"), "warn", "--log-level"),
    ) == [
        (
            'command line: --listen: "::1" is not host:port; an IPv6 address stands in brackets: [::1]'
            ' (expected e.g. "127.0.0.1:2525", "[::]:25" for all of IPv6, "localhost:0" for any free port)'
        ),
        (
            "command line: --listen: server is missing (expected the server behind it;"
            ' or mode = "redirect" or "tproxy", which know where to go)'
        ),
        (
            'command line: --log-level: "warn" is not one of its values'
            ' (expected "debug" or "info" or "warning" or "error"; nearest: warning)'
        ),
        "smtpproxy.toml:6:14: limits.recipients: 0 is too small (expected more than 0)",
    ]


def test_a_mistake_made_once_is_told_once() -> None:
    listeners = [{"name": name, "listen": "localhost:0"} for name in "ab"]
    overrides = [
        Override(("listener",), listeners, "--listen"),
        Override(("listener", "*", "server"), "mx:0", "--server"),
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert [problem.where for problem in caught.value.problems] == ["--server"]


def test_a_file_that_is_wrong_on_the_way_to_an_override_is_told(tmp_path: Path) -> None:
    (only,) = mistakes(tmp_path, "log = 3\n" + LISTENER, Override(("log", "level"), "info", "--log-level"))
    assert only == "smtpproxy.toml:1:7: log: 3 is not a table (expected [log])"


# ------------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    ("text", "host", "port", "back"),
    [
        ("mx.example:2525", "mx.example", 2525, "mx.example:2525"),
        ("mx.example", "mx.example", 25, "mx.example:25"),
        ("127.0.0.1:0", "127.0.0.1", 0, "127.0.0.1:0"),
        ("[::1]:25", "::1", 25, "[::1]:25"),
        ("[2001:db8::1]", "2001:db8::1", 25, "[2001:db8::1]:25"),
        ("mx_1.example.", "mx_1.example.", 25, "mx_1.example.:25"),
    ],
)
def test_endpoints(text: str, host: str, port: int, back: str) -> None:
    assert parse_endpoint(text) == Endpoint(host, port)
    assert str(parse_endpoint(text)) == back


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":25",
        "::1",
        "[]:25",
        "[127.0.0.1]:25",
        "[mx.example]:25",
        "a b:25",
        "mx.example:",
        "mx.example:x",
        "a:1:2",
        "mx.example:65536",
        "mx..example",
        "-mx",
        "*:25",
        "127.0.0.300:25",
        "1.2.3",
        "192.0.2.1.",
        "a" * 255,
        "münchen.example",
        "mx.example:٢٥",
    ],
)
def test_no_endpoints(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|names no host"):
        parse_endpoint(text)


# ----------------------------------------------------------------------------------------- what is said about it


def test_every_setting_says_what_it_means_and_why_its_default_is_what_it_is() -> None:
    tables = {path[0] for path in TABLES if path}
    for path, model in TABLES.items():
        for key, field in keys_of(model).items():
            if (*path, key) in TABLES and not field.description:
                continue
            assert field.description, key
            assert isinstance(field.json_schema_extra, dict), key
            assert field.json_schema_extra["why"], key
    assert set(keys_of(Config)) - {"rules", "shipped_rules"} == tables


def test_the_example_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (REPOSITORY / "deploy" / "smtpproxy.toml").read_text()
    plain = load(tmp_path, text)
    full = load(tmp_path, re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    assert full == plain
    whole = re.sub(r"^# ?(?=[a-z_]+ = |\[\[?[a-z.]+\]\]?$)", "", text, flags=re.MULTILINE)  # also what is no default
    whole = re.sub(r'^store = ""', 'store = "audit"', whole, flags=re.MULTILINE)  # sinks want one
    (tmp_path / "smtpproxy.toml").write_text(whole)
    everything = load_config(tmp_path / "smtpproxy.toml", look=lambda config: ())
    assert everything.listeners[0].tls.client_certificate
    assert everything.matches
    assert everything.audit.syslog
    assert everything.audit.otel
    for path, model in TABLES.items():
        for key in keys_of(model):
            header = re.escape(".".join((*path, key)))
            said = rf"^(?:# )?\[\[?{header}\]\]?$|^(?:# ?)?{key} = |[{{,] {key} = "  # a table, a line, in a line
            assert re.search(said, text, re.MULTILINE), key

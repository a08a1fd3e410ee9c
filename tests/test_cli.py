"""The command line: what it prints, where, and with which exit code; and that every --help teaches by example."""

import json
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result

from smtpproxy import __version__
from smtpproxy.cli import ANNOUNCE, CLIENT_TLS, MODES, SERVER_TLS, SOURCES, VERIFY, cli
from smtpproxy.config.inline import Announce, Mode, Source
from smtpproxy.config.tls import Verify
from smtpproxy.net.setup import Load, Setup
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.session.postures import ClientTLS, ServerTLS
from smtpproxy.tls.minting import likeness_of, self_signed

GOOD = '[[rule]]\nname = "no-dsn"\nwhy = "private"\nextension = "DSN"\nthen = "deny"\n'
BAD = GOOD.replace('"DSN"', '"DNS"')
LISTENER = '[[listener]]\nname = "in"\nlisten = "localhost:0"\nserver = "mx.example"\n'


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="smtpproxy")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    (tmp_path / "warn.toml").write_text(GOOD.replace('"DSN"', '"XEXCH50"'))
    (tmp_path / "smtpproxy.toml").write_text('rules = ["good.toml"]\n' + LISTENER)
    (tmp_path / "wrong.toml").write_text('rules = ["bad.toml"]\nrulez = 1\n' + LISTENER)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ help

COMMANDS = [
    *("serve", "check", "rules", "audit", "quarantine", "status", "nft", "doctor", "ca", "explain", "demo"),
    "completion",
]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_help_has_a_paragraph_and_examples(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    _, examples = result.stdout.split("  Examples:\n")
    assert f"    smtpproxy {' '.join(command)}" in examples
    assert run(*command, "-h").stdout == result.stdout


def test_every_command_is_known_here() -> None:
    assert sorted(cli.commands) == sorted(COMMANDS)


def test_the_examples_name_options_that_exist() -> None:
    for name in COMMANDS:
        text = run(name, "--help").stdout
        examples, options = text.split("Examples:")[1].split("Options:")
        if isinstance(command := cli.commands[name], click.Group):  # `ca`: its examples are of its own commands
            names = command.list_commands(click.Context(command))
            options += "".join(run(name, sub, "--help").stdout for sub in names)
        for option in re.findall(r"(?<!\S)--[a-z-]+", examples):
            assert option in options


def test_the_exit_codes_are_told() -> None:
    text = run("--help").stdout
    assert re.findall(r"^    (\d)  ", text, re.MULTILINE) == ["0", "1", "2", "3"]


def test_version() -> None:
    assert run("--version").stdout == f"smtpproxy, version {__version__}\n"


def test_usage_errors_end_with_2() -> None:
    assert run("serv").exit_code == run("check", "--nothing").exit_code == run("completion", "csh").exit_code == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smtpproxy.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'trio', 'pydantic', 'structlog', 'tree_sitter', 'smtpproxy.smtp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ----------------------------------------------------------------------------------------------------------- check


def test_check_says_ok(site: Path) -> None:
    shipped = len(load_rules([]).rules)
    assert run("check").stdout == f"ok: 0 listeners, {shipped} rules\n"
    assert run("check", "--rules", "good.toml").stdout == f"ok: 0 listeners, {shipped + 1} rules\n"
    result = run("check", "--config", "smtpproxy.toml")
    assert (result.exit_code, result.stdout) == (0, f"ok: 1 listener, {shipped + 1} rules\n")


def test_check_tells_problems_and_ends_with_2(site: Path) -> None:
    result = run("check", "--rules", "bad.toml")
    assert result.exit_code == 2
    assert result.stdout == (
        'bad.toml:4:13: rule 1 "no-dsn": extension: "DNS" is not a name that smtpproxy knows (nearest: DSN)\n'
        '  4 | extension = "DNS"\n'
        "    |             ^\n"
    )


def test_check_tells_the_problems_of_configuration_and_rules_together(site: Path) -> None:
    result = run("check", "--config", "wrong.toml", "--rules", "bad.toml")
    assert result.exit_code == 2
    assert re.findall(r"^\S+\.toml:\d+:\d+", result.stdout, re.MULTILINE) == ["wrong.toml:2:1", "bad.toml:4:13"]


def test_warnings_are_told_and_do_no_harm(site: Path) -> None:
    result = run("check", "--rules", "warn.toml")
    assert result.exit_code == 0
    assert "warn.toml:4:13: warning: " in result.stdout
    assert "\nok: " in result.stdout


def test_a_configuration_without_listener_is_wrong(site: Path) -> None:
    (site / "empty.toml").write_text("")
    result = run("check", "--config", "empty.toml")
    assert result.exit_code == 2
    assert "nothing to listen on" in result.stdout


def test_check_tells_what_is_not_there(site: Path) -> None:
    (site / "tls.toml").write_text(LISTENER + '[listener.tls]\ncertificates = [{ chain = "mx.pem" }]\n')
    result = run("check", "--config", "tls.toml")
    assert result.exit_code == 2
    assert result.stdout.startswith(
        'tls.toml:6:27: listener 1 "in": tls.certificates 1: chain: certificate chain mx.pem: no such file or directory'
        '\n  6 | certificates = [{ chain = "mx.pem" }]\n'
    )


def test_check_tells_json(site: Path) -> None:
    result = run("check", "--rules", "bad.toml", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (told["ok"], told["listeners"], told["rules"]) == (False, 0, 0)
    (problem,) = told["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == ("bad.toml", 4, 13)
    assert (problem["severity"], problem["nearest"]) == ("error", ["DSN"])
    assert json.loads(run("check", "--json").stdout)["ok"] is True


# --------------------------------------------------------------------------------------------------------- explain


def test_explain_tells_names() -> None:
    result = run("explain", "bdat", "552")
    assert result.exit_code == 0
    assert result.stdout.startswith("BDAT (verb)\n")
    assert "\n\n552 (reply code)\n" in result.stdout


def test_explain_lists_names() -> None:
    lines = run("explain", "--list").stdout.splitlines()
    assert "AUTH                 verb, keyword, MAIL parameter" in lines
    told = [json.loads(line) for line in run("explain", "--list", "--json").stdout.splitlines()]
    assert len(told) == len(lines)
    assert {"name": "BDAT", "is": "verb"} in told


def test_explain_tells_json_an_object_a_line() -> None:
    told = [json.loads(line) for line in run("explain", "AUTH", "BDAT", "--json").stdout.splitlines()]
    assert [one["name"] for one in told] == ["AUTH", "BDAT"]


def test_an_unknown_name_ends_with_2_and_the_nearest_names() -> None:
    result = run("explain", "bdta", "AUTH")
    assert result.exit_code == 2
    assert result.stdout.startswith("AUTH (verb)")
    assert result.stderr.startswith("smtpproxy: bdta: not a verb, keyword, parameter or reply code")
    assert "(nearest: DATA, BDAT)" in result.stderr


def test_explain_tells_what_rules_are_made_of() -> None:
    assert run("explain", "field", "rcpt.domain").stdout.startswith("rcpt.domain (field)\n")
    listed = run("explain", "act", "--json").stdout.splitlines()
    assert run("explain", "act", "--list", "--json").stdout.splitlines() == listed
    assert json.loads(listed[0])["name"] == "pass"
    assert json.loads(run("explain", "function", "rate", "--json").stdout)["name"] == "rate"
    result = run("explain", "subject", "RCPTT", "connect")
    assert result.exit_code == 2
    assert result.stdout.startswith("connect (subject)\n")
    assert "RCPTT: not a subject that smtpproxy knows (nearest: RCPT" in result.stderr
    assert run("explain", "field", "--list", "rcpt.domain").exit_code == 2


def test_explain_wants_a_name_or_list() -> None:
    assert run("explain").exit_code == run("explain", "--list", "BDAT").exit_code == 2


# ----------------------------------------------------------------------------------------------------------- serve


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `serve` gives the supervisor, which is not started."""
    given: dict[str, Any] = {}

    def not_run(setup: Setup, load: Load, argv: Sequence[str]) -> int:
        given.update(config=setup.config, load=load, judge=setup.judges[""])
        return 3

    monkeypatch.setattr("smtpproxy.net.workers.run", not_run)
    monkeypatch.setattr("smtpproxy.cli._set_up_log", lambda level, form: given.update(log=(level, form)))
    return given


def test_serve_gives_the_service_what_was_said(site: Path, service: dict[str, Any]) -> None:
    words = "serve --listen 127.0.0.1:0 --listen [::1]:0 --server mx.example:26 --rules good.toml --audit a.jsonl"
    result = run(*words.split(), "--newlines", "refuse", "--log-level", "debug")
    assert (result.exit_code, result.stderr) == (3, "")  # the service's own exit code
    assert "smtpproxy starts" in result.stdout  # where structlog writes when it was not set up
    config = service["config"]
    assert [(one.name, str(one.listen), str(one.server), one.newlines) for one in config.listeners] == [
        ("smtp-1", "127.0.0.1:0", "mx.example:26", "refuse"),
        ("smtp-2", "[::1]:0", "mx.example:26", "refuse"),
    ]
    assert (config.rules, config.shipped_rules, config.audit.file) == (("good.toml",), True, "a.jsonl")
    assert service["log"] == ("debug", "text")
    assert service["judge"].owner(b"DSN") == "no-dsn"
    assert service["judge"].owner(b"VRFY") == "answer-vrfy"


def test_serve_is_told_of_tls(site: Path, service: dict[str, Any]) -> None:
    assert run("ca", "init", "--directory", "ca").exit_code == 0
    for name in ("a.pem", "b.pem"):
        leaf = self_signed(likeness_of("mx.example", time.time()), time.time(), 30)
        (site / name).write_bytes(leaf.chain + leaf.key)
        (site / name).chmod(0o600)
    words = "serve --listen 127.0.0.1:0 --listen [::1]:0 --server mx.example --client-tls require --server-tls require"
    result = run(
        *words.split(), *["--verify", "dane", "--certificate", "a.pem", "--certificate", "b.pem", "--ca", "ca"]
    )
    assert (result.exit_code, result.stderr) == (
        3,
        "command line: warning: --ca: has no effect: every listener has certificates, or needs none\n",
    )
    config = service["config"]
    assert config.ca.directory == "ca"
    assert len(config.listeners) == 2
    for listener in config.listeners:
        assert listener.posture()[:2] == (ClientTLS.REQUIRE, ServerTLS.REQUIRE)
        assert listener.tls.verify == "dane"
        assert [(one.chain, one.key) for one in listener.tls.certificates] == [("a.pem", ""), ("b.pem", "")]


def test_serve_is_told_what_an_internal_server_must_show(site: Path, service: dict[str, Any]) -> None:
    leaf = self_signed(likeness_of("mx.example", time.time()), time.time(), 30)
    (site / "roots.pem").write_bytes(leaf.chain)
    words = "serve --listen 127.0.0.1:0 --server 192.0.2.1 --server-tls require --verify verify"
    result = run(*words.split(), "--server-name", "mail.example", "--roots", "roots.pem")
    assert (result.exit_code, result.stderr) == (3, "")
    (listener,) = service["config"].listeners
    assert (listener.server_name, listener.tls.roots) == ("mail.example", "roots.pem")
    result = run(*words.split(), "--server-name", "a b", "--roots", "none.pem")
    assert result.exit_code == 2
    assert 'command line: --server-name: "a b" is not a host' in result.stderr
    result = run(*words.split(), "--roots", "good.toml")
    assert result.exit_code == 2
    assert "command line: --roots: good.toml" in result.stderr


def test_serve_and_check_warn_of_the_same(site: Path, service: dict[str, Any]) -> None:
    """A setting without effect, and a rule that a setting makes the end of all mail: neither stops anything."""
    rule = GOOD.replace('"DSN"', '"STARTTLS"')
    (site / "no-tls.toml").write_text(rule)
    text = 'rules = ["no-tls.toml"]\n' + LISTENER + '[listener.tls]\nclient = "require"\npolicy_domain = "x.example"\n'
    (site / "idle.toml").write_text(text)
    checked = run("check", "--config", "idle.toml")
    assert checked.exit_code == 0
    assert 'idle.toml:8:17: warning: listener 1 "in": tls.policy_domain: has no effect' in checked.stdout
    assert 'no-tls.toml:1:1: warning: rule "no-dsn": refuses STARTTLS, and listener "in" has client' in checked.stdout
    told = json.loads(run("check", "--config", "idle.toml", "--json").stdout)
    assert told["ok"] is True
    assert [problem["severity"] for problem in told["problems"]] == ["warning"] * 2
    served = run("serve", "--config", "idle.toml")
    assert served.exit_code == 3
    assert service["config"]
    assert served.stderr == checked.stdout[: checked.stdout.index("ok: ")]


def test_serve_is_told_how_it_stands_in_line(site: Path, service: dict[str, Any]) -> None:
    words = "serve --listen 127.0.0.1:0 --listen [::1]:0 --mode tproxy --source own --announce xclient --workers 0"
    user = pwd.getpwuid(0).pw_name
    result = run(*words.split(), *["--proxy-from", "10.0.0.0/8", "--proxy-from", "::1", "--user", user])
    assert (result.exit_code, result.stderr) == (3, "")
    config = service["config"]
    assert (config.process.workers, config.process.user) == (0, user)
    assert len(config.listeners) == 2
    for listener in config.listeners:
        assert (listener.mode, listener.keeps_client, listener.announce) == ("tproxy", False, "xclient")
        assert (listener.server, [str(network) for network in listener.proxy_from]) == (None, ["10.0.0.0/8", "::1/128"])


def test_options_about_the_line_take_the_place_of_the_file(site: Path, service: dict[str, Any]) -> None:
    (site / "line.toml").write_text(LISTENER + 'mode = "redirect"\nsource = "client"\n[process]\nworkers = 7\n')
    assert run("serve", "--config", "line.toml").exit_code == 3
    assert (service["config"].listeners[0].mode, service["config"].worker_count) == ("redirect", 7)
    result = run("serve", "--config", "line.toml", "--mode", "forward", "--source", "own", "--workers", "2")
    assert result.exit_code == 3
    (listener,) = service["config"].listeners
    assert (listener.mode, listener.keeps_client, service["config"].worker_count) == ("forward", False, 2)


def test_mistakes_about_the_line_are_told_as_options(site: Path, service: dict[str, Any]) -> None:
    words = "serve --listen 127.0.0.1:0 --mode redirect --proxy-from 10.0.0.1/8 --workers -1 --user no-such-user"
    result = run(*words.split())
    assert result.exit_code == 2
    assert sorted(line.partition(" (")[0] for line in result.stderr.splitlines()) == [
        "command line: --proxy-from: 10.0.0.1/8 is no network; 10.0.0.0/8 is",
        "command line: --workers: -1 is too small",
    ]
    result = run("serve", "--config", "smtpproxy.toml", "--user", "no-such-user")
    assert (result.exit_code, result.stderr.partition(" (")[0]) == (
        2,
        'command line: --user: there is no user "no-such-user" here',
    )
    assert run("serve", "--listen", "127.0.0.1:0", "--mode", "transparent").exit_code == 2
    assert service == {}


def test_serve_knows_every_word_for_the_line() -> None:
    assert get_args(Mode) == MODES
    assert get_args(Source) == SOURCES
    assert get_args(Announce) == ANNOUNCE


def test_serve_knows_every_word_for_tls() -> None:
    assert [*CLIENT_TLS] == [posture.value for posture in ClientTLS]
    assert [*SERVER_TLS] == [posture.value for posture in ServerTLS]
    assert get_args(Verify) == VERIFY


def test_what_does_not_go_together_or_is_not_there_is_told_before_serving(site: Path, service: dict[str, Any]) -> None:
    result = run("serve", "--config", "smtpproxy.toml", "--client-tls", "passthrough", "--verify", "verify")
    assert result.exit_code == 2
    assert 'command line: --verify: verify = "verify" does not go with client = "passthrough"' in result.stderr
    result = run("serve", "--config", "smtpproxy.toml", "--certificate", "a.pem", "--ca", "ca")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "command line: --certificate: certificate chain a.pem: no such file or directory",
        (
            "command line: --ca: directory of the CA ca: no such file or directory"
            " (expected what `smtpproxy ca init --directory ca` makes)"
        ),
    ]
    assert service == {}


def test_serve_obeys_the_file(site: Path, service: dict[str, Any]) -> None:
    assert run("serve", "--config", "smtpproxy.toml", "--no-shipped-rules").exit_code == 3
    assert [one.name for one in service["config"].listeners] == ["in"]
    judge = service["judge"]
    assert judge.owner(b"DSN") == "no-dsn"
    assert judge.owner(b"VRFY") == ""


def test_the_number_of_recipients_is_told_to_clients(site: Path, service: dict[str, Any]) -> None:
    (site / "smtpproxy.toml").write_text(LISTENER + "[limits]\nrecipients = 7\n")
    run("serve", "--config", "smtpproxy.toml")
    assert service["judge"]._base._recipients == 7


def test_serve_tells_every_problem_and_ends_with_2(site: Path, service: dict[str, Any]) -> None:
    result = run("serve", "--listen", "::1", "--rules", "bad.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert '--listen: "::1" is not host:port' in result.stderr
    assert "--listen: server is missing" in result.stderr
    assert "bad.toml:4:13: " in result.stderr
    result = run("serve", "--config", "smtpproxy.toml", "--rules", "bad.toml")
    assert result.exit_code == 2
    assert "nearest: DSN" in result.stderr
    assert run("serve").exit_code == run("serve", "--config", "none.toml").exit_code == 2
    assert service == {}


def test_a_warning_does_not_keep_it_from_serving(site: Path, service: dict[str, Any]) -> None:
    result = run("serve", "--config", "smtpproxy.toml", "--rules", "warn.toml")
    assert result.exit_code == 3
    assert result.stderr.startswith("warn.toml:4:13: warning: ")


def test_all_is_read_again_and_what_is_wrong_is_none(
    site: Path, service: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command line says holds over the file each time."""
    assert run("serve", "--config", "smtpproxy.toml", "--workers", "2").exit_code == 3
    load: Load = service["load"]
    (site / "good.toml").write_text(BAD)
    assert load() is None
    assert "good.toml:4:13: " in capsys.readouterr().err
    (site / "good.toml").write_text(GOOD.replace("no-dsn", "again"))
    (site / "smtpproxy.toml").write_text('rules = ["good.toml"]\n' + LISTENER + "[process]\nworkers = 5\nuser = 3\n")
    assert load() is None
    assert "smtpproxy.toml:8:8: process.user: 3 is not a string" in capsys.readouterr().err
    (site / "smtpproxy.toml").write_text(
        'rules = ["good.toml"]\n' + LISTENER.replace('"in"', '"new"') + "[process]\nworkers = 5\n"
    )
    again = load()
    assert again is not None
    assert (again.config.listeners[0].name, again.config.worker_count) == ("new", 2)
    judge = again.judges[""]
    assert isinstance(judge, Judge)
    assert judge.owner(b"DSN") == "again"
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------- the log, demo, completion


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_goes_to_standard_error(form: str) -> None:
    code = (
        "import structlog\nfrom smtpproxy.cli import _set_up_log\n"
        f"_set_up_log('warning', {form!r})\nlog = structlog.get_logger()\n"
        "log.info('quiet')\n"
        "try: 1 / 0\nexcept ZeroDivisionError as error: log.error('a session failed', session='x', exc_info=error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == ""
    assert "quiet" not in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "\x1b" not in result.stderr
    if form == "json":
        line = json.loads(result.stderr)
        assert (line["event"], line["level"], line["session"]) == ("a session failed", "error", "x")


def test_demo_is_given_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def run_demo(*, keep: bool) -> int:
            return 5 if keep else 0

    monkeypatch.setitem(sys.modules, "smtpproxy.demo", Module)
    assert run("demo").exit_code == 0
    assert run("demo", "--keep").exit_code == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_SMTPPROXY_COMPLETE" in result.stdout


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"_SMTPPROXY_COMPLETE": "bash_complete", "COMP_WORDS": "smtpproxy explain xex", "COMP_CWORD": "2"}
    result = CliRunner().invoke(cli, [], prog_name="smtpproxy", env=environment)
    assert "plain,XEXCH50" in result.stdout

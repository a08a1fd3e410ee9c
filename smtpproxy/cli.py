"""The command line: `smtpproxy serve`, `check`, `status` and all that `smtpproxy --help` lists.

This is where the floors are wired together, and nothing else happens here: a command reads its options, calls what
does the work, prints, and ends with one of the exit codes below. What is heavy to import is imported by the command
that needs it, so that `--help` and completion answer at once.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from smtpproxy import __version__
from smtpproxy.audit_cli import audit as audit_group
from smtpproxy.ca_cli import ca as ca_group
from smtpproxy.explain_cli import explain
from smtpproxy.gateway_cli import doctor, nft
from smtpproxy.quarantine_cli import quarantine
from smtpproxy.rules_cli import rules as rules_group
from smtpproxy.status_cli import status

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from smtpproxy.net.setup import Setup
    from smtpproxy.policy.toml import Problem

# As in session.postures, config.tls and config.inline, which are not imported to say --help; a test compares them.
CLIENT_TLS = ("mirror", "offer", "require", "implicit", "refuse", "passthrough")
SERVER_TLS = ("mirror", "upgrade", "require", "implicit", "never")
VERIFY = ("record", "verify", "dane", "mta-sts")
MODES = ("forward", "redirect", "tproxy")
SOURCES = ("own", "client")
ANNOUNCE = ("none", "proxy-v1", "proxy-v2", "xclient", "xforward")

WRONG = 2  # configuration, rules or usage

_EXIT_CODES = """\
\b
Exit codes:
  0  ended in order
  1  something failed while running, or a second Ctrl-C stopped it at once
  2  the configuration, the rules or the command line is wrong
  3  a listener, the audit file or the control socket could not be opened
"""


@click.group(
    commands=[audit_group, ca_group, nft, doctor, quarantine, rules_group, status, explain],
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="smtpproxy")
def cli() -> None:
    """A transparent SMTP inspecting proxy.

    It stands between SMTP clients and a server, understands every octet of both directions, decides by rules what may
    pass, and keeps a record of everything that was asked, sent, got and told.

    \b
    Examples:
      smtpproxy demo
      smtpproxy serve --listen 127.0.0.1:2525 --server mx.example:25
      smtpproxy check --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy explain BDAT
    """


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration (smtpproxy.toml).")
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT",
    help="Where clients connect, in place of the file's listeners; port 0 is any free one. May be repeated.",
)
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="The server behind every listener. Without a port it is 25. With --mode redirect or tproxy it need not be"
    " said: each connection goes where its client was going.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="How clients come here: forward, it is the server they know; redirect, by the gateway's NAT; tproxy, by being"
    " on the way, and no address changes. `smtpproxy nft` prints what the gateway needs.",
)
@click.option(
    "--source",
    type=click.Choice(SOURCES),
    help="The address the server sees: this machine's own, or the client's. It is the client's with --mode tproxy.",
)
@click.option(
    "--announce",
    type=click.Choice(ANNOUNCE),
    help="How the server is told of the client: by a PROXY header, which it must expect, or by XCLIENT or XFORWARD"
    " where it offers them.",
)
@click.option(
    "--proxy-from",
    multiple=True,
    metavar="NET",
    help="A network of load balancers: they say by a PROXY header who the client is, and nobody else is served. May be"
    " repeated.",
)
@click.option(
    "--rules",
    multiple=True,
    metavar="PATH",
    help="A rule file or a directory of them, in place of the file's. May be repeated.",
)
@click.option("--no-shipped-rules", is_flag=True, help="Without the rules that come with smtpproxy.")
@click.option("--audit", metavar="FILE", help="Where the record goes; - is standard output.")
@click.option("--store", metavar="DIR", help="Where it is kept to be searched, shown and proved (smtpproxy audit).")
@click.option(
    "--newlines", type=click.Choice(["normalise", "refuse"]), help="What is done with CR or LF alone in content."
)
@click.option(
    "--client-tls",
    type=click.Choice(CLIENT_TLS),
    help="The client's link: mirror offers STARTTLS where the server's link can be encrypted; offer always; require"
    " answers 530 before it; implicit is TLS from the first octet; refuse is none; passthrough sees none of it.",
)
@click.option(
    "--server-tls",
    type=click.Choice(SERVER_TLS),
    help="The server's link: mirror is encrypted when the client's is; upgrade before the greeting, where the server"
    " can; require the same, or no session; implicit from the first octet; never ends the client's TLS here.",
)
@click.option(
    "--verify",
    type=click.Choice(VERIFY),
    help="The server's certificate: record takes any and says what would fail; verify asks for chain and name; dane for"
    " TLSA records; mta-sts for the policy of the file's policy_domain.",
)
@click.option(
    "--server-name",
    metavar="NAME",
    help="What the server's certificate must be for, and what it is asked for by SNI; say it where --server is an"
    " address.",
)
@click.option(
    "--roots",
    metavar="FILE",
    help="A PEM file of the CAs that may vouch for the server, in place of the system's: for a CA of your own.",
)
@click.option(
    "--certificate",
    multiple=True,
    metavar="FILE",
    help="What clients are shown: certificate chain and key in one PEM file. May be repeated: SNI chooses, the first"
    " is for all others. Without any, and without --ca, one like the server's own is self-signed.",
)
@click.option(
    "--ca",
    metavar="DIRECTORY",
    help="The CA, as `smtpproxy ca init` makes it, that signs certificates like those of servers that were verified.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="The least the proxy says of itself."
)
@click.option("--workers", type=int, metavar="N", help="Processes that serve; 0: as many as there are CPUs for them.")
@click.option(
    "--user", metavar="NAME", help="Who they become once the listeners are open, where it is started as root."
)
def serve(
    config: Path | None,
    listen: Sequence[str],
    server: str | None,
    mode: str | None,
    source: str | None,
    announce: str | None,
    proxy_from: Sequence[str],
    rules: Sequence[str],
    no_shipped_rules: bool,
    audit: str | None,
    store: str | None,
    newlines: str | None,
    client_tls: str | None,
    server_tls: str | None,
    verify: str | None,
    server_name: str | None,
    roots: str | None,
    certificate: Sequence[str],
    ca: str | None,
    log_level: str | None,
    workers: int | None,
    user: str | None,
) -> None:
    """Run the proxy until it is told to stop.

    Options take the place of what the configuration file says. With --listen, and --server or --mode, no file is
    needed. Where it listens is said on standard error, one line each; before that, what `smtpproxy check` would tell: a
    warning keeps nothing from starting.

    \b
    SIGTERM, Ctrl-C  what is in flight is finished, then it ends; a second one stops it at once
    SIGHUP           configuration, rules and certificates are read again, for new sessions; if anything in them is
                     wrong, what is in force stays
    SIGUSR2          the program is started anew (another version, perhaps) and takes over; no session is cut

    TLS ends here and begins anew: unless something else is said, STARTTLS is offered where the server has it, both
    links are encrypted or none, and what fails is refused, never sent in clear. The listener's tls table in the file
    has more than these options.

    \b
    Examples:
      smtpproxy serve --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy serve --listen 127.0.0.1:2525 --server mx.example:25
      smtpproxy serve --listen 0.0.0.0:25 --listen '[::]:25' --server 192.0.2.1 \\
                      --rules /etc/smtpproxy/rules --audit /var/log/smtpproxy.jsonl
      smtpproxy serve --listen '[::]:587' --server mx.example:587 --certificate /etc/smtpproxy/mx.pem \\
                      --client-tls require --server-tls require --verify verify
      smtpproxy serve --listen 127.0.0.1:2525 --server 192.0.2.1 --server-tls require --verify verify \\
                      --server-name mail.internal.example --roots /etc/smtpproxy/internal-ca.pem
      smtpproxy serve --listen 0.0.0.0:465 --server mx.example --client-tls implicit --ca /etc/smtpproxy/ca
      smtpproxy serve --listen '[::]:2525' --listen 0.0.0.0:2525 --mode tproxy --user smtpproxy
      smtpproxy serve --listen 0.0.0.0:25 --server mx.example --proxy-from 10.0.0.0/24 --announce proxy-v2
    """
    from smtpproxy.config import Override
    from smtpproxy.net.reading import read
    from smtpproxy.policy.rates import Counters

    listeners = [{"name": f"smtp-{number}", "listen": where} for number, where in enumerate(listen, 1)]
    options = [
        (("listener",), listeners, "--listen"),
        (("listener", "*", "server"), server, "--server"),
        (("listener", "*", "mode"), mode, "--mode"),
        (("listener", "*", "source"), source, "--source"),
        (("listener", "*", "announce"), announce, "--announce"),
        (("listener", "*", "proxy_from"), list(proxy_from), "--proxy-from"),
        (("listener", "*", "newlines"), newlines, "--newlines"),
        (("rules",), list(rules), "--rules"),
        (("shipped_rules",), False if no_shipped_rules else None, "--no-shipped-rules"),
        (("audit", "file"), audit, "--audit"),
        (("audit", "store"), store, "--store"),
        (("listener", "*", "tls", "client"), client_tls, "--client-tls"),
        (("listener", "*", "tls", "server"), server_tls, "--server-tls"),
        (("listener", "*", "tls", "verify"), verify, "--verify"),
        (("listener", "*", "tls", "server_name"), server_name, "--server-name"),
        (("listener", "*", "tls", "roots"), roots, "--roots"),
        (("listener", "*", "tls", "certificates"), [{"chain": file} for file in certificate], "--certificate"),
        (("ca", "directory"), ca, "--ca"),
        (("log", "level"), log_level, "--log-level"),
        (("process", "workers"), workers, "--workers"),
        (("process", "user"), user, "--user"),
    ]
    given = [Override(*option) for option in options if option[1] not in (None, [])]

    counters = Counters()  # of all workers there will be: a reload forgets nothing that was counted

    def load() -> "Setup | None":
        found = read(config, given, rules=_paths(rules), shipped=not no_shipped_rules, counters=counters)
        _complain(found.problems)
        if found.setup is not None:
            _set_up_log(found.setup.config.log.level, found.setup.config.log.format)
        return found.setup

    setup = load()
    if setup is None:
        sys.exit(WRONG)
    import structlog

    from smtpproxy.net.workers import run

    log = structlog.get_logger()
    facts = {"pid": os.getpid(), "config": str(config or ""), "workers": setup.config.worker_count}
    log.info("smtpproxy starts", version=__version__, **facts)
    _look_at_gateway(setup, log)
    code = run(setup, load, _same_again())
    if code not in (2, 3):  # else it has said why it never began
        log.info("smtpproxy has ended", pid=os.getpid(), code=code)
    sys.exit(code)


@cli.command(short_help="Tell everything that is wrong with configuration and rules.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration (smtpproxy.toml).")
@click.option("--rules", multiple=True, metavar="PATH", help="Rules in place of the configuration's. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def check(config: Path | None, rules: Sequence[str], as_json: bool) -> None:
    """Tell everything that is wrong with the configuration and the rules.

    Nobody is asked and nothing is listened on. The files that are named are read, but for the key of the CA, which only
    the signing process opens: whether the passphrase fits is seen by `serve`. Each problem says file, line and column,
    what was expected and what was perhaps meant. An error ends it with 2; a warning, for what is valid and hardly
    meant (a setting without effect, a certificate that ends within 14 days), does not.

    \b
    Examples:
      smtpproxy check --config /etc/smtpproxy/smtpproxy.toml
      smtpproxy check --rules rules/site.toml
      smtpproxy check --config smtpproxy.toml --json | jq .problems
    """
    from smtpproxy.config import Override
    from smtpproxy.net.reading import read

    given = [Override(("rules",), list(rules), "--rules")] if rules else []
    found = read(config, given, rules=_paths(rules), listeners=config is not None)
    problems = found.problems
    ok = not any(problem.severity == "error" for problem in problems)
    listeners = len(found.config.listeners) if found.config is not None else 0
    if as_json:
        said = {"ok": ok, "listeners": listeners, "rules": found.rules}
        click.echo(json.dumps({**said, "problems": [problem.as_json() for problem in problems]}))
    else:
        for problem in problems:
            click.echo(problem.show())
        if ok:
            click.echo(f"ok: {_count(listeners, 'listener')}, {_count(found.rules, 'rule')}")
    sys.exit(0 if ok else WRONG)


@cli.command()
@click.option("--keep", is_flag=True, help="Keep the proxy and its server running afterwards, to try it by hand.")
def demo(keep: bool) -> None:
    """See the proxy at work, with a server and a client of its own.

    Needs no configuration, no network and no privileges: everything happens on 127.0.0.1 and is cleaned up but for the
    audit file, whose path is printed.

    \b
    Examples:
      smtpproxy demo
      smtpproxy demo --keep
    """
    _set_up_log("warning", "text")
    run_demo: Callable[..., int | None] = importlib.import_module("smtpproxy.demo").run_demo
    sys.exit(run_demo(keep=keep))


@cli.command(short_help="Print the script for completion in bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete smtpproxy's commands, options and names.

    \b
    Examples:
      smtpproxy completion bash > ~/.local/share/bash-completion/completions/smtpproxy
      smtpproxy completion zsh > "${fpath[1]}/_smtpproxy"
      smtpproxy completion fish > ~/.config/fish/completions/smtpproxy.fish
    """
    script = get_completion_class(shell)
    if script is None:  # click was built without it
        raise click.UsageError(f"no completion for {shell}")
    click.echo(script(cli, {}, "smtpproxy", "_SMTPPROXY_COMPLETE").source())


def main() -> None:
    """The `smtpproxy` command."""
    cli(prog_name="smtpproxy")


def _look_at_gateway(setup: "Setup", log: "BoundLogger") -> None:
    """What can be told in no time of what the gateway lacks; nothing of it keeps the proxy from starting."""
    from smtpproxy.gateway.doctor import look

    for finding in look(setup.config):
        tell = log.error if finding.severity == "error" else log.warning
        tell(finding.what, check=finding.check, mend=finding.mend)


def _same_again() -> list[str]:
    """What starts the program as this one was started. The script by its own name: what stands there by then may be
    another version's, with another interpreter in its first line."""
    program = Path(sys.argv[0])
    if os.access(program, os.X_OK):
        return [str(program.absolute()), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


def _paths(rules: Iterable[str]) -> list[Path]:
    return [Path(rule) for rule in rules]


def _complain(problems: Iterable["Problem"]) -> None:
    for problem in problems:
        click.echo(problem.show(), err=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _set_up_log(level: str, form: str) -> None:
    """The operational log: standard error, for people or for programs."""
    import structlog

    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )

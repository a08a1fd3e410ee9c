"""`smtpproxy demo`: a server, the proxy and a client in one process, and what crosses the wires between them.

The proxy is the real one (Service, Listener, Reactor, the shipped rules) on real sockets on 127.0.0.1, at ports the
kernel picks. What is shown in the three columns is what was recorded at three places: the client's socket, the audit
file, the server's socket. The script (script.py) checks that it is what it teaches; if not, the demo says so and ends
with 1.

The files: `wire` what crossed the wires · `server` the mail server · `script` the acts · `tell` what became of each
line, and why · `show` columns and colours · `live` the user's own clients, with --keep.
"""

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import trio

from smtpproxy.config import Config
from smtpproxy.demo import script
from smtpproxy.demo.live import Live
from smtpproxy.demo.server import NAME, Server
from smtpproxy.demo.show import NARROW, Screen
from smtpproxy.demo.tell import Teller
from smtpproxy.demo.wire import Seen, Tail, Talk
from smtpproxy.net.origin import open_sockets
from smtpproxy.net.service import Outfit, Service
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tally
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.tls.minting import likeness_of, self_signed

RULES = Path(__file__).with_name("rules.toml")
_SIGNS = "─━│┼┌└▶◀→←✂✗✎◆✓⚠␊␍…·⇄"
_PLAIN = "-=|+||><><%x*=+!^^.:~"  # where the terminal has no others
GRACE = 2.0  # seconds for what is in flight when the demo ends


class Stage:
    """What the acts have at hand."""

    def __init__(self, screen: Screen, server: Server, teller: Teller, record: Tail, port: int) -> None:
        self.screen = screen
        self.server = server
        self.teller = teller
        self.record = record
        self.port = port  # of the proxy
        self._talk: Talk | None = None  # the latest
        self._talks: dict[str, Talk] = {}  # by session
        self._acts = 0

    def prologue(self) -> None:
        """What is to be seen, and how to read it."""
        self.screen.sentence(
            "A client, the proxy and a mail server, in one process and on real sockets. What you see is what crossed "
            "the wires: recorded at the client's socket, in the proxy's audit file and at the server's socket."
        )
        self.screen.sentence(
            "✂ stripped   ✗ refused   ✎ rewritten   ◆ answered here   ⇄ TLS   ✓ kept   ─▶ as it came", "dim"
        )

    def act(self, title: str, sentence: str = "", *, head: bool = True) -> None:
        """The next act."""
        self._acts += 1
        self.screen.title(f"{self._acts} · {title}")
        if sentence:
            self.screen.sentence(sentence, "dim")
        if head:
            self.screen.line()
            self.screen.head(script.ME, NAME)

    def follow(self, client: Seen) -> Talk:
        """The conversation of this client, who connected last; all records of those before have been read."""
        self._talk = Talk(client, self.server.conversations[-1].turns)
        return self._talk

    def read_record(self) -> None:
        """Take what is new on record. It is there before its effect is (the proxy writes it first)."""
        for record in self.record.records():
            if self._talk is not None:
                self._talks.setdefault(record["session"], self._talk).record(record)

    def show(self, talk: Talk, *, fold: bool = True, silent: bool = False) -> None:
        """Show what has been said since the last time, having checked that the record agrees with the wires.

        `silent`: only check and count it; it has been seen before.

        Raises:
            NotAsTaughtError: it doesn't.
        """
        self.read_record()
        rows = talk.take(all_of_it=True)
        script.expect(bool(rows), "there is something on record")
        for row in rows:
            wrong = row.disagreement()
            script.expect(not wrong, f"the record agrees with the wires: {wrong}")
        strips = list(self.teller.tell(rows, fold=fold))
        if not silent:
            self.screen.strips(strips)

    def delivered(self, talk: Talk, count: int, sha256: str = "") -> None:
        """The server has so many mails by now, and the record the digest of the last.

        Raises:
            NotAsTaughtError: not so.
        """
        commits = [record for row in talk.rows for record in row.after if record["kind"] == "tx-commit"]
        mails = self.server.conversations[0].mails
        script.expect(
            len(mails) == count == len(commits), f"{count} mails: {len(mails)} kept, {len(commits)} on record"
        )
        if sha256:
            script.expect(commits[-1]["sha256"] == sha256, "the record has the digest of what was sent")

    def summary(self, path: Path) -> None:
        """What it came to."""
        screen, done = self.screen, self.teller.done
        screen.title("What happened")
        width = max(map(len, done)) + 2
        sent, direct = (len(conversation.mails) for conversation in self.server.conversations[:2])
        facts = {
            "commands": f"{self.teller.counts['commands']}; the record agrees with both wires on every one",
            **{kind: ", ".join(dict.fromkeys(what)) for kind, what in done.items()},
            "mails": f"{sent} sent through the proxy, {sent} at the server; 1 sent without it, {direct} at the server",
            "audit": f"{path} ({len(self.record.lines)} lines), two of them:",
        }
        for kind, what in facts.items():
            screen.sentence(what, "", f" {kind:<{width}}", " " * (width + 1))
        lines = [line for line in self.record.lines if '"EXPN' in line][:1]
        lines += [line for line in self.record.lines if '"tx-commit"' in line][-1:]
        for line in lines:
            for at in range(0, len(line), screen.width - 4):
                screen.line("  " + line[at : at + screen.width - 4], "dim")


def run_demo(*, keep: bool = False, colour: bool | None = None) -> int:
    """Run the demo; the exit code.

    Args:
        keep: go on afterwards with the user's own clients, until SIGINT or SIGTERM.
        colour: None is where standard output is a terminal and NO_COLOR is not set.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the rest of what a terminal doesn't know
    screen = Screen(_write, shutil.get_terminal_size((NARROW, 24)).columns, colour=colour)
    code = 0
    try:
        trio.run(_main, screen, keep)
    except* script.NotAsTaughtError as wrong:
        for error in _leaves(wrong):
            print(f"smtpproxy demo: what happened is not what it teaches: {error}", file=sys.stderr)
        code = 1
    except* trio.TooSlowError:
        print("smtpproxy demo: nobody answered in time", file=sys.stderr)
        code = 1
    except* BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except* KeyboardInterrupt:
        code = 130
    return code


def _write(words: str) -> None:
    try:
        _SIGNS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        words = words.translate(str.maketrans(_SIGNS, _PLAIN))
    sys.stdout.write(words)
    sys.stdout.flush()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]


async def _main(screen: Screen, keep: bool) -> None:
    descriptor, name = tempfile.mkstemp(prefix="smtpproxy-demo-", suffix=".jsonl")
    record = Tail(Path(name))
    try:
        async with trio.open_nursery() as nursery:
            server = Server()
            await nursery.start(server.run)
            service, judge = await _open(server.port, name, descriptor)
            port = int(service.listeners[0].address.rpartition(":")[2])
            stage = Stage(screen, server, Teller(judge), record, port)
            ended = trio.Event()
            nursery.start_soon(_serve, service, ended)
            stage.prologue()
            await script.play(stage)
            stage.summary(Path(name))
            if keep:
                await Live(screen, server, stage.teller, record, port).run(lambda: _stop(service, ended))
            else:
                screen.line()
                screen.sentence("Try it with a client of your own: smtpproxy demo --keep", "ok")
                await _stop(service, ended)
            nursery.cancel_scope.cancel()
    finally:
        record.close()
        os.close(descriptor)


async def _open(server: int, audit: str, descriptor: int) -> tuple[Service, Judge]:
    """The proxy, as `smtpproxy serve` makes it."""
    # Whom this machine trusts and what it is called must not matter: one stranger is trusted, and the name is given.
    now = time.time()
    with tempfile.NamedTemporaryFile(prefix="smtpproxy-demo-", suffix=".pem") as roots:
        roots.write(self_signed(likeness_of("ca.example", now), now, days=1).chain)
        roots.flush()
        tls = {"server_name": NAME, "hello": "proxy.demo.example", "roots": roots.name}
        listener = {"name": "demo", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{server}", "tls": tls}
        config = Config.model_validate({"listener": [listener], "rules": [str(RULES)], "audit": {"file": audit}})
        loaded = load_rules(config.rule_paths, shipped=config.shipped_rules)
        script.expect(loaded.ok, f"the rules are right: {loaded.problems}")
        judge = Judge(loaded.rules, recipients=config.limits_table().recipients)
        sockets = [open_sockets(entry) for entry in config.listeners]
        service = Service(Outfit(Setup(config, {"": judge}), sockets, descriptor, Tally.alone()))
        await service.prepare()
        service.accept()
    return service, judge


async def _serve(service: Service, ended: trio.Event) -> None:
    await service.run()
    ended.set()


async def _stop(service: Service, ended: trio.Event) -> None:
    """End the proxy in order."""
    service.drain()
    await service.stop(grace=GRACE)
    with trio.move_on_after(GRACE):
        await ended.wait()

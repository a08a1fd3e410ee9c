"""What rules cost, and how fast a replay is: `python bench/rules.py`.

Conversations are fed to a session as the driver would feed them (profile_core.py), under rule sets that are made here:
rules that look and don't decide, because those are what every recipient pays for. What a recipient pays is what a mail
of 200 recipients costs more than the same mail with no rules, taken in the same round. Loading is reading, checking and
compiling the files; a replay reads an audit as `smtpproxy rules replay` does.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's, not one that is installed

from profile_core import CLOSE, OPEN, Turn

from smtpproxy.audit.appending import Appender
from smtpproxy.audit.log import AuditLog
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.proving.history import Audit
from smtpproxy.proving.rehearsed import Rehearsed
from smtpproxy.proving.replay import Replay
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Peer
from smtpproxy.smtp.errors import Side

RECIPIENTS = 200  # of the mail whose recipients are counted
DAY = 86_400.0
NOOPS = [(True, b"NOOP\r\n"), (False, b"250 Ok\r\n")] * RECIPIENTS


def envelope(recipients: int, number: int = 0) -> list[Turn]:
    """A mail to so many, by DATA."""
    turns: list[Turn] = [(True, b"MAIL FROM:<a%d@bench.example>\r\n" % number), (False, b"250 2.1.0 Ok\r\n")]
    for one in range(recipients):
        turns += [(True, b"RCPT TO:<b%d@y%d.example>\r\n" % (one, one)), (False, b"250 2.1.5 Ok\r\n")]
    turns += [(True, b"DATA\r\n"), (False, b"354 Go\r\n"), (True, b"Subject: test\r\n\r\ntext\r\n.\r\n")]
    return [*turns, (False, b"250 2.0.0 Ok\r\n")]


def converse(turns: list[Turn], judge: Judge, record: Callable[[AuditRecord], None], client: str, at: float) -> None:
    """One conversation."""
    host = client.rpartition(":")[0]
    session = Session(
        judge=judge,
        record=record,
        clock=lambda: at,
        client=Peer(Side.CLIENT, client),
        facts=Facts("mx", "", host, 4025, "mx.example", 25, lambda: at),
    )
    for from_client, octets in turns:
        (session.client_sent if from_client else session.server_sent)(octets)
        session.to_client.clear()
        session.to_server.clear()
        session.effects.clear()
    if not session.closed:
        raise RuntimeError("the conversation did not come to its end")


def rules(count: int, on: str, when: Callable[[int], str]) -> str:
    """So many rules, as a file."""
    made = [
        f'[[rule]]\nname = "rule-{n}"\nwhy = "bench"\non = "{on}"\nwhen = \'{when(n)}\'\n'
        'then = { answer = "550 5.7.1 No" }\n'
        for n in range(count)
    ]
    return "\n".join(made)


def simple(number: int) -> str:
    """What rules ask most often, in turns; nothing of it holds here."""
    asked = (
        f'rcpt.domain == "other{number}.example"',
        f'mail.domain == "spam{number}.example" && !client.tls',
        f'client.hello.endsWith(".dyn{number}.example")',
        f'in_network(client.address, "10.{number % 256}.0.0/16")',
        f'rcpt.local.startsWith("noreply{number}") && mail.null',
    )
    return asked[number % len(asked)]


def listed(number: int) -> str:
    """Domains, addresses and networks in lists of 100,000 entries."""
    return (
        'in_list("domains", rcpt.domain)',
        'in_list("addresses", rcpt.address)',
        'in_list("networks", client.address)',
        f'in_list("domains", mail.domain) && rcpt.local != "x{number}"',
    )[number % 4]


def write_lists(folder: Path, entries: int) -> str:
    """Three lists of so many entries, and the tables that name them."""
    (folder / "domains.txt").write_text("".join(f"d{n}.blocked.example\n" for n in range(entries)))
    (folder / "addresses.txt").write_text("".join(f"u{n}@blocked.example\n" for n in range(entries)))
    nets = (f"{n >> 16 & 127 | 1}.{n >> 8 & 255}.{n & 255}.0/24" for n in range(entries))
    (folder / "networks.txt").write_text("".join(f"{net}\n" for net in nets))
    return "".join(
        f'[lists.{kind}]\nkind = "{kind}"\nfile = "{kind}.txt"\n\n' for kind in ("domains", "addresses", "networks")
    )


def judge_of(folder: Path, text: str) -> tuple[Judge, float]:
    """The judge of these rules alone, and how long it took to be loaded."""
    file = folder / "rules.toml"
    file.write_text(text)
    began = time.perf_counter()
    loaded = load_rules([file], shipped=False)
    judge = Judge(loaded.rules)
    took = time.perf_counter() - began
    if not loaded.ok:
        raise RuntimeError(loaded.problems[0].show())
    return judge, took


def cost(judge: Judge, turns: list[Turn], parts: int, times: int) -> float:
    """µs of CPU of one part of a conversation."""
    began = time.process_time()
    for _ in range(times):
        converse(turns, judge, lambda item: None, "192.0.2.1:4025", 0.0)
    return (time.process_time() - began) / times / parts * 1e6


def compare(title: str, judge: Judge, turns: list[Turn], rounds: int, times: int) -> str:
    """What a part costs without rules and more with them, of the same round each."""
    without, more = [], []
    bare = Judge()
    cost(judge, turns, RECIPIENTS, 1)  # what is compiled when it is first asked
    for _ in range(rounds):
        base = cost(bare, turns, RECIPIENTS, times)
        without.append(base)
        more.append(cost(judge, turns, RECIPIENTS, times) - base)
    ratio = statistics.median(m / b for m, b in zip(more, without, strict=True))
    return f"| {title} | {figure(without)} | {figure(more)} | {ratio + 1:.2f} |"


def figure(values: list[float]) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


# ------------------------------------------------------------------------------------------------------------- replay


def write_audit(path: Path, exchanges: int) -> int:
    """An audit of about so many exchanges, of a day; how many there are."""
    turns = [*OPEN, *envelope(2, 1), *envelope(1, 2), *CLOSE]
    with open(path, "wb+") as file:
        audit = AuditLog([Appender(file.fileno())], wall=lambda at: at)
        record = audit.session("SESSION")
        facts = {"listener": "mx", "client": "192.0.2.1:4025", "local": "192.0.2.9:25", "server": "mx.example:25"}
        record(AuditRecord(Kind.CONNECT, 0.0, detail=facts))
        converse(turns, Judge(), record, "192.0.2.1:4025", 0.0)
        record(AuditRecord(Kind.CLOSE, 0.0, detail={"seconds": 1.0}))
        audit.flush()
        file.seek(0)
        lines = [json.loads(line) for line in file]
    each: int = sum(line["kind"] == "exchange" for line in lines)
    with open(path, "w", encoding="utf-8") as text:
        for line in _many(lines, -(-exchanges // each)):
            text.write(json.dumps(line, separators=(",", ":")) + "\n")
    return each * -(-exchanges // each)


def _many(lines: list[dict[str, object]], sessions: int) -> Iterator[dict[str, object]]:
    for number in range(sessions):
        seconds = number * (DAY - 1) / sessions
        at = f"2026-11-16T{int(seconds // 3600):02}:{int(seconds // 60) % 60:02}:{int(seconds) % 60:02}Z"
        client = f"192.0.{number % 250}.{number % 199}:4025"
        for line in lines:
            more = {"client": client} if line["kind"] == "link-connect" else {}
            yield {**line, "at": at, "session": f"0123456789-{number:x}", **more}


def replay(path: Path, folder: Path, text: str) -> tuple[float, int]:
    """Seconds it takes, and exchanges."""
    file = folder / "replay.toml"
    file.write_text(text)
    loaded = load_rules([file])
    if not loaded.ok:
        raise RuntimeError(loaded.problems[0].show())
    rehearsed = Rehearsed(loaded.rules)
    began = time.perf_counter()
    result = Replay(lambda connect: rehearsed).play(Audit([path]))
    return time.perf_counter() - began, result.exchanges


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What rules cost, and how fast a replay is.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; 7")
    parser.add_argument("--times", type=int, default=20, help="conversations a round; 20")
    parser.add_argument("--entries", type=int, default=100_000, help="entries of a list; 100000")
    parser.add_argument("--exchanges", type=int, default=100_000, help="exchanges that are replayed; 100000")
    chosen = parser.parse_args()
    rounds, times = chosen.rounds, chosen.times
    recipients = [*OPEN, *envelope(RECIPIENTS), *CLOSE]
    noops = [*OPEN, *NOOPS, *CLOSE]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, _ = judge_of(folder, rules(20, "RCPT", simple))
        tables = write_lists(folder, chosen.entries)
        many, many_took = judge_of(folder, tables + rules(200, "RCPT", lambda n: listed(n) if n % 2 else simple(n)))
        _, load_took = judge_of(folder, rules(2000, "RCPT", simple))
        print("| µs of CPU | without | more with rules | × |\n| --- | ---: | ---: | ---: |")
        print(compare("a verb without rules, 20 rules on RCPT: NOOP", few, noops, rounds, times), flush=True)
        print(compare("a recipient, 20 rules on RCPT", few, recipients, rounds, times), flush=True)
        title = f"a recipient, 200 rules on RCPT, lists of {chosen.entries} entries"
        print(compare(title, many, recipients, rounds, times), flush=True)
        print("\n| seconds | |\n| --- | ---: |")
        print(f"| loading 2000 rules | {load_took:.2f} |")
        print(f"| loading 200 rules and three lists of {chosen.entries} entries | {many_took:.2f} |", flush=True)
        exchanges = write_audit(folder / "audit.jsonl", chosen.exchanges)
        for title, text in (("the shipped rules", ""), ("20 rules on RCPT beside", rules(20, "RCPT", simple))):
            took, played = replay(folder / "audit.jsonl", folder, text)
            if played != exchanges:
                raise RuntimeError(f"{played} of {exchanges} exchanges were replayed")
            print(f"| replay of {exchanges} exchanges, {title} | {took:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""What the sans-IO core costs by itself: `python bench/profile_core.py`, for developers.

A session is fed what smtp-source and smtp-sink say, one reply or command at a time as the driver would, under the
shipped rules; with the audit, its lines are rendered and written to a file at each turn. No socket, no trio. The
driver's part is what bench.py measures beyond this. `--top N` adds cProfile's N dearest functions, which take several
times longer under it: only their order counts.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's, not one that is installed

from smtpproxy.audit.appending import Appender
from smtpproxy.audit.log import AuditLog
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session

ROUNDS = 7  # the least and the median of so many are told
CHUNK = 262_144  # octets of content at a time, as the driver reads

Turn = tuple[bool, bytes]  # from the client?, octets
Record = Callable[[AuditRecord], None]

OPEN: list[Turn] = [(False, b"220 smtp-sink ESMTP\r\n"), (True, b"HELO client\r\n"), (False, b"250 smtp-sink\r\n")]
CLOSE: list[Turn] = [(True, b"QUIT\r\n"), (False, b"221 Bye\r\n")]
HEADER = b"From: <a@bench.example>\r\nTo: <b@bench.example>\r\nSubject: test\r\nMessage-Id: <1.2@bench.example>\r\n\r\n"


def mail(octets: int) -> list[Turn]:
    """One transaction with content of this size."""
    line = b"X" * 78 + b"\r\n"
    content = HEADER + line * (max(0, octets - len(HEADER)) // len(line)) + b".\r\n"
    return [
        (True, b"MAIL FROM:<a@bench.example>\r\n"),
        (False, b"250 2.1.0 Ok\r\n"),
        (True, b"RCPT TO:<b@bench.example>\r\n"),
        (False, b"250 2.1.5 Ok\r\n"),
        (True, b"DATA\r\n"),
        (False, b"354 End data with <CR><LF>.<CR><LF>\r\n"),
        *((True, content[at : at + CHUNK]) for at in range(0, len(content), CHUNK)),
        (False, b"250 2.0.0 Ok\r\n"),
    ]


def converse(turns: list[Turn], judge: Judge, record: Record, flush: Callable[[], object]) -> None:
    """One conversation, from the greeting to the last octet."""
    session = Session(judge=judge, record=record, clock=time.monotonic)
    for client, octets in turns:
        (session.client_sent if client else session.server_sent)(octets)
        flush()
        session.to_client.clear()
        session.to_server.clear()
        session.effects.clear()
    if not session.closed:
        raise RuntimeError("the conversation did not come to its end")


def seconds(turns: list[Turn], times: int, judge: Judge, record: Record, flush: Callable[[], object]) -> list[float]:
    """Seconds of CPU of one conversation, a round each."""
    results = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            converse(turns, judge, record, flush)
        results.append((time.process_time() - began) / times)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the sans-IO core costs by itself.")
    parser.add_argument("--times", type=int, default=1000, help="conversations a round; 1000")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="cProfile's N dearest functions")
    chosen = parser.parse_args()

    loaded = load_rules(())
    judge = Judge(loaded.rules)
    with tempfile.TemporaryFile() as file:
        audit = AuditLog([Appender(file.fileno())], wall=lambda at: at)
        ways: dict[str, tuple[Record, Callable[[], object]]] = {
            "session": (lambda item: None, lambda: None),
            "session + audit": (audit.session("bench-1"), audit.flush),
        }
        conversations = {
            "a conversation: HELO, one 1 KiB mail, QUIT": ([*OPEN, *mail(1024), *CLOSE], 1),
            "a conversation of 100 mails, by the mail": ([*OPEN, *mail(1024) * 100, *CLOSE], 100),
            "a conversation of one 10 MiB mail, by the MiB": ([*OPEN, *mail(10 << 20), *CLOSE], 10),
        }
        print("| µs of CPU, least (median) |", " | ".join(ways), "|\n| --- |", " | ".join("---:" for _ in ways), "|")
        for title, (turns, parts) in conversations.items():
            cells = []
            for record, flush in ways.values():
                found = [
                    one / parts * 1e6 for one in seconds(turns, max(1, chosen.times // parts), judge, record, flush)
                ]
                cells.append(f"{min(found):.0f} ({statistics.median(found):.0f})")
            print(f"| {title} | {' | '.join(cells)} |", flush=True)
        if chosen.top:
            turns, _ = conversations["a conversation of 100 mails, by the mail"]
            record, flush = ways["session + audit"]
            profile = cProfile.Profile()
            profile.runcall(seconds, turns, max(1, chosen.times // 100), judge, record, flush)
            pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(chosen.top)


if __name__ == "__main__":
    main()

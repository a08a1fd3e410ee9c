"""How long `smtpproxy audit search` takes on a large store, filter by filter and combined.

    python bench/audit_search.py --store DIR            fill DIR with ten million records, once, and time the searches
    python bench/audit_search.py --store DIR --cold     each search also with nothing of the database in memory

The store has the rows that the recorder makes of such a record, with all indexes there from the beginning, and blocks
of lines of the usual length; the lines themselves say nothing. What is hard to find is in it on purpose: a client, a
rule and a tag with a hundred thousand mails each and all of them old, and pairs of filters that have many mails each
and none together.
"""

import argparse
import contextlib
import json
import os
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smtpproxy.inquiry.filters import question
from smtpproxy.inquiry.searching import Search
from smtpproxy.store import schema
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import DATABASE, Store

END = 1_764_000_000.0  # 24 November 2025
DAYS = 60
PER_MAIL = 9  # records
LINE = 330  # octets
BLOCK = 256  # lines

SEARCHES: tuple[dict[str, Any], ...] = (
    {},
    {"client": "203.0.113.9"},
    {"client": "192.0.2.77"},
    {"client": "10.2.0.0/16"},
    {"client": "10.0.0.0/8"},
    {"client": "198.51.100.1"},
    {"server": "mx1.example"},
    {"listener": "submission"},
    {"sender": "u7@d77.example"},
    {"sender": "*@d3.example"},
    {"sender": "u7@*"},
    {"sender": "<>"},
    {"sender": "nobody@nowhere.example"},
    {"recipient": "p3@here.example"},
    {"recipient": "p3@*"},
    {"recipient": "nobody@*"},
    {"domain": "here.example"},
    {"domain": ".d3.example"},
    {"domain": "nowhere.example"},
    {"address": "p3@here.example"},
    {"verdict": "quarantine"},
    {"verdict": "pass"},
    {"outcome": "refused"},
    {"outcome": "closed"},
    {"rule": "rule-3"},
    {"rule": "old-greeting"},
    {"rule": "rule-*"},
    {"anomaly": "odd-hello"},
    {"tag": "was-tagged"},
    {"tag": "bulk"},
    {"tls": "1.2"},
    {"tls": "none"},
    {"size": ">14M"},
    {"size": "10k..2M"},
    {"reply": "450"},
    {"reply": "5xx"},
    {"reply": "250"},
    {"message-id": "no-such@x"},
    {"identity": "user77"},
    {"hello": "h77.example.net"},
    {"hello": "no-such.example.net"},
    {"session": "4d9d6b7a53-100"},
    {"session": "4d9d6b7a53-1*"},
    {"since": "1d"},
    {"since": "40d", "until": "39d"},
    {"since": "40d", "until": "39d", "verdict": "quarantine"},
    {"since": "40d", "until": "39d", "domain": "nowhere.example"},
    {"since": "2h", "client": "203.0.113.9"},
    {"since": "20d", "domain": "here.example", "verdict": "quarantine"},
    {"client": "203.0.113.9", "verdict": "quarantine"},
    {"client": "203.0.113.9", "hello": "no-such.example.net"},
    {"client": "203.0.113.9", "tls": "none"},
    {"client": "10.0.0.0/8", "tag": "bulk"},
    {"client": "10.0.0.0/8", "tag": "was-tagged", "tls": "none"},
    {"client": "192.0.2.77", "recipient": "p3@here.example"},
    {"domain": "here.example", "rule": "rule-3", "tls": "1.3"},
    {"domain": "here.example", "sender": "*@d3.example"},
    {"domain": "here.example", "identity": "no-such"},
    {"recipient": "p0@here.example", "sender": "<>", "size": ">1M"},
    {"verdict": "quarantine", "outcome": "refused", "size": ">1M"},
    {"outcome": "refused", "size": ">10k"},
    {"rule": "old-greeting", "tag": "bulk", "reply": "450"},
    {"rule": "old-greeting", "tls": "1.3", "since": "10d"},
    {"anomaly": "odd-case", "tls": "none", "reply": "450"},
    {"server": "mx1.example", "listener": "submission", "anomaly": "bare-path"},
    {"server": "mx1.example", "outcome": "accepted", "reply": "4xx"},
    {"identity": "user77", "anomaly": "odd-case"},
    {"listener": "mx", "identity": "*"},
)


# ------------------------------------------------------------------------------------------------------------ filling


class _Filling:
    """Rows of all tables, session by session."""

    def __init__(self, connection: sqlite3.Connection, sessions: int) -> None:
        self.connection = connection
        self.sessions = sessions
        self.number = 0
        self.chance = random.Random(1)
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in ("session", "mail", "recipient", "mark")}
        self.blocks = 0

    def run(self) -> None:
        begin = END - DAYS * 86_400
        step = DAYS * 86_400 / self.sessions
        for at in range(self.sessions):
            self.session(at, begin + (at + self.chance.random()) * step, old=at < self.sessions * 0.45)
            if at % 20_000 == 0:
                self.flush()
                print(f"\r{self.number:12,} records", end="", file=sys.stderr, flush=True)
        self.flush()
        print(file=sys.stderr)

    def flush(self) -> None:
        self.connection.execute("BEGIN")
        for table, rows in self.rows.items():
            marks = ", ".join("?" * len(schema.TABLES[table][0]))
            self.connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            rows.clear()
        while self.blocks + BLOCK <= self.number:
            row = (self.blocks, BLOCK, END, os.urandom(LINE * BLOCK), bytes(8 * BLOCK))
            self.connection.execute("INSERT INTO block VALUES (?, ?, ?, ?, ?)", row)
            self.blocks += BLOCK
        self.connection.execute(f"UPDATE meta SET value = '{self.number}' WHERE name = 'size'")
        self.connection.execute("COMMIT")

    def session(self, at: int, now: float, *, old: bool) -> None:
        draw = self.chance.random
        number, name, begin = self.number, f"4d9d6b7a53-{at:x}", now
        self.number += 4
        client = f"192.0.2.{int(draw() * 256)}"
        if old and draw() < 0.5:
            client = "203.0.113.9"
        elif draw() < 0.7:
            client = f"10.{int(draw() * 4)}.{int(draw() * 256)}.{int(draw() * 256)}"
        tls = "TLSv1.2" if old and draw() < 0.8 else self.chance.choice(("TLSv1.3", "TLSv1.3", "TLSv1.3", None))
        server = f"mx{int(draw() * 4)}.example:25"
        listener = self.chance.choice(("mx", "mx", "mx", "submission"))
        hello = f"h{int(draw() * 50_000)}.example.net"
        identity = f"user{int(draw() * 3000)}" if listener == "submission" else None
        here = (schema.client_key(client), server, listener, tls, hello, identity)
        mails = 0 if draw() < 0.15 else min(20, int(self.chance.expovariate(1 / 2.2) + 1))
        for _ in range(mails):
            now += draw() * 3
            self.mail(number, now, here, old=old)
        self.number += 2
        if draw() < 0.1:
            self.rows["mark"].append(("anomaly", "odd-hello", number, 0, now, 1))
        if old and draw() < 0.4:
            self.rows["mark"].append(("rule", "old-greeting", number, 0, now, 1))
        if not mails:
            none = (self.number, number, 0, now, "none", None, 0, 221, "pass", None, None, None)
            self.rows["mail"].append((*none, *here))
        whole = (number, name, begin, now, self.number, "closed", listener, client, server, hello, tls, None, identity)
        self.rows["session"].append((*whole, mails))
        self.number += 1

    def mail(self, session: int, now: float, here: tuple[str | None, ...], *, old: bool) -> None:
        draw, choice = self.chance.random, self.chance.choice
        self.number += PER_MAIL - 2
        number = self.number
        verdict = "pass" if draw() < 0.9 else choice(("rewrite", "answer", "answer", "quarantine", "discard"))
        rule = None if verdict == "pass" else f"rule-{min(49, int(self.chance.expovariate(0.2)))}"
        outcome = "accepted" if draw() < 0.92 else choice(("refused", "answer"))
        size = 0 if outcome == "refused" else int(2 ** (8 + draw() * 16))
        code = 450 if draw() < 0.02 else 250 if outcome == "accepted" else 550
        domain = choice(("", "mail.", "a.b."))
        sender = "" if draw() < 0.05 else f"u{int(draw() * 200)}@{domain}d{int(draw() ** 3 * 20_000)}.example"
        mail = (number, session, 0 if outcome == "refused" else 1, now, outcome, schema.key_of(sender), size, code)
        self.rows["mail"].append((*mail, verdict, rule, f"<{number:x}@x.example>", f"{number:064x}", *here))
        for n in range(1 if draw() < 0.8 else int(2 + draw() * 3)):
            host = "here.example" if draw() < 0.8 else f"d{int(draw() ** 3 * 20_000)}.example"
            key = schema.key_of(f"p{int(draw() ** 2 * 5000)}@{host}")
            self.rows["recipient"].append((number, n, key, 1, now))
        marks = [("rule", rule)] if rule else []
        if draw() < 0.3:
            marks.append(("anomaly", choice(("trailing-blank", "odd-case", "bare-path", "stray-newline-normalised"))))
        if old and draw() < 0.5:
            marks.append(("tag", "was-tagged"))
        if draw() < 0.05:
            marks.append(("tag", "bulk"))
        if code >= 400:
            marks.append(("reply", str(code)))
        self.rows["mark"] += [(what, name, session, number, now, 1) for what, name in marks]
        self.number += 2


def fill(directory: Path, records: int) -> None:
    """Make the store, if it isn't there."""
    if (directory / DATABASE).exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(directory, create=True)
    store.connection.execute("PRAGMA synchronous = OFF")
    store.connection.execute("PRAGMA secure_delete = OFF")
    _Filling(store.connection, records // 28).run()
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


# ------------------------------------------------------------------------------------------------------------- timing


def cooled(path: Path) -> None:
    """Nothing of the file in the system's memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def took(directory: Path, words: dict[str, str], limit: int) -> tuple[float, int]:
    """Milliseconds of one search, as the command makes it, and how many it found."""
    reader = open_reader(str(directory))
    with contextlib.closing(reader):
        begin = time.perf_counter()
        filters = {name: [value] for name, value in words.items() if name not in ("since", "until")}
        asked = question(filters, since=words.get("since"), until=words.get("until"), now=END)
        number = len(list(Search(reader, asked).newest(limit)))
        return (time.perf_counter() - begin) * 1000, number


def timed(directory: Path, repeats: int, limit: int, cold: bool) -> Iterator[dict[str, Any]]:
    """Each search, measured."""
    for words in SEARCHES:
        row: dict[str, Any] = {"search": words}
        if cold:
            cooled(directory / DATABASE)
            row["cold"] = took(directory, words, limit)[0]
        runs = [took(directory, words, limit) for _ in range(repeats)]
        times = sorted(ms for ms, _ in runs)
        yield {**row, "ms": statistics.median(times), "worst": times[-1], "found": runs[0][1]}


def main() -> None:
    """Fill, and time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the store, made if it is not there")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    asked = parser.parse_args()
    fill(asked.store, asked.records)
    slow = 0
    for row in timed(asked.store, asked.repeats, asked.limit, asked.cold):
        slow += row["ms"] > 100
        if asked.as_json:
            print(json.dumps(row), flush=True)
            continue
        words = " ".join(f"--{name} {value}" for name, value in row["search"].items()) or "(nothing)"
        cold = f"{row['cold']:9.1f}" if asked.cold else ""
        print(f"{row['ms']:8.1f} {row['worst']:8.1f}{cold} ms {row['found']:6}  {words}", flush=True)
    print(f"{slow} of {len(SEARCHES)} took more than 100 ms", file=sys.stderr)


if __name__ == "__main__":
    main()

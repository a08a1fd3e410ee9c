"""What the store costs: `python bench/store.py`.

    smtp-source ──► smtpproxy ──► smtp-sink

The same gateway three ways: with the record as JSON lines in a file, in a store in their place, and both. Each round
has every one of them once, begun with another one each time, and the ratio is taken within the round. CPU is that of
all its processes, the recorder among them; a run ends when the store has what was recorded, not when the last mail is
through. What is on the mail's path is the CPU of all but the recorder, which no mail waits for. All else is as in
bench.py, whose tables and rules these are.
"""

import argparse
import json
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from peers import HOST, Peer, Place, find
from programs import TICKS, BenchError, Started, children_cpu, listening, machine_cpu, sink_command

from bench import NOISE, RETRIES, SMALL, Bench, Column, Results, Rounds, Workload, await_quiet, machine, table

CATCH_UP = 60.0  # seconds the store has for what was recorded

COLUMNS = (
    SMALL[0]._replace(reference="file"),
    SMALL[1]._replace(reference="file"),
    Column("path_us", "of it, on the mail's path", "file"),
    Column("recorder_us", "recorder µs/mail"),
    Column("records", "records/mail"),
    Column("octets", "octets/record"),
)
WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "1 KiB mails, a connection each, 20 at once", COLUMNS, ("-s", "20")),
        Workload("W2", "1 KiB mails on 20 kept connections", COLUMNS, ("-s", "20", "-d")),
    )
}
CONFIG = """\
[[listener]]
name = "bench"
listen = "{host}:{port}"
server = "{host}:{server}"
[audit]
file = "{file}"
store = "{store}"
{options}
[process]
workers = {workers}
control = ""
"""


def _command(at: Place, *, file: bool, store: bool, workers: int, options: str = "") -> list[str]:
    config = at.directory / "smtpproxy.toml"
    where = {
        "file": at.directory / "audit.jsonl" if file else "",
        "store": at.directory / "store" if store else "",
        "workers": workers,
        "options": options,
    }
    config.write_text(CONFIG.format(host=HOST, port=at.port, server=at.server, **where))
    return [sys.executable, "-m", "smtpproxy", "serve", "--config", str(config)]


def ways(workers: int) -> list[Peer]:
    """How the record is kept."""

    def way(name: str, *, file: bool, store: bool, options: str = "") -> Peer:
        command = partial(_command, file=file, store=store, workers=workers, options=options)
        return Peer(name, command, str, audit="audit.jsonl" if file else "")

    return [
        way("file", file=True, store=False),
        way("store", file=False, store=True),
        way("both", file=True, store=True),
    ]


class StoreBench(Bench):
    """Waits for the store."""

    def run(self, peer: Peer, workload: Workload) -> Results:
        """Measure once; with too much noise again, and the quietest run counts."""
        attempts: list[Results] = []
        while not attempts or (attempts[-1]["noise"] > NOISE and len(attempts) <= RETRIES):
            if peer.command is None:
                raise AssertionError("each of them is a gateway")
            with listening(peer.command, self.server) as (program, place):
                attempts.append(self._measured(peer, workload, program, place))
        return min(attempts, key=lambda results: results["noise"])

    def _measured(self, peer: Peer, workload: Workload, program: Started, place: Place) -> Results:
        mails = self._warm_up(peer, workload, place.port)
        await_caught_up(place.directory / "store")
        await_quiet()
        others, machine_before = self.sink.cpu() + children_cpu(), machine_cpu()
        own, recorder = program.cpu(), recorder_cpu(program, place.directory / "store")
        size = size_of(place.directory / "store")
        began = time.monotonic()
        wall = self._send(workload, place.port, mails)
        await_caught_up(place.directory / "store")
        all_of_it = time.monotonic() - began
        own, recorder = program.cpu() - own, recorder_cpu(program, place.directory / "store") - recorder
        spent = machine_cpu() - machine_before
        others = self.sink.cpu() + children_cpu() - others
        self._counts[peer.name, workload.name] = max(workload.least, int(mails / wall * self.seconds))
        results = {
            "mails": mails,
            "seconds": wall,
            "cpu": own,
            "noise": max(0.0, spent - own - others) / all_of_it / (os.cpu_count() or 1),
            "rate": mails / wall,
            "cpu_us": own / mails * 1e6,
            "path_us": (own - recorder) / mails * 1e6,
        }
        if recorder:
            records, octets = (
                after - before for before, after in zip(size, size_of(place.directory / "store"), strict=True)
            )
            results |= {"recorder_us": recorder / mails * 1e6, "records": records / mails, "octets": octets / records}
        return results


def waiting(store: Path) -> int:
    """Octets of a journal that its store has not."""
    with closing(sqlite3.connect(store / "audit.db", timeout=5)) as connection:
        found = connection.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()
    segment, _, offset = (found[0] if found else "").partition(":")
    octets = -int(offset or 0)
    for path in (store / "journal").glob("*.jsonl"):
        if int(path.stem) >= int(segment or 0):
            with suppress(FileNotFoundError):
                octets += path.stat().st_size
    return octets


def size_of(store: Path) -> tuple[int, int]:
    """Records in it, and octets of the database that are in use."""
    if not store.exists():
        return 0, 0
    with closing(sqlite3.connect(store / "audit.db", timeout=5)) as connection:
        (records,) = connection.execute("SELECT value FROM meta WHERE name = 'size'").fetchone()
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int(records), (pages - free) * size


def await_caught_up(store: Path) -> None:
    """Return when a store, if there is one, has all that was recorded."""
    deadline = time.monotonic() + CATCH_UP
    while store.exists() and waiting(store) > 0:
        if time.monotonic() > deadline:
            raise BenchError(f"{waiting(store)} octets are not in the store")
        time.sleep(0.02)


def recorder_cpu(program: Started, store: Path) -> float:
    """Seconds of CPU of the process that has the database."""
    for pid, fields in program.members().items():
        with suppress(OSError):
            if any(os.readlink(link) == str(store / "audit.db") for link in Path("/proc", pid, "fd").iterdir()):
                return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what the store costs.")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; 7")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one run is; 2")
    parser.add_argument("--workers", type=int, default=1, help="1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every run goes")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if lacking := [program for program in ("smtp-source", "smtp-sink", "setpriv") if find(program) is None]:
        print(f"bench: {', '.join(lacking)}: not installed; apt install postfix util-linux", file=sys.stderr)
        return 2
    facts = {**machine(), "SQLite": sqlite3.sqlite_version, "workers": str(chosen.workers)}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    every: dict[str, Rounds] = {}
    with listening(sink_command) as (sink, place):
        bench = StoreBench(chosen.seconds, sink, place.port)
        for name, workload in WORKLOADS.items():
            every[name] = rounds(bench, ways(chosen.workers), workload, chosen.repeats)
            print(table(workload, every[name]), flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps({"machine": facts, "workloads": every}, indent=1) + "\n")
    return 0


def rounds(bench: StoreBench, peers: list[Peer], workload: Workload, repeats: int) -> Rounds:
    """Each way once a round, every time begun with the next one."""
    done: Rounds = []
    for number in range(repeats):
        begin = number % len(peers)
        results = {}
        for peer in (*peers[begin:], *peers[:begin]):
            print(f"{workload.name} round {number + 1} of {repeats}: {peer.name}", file=sys.stderr, flush=True)
            results[peer.name] = bench.run(peer, workload)
        done.append({peer.name: results[peer.name] for peer in peers})
    return done


if __name__ == "__main__":
    sys.exit(main())

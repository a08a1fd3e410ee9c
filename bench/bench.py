"""smtpproxy beside its peers, in one run: `python bench/bench.py`.

    smtp-source ──► peer ──► smtp-sink

All on loopback, in clear, on ports the kernel picks. Every run starts its peer afresh, warms it up, measures, and ends
it; runs are interleaved (A B C, A B C, …), so what else the machine does meets all alike, and a ratio is taken within
one round. CPU is that of the peer alone, all its processes, those that have ended too. *Noise* is the share of the
machine that processes outside the experiment (or the hypervisor) took; a run with too much of it is made again.

Only what was started here is ended, and everything has a deadline. How to read the tables: bench/README.md.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from peers import HOST, PEERS, Peer, find
from programs import BenchError, Started, children_cpu, listening, machine_cpu, sink_command

MIB = 1 << 20
CORES = os.cpu_count() or 1
NOISE = 0.08  # above this a run is made again …
RETRIES = 1  # … so often
QUIET = 2.0  # seconds a run waits for a quiet moment
AUDITED = 1000  # octets of record a mail at the least; fewer, and the record was not kept

Results = dict[str, float]


class Column(NamedTuple):
    """One figure of a table and whose figure it is compared with."""

    key: str
    label: str
    reference: str = ""


class Workload(NamedTuple):
    """What smtp-source does; with `idle`, what is done in its place."""

    name: str
    title: str
    columns: tuple[Column, ...]
    options: tuple[str, ...] = ()
    octets: int = 1024
    least: int = 20
    idle: bool = False


SMALL = (Column("rate", "mails/s", "postfix"), Column("cpu_us", "CPU µs/mail", "postfix"))
LARGE = (Column("mib_s", "MiB/s", "direct"), Column("cpu_ms", "CPU ms/MiB", "postfix"))
DELAY = (Column("ms", "ms/mail"), Column("added_ms", "added ms", "postfix"))
MEMORY = (Column("kib", "KiB/session", "postfix"), Column("sessions", "sessions"))

WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "1 KiB mails, a connection each, 20 at once", SMALL, ("-s", "20")),
        Workload("W2", "1 KiB mails on 20 kept connections", SMALL, ("-s", "20", "-d")),
        Workload("W3", "10 MiB mails, 4 at once", LARGE, ("-s", "4"), octets=10 * MIB, least=4),
        Workload("W4", "1 KiB mails, one after the other on one connection", DELAY, ("-s", "1", "-d")),
        Workload("W5", "idle sessions, greeted and EHLO said", MEMORY, idle=True),
    )
}


# --------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """Where the figures are taken. How many mails fill the time is known of each peer from its last run."""

    def __init__(self, seconds: float, sink: Started, server: int) -> None:
        self.seconds = seconds
        self.sink = sink
        self.server = server
        self._counts: dict[tuple[str, str], int] = {}

    def run(self, peer: Peer, workload: Workload) -> Results:
        """Measure once; with too much noise again, and the quietest run counts."""
        attempts: list[Results] = []
        while not attempts or (attempts[-1]["noise"] > NOISE and len(attempts) <= RETRIES):
            attempts.append(self._once(peer, workload))
        return min(attempts, key=lambda results: results["noise"])

    def _once(self, peer: Peer, workload: Workload) -> Results:
        if peer.command is None:
            if workload.idle:
                return {"noise": 0.0}
            return self._mails(peer, workload, None, self.server)
        with listening(peer.command, self.server) as (program, place):
            if workload.idle:
                return idle_memory(program, place.port, peer.idle)
            results = self._mails(peer, workload, program, place.port)
            if peer.audit and (place.directory / peer.audit).stat().st_size < AUDITED * results["mails"]:
                raise BenchError("its record lacks mails")
            return results

    def _mails(self, peer: Peer, workload: Workload, program: Started | None, port: int) -> Results:
        mails = self._warm_up(peer, workload, port)
        await_quiet()
        others = self.sink.cpu() + children_cpu()
        own = program.cpu() if program else 0.0
        machine = machine_cpu()
        wall = self._send(workload, port, mails)
        machine = machine_cpu() - machine
        own = (program.cpu() if program else 0.0) - own
        others = self.sink.cpu() + children_cpu() - others
        self._counts[peer.name, workload.name] = max(workload.least, int(mails / wall * self.seconds))
        mib = mails * workload.octets / MIB
        return {
            "mails": mails,
            "seconds": wall,
            "cpu": own,
            "noise": max(0.0, machine - own - others) / wall / CORES,
            "rate": mails / wall,
            "mib_s": mib / wall,
            "ms": wall / mails * 1e3,
            **({"cpu_us": own / mails * 1e6, "cpu_ms": own / mib * 1e3} if program else {}),
        }

    def _warm_up(self, peer: Peer, workload: Workload, port: int) -> int:
        """Have the peer do everything once; how many mails fill the time."""
        key = (peer.name, workload.name)
        if key in self._counts:
            self._send(workload, port, max(workload.least, self._counts[key] // 10))
            return self._counts[key]
        mails = workload.least
        enough = min(0.25, self.seconds / 2)
        while (wall := self._send(workload, port, mails)) < enough:
            mails = int(mails * min(10.0, 1.5 * enough / wall)) + 1
        return max(workload.least, int(mails / wall * self.seconds))

    def _send(self, workload: Workload, port: int, mails: int) -> float:
        """Have smtp-source send them; the seconds it took."""
        options = [*workload.options, "-m", str(mails), "-l", str(workload.octets), "-M", "client.bench.example"]
        envelope = ["-f", "a@bench.example", "-t", "b@bench.example"]
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [find("smtp-source") or "", *options, *envelope, f"{HOST}:{port}"],
                capture_output=True,
                timeout=30 + 20 * self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{mails} mails took more than {error.timeout} s") from None
        if done.returncode:
            raise BenchError(f"smtp-source: {done.stderr.decode(errors='replace')[-500:]}")
        return time.monotonic() - begin


def await_quiet() -> None:
    """Let others finish what they do, within bounds."""
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        before, began = machine_cpu(), time.monotonic()
        time.sleep(0.25)
        if (machine_cpu() - before) / (time.monotonic() - began) / CORES <= NOISE:
            return


def idle_memory(program: Started, port: int, sessions: int) -> Results:
    """What a session more takes: from a fifth of them open to all open, so that no first use is counted."""
    with ExitStack() as stack:
        fifth = sessions // 5

        def memory(first: int, last: int) -> int:
            for number in range(first, last):
                # From one address no more than a few: servers bound that.
                source = (f"127.0.0.{2 + number // 25}", 0)
                link = stack.enter_context(socket.create_connection((HOST, port), timeout=10, source_address=source))
                for say in (b"", b"EHLO client.bench.example\r\n"):
                    link.sendall(say)
                    while not _whole(link.recv(4096, socket.MSG_PEEK)):
                        time.sleep(0.001)
                    link.recv(4096)
            time.sleep(0.3)
            return program.memory()

        first = memory(0, fifth)
        return {"kib": (memory(fifth, sessions) - first) / (sessions - fifth), "sessions": sessions, "noise": 0.0}


def _whole(octets: bytes) -> bool:
    """A reply to its last line."""
    if not octets:
        raise BenchError("the peer closed an idle session")
    return octets.endswith(b"\n") and octets.splitlines()[-1][3:4] == b" "


# --------------------------------------------------------------------------------------------------------- the tables

Rounds = list[dict[str, Results]]  # by peer, one dict a round


def add_delays(rounds: Rounds) -> None:
    """What each peer adds to the direct way of the same round."""
    for results in rounds:
        direct = results.get("direct", {}).get("ms")
        for name, result in results.items():
            if direct is not None and name != "direct" and "ms" in result:
                result["added_ms"] = result["ms"] - direct


def figure(values: Sequence[float]) -> str:
    """The median and, of several, the least and the most."""
    if not values:
        return "–"
    return _short(statistics.median(values)) + (
        f" ({_short(min(values))}–{_short(max(values))})" if min(values) != max(values) else ""
    )


def _short(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.{2 if size >= 0.1 else 3}f}"


def table(workload: Workload, rounds: Rounds) -> str:
    """A workload as Markdown."""
    head = ["peer"]
    for column in workload.columns:
        head += [column.label, *([f"× {column.reference}"] if column.reference else [])]
    rows = []
    for name in dict.fromkeys(name for results in rounds for name in results):
        cells = [name]
        for key, _, reference in workload.columns:
            cells.append(figure([r[name][key] for r in rounds if key in r.get(name, ())]))
            if reference:
                pairs = [(r.get(name, {}).get(key), r.get(reference, {}).get(key)) for r in rounds]
                cells.append(figure([own / other for own, other in pairs if own is not None and other]))
        noise = max(r[name]["noise"] for r in rounds if name in r)
        if any(cell != "–" for cell in cells[1:]):
            rows.append([*cells, f"{noise:.0%}", str(sum(name in r for r in rounds))])
    lines = [[*head, "noise", "runs"], ["---", *["---:"] * (len(head) + 1)], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {workload.name}: {workload.title}\n\n{body}\n"


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    facts = {
        "cores": f"{CORES} ({model[0].partition(':')[2].strip()})" if model else str(CORES),
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }
    facts.update((name, version(name)) for name in ("trio", "aiosmtpd") if importlib.util.find_spec(name))
    for name, program, argument in (("Postfix", "postconf", "mail_version"), ("HAProxy", "haproxy", "-v")):
        if path := find(program):
            done = subprocess.run([path, argument], capture_output=True, text=True, timeout=10, check=False)
            facts[name] = next(iter(re.findall(r"\d[\w.+-]*", done.stdout)), "?")
    return facts


# -------------------------------------------------------------------------------------------------------- the command


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return found

    return names


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure smtpproxy beside its peers.")
    parser.add_argument("--workloads", type=_names(list(WORKLOADS)), default=list(WORKLOADS), help="W1,W2,…; all")
    parser.add_argument("--peers", type=_names(list(PEERS)), default=list(PEERS), help="besides smtpproxy; all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; 5")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one run is; 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every run goes")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if lacking := [program for program in ("smtp-source", "smtp-sink", "setpriv") if find(program) is None]:
        print(f"bench: {', '.join(lacking)}: not installed; apt install postfix util-linux", file=sys.stderr)
        return 2
    wanted = [PEERS[name] for name in PEERS if name in chosen.peers or name == "smtpproxy"]
    left_out = {peer.name: why for peer in wanted if (why := peer.missing())}
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    every: dict[str, Rounds] = {}
    with listening(sink_command) as (sink, place):
        bench = Bench(chosen.seconds, sink, place.port)
        for name in chosen.workloads:
            every[name] = rounds(bench, [p for p in wanted if p.name not in left_out], name, chosen.repeats)
            print(table(WORKLOADS[name], every[name]), flush=True)
            if chosen.json:
                document = {"machine": facts, "left_out": left_out, "workloads": every}
                chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    for name, why in left_out.items():
        print(f"Left out: {name} ({why}).")
    return 0


def rounds(bench: Bench, peers: list[Peer], name: str, repeats: int) -> Rounds:
    """Every peer once, then every peer again. Who fails is said and left out of this workload."""
    done: Rounds = []
    failed: set[str] = set()
    for number in range(repeats):
        done.append({})
        for peer in peers:
            if peer.name in failed:
                continue
            print(f"{name} round {number + 1} of {repeats}: {peer.name}", file=sys.stderr, flush=True)
            try:
                done[-1][peer.name] = bench.run(peer, WORKLOADS[name])
            except BenchError as error:
                failed.add(peer.name)
                print(f"Failed in {name}: {peer.name}: {error}", flush=True)
    add_delays(done)
    return done


if __name__ == "__main__":
    sys.exit(main())

"""smtpproxy beside its peers, in one run: `python bench/bench.py`.

    smtp-source ──► peer ──► smtp-sink

All on loopback, in clear, on ports the kernel picks. Every run starts its peer afresh, warms it up, measures, and ends
it; runs are interleaved (A B C, A B C, …), so what else the machine does meets all alike, and a ratio is taken within
one round. CPU is that of the peer alone, all its processes, those that have ended too. *Noise* is the share of the
machine that processes outside the experiment (or the hypervisor) took; a run with too much of it is made again.

Only what was started here is ended, and everything has a deadline. How to read the tables: bench/README.md.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from peers import HOST, PATH, PEERS, Peer, Place, find

REPOSITORY = Path(__file__).resolve().parents[1]
PEER = "peer"  # the only directory name within a run
MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))
GREETING = 20.0  # seconds a peer has to begin
GOODBYE = 5.0  # seconds it has to end
NOISE = 0.08  # above this a run is made again …
RETRIES = 2  # … so often
AUDITED = 1000  # octets of record a mail at the least; fewer, and the record was not kept

Results = dict[str, float]


class BenchError(Exception):
    """A run did not come to its end; the text says why."""


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


# ---------------------------------------------------------------------------------------------------------- processes


def _stat(pid: str) -> list[str]:
    """The fields of /proc/pid/stat from the third on; none if the process has ended."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Started:
    """A program in a process session of its own: who is in that session belongs to it, whoever its parent is."""

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self.log = directory / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [find("setpriv") or "setpriv", "--pdeathsig", "KILL", "--", *argv],  # nothing outlives the bench
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, "PATH": PATH, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM to the program; SIGKILL to who is left of its session."""
        self.process.terminate()
        deadline = time.monotonic() + GOODBYE
        while self.members() and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.01)
        for pid in self.members():
            os.kill(int(pid), signal.SIGKILL)
        self.process.wait(GOODBYE)

    def members(self) -> dict[str, list[str]]:
        """Every living process of the session."""
        found = ((pid, _stat(pid)) for pid in os.listdir("/proc") if pid.isdigit())
        return {pid: fields for pid, fields in found if fields[3:4] == [str(self.process.pid)] and fields[0] not in "ZX"}

    def cpu(self) -> float:
        """Seconds of CPU of the session so far, user and system, with the children that have ended."""
        return sum(int(tick) for fields in self.members().values() for tick in fields[11:15]) / TICKS

    def memory(self) -> int:
        """KiB of memory: proportional set size, which counts a shared page once."""
        total = 0
        for pid in self.members():
            lines = Path("/proc", pid, "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def await_greeting(self, port: int) -> None:
        """Return when an SMTP greeting is told on the port."""
        deadline = time.monotonic() + GREETING
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with socket.create_connection((HOST, port), timeout=2) as link:
                    if link.recv(512).startswith(b"220"):
                        link.sendall(b"QUIT\r\n")
                        link.recv(512)
                        return
            except OSError:
                pass
            time.sleep(0.02)
        raise BenchError(f"no greeting:\n{self.log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(command: Callable[[Place], list[str]], server: int = 0) -> Iterator[tuple[Started, Place]]:
    """A program that greets on a free port. Another may take the port first, so it has three attempts."""
    for attempt in count(1):
        with tempfile.TemporaryDirectory(prefix="smtpproxy-bench-") as name, ExitStack() as stack:
            Path(name).chmod(0o755)  # servers change their user
            place = Place(Path(name, PEER), free_port(), server)
            place.directory.mkdir()
            program = stack.enter_context(Started(command(place), place.directory))
            try:
                program.await_greeting(place.port)
            except BenchError:
                if attempt == 3:
                    raise
                continue
            yield program, place
            return


def sink_command(at: Place) -> list[str]:
    """The server that takes everything and keeps nothing."""
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [find("smtp-sink") or "", *user, "-m", "4000", "-t", "600", f"{HOST}:{at.port}", "1000"]


def machine_cpu() -> float:
    """Seconds of CPU anybody had, those the hypervisor kept for itself among them."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def children_cpu() -> float:
    """Seconds of CPU of the bench and of what it has waited for."""
    uses = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return sum(use.ru_utime + use.ru_stime for use in uses)


# --------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """Where the figures are taken. The number of mails is fixed for each peer at its first run."""

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
        others = self.sink.cpu() + children_cpu()
        own = program.cpu() if program else 0.0
        machine = machine_cpu()
        wall = self._send(workload, port, mails)
        machine = machine_cpu() - machine
        own = (program.cpu() if program else 0.0) - own
        others = self.sink.cpu() + children_cpu() - others
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
        """How many mails fill the time; they are counted out at the first run."""
        key = (peer.name, workload.name)
        if key in self._counts:
            self._send(workload, port, max(workload.least, self._counts[key] // 10))
            return self._counts[key]
        mails = workload.least
        enough = min(0.25, self.seconds / 2)
        while (wall := self._send(workload, port, mails)) < enough:
            mails = int(mails * min(10.0, 1.5 * enough / wall)) + 1
        self._counts[key] = max(workload.least, int(mails / wall * self.seconds))
        return self._counts[key]

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
            if direct is not None and name != "direct":
                result["added_ms"] = result["ms"] - direct


def figure(values: Sequence[float]) -> str:
    """The median and, of several, the least and the most."""
    if not values:
        return "–"
    return _short(statistics.median(values)) + (
        f" ({_short(min(values))}–{_short(max(values))})" if min(values) != max(values) else ""
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


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
                pairs = [(r[name][key], r[reference][key]) for r in rounds if {name, reference} <= r.keys()
                         and key in r[name] and key in r[reference]]  # fmt: skip
                cells.append(figure([one / other for one, other in pairs if other]))
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
    facts.update((package, version(package)) for package in ("trio", "aiosmtpd") if not _absent(package))
    for program, argument, word in (("postconf", "mail_version", -1), ("haproxy", "-v", 2)):
        if path := find(program):
            done = subprocess.run([path, argument], capture_output=True, text=True, timeout=10, check=False)
            facts[program] = (done.stdout.splitlines() or ["?"])[0].split()[word]
    return facts


def _absent(package: str) -> bool:
    return package == "aiosmtpd" and bool(PEERS["aiosmtpd"].missing())


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
    for name, why in left_out.items():
        print(f"Left out: {name} ({why}).")
    if chosen.json:
        runs = [{"workload": name, "round": number, "peer": peer, **results}
                for name in every for number, one in enumerate(every[name]) for peer, results in one.items()]  # fmt: skip
        chosen.json.write_text(json.dumps({"machine": facts, "left_out": left_out, "runs": runs}, indent=1) + "\n")
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
    add_delays(done) if WORKLOADS[name].columns is DELAY else None
    return done


if __name__ == "__main__":
    sys.exit(main())

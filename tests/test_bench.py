"""The bench in its shortest form: it runs to its end, and its tables say what its runs found. No figure is judged."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import REPOSITORY, find

pytestmark = pytest.mark.peers

HEAD = "| peer | mails/s | × postfix | CPU µs/mail | × postfix | noise | runs |"
CELL = re.compile(r"–|\d+(\.\d+)?%?( \(\d+(\.\d+)?–\d+(\.\d+)?\))?")


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it as a user would."""
    for program in ("smtp-source", "smtp-sink", "setpriv"):
        try:
            find(program)
        except PeerUnavailable as error:
            unavailable(error)
    argv = [sys.executable, str(REPOSITORY / "bench" / "bench.py"), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")


def test_a_short_run_prints_a_table_of_what_it_measured(tmp_path: Path) -> None:
    """Claims of speed come with a command that shows them (CONTRIBUTING.md); this is that command."""
    file = tmp_path / "runs.json"
    short = ["--workloads", "W1", "--peers", "direct", "--repeats", "1", "--seconds", "0.2"]
    done = bench(*short, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr

    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert lines[0] == HEAD, done.stdout
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines[2:])}
    assert list(rows) == ["direct", "smtpproxy"], done.stdout
    for cells in rows.values():
        assert len(cells) == 6
        assert all(CELL.fullmatch(cell) for cell in cells), cells
        assert cells[1] == "–", "without Postfix there is nothing to compare with"
        assert cells[5] == "1"
    assert rows["direct"][2] == "–", "the direct way has no process to measure"

    runs = json.loads(file.read_text())
    assert runs["machine"]["cores"]
    found = runs["workloads"]["W1"][0]
    for peer, cells in rows.items():
        assert found[peer]["mails"] >= 20
        assert float(cells[0]) == pytest.approx(found[peer]["rate"], rel=0.01)


def test_an_unknown_peer_is_named() -> None:
    """Nothing is measured if something else was meant."""
    done = bench("--peers", "direct,sendmail")
    assert done.returncode == 2
    assert "sendmail: known are direct, smtpproxy, smtpproxy-2, haproxy, postfix, aiosmtpd" in done.stderr


def test_the_core_is_profiled() -> None:
    """Both ways of every conversation have a figure."""
    argv = [sys.executable, str(REPOSITORY / "bench" / "profile_core.py"), "--times", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert rows[0] == "| µs of CPU, least (median) | session | session + audit |"
    assert len(rows) == 5
    assert all(re.fullmatch(r"\| [^|]+ \| \d+ \(\d+\) \| \d+ \(\d+\) \|", row) for row in rows[2:]), done.stdout


def test_handshakes_are_measured() -> None:
    """A kept certificate against a given one, and minting: each has its row."""
    try:
        find("setpriv")
    except PeerUnavailable as error:
        unavailable(error)
    argv = [sys.executable, str(REPOSITORY / "bench" / "tls.py"), "--rounds", "1", "--sessions", "10", "--names", "3"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert rows[0] == ["certificate", "CPU µs/session", "TLS", "TLS × given", "s"]
    assert [row[0] for row in rows[2:]] == [
        "in clear",
        "given",
        "minted, kept",
        "given, 3 servers",
        "minted, 3 servers, each for the first time",
    ]
    assert all(len(row) == 5 for row in rows)


def test_rules_and_replays_are_measured() -> None:
    """What a verb pays without rules and with them, and how long loading and replaying takes: each has its row."""
    short = ["--rounds", "1", "--times", "1", "--entries", "100", "--exchanges", "500"]
    argv = [sys.executable, str(REPOSITORY / "bench" / "rules.py"), *short]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[0] == ["µs of CPU", "without", "more with rules", "×"]
    titles = [row[0] for row in rows]
    assert [title for title in titles if title.startswith(("a verb", "a recipient"))] == titles[2:5]
    assert [title.partition(" of ")[0] for title in titles[7:]] == [
        "loading 2000 rules",
        "loading 200 rules and three lists",
        "replay",
        "replay",
    ]


def test_the_store_is_measured() -> None:
    argv = [sys.executable, str(REPOSITORY / "bench" / "store.py"), "--repeats", "1", "--seconds", "0.3"]
    for program in ("smtp-source", "smtp-sink"):
        try:
            find(program)
        except PeerUnavailable as error:
            unavailable(error)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row[0] in ("file", "store", "both")] == ["file", "store", "both"] * 2


def test_searches_are_measured(tmp_path: Path) -> None:
    argv = [sys.executable, str(REPOSITORY / "bench" / "audit_search.py"), "--store", str(tmp_path / "store")]
    argv += ["--records", "20000", "--repeats", "1", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 60
    assert all(row["ms"] >= 0 for row in rows)


def test_counting_is_measured() -> None:
    argv = [sys.executable, str(REPOSITORY / "bench" / "metrics.py")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout

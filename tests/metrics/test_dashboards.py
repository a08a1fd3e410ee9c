"""The dashboard and the alerts: every query is asked of a real Prometheus that scrapes a real proxy with a store."""

import contextlib
import json
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from smtpproxy.metrics.catalogue import BY_NAME, PREFIX, Kind
from tests.metrics.watched import watched
from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import find
from tests.store.gateway import folder

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "smtpproxy.json").read_text(encoding="utf-8"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DEADLINE = 60.0


def program(name: str) -> str:
    try:
        return find(name)
    except PeerUnavailable as error:
        unavailable(error)


def panels(found: list[Any]) -> Iterator[Any]:
    """Also those in rows that are folded up."""
    for panel in found:
        yield panel
        yield from panels(panel.get("panels", []))


def of_dashboard() -> list[tuple[str, str]]:
    """Title and query."""
    variables = {"$__rate_interval": "10s", "$__range": "1m", "$__interval": "10s", "$instance": ".*"}
    queries = []
    for panel in panels(DASHBOARD["panels"]):
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in variables.items():
                text = text.replace(name, value)
            assert "$" not in text, text
            queries.append((panel["title"], text))
    return queries


def of_alerts() -> list[tuple[str, str]]:
    """Name and query; promtool reads the file by its own rules, and this only looks for the two."""
    text = ALERTS.read_text(encoding="utf-8")
    found = re.findall(r"- alert: (\w+)\n\s+expr: (?:>-\n((?:\s{10,}.*\n)+)|(.*)\n)", text)
    queries = [(name, " ".join((folded or plain).split())) for name, folded, plain in found]
    assert len(queries) == text.count("- alert:")
    return queries


def metrics_of(query: str) -> set[str]:
    """Names of ours in it, as the catalogue has them."""
    names = set()
    for name in re.findall(rf"\b{PREFIX}([a-z_]+)", query):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        names.add(base if base in BY_NAME and BY_NAME[base].kind is Kind.HISTOGRAM else name)
    return names


def test_every_name_is_one_of_ours() -> None:
    for title, query in (*of_dashboard(), *of_alerts()):
        assert metrics_of(query) <= set(BY_NAME), title
        for name, labels in re.findall(rf"\b{PREFIX}([a-z_]+)\{{([^}}]*)\}}", query):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            family = BY_NAME.get(name) or BY_NAME[base]
            known = {*family.labels, "le", "instance", "job"}
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) <= known, (title, labels)
    assert len(of_dashboard()) > 30
    assert len(of_alerts()) > 10


@pytest.mark.peers
def test_promtool_takes_the_alerts() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """One that scrapes it once a second; where it is asked."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (folder / "prometheus.yml").write_text(
        "scrape_configs:\n  - job_name: smtpproxy\n    scrape_interval: 1s\n    static_configs:\n"
        f'      - targets: ["127.0.0.1:{target}"]\nrule_files: ["{ALERTS}"]\n'
    )
    argv = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    process = subprocess.Popen(
        [*argv, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(DEADLINE)


def asked(where: str, query: str) -> Any:
    """What it says to a query; None: it is not there yet."""
    url = f"{where}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)
    except OSError:
        return None


def samples(where: str) -> int:
    """How many times it has scraped."""
    found = asked(where, 'count_over_time(up{job="smtpproxy"}[5m])')
    result = found["data"]["result"] if found else []
    return int(result[0]["value"][1]) if result else 0


@pytest.mark.peers
async def test_every_query_finds_what_it_is_about(tmp_path: Path) -> None:
    """Of the dashboard each gives a series, but those of what did not happen; of the alerts none is on, and what each
    compares is there."""
    with folder() as base:
        text = f'[metrics]\nlisten = "127.0.0.1:0"\n[audit]\nstore = "{base}/store"\n'
        await _asked_all(tmp_path, text)


async def _asked_all(tmp_path: Path, text: str) -> None:
    async with watched(tmp_path, text=text) as proxy:
        with prometheus(tmp_path, proxy.port) as where, trio.fail_after(DEADLINE):
            while samples(where) < 4:
                await proxy.mail()
                await trio.sleep(0.3)
            empty = []
            for title, query in of_dashboard():
                found = asked(where, query)
                assert found["status"] == "success", (title, query, found)
                if not found["data"]["result"]:
                    empty.append((title, query))
            for title, query in of_alerts():
                found = asked(where, query)
                assert found["status"] == "success", (title, query, found)
                assert found["data"]["result"] == [], title
    quiet = {"verdicts_total", "observed_total", "rule_acts_total", "tls_links_total", "tls_handshake_seconds"}
    quiet |= {"audit_sink_lag_records", "audit_sink_lag_seconds", "audit_sink_failing", "sessions_refused_total"}
    quiet |= {"sessions_unseen_total", "violations_total", "session_duration_seconds"}
    rare = ('action!="pass"', "> 0")  # what passes is left out there, and what is 0
    odd = [one for one in empty if not metrics_of(one[1]) & quiet and not any(text in one[1] for text in rare)]
    assert odd == []

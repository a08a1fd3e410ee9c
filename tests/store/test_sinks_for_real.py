"""`smtpproxy serve` with sinks: a real rsyslogd by TLS, configured as docs/audit-sinks.md says, and a collector that
reads OTLP with OpenTelemetry's own types; and what the metrics say of them."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from smtpproxy.audit.entries import leaf_of
from tests.store.collector import Collector, facts
from tests.store.gateway import Clients, Gateway, Server, until

DOCS = Path(__file__).parents[2] / "docs" / "audit-sinks.md"
RSYSLOGD = shutil.which("rsyslogd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


class Rsyslog:
    """A real one, which writes what it understood of each message into a file, a JSON object a line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "messages"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        ca = trustme.CA()
        ca.cert_pem.write_to_path(directory / "ca.pem")
        made = ca.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(directory / "rsyslog.key")
        for pem in made.cert_chain_pems:
            pem.write_to_path(directory / "rsyslog.pem", append=True)

    def start(self) -> None:
        """The page's configuration, with a port of the kernel's, keys, and what is done with messages."""
        if RSYSLOGD is None:
            raise AssertionError("rsyslogd is not there")
        page = re.findall(r"```text\n(.*?)```", DOCS.read_text(), re.DOTALL)
        (said,) = (block for block in page if "imtcp" in block)
        assert '"6514"' in said
        listens = f'"{self.port}" listenPortFileName="{self.directory}/port"'
        (self.directory / "rsyslog.conf").write_text(
            f"""
global(workDirectory="{self.directory}" parser.escapeControlCharactersOnReceive="off"
       DefaultNetstreamDriverCAFile="{self.directory}/ca.pem"
       DefaultNetstreamDriverCertFile="{self.directory}/rsyslog.pem"
       DefaultNetstreamDriverKeyFile="{self.directory}/rsyslog.key")
{said.replace('"6514"', listens)}
template(name="whole" type="list" option.jsonf="on") {{
  property(outname="pri" name="pri" format="jsonf")
  property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
  property(outname="host" name="hostname" format="jsonf")
  property(outname="app" name="app-name" format="jsonf")
  property(outname="procid" name="procid" format="jsonf")
  property(outname="msgid" name="msgid" format="jsonf")
  property(outname="data" name="structured-data" format="jsonf")
  property(outname="msg" name="msg" format="jsonf")
}}
action(type="omfile" file="{self.file}" template="whole")
"""
        )
        self._process = subprocess.Popen(
            [RSYSLOGD, "-n", "-f", self.directory / "rsyslog.conf", "-i", self.directory / "pid"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self.directory / "port"
        if not self.port:
            self.port = int(until(lambda: port.exists() and port.read_text().strip(), "rsyslogd does not listen"))
        until(self._is_there, "rsyslogd takes no connection")

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def stop(self) -> None:
        """It writes what it has, and ends."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """What it wrote."""
        if not self.file.exists():
            return []
        whole = self.file.read_bytes().rpartition(b"\n")[0]
        said = [json.loads(line) for line in whole.split(b"\n") if line]
        return [one for one in said if one["app"] == "smtpproxy"]  # it says things of its own, too

    def numbers(self) -> Counter[int]:
        """Of the records it has."""
        return Counter(int(found[1]) for one in self.messages if (found := re.search(r' n="(\d+)"', one["data"])))


def _needed() -> None:
    if RSYSLOGD is None:
        if os.environ.get("CI"):
            pytest.fail("rsyslogd is not there: tests/peers/install.sh installs it")
        pytest.skip("needs rsyslogd: apt install rsyslog rsyslog-openssl")


@pytest.fixture
def rsyslog(base: Path) -> Iterator[Rsyslog]:
    _needed()
    (base / "rsyslog").mkdir()
    made = Rsyslog(base / "rsyslog")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def _metrics(gateway: Gateway) -> dict[str, float]:
    """What a scrape has about the sinks."""
    port = int(gateway.hears(r"metrics are told.*127\.0\.0\.1:(\d+)")[1])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("smtpproxy_audit_sink_"):
            name, _, value = line.rpartition(" ")
            found[name.removeprefix("smtpproxy_audit_sink_")] = float(value)
    return found


def _lines(gateway: Gateway) -> dict[int, bytes]:
    account = gateway.account()
    return dict(zip(account.numbers, account.raw, strict=True))


METRICS = '[metrics]\nlisten = "127.0.0.1:0"\n'


def test_a_real_rsyslog_has_every_record_as_it_is_in_the_store(base: Path, server: Server, rsyslog: Rsyslog) -> None:
    """Also those that came while it was away; and the metrics say that it was."""
    sink = f"""
checkpoint_records = 500
[[audit.syslog]]
name = "siem"
server = "127.0.0.1:{rsyslog.port}"
roots = "{rsyslog.directory}/ca.pem"
longest = 65535
"""
    key = base / "audit.key"
    made = subprocess.run(
        [sys.executable, "-m", "smtpproxy", "audit", "key", "init", key], check=True, capture_output=True, timeout=60
    )
    assert made.stdout
    with Gateway(base, server.port, audit=f'key = "{key}"\n{sink}', tables=METRICS) as gateway:
        with Clients(lambda: gateway.port, sessions=4) as load:
            load.goes_on(40)
            until(lambda: len(rsyslog.numbers()) > 100, "rsyslogd has nothing")
            until(lambda: _metrics(gateway).get('failing{sink="siem"}') == 0.0, "no metrics of a sink that is there")
            rsyslog.stop()
            load.goes_on(40)
            until(lambda: _metrics(gateway).get('failing{sink="siem"}') == 1.0, "no metrics of a sink that is down")
            until(lambda: _metrics(gateway)['lag_records{sink="siem"}'] > 0, "nothing waits for a sink that is down")
            rsyslog.start()
            load.goes_on(20)
        until(lambda: _metrics(gateway)['lag_records{sink="siem"}'] == 0.0, "it does not catch up")
        until(lambda: _metrics(gateway)['failing{sink="siem"}'] == 0.0, "it is not said that it is there again")
        assert gateway.stop() == 0
        lines = _lines(gateway)
    rsyslog.stop()
    assert gateway.said.count("a sink is down") == 1
    assert gateway.said.count("a sink is there again") == 1
    numbers = rsyslog.numbers()
    first = min(numbers)
    assert first < 10  # a sink that is new begins with what comes
    assert sorted(numbers) == list(range(first, max(lines) + 1))
    checkpoints = 0
    for one in rsyslog.messages:
        if one["msgid"] == "audit-checkpoint":
            checkpoints += 1
            continue
        found = re.fullmatch(r'\[smtpproxy@32473 n="(\d+)" leaf="([0-9a-f]+)"\]', one["data"])
        assert found is not None, one
        line = lines[int(found[1])]
        assert one["msg"].removeprefix("\N{BOM}").lstrip(" ").encode() == line
        assert leaf_of(line).hex().startswith(found[2]) or leaf_of(line).hex() == found[2]
        said = json.loads(line)
        assert one["msgid"] == said["kind"]
        assert one["procid"] == (said["session"] or "-")
    assert checkpoints >= 2


def test_a_collector_has_every_record_and_every_span(base: Path, server: Server) -> None:
    with contextlib.closing(Collector()) as collector:
        sink = f"""
[[audit.otel]]
name = "collector"
endpoint = "http://127.0.0.1:{collector.port}"
traces = true
"""
        with Gateway(base, server.port, audit=sink, tables=METRICS) as gateway:
            with Clients(lambda: gateway.port, sessions=4) as load:
                load.goes_on(60)
            until(lambda: _metrics(gateway).get('lag_records{sink="collector"}') == 0.0, "it does not catch up")
            assert gateway.stop() == 0
            lines = _lines(gateway)
        records: dict[int, Any] = {}
        for record in collector.logs:
            if record.event_name == "smtpproxy.audit_checkpoint":
                continue
            records[facts(record.attributes)["smtpproxy.record"]] = record
        first = min(records)
        assert sorted(records) == list(range(first, max(lines) + 1))
        for number, record in records.items():
            assert record.body.string_value.encode() == lines[number]
        said = [json.loads(line) for line in lines.values()]
        closed = sum(one["kind"] == "link-close" for one in said)
        mails = sum(one["kind"] in ("tx-commit", "tx-refused") for one in said)
        spans = {bytes(span.span_id): span for span in collector.spans}
        assert len(spans) == closed + mails
        sessions = [span for span in spans.values() if not span.parent_span_id]
        assert len(sessions) == closed
        for span in spans.values():
            assert not span.parent_span_id or bytes(span.parent_span_id) in spans
            assert span.start_time_unix_nano <= span.end_time_unix_nano

"""The record to an OpenTelemetry collector: what is sent, and what of an answer counts."""

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from smtpproxy.audit.entries import leaf_of
from smtpproxy.store.following import Followers
from smtpproxy.store.otel import Collector as Where
from smtpproxy.store.otel import OTelSink
from smtpproxy.store.sinks import Pace, Policy, SinkDownError
from smtpproxy.store.spans import span_id, trace_id
from smtpproxy.store.store import Store
from tests.store.collector import Collector, facts, refusing
from tests.store.filling import Writer, lines
from tests.store.signing import checkpoint, signer

BATCH = list(enumerate(lines(10)))


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def sink(collector: Collector, directory: Path, **more: Any) -> OTelSink:
    more.setdefault("timeout", 2.0)
    return OTelSink("o", Where(f"http://127.0.0.1:{collector.port}", "gw", "host.example", **more), directory)


def test_a_log_record_for_each_record(collector: Collector, tmp_path: Path) -> None:
    one = sink(collector, tmp_path)
    assert one.send(BATCH) == 0
    one.close()
    assert [record.body.string_value for record in collector.logs] == [line.decode() for _, line in BATCH]
    for (number, line), record in zip(BATCH, collector.logs, strict=True):
        said = json.loads(line)
        found = facts(record.attributes)
        assert (found["smtpproxy.record"], found["smtpproxy.leaf"]) == (number, leaf_of(line).hex())
        assert found["smtpproxy.session"] == said["session"]
        assert record.event_name == "smtpproxy." + said["kind"].replace("-", "_")
        assert record.severity_number in (9, 10, 13, 17)
        assert record.time_unix_nano % 1_000_000_000 // 1000 == int(said["at"][20:26])
        assert record.trace_id == b""
    assert facts(collector.resources[0].attributes).items() >= {
        "service.name": "smtpproxy", "service.instance.id": "gw", "host.name": "host.example",
    }.items()  # fmt: skip


def test_without_what_is_about_persons(collector: Collector, tmp_path: Path) -> None:
    one = sink(collector, tmp_path, personal=False)
    one.send(BATCH)
    one.close()
    text = repr(collector.logs)
    assert "example.org" not in text
    assert "RCPT TO" not in text
    assert '"personal":' in collector.logs[0].body.string_value


def test_headers_and_nothing_of_the_environment(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-stolen=1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9/",
        "OTEL_RESOURCE_ATTRIBUTES": "stolen=1",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "HTTP_PROXY": "http://127.0.0.1:9/",
        "http_proxy": "http://127.0.0.1:9/",
    }.items():
        monkeypatch.setenv(name, value)
    for given in ({"Authorization": "Bearer abc"}, {}):
        one = sink(collector, tmp_path, headers=given)
        one.send(BATCH)
        one.close()
        headers = {name.lower(): value for name, value in collector.headers[-1].items()}
        assert headers.get("authorization", "") == given.get("Authorization", "")
        assert headers["content-encoding"] == "gzip"
        assert not any("stolen" in name for name in headers)
    assert "stolen" not in facts(collector.resources[0].attributes)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((500, b"", {}), "it answers 500"),
        ((401, b"", {}), "it answers 401"),
        ((301, b"", {"Location": "http://127.0.0.1:9/"}), "it answers 301"),
        ((200, b"<html>Welcome to the hotel", {}), "what it answers is no OTLP"),
    ],
)
def test_answers_that_are_none(collector: Collector, tmp_path: Path, answer: Any, why: str) -> None:
    """Nothing counts as sent, and the same is sent again."""
    collector.answers = [answer] * 20
    one = sink(collector, tmp_path)
    with pytest.raises(SinkDownError, match=why):
        one.send(BATCH)
    collector.answers = []
    collector.logs = []
    assert one.send(BATCH) == 0
    assert len(collector.logs) == len(BATCH)
    one.close()


def test_what_the_collector_refused_is_counted(collector: Collector, tmp_path: Path) -> None:
    collector.answers = [refusing(3)]
    one = sink(collector, tmp_path)
    assert one.send(BATCH) == 3
    one.close()


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    one = OTelSink("o", Where(f"http://127.0.0.1:{port}", "gw", "h", timeout=0.3), tmp_path)
    with pytest.raises(SinkDownError, match=f"the collector http://127.0.0.1:{port}: connection refused"):
        one.send(BATCH)
    one.close()


def test_tls(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(theirs)
    collector = Collector(theirs)
    try:
        for trusted in (other, ca):
            ours = ssl.create_default_context()
            trusted.configure_trust(ours)
            where = Where(f"https://127.0.0.1:{collector.port}", "gw", "h", context=ours, timeout=1.0)
            one = OTelSink("o", where, tmp_path)
            if trusted is ca:
                assert one.send(BATCH) == 0
            else:
                with pytest.raises(SinkDownError, match="its certificate is not trusted"):
                    one.send(BATCH)
            one.close()
        assert len(collector.logs) == len(BATCH)
    finally:
        collector.close()


def test_traces(collector: Collector, tmp_path: Path) -> None:
    """Spans, and log records that name them; with a failure between, each once."""
    store = Store(tmp_path, create=True)
    store.append(list(Writer().session(mails=2, outcome="server")))
    batch = list(store.lines(0))
    one = sink(collector, tmp_path, traces=True)
    one.send(batch[:5])
    collector.answers = [(200, b"", {}), *[(503, b"", {})] * 20]
    with pytest.raises(SinkDownError):
        one.send(batch[5:])
    collector.answers = []
    one.send(batch[5:])
    one.close()
    session = "0123456789-1"
    spans = {span.name: span for span in collector.spans}
    assert [span.name for span in collector.spans] == ["SMTP mail", "SMTP mail", "SMTP session"]
    assert spans["SMTP session"].trace_id == trace_id("gw", session).to_bytes(16)
    assert spans["SMTP mail"].parent_span_id == spans["SMTP session"].span_id == span_id("gw", session).to_bytes(8)
    assert (spans["SMTP mail"].status.code, spans["SMTP mail"].status.message) == (2, "server: 554")
    assert spans["SMTP session"].status.code == 0
    assert len(collector.logs) == len(batch)
    assert {record.trace_id for record in collector.logs} == {spans["SMTP session"].trace_id}
    assert {span.span_id for span in collector.spans} == {record.span_id for record in collector.logs}
    store.close()


def test_traces_alone(collector: Collector, tmp_path: Path) -> None:
    """For who has no logs: nothing is asked at /v1/logs."""
    store = Store(tmp_path, create=True)
    store.append(list(Writer().session()))
    one = sink(collector, tmp_path, traces=True, logs=False)
    one.send(list(store.lines(0)))
    one.note(3, "a note")
    one.close()
    assert set(collector.paths) == {"/v1/traces"}
    assert len(collector.spans) == 2
    store.close()


def test_it_follows_a_store(collector: Collector, tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    writer = Writer()
    one = sink(collector, tmp_path, traces=True)
    followers = Followers(store, [(one, Policy(history=True))], lambda name, why: None, pace=Pace(idle=0.01, records=7))
    for _ in range(3):
        store.append(list(lines(5, writer=writer)))
        note = checkpoint(store, signer())
        followers.write(at_once=True)
    collector.wait(lambda: any(record.body.string_value == note for record in collector.logs))
    assert followers.stop() == []
    bodies = [
        record.body.string_value.encode() for record in collector.logs if not record.body.string_value.startswith("gw1")
    ]
    assert bodies == [line for _, line in store.lines(0)]
    mails, sessions = (
        store.connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("mail", "session")
    )
    assert len({span.span_id for span in collector.spans}) == len(collector.spans) <= mails + sessions
    store.close()


def test_who_does_not_want_it_does_not_need_it() -> None:
    """The proxy imports nothing of it."""
    code = "import sys, smtpproxy.net.service, smtpproxy.net.sinks, smtpproxy.cli; print([m for m in sys.modules if m.startswith(('opentelemetry', 'requests', 'psycopg', 'prometheus'))])"  # fmt: skip  # noqa: E501 - a program
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"

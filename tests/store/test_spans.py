"""Traces of the record: a span for each session and each transaction, the same one however often it is made."""

from pathlib import Path
from typing import Any

import pytest

from smtpproxy.store import spans
from smtpproxy.store.reading import open_reader
from smtpproxy.store.spans import Span, Tracer, span_id, trace_id
from smtpproxy.store.store import Store
from tests.store.filling import Writer, lines


def traced(directory: Path, *records: bytes, personal: bool = True, start: int = 0) -> list[Span]:
    """The spans of a store with these records."""
    store = Store(directory, create=True)
    store.append(list(records))
    store.close()
    reader = open_reader(str(directory))
    tracer = Tracer("gw", personal=personal)
    found = [span for number, line in reader.lines(start) for span in tracer.take(number, line, reader)]
    reader.close()
    return found


def test_a_session_with_two_mails(tmp_path: Path) -> None:
    found = traced(tmp_path, *Writer().session(mails=2, tls="TLSv1.3", identity="ann", rule="no-macros"))
    one, two, whole = found
    assert [span.name for span in found] == ["SMTP mail", "SMTP mail", "SMTP session"]
    assert {span.trace for span in found} == {trace_id("gw", "0123456789-1")}
    assert one.parent == two.parent == whole.id == span_id("gw", "0123456789-1")
    assert whole.parent == 0
    assert len({one.id, two.id, whole.id}) == 3
    assert whole.begin < one.begin < one.end <= two.begin < two.end < whole.end
    assert [span.trouble for span in found] == ["", "", ""]
    expected = {
        "smtpproxy.outcome": "accepted", "smtpproxy.code": 250, "smtpproxy.rule": "no-macros", "smtpproxy.tx": 1,
        "smtpproxy.octets": 1000, "network.protocol.name": "smtp",
    }  # fmt: skip
    assert expected.items() <= one.attributes.items()
    assert {
        "client.address": "192.0.2.1", "user.name": "ann", "server.port": 25, "tls.protocol.version": "1.3",
        "smtpproxy.mails": 2, "smtpproxy.hello": "client.example.org",
    }.items() <= whole.attributes.items()  # fmt: skip


def test_without_what_is_about_persons(tmp_path: Path) -> None:
    found = traced(tmp_path, *Writer().session(identity="ann", message_id="<x@y.example>"), personal=False)
    text = repr(found)
    for secret in ("192.0.2.1", "ann", "alice", "bob", "y.example", "client.example"):
        assert secret not in text
    assert "accepted" in text


@pytest.mark.parametrize(
    ("outcome", "trouble"), [("accepted", ""), ("server", "server: 554"), ("RSET", ""), ("closed", "closed: 554")]
)
def test_what_is_an_error(tmp_path: Path, outcome: str, trouble: str) -> None:
    found = traced(tmp_path, *Writer().session(outcome=outcome))
    assert found[0].trouble == trouble


def test_sessions_that_died_with_their_worker(tmp_path: Path) -> None:
    writer = Writer()
    records = list(writer.session(close=False))
    died = writer.line("", "worker-died", {"worker": writer.worker, "how": "signal 9"})
    found = traced(tmp_path, *records, died)
    assert (found[-1].name, found[-1].trouble) == ("SMTP session", "lost")


def test_made_twice_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert traced(tmp_path / "a", *lines(30)) == traced(tmp_path / "b", *lines(30))
    assert trace_id("gw", "a") != trace_id("gw2", "a") != trace_id("gw2", "b")


def test_after_a_restart_a_beginning_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it is not found, nothing is guessed."""
    records = list(Writer().session())
    at = next(number for number, line in enumerate(records) if b"tx-begin" in line)
    whole = traced(tmp_path, *records)
    reader = open_reader(str(tmp_path))

    def again() -> Any:
        tracer = Tracer("gw")
        return [span for number, line in reader.lines(at + 1) for span in tracer.take(number, line, reader)]

    assert again() == whole
    monkeypatch.setattr(spans, "LOOK_BACK", 1)
    mail = again()[0]
    assert mail.begin == mail.end == whole[0].end
    assert mail.attributes["smtpproxy.began_unknown"] is True
    reader.close()


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST", 3)
    writer = Writer()
    begins = [writer.line(f"s-{number}", "tx-begin", {"tx": 1}, {"mail": ""}) for number in range(10)]
    store = Store(tmp_path, create=True)
    store.append(begins)
    store.close()
    reader = open_reader(str(tmp_path))
    tracer = Tracer("gw")
    for number, line in enumerate(begins):
        assert list(tracer.take(number, line, reader)) == []
    assert len(tracer._begun) == 3
    reader.close()


@pytest.mark.parametrize("line", [b"", b"no json", b"[]", b'{"kind":7}', b'{"kind":"link-close","session":3}', b"\xff"])
def test_lines_that_are_none(tmp_path: Path, line: bytes) -> None:
    Store(tmp_path, create=True).close()
    reader = open_reader(str(tmp_path))
    assert list(Tracer("gw").take(0, line, reader)) == []
    reader.close()

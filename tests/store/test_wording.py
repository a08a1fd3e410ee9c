"""A record in the words of others."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.store.indexing import Line
from smtpproxy.store.wording import Severity, attributes, end, severity


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (Line(kind="exchange", code=250), Severity.INFORMATIONAL),
        (Line(kind="exchange", code=450), Severity.NOTICE),
        (Line(kind="exchange", action="answer"), Severity.NOTICE),
        (Line(kind="exchange", action="hangup"), Severity.WARNING),
        (Line(kind="exchange", anomalies=("odd-hello",)), Severity.NOTICE),
        (Line(kind="note", anomaly="tls-failed"), Severity.WARNING),
        (Line(kind="note", anomaly="of-tomorrow"), Severity.NOTICE),
        (Line(kind="violation", anomaly="bare-lf"), Severity.WARNING),
        (Line(kind="link-connect", refused="too many"), Severity.NOTICE),
        (Line(kind="worker-died"), Severity.ERROR),
        (Line(kind="audit-cut"), Severity.ERROR),
        (Line(kind="of-tomorrow"), Severity.INFORMATIONAL),
    ],
)
def test_how_grave_it_is(line: Line, expected: Severity) -> None:
    assert severity(line) is expected


def test_attributes() -> None:
    record: dict[str, Any] = {
        "v": 1, "at": "x", "up": 1.0, "kind": "exchange", "salt": "x", "session": "s-1", "verb": "RCPT", "code": 250,
        "rules": ["a", "b"], "asked": "RCPT TO:<a@b>", "got": "250", "transcript": {"content": "x"}, "tx": 1,
        "identity": "ann", "client": "192.0.2.1:4", "server": "[2001:db8::1]:25", "observed": [{"rule": "x"}],
        "empty": [],
    }  # fmt: skip
    assert attributes(record) == {
        "smtpproxy.session": "s-1",
        "smtpproxy.verb": "RCPT",
        "smtpproxy.code": 250,
        "smtpproxy.rules": ["a", "b"],
        "smtpproxy.tx": 1,
        "user.name": "ann",
        "client.address": "192.0.2.1",
        "client.port": 4,
        "server.address": "2001:db8::1",
        "server.port": 25,
    }


def test_attributes_of_tls() -> None:
    record = {
        "client": {"version": "TLSv1.3", "cipher": "X", "resumed": False, "sni": "mx"},
        "server": {"version": "TLSv1.2", "verified": True, "certificate": {"subject": "CN=x"}},
    }
    assert attributes(record) == {
        "tls.protocol.name": "tls",
        "tls.protocol.version": "1.3",
        "tls.cipher": "X",
        "tls.resumed": False,
        "smtpproxy.client.sni": "mx",
        "smtpproxy.server.version": "TLSv1.2",
        "smtpproxy.server.verified": True,
    }


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:25", "192.0.2.1", 25),
        ("[2001:db8::1]:25", "2001:db8::1", 25),
        ("mx.example:25", "mx.example", 25),
        ("2001:db8::1", "2001:db8::1", None),
        ("mx.example", "mx.example", None),
        ("mx:\N{SUPERSCRIPT TWO}", "mx:\N{SUPERSCRIPT TWO}", None),
    ],
)
def test_ends(text: str, host: str, port: int | None) -> None:
    expected: dict[str, Any] = {"x.address": host} | ({} if port is None else {"x.port": port})
    assert end("x", text) == expected
    assert end("x", "") == {}


ANY = st.none() | st.text(max_size=20) | st.integers() | st.booleans()


@given(st.dictionaries(st.text(max_size=10), ANY | st.lists(ANY, max_size=3), max_size=5))
def test_any_record_has_attributes(record: dict[str, Any]) -> None:
    for value in attributes(record).values():
        assert isinstance(value, str | bool | int | float | list)

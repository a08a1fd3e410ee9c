"""Sinks as they are configured: what is read, what is made of it, what can't work."""

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.config import AuditConfig
from smtpproxy.net.sinks import LONGEST_HEADERS, SinkError, plan, read_headers
from smtpproxy.store.sinks import Policy, Positioned


def planned(tmp_path: Path, **sinks: Any) -> list[Any]:
    audit = AuditConfig.model_validate({"store": str(tmp_path / "audit"), **sinks})
    return [(one.make(), one.policy) for one in plan(audit, "smtpproxy/gw", "gw.example")]


def test_none(tmp_path: Path) -> None:
    assert planned(tmp_path) == []


def test_all_kinds(tmp_path: Path) -> None:
    syslog = {"name": "a", "server": "127.0.0.1:6514", "tls": False, "when_down": "skip", "skip_after": 5.0}
    local = {"name": "b", "socket": "/dev/log", "history": True}
    otel = {"name": "c", "endpoint": "http://127.0.0.1:4318", "traces": True}
    postgres = {"address": "postgresql://db.example/audit"}
    found = planned(tmp_path, syslog=[syslog, local], otel=[otel], postgres=postgres)
    assert [sink.name for sink, _ in found] == ["a", "b", "c", "postgresql"]
    keep = Policy("keep", 3600.0, history=False)
    assert [policy for _, policy in found] == [Policy("skip", 5.0), Policy("keep", 3600.0, history=True), keep, keep]
    assert isinstance(found[3][0], Positioned)
    for sink, _ in found:
        sink.close()


def test_each_is_made_anew(tmp_path: Path) -> None:
    """A thread that was left behind has the last one."""
    audit = AuditConfig.model_validate({"store": str(tmp_path), "syslog": [{"name": "b", "socket": "/dev/log"}]})
    (one,) = plan(audit, "o", "h")
    assert one.make() is not one.make()


def test_an_address_that_libpq_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"\[audit.postgres\] address: this is no address of a PostgreSQL database"):
        planned(tmp_path, postgres={"address": "postgresql://db/x?ssl_mode=verify-full"})


def test_roots_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text("no certificate")
    roots = str(tmp_path / "roots.pem")
    with pytest.raises(SinkError, match="sink a: its certificates can't be used: "):
        planned(tmp_path, syslog=[{"name": "a", "server": "h", "roots": roots}])


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra."""
    real = builtins.__import__

    def lacking(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("smtpproxy.store.otel", "smtpproxy.store.postgres"):
            raise ImportError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    for sinks, extra in (
        ({"otel": [{"name": "c", "endpoint": "http://127.0.0.1"}]}, "otel"),
        ({"postgres": {"address": "postgresql://db/x"}}, "postgres"),
    ):
        with pytest.raises(SinkError, match=rf'can\'t be imported: `pip install "smtpproxy\[{extra}\]"`'):
            planned(tmp_path, **sinks)


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("", {}),
        ("Authorization: Bearer abc def\n", {"Authorization": "Bearer abc def"}),
        ("# a token\n\n  X-Key:\tk\r\n", {"X-Key": "k"}),
    ],
)
def test_headers(tmp_path: Path, text: str, headers: Mapping[str, str]) -> None:
    (tmp_path / "headers").write_text(text)
    assert read_headers(str(tmp_path / "headers")) == headers


@pytest.mark.parametrize("before", ["", "A b: ", "A: \x01", "A\xa0: ", ": "])
def test_what_is_no_header(tmp_path: Path, before: str) -> None:
    """Its place is told, and nothing of it."""
    (tmp_path / "headers").write_text(f"# \n{before}hunter2")
    with pytest.raises(SinkError, match=r"headers:2: this is no header") as caught:
        read_headers(str(tmp_path / "headers"))
    assert "hunter2" not in str(caught.value)


def test_headers_that_can_t_be_had(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="can't be read: No such file"):
        read_headers(str(tmp_path / "headers"))
    (tmp_path / "headers").write_text("A: b\n" * LONGEST_HEADERS)
    with pytest.raises(SinkError, match=f"are more than {LONGEST_HEADERS} octets"):
        read_headers(str(tmp_path / "headers"))

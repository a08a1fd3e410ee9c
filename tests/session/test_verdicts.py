"""Verdicts, records and effects: small values that other floors rely on."""

from smtpproxy.policy.judge import Judge, default_judge
from smtpproxy.session.effects import Abort, Close, StartTLS
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Action, Depth, PassAll, Verdict
from smtpproxy.smtp.anomalies import ANOMALIES, CLOSES, NOTED
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.values import Path


def test_the_actions_are_a_closed_set() -> None:
    """Their names stand on record."""
    assert " ".join(action.value for action in Action) == ("pass rewrite answer discard hangup quarantine redirect ask")
    assert [depth.value for depth in Depth] == ["stream", "header", "whole"]
    assert Verdict(Action.PASS) == PASS
    assert (PASS.value, PASS.rule, PASS.anomalies) == (None, "", ())


def test_the_judge_without_rules() -> None:
    """It is asked about nothing and denies nothing."""
    judge = PassAll()
    session = Session(judge=judge, record=lambda record: None, clock=lambda: 0.0)
    assert judge.depth(Transaction(1, Path(b"", b""), ()), session) is Depth.STREAM
    assert judge.max_size(session) == 0
    assert judge.owner(b"SIZE") == ""
    assert (judge.commands, judge.replies) == ({}, {})
    assert (judge.malformed, judge.header, judge.content) == (None, None, None)
    assert (judge.connect, judge.tls, judge.ended, judge.redirects) == (None, None, None, ())


def test_the_shipped_judge_looks_into_no_content() -> None:
    """Until a rule does."""
    judge = default_judge()
    assert isinstance(judge, Judge)
    assert judge is default_judge()
    session = Session(judge=judge, record=lambda record: None, clock=lambda: 0.0)
    assert judge.depth(Transaction(1, Path(b"", b""), ()), session) is Depth.STREAM
    assert (judge.malformed, judge.header, judge.content) == (None, None, None)


def test_effects_tell_sides_and_kinds_apart() -> None:
    """A driver carries them out by type."""
    assert StartTLS(Side.SERVER).side is Side.SERVER
    assert not isinstance(Close(Side.CLIENT), Abort)
    assert Side.CLIENT.other is Side.SERVER
    assert Side.SERVER.other is Side.CLIENT


def test_kinds_have_stable_names() -> None:
    """OpenSMTPD's where it has one."""
    assert {kind.value for kind in Kind} == {
        "link-connect", "link-tls", "link-auth", "link-close", "exchange", "tx-begin", "tx-commit", "tx-refused",
        "violation", "note",
    }  # fmt: skip
    assert AuditRecord(Kind.NOTE, 1.0).detail is None


def test_the_catalogue_has_each_name_once() -> None:
    """A name is a violation or a note."""
    assert not set(CLOSES) & set(NOTED)
    assert set(ANOMALIES) == set(CLOSES) | set(NOTED)
    assert all(text.endswith(".") for text in ANOMALIES.values())

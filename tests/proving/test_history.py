"""Audits read back: whole, cut off, packed, in several files; sessions put together within bounds."""

import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smtpproxy.proving import history
from smtpproxy.proving.history import Audit, HistoryError, Together, moment, sessions
from smtpproxy.proving.recorded import TLS, Close, Commit, Connect, Exchange, Note, Record, Refused
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from tests.proving.audits import BEGIN, HELLO, QUIT, Recording, mail, records_of

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def line(kind: str, session: str = "s-1", second: int = 0, **more: object) -> str:
    """One line of an audit."""
    at = f"2026-11-16T10:{second // 60:02}:{second % 60:02}Z"
    return json.dumps({"v": 1, "at": at, "seq": 1, "session": session, "kind": kind, **more}) + "\n"


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    recording = Recording(tmp_path / "audit.jsonl")
    recording.session(HELLO + mail() + mail("c@x.example", reply="554 no") + QUIT)
    recording.close()
    return tmp_path / "audit.jsonl"


def test_a_session_comes_back_as_it_was_recorded(audit: Path) -> None:
    (session,) = sessions(Audit([audit]))
    assert session.over
    assert session.name == "4d9d6b7a53-1"
    assert (session.connect.client, session.connect.listener) == ("192.0.2.1:4025", "mx")
    asked = [one.asked for one in session.exchanges]
    assert asked[:4] == ["(connect)", "EHLO me.example", "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>"]
    commit, refused = session.transactions
    assert isinstance(commit, Commit)
    assert (commit.mail, commit.rcpt, commit.octets) == ("a@x.example", ("b@y.example",), 29)
    assert isinstance(refused, Refused)
    assert (refused.why, refused.reply) == ("server", "554 no")


def test_what_was_sent_and_told_is_there_where_it_is_as_before(tmp_path: Path) -> None:
    """The audit leaves it out; null says that nothing was sent, or told."""
    file = tmp_path / "a"
    file.write_text(
        line("exchange", verb="NOOP", asked="NOOP", got="250 Ok")
        + line("exchange", verb="NOOP", asked="NOOP", sent=None, told="502 no")
        + line("exchange", verb="DATA", asked=None, sent="DATA", got="354 go", told=None, action="pass")
    )
    passed, answered, own = (record for record in records_of(file) if isinstance(record, Exchange))
    assert (passed.sent, passed.told, passed.code, passed.refused) == ("NOOP", "250 Ok", 250, False)
    assert (answered.sent, answered.told, answered.refused, answered.refused_by_server) == (None, "502 no", True, False)
    assert (own.sent, own.told, own.code) == ("DATA", None, 0)


def test_a_line_that_was_cut_off_is_counted_and_told(audit: Path) -> None:
    """A crash leaves one at the end; the next start ends it, so one may stand in the middle too."""
    whole = records_of(audit)
    lines = audit.read_bytes().splitlines(keepends=True)
    audit.write_bytes(b"".join([*lines[:3], lines[3][:20] + b"\n", *lines[3:], lines[-1][:30]]))
    read = Audit([audit])
    assert list(read) == whole
    assert (read.seen.broken, read.seen.first_broken) == (2, f"{audit}:4")


@pytest.mark.parametrize("octets", [b"\xff\xfe\0\0 not json\n", b"{}\n", b"null\n", b'["kind"]\n'])
def test_what_is_no_audit_is_an_error(octets: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(octets)
    with pytest.raises(HistoryError, match="no line of it is a record"):
        records_of(tmp_path / "x")


def test_an_empty_file_is_an_audit_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert records_of(tmp_path / "x") == []


def test_kinds_and_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(line("link-connect", unheard_of=1) + line("link-dream") + line("link-close"))
    read = Audit([tmp_path / "x"])
    assert [type(record) for record in read] == [Connect, Close]
    assert (read.seen.strange, read.seen.broken) == (1, 0)


def test_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(line("link-connect") + line("link-close", v=2))
    with pytest.raises(HistoryError, match=r"x:2: an audit of format 2"):
        records_of(tmp_path / "x")


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LONGEST", 1000)
    (tmp_path / "x").write_text(line("link-connect") + "x" * 5000 + "\n" + line("link-close"))
    read = Audit([tmp_path / "x"])
    assert [type(record) for record in read] == [Connect, Close]
    assert read.seen.first_broken.endswith("x:2")


def test_packed_files_are_read(audit: Path, tmp_path: Path) -> None:
    packed = tmp_path / "audit.1.gz"
    packed.write_bytes(gzip.compress(audit.read_bytes()))
    assert records_of(packed) == records_of(audit)


def test_a_packed_file_that_was_cut_short_gives_what_is_there(audit: Path, tmp_path: Path) -> None:
    packed = tmp_path / "audit.1.gz"
    packed.write_bytes(gzip.compress(audit.read_bytes())[:-200])
    read = Audit([packed])
    found = list(read)
    assert found == records_of(audit)[: len(found)]
    assert read.seen.broken == 1


def test_rotated_files_are_put_in_order_however_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(line("link-close", second=9))
    (tmp_path / "b").write_text(line("link-connect", second=1) + line("note", second=5))
    (tmp_path / "c.gz").write_bytes(gzip.compress(line("note", second=3).encode()))
    found = records_of(tmp_path / "a", tmp_path / "b", tmp_path / "c.gz", tmp_path / "a")
    assert [record.at.second for record in found] == [1, 3, 5, 9]


def test_standard_input_is_read_and_left_open(audit: Path) -> None:
    stream = io.BytesIO(gzip.compress(audit.read_bytes()))
    assert list(Audit([Path("-")], stdin=stream)) == records_of(audit)
    assert not stream.closed


def test_a_period_is_a_part_of_it(audit: Path) -> None:
    begin = datetime.fromtimestamp(BEGIN, UTC)
    everything = records_of(audit)
    middle = begin + timedelta(seconds=0.1)
    after, before = list(Audit([audit], since=middle)), list(Audit([audit], until=middle))
    assert after
    assert before
    assert before + after == everything


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("30 min", NOW - timedelta(minutes=30)),
        ("2026-11-16T10:00:00Z", datetime(2026, 11, 16, 10, tzinfo=UTC)),
        ("2026-11-16", datetime(2026, 11, 16).astimezone()),
        ("99999999d", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_span_or_a_date(text: str, at: datetime) -> None:
    assert moment(text, NOW) == at


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7y", "-1d", "2026-13-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="no span such as 7d"):
        moment(text, NOW)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="nowhere: No such file"):
        Audit([tmp_path / "nowhere"])
    with pytest.raises(HistoryError, match=r"is a directory: name its files, e\.g\. .*audit\.jsonl\*"):
        Audit([tmp_path])
    with pytest.raises(HistoryError, match="no standard input"):
        list(Audit([Path("-")]))


def test_how_far_it_is(audit: Path) -> None:
    read = Audit([audit])
    assert (read.size, read.position) == (audit.stat().st_size, 0)
    assert list(read)
    assert read.position == read.size


# ------------------------------------------------------------------------------------------------------- sessions


def _interleaved(count: int, *, close: bool = True) -> list[Record]:
    text = [line("link-connect", f"s-{n}", n) for n in range(count)]
    text += [line("exchange", f"s-{n}", verb="NOOP", asked="NOOP", got="250 Ok") for n in range(count)]
    text += [line("link-close", f"s-{n}") for n in range(count) if close]
    return list(Audit([Path("-")], stdin=io.BytesIO("".join(text).encode())))


def test_sessions_beside_each_other_are_told_apart() -> None:
    found = list(sessions(_interleaved(5)))
    assert [one.name for one in found] == [f"s-{n}" for n in range(5)]
    assert all(one.over and len(one.exchanges) == 1 for one in found)


def test_only_so_many_sessions_are_kept() -> None:
    """The one that nothing was heard of for the longest time is given out as it is."""
    found = list(sessions(_interleaved(5), most=3))
    assert [one.name for one in found if not one.over] == ["s-0", "s-1"]
    assert all(not one.exchanges for one in found if not one.over)
    assert sum(one.over for one in found) == 3


def test_only_so_many_records_of_a_session_are_kept() -> None:
    (found,) = sessions(_interleaved(1), most_records=2)
    assert (len(found.records), found.cut, found.over) == (2, 1, True)


def test_a_session_without_an_end_is_given_out_last() -> None:
    (found,) = sessions(_interleaved(1, close=False))
    assert not found.over


def test_a_connection_that_was_turned_away_is_a_session() -> None:
    text = line("link-connect", refused="100 connections of one client").encode()
    (found,) = sessions(Audit([Path("-")], stdin=io.BytesIO(text)))
    assert found.over


def test_sessions_that_began_before_are_counted_once() -> None:
    together: Together[Connect] = Together(lambda connect: connect)
    for record in _interleaved(3)[3:]:
        assert together.of(record) is None
    assert together.headless == 3


def test_handshakes_and_notes_come_back(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a")
    recording.session(HELLO + QUIT, posture=Posture(ClientTLS.IMPLICIT, ServerTLS.IMPLICIT))
    found = records_of(tmp_path / "a")
    tls = [record for record in found if isinstance(record, TLS)]
    assert tls[-1].client == {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "resumed": False}
    (tmp_path / "b").write_text(line("note", subject="tls", side="client", rule="old-tls", action="hangup"))
    (note,) = records_of(tmp_path / "b")
    assert isinstance(note, Note)
    assert note.deciders == ("old-tls",)

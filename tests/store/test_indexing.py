"""The index: which rows come of which lines, and the same ones however the lines come in."""

import itertools
import json
import random
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from smtpproxy.store.indexing import GRAVITY, MOST_MARKS, Index, _address
from smtpproxy.store.store import DATABASE, Store
from tests.store.filling import Writer, lines

CLIENT = {"client": "192.0.2.1:40000"}
Row = dict[str, Any]


class Bench:
    """A store, a worker that writes to it, and its rows as dictionaries."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory, create=True)
        self.writer = Writer()
        self.connection = sqlite3.connect(directory / DATABASE)
        self.connection.row_factory = sqlite3.Row

    def put(self, *found: bytes) -> int:
        """The number of the last one."""
        self.store.append(found)
        return self.store.size - 1

    def connect(self, **more: Any) -> str:
        """A session's name."""
        name = self.writer.new_session()
        public = {"listener": "in", "server": "mx.example.net:25", **more}
        self.put(self.writer.line(name, "link-connect", public, CLIENT))
        return name

    def exchange(self, name: str, verb: str = "NOOP", *, code: int = 250, tx: int = 0, **more: Any) -> int:
        return self.put(self.writer.exchange(name, verb, verb, f"{code} x", code=code, tx=tx, **more))

    def line(self, name: str, kind: str, public: Row | None = None, personal: Row | None = None) -> int:
        return self.put(self.writer.line(name, kind, public or {}, personal))

    def commit(self, name: str, tx: int = 1, **more: Any) -> int:
        personal = {"mail": "a@x.example", "rcpt": ["b@y.example"], "reply": "250 Ok", **more}
        return self.line(name, "tx-commit", {"tx": tx, "code": 250, "octets": 10, "sha256": "ab"}, personal)

    def close(self, name: str) -> int:
        return self.line(name, "link-close", {"seconds": 1.0})

    def rows(self, table: str, **where: Any) -> list[Row]:
        found = [dict(row) for row in self.connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
        return [row for row in found if where.items() <= row.items()]

    def one(self, table: str, **where: Any) -> Row:
        (row,) = self.rows(table, **where)
        return row

    def marks(self, **where: Any) -> dict[tuple[str, str], int]:
        return {(row["what"], row["name"]): row["times"] for row in self.rows("mark", **where)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()
    bench.connection.close()


# -------------------------------------------------------------------------------------------------------- sessions


def test_a_session_from_beginning_to_end(bench: Bench) -> None:
    found = list(bench.writer.session(tls="TLSv1.3", identity="ann", mails=2))
    bench.put(bench.writer.line("", "service-start", {"alone": True}), *found)
    session = bench.one("session")
    begin, end = json.loads(found[0]), json.loads(found[-1])
    assert (session["id"], session["last"], session["name"]) == (1, len(found), begin["session"])
    assert session["at"] < session["until"]
    assert round(session["until"] - session["at"], 3) == round(end["up"] - begin["up"], 3)
    assert {key: session[key] for key in ("how", "listener", "client", "server", "hello", "identity", "mails")} == {
        "how": "closed", "listener": "in", "client": "192.0.2.1", "server": "198.51.100.25:25",
        "hello": "client.example.org", "identity": "ann", "mails": 2,
    }  # fmt: skip
    assert (session["client_tls"], session["server_tls"]) == ("TLSv1.3", "TLSv1.3")


def test_while_it_goes_on(bench: Bench) -> None:
    bench.put(*bench.writer.session(close=False))
    session = bench.one("session")
    assert (session["until"], session["last"], session["how"]) == (None, None, None)
    assert bench.store.open_sessions == 1
    assert len(bench.rows("mail")) == 1


def test_one_that_was_turned_away(bench: Bench) -> None:
    name = bench.connect(refused="too many connections")
    session, mail = bench.one("session"), bench.one("mail")
    assert (session["how"], session["last"], session["until"]) == ("refused", 0, session["at"])
    assert (mail["outcome"], mail["tx"], mail["session"], mail["id"], mail["client"]) == ("none", 0, 0, 0, "4c0000201")
    assert bench.store.open_sessions == 0
    bench.exchange(name, "NOOP", anomalies=["early-talk"])  # what comes behind makes no rows
    bench.close(name)
    assert len(bench.rows("mail")) == 1
    assert bench.rows("mark") == []


def test_without_a_mail_it_has_one_row(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(name, "RCPT", code=503, action="answer", rule="order")
    last = bench.close(name)
    mail = bench.one("mail")
    assert (mail["id"], mail["session"], mail["tx"], mail["outcome"], mail["sender"], mail["size"]) == (
        last, 0, 0, "none", None, 0,
    )  # fmt: skip
    assert (mail["code"], mail["verdict"], mail["rule"]) == (503, "answer", "order")
    assert bench.rows("recipient") == []
    assert bench.marks(mail=0) == {("rule", "order"): 1, ("reply", "503"): 1}
    assert bench.one("session")["mails"] == 0


def test_the_last_hello_counts_and_only_one_that_was_accepted(bench: Bench) -> None:
    name = bench.connect()
    for asked, code in (
        ("EHLO one", 250),
        ("EHLO two", 550),
        ("HELO three", 250),
        ("EHLO", 250),
        ("LHLO x y", 250),
        ("EHLO six", 421),
    ):
        bench.put(bench.writer.exchange(name, asked.split()[0], asked, "x", code=code))
    bench.close(name)
    assert bench.one("session")["hello"] == "x y"


def test_an_identity_that_was_not_accepted_is_none(bench: Bench) -> None:
    name = bench.connect()
    bench.line(name, "link-auth", {"mechanism": "PLAIN", "accepted": False}, {"identity": "mallory"})
    bench.line(name, "link-auth", {"mechanism": "EXTERNAL", "accepted": True})
    bench.commit(name)
    bench.line(name, "link-auth", {"mechanism": "PLAIN", "accepted": True}, {"identity": "ann"})
    bench.commit(name, 2)
    bench.close(name)
    assert [row["identity"] for row in bench.rows("mail")] == [None, "ann"]
    assert bench.one("session")["identity"] == "ann"


def test_tls_of_one_side(bench: Bench) -> None:
    name = bench.connect()
    bench.line(name, "link-tls", {"server": {"version": "TLSv1.2"}, "client": None})
    bench.commit(name)
    bench.line(name, "link-tls", {}, {"client": {"version": "TLSv1.3"}})
    bench.commit(name, 2)
    bench.line(name, "link-tls", {"passthrough": True})
    bench.close(name)
    session = bench.one("session")
    assert (session["client_tls"], session["server_tls"]) == ("TLSv1.3", "TLSv1.2")
    assert [row["client_tls"] for row in bench.rows("mail")] == [None, "TLSv1.3"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:25", "192.0.2.1"),
        ("[2001:db8::1]:25", "2001:db8::1"),
        ("2001:db8::1", "2001:db8:"),  # never written so
        ("unix", "unix"),
        ("", ""),
        ("192.0.2.1", "192.0.2.1"),
        ("a:b", "a:b"),
    ],
)
def test_a_client_without_its_port(text: str, address: str) -> None:
    assert _address(text) == address


# ----------------------------------------------------------------------------------------------------------- mails


def test_a_mail_has_what_was_known_when_it_was_over(bench: Bench) -> None:
    found = list(
        bench.writer.session(
            "Ann@Mail.Example.ORG", ("bob@example.net", "Eve@Example.NET"), refused=("nobody@example.net",),
            message_id="<1@x.example>", size=1234, tls="TLSv1.3", identity="ann",
        )
    )  # fmt: skip
    bench.put(*found)
    mail = bench.one("mail")
    over = next(number for number, line in enumerate(found) if b'"tx-commit"' in line)
    assert {key: value for key, value in mail.items() if key != "at"} == {
        "id": over, "session": 0, "tx": 1, "outcome": "accepted", "sender": "org.example.mail@Ann", "size": 1234,
        "code": 250, "verdict": "pass", "rule": None, "message_id": "<1@x.example>", "sha256": f"{1:064x}",
        "client": "4c0000201", "server": "198.51.100.25:25", "listener": "in", "client_tls": "TLSv1.3",
        "hello": "client.example.org", "identity": "ann",
    }  # fmt: skip
    assert [(row["mail"], row["n"], row["address"], row["accepted"]) for row in bench.rows("recipient")] == [
        (over, 0, "net.example@bob", 1), (over, 1, "net.example@Eve", 1), (over, 2, "net.example@nobody", 0),
    ]  # fmt: skip
    assert {row["at"] for row in bench.rows("recipient")} == {mail["at"]}
    assert bench.marks(mail=over) == {("reply", "550"): 1}


@pytest.mark.parametrize("why", ["server", "answer", "RSET", "hello", "another MAIL", "closed"])
def test_a_mail_that_came_to_nothing(bench: Bench, why: str) -> None:
    name = bench.connect()
    number = bench.line(name, "tx-refused", {"tx": 1, "why": why, "code": 554}, {"mail": "a@x.example"})
    mail = bench.one("mail", id=number)
    assert (mail["outcome"], mail["code"], mail["sender"]) == (why, 554, "example.x@a")


def test_a_mail_that_was_given_up_has_the_last_code_it_was_told(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(name, "MAIL", tx=1)
    bench.exchange(name, "RCPT", tx=1, code=452)
    bench.line(name, "tx-refused", {"tx": 1, "why": "closed"}, {"mail": "a@x.example"})
    assert bench.one("mail")["code"] == 452


def test_a_sender_that_was_refused(bench: Bench) -> None:
    bench.put(*bench.writer.session("ann@x.example", outcome="refused", rule="no-ann"))
    mail = bench.one("mail")
    assert (mail["outcome"], mail["tx"], mail["sender"], mail["code"], mail["verdict"], mail["rule"]) == (
        "refused", 1, "example.x@ann", 550, "answer", "no-ann",
    )  # fmt: skip
    assert bench.rows("recipient") == []
    assert bench.one("session")["mails"] == 1
    assert bench.marks(mail=mail["id"]) == {("rule", "no-ann"): 1, ("reply", "550"): 1}


def test_a_mail_without_sender_is_not_one_of_an_unknown_sender(bench: Bench) -> None:
    name = bench.connect()
    bench.commit(name, mail="")
    bench.line(name, "tx-commit", {"tx": 2})  # what is personal was erased
    assert [row["sender"] for row in bench.rows("mail")] == ["", None]


def test_the_gravest_verdict_and_the_rule_that_said_so(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(name, "MAIL", tx=1, rule="default")
    bench.exchange(name, "RCPT", tx=1, action="rewrite", rule="posture renamed")
    bench.exchange(name, "RCPT", tx=1, action="answer", rule="no-such", code=550)
    bench.exchange(name, "RCPT", tx=1, action="answer", rule="later", code=550)
    bench.exchange(name, "END", tx=1, action="pass", rule="watched", code=250)
    bench.commit(name)
    mail = bench.one("mail")
    assert (mail["verdict"], mail["rule"]) == ("answer", "no-such")
    assert bench.marks(mail=mail["id"]) == {
        ("rule", "renamed"): 1, ("rule", "no-such"): 1, ("rule", "later"): 1, ("rule", "watched"): 1,
        ("reply", "550"): 2,
    }  # fmt: skip


def test_a_rule_that_let_it_pass_is_named_where_no_other_is(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(name, "END", tx=1, rule="watched")
    bench.commit(name)
    mail = bench.one("mail")
    assert (mail["verdict"], mail["rule"]) == ("pass", "watched")


def test_every_action_has_its_grade() -> None:
    assert list(GRAVITY) == ["pass", "rewrite", "redirect", "answer", "discard", "quarantine", "hangup"]
    assert list(GRAVITY.values()) == list(range(7))


def test_marks_of_every_kind(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(
        name, "END", code=554, tx=1, action="answer", rule="main", rules=["beside"], tags=["spam", "spam"],
        anomalies=["odd"], observed=[{"rule": "trial", "action": "answer"}],
    )  # fmt: skip
    bench.line(name, "violation", {"anomaly": "bare-lf", "side": "client", "tx": 1})
    bench.line(name, "note", {"anomaly": "tls-failed", "side": "server"})
    bench.line(name, "note", {"side": "server"})
    number = bench.commit(name)
    bench.close(name)
    assert bench.marks(mail=number) == {
        ("rule", "main"): 1, ("rule", "beside"): 1, ("tag", "spam"): 2, ("anomaly", "odd"): 1,
        ("observed", "trial"): 1, ("reply", "554"): 1, ("anomaly", "bare-lf"): 1,
    }  # fmt: skip
    assert bench.marks(mail=0) == {("anomaly", "tls-failed"): 1}
    assert {row["session"] for row in bench.rows("mark")} == {0}


def test_a_mail_never_over_leaves_its_marks_to_its_session(bench: Bench) -> None:
    name = bench.connect()
    bench.exchange(name, "RCPT", tx=1, anomalies=["odd"], action="answer", rule="no", code=550)
    bench.exchange(name, "NOOP", anomalies=["odd"])
    bench.close(name)
    assert bench.marks(mail=0) == {("anomaly", "odd"): 2, ("rule", "no"): 1, ("reply", "550"): 1}
    mail = bench.one("mail")
    assert (mail["outcome"], mail["verdict"], mail["rule"]) == ("none", "answer", "no")


def test_two_mails_at_once_are_kept_apart(bench: Bench) -> None:
    """Pipelined: the next MAIL is asked before the last reply is told."""
    name = bench.connect()
    bench.exchange(name, "END", tx=1, tags=["one"])
    bench.exchange(name, "MAIL", tx=2, tags=["two"])
    first = bench.commit(name, 1)
    second = bench.commit(name, 2)
    assert (bench.marks(mail=first), bench.marks(mail=second)) == ({("tag", "one"): 1}, {("tag", "two"): 1})


def test_no_more_different_marks_than_there_may_be(bench: Bench) -> None:
    """A client can make a server say what it likes; the records have all of it."""
    name = bench.connect()
    for part in range(4):
        bench.exchange(name, "END", tx=1, tags=[f"{part}.{n}" for n in range(100)])
    bench.exchange(name, "END", tx=1, tags=["0.0"])
    number = bench.commit(name)
    marks = bench.marks(mail=number)
    assert len(marks) == MOST_MARKS
    assert marks["tag", "0.0"] == 2


def test_marks_of_a_session_are_not_before_its_mails(bench: Bench) -> None:
    """Where the clock is set back: who looks for the newest mails with a mark has to find them all."""
    name = bench.connect()
    bench.exchange(name, anomalies=["odd"])
    bench.commit(name)
    bench.writer.now -= timedelta(hours=1)
    bench.close(name)
    assert bench.one("mark")["at"] == bench.one("mail")["at"] > bench.one("session")["until"]


# ------------------------------------------------------------------------------------------------ who is not closed


def test_the_sessions_of_a_worker_that_died_are_lost(bench: Bench) -> None:
    other = Writer("fedcba9876")
    gone = [bench.connect(), bench.connect()]
    bench.commit(gone[0])
    bench.exchange(gone[1], anomalies=["odd"])
    bench.put(*other.session(close=False))
    number = bench.line("", "worker-died", {"worker": bench.writer.worker, "how": "killed", "sessions": 2})
    sessions = bench.rows("session")
    assert [(row["how"], row["last"]) for row in sessions] == [("lost", number), ("lost", number), (None, None)]
    assert bench.marks(mail=0) == {("anomaly", "odd"): 1}
    none = bench.one("mail", outcome="none")
    assert (none["id"], none["session"]) == (1, 1), "several that are lost at once each need an id of their own"
    assert bench.store.open_sessions == 1
    bench.close(gone[0])  # what comes behind changes nothing
    assert bench.one("session", id=0)["how"] == "lost"


def test_a_worker_is_not_taken_for_one_whose_name_begins_so(bench: Bench) -> None:
    name = bench.connect()
    bench.line("", "worker-died", {"worker": bench.writer.worker[:5]})
    assert bench.one("session", name=name)["how"] is None


def test_many_lost_at_once(bench: Bench) -> None:
    names = [bench.connect() for _ in range(50)]
    bench.line("", "worker-died", {"worker": bench.writer.worker})
    assert len(bench.rows("mail", outcome="none")) == len(names)
    assert bench.store.open_sessions == 0


def test_a_start_with_nobody_left_ends_all_of_before(bench: Bench) -> None:
    bench.connect()
    bench.put(*Writer("fedcba9876").session(close=False))
    bench.line("", "service-start", {"alone": True})
    assert [row["how"] for row in bench.rows("session")] == ["lost", "lost"]


def test_a_start_beside_others_ends_nobody(bench: Bench) -> None:
    """Workers of the one before finish their sessions."""
    name = bench.connect()
    bench.line("", "service-start", {"alone": False})
    bench.commit(name)
    bench.close(name)
    assert bench.one("session")["how"] == "closed"
    assert bench.one("mail")["outcome"] == "accepted"


# --------------------------------------------------------------------------------------------- whatever it is given


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"5", b"null", b"[]", b"\xff", b'{"kind":5}', b'{"kind":"exchange"}', b'{"kind":"link-close"}',
        b'{"kind":"exchange","session":"none","verb":"MAIL","code":550,"tx":1}',
        b'{"kind":"tx-commit","session":"none","tx":1}', b'{"kind":"something-new","session":"","more":{}}',
        b'{"kind":"exchange","session":"none","code":-5}', b'{"kind":"worker-died"}', b"[" * 100_000,
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_none_of_ours_makes_no_rows(bench: Bench, line: bytes) -> None:
    bench.put(line)
    assert bench.store.size == 1
    assert [bench.rows(table) for table in ("session", "mail", "recipient", "mark")] == [[]] * 4


def test_text_from_outside_is_as_it_was(bench: Bench) -> None:
    odd = "a\x00b'\"; DROP TABLE mail; --\u2028\U0001f600%_\\"
    name = bench.connect()
    bench.put(bench.writer.exchange(name, "EHLO", f"EHLO {odd}", "250 x"))
    bench.commit(name, mail=f"{odd}@x.example", message_id=odd, rcpt=[odd] * 2)
    bench.close(name)
    mail = bench.one("mail")
    assert (mail["sender"], mail["message_id"], mail["hello"]) == (f"example.x@{odd}", odd, odd)
    assert [row["address"] for row in bench.rows("recipient")] == [odd, odd]


def _record(seed: int) -> list[bytes]:
    """Sessions of several workers, mixed; some die, all are started anew once."""
    chance = random.Random(seed)
    salt = itertools.cycle("abc").__next__
    running = [lines(40, seed=seed + n, writer=Writer(f"{n}" * 10, salt=salt)) for n in range(4)]
    dead: set[int] = set()
    other = Writer("service", salt=salt)
    made: list[bytes] = []
    while len(dead) < len(running):
        at = chance.choice([n for n in range(len(running)) if n not in dead])
        line = next(running[at], None)
        if line is None or chance.random() < 0.001:
            dead.add(at)
            if line is not None:
                made.append(other.line("", "worker-died", {"worker": f"{at}" * 10}))
        else:
            made.append(line)
        if chance.random() < 0.01:
            made.append(b'{"cut')
        if chance.random() < 0.002:
            made.append(other.line("", "service-start", {"alone": chance.random() < 0.5}))
    return made


def _tables(directory: Path) -> list[list[tuple[Any, ...]]]:
    connection = sqlite3.connect(directory / DATABASE)
    found = [
        connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4").fetchall()
        for table in ("session", "mail", "recipient", "mark")
    ]
    connection.close()
    return found


RECORD = _record(7)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[Any, ...]]]:
    directory = tmp_path_factory.mktemp("whole")
    store = Store(directory, create=True)
    store.append(RECORD)
    store.close()
    return _tables(directory)


def test_the_record_of_these_tests_has_something_of_everything(at_once: list[list[tuple[Any, ...]]]) -> None:
    sessions, mails, recipients, marks = at_once
    assert {row[5] for row in sessions} >= {"closed", "lost"}
    assert {row[4] for row in mails} >= {"accepted", "server", "refused", "none"}
    assert {row[0] for row in marks} >= {"rule", "reply"}
    assert len(recipients) > 20


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=some.lists(some.integers(0, len(RECORD)), max_size=12),
    reopened=some.sets(some.integers(0, 12)),
)
def test_the_index_is_the_same_however_the_lines_come(
    tmp_path: Path, at_once: list[list[tuple[Any, ...]]], cuts: list[int], reopened: set[int]
) -> None:
    """In any parts, and by recorders that are started anew between them."""
    for path in tmp_path.iterdir():
        path.unlink()
    store = Store(tmp_path, create=True)
    bounds = [0, *sorted(cuts), len(RECORD)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in reopened:
            store.close()
            store = Store(tmp_path)
        store.append(RECORD[start:stop])
    store.close()
    assert _tables(tmp_path) == at_once


def test_one_at_a_time_and_started_anew_each_time(tmp_path: Path, at_once: list[list[tuple[Any, ...]]]) -> None:
    part = RECORD[:300]
    whole, single = tmp_path / "whole", tmp_path / "single"
    for directory in (whole, single):
        directory.mkdir()
    store = Store(whole, create=True)
    store.append(part)
    store.close()
    for line in part:
        store = Store(single, create=True)
        store.append([line])
        store.close()
    assert _tables(single) == _tables(whole)


def test_restoring_gives_no_rows_and_knows_just_who_goes_on(bench: Bench) -> None:
    going = bench.connect()
    bench.put(*bench.writer.session())
    bench.exchange(going, "MAIL", tx=1, tags=["one"])
    index = Index()
    index.restore([(0, going)], bench.store.lines(0))
    assert len(index) == 1
    rows = index.give()
    assert (rows.sessions, rows.ended, rows.mails, rows.marks, rows.recipients) == ([], [], [], [], [])

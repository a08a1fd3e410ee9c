"""The search finds what is there, by whatever way it goes."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.inquiry import searching
from smtpproxy.inquiry.filters import OPTIONS, Question
from smtpproxy.inquiry.searching import Search, found, occurring, unknown
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import asked, by_hand, special, varied
from tests.store.filling import BEGIN, Writer

QUESTIONS: list[Question] = [
    asked(),
    asked(client="192.0.2.0/26"),
    asked(client=["192.0.2.0/26", "192.0.2.32/27", "2001:db8::7"]),
    asked(client="198.51.100.9"),
    asked(server="198.51.100.25"),
    asked(server="*:587"),
    asked(listener="out"),
    asked(listener="*"),
    asked(sender="<>"),
    asked(sender="*@sender1.example"),
    asked(sender="user1*@*"),
    asked(sender="Ann@sub.example.org"),
    asked(sender="ann@sub.example.org"),
    asked(recipient="a@b.example"),
    asked(recipient="*@b.example"),
    asked(recipient="postmaster"),
    asked(recipient="x@example.org"),
    asked(address="*@example.org"),
    asked(domain="example.org"),
    asked(domain=".example.org"),
    asked(domain=[".example.org", "host1.example", "sender2.example"]),
    asked(verdict="pass"),
    asked(verdict="answer"),
    asked(verdict=["answer", "rewrite"]),
    asked(outcome="none"),
    asked(outcome="accepted"),
    asked(outcome=["refused", "RSET"]),
    asked(rule="no-macros"),
    asked(rule="greeted"),
    asked(rule="watching"),
    asked(rule="*"),
    asked(rule="default"),
    asked(anomaly="odd-hello"),
    asked(anomaly="tls-failed"),
    asked(anomaly=["odd-hello", "stray-newline-normalised"]),
    asked(tag="odd"),
    asked(tag="none-such"),
    asked(tls="1.3"),
    asked(tls="none"),
    asked(tls="any"),
    asked(size=">1M"),
    asked(size="10k..20k"),
    asked(reply="450"),
    asked(reply="5xx"),
    asked(reply="502"),
    asked(reply="250"),
    asked(reply=["221", "4xx"]),
    asked(message_id="one@example.org"),
    asked(message_id="*@client.example.org"),
    asked(identity="ann"),
    asked(session="0123456789-5"),
    asked(session="0123456789-5*"),
    asked(hello="me*"),
    asked(since="2026-11-16T10:00:00.5", until="2026-11-16T10:00:01"),
    asked(since="2026-11-16T10:00:00.5", tls="1.3"),
    asked(until="2026-11-16T10:00:01.2", rule="*", domain="*"),
    asked(since="2026-11-16T10:00:01.4", anomaly="odd-hello"),
    asked(until="2026-11-16T10:00:00.2", rule="greeted"),
    asked(client="198.51.100.9", reply="450", rule="greeted"),
    asked(client="192.0.2.0/25", tls="1.3", verdict="pass"),
    asked(tls="none", outcome="server"),
    asked(tls="1.2", identity="ann", listener="in"),
    asked(rule="no-macros", outcome="refused", tls="1.3"),
    asked(tag="odd", tls="1.3"),
    asked(identity="ann", rule="greeted"),
    asked(verdict="pass", hello="client.example.org", recipient="*@host1.example"),
]


def named(question: Question) -> str:
    return " ".join(f"{one.name}={[span.low for span in one.spans]}" for one in question.filters) or "all"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("audit") / "store"
    varied(directory).close()
    with contextlib.closing(open_reader(str(directory))) as opened:
        yield opened


# What is few, near and many: so each way is gone at least once.
@pytest.mark.parametrize(
    "bounds", [(5000, 10_000, 300_000), (0, 10, 300_000), (0, 10, 0), (0, 0, 20), (3, 40, 100)], ids=str
)
@pytest.mark.parametrize("question", QUESTIONS, ids=named)
def test_it_finds_what_passes(
    reader: Reader, question: Question, bounds: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("FEW", "NEAR", "MANY"), bounds, strict=True):
        monkeypatch.setattr(searching, name, value)
    expected = by_hand(reader, question)
    for limit in (0, 1, 7, 1000):
        want = expected[:limit] if limit else expected
        assert [one.id for one in Search(reader, question).newest(limit)] == want, limit
        want = expected[::-1][:limit] if limit else expected[::-1]
        assert [one.id for one in Search(reader, question).newest(limit, oldest=True)] == want, limit
    assert [one.id for one in Search(reader, question).over(0, 2**40)] == sorted(expected)
    for passed in Search(reader, question).selected():
        rows = reader.rows(f"SELECT id FROM mail WHERE {passed.text} ORDER BY at DESC, id DESC", passed.parameters)
        assert [row[0] for row in rows] == expected


def test_the_questions_are_worth_asking(reader: Reader) -> None:
    """Each option is among them, and most find something, but not everything."""
    options = {one.name for question in QUESTIONS for one in question.filters}
    assert options == set(OPTIONS)
    numbers = [len(by_hand(reader, question)) for question in QUESTIONS]
    assert numbers[0] > 150
    assert sum(1 for number in numbers if 0 < number < numbers[0]) > 45


def test_what_is_found_has_what_the_record_says(reader: Reader) -> None:
    (one,) = Search(reader, asked(message_id="one@example.org")).newest()
    assert one._asdict() == {
        "id": one.id, "at": one.at, "session": one.session, "tx": 1, "outcome": "accepted",
        "sender": "Ann@sub.example.org",
        "recipients": (("bob@example.org", True), ("carl@deep.sub.example.org", True)), "size": 3_000_000,
        "code": 250, "verdict": "pass", "rule": None, "message_id": "<one@example.org>", "sha256": f"{1:064x}",
        "client": "2001:db8::7", "server": "198.51.100.25:25", "listener": "in", "tls": "TLSv1.3",
        "hello": "client.example.org", "identity": "ann",
    }  # fmt: skip
    (refused,) = Search(reader, asked(recipient="x@example.org")).newest()
    assert refused.recipients == (("postmaster", True), ("bob@example.org", True), ("x@example.org", False))
    assert refused.sender == ""
    (none,) = Search(reader, asked(client="10.9.9.9")).newest()
    assert (none.outcome, none.sender, none.recipients, none.tx) == ("none", None, (), 0)


def test_a_mail_with_the_same_recipient_twice_comes_once(reader: Reader) -> None:
    """So a limit is one of mails."""
    assert len(list(Search(reader, asked(recipient="a@b.example")).newest(2))) == 2
    assert len({one.id for one in Search(reader, asked(recipient="*@b.example")).newest(2)}) == 2


def test_one_span_of_a_record(reader: Reader) -> None:
    everything = sorted(by_hand(reader, asked()))
    some = everything[10:20]
    assert [one.id for one in Search(reader, asked()).over(some[0], some[-1] + 1)] == some
    assert list(Search(reader, asked()).over(some[0] + 1, some[0] + 1)) == []


def test_what_was_pruned_meanwhile_is_left_out(reader: Reader) -> None:
    keys = by_hand(reader, asked())[:3]
    assert [one.id for one in found(reader, [keys[0], 7, keys[2]])] == [keys[0], keys[2]]


def test_more_than_are_asked_for_at_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_AT_ONCE", 7)
    assert [one.id for one in Search(reader, asked()).newest()] == by_hand(reader, asked())


def test_names_that_occur(reader: Reader) -> None:
    assert list(occurring(reader, "rule")) == ["big-ones", "greeted", "no-macros"]
    assert list(occurring(reader, "observed")) == ["watching"]
    assert list(occurring(reader, "none-such")) == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (asked(rule="no-macros", tag="odd", anomaly="odd-hello"), []),
        (asked(rule="watching"), []),
        (asked(rule="nothing*"), []),
        (asked(anomaly="too-slow"), []),  # it could be, and is not there
        (
            asked(rule="no-macro"),
            [(False, "--rule: there is no rule 'no-macro' in this record; did you mean no-macros?")],
        ),
        (asked(tag="old"), [(False, "--tag: there is no tag 'old' in this record; did you mean odd?")]),
        (asked(anomaly="ods-hello"), [(True, "--anomaly: there is no anomaly 'ods-hello'; did you mean odd-hello?")]),
    ],
)
def test_names_that_do_not(reader: Reader, question: Question, said: list[tuple[bool, str]]) -> None:
    assert list(unknown(reader, question)) == said


def test_an_anomaly_of_another_version_is_one_where_it_occurs(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    store.append(list(Writer().session(anomaly="of-tomorrow")))
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        assert list(unknown(opened, asked(anomaly="of-tomorrow"))) == []
    store.close()


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """A session's end may be before its mails: its marks are found all the same."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    writer = Writer()
    for line in special(writer):
        if b'"kind":"note"' in line:
            writer.now = BEGIN.replace(hour=3)
        store.append([line])
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        for question in (asked(rule="greeted"), asked(rule="greeted", reply="450"), asked(rule="greeted", since="2h")):
            assert len(by_hand(opened, question)) == 2
            assert [one.id for one in Search(opened, question).newest()] == by_hand(opened, question)
    store.close()


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    Store(tmp_path / "store", create=True).close()
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        for question in QUESTIONS:
            assert list(Search(opened, question).newest(3)) == []


# ------------------------------------------------------------------------------------------------------ how it goes


def plan(reader: Reader, question: Question, monkeypatch: pytest.MonkeyPatch, limit: int = 5) -> list[str]:
    """What SQLite says of the queries of a search."""
    steps: list[str] = []
    ask = reader.rows

    def rows(sql: str, parameters: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
        steps.extend(str(step[3]) for step in ask(f"EXPLAIN QUERY PLAN {sql}", parameters))
        return ask(sql, parameters)

    monkeypatch.setattr(reader, "rows", rows)
    list(Search(reader, question).newest(limit))
    return steps


@pytest.mark.parametrize(
    "question",
    [one for one in QUESTIONS if not one.filters or one.filters[0].name not in ("hello", "listener")],
    ids=named,
)
def test_no_table_is_read_whole(reader: Reader, question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where there is little to find: each step is by an index, or by all mails in the order of time."""
    monkeypatch.setattr(searching, "NEAR", 10)
    steps = plan(reader, question, monkeypatch)
    whole = [
        step
        for step in steps
        if step.startswith("SCAN") and "USING" not in step and not step.startswith(("SCAN x", "SCAN (subquery"))
    ]
    assert whole == []


@pytest.mark.parametrize(
    "question",
    [
        asked(tls="1.3"),
        asked(client="192.0.2.7"),
        asked(sender="a@x.example"),
        asked(rule="no-macros"),
        asked(verdict="answer"),
        asked(tls="1.3", verdict="answer"),
    ],
    ids=named,
)
def test_a_name_comes_in_the_order_of_time(reader: Reader, question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sorted, but what is of sessions."""
    monkeypatch.setattr(searching, "FEW", 0)
    monkeypatch.setattr(searching, "NEAR", 0)
    steps = plan(reader, question, monkeypatch)
    sorts = [before for before, step in itertools.pairwise(steps) if "USE TEMP B-TREE FOR ORDER BY" in step]
    assert [step for step in sorts if "mail_session" not in step] == []

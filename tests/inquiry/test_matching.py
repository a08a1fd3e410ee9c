"""The tail: what is shown of a record that grows, and that its filters are the search's."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smtpproxy.inquiry import matching
from smtpproxy.inquiry.filters import Question
from smtpproxy.inquiry.matching import Event, Tail
from smtpproxy.inquiry.searching import Found, Search
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import Store, own_line
from tests.inquiry.mails import asked, special, varied
from tests.inquiry.test_searching import QUESTIONS, named
from tests.store.filling import Writer, lines

Opened = tuple[Store, Reader]


class EnoughError(Exception):
    """The end of following."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """An empty store, and its reader."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as reader:
        yield store, reader
    store.close()


def told(reader: Reader, question: Question, number: int = 1000, *, records: bool = False) -> list[Found | Event]:
    return Tail(reader, question, records=records).last(number)


def events(found: list[Found | Event]) -> list[str]:
    """What the events are about."""
    return [f"{one.record['kind']} {one.record.get('verb', '')}".strip() for one in found if isinstance(one, Event)]


def mails(found: list[Found | Event]) -> list[int]:
    return [one.id for one in found if isinstance(one, Found)]


# ------------------------------------------------------------------------------------------------------ what is shown


def test_mails_and_what_is_odd(opened: Opened) -> None:
    """No more than that: what a mail's own line says is not said twice."""
    store, reader = opened
    store.append(list(special(Writer())))
    found = told(reader, asked())
    assert mails(found) == sorted(one.id for one in Search(reader, asked()).newest())
    assert events(found) == [
        "exchange RCPT",  # refused by the server
        "exchange GREETING",  # a rule acted
        "exchange EHLO",  # an anomaly
        "exchange RCPT",
        "exchange RCPT",
        "exchange UNKNOWN",
        "note",
    ]
    numbers = [one.id if isinstance(one, Found) else one.number for one in found]
    assert numbers == sorted(numbers)


def test_a_refused_mail_is_one_line(opened: Opened) -> None:
    store, reader = opened
    store.append(list(Writer().session(outcome="refused", rule="no")))
    (one,) = told(reader, asked())
    assert isinstance(one, Found)
    assert (one.outcome, one.rule) == ("refused", "no")


def test_an_anomaly_at_the_end_of_a_mail_is_told(opened: Opened) -> None:
    store, reader = opened
    store.append(list(Writer().session(anomaly="stray-newline-normalised")))
    assert events(told(reader, asked())) == ["exchange END"]


def test_what_the_recorder_says_is_told_to_who_asks_for_everything(opened: Opened) -> None:
    store, reader = opened
    store.append([own_line("audit-start", {"why": "the first"}), own_line("worker-died", {"worker": "0123456789"})])
    store.say("audit-prune", {"first": 0})
    assert events(told(reader, asked())) == ["audit-start", "worker-died", "audit-prune"]
    assert told(reader, asked(tls="none")) == []
    assert told(reader, asked(until="2020-01-01")) == []


def test_every_record_is(opened: Opened) -> None:
    store, reader = opened
    written = [*special(Writer()), own_line("audit-start", {})]
    store.append(written)
    found = told(reader, asked(), records=True)
    assert [one.line for one in found if isinstance(one, Event)] == written
    assert mails(found) == []


def test_the_client_of_an_event_is_its_sessions(opened: Opened) -> None:
    store, reader = opened
    store.append(list(special(Writer())))
    clients = {one.client for one in told(reader, asked(), records=True) if one.session == "0123456789-5"}
    assert clients == {"198.51.100.9"}


def test_a_line_that_is_no_record_is_passed_over(opened: Opened) -> None:
    store, reader = opened
    store.append([b"\xff", b"{", b"[]", b'{"kind":"note","at":"then","anomaly":7}', b'{"kind":"exchange","code":"x"}'])
    assert events(told(reader, asked())) == ["note"]
    assert len(told(reader, asked(), records=True)) == 2


# ------------------------------------------------------------------------------------------------------------ the last


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("audit") / "store"
    varied(directory).close()
    with contextlib.closing(open_reader(str(directory))) as found:
        yield found


@pytest.mark.parametrize("question", QUESTIONS, ids=named)
def test_mails_are_those_of_the_search(reader: Reader, question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the records are looked through."""
    everything = sorted(one.id for one in Search(reader, question).newest())
    whole = told(reader, question, 10_000)
    assert mails(whole) == everything
    assert told(reader, question, 3) == whole[-3:]
    monkeypatch.setattr(matching, "LOOK_BACK", 300)
    assert mails(told(reader, question, 10_000)) == everything
    assert told(reader, question, 0) == []


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (asked(recipient="x@example.org"), ["exchange RCPT"]),
        (asked(sender="<>"), ["exchange RCPT"]),
        (asked(rule="greeted"), ["exchange GREETING"]),
        (asked(rule="watching"), ["exchange RCPT"]),
        (asked(rule="default"), []),
        (asked(tag="odd"), ["exchange GREETING"]),
        (asked(anomaly="tls-failed"), ["note"]),
        (asked(anomaly="odd-hello"), ["exchange EHLO"]),
        (asked(sender="m@x.example"), ["exchange RCPT"] * 2),
        (asked(recipient="o@x.example"), ["exchange RCPT"] * 2),
        (asked(sender="m@x.example", reply="450"), ["exchange RCPT"] * 2),
        (asked(sender="m@x.example", reply="5xx"), []),
        (asked(reply="502"), ["exchange UNKNOWN"]),
        (asked(verdict="answer", session="0123456789-5"), ["exchange UNKNOWN"]),
        (asked(hello="me*you", reply="5xx"), ["exchange UNKNOWN"]),
        (asked(listener="out", anomaly="*"), ["exchange EHLO", "note"]),
        (asked(client="198.51.100.0/24", anomaly="tls-failed"), ["note"]),
        (asked(client="192.0.2.0/24", anomaly="tls-failed"), []),
        (asked(server="mx.example", anomaly="tls-failed", tls="none"), ["note"]),
        (asked(anomaly="tls-failed", tls="any"), []),
        (asked(outcome="RSET"), []),
        (asked(size=">1M", rule="*"), []),
    ],
    ids=str,
)
def test_events_have_the_fields_of_their_record_and_session(
    opened: Opened, question: Question, expected: list[str]
) -> None:
    store, reader = opened
    store.append(list(special(Writer())))
    assert events(told(reader, question)) == expected


def test_tls_and_identity_are_those_of_the_moment(opened: Opened) -> None:
    """The index has those of a session's end only."""
    store, reader = opened
    everything = list(Writer().session(tls="TLSv1.3", identity="ann", refused=("x@y.example",)))
    store.append(everything[:-1])
    for question in (asked(tls="1.3"), asked(identity="ann"), asked(hello="client.example.org")):
        assert events(told(reader, question)) == ["exchange RCPT"]
    assert events(told(reader, asked(tls="none"))) == []


def test_records_of_a_mail_are_the_mails(opened: Opened) -> None:
    """With its number, that is; the other records of its session are for themselves."""
    store, reader = opened
    store.append([*Writer().session(outcome="server", mails=2), *Writer(worker="ffffffffff").session()])
    assert events(told(reader, asked(outcome="server"), records=True)) == ["tx-refused"] * 2
    assert events(told(reader, asked(outcome="accepted"), records=True)) == ["tx-commit"]


# ----------------------------------------------------------------------------------------------------------- following


def follow(tail: Tail, *steps: Callable[[], object]) -> list[Found | Event]:
    """What comes while these things happen, one whenever there is nothing more."""
    rest = iter(steps)

    def wait() -> None:
        for step in rest:
            step()
            return
        raise EnoughError

    found: list[Found | Event] = []
    with contextlib.suppress(EnoughError):
        found.extend(tail.follow(wait))  # what was there before the end is kept
    return found


def test_what_comes_is_shown_once_and_whole(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, and through a restart of who writes."""
    monkeypatch.setattr(matching, "_AT_ONCE", 11)
    store, reader = opened
    everything = list(lines(40))
    store.append(everything[:50])
    tail = Tail(reader, asked())
    first = tail.last(1000)

    def restart() -> None:
        store.close()
        with contextlib.closing(Store(tmp_path / "store")) as other:
            other.append(everything[150:])

    come = follow(tail, lambda: store.append(everything[50:51]), lambda: store.append(everything[51:150]), restart)
    assert [*first, *come] == told(reader, asked())
    assert len(come) > 20


def test_a_session_that_began_before_is_known(opened: Opened) -> None:
    store, reader = opened
    session = list(Writer().session(client="10.1.2.3", tls="TLSv1.2", refused=("x@y.example",)))
    at = next(number for number, line in enumerate(session) if b"<x@y.example>" in line)
    store.append(session[:at])
    tail = Tail(reader, asked(client="10.0.0.0/8", tls="1.2", sender="alice@example.org"))
    come = follow(tail, lambda: store.append(session[at:]))
    assert events(come) == ["exchange RCPT"]
    assert len(mails(come)) == 1


def test_what_is_pruned_before_it_was_shown_is_left_out(opened: Opened) -> None:
    store, reader = opened
    tail = Tail(reader, asked())

    def come_and_go() -> None:
        store.append(list(special(Writer())))
        with store.changing() as connection:
            for table in ("block", "session", "mail", "recipient", "mark"):
                connection.execute(f"DELETE FROM {table}")

    come = follow(tail, come_and_go, lambda: store.append(list(Writer(worker="ffffffffff").session())))
    assert [one.session for one in come] == ["ffffffffff-1"]


def test_another_store_in_its_place(opened: Opened) -> None:
    """Nothing is shown of what was there before; what comes then is."""
    store, reader = opened
    store.append(list(Writer().session()))
    tail = Tail(reader, asked())
    tail.next += 10_000
    come = follow(tail, lambda: None, lambda: store.append(list(Writer(worker="ffffffffff").session())))
    assert [one.session for one in come] == ["ffffffffff-1"]


def test_what_is_remembered_goes_with_its_session(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reader = opened
    tail = Tail(reader, asked())
    store.append([*Writer().session(), *Writer(worker="eeeeeeeeee").session(close=False)])
    list(tail.more())
    assert set(tail._going) == {"eeeeeeeeee-1"}
    store.append([own_line("worker-died", {"worker": "eeeeeeeeee"})])
    list(tail.more())
    assert tail._going == {}
    monkeypatch.setattr(matching, "_MOST_GOING", 3)
    for number in range(7):
        store.append(list(Writer(worker=f"{number:010}").session(close=False)))
    list(tail.more())
    assert 0 < len(tail._going) <= 3
    store.append([own_line("audit-start", {})])
    list(tail.more())
    assert tail._going == {}

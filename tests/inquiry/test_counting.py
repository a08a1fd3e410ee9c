"""What is counted is what a search finds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.inquiry import counting
from smtpproxy.inquiry.counting import NAMES, Count, Counting
from smtpproxy.inquiry.filters import OPTIONS, Question, question
from smtpproxy.inquiry.searching import Search
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import NOW, asked, varied
from tests.inquiry.test_searching import named
from tests.store.filling import BEGIN, Writer


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("audit") / "store"
    varied(directory).close()
    with contextlib.closing(open_reader(str(directory))) as opened:
        yield opened


def also(which: Question, option: str, word: str) -> Question:
    """One filter more."""
    return which._replace(filters=which.filters + question({option: [word]}, now=NOW).filters)


WHICH = [
    asked(),
    asked(rule="greeted"),
    asked(tls="1.3"),
    asked(verdict="pass", client="192.0.2.0/25"),
    asked(tag="none-such"),
]


@pytest.mark.parametrize("which", WHICH, ids=named)
@pytest.mark.parametrize("by", [name for name in NAMES if name not in ("hour", "day")])
def test_a_search_for_the_name_finds_as_many(reader: Reader, which: Question, by: str) -> None:
    counts = Counting(reader, which).by(by)
    assert counts == sorted(counts, key=lambda one: (-one.mails, one.name))
    option = {"observed": "rule", "sender-domain": "sender", "domain": "recipient"}.get(by, by)
    for one in counts:
        word = {"(none)": "none"}.get(one.name, one.name) if by == "tls" else one.name
        if word == "(none)" or option not in OPTIONS:
            continue
        word = f"*@{word}" if by in ("domain", "sender-domain") else word
        assert len(list(Search(reader, also(which, option, word)).newest())) == one.mails, one
    if which == asked(tag="none-such"):
        assert counts == []


@pytest.mark.parametrize("which", WHICH, ids=named)
def test_all_of_them(reader: Reader, which: Question) -> None:
    number = len(list(Search(reader, which).newest()))
    assert Counting(reader, which).total() == number
    for by in ("outcome", "verdict", "client", "tls", "listener", "server", "identity", "sender", "hour", "day"):
        assert sum(one.mails for one in Counting(reader, which).by(by)) == number


def test_what_names_are_called(reader: Reader) -> None:
    assert "2001:db8::7" in {one.name for one in Counting(reader, asked()).by("client")}
    senders = {one.name for one in Counting(reader, asked(domain=".example.org")).by("sender")}
    assert {"<>", "Ann@sub.example.org"} <= senders
    assert "(none)" in {one.name for one in Counting(reader, asked(outcome="none")).by("sender")}
    assert "(none)" in {one.name for one in Counting(reader, asked(recipient="postmaster")).by("domain")}
    assert "deep.sub.example.org" in {one.name for one in Counting(reader, asked()).by("domain")}


def test_a_mail_counts_for_each_of_its_names_and_once_for_each(reader: Reader) -> None:
    found = {one.name: one.mails for one in Counting(reader, asked(sender="eve@notexample.org")).by("domain")}
    assert found == {"b.example": 2}  # two mails with two recipients there


def test_hours_and_days_are_whole_and_have_none_left_out(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    writer = Writer()
    for moment in (
        BEGIN,
        BEGIN.replace(hour=12, minute=59, second=59, microsecond=990_000),
        BEGIN.replace(day=18, hour=0),
    ):
        writer.now = moment
        store.append(list(writer.session(close=False)))  # in some milliseconds: before the full hour and behind it
    writer.now = BEGIN.replace(hour=13, minute=0, second=0)
    store.append(list(writer.session(mails=0)))
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        hours = Counting(opened, asked()).by("hour")
        assert [one for one in hours if one.mails] == [
            Count("2026-11-16 10", 1), Count("2026-11-16 12", 1), Count("2026-11-16 13", 1), Count("2026-11-18 00", 1),
        ]  # fmt: skip
        assert hours[1] == Count("2026-11-16 11", 0)
        assert len(hours) == 39
        assert Counting(opened, asked()).by("day") == [
            Count("2026-11-16", 3),
            Count("2026-11-17", 0),
            Count("2026-11-18", 1),
        ]
    store.close()


def test_a_second_is_that_in_which_something_was(tmp_path: Path) -> None:
    """And not the nearest one: a mail at 9:59:59.999 is of the hour before."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    for microsecond in (0, 499_000, 500_000, 998_000):
        writer = Writer(worker=f"{microsecond:010}")
        session = list(writer.session(mails=0))
        writer.now = BEGIN.replace(hour=9, minute=59, second=59, microsecond=microsecond)
        store.append([session[0], writer.line(f"{microsecond:010}-1", "link-close", {})])
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        assert Counting(opened, asked()).by("hour") == [Count("2026-11-16 09", 4)]
    store.close()


def test_too_many_hours_are_said(reader: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", create=True)
    store.append(list(Writer().session()))
    store.append(list(Writer(worker="f" * 10, begin=BEGIN.replace(day=18)).session()))
    monkeypatch.setattr(counting, "MOST_PERIODS", 30)
    with contextlib.closing(open_reader(str(tmp_path / "store"))) as opened:
        with pytest.raises(ValueError, match="too long a time: say --since"):
            Counting(opened, asked()).by("hour")
        assert len(Counting(opened, asked()).by("day")) == 3
    store.close()

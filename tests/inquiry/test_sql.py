"""Spans as SQL: a database finds what `fits` does."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.inquiry.filters import Span, pattern
from smtpproxy.inquiry.sql import INDEXED, check, condition, ways
from smtpproxy.store.schema import INDEXES
from tests.inquiry.mails import asked

TEXTS = ["", "a", "ab", "aba", "abba", "abcba", "b", "ba", "B", "a%", "a_", "é", "éa", "\U0001f600b", "a\ue000", "zz"]


def selected(span: Span, values: list[str]) -> list[str]:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in [*values, None]])
        where = condition("x", span)
        rows = connection.execute(f"SELECT x FROM t WHERE {where.text}", where.parameters).fetchall()
    connection.close()
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    "word", ["*", "a*", "*a", "a*a", "ab*ba", "*b*", "a*b*a", "a**", "a%*", "a_*", "é*", "B*", "**", "zz", ""]
)
def test_a_pattern_is_the_same_in_sql(word: str) -> None:
    span = pattern("x", word)
    assert selected(span, TEXTS) == [text for text in TEXTS if span.fits(text)]


@given(
    word=st.text("ab*é", max_size=6).filter(lambda word: word.count("*") < 3),
    values=st.lists(st.text("abé", max_size=6)),
)
def test_any_pattern_is(word: str, values: list[str]) -> None:
    span = pattern("x", word)
    assert selected(span, values) == [text for text in values if span.fits(text)]


def test_what_is_not_there() -> None:
    assert selected(Span("x", None, same=True), TEXTS) == [None]
    assert None not in selected(pattern("x", "*"), TEXTS)


def test_numbers() -> None:
    piece = condition("size", Span("size", 10, 20))
    assert (piece.text, piece.parameters) == ("size >= ? AND size < ?", (10, 20))
    assert condition("size", Span("size", 10)).parameters == (10,)


def test_every_column_with_a_way_has_an_index_and_says_what_a_partial_one_needs() -> None:
    found = {
        columns.split(",")[0]: condition
        for table, columns, condition in INDEXES.values()
        if table == "mail" and columns not in ("at", "session")
    }
    assert {column: text.replace("mail.", "") for column, text in INDEXED.items()} == found


def nobody(span: Span) -> list[str]:
    return []


def test_what_is_not_in_an_index_has_no_way_there() -> None:
    for question in (
        asked(verdict="pass"),
        asked(outcome="accepted"),
        asked(reply="250"),
        asked(hello="x"),
        asked(listener="x"),
    ):
        assert ways(question.filters[0], nobody) is None
    assert ways(asked(verdict=["pass", "answer"]).filters[0], nobody) is None
    found = ways(asked(reply="354").filters[0], nobody)
    assert found is not None
    assert "mail.code >= 300" in found[0].where.text


def test_no_value_is_in_the_text() -> None:
    """They are parameters."""
    words = {
        "sender": "o'x@y.example",
        "client": "192.0.2.0/24",
        "tag": "o'tag",
        "hello": "o'h*l'o*'",
        "session": "'",
        "server": "';--",
    }
    for name, value in words.items():
        one = asked(**{name: value}).filters[0]
        pieces = [check(one, lambda span: ["it's"]), *(way.where for way in ways(one, lambda span: ["it's"]) or ())]
        for piece in pieces:
            assert piece.text.replace("''", "").count("'") == 0
            assert piece.text.count("?") == len(piece.parameters)

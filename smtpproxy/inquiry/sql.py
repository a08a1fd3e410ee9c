"""Filters as SQL, the same for SQLite and PostgreSQL.

The time is said wherever it is known: in PostgreSQL the tables are cut by day.

A span becomes two things. A **check** is a condition on a row of `mail`, written so that no index serves it
(`x || ''`): it is evaluated row by row. A **way** is a query for the mails that are in it, by an index. A search goes
by one filter's ways and checks the others (searching.py). So it is said here by which index it goes, and not left to
the database, which does not know how many mails a name has in this record.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry.filters import Filter, Span

MARKS: Final = ("rule", "observed", "anomaly", "tag", "reply")
NUMBERS: Final = ("size", "code")
# Columns of `mail` with an index, and what must be said for a partial one to count.
INDEXED: Final = {
    "client": "",
    "server": "",
    "client_tls": "",
    "sender": "",
    "size": "mail.size > 0",
    "code": "mail.code >= 300",
    "verdict": "mail.verdict <> 'pass'",
    "outcome": "mail.outcome <> 'accepted'",
    "identity": "mail.identity IS NOT NULL",
    "message_id": "mail.message_id IS NOT NULL",
}
_OUT_OF_THE_INDEX: Final = (("verdict", "pass"), ("outcome", "accepted"))
_JOINED: Final = 8


class Piece(NamedTuple):
    """A piece of SQL and its parameters."""

    text: str
    parameters: tuple[Any, ...] = ()


_NONE: Final = Piece("1 = 0")


def joined(pieces: Sequence[Piece], by: str) -> Piece:
    """Several as one."""
    return Piece(by.join(piece.text for piece in pieces), tuple(one for piece in pieces for one in piece.parameters))


class Ends(NamedTuple):
    """Where the time of the last mail of a way is had at once: of none is it later. `both`: that of the first, too."""

    at: str
    tables: str
    where: Piece
    both: bool


class Way(NamedTuple):
    """A way to the mails that are in a span.

    Attributes:
        tables: what stands behind FROM.
        where: the condition.
        key: the mail's id.
        at: the mail's time.
        ordered: an index gives them in the order of time.
        has_mail: `mail` is among the tables.
        once: no mail comes twice.
        counted: tables and condition of what is counted in its place, to know what it costs; None is itself.
        weight: what one of these costs, compared with a step in an index.
        ends: the last mail, and perhaps the first.
        not_before: what an index has, and is not before the mail's time.
        whole: all of an index is looked through.
    """

    tables: str
    where: Piece
    key: str = "mail.id"
    at: str = "mail.at"
    ordered: bool = False
    has_mail: bool = True
    once: bool = True
    counted: tuple[str, Piece] | None = None
    weight: int = 1
    ends: Ends | None = None
    not_before: str = ""
    whole: bool = False


def condition(expression: str, span: Span) -> Piece:
    """A span of the values of an expression."""
    if span.same:
        return Piece(f"{expression} IS NULL") if span.low is None else Piece(f"{expression} = ?", (span.low,))
    pieces = []
    if span.low not in (None, ""):
        pieces.append(Piece(f"{expression} >= ?", (span.low,)))
    if span.high is not None:
        pieces.append(Piece(f"{expression} < ?", (span.high,)))
    behind = f"length({expression}) - {span.start + len(span.end)}"
    if span.end:
        end = f"substr({expression}, length({expression}) - {len(span.end) - 1})"
        pieces.append(Piece(f"CASE WHEN {behind} >= 0 THEN {end} ELSE '' END = ?", (span.end,)))
    if span.inside:
        middle = f"substr({expression}, {span.start + 1}, {behind})"
        found = f"replace({middle}, ?, '') <> {middle}"
        pieces.append(Piece(f"CASE WHEN {behind} >= 0 THEN {found} ELSE 1 = 0 END", (span.inside,)))
    return joined(pieces, " AND ") if pieces else Piece(f"{expression} IS NOT NULL")


# The names of a kind of mark that occur and are in the span.
Names = Callable[[Span], Sequence[str]]


def check(one: Filter, names: Names) -> Piece:
    """The condition that a row of `mail` passes a filter."""
    whole = joined([_check(span, names) for span in sorted(one.spans, key=_dear)], " OR ")
    return whole._replace(text=f"({whole.text})")


def _dear(span: Span) -> bool:
    """What needs another table comes last."""
    return span.field in (*MARKS, "recipient", "session")


def _check(span: Span, names: Names) -> Piece:
    field = span.field
    if field == "recipient":
        inner = condition("r.address || ''", span)
        return _exists("recipient r WHERE r.mail = mail.id AND r.at = mail.at", inner)
    if field == "session":
        inner = condition("s.name || ''", span)
        return _exists("session s WHERE s.id = mail.session", inner)
    if field in MARKS:
        found = tuple(names(span))
        inner = Piece(f"k.what = ? AND k.name IN ({', '.join('?' * len(found))})", (field, *found))
        if not found:
            return _NONE
        own = _exists("mark k WHERE k.session = mail.session AND k.mail = mail.id AND k.at = mail.at", inner)
        session = _exists("mark k WHERE k.session = mail.session AND k.mail = 0 AND k.at >= mail.at", inner)
        return joined([own, session], " OR ")
    return condition(f"(mail.{field} + 0)" if field in NUMBERS else f"(mail.{field} || '')", span)


def _exists(tables: str, inner: Piece) -> Piece:
    return inner._replace(text=f"EXISTS (SELECT 1 FROM {tables} AND {inner.text})")  # noqa: S608 - no value is in it


def ways(one: Filter, names: Names) -> list[Way] | None:
    """How one gets to all mails that pass a filter; None if there is no index for one of its spans."""
    found: list[Way] = []
    for span in one.spans:
        some = _ways(span, names)
        if some is None:
            return None
        found += some
    return found


def _ways(span: Span, names: Names) -> list[Way] | None:
    field = span.field
    if field == "recipient":
        where = condition("r.address", span)
        ends = Ends("r.at", "recipient r", where, both=True) if span.same else None
        way = Way("recipient r", where, "r.mail", "r.at", span.same, has_mail=False, once=False, ends=ends)
        return [way._replace(whole=_open(span))]
    if field == "session":
        where = condition("s.name", span)
        joint = where._replace(text=f"{where.text} AND mail.session = s.id")
        way = Way("session s CROSS JOIN mail", joint, counted=("session s", where), weight=_JOINED)
        return [way._replace(whole=_open(span))]
    if field in MARKS:
        return [way for name in names(span) for way in _marked(field, name)]
    if field not in INDEXED or (field, span.low) in _OUT_OF_THE_INDEX or (field == "code" and int(span.low or 0) < 300):
        return None
    where = condition(f"mail.{field}", span)
    if INDEXED[field]:
        where = where._replace(text=f"{where.text} AND {INDEXED[field]}")
    ordered = span.same and field != "message_id"  # whose index has no time: few mails have the same
    ends = Ends("mail.at", "mail", where, both=True) if ordered else None
    return [Way("mail", where, ordered=ordered, ends=ends, whole=_open(span))]


def _open(span: Span) -> bool:
    """It has neither beginning nor end."""
    return not span.same and span.low in (None, "") and span.high is None


def _marked(what: str, name: str) -> list[Way]:
    """Mails with a mark, and those of sessions that have it outside any mail: such a mark has the time of their end."""
    where = Piece("k.what = ? AND k.name = ?", (what, name))
    theirs = where._replace(text=f"{where.text} AND k.mail > 0")
    session = where._replace(text=f"{where.text} AND k.mail = 0 AND mail.session = k.session")
    ends = Ends("k.at", "mark k", where, both=False)
    return [
        Way("mark k", theirs, "k.mail", "k.at", ordered=True, has_mail=False, ends=ends),
        Way(
            "mark k CROSS JOIN mail",
            session,
            counted=("mark k", where._replace(text=f"{where.text} AND k.mail = 0")),
            weight=_JOINED,
            ends=ends,
            not_before="k.at",
        ),
    ]

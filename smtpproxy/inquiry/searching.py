"""Looking for mails in a store: the newest that pass all filters, and not one more than is wanted.

What must hold: an answer in less than 100 ms from ten million records, also when there is nothing to find, and when
each filter by itself has a hundred thousand mails. So the way is chosen for each question (sql.py has the ways):

1. The window of time becomes the one in which each filter has any mails, where its index tells that at once.
2. The mails of each filter are counted, no further than to a bound. If one has few, the search goes by that one and
   checks the others.
3. Otherwise the newest mails are looked through first: where many are wanted ones, that is all there is to do.
4. If they are not enough, the search goes by the filter with the fewest. Its index has the time behind the name: the
   newest come first, and the search ends when there are enough.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry.filters import Question, Span, meant
from smtpproxy.inquiry.sql import Ends, Piece, Way, check, joined, ways
from smtpproxy.smtp.anomalies import CLOSES, NOTED
from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import address_of, client_of

FEW: Final = 5_000  # mails that are looked at without further thought
MANY: Final = 300_000  # as far as is counted
NEAR: Final = 10_000  # of the newest mails that are looked through first
MOST_NAMES: Final = 2_000  # of rules, tags, ...
_AT_ONCE: Final = 500  # mails whose columns are asked for together


class Found(NamedTuple):
    """A mail, or a session without one (`outcome` none)."""

    id: int  # gateway << 40 | number of the record at which it was over
    at: float  # seconds since 1970
    session: str
    tx: int
    outcome: str
    sender: str | None
    recipients: tuple[tuple[str, bool], ...]  # and whether it was accepted
    size: int
    code: int
    verdict: str
    rule: str | None
    message_id: str | None
    sha256: str | None
    client: str
    server: str | None
    listener: str | None
    tls: str | None
    hello: str | None
    identity: str | None


def erased(one: Found) -> list[str]:
    """What of it was there and was erased."""
    gone = {
        "client": not one.client,
        "sender": one.outcome != "none" and one.sender is None,
        "recipient": any(not address for address, _ in one.recipients),
    }
    return [name for name, is_so in gone.items() if is_so]


# ------------------------------------------------------------------------------------------------------------- names


def occurring(reader: Reader, what: str) -> Iterator[str]:
    """The names of a kind of mark that occur in the record, sorted: each one step in an index."""
    last = ""
    for _ in range(MOST_NAMES):
        query = "SELECT name FROM mark WHERE what = ? AND name > ? ORDER BY name LIMIT 1"
        found = list(reader.rows(query, (what, last)))
        if not found:
            return
        last = found[0][0]
        yield last


def unknown(reader: Reader, question: Question) -> Iterator[tuple[bool, str]]:
    """What is said of names that don't occur, and whether there can be none of that name at all."""
    for one in question.filters:
        if one.name not in ("rule", "tag", "anomaly"):
            continue
        known = {name for what in {span.field for span in one.spans} for name in occurring(reader, what)}
        catalogue = {*CLOSES, *NOTED} if one.name == "anomaly" else set()
        for text in sorted({str(span.low) for span in one.spans if span.same} - known - catalogue):
            yield (
                bool(catalogue),
                f"--{one.name}: there is no {one.name} {text!r}"
                + ("" if catalogue else " in this record")
                + meant(text, known | catalogue),
            )


class _Names:
    """Spans of names as the names that occur."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._known: dict[str, list[str]] = {}

    def __call__(self, span: Span) -> Sequence[str]:
        if span.same:
            return (str(span.low),)
        if span.field not in self._known:
            self._known[span.field] = list(occurring(self._reader, span.field))
        return [name for name in self._known[span.field] if span.fits(name)]


# -------------------------------------------------------------------------------------------------------- the search

_NEVER: Final = (1.0, 0.0)  # a window of time
_ALL: Final = Way("mail", Piece("1 = 1"), ordered=True)

Window = tuple[float | None, float | None]  # from, to before
Key = tuple[float, int]  # time, id


class _Part(NamedTuple):
    """A filter."""

    check: Piece
    ways: list[Way] | None


class Search:
    """The mails that pass a question.

    Args:
        reader: the store.
        question: the filters.

    Its methods raise StoreError.
    """

    def __init__(self, reader: Reader, question: Question) -> None:
        self._reader = reader
        names = _Names(reader)
        self._parts = [_Part(check(one, names), ways(one, names)) for one in question.filters]
        self._window: Window = question.since, question.until

    def newest(self, limit: int = 0, *, oldest: bool = False) -> Iterator[Found]:
        """The newest ones, the newest first; or the oldest ones, the oldest first.

        Args:
            limit: how many; 0 is all.
            oldest: which end.
        """
        return found(self._reader, [key for _, key in self._keys(limit, oldest)])

    def over(self, start: int, stop: int) -> Iterator[Found]:
        """Those that were over with a record from `start` to before `stop`, in order."""
        pieces = [Piece("mail.id >= ? AND mail.id < ?", (start, stop)), *_within(self._window, "(mail.at + 0)")]
        rows = self._rows("mail.id", "mail", [*pieces, *(part.check for part in self._parts)], " ORDER BY mail.id")
        return found(self._reader, [row[0] for row in rows])

    def selected(self) -> tuple[Piece, Piece]:
        """A condition on `mail` that they alone pass, for who counts them all: one by which a query can go, and one for
        queries that come to `mail` from elsewhere."""
        best = self._fewest(self._window, FEW) or self._fewest(self._window, MANY)
        pieces = [*_within(self._window, "mail.at"), *(part.check for part in self._parts if part is not best)]
        if best is None:
            whole = joined(pieces or [_ALL.where], " AND ")
            return whole, whole
        if best.ways:
            queries = [
                Piece(f"SELECT {way.key} FROM {way.tables} WHERE {way.where.text}", way.where.parameters)  # noqa: S608
                for way in best.ways
            ]
            inner = joined(queries, " UNION ")
            first = [inner._replace(text=f"{key} IN ({inner.text})") for key in ("mail.id", "(mail.id + 0)")]
        else:
            first = [Piece("1 = 0")] * 2
        return joined([first[0], *pieces], " AND "), joined([first[1], *pieces], " AND ")

    # ------------------------------------------------------------------------------------------------ which way to go

    def _keys(self, limit: int, oldest: bool) -> list[Key]:
        window = self._window
        if not self._parts:
            return self._along([_ALL], None, window, limit, oldest)
        window = self._narrowed(window)
        if window[0] is not None and window[1] is not None and window[0] >= window[1]:
            return []
        best = self._fewest(window, FEW)
        if best is None:
            if limit and (near := self._near(window, limit, oldest)) is not None:
                return near
            best = self._fewest(window, MANY)
            if best is None:
                best = next(itertools.chain(filter(_in_order, self._parts), filter(_whole, self._parts)), None)
        if best is None or best.ways is None:
            return self._along([_ALL], None, window, limit, oldest)
        return self._along(best.ways, best, window, limit, oldest)

    def _fewest(self, window: Window, bound: int) -> _Part | None:
        """The filter with the fewest mails, if there is one with fewer than so many."""
        fewest, best = bound, None
        for part in self._parts:
            number = self._count(part, window, fewest)
            if number < fewest:
                fewest, best = number, part
        return best

    def _count(self, part: _Part, window: Window, bound: int) -> int:
        """What it costs to go by a filter, in steps; no further than to a bound."""
        if part.ways is None or _whole(part):
            return bound
        number = 0
        for way in part.ways:
            most = (bound - number) // way.weight + 1
            tables, where = way.counted or (way.tables, joined([way.where, *_within(window, way.at)], " AND "))
            whole = joined([where, *_not_before(window, way)], " AND ")
            query = f"SELECT count(*) FROM (SELECT 1 FROM {tables} WHERE {whole.text} LIMIT {most}) AS x"  # noqa: S608
            number += next(iter(self._reader.rows(query, whole.parameters)))[0] * way.weight
            if number >= bound:
                return bound
        return number

    def _narrowed(self, window: Window) -> Window:
        """The window in which every filter has mails, as far as that is known at once."""
        since, until = window
        for part in self._parts:
            ends = [way.ends for way in part.ways or () if way.ends is not None]
            if not ends or len(ends) != len(part.ways or ()):
                continue
            last = max((at for end in ends if (at := self._end("max", end)) is not None), default=None)
            if last is None:
                return _NEVER
            until = min(last + 0.001, last + 0.001 if until is None else until)  # the window does not have its end
            if all(end.both for end in ends):
                first = min((at for end in ends if (at := self._end("min", end)) is not None), default=last)
                since = max(first, first if since is None else since)
        return since, until

    def _end(self, which: str, ends: Ends) -> float | None:
        found: float | None = next(self._rows(f"{which}({ends.at})", ends.tables, [ends.where], ""))[0]
        return found

    def _near(self, window: Window, limit: int, oldest: bool) -> list[Key] | None:
        """Those among the first mails of the window, if they are enough, or there are no more in it."""
        where = [_ALL.where, *_within(window, "mail.at")]
        turn = "" if oldest else " DESC"
        edge = next(self._rows("mail.at", "mail", where, f" ORDER BY mail.at{turn} LIMIT 1 OFFSET {NEAR}"), None)
        if edge is not None:
            window = (window[0], edge[0]) if oldest else (edge[0], window[1])
        keys = self._along([_ALL], None, window, limit, oldest)
        return keys if edge is None or len(keys) == limit else None

    # ---------------------------------------------------------------------------------------------------------- going

    def _along(self, some: Iterable[Way], by: _Part | None, window: Window, limit: int, oldest: bool) -> list[Key]:
        """Along the ways of a filter, what passes the others."""
        rest = [part.check for part in self._parts if part is not by]
        lists = [
            self._one_way(way, [*_not_before(window, way), *_within(window, way.at), *rest], limit, oldest)
            for way in some
        ]
        once = (key for key, _ in itertools.groupby(heapq.merge(*lists, reverse=not oldest)))
        return list(itertools.islice(once, limit) if limit else once)

    def _one_way(self, way: Way, rest: Sequence[Piece], limit: int, oldest: bool) -> list[Key]:
        tables, where = way.tables, [way.where, *rest]
        if not way.has_mail and any("mail." in piece.text for piece in rest):
            tables, where = f"{tables} CROSS JOIN mail", [*where, Piece(f"mail.id = {way.key} AND mail.at = {way.at}")]
        turn = "" if oldest else " DESC"
        tail = f" ORDER BY {way.at}{turn}, {way.key}{turn}" + (f" LIMIT {limit}" if limit else "")
        columns = f"{way.at}, {way.key}"
        rows = self._rows(columns if way.once else f"DISTINCT {columns}", tables, where, tail)
        return [(at, key) for at, key in rows]

    def _rows(self, columns: str, tables: str, where: Sequence[Piece], tail: str) -> Iterator[tuple[Any, ...]]:
        whole = joined(where, " AND ")
        query = f"SELECT {columns} FROM {tables} WHERE {whole.text}{tail}"  # noqa: S608 - values are parameters
        return self._reader.rows(query, whole.parameters)


def _within(window: Window, at: str) -> list[Piece]:
    since, until = window
    pieces = [] if since is None else [Piece(f"{at} >= ?", (since,))]
    return pieces if until is None else [*pieces, Piece(f"{at} < ?", (until,))]


def _not_before(window: Window, way: Way) -> list[Piece]:
    since = window[0]
    return [Piece(f"{way.not_before} >= ?", (since,))] if way.not_before and since is not None else []


def _in_order(part: _Part) -> bool:
    return bool(part.ways) and all(way.ordered for way in part.ways or ())


def _whole(part: _Part) -> bool:
    return any(way.whole for way in part.ways or ())


# ------------------------------------------------------------------------------------------------------- what is found


def found(reader: Reader, keys: Sequence[int]) -> Iterator[Found]:
    """Mails by their ids, in the order of these."""
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        marks = ", ".join("?" * len(some))
        recipients: dict[int, list[tuple[str, bool]]] = {}
        for mail, address, accepted in reader.rows(
            f"SELECT mail, address, accepted FROM recipient WHERE mail IN ({marks}) ORDER BY mail, n",  # noqa: S608
            some,
        ):
            recipients.setdefault(mail, []).append((address_of(address), bool(accepted)))
        query = (
            "SELECT mail.id, mail.at, session.name, tx, outcome, sender, size, code, verdict, rule, message_id, sha256,"  # noqa: S608
            " mail.client, mail.server, mail.listener, mail.client_tls, mail.hello, mail.identity"
            f" FROM mail JOIN session ON session.id = mail.session WHERE mail.id IN ({marks})"
        )
        rows = {row[0]: row for row in reader.rows(query, some)}
        for key in some:
            if key in rows:  # else it was pruned a moment ago
                row = rows[key]
                sender = None if row[5] is None else address_of(row[5])
                to = tuple(recipients.get(key, ()))
                yield Found._make([*row[:5], sender, to, *row[6:12], client_of(row[12] or ""), *row[13:]])

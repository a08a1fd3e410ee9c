"""How many mails: by rule, by outcome, by hour. What is counted are the results of a search, so that what stands behind
a name here is what a search for it finds.

A mail counts once for each different name it has: for two rules, or for recipients in two domains, it counts for each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry.filters import Question
from smtpproxy.inquiry.searching import Search
from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import address_of, client_of

_PERIODS: Final = {"hour": 3600, "day": 86_400}
MOST_PERIODS: Final = 100_000  # eleven years of hours


class Count(NamedTuple):
    """How many mails have a name."""

    name: str
    mails: int


def _text(value: object) -> str:
    return "(none)" if value in (None, "") else str(value)


def _address(value: object) -> str:
    return "(none)" if value is None else address_of(str(value)) or "<>"


def _domain(value: object) -> str:
    """Of what is left of a key without its local-part."""
    domain = str(value or "").partition("@")[0]
    return address_of(f"{domain}@")[1:] if domain else "(none)"


def _client(value: object) -> str:
    return client_of(str(value)) if value else "(none)"


class _By(NamedTuple):
    """Something to count by: an expression, where it is had, and what its values are called."""

    expression: str
    tables: tuple[str, ...] = ("mail WHERE",)  # whole; the first one named is gone through
    name: Callable[[object], str] = _text


def _marks(what: str) -> _By:
    both = f"mark k CROSS JOIN mail WHERE k.what = '{what}' AND"
    own = f"{both} k.mail > 0 AND mail.id = k.mail AND mail.at = k.at AND"
    session = f"{both} k.mail = 0 AND mail.session = k.session AND mail.at <= k.at AND"
    return _By("k.name", (own, session))


# A key without its local-part, in both databases: what rtrim takes off are the characters that aren't an @.
_BEFORE_AT: Final = "rtrim({0}, replace({0}, '@', ''))"
_RECIPIENTS: Final = "mail CROSS JOIN recipient r WHERE r.mail = mail.id AND r.at = mail.at AND"

BY: Final[dict[str, _By]] = {
    "outcome": _By("mail.outcome"),
    "verdict": _By("mail.verdict"),
    "rule": _marks("rule"),
    "observed": _marks("observed"),
    "anomaly": _marks("anomaly"),
    "tag": _marks("tag"),
    "reply": _marks("reply"),
    "domain": _By(_BEFORE_AT.format("r.address"), (_RECIPIENTS,), _domain),
    "sender-domain": _By(_BEFORE_AT.format("mail.sender"), name=_domain),
    "sender": _By("mail.sender", name=_address),
    "recipient": _By("r.address", (_RECIPIENTS,), _address),
    "client": _By("mail.client", name=_client),
    "identity": _By("mail.identity"),
    "tls": _By("mail.client_tls"),
    "listener": _By("mail.listener"),
    "server": _By("mail.server"),
}
# Seconds since 1970 as a whole number, rounded down; CAST alone does that in one of the databases only.
_SECONDS: Final = "CAST(ROUND(CAST(mail.at AS NUMERIC) - 0.5) AS BIGINT)"

NAMES: Final = (*BY, *_PERIODS)


class Counting:
    """Counts of the mails that pass a question.

    Args:
        reader: the store.
        question: the filters.

    Its methods raise StoreError.
    """

    def __init__(self, reader: Reader, question: Question) -> None:
        self._reader = reader
        self._selected, self._elsewhere = Search(reader, question).selected()

    def total(self) -> int:
        """All of them."""
        number: int = next(self._rows("count(*), 0", "mail WHERE", ""))[0]
        return number

    def by(self, name: str) -> list[Count]:
        """By one of NAMES: the most first; or period by period, those without any mail among them, too.

        Raises:
            ValueError: there are more than MOST_PERIODS.
        """
        if name in _PERIODS:
            return self._periods(_PERIODS[name])
        what = BY[name]
        found: Counter[str] = Counter()
        for value, number in self._grouped(what):
            found[what.name(value)] += number
        return [Count(*one) for one in sorted(found.items(), key=lambda one: (-one[1], one[0]))]

    def _grouped(self, what: _By) -> Iterator[tuple[Any, int]]:
        if len(what.tables) == 1 and what.tables[0].startswith("mail WHERE"):
            yield from self._rows(f"{what.expression}, count(*)", what.tables[0], f" GROUP BY {what.expression}")
            return
        columns = f"{what.expression} AS name, mail.id AS mail"
        passed = self._selected if what.tables[0].startswith("mail ") else self._elsewhere
        both = " UNION ".join(f"SELECT DISTINCT {columns} FROM {one} {passed.text}" for one in what.tables)  # noqa: S608
        query = f"SELECT name, count(*) FROM ({both}) AS x GROUP BY name"  # noqa: S608 - values are parameters
        yield from self._reader.rows(query, passed.parameters * len(what.tables))

    def _periods(self, seconds: int) -> list[Count]:
        period = f"{_SECONDS} / {seconds}"
        found = dict(self._rows(f"{period}, count(*)", "mail WHERE", f" GROUP BY {period}"))
        if not found:
            return []
        first, last = min(found), max(found)
        if last - first > MOST_PERIODS:
            raise ValueError("that is too long a time: say --since")
        length = 10 if seconds == _PERIODS["day"] else 13
        return [
            Count(datetime.fromtimestamp(at * seconds, UTC).isoformat(" ")[:length], found.get(at, 0))
            for at in range(first, last + 1)
        ]

    def _rows(self, columns: str, tables: str, tail: str) -> Iterator[tuple[Any, int]]:
        query = f"SELECT {columns} FROM {tables} {self._selected.text}{tail}"  # noqa: S608 - values are parameters
        return self._reader.rows(query, self._selected.parameters)

"""The record for other programs: mails one after the other, the oldest first, however many.

An export goes through the mails a page at a time, each page a search of its own for the next ones (searching.py), and
keeps nothing of what it is through with. No question to the store stays open while who reads is slow: so the recorder
can go on, and what is erased meanwhile is gone.

What each format makes of a mail is a table (ecs.py, ocsf.py, parquet.py): a field, where it comes from in words, and
the function that gets it. A field that there is nothing for is left out; nothing is made up for it. What was there and
was erased is named (`erased`), so that nobody takes it for something that never was.
"""

import ipaddress
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry import searching
from smtpproxy.inquiry.filters import Question
from smtpproxy.inquiry.searching import Found, Search, occurring
from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import GATEWAY_SHIFT
from smtpproxy.store.store import time_of

PAGE: Final = 20_000  # mails that one search is for
AT_ONCE: Final = 500  # of them, whose marks and sessions are asked for together
STRETCH: Final = 20_000  # records that one question is for
NEAR: Final = 200  # records from one mail to the next, on average: those between are read over rather than left out
KINDS: Final = ("rule", "observed", "anomaly", "tag")
_MASK: Final = (1 << GATEWAY_SHIFT) - 1


class Session(NamedTuple):
    """What a mail's session has and the mail has not."""

    id: int
    began: float  # seconds since 1970
    ended: float | None  # None while it goes on
    how: str | None  # closed, refused, lost; None while it goes on
    server_tls: str | None


class Mail(NamedTuple):
    """A mail, or a session without one; its session; what was marked on it, by the kind of mark."""

    found: Found
    session: Session
    marks: Mapping[str, Sequence[str]]
    origin: str  # what the checkpoints of its gateway are called by


class Field(NamedTuple):
    """A field of a format: its path, with dots; what it comes from, for the documentation; how it is got, None: there
    is nothing for it."""

    path: str
    source: str
    get: Callable[[Mail], Any]


def document(fields: Sequence[Field], mail: Mail) -> dict[str, Any]:
    """A mail by the table of a format."""
    made: dict[str, Any] = {}
    for field in fields:
        value = field.get(mail)
        if value is None or value == []:
            continue
        *way, last = field.path.split(".")
        place = made
        for step in way:
            place = place.setdefault(step, {})
        place[last] = value
    return made


# ----------------------------------------------------------------------------------------------------------- the mails


def mails(reader: Reader, question: Question) -> Iterator[Mail]:
    """The mails that pass a question, the oldest first. What comes meanwhile may be among them.

    Raises:
        StoreError: the store can't be read.
    """
    names = [(what, name) for what in KINDS for name in occurring(reader, what)]
    origins = _origins(reader)
    results = _pages(reader, question)
    while some := list(itertools.islice(results, AT_ONCE)):
        marked, sessions = _marks(reader, some, names), _sessions(reader, some)
        for found in some:
            if found.id in sessions:  # else it was pruned a moment ago
                origin = origins[found.id >> GATEWAY_SHIFT]
                yield Mail(found, sessions[found.id], marked.get(found.id, {}), origin)


def _pages(reader: Reader, question: Question) -> Iterator[Found]:
    last, since, limit = (float("-inf"), 0), question.since, PAGE
    while True:
        number = new = 0
        for found in Search(reader, question._replace(since=since)).newest(limit, oldest=True):
            number += 1
            if (found.at, found.id) > last:  # a page begins with those of the moment at which the one before ended
                last = found.at, found.id
                new += 1
                yield found
        if new:
            since, limit = last[0], PAGE
        elif number < limit:
            return
        else:  # more than a page were over at the same moment: sessions are, when their worker dies
            limit *= 2


def _origins(reader: Reader) -> Mapping[int, str]:
    """What each gateway is called."""
    try:
        origin = reader.meta("origin")
    except StoreError:  # a database of several, which has a table of them
        return dict(reader.rows("SELECT id, origin FROM gateway"))
    return defaultdict(lambda: origin)


def _sessions(reader: Reader, some: Sequence[Found]) -> dict[int, Session]:
    """Sessions by the ids of their mails."""
    query = (
        "SELECT mail.id, session.id, session.at, until, how, server_tls FROM mail"  # noqa: S608 - ?, ?, …
        f" JOIN session ON session.id = mail.session WHERE mail.id IN ({_places(some)})"
    )
    return {row[0]: Session._make(row[1:]) for row in reader.rows(query, [found.id for found in some])}


def _marks(reader: Reader, some: Sequence[Found], names: Sequence[tuple[str, str]]) -> dict[int, dict[str, list[str]]]:
    """Marks by the ids of their mails. Their index has the time behind the name: so each name is asked for, for all of
    the time between the first mail and the last if they are near each other, or else for their times one by one."""
    found: dict[int, dict[str, list[str]]] = {}
    ids = {one.id for one in some}
    if max(ids) - min(ids) < NEAR * len(ids):
        times, parameters = "at >= ? AND at <= ?", [some[0].at, some[-1].at]
    else:
        times, parameters = f"at IN ({_places(some)})", [one.at for one in some]
    query = f"SELECT mail FROM mark WHERE what = ? AND name = ? AND {times} AND mail > 0"  # noqa: S608 - ?, ?, …
    for what, name in names:
        for (mail,) in reader.rows(query, (what, name, *parameters)):
            if mail in ids:
                found.setdefault(mail, {}).setdefault(what, []).append(name)
    return found


def _places(some: Sequence[Found]) -> str:
    return ", ".join("?" * len(some))


# --------------------------------------------------------------------------------------------------------- the records


def records(reader: Reader, question: Question) -> Iterator[bytes]:
    """Lines as they are in the store: with no filter but time, those of that time; else those of all sessions that have
    a mail that passes, each once, session by session.

    Raises:
        StoreError: the store can't be read.
    """
    if not question.filters:
        yield from _of_time(reader, question.since, question.until)
        return
    seen = _Seen()
    for mail in mails(reader, question):
        if seen.add(mail.session.id):
            yield from (line for _, line in reader.session_lines(mail.session.id))


class _Seen:
    """Numbers that were here before: a bit for each, because there may be millions."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = defaultdict(bytearray)  # by gateway

    def add(self, number: int) -> bool:
        """Whether it is new."""
        bits, (at, bit) = self._bits[number >> GATEWAY_SHIFT], divmod(number & _MASK, 8)
        if at >= len(bits):
            bits.extend(bytes(at + 4096 - len(bits)))
        new = not bits[at] >> bit & 1
        bits[at] |= 1 << bit
        return new


def _of_time(reader: Reader, since: float | None, until: float | None) -> Iterator[bytes]:
    start, stop = _numbers(reader, since, until)
    for begin in range(start, stop, STRETCH):
        for _, line in list(reader.lines(begin, min(begin + STRETCH, stop))):
            if since is None and until is None:
                yield line
                continue
            at = time_of(line)
            if (since is None or at >= since) and (until is None or at < until):
                yield line


def _numbers(reader: Reader, since: float | None, until: float | None) -> tuple[int, int]:
    """Between which numbers the records of a time are, and perhaps others. Records are in the order of time but where
    the clock was set back: so it is the blocks that begin in that time, what is between them, and the block before."""
    start, stop = int(reader.meta("first") or 0), int(reader.meta("size") or 0)
    window = (since if since is not None else float("-inf"), until if until is not None else float("inf"))
    within = _one(reader, "SELECT min(first), max(first) FROM block WHERE at >= ? AND at < ?", *window)
    if within[0] is None:  # it is within a block, the last that begins before, if there is one
        within = 2 * _one(reader, "SELECT first FROM block WHERE at < ? ORDER BY at DESC LIMIT 1", window[0])
        if not within:
            return 0, 0
    if since is not None:
        (before,) = _one(reader, "SELECT max(first) FROM block WHERE first < ?", within[0])
        start = max(start, (within[0] if before is None else before) & _MASK)
    if until is not None:
        (after,) = _one(reader, "SELECT min(first) FROM block WHERE first > ?", within[1])
        stop = stop if after is None else min(stop, after & _MASK)
    return start, stop


def _one(reader: Reader, query: str, *parameters: Any) -> tuple[Any, ...]:
    """The one row of a query; () if there is none."""
    return next(iter(list(reader.rows(query, parameters))), ())


# ------------------------------------------------------------------------------------------ what formats have in common


def number_of(mail: Mail) -> int:
    """The number of the record at which it was over."""
    return mail.found.id & _MASK


def gateway_of(mail: Mail) -> int:
    """The gateway's number in a database of several; else 0."""
    return mail.found.id >> GATEWAY_SHIFT


def unique(mail: Mail) -> str:
    """What tells it from all others, also of other gateways. Where a log has no origin its sessions still have names
    that no other gateway's have."""
    return f"{mail.origin or mail.found.session}:{number_of(mail)}"


def is_mail(mail: Mail) -> bool:
    """It is one, and no session without."""
    return mail.found.outcome != "none"


def succeeded(mail: Mail) -> bool | None:
    """It was accepted; of a session without a mail: it was let in, and ended with nothing refused. None: nobody knows,
    its worker died."""
    if is_mail(mail):
        return mail.found.outcome == "accepted"
    return None if mail.session.how == "lost" else mail.session.how == "closed" and mail.found.code < 400


def erased(mail: Mail) -> list[str]:
    """What of it was there and was erased."""
    return searching.erased(mail.found)


def marks(mail: Mail, what: str) -> list[str]:
    """The names of a kind of mark on it."""
    return list(mail.marks.get(what, ()))


def address_ip(text: str | None) -> str | None:
    """An address without its brackets and port, if it is an IP address."""
    if text is None:
        return None
    host, _ = host_and_port(text)
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def host_and_port(text: str) -> tuple[str, int | None]:
    """`mx.example:25`, `[2001:db8::1]:25`, or either without port."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.startswith("[")):
        return text.strip("[]"), None
    return host.strip("[]"), int(port)


def recipients(mail: Mail, *, accepted: bool | None = None) -> list[str]:
    """Its recipients: all, or those that were accepted, or not; without those that were erased."""
    return [address for address, good in mail.found.recipients if address and accepted in (None, good)]


def message_id(mail: Mail) -> str | None:
    """Its Message-ID without <>."""
    text = mail.found.message_id
    return None if text is None else text.strip().removeprefix("<").removesuffix(">")

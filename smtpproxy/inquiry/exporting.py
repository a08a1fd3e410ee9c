"""The record for other programs: mails one after the other, in the order in which they were over, however many.

An export goes through the numbers of the record a stretch at a time, and keeps nothing of what it is through with. What
each format makes of a mail is a table (ecs.py, ocsf.py, parquet.py): a field, where it comes from in words, and the
function that gets it. A field that there is nothing for is left out; nothing is made up for it.
"""

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from smtpproxy.inquiry.filters import Question
from smtpproxy.inquiry.searching import Found, Search, occurring
from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import GATEWAY_SHIFT
from smtpproxy.store.store import time_of

STRETCH: Final = 20_000  # numbers of records that are looked through at once
_KINDS: Final = ("rule", "observed", "anomaly", "tag")
_MASK: Final = (1 << GATEWAY_SHIFT) - 1


class Mail(NamedTuple):
    """A mail, or a session without one, and what was marked on it, by the kind of mark."""

    found: Found
    marks: Mapping[str, Sequence[str]]
    origin: str  # what the checkpoints of its gateway are called by; "" where several gateways are in one database


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


def mails(reader: Reader, question: Question) -> Iterator[Mail]:
    """The mails that pass a question, the oldest first."""
    search = Search(reader, question)
    names = [(what, name) for what in _KINDS for name in occurring(reader, what)]
    origin = reader.meta("origin")
    for start, stop in _stretches(reader):
        some = list(search.over(start, stop))
        marks = _marks(reader, some, names)
        for found in some:
            yield Mail(found, marks.get(found.id, {}), origin)


def _stretches(reader: Reader) -> Iterator[tuple[int, int]]:
    """Numbers of records, from one to before another, such that every mail is in one."""
    start = -1
    while True:
        ((start,),) = list(reader.rows("SELECT min(id) FROM mail WHERE id >= ?", (start,)))
        if start is None:
            return
        yield start, start + STRETCH
        start += STRETCH


def _marks(reader: Reader, some: Sequence[Found], names: Sequence[tuple[str, str]]) -> dict[int, dict[str, list[str]]]:
    """Marks by the ids of their mails. The index of marks has the time behind the name: so each name is asked for."""
    found: dict[int, dict[str, list[str]]] = {}
    if some:
        query = "SELECT mail FROM mark WHERE what = ? AND name = ? AND at >= ? AND at <= ? AND mail > 0"
        first, last = min(one.at for one in some), max(one.at for one in some)
        for what, name in names:
            for (mail,) in reader.rows(query, (what, name, first, last)):
                found.setdefault(mail, {}).setdefault(what, []).append(name)
    return found


def records(reader: Reader, question: Question) -> Iterator[bytes]:
    """Lines as they are in the store: with no filter but time, those of that time; else those of all sessions that have
    a mail that passes, each once, session by session."""
    if not question.filters:
        yield from _of_time(reader, question)
        return
    done: set[str] = set()
    for mail in mails(reader, question):
        name = mail.found.session
        if name in done:
            continue
        done.add(name)
        for (number,) in list(reader.rows("SELECT id FROM session WHERE name = ?", (name,))):
            if number >> GATEWAY_SHIFT == mail.found.id >> GATEWAY_SHIFT:
                yield from (line for _, line in reader.session_lines(number))


def _of_time(reader: Reader, question: Question) -> Iterator[bytes]:
    since, until = question.since, question.until
    start = 0
    if since is not None:  # records are in the order of time but where the clock was set back: a block before it
        rows = list(reader.rows("SELECT max(first) FROM block WHERE at < ?", (since,)))
        start = int(rows[0][0] or 0)
    for _, line in reader.lines(start):
        if since is None and until is None:
            yield line
            continue
        at = time_of(line)
        if (since is None or at >= since) and (until is None or at < until):
            yield line


# ------------------------------------------------------------------------------------------ what formats have in common


def number_of(mail: Mail) -> int:
    """The number of the record at which it was over."""
    return mail.found.id & _MASK


def gateway_of(mail: Mail) -> int:
    """The gateway's number in a database of several; else 0."""
    return mail.found.id >> GATEWAY_SHIFT


def unique(mail: Mail) -> str:
    """What tells it from all others, also of other gateways."""
    return f"{mail.origin or gateway_of(mail)}:{number_of(mail)}"


def is_mail(mail: Mail) -> bool:
    """It is one, and no session without."""
    return mail.found.outcome != "none"


def succeeded(mail: Mail) -> bool:
    """It was accepted; of a session without a mail: nothing was refused at its end."""
    return mail.found.outcome == "accepted" or (not is_mail(mail) and mail.found.code < 400)


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
    """Its recipients: all, or those that were accepted, or not."""
    return [address for address, good in mail.found.recipients if accepted is None or good is accepted]


def message_id(mail: Mail) -> str | None:
    """Its Message-ID without <>."""
    text = mail.found.message_id
    return None if text is None else text.strip().removeprefix("<").removesuffix(">")

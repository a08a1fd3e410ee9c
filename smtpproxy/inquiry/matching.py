"""The record as it grows: what a mail administrator wants to see of it, with the filters of a search.

What is shown of a number of the record is one of two things:

- a **mail** that was over there, or a session without any: as the search finds it, by the same query;
- an **event**, from the record itself: a command that was refused, an anomaly, something a rule did, a client that was
  not let in, what the recorder has to say. What the mail's own line tells anyway is not told twice. Or, where all of it
  is wanted, every record.

An event is compared by what its record says, and by what its session's records have said before. That is kept while the
session goes on; of one that began before the tail did, its records are read. So it does not matter where one begins,
nor who starts, stops or prunes meanwhile.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from smtpproxy.inquiry.filters import Question, Value
from smtpproxy.inquiry.searching import Found, Search
from smtpproxy.store.reading import Reader
from smtpproxy.store.schema import GATEWAY_SHIFT, client_key, key_of

LOOK_BACK: Final = 20_000  # records that are looked through for the last events
_AT_ONCE: Final = 5_000  # records that are taken together
_MOST_GOING: Final = 100_000  # sessions of which something is remembered
_OVER: Final = ("tx-commit", "tx-refused")
_QUIET: Final = ("default", "posture")  # what decides where no rule does; no name of a rule
_PATH: Final = re.compile(r"(MAIL FROM|RCPT TO): *<([^>]*)>", re.IGNORECASE)

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Event(NamedTuple):
    """A record worth telling."""

    number: int
    at: float
    session: str
    client: str
    record: dict[str, Any]
    line: bytes  # as it was written


class _Going:
    """A session: what its records have said, as fields."""

    __slots__ = ("client", "sender", "view")

    def __init__(self, name: str = "") -> None:
        self.client = ""
        self.view: dict[str, tuple[Value, ...]] = {"session": (name,)}
        self.sender: str | None = None  # of the mail that goes on

    def learn(self, record: dict[str, Any]) -> None:
        """From the next record."""
        kind, view = record.get("kind"), self.view
        if kind == "exchange":
            if record.get("verb") in ("EHLO", "HELO", "LHLO") and _code(record) // 100 == 2:
                view["hello"] = _names([(record.get("asked") or "").partition(" ")[2]])
        elif kind == "link-connect":
            self.client = _host(str(record.get("client") or ""))
            view["client"] = (client_key(self.client),)
            view["server"], view["listener"] = _names([record.get("server")]), _names([record.get("listener")])
        elif kind == "link-tls" and isinstance(record.get("client"), dict):
            view["client_tls"] = _names([record["client"].get("version")])
        elif kind == "link-auth" and record.get("accepted"):
            view["identity"] = _names([record.get("identity")])
        elif kind == "tx-begin":
            self.sender = record.get("mail")
        elif kind in _OVER:
            self.sender = None


class Tail:
    """What comes into a store.

    Args:
        reader: the store.
        question: the filters.
        records: every record is wanted.

    Its methods raise StoreError.
    """

    def __init__(self, reader: Reader, question: Question, *, records: bool = False) -> None:
        self._reader = reader
        self._question = question
        self._records = records
        self._going: dict[str, _Going] = {}
        self._base = int(reader.meta("gateway") or 0) << GATEWAY_SHIFT
        self.next = self._size()

    def _size(self) -> int:
        return int(self._reader.meta("size") or 0)

    def last(self, number: int) -> list[Found | Event]:
        """The last so many, in their order. Events are looked for in the last LOOK_BACK records only."""
        begin = max(0, self.next - LOOK_BACK)
        late = deque(self._between(begin, self.next), maxlen=number)  # even if none is wanted, for what it tells
        if not number or self._records or len(late) == number:
            return list(late)
        mails = Search(self._reader, self._question).newest(number)
        early = sorted((one for one in mails if one.id < self._base + begin), key=lambda one: one.id)
        return [*early, *late][-number:]

    def more(self) -> Iterator[Found | Event]:
        """What has come since."""
        stop = self._size()
        if stop < self.next:  # another store is in its place
            self.next = stop
            self._going.clear()
        while self.next < stop:
            until = min(stop, self.next + _AT_ONCE)
            yield from self._between(self.next, until)
            self.next = until

    def follow(self, wait: Callable[[], None]) -> Iterator[Found | Event]:
        """What comes, for ever.

        Args:
            wait: called whenever there is nothing more for now.
        """
        while True:
            yield from self.more()
            wait()

    # -------------------------------------------------------------------------------------------------- a few records

    def _between(self, start: int, stop: int) -> Iterator[Found | Event]:
        for begin in range(start, stop, _AT_ONCE):
            yield from self._some(begin, min(stop, begin + _AT_ONCE))

    def _some(self, start: int, stop: int) -> Iterator[Found | Event]:
        base = self._base
        mails = {one.id - base: one for one in Search(self._reader, self._question).over(base + start, base + stop)}
        for number, line in list(self._reader.lines(start, stop)):
            record = _read(line)
            if record is None:
                continue
            name, kind = str(record.get("session", "")), record.get("kind")
            if kind == "link-connect":
                if len(self._going) >= _MOST_GOING:  # many whose end was never seen
                    self._going.clear()
                self._going[name] = _Going(name)
            if name in self._going:
                self._going[name].learn(record)
            mail = mails.get(number)
            if mail is not None and not self._records:
                yield mail
            elif mail is not None or (self._wanted(record) and self._holds(record, number)):
                yield Event(number, _at(record), name, self._session(name, number).client, record, line)
            self._forget(name, record)

    def _session(self, name: str, number: int) -> _Going:
        """What is known of a session at a record."""
        going = self._going.get(name)
        if going is None:
            going = _Going(name)
            if name:
                self._going[name] = going
                for (key,) in list(self._reader.rows("SELECT id FROM session WHERE name = ?", (name,))):
                    for at, line in self._reader.session_lines(key):
                        if at <= number and (record := _read(line)) is not None:
                            going.learn(record)
        return going

    def _forget(self, name: str, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        if kind == "link-close":
            self._going.pop(name, None)
        elif kind in ("worker-died", "audit-start"):
            mark = f"{record.get('worker', '')}-" if kind == "worker-died" else ""
            self._going = {name: one for name, one in self._going.items() if not name.startswith(mark)}

    # ---------------------------------------------------------------------------------------------------- one record

    def _wanted(self, record: dict[str, Any]) -> bool:
        kind = record.get("kind")
        if self._records:
            # What is over is a mail, which the search has not found; a session's end is the end of its mails.
            return kind not in _OVER
        if kind == "exchange":
            return _tells(record)
        if kind == "link-connect":
            return False  # a client that isn't let in has a session without a mail, there
        return kind in ("violation", "note", "worker-died") or str(kind).startswith("audit-")

    def _holds(self, record: dict[str, Any], number: int) -> bool:
        name = str(record.get("session", ""))
        if not self._question.filters:
            return self._question.holds(_at(record), {})
        if not name:
            return False  # what is about the record itself is no mail's
        going = self._session(name, number)
        view = {**going.view, **_view(record)}
        path = _PATH.match(str(record.get("asked") or ""))
        if path is not None:
            view["sender" if path[1][0] in "Mm" else "recipient"] = (key_of(path[2]),)
        if going.sender is not None and (record.get("tx") or record.get("kind") == "tx-begin"):
            view.setdefault("sender", (key_of(going.sender),))
        return self._question.holds(_at(record), view)


def _read(line: bytes) -> dict[str, Any] | None:
    """A record; what is none is nothing to show."""
    try:
        return _decode(line)
    except msgspec.MsgspecError:
        return None


def _host(text: str) -> str:
    """`192.0.2.1:25` or `[2001:db8::1]:25` without the port."""
    host, colon, port = text.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else text


def _at(record: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(record.get("at"))).timestamp()
    except ValueError:
        return 0.0


def _tells(record: dict[str, Any]) -> bool:
    """Whether an exchange is worth a line: more than its mail's own line says."""
    if record.get("anomalies") or record.get("observed"):
        return True
    if record.get("verb") == "END" or (record.get("verb") == "MAIL" and record.get("tx") and _code(record) >= 400):
        return False
    return _code(record) >= 400 or record.get("action", "pass") != "pass" or bool(record.get("rules"))


def _code(record: dict[str, Any]) -> int:
    code = record.get("code", 0)
    return code if isinstance(code, int) else 0


def _view(record: dict[str, Any]) -> dict[str, tuple[Value, ...]]:
    """The fields of a record, as the index would have them."""
    code = _code(record)
    rules = [name for name in str(record.get("rule", "")).split() if name not in _QUIET]
    anomalies = [*_names(record.get("anomalies")), *([record["anomaly"]] if record.get("anomaly") else [])]
    seen = [one.get("rule") for one in record.get("observed") or () if isinstance(one, dict)]
    size, message_id = record.get("octets"), record.get("message_id")
    return {
        "verdict": (record["action"],) if isinstance(record.get("action"), str) else (),
        "rule": (*rules, *_names(record.get("rules"))),
        "observed": _names(seen),
        "anomaly": _names(anomalies),
        "tag": _names(record.get("tags")),
        "reply": (str(code),) if code >= 400 else (),
        "code": (code,),
        "size": (size,) if isinstance(size, int) and size else (),
        "message_id": _names([message_id]),
    }


def _names(found: object) -> tuple[str, ...]:
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()

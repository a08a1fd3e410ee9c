"""What a worker counts: it is told of each record of its sessions, and leaves its totals where others can read them.

A record costs well under a microsecond here, most of them by one look-up: exchanges alike in verb, action, rule and
reply share a `cell`, a list of their count and of the histograms of their verb. What cells and totals have in common is
brought together once a second, when the totals are published.

Nothing that a peer chose is kept: names are those of the catalogue, of rules and of listeners, and what else there is
becomes `other`. The values of commands and replies are never looked at, so no secret gets here.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from smtpproxy.metrics.catalogue import (
    LASTING,
    MECHANISMS,
    OCTETS,
    OTHER,
    OUTCOMES,
    RESULTS,
    SECONDS,
    SIDES,
    VERSIONS,
)
from smtpproxy.metrics.totals import Key, Totals
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.smtp.anomalies import ANOMALIES

MOST_LINKS: Final = 4096  # links of servers, each in a session whose client may be encrypted later
_REPLIES: Final = ("none", "1", "2", "3", "4", "5")


class Meter:
    """Counts for one worker.

    Args:
        publish: leaves octets where they are read.
        room: how many those may be, at most.
    """

    def __init__(self, publish: Callable[[bytes], None], room: int) -> None:
        self.totals = Totals(room)
        self._publish = publish
        self._cells: dict[tuple[str, str, str, int], list[Any]] = {}
        self._keys: dict[tuple[str, str, str, int], tuple[Key, ...]] = {}  # what a cell's count is added to
        self._links: OrderedDict[int, float] = OrderedDict()
        self._durations = self.totals.histogram("session_duration_seconds")
        self._turns = self.totals.histogram("turn_seconds")
        self._sizes = self.totals.histogram("message_size_bytes")
        self._counts: dict[Kind, Callable[[AuditRecord], None]] = {
            Kind.CONNECT: self._connected,
            Kind.CLOSE: self._closed,
            Kind.BEGIN: self._begun,
            Kind.COMMIT: self._committed,
            Kind.REFUSED: self._refused,
            Kind.TLS: self._encrypted,
            Kind.AUTH: self._logged_in,
            Kind.VIOLATION: self._violated,
            Kind.NOTE: self._noted,
        }
        self._records = 0  # but for exchanges
        self._changed = True  # since it was last published; exchanges are seen by their cells
        self.blocked(False)

    def count(self, item: AuditRecord) -> None:
        """A record was made."""
        exchange = item.exchange
        if exchange is None:
            self._records += 1
            self._counts[item.kind](item)
            return
        told = exchange.told
        digit = told.code // 100 if told is not None else 0
        key = exchange.verb.name, exchange.action, exchange.rule, digit
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cell(key)
        cell[0] += 1
        got_at = exchange.got_at
        waited = 0.0
        if got_at:
            waited = got_at - exchange.sent_at
            histogram = cell[1]
            histogram[0] += waited
            histogram[bisect_left(SECONDS, waited) + 1] += 1
        if digit and exchange.asked is not None:
            whole = item.at - exchange.asked_at
            histogram = cell[2]
            histogram[0] += whole
            histogram[bisect_left(SECONDS, whole) + 1] += 1
            whole -= waited
            histogram = cell[3]
            histogram[0] += whole
            histogram[bisect_left(SECONDS, whole) + 1] += 1
        if exchange.anomalies:
            for name in exchange.anomalies:
                self._anomaly(name)
        if exchange.effects is not None:
            for rule in exchange.effects.rules:
                self.totals.count("rule_acts_total", rule)
            for observed in exchange.effects.observed:
                self.totals.count("observed_total", observed.rule, observed.action)

    def _cell(self, key: tuple[str, str, str, int]) -> list[Any]:
        """A new one."""
        verb, action, rule, digit = key
        totals = self.totals
        keys: list[Key] = [("exchanges_total", verb, action, _REPLIES[digit] if digit < len(_REPLIES) else OTHER)]
        if rule:
            keys.append(("verdicts_total", rule, action))
        for index, one in enumerate(keys):
            if one not in totals.counters:
                keys[index] = one = totals.key(*one)
                totals.counters.setdefault(one, 0)
        names = ("exchange_server_seconds", "exchange_seconds", "exchange_own_seconds")
        self._keys[key] = tuple(keys)
        cell = self._cells[key] = [0, *(totals.histogram(name, verb) for name in names)]
        return cell

    def publish(self) -> None:
        """Let others read what was counted. To be called about once a second."""
        totals = self.totals
        exchanges = 0
        for key, cell in self._cells.items():
            if count := cell[0]:
                cell[0] = 0
                exchanges += count
                for one in self._keys[key]:
                    totals.counters[one] += count
        if records := self._records + exchanges:
            self._records = 0
            self._changed = True
            totals.count("audit_records_total", by=records)
        if self._changed:
            self._changed = False
            self._publish(totals.octets())

    def turned(self, seconds: float) -> None:
        """The worker's reactor has turned once; it is published with the next record."""
        turns = self._turns
        turns[0] += seconds
        turns[bisect_left(SECONDS, seconds) + 1] += 1

    def blocked(self, is_blocked: bool) -> None:
        """Whether the record can't be written just now."""
        self.totals.gauges[("audit_blocked_workers",)] = float(is_blocked)
        self._changed = True

    def kept(self, outcome: str) -> None:
        """What came of a mail that was to be kept in the quarantine: one of `KEPT`."""
        self.totals.count("quarantine_total", outcome)
        self._changed = True

    # ------------------------------------------------------------------------------------------------------ by kind

    def _anomaly(self, name: str) -> None:
        self.totals.count("anomalies_total", name if name in ANOMALIES else OTHER)

    def _connected(self, item: AuditRecord) -> None:
        facts = item.detail or {}
        listener = facts["listener"]
        self.totals.count("sessions_total", listener)
        if "refused" in facts:
            self.totals.count("sessions_refused_total", listener)
        elif "unseen" in facts:
            self.totals.count("sessions_unseen_total", listener)

    def _closed(self, item: AuditRecord) -> None:
        facts = item.detail or {}
        _put(self._durations, LASTING, facts["seconds"])
        for side, direction, key in _WAYS:
            self.totals.count("link_bytes_total", side, direction, by=facts[key])

    def _begun(self, _item: AuditRecord) -> None:
        self.totals.count("transactions_begun_total")

    def _committed(self, item: AuditRecord) -> None:
        self.totals.count("transactions_total", OUTCOMES[""])
        _put(self._sizes, OCTETS, item.transaction.size)

    def _refused(self, item: AuditRecord) -> None:
        why = (item.detail or {})["why"]
        self.totals.count("transactions_total", OUTCOMES.get(why, OTHER))

    def _encrypted(self, item: AuditRecord) -> None:
        """Both links stand there as they are now. One of the server that was encrypted first stands there a second time
        when the client's is: it is known by its duration, which is the same object then, kept so that it stays one."""
        facts = item.detail or {}
        if "passthrough" in facts:
            self.totals.count("tls_passthrough_total")
            return
        client, server = facts["client"], facts["server"]
        if client is None and server is not None and "seconds" in server:
            self._links[id(server["seconds"])] = server["seconds"]
            if len(self._links) > MOST_LINKS:
                self._links.popitem(last=False)
        elif server is not None and self._links.pop(id(server.get("seconds")), None) is not None:
            server = None
        for side, link in (("client", client), ("server", server)):
            if link is not None:
                version = link["version"]
                verified = {True: "yes", False: "no"}.get(link.get("verified"), "unasked")
                self.totals.count("tls_links_total", side, version if version in VERSIONS else OTHER, verified)
                _put(self.totals.histogram("tls_handshake_seconds", side), SECONDS, link.get("seconds", 0.0))

    def _logged_in(self, item: AuditRecord) -> None:
        facts = item.detail or {}
        mechanism = facts["mechanism"]
        outcome = "accepted" if facts["accepted"] else "refused"
        self.totals.count("auth_total", mechanism if mechanism in MECHANISMS else OTHER, outcome)

    def _violated(self, item: AuditRecord) -> None:
        facts = item.detail or {}
        anomaly, side = facts["anomaly"], facts["side"]
        self.totals.count("violations_total", anomaly if anomaly in ANOMALIES else OTHER, side)

    def _noted(self, item: AuditRecord) -> None:
        """An anomaly, a handshake that failed, or what rules did where there is no exchange to put it on."""
        facts = item.detail or {}
        totals = self.totals
        anomaly = facts.get("anomaly", "")
        for name in (anomaly, *facts.get("anomalies", ())):
            if name:
                self._anomaly(name)
        if anomaly == "tls-failed":
            result = facts.get("result", "")
            totals.count("tls_failures_total", facts["side"], result if result in RESULTS else "none")
        if "subject" in facts and "action" in facts:
            totals.count("verdicts_total", facts["rule"], facts["action"])
        for rule in facts.get("rules", ()):
            totals.count("rule_acts_total", rule)
        for observed in facts.get("observed", ()):
            totals.count("observed_total", observed["rule"], observed["action"])


_WAYS: Final = tuple(
    (side, direction, f"octets_{word}_{side}")
    for side in SIDES
    for direction, word in (("received", "from"), ("sent", "to"))
)


def _put(histogram: list[float], bounds: tuple[float, ...], value: float) -> None:
    histogram[0] += value
    histogram[bisect_left(bounds, value) + 1] += 1

"""What was found, as lines: for people, for programs (JSON), for spreadsheets (CSV).

Peers chose much of it. What goes to people is printable; JSON is in US-ASCII, with everything else escaped; a cell of
CSV that a spreadsheet would take for a formula has an apostrophe before it.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from smtpproxy.columns import printable, table
from smtpproxy.inquiry.counting import Count
from smtpproxy.inquiry.matching import Event
from smtpproxy.inquiry.searching import Found, erased
from smtpproxy.store.schema import GATEWAY_SHIFT

ERASED: Final = "(erased)"
HEADS: Final = ("WHEN", "SESSION", "CLIENT", "OUTCOME", "CODE", "VERDICT", "OCTETS", "FROM", "TO")
_TO_THE_RIGHT: Final = (4, 6)
_KEYS: Final = (
    "at", "number", "gateway", "session", "tx", "outcome", "code", "verdict", "rule", "mail", "rcpt", "rcpt_refused",
    "octets", "message_id", "sha256", "client", "server", "listener", "tls", "hello", "identity", "erased",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_NOT_SAID: Final = ("v", "at", "up", "seq", "session", "kind", "salt", "transcript")

Colour = str | None


def when(at: float) -> str:
    """`2026-11-24 10:00:00`, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def moment_text(at: float) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def keys(one: Found) -> dict[str, Any]:
    """A result by the keys of docs/audit-asking.md; what there is none of is left out."""
    whole = {
        "at": moment_text(one.at),
        "number": one.id & ((1 << GATEWAY_SHIFT) - 1),
        "gateway": one.id >> GATEWAY_SHIFT or None,
        "session": one.session,
        "tx": one.tx,
        "outcome": one.outcome,
        "code": one.code or None,
        "verdict": one.verdict,
        "rule": one.rule,
        "mail": one.sender,
        "rcpt": [address for address, accepted in one.recipients if accepted and address] or None,
        "rcpt_refused": [address for address, accepted in one.recipients if not accepted and address] or None,
        "octets": one.size or None,
        "message_id": one.message_id,
        "sha256": one.sha256,
        "client": one.client or None,
        "server": one.server,
        "listener": one.listener,
        "tls": one.tls,
        "hello": one.hello,
        "identity": one.identity,
        "erased": erased(one) or None,
    }
    return {key: value for key, value in whole.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------- for people


def rows(results: Sequence[Found]) -> Iterator[tuple[str, Colour]]:
    """A table, line by line."""
    lines = table(HEADS, map(_row, results), right=_TO_THE_RIGHT)
    yield next(lines), None
    for one, line in zip(results, lines, strict=True):
        yield line, colour(one)


def colour(one: Found | Event) -> Colour:
    """Red is what did not come to what was asked for; yellow what came to it, but not as it was."""
    if isinstance(one, Found):
        if one.outcome not in ("accepted", "none") or one.code >= 400:
            return "red"
        return None if one.verdict == "pass" else "yellow"
    code = one.record.get("code")
    if (isinstance(code, int) and code >= 400) or one.record.get("kind") == "violation":
        return "red"
    return "yellow" if one.record.get("anomalies") or one.record.get("anomaly") else None


def _row(one: Found) -> tuple[str, ...]:
    return (
        when(one.at),
        one.session,
        one.client or ERASED,
        one.outcome,
        str(one.code or ""),
        _verdict(one),
        f"{one.size:,}" if one.size else "",
        _sender(one),
        _recipients(one),
    )


def _verdict(one: Found) -> str:
    return f"{one.verdict} ({one.rule})" if one.rule else one.verdict


def _sender(one: Found) -> str:
    if one.sender is None:
        return "" if one.outcome == "none" else ERASED
    return f"<{one.sender}>"


def _recipients(one: Found) -> str:
    if not one.recipients:
        return ""
    more = len(one.recipients) - 1
    first = one.recipients[0][0]
    return (f"<{first}>" if first else ERASED) + (f" and {more} more" if more else "")


def line(one: Found | Event) -> str:
    """A line of the tail."""
    told = _of_mail(one) if isinstance(one, Found) else _of_record(one.record)
    parts = (when(one.at), one.session, one.client, told)
    return printable("  ".join(part for part in parts if part))


def _of_mail(one: Found) -> str:
    if one.outcome == "none":
        said = "no mail"
    else:
        to = f" to {_recipients(one)}" if one.recipients else ""
        said = f"{_sender(one)}{to}: {one.outcome}"
    details = [str(one.code) if one.code else "", f"{one.size:,} octets" if one.size else ""]
    details += [_verdict(one)] if one.verdict != "pass" or one.rule else []
    return ", ".join([said, *(detail for detail in details if detail)])


def _of_record(record: Mapping[str, Any]) -> str:
    kind = record.get("kind")
    if kind == "exchange":
        said = _of_exchange(record)
    elif record.get("anomaly"):
        side = f" of the {record['side']}" if record.get("side") else ""
        said = f"{record['anomaly']}{side}" + (f": {record['why']}" if record.get("why") else "")
    else:
        rest = {key: value for key, value in record.items() if key not in _NOT_SAID and value not in (None, "", [], {})}
        said = f"{kind}: " + ", ".join(f"{key} {_words(value)}" for key, value in rest.items()) if rest else str(kind)
    return said


def _of_exchange(record: Mapping[str, Any]) -> str:
    told = record.get("told", record.get("got"))
    asked = record.get("asked") or record.get("sent") or record.get("verb")
    said = f"{asked}: {'nothing was told' if told is None else told}"
    details = [str(record["action"])] if record.get("action", "pass") != "pass" else []
    rules = [str(record["rule"])] if record.get("rule") else []
    rules += [str(one) for one in record.get("rules") or ()]
    details += [f"rule {', '.join(rules)}"] if rules else []
    for seen in record.get("observed") or ():
        if isinstance(seen, dict):
            details.append(f"rule {seen.get('rule')} would have said {seen.get('action')}")
    details += [str(one) for one in record.get("anomalies") or ()]
    return said + (f" ({'; '.join(details)})" if details else "")


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -------------------------------------------------------------------------------------------------------- for programs


def json_line(one: Found | Event) -> str:
    """One JSON object."""
    if isinstance(one, Found):
        return json.dumps(keys(one))
    return json.dumps({**one.record, "number": one.number})


def json_of_count(by: str, one: Count) -> str:
    """One JSON object."""
    return json.dumps({"by": by, "name": one.name, "mails": one.mails})


def csv_lines(heads: Sequence[str], cells: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of CSV (RFC 4180), without their ends."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="")
    for row in (heads, *cells):
        file.seek(0)
        file.truncate()
        writer.writerow([_cell(cell) for cell in row])
        yield file.getvalue()


def csv_of(results: Iterable[Found]) -> Iterator[str]:
    """Results as CSV; several recipients are in one cell, with blanks between them."""
    return csv_lines(_KEYS, ([keys(one).get(key, "") for key in _KEYS] for one in results))


def csv_of_counts(counts: Iterable[tuple[str, Count]]) -> Iterator[str]:
    """Counts as CSV: by what, its name, how many."""
    return csv_lines(("by", "name", "mails"), ((by, one.name, one.mails) for by, one in counts))


def _cell(value: object) -> str:
    text = printable(" ".join(map(str, value)) if isinstance(value, list) else str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text

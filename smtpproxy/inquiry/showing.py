"""A session of the record, for people: who talked to whom, what was said on the four hops, what became of the mails.

It is made of the session's lines, in their order, and says nothing they do not say. What was erased is said to be; a
session without an end has none; a line that is no JSON is shown as it is.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from smtpproxy.columns import printable
from smtpproxy.inquiry.filters import after
from smtpproxy.inquiry.fourcolumns import SAME, Cell, Columns
from smtpproxy.inquiry.wording import ERASED
from smtpproxy.store.reading import Reader

Piece = tuple[str, str | None]  # text and colour
Lines = Sequence[tuple[int, bytes]]
Record = Mapping[str, Any]

NOTHING: Final = "(nothing)"
MOST: Final = 10  # sessions that a beginning of a name may fit and are named
_LATEST: Final = 2_000  # sessions whose names are looked at for what was perhaps meant
_INDENT: Final = " " * 11
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_SIDES: Final = ("client", "server")
_SAID: Final = frozenset(
    {"v", "at", "up", "seq", "session", "kind", "salt", "personal", "anomaly", "anomalies", "side", "why", "tx"}
)


def find(reader: Reader, name: str) -> list[tuple[int, str]]:
    """The sessions of this name, or of names that begin so: their ids and names, at most `MOST` and one."""
    found = list(reader.rows("SELECT id, name FROM session WHERE name = ? ORDER BY id LIMIT 11", (name,)))
    behind = after(name)
    if not found and behind is not None:
        query = "SELECT id, name FROM session WHERE name >= ? AND name < ? ORDER BY name, id LIMIT 11"
        found = list(reader.rows(query, (name, behind)))
    return [(int(number), str(text)) for number, text in found]


def of_message(reader: Reader, message_id: str) -> list[tuple[int, str]]:
    """The sessions of the mails with this Message-ID, with or without its <>."""
    wanted = (message_id, f"<{message_id.strip('<>')}>")
    query = (
        "SELECT DISTINCT session.id, session.name FROM mail JOIN session ON session.id = mail.session"
        " WHERE mail.message_id IN (?, ?) ORDER BY session.id LIMIT 11"
    )
    return [(int(number), str(text)) for number, text in reader.rows(query, wanted)]


def nearest(reader: Reader, name: str) -> list[str]:
    """Names of sessions that were perhaps meant."""
    latest = reader.rows("SELECT name FROM session ORDER BY id DESC LIMIT ?", (_LATEST,))
    return difflib.get_close_matches(name, [str(text) for (text,) in latest], n=3, cutoff=0.6)


def shown(lines: Lines, columns: Columns, *, full: bool = False, gateway: int = 0) -> Iterator[list[Piece]]:
    """A session, line by line.

    Args:
        lines: of the session, with their numbers.
        columns: how they are laid out.
        full: transcripts and digests, too.
        gateway: its number in a database of several; 0: there is one.
    """
    records = [(number, *_read(line)) for number, line in lines]
    yield from _head([record for _, record, _ in records], [number for number, _, _ in records], gateway)
    columns.fit(_cells(record) for _, record, _ in records if record.get("kind") == "exchange")
    yield [("", None)]
    yield [(columns.heads(), "dim")]
    begin = _moment(next((record["at"] for _, record, _ in records if "at" in record), ""))
    for _, record, raw in records:
        time = _since(begin, record)
        kind = record.get("kind")
        if kind == "exchange":
            yield from _exchange(time, record, columns, full=full)
        elif kind in ("tx-commit", "tx-refused"):
            yield from _mail(time, record, full=full)
        elif kind is None:
            yield [(f"{time:>9}  no record: {printable(raw[:200].decode(errors='replace'))}", "red")]
        elif kind not in ("link-connect", "tx-begin"):
            yield from _other(time, record)


def _read(line: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        return _decode(line), line
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}, line


# ------------------------------------------------------------------------------------------------------------- head


def _head(records: Sequence[Record], numbers: Sequence[int], gateway: int) -> Iterator[list[Piece]]:
    first = next((record for record in records if record.get("kind") == "link-connect"), {})
    last = records[-1] if records else {}
    closed = last.get("kind") == "link-close"
    name = str((first or last).get("session", ""))
    begin, end = _moment(first.get("at", "")), _moment(last.get("at", ""))
    when = f"{begin:%Y-%m-%d %H:%M:%S} UTC" if begin is not None else ""
    if begin is not None and end is not None:
        when += f", {max((end - begin).total_seconds(), 0):.3f} s"
    state = "" if closed else ", no end of it is on record"
    yield [(printable(name), "bold"), (f"  {when}{state}", None)]
    pairs = [
        ("records", f"{numbers[0]:,} to {numbers[-1]:,}" if numbers else ""),
        ("gateway", str(gateway) if gateway else ""),
        ("listener", _text(first.get("listener")) + (f", match {first['match']}" if first.get("match") else "")),
        ("client", _client(first, records)),
        ("server", _text(first.get("server"))),
        ("going to", _text(first.get("destination"))),
        ("came by", _text(first.get("peer"))),
        ("refused", _text(first.get("refused"))),
        ("rules", _text(first.get("ruleset"))),
        *_tls(records),
    ]
    if first.get("unseen"):
        pairs.append(("unseen", "octets passed uninspected"))
    for key, value in pairs:
        if value:
            yield [(f"{key:<13}", "dim"), (printable(value), None)]


def _client(first: Record, records: Sequence[Record]) -> str:
    address = ERASED if "personal" in first and "client" not in first else _text(first.get("client"))
    hello = login = ""
    for record in records:
        if record.get("kind") == "exchange" and record.get("verb") in ("EHLO", "HELO", "LHLO"):
            hello = _text(record.get("asked")).partition(" ")[2] or hello
        elif record.get("kind") == "link-auth" and record.get("accepted"):
            who = ERASED if "personal" in record else _text(record.get("identity"))
            login = f", logged in{' as ' + who if who else ''} ({_text(record.get('mechanism'))})"
    return address + (f", called itself {hello}" if hello else "") + login


def _tls(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Of both links, as they were in the end."""
    last = next((record for record in reversed(records) if record.get("kind") == "link-tls"), None)
    if last is None:
        if any(record.get("kind") == "link-connect" for record in records):
            yield "TLS", "neither link was encrypted"
        return
    if last.get("passthrough"):
        yield "TLS", "between the two peers, unseen"
        return
    for side in _SIDES:
        found = last.get(side)
        if isinstance(found, dict):
            yield f"{side}'s TLS", _of_tls(found)
        else:
            yield f"{side}'s TLS", ERASED if side not in last and "personal" in last else "in clear"


def _of_tls(found: Record) -> str:
    said = [f"{_text(found.get('version'))} {_text(found.get('cipher'))}".strip()]
    said += [f"asked for {found['sni']}"] if found.get("sni") else []
    said += ["resumed"] if found.get("resumed") else []
    if "verified" in found:
        why = ", ".join(_text(found[key]) for key in ("result", "why") if found.get(key))
        said.append("verified" if found["verified"] else "not verified" + (f" ({why})" if why else ""))
    certificate = found.get("certificate")
    if isinstance(certificate, dict) and certificate.get("subject"):
        said.append(f"its certificate is {_text(certificate['subject'])}")
    said += [f"shown one that was {found['shown']}"] if found.get("shown") else []
    said += [f"broken: {_text(found['broken'])}"] if found.get("broken") else []
    return ", ".join(said)


# --------------------------------------------------------------------------------------------------------- exchanges


def _cells(record: Record) -> list[Cell]:
    """The four hops."""
    code = record.get("code")
    bad = "red" if isinstance(code, int) and code >= 400 else None
    if "personal" in record:
        told = f"{code} {ERASED}" if code else ERASED
        return [Cell(f"{_text(record.get('verb'))} {ERASED}"), Cell(""), Cell(""), Cell(told, bad)]
    asked, sent = _hops(record, "asked", "sent")
    got, heard = _hops(record, "got", "told")
    if heard.text == SAME:
        return [Cell(asked), sent, Cell(got, bad), heard]
    return [Cell(asked), sent, Cell(got), heard._replace(colour=bad or heard.colour)]


def _exchange(time: str, record: Record, columns: Columns, *, full: bool) -> Iterator[list[Piece]]:
    yield from columns.lines(time, _cells(record))
    for text, colour in _remarks(record):
        yield [(f"{_INDENT}{printable(text)}", colour)]
    if full:
        yield from _transcript(record)


def _hops(record: Record, first: str, second: str) -> tuple[str, Cell]:
    """What came in, and what went on: the same, something else, or nothing."""
    here = _text(record.get(first))
    if second not in record:
        return here, Cell(SAME, "dim")
    there = record[second]
    if there is None:
        return here, Cell(NOTHING if here else "", "yellow")
    return here, Cell(_text(there), "yellow")


def _remarks(record: Record) -> Iterator[Piece]:
    """What is to be said of an exchange beside its hops."""
    action, rule = str(record.get("action", "pass")), record.get("rule")
    if rule == "default":
        yield f"{action}: by default", "yellow"
    elif rule or action != "pass":
        yield f"{action}" + (f": by rule {rule}" if rule else ""), "yellow"
    if record.get("rules"):
        yield f"rules that acted: {_text(record['rules'])}", "yellow"
    for seen in _list(record.get("observed")):
        if isinstance(seen, dict):
            would = f": {_text(seen['told'])}" if seen.get("told") else ""
            yield f"observing, rule {seen.get('rule')} would have said {seen.get('action')}{would}", "cyan"
    if record.get("tags"):
        yield f"tags: {_text(record['tags'])}", "cyan"
    if record.get("anomalies"):
        yield f"anomalies: {_text(record['anomalies'])}", "magenta"
    for reply in _list(record.get("got_before")):
        yield f"got before: {_text(reply)}", None
    if record.get("noise"):
        yield f"before the reply: {_text(record['noise'])}", None
    said = [f"{record['octets']:,} octets"] if isinstance(record.get("octets"), int) else []
    seconds, waited = record.get("seconds"), record.get("waited")
    if isinstance(seconds, int | float) and seconds >= 1:
        said.append(f"took {seconds:.1f} s" + (f", the server {waited:.1f} s of it" if waited is not None else ""))
    if said:
        yield ", ".join(said), "dim"


def _transcript(record: Record) -> Iterator[list[Piece]]:
    found = record.get("transcript")
    if not isinstance(found, dict):
        return
    if isinstance(found.get("sealed"), str):
        yield [(f"{_INDENT}transcript: sealed; `smtpproxy audit unseal` opens it, with the auditor's key", "dim")]
        return
    for key, text in found.items():
        for line in _text(text).split("\n"):
            yield [(f"{_INDENT}{key}: {printable(line.rstrip(chr(13)))}", "dim")]


# ------------------------------------------------------------------------------------------------------ what became


def _mail(time: str, record: Record, *, full: bool) -> Iterator[list[Piece]]:
    good = record.get("kind") == "tx-commit"
    outcome = "accepted" if good else f"came to nothing ({_text(record.get('why'))})"
    if "personal" in record:
        envelope = f"from {ERASED}"
    else:
        envelope = f"from <{_text(record.get('mail'))}>"
        to = [f"<{_text(one)}>" for one in _list(record.get("rcpt"))]
        refused = [f"<{_text(one)}>" for one in _list(record.get("rcpt_refused"))]
        envelope += f" to {', '.join(to)}" if to else ""
        envelope += f", refused {', '.join(refused)}" if refused else ""
    said = [f"mail {record.get('tx', '')} {envelope}: {outcome}"]
    said += [str(record["code"])] if record.get("code") else []
    said += [f"{record['octets']:,} octets"] if isinstance(record.get("octets"), int) else []
    said += [f"Message-ID {_text(record['message_id'])}"] if record.get("message_id") else []
    yield [(f"{time:>9}  {printable(', '.join(said))}", "green" if good else "red")]
    for pair in _list(record.get("each")):
        if isinstance(pair, list) and len(pair) == 2:
            yield [(f"{_INDENT}<{printable(_text(pair[0]))}>: {printable(_text(pair[1]))}", None)]
    if full and record.get("sha256"):
        yield [(f"{_INDENT}sha256 {printable(_text(record['sha256']))}", "dim")]


def _other(time: str, record: Record) -> Iterator[list[Piece]]:
    """Whatever else happened."""
    kind = str(record["kind"])
    if kind == "link-tls":
        both = [f"{side}: {_of_tls(record[side])}" for side in _SIDES if isinstance(record.get(side), dict)]
        text, colour = "TLS, " + "; ".join(both or ["unseen" if record.get("passthrough") else ERASED]), "cyan"
    elif kind == "link-auth":
        who = ERASED if "personal" in record else _text(record.get("identity"))
        outcome = "accepted" if record.get("accepted") else "refused"
        text, colour = f"AUTH {_text(record.get('mechanism'))} {outcome}" + (f": {who}" if who else ""), "cyan"
    elif kind == "link-close":
        text, colour = _closed(record), "dim"
    elif kind in ("note", "violation"):
        side = f" of the {record['side']}" if record.get("side") else ""
        why = f": {_text(record['why'])}" if record.get("why") else (f": {ERASED}" if "personal" in record else "")
        text, colour = f"{_text(record.get('anomaly') or record.get('anomalies'))}{side}{why}{_rest(record)}", "magenta"
        colour = "red" if kind == "violation" else colour
    else:
        text, colour = f"{kind}{_rest(record)}", "cyan"
    yield [(f"{time:>9}  {printable(text)}", colour)]


def _closed(record: Record) -> str:
    octets = [
        f"{record[key]:,} {key.removeprefix('octets_').replace('_', ' ')}"
        for key in ("octets_from_client", "octets_to_server", "octets_from_server", "octets_to_client")
        if isinstance(record.get(key), int)
    ]
    unseen = ", not inspected to its end" if record.get("inspected") is False else ""
    return "closed" + (f"; octets: {', '.join(octets)}" if octets else "") + unseen


def _rest(record: Record) -> str:
    rest = {key: value for key, value in record.items() if key not in _SAID and value not in (None, "", [], {})}
    return "".join(f"; {key} {_text(value)}" for key, value in rest.items())


# ------------------------------------------------------------------------------------------------------------- words


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return json.dumps(value, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _moment(at: object) -> datetime | None:
    try:
        return msgspec.convert(at, datetime).astimezone(UTC)
    except (msgspec.ValidationError, ValueError):
        return None


def _since(begin: datetime | None, record: Record) -> str:
    """Seconds since the session began; negative where the clock was set back."""
    at = _moment(record.get("at", ""))
    return f"{(at - begin).total_seconds():.3f}" if at is not None and begin is not None else ""

"""A proxy whose metrics are on, and what it tells: a scrape, read by `prometheus_client`'s own parser."""

import re
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from smtpproxy.metrics.catalogue import PREFIX
from tests.net.fleet import DEADLINE, fleet, hello, quits, told
from tests.net.rig import ENVELOPE, End, Process, Store

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TOLD = r"metrics are told\s+on=(127\.0\.0\.1):(\d+)"
OFF = '[metrics]\nlisten = ""\n'
ON = '[metrics]\nlisten = "127.0.0.1:0"\n'
Series = tuple[str, frozenset[tuple[str, str]]]


def get(port: int, path: str = "/metrics", accept: str = "") -> tuple[int, str]:
    """Status and body; the status is 0 where nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def parsed(text: str) -> dict[Series, float]:
    """Every sample of an exposition, in either format, without our prefix."""
    families = openmetrics(text) if text.endswith("# EOF\n") else plain(text)  # type: ignore[no-untyped-call]  # it has no types
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


class Scrape(dict[Series, float]):
    """Samples, asked for in few words."""

    def of(self, name: str, **labels: str) -> float:
        """The sum of all series of this name with these labels; 0 where there is none."""
        wanted = set(labels.items())
        return sum(value for (found, words), value in self.items() if found == name and wanted <= words)


class Watched:
    """A running proxy and its metrics."""

    def __init__(self, process: Process, store: Store, file: Path, port: int) -> None:
        self.process = process
        self.store = store
        self.file = file  # of the configuration
        self.port = port

    def scrape(self) -> Scrape:
        """What it tells now."""
        status, text = get(self.port)
        assert status == 200, (status, text)
        return Scrape(parsed(text))

    @property
    def telling(self) -> int:
        """The process that answers; 0 if there is none."""
        return next((child for child in self.process.workers if named(child) == "smtp-metrics"), 0)

    @property
    def workers(self) -> list[int]:
        """The others."""
        return [child for child in self.process.workers if named(child) not in ("smtp-metrics", "")]

    async def says(self, *, ended: int) -> Scrape:
        """A scrape in which so many sessions are over, all that is on record is counted, and nothing else is."""
        with trio.fail_after(DEADLINE):
            while True:
                lines = self.process.lines()
                scrape = self.scrape()
                if of_record(lines)["ended"] >= ended and not differences(lines, scrape):
                    return scrape
                await trio.sleep(0.05)

    async def sees(self, condition: Callable[[Scrape], bool]) -> Scrape:
        """The first scrape of which this is true: how it goes is told once a second."""
        with trio.fail_after(DEADLINE):
            while not condition(scrape := self.scrape()):
                await trio.sleep(0.05)
        return scrape

    async def mail(self) -> None:
        """A whole session with a mail."""
        client = await self.process.connect()
        await hello(client)
        await send(client)
        await quits(client)


async def send(client: End) -> None:
    """A mail."""
    await client.send(ENVELOPE + b"DATA\r\n")
    for code in (b"250", b"250", b"354"):
        assert (await client.reply()).startswith(code)
    assert (await told(client, b"Subject: x\r\n\r\nx\r\n.\r\n")).startswith(b"250")


def named(pid: int) -> str:
    """A process, as proc(5) has it; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@asynccontextmanager
async def watched(
    folder: Path, *options: str, text: str = ON, workers: int = 1, store: Store | None = None
) -> AsyncIterator[Watched]:
    """With its configuration in a file."""
    file = folder / "metrics.toml"
    file.write_text(text)
    async with fleet(folder, "--config", str(file), *options, workers=workers, store=store) as (process, behind):
        port = int((await process.hears(TOLD))[2])
        yield Watched(process, behind, file, port)


# ----------------------------------------------------------------------------- what the audit says of the same things


def of_record(lines: Iterable[Mapping[str, Any]]) -> Counter[Any]:
    """The audit, counted: an account of the same sessions that was not made by the meter."""
    count: Counter[Any] = Counter()
    for line in lines:
        kind = line["kind"]
        count["audit_records_total",] += 1
        for name in [*line.get("anomalies", ()), *([line["anomaly"]] if kind == "note" and "anomaly" in line else [])]:
            count["anomalies_total", name] += 1
        for rule in line.get("rules", ()):
            count["rule_acts_total", rule] += 1
        for one in line.get("observed", ()):
            count["observed_total", one["rule"], one["action"]] += 1
        if kind in ("exchange", "note") and "rule" in line and "action" in line:
            count["verdicts_total", line["rule"], line["action"]] += 1
        if kind == "exchange":
            reply = str(line["code"])[0] if "code" in line else "none"
            count["exchanges_total", line["verb"], line["action"], reply] += 1
            if "waited" in line:
                count["exchange_server_seconds_count", line["verb"]] += 1
            if "code" in line and line["asked"] is not None:
                count["exchange_seconds_count", line["verb"]] += 1
                count["exchange_own_seconds_count", line["verb"]] += 1
        elif kind == "link-connect":
            count["sessions_total", line["listener"]] += 1
        elif kind == "link-close":
            count["ended"] += 1
            for side in ("client", "server"):
                count["link_bytes_total", side, "received"] += line[f"octets_from_{side}"]
                count["link_bytes_total", side, "sent"] += line[f"octets_to_{side}"]
        elif kind == "tx-begin":
            count["transactions_begun_total",] += 1
        elif kind == "tx-commit":
            count["transactions_total", "accepted"] += 1
            count["message_size_bytes_sum",] += line["octets"]
        elif kind == "link-auth":
            count["auth_total", line["mechanism"], "accepted" if line["accepted"] else "refused"] += 1
        elif kind == "violation":
            count["violations_total", line["anomaly"], line["side"]] += 1
    return count


_LABELS = {
    "sessions_total": ("listener",),
    "exchanges_total": ("verb", "action", "reply"),
    "exchange_server_seconds_count": ("verb",),
    "exchange_seconds_count": ("verb",),
    "exchange_own_seconds_count": ("verb",),
    "verdicts_total": ("rule", "action"),
    "rule_acts_total": ("rule",),
    "observed_total": ("rule", "action"),
    "anomalies_total": ("anomaly",),
    "violations_total": ("anomaly", "side"),
    "link_bytes_total": ("side", "direction"),
    "auth_total": ("mechanism", "outcome"),
    "audit_records_total": (),
    "transactions_begun_total": (),
    "message_size_bytes_sum": (),
}


def differences(lines: Iterable[Mapping[str, Any]], scrape: Scrape) -> list[str]:
    """Where the metrics and the audit do not say the same."""
    expected = {
        (key[0], frozenset(zip(_LABELS[key[0]], key[1:], strict=True))): count
        for key, count in of_record(lines).items()
        if isinstance(key, tuple) and key[0] in _LABELS
    }
    found = {series: value for series, value in scrape.items() if series[0] in _LABELS and value}
    return [
        f"{series}: {expected.get(series, 0)} on record, {found.get(series, 0)} counted"
        for series in sorted({*expected, *found}, key=str)
        if expected.get(series, 0) != found.get(series, 0)
    ]


def port_of(said: str, behind: int = 0) -> int:
    """Where metrics are told, by the last word about it."""
    return int(re.findall(TOLD, said[behind:])[-1][1])

"""What all processes have counted, as `prometheus_client` tells it: one sum of all regions at each scrape.

This is the only module that knows that package, and only the process that answers scrapes imports it.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from smtpproxy.metrics.catalogue import COUNTED, HAD, PREFIX, RECORDED, SUPERVISED, Family, Kind
from smtpproxy.metrics.gauges import RecorderGauges
from smtpproxy.metrics.regions import OUR_ROOM, Regions
from smtpproxy.metrics.totals import Key, Totals, TotalsError, totals_of

_T = TypeVar("_T")
_INFO: Final = "_info"
# The recorder's metrics without labels, and the field of its gauges that each is.
_RECORDERS: Final = {
    "audit_journal_bytes": "journal_octets",
    "audit_pending_bytes": "pending_octets",
    "audit_store_lag_seconds": "lag_seconds",
    "audit_store_records": "records",
    "audit_store_bytes": "store_octets",
    "audit_full": "full",
    "audit_checkpoints_total": "checkpoints",
    "audit_checkpoint_time_seconds": "checkpoint_at",
}
# More than what one process may have: there is one sum of all.
_ROOM: Final = 4 * OUR_ROOM


def sum_of(written: Iterable[bytes]) -> Totals:
    """What these octets come to. What a process has written that makes no sense is left out."""
    whole = Totals(_ROOM)
    for octets in written:
        try:
            whole.add(totals_of(octets, _ROOM), gauges=True)
        except TotalsError:  # of a worker that is no more what it was
            continue
    return whole


class Exposition(Collector):
    """Collects. Its registry has no other collector: nobody asks for the process that answers."""

    def __init__(self, regions: Regions, recorder: RecorderGauges) -> None:
        self._regions = regions
        self._recorder = recorder

    @classmethod
    def registry(cls, regions: Regions, recorder: RecorderGauges) -> CollectorRegistry:
        """One that collects this."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(cls(regions, recorder))
        return registry

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is the only one, and need not be told from others."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric.

        Raises:
            RegionsError: what there is can't be read.
        """
        whole = sum_of(self._regions.read_all())
        for family in (*COUNTED, *HAD, *SUPERVISED):
            yield _metric(family, whole)
        yield from self._of_recorder()

    def _of_recorder(self) -> Iterator[Metric]:
        """What is not there where there is no recorder; what is lost is counted all the same."""
        whole = Totals(_ROOM)
        get = self._recorder.get
        whole.counters["drops_total",] = get("gaps")
        if get("present"):
            whole.counters["audit_checkpoints_total",] = get("checkpoints")
            for name, field in _RECORDERS.items():
                (whole.counters if name.endswith("_total") else whole.gauges)[name,] = get(field)
            whole.gauges["audit_checkpoint_lag_records",] = max(get("records") - get("checkpoint_records"), 0.0)
            for sink in self._recorder.sinks():
                for name in ("lag_records", "lag_seconds", "failing"):
                    whole.gauges[f"audit_sink_{name}", sink.name] = getattr(sink, name)
        for family in RECORDED:
            if get("present") or family.name == "drops_total":
                yield _metric(family, whole)


def _metric(family: Family, whole: Totals) -> Metric:
    """One metric with all its series."""
    name, labels = PREFIX + family.name, family.labels
    if family.kind is Kind.HISTOGRAM:
        made = HistogramMetricFamily(name, family.means, labels=labels)
        bounds = [*map(str, family.bounds), "+Inf"]
        zeros = {zero: [0.0] * (len(bounds) + 1) for zero in family.zeros}
        for values, (total, *counts) in sorted((zeros | _series(family, whole.histograms)).items()):
            made.add_metric(values, buckets=list(zip(bounds, accumulate(counts), strict=True)), sum_value=total)
        return made
    if family.kind is Kind.COUNTER:
        counter = CounterMetricFamily(name, family.means, labels=labels)
        zeros_ = dict.fromkeys(family.zeros, 0.0)
        for values, value in sorted((zeros_ | _series(family, whole.counters)).items()):
            counter.add_metric(values, value)
        return counter
    if family.name.endswith(_INFO):
        info = InfoMetricFamily(name.removesuffix(_INFO), family.means)
        for values in _series(family, whole.gauges):
            info.add_metric((), dict(zip(labels, values, strict=True)))
        return info
    gauge = GaugeMetricFamily(name, family.means, labels=labels)
    for values, value in sorted(_series(family, whole.gauges).items()):
        gauge.add_metric(values, value)
    return gauge


def _series(family: Family, found: dict[Key, _T]) -> dict[Key, _T]:
    """Those of one metric, by the values of its labels."""
    return {key[1:]: value for key, value in found.items() if key[0] == family.name}

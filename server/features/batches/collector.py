"""Metrics of batches."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .batch_records import BatchStatus, BatchTotals


class BatchCollector(Collector):
    """Reads the counts of batches in a database."""

    def __init__(self, totals: Callable[[], BatchTotals | None]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        totals = self._totals() or BatchTotals({}, 0, 0, 0.0)
        batches = GaugeMetricFamily("roost_batches", "Batches of all replicas, by status.", labels=["status"])
        for status in BatchStatus:
            batches.add_metric([status.value], totals.batches.get(status.value, 0))
        yield batches
        lines = GaugeMetricFamily(
            "roost_batch_lines", "Lines of batches in progress that have not ended, by state.", labels=["state"]
        )
        lines.add_metric(["claimed"], totals.running_lines)
        lines.add_metric(["waiting"], max(totals.waiting_lines - totals.running_lines, 0))
        yield lines
        yield GaugeMetricFamily("roost_batch_age_seconds", "Age of the oldest batch in progress.", totals.oldest_s)

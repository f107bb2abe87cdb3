"""Metrics of batches."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .batch_table import BatchStatus, BatchTotals


class BatchCollector(Collector):
    """Reads the counts of batches in a database, and of this replica.

    Args:
      counts: Returns the counts of all replicas, how many lines this replica ended, and how many it gave back because
        it could not run them.
    """

    def __init__(self, counts: Callable[[], tuple[BatchTotals, int, int]] = lambda: (BatchTotals(), 0, 0)) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        totals, num_ended, num_given_back = self._counts()
        batches = GaugeMetricFamily(
            "roost_batches", "Batches of all replicas, by status, up to 100,000 each.", labels=["status"]
        )
        for status in BatchStatus:
            batches.add_metric([status.value], totals.batches.get(status.value, 0))
        yield batches
        lines = GaugeMetricFamily(
            "roost_batch_lines",
            "Lines of batches in progress that have not ended, by state; of at most 100,000 batches.",
            labels=["state"],
        )
        lines.add_metric(["claimed"], totals.running_lines)
        lines.add_metric(["waiting"], max(totals.waiting_lines - totals.running_lines, 0))
        yield lines
        yield GaugeMetricFamily("roost_batch_age_seconds", "Age of the oldest batch in progress.", totals.oldest_s)
        yield GaugeMetricFamily(
            "roost_batch_lines_needed_per_second",
            "Rate at which lines of all replicas must end so that each batch in progress ends in its window.",
            totals.needed_lines_per_s,
        )
        yield CounterMetricFamily("roost_batch_lines_ended", "Lines of batches that this server ended.", num_ended)
        yield CounterMetricFamily(
            "roost_batch_lines_given_back",
            "Lines of batches that this server could not run, and left to be run later.",
            num_given_back,
        )

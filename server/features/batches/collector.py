"""Metrics of batches."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ...observability.request_metrics import Row, Values
from .batch_table import BatchStatus, BatchTotals


def batch_rows(totals: BatchTotals, num_ended: int, num_given_back: int) -> Iterator[Row]:
    """Yields the metrics of the batches in a database, and of this replica.

    Args:
      totals: Counts of all replicas.
      num_ended: Number of lines that this replica ended.
      num_given_back: Number of lines that this replica gave back because it could not run them.
    """
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    text = "Batches of all replicas, by status, up to 100,000 each."
    by_status: Values = {(status.value,): totals.batches.get(status.value, 0) for status in BatchStatus}
    yield Row(gauge, "roost_batches", text, by_status, ("status",))
    text = "Lines of batches in progress that have not ended, by state; of at most 100,000 batches."
    waiting = max(totals.waiting_lines - totals.running_lines, 0)
    by_state: Values = {("claimed",): totals.running_lines, ("waiting",): waiting}
    yield Row(gauge, "roost_batch_lines", text, by_state, ("state",))
    yield Row(gauge, "roost_batch_age_seconds", "Age of the oldest batch in progress.", totals.oldest_s)
    text = "Rate at which lines of all replicas must end so that each batch in progress ends in its window."
    yield Row(gauge, "roost_batch_lines_needed_per_second", text, totals.needed_lines_per_s)
    yield Row(counter, "roost_batch_lines_ended", "Lines of batches that this server ended.", num_ended)
    text = "Lines of batches that this server could not run, and left to be run later."
    yield Row(counter, "roost_batch_lines_given_back", text, num_given_back)

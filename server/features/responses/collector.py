"""Metrics of stored responses."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class StoreStats:
    """Counts of one replica, and the counts of the database from the last look.

    Attributes:
      ended: Number of background responses that this replica ended, by status.
      adoptions: Number of responses that this replica adopted.
      handovers: Number of this replica's streams that were left to others.
      fencing_refusals: Number of this replica's writes that were refused because of their fencing number.
      running: Number of running responses of all replicas.
      orphaned: Number of running responses without a live owner.
      abandoned: Number of running responses that have had no live owner for too long.
      unattended: Number of running responses that this replica owns in the database, but that none of its tasks runs.
      checkpoints: Number of checkpoint files that this replica wrote.
      checkpoint_bytes: Bytes of these files.
      checkpoint_seconds: Seconds spent on writing them.
      checkpoint_errors: Number of checkpoint files that could not be written or read.
    """

    ended: Counter[str] = field(default_factory=Counter)
    adoptions: int = 0
    handovers: int = 0
    fencing_refusals: int = 0
    running: int = 0
    orphaned: int = 0
    abandoned: int = 0
    unattended: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_errors: int = 0


_COUNTERS: Final = {
    "adoptions": "Background responses of other replicas that this one continued.",
    "handovers": "Streams in the foreground that this replica left to others when it stopped.",
    "fencing_refusals": (
        "Writes of this replica that were refused since another one owned the response, or it was cancelled."
    ),
    "checkpoints": "Checkpoints of running responses that were written.",
    "checkpoint_bytes": "Bytes of those checkpoints.",
    "checkpoint_seconds": "Seconds spent on writing checkpoints.",
    "checkpoint_errors": "Checkpoints that could not be written or read.",
}
"""Counters, by the names of counts."""


class StoreCollector(Collector):
    """Reads the counts of a store of responses in a database."""

    def __init__(self, stats: StoreStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        running = GaugeMetricFamily(
            "roost_store_responses_running",
            "Background responses of all replicas that have not ended, by whether a live replica owns them.",
            labels=["owned"],
        )
        running.add_metric(["yes"], stats.running - stats.orphaned)
        running.add_metric(["no"], stats.orphaned)
        yield running
        yield GaugeMetricFamily(
            "roost_store_responses_unattended",
            "Background responses that this replica owns in the database, though none of its tasks runs them.",
            stats.unattended,
        )
        ended = CounterMetricFamily(
            "roost_store_responses_ended", "Background responses that this replica ended, by status.", labels=["status"]
        )
        for status in ("completed", "incomplete", "failed", "cancelled"):
            ended.add_metric([status], stats.ended[status])
        yield ended
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"roost_store_{name}", text, getattr(stats, name))

"""Metrics of stored responses."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ...observability.request_metrics import Row, Values


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
    unattended: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_errors: int = 0

    def rows(self) -> Iterator[Row]:
        """Yields the metrics of these counts."""
        text = "Background responses of all replicas that have not ended, by whether a live replica owns them."
        owned: Values = {("yes",): self.running - self.orphaned, ("no",): self.orphaned}
        yield Row(GaugeMetricFamily, "roost_store_responses_running", text, owned, ("owned",))
        text = "Background responses that this replica owns in the database, though none of its tasks runs them."
        yield Row(GaugeMetricFamily, "roost_store_responses_unattended", text, self.unattended)
        text = "Background responses that this replica ended, by status."
        ended: Values = {(each,): self.ended[each] for each in ("completed", "incomplete", "failed", "cancelled")}
        yield Row(CounterMetricFamily, "roost_store_responses_ended", text, ended, ("status",))
        for name, text in _COUNTERS.items():
            yield Row(CounterMetricFamily, f"roost_store_{name}", text, getattr(self, name))


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

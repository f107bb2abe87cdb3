"""Metrics of stored responses."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .stats import StoreStats


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
        yield CounterMetricFamily(
            "roost_store_adoptions", "Background responses of other replicas that this one continued.", stats.adoptions
        )
        yield CounterMetricFamily(
            "roost_store_handovers",
            "Streams in the foreground that this replica left to others when it stopped.",
            stats.handovers,
        )
        yield CounterMetricFamily(
            "roost_store_fencing_refusals",
            "Writes of this replica that were refused since another one owned the response, or it was cancelled.",
            stats.refusals,
        )
        yield CounterMetricFamily(
            "roost_store_checkpoints", "Checkpoints of running responses that were written.", stats.checkpoints
        )
        yield CounterMetricFamily("roost_store_checkpoint_bytes", "Bytes of those checkpoints.", stats.checkpoint_bytes)
        yield CounterMetricFamily(
            "roost_store_checkpoint_seconds", "Seconds spent on writing checkpoints.", stats.checkpoint_seconds
        )
        yield CounterMetricFamily(
            "roost_store_checkpoint_errors",
            "Checkpoints that could not be written or read.",
            stats.checkpoint_errors,
        )
        if stats.evacuation_seconds is not None:
            yield GaugeMetricFamily(
                "roost_store_evacuation_seconds",
                "Estimated seconds for checkpoints of all slots, to compare with --evacuate-seconds.",
                stats.evacuation_seconds,
            )

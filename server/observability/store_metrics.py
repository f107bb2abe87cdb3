"""Availability of features' databases, as metrics."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class DatabaseCollector(Collector):
    """Reads whether each feature's database can be used.

    Args:
      are_available: Returns whether each database can be used, by the name of its feature.
    """

    def __init__(self, are_available: Callable[[], Mapping[str, bool]]) -> None:
        self._are_available = are_available

    def collect(self) -> Iterator[Metric]:
        are_available = self._are_available()
        if not are_available:
            return
        family = GaugeMetricFamily(
            "roost_store_available",
            "1 while the database of --store can be used, 0 while it is unavailable, by feature.",
            labels=["feature"],
        )
        for name, is_available in are_available.items():
            family.add_metric([name], float(is_available))
        yield family

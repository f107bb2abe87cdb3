"""Metrics of toys."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class ToyCollector(Collector):
    """Reads how often toys were wound up."""

    def __init__(self, num_windings: Callable[[], int]) -> None:
        self._num_windings = num_windings

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("roost_toy_windings", "Times that toys were wound up.", self._num_windings())

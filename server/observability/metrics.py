"""Prometheus metrics under the names `roost_*`; `vllm_metrics.py` has those of vLLM."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import EngineStats
from .request_metrics import LatencyMetrics, Observer, RequestRecord, RequestTracker
from .vllm_metrics import VllmMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text format."""

_CACHE_S: Final = 0.2
"""Seconds for which a rendered page is reused, however often it is scraped."""

# Creation times would double the number of series; the library can only disable them globally.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Counts of one port's connections.

    Attributes:
      num_open: Open connections.
      num_busy: Connections with a request, probes aside.
      limit: Maximum number of connections with a request.
      num_dropped: Total connections without a request that were closed to make room.
      num_refused: Total connections and requests that were refused.
    """

    num_open: int
    num_busy: int
    limit: int
    num_dropped: int
    num_refused: int


class Metrics:
    """Metrics of one server.

    Metrics of requests come from the records that `requests` makes; all others are read from the engine's statistics.

    Args:
      stats: Returns the engine's latest statistics.
      clock: Monotonic clock in seconds.
      tenants: Tenants whose requests are counted by name, which bounds the number of series.
      vllm_model: Name of the model for vLLM's metrics; None leaves these out.
      observers: Further observers of requests.
      simulated: Device that is simulated; None if the model runs.
      connections: Returns the counts of each port's connections; None without ports.

    Attributes:
      requests: Makes the records of requests.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        clock: Callable[[], float] = time.monotonic,
        *,
        tenants: Sequence[str] = (),
        vllm_model: str | None = None,
        observers: Sequence[Observer] = (),
        simulated: str | None = None,
        connections: Callable[[], Mapping[str, ConnectionCounts]] | None = None,
    ) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        if connections is not None:
            self.registry.register(_ConnectionCollector(connections))
        if simulated is not None:
            gauge = Gauge(
                "roost_simulated", "1 on a server that simulates its device.", ["device"], registry=self.registry
            )
            gauge.labels(simulated).set(1)
        latencies = LatencyMetrics(self.registry)
        all_observers: list[Observer] = [latencies, *observers]
        if tenants:
            all_observers.append(_TenantMetrics(self.registry, tenants))
        if vllm_model is not None:
            all_observers.append(VllmMetrics(self.registry, stats, vllm_model, latencies))
        self.requests = RequestTracker(all_observers, clock)
        self._page: tuple[float, bytes] | None = None

    def page(self) -> bytes:
        """Returns all metrics as text, at most `_CACHE_S` old."""
        now = self._clock()
        if self._page is None or now - self._page[0] >= _CACHE_S:
            self._page = (now, prometheus_client.generate_latest(self.registry))
        return self._page[1]


class _TenantMetrics(Observer):
    """Requests and tokens of each tenant. The server's own requests (`/health_generate`) have no tenant."""

    def __init__(self, registry: CollectorRegistry, tenants: Sequence[str]) -> None:
        self._ended = Counter(
            "roost_tenant_requests",
            "Requests of a tenant that have ended, by reason.",
            ["tenant", "reason"],
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "roost_tenant_prompt_tokens",
            "Prompt tokens of a tenant's requests that got a slot.",
            ["tenant"],
            registry=registry,
        )
        self._generated_tokens = Counter(
            "roost_tenant_generation_tokens", "Tokens generated for a tenant.", ["tenant"], registry=registry
        )
        for tenant in tenants:
            self._prompt_tokens.labels(tenant)
            self._generated_tokens.labels(tenant)

    def on_tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        if record.request.tenant:
            self._generated_tokens.labels(record.request.tenant).inc(count)

    def on_end(self, record: RequestRecord) -> None:
        tenant = record.request.tenant
        if tenant:
            self._ended.labels(tenant, record.reason).inc()
        if tenant and record.started is not None:
            self._prompt_tokens.labels(tenant).inc(len(record.request.prompt_token_ids))


class _EngineCollector(Collector):
    """Reads the engine's statistics whenever metrics are collected."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = (
            ("num_requests_running", "Running requests, each of which has a slot.", stats.num_running),
            ("num_requests_waiting", "Requests that wait for a slot.", stats.num_waiting),
            ("waiting_prompt_tokens", "Total prompt tokens of waiting requests.", stats.waiting_tokens),
            ("slots", "Maximum number of requests that run at the same time.", stats.slots),
            ("slots_used", "Slots in use.", stats.num_running),
            ("state_cache_snapshots", "Snapshots in the prefix cache.", stats.cache.snapshots),
            ("batch_requests_running", "Lines of batches that have a slot.", stats.num_preemptible_running),
            ("batch_requests_waiting", "Lines of batches that wait here for a slot.", stats.num_preemptible_waiting),
        )
        counters: tuple[tuple[str, str, float], ...] = (
            (
                "prompt_tokens",
                "Prompt tokens processed, without those served from the prefix cache.",
                stats.prompt_tokens,
            ),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
            ("batch_preemptions", "Times that a line of a batch gave its slot to another request.", stats.preemptions),
            ("engine_steps", "Engine steps run on the device.", stats.steps),
            ("compiles_since_ready", "Compilations after warm-up; must stay 0.", stats.compiles_since_ready),
            ("state_cache_queries", "Prompts looked up in the prefix cache.", stats.cache.queries),
            ("state_cache_hits", "Prompts with a hit in the prefix cache.", stats.cache.hits),
            ("state_cache_hit_tokens", "Prompt tokens served from the prefix cache.", stats.cache.hit_tokens),
            ("state_cache_disk_hits", "Prompts with a longer hit on disk than in memory.", stats.cache.disk_hits),
            (
                "state_cache_disk_errors",
                "Snapshot files that were corrupt or could not be written.",
                stats.cache.disk_errors,
            ),
            ("state_cache_evictions", "Snapshots evicted from the prefix cache.", stats.cache.evictions),
            ("state_cache_restore_seconds", "Seconds spent on restoring snapshots into slots.", stats.restore_seconds),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"roost_{name}", text, value)
        bytes_used = GaugeMetricFamily(
            "roost_state_cache_bytes", "Bytes of snapshots in the prefix cache, by tier.", labels=["tier"]
        )
        bytes_used.add_metric(["host"], stats.cache.num_bytes)
        bytes_used.add_metric(["disk"], stats.cache.disk_bytes)
        yield bytes_used
        for name, text, total in counters:
            yield CounterMetricFamily(f"roost_{name}", text, total)


class _ConnectionCollector(Collector):
    """Reads the counts of connections."""

    def __init__(self, counts: Callable[[], Mapping[str, ConnectionCounts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        opened = GaugeMetricFamily("roost_connections", "Open connections, by port.", labels=["port"])
        busy = GaugeMetricFamily(
            "roost_connections_busy", "Connections with a request, probes aside, by port.", labels=["port"]
        )
        limit = GaugeMetricFamily(
            "roost_connections_limit", "Maximum number of connections with a request, by port.", labels=["port"]
        )
        dropped = CounterMetricFamily(
            "roost_connections_dropped",
            "Connections without a request that were closed to make room for new ones, by port.",
            labels=["port"],
        )
        refused = CounterMetricFamily(
            "roost_connections_refused",
            "Connections and requests that were refused since too many connections had a request, by port.",
            labels=["port"],
        )
        for port, counts in self._counts().items():
            opened.add_metric([port], counts.num_open)
            busy.add_metric([port], counts.num_busy)
            limit.add_metric([port], counts.limit)
            dropped.add_metric([port], counts.num_dropped)
            refused.add_metric([port], counts.num_refused)
        yield from (opened, busy, limit, dropped, refused)

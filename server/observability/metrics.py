"""Prometheus metrics under the names `roost_*`; `vllm_metrics.py` has those of vLLM."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import EngineStats, Request
from .request_record import REASONS, Observer, RequestRecord
from .vllm_metrics import VllmMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text format."""

_CACHE_S: Final = 0.2
"""Seconds for which a rendered page is reused, however often it is scraped."""

_FIRST_TOKEN_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

# Creation times would double the number of series; the library can only disable them globally.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Metrics of one server.

    Request metrics are filled by `track_request`; all others are read from the engine's statistics.

    Args:
      stats: Returns the engine's latest statistics.
      clock: Monotonic clock in seconds.
      tenants: Tenants whose requests are counted by name, which bounds the number of series.
      vllm_model: Name of the model for vLLM's metrics; None leaves these out.
      observers: Further observers of requests.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        clock: Callable[[], float] = time.monotonic,
        *,
        tenants: Sequence[str] = (),
        vllm_model: str | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        self._observers: list[Observer] = [_RequestMetrics(self.registry), *observers]
        if tenants:
            self._observers.append(_TenantMetrics(self.registry, tenants))
        self._vllm = None if vllm_model is None else VllmMetrics(self.registry, stats, vllm_model)
        if self._vllm is not None:
            self._observers.append(self._vllm)
        self._page: tuple[float, bytes] | None = None

    def track_prompt(self, request_id: str, num_choices: int) -> None:
        """Records a prompt and its number of choices.

        Args:
          request_id: Engine's id of the first choice; the others are its forks.
          num_choices: Number of choices of the prompt.
        """
        if self._vllm is not None:
            self._vllm.track_prompt(request_id, num_choices)

    def track_request(self, request: Request) -> RequestRecord:
        """Returns the record of an engine request, which has to be ended."""
        return RequestRecord(request, self._observers, self._clock)

    def page(self) -> bytes:
        """Returns all metrics as text, at most `_CACHE_S` old."""
        now = self._clock()
        if self._page is None or now - self._page[0] >= _CACHE_S:
            self._page = (now, prometheus_client.generate_latest(self.registry))
        return self._page[1]


class _RequestMetrics:
    """Latencies and outcomes of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float | int]) -> Histogram:
            return Histogram(f"roost_{name}_seconds", text, buckets=buckets, registry=registry)

        self._first_token = histogram(
            "time_to_first_token", "Seconds from a request's arrival to its first token.", _FIRST_TOKEN_S
        )
        self._next_token = histogram(
            "inter_token_latency", "Seconds between consecutive tokens of a request.", _NEXT_TOKEN_S
        )
        self._whole = histogram(
            "e2e_request_latency", "Seconds from a request's arrival to its last token.", _REQUEST_S
        )
        self._queue = histogram(
            "request_queue_time", "Seconds from a request's arrival to the start of its prefill.", _FIRST_TOKEN_S
        )
        self._prefill = histogram(
            "request_prefill_time", "Seconds from the start of a request's prefill to its first token.", _FIRST_TOKEN_S
        )
        self._decode = histogram("request_decode_time", "Seconds from a request's first token to its last.", _REQUEST_S)
        self._ended = Counter("roost_requests", "Requests that have ended, by reason.", ["reason"], registry=registry)
        for reason in REASONS:
            self._ended.labels(reason)

    def on_tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        """Observes tokens that arrived together as if they had arrived at equal intervals."""
        if record.last_token is None:
            self._first_token.observe(gap_s)
            return
        for _ in range(count):
            self._next_token.observe(gap_s / count)

    def on_end(self, record: RequestRecord) -> None:
        self._ended.labels(record.reason).inc()
        if not record.has_finished:
            return
        self._whole.observe(record.ended - record.arrived)
        if record.started is not None:
            self._queue.observe(max(record.started - record.arrived, 0.0))
        if record.started is not None and record.first_token is not None:
            self._prefill.observe(max(record.first_token - record.started, 0.0))
            self._decode.observe(record.ended - record.first_token)


class _TenantMetrics:
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
        )
        counters: tuple[tuple[str, str, float], ...] = (
            (
                "prompt_tokens",
                "Prompt tokens processed, without those served from the prefix cache.",
                stats.prompt_tokens,
            ),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
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

"""What Prometheus scrapes, by our own names; those of vLLM are in `metrics_vllm.py`."""

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

_CACHE_S: Final = 0.2
"""Scrapers may come as often as they like; the page is not made more often than this."""

_FIRST_TOKEN_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

# Times of creation double the number of series, and nobody asks for them; the library has no narrower switch.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server; what is told of requests is filled by `track_request`, all else is read from the
    engine.

    Args:
      stats: gives the engine's last snapshot.
      clock: seconds that only go forward.
      tenants: whose requests are counted by name; as many series as there are, and no more.
      vllm_model: the model's name, if vLLM's names are wanted too.
      observers: who else wants to know of requests.
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
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        self._observers: list[Observer] = [_Requests(self._registry), *observers]
        if tenants:
            self._observers.append(_Tenants(self._registry, tenants))
        self._vllm = None if vllm_model is None else VllmMetrics(self._registry, stats, vllm_model)
        if self._vllm is not None:
            self._observers.append(self._vllm)
        self._page: tuple[float, bytes] | None = None

    def asked(self, request_id: str, num_choices: int) -> None:
        """Books a prompt for which several choices are wanted.

        Args:
          request_id: the engine's, of the first choice; the others are its forks.
        """
        if self._vllm is not None:
            self._vllm.asked(request_id, num_choices)

    def track_request(self, request: Request) -> RequestRecord:
        """Notes what becomes of one request of the engine, from here to the end of the `with` block."""
        return RequestRecord(request, self._observers, self._clock)

    def page(self) -> bytes:
        """All metrics as text, at most `_CACHE_S` old."""
        now = self._clock()
        if self._page is None or now - self._page[0] >= _CACHE_S:
            self._page = (now, prometheus_client.generate_latest(self._registry))
        return self._page[1]


class _Requests:
    """How requests fared."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float | int]) -> Histogram:
            return Histogram(f"roost_{name}_seconds", text, buckets=buckets, registry=registry)

        self._first_token = histogram(
            "time_to_first_token", "From a request's arrival to its first token.", _FIRST_TOKEN_S
        )
        self._next_token = histogram(
            "inter_token_latency", "From a token to the next of the same request.", _NEXT_TOKEN_S
        )
        self._whole = histogram("e2e_request_latency", "From a request's arrival to its last token.", _REQUEST_S)
        self._queue = histogram(
            "request_queue_time", "From a request's arrival until its prompt began to be read.", _FIRST_TOKEN_S
        )
        self._prefill = histogram("request_prefill_time", "From there to its first token.", _FIRST_TOKEN_S)
        self._decode = histogram("request_decode_time", "From a request's first token to its last.", _REQUEST_S)
        self._ended = Counter("roost_requests", "Requests that have ended, by how.", ["reason"], registry=registry)
        for reason in REASONS:
            self._ended.labels(reason)

    def tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        """As if they had come one after the other at equal distances; only the first wait is something else."""
        if record.last_token is None:
            self._first_token.observe(gap_s)
            return
        for _ in range(count):
            self._next_token.observe(gap_s / count)

    def ended(self, record: RequestRecord) -> None:
        self._ended.labels(record.reason).inc()
        if not record.has_finished:
            return
        self._whole.observe(record.ended - record.arrived)
        if record.started is not None:
            self._queue.observe(max(record.started - record.arrived, 0.0))
        if record.started is not None and record.first_token is not None:
            self._prefill.observe(max(record.first_token - record.started, 0.0))
            self._decode.observe(record.ended - record.first_token)


class _Tenants:
    """What each tenant has asked for and got. Requests of the server's own, as of `/health_generate`, are nobody's."""

    def __init__(self, registry: CollectorRegistry, tenants: Sequence[str]) -> None:
        self._ended = Counter(
            "roost_tenant_requests", "A tenant's requests that have ended.", ["tenant", "reason"], registry=registry
        )
        self._prompt_tokens = Counter(
            "roost_tenant_prompt_tokens", "Of a tenant's requests that got a slot.", ["tenant"], registry=registry
        )
        self._generated_tokens = Counter(
            "roost_tenant_generation_tokens", "Generated for a tenant.", ["tenant"], registry=registry
        )
        for tenant in tenants:
            self._prompt_tokens.labels(tenant)
            self._generated_tokens.labels(tenant)

    def tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        if record.request.tenant:
            self._generated_tokens.labels(record.request.tenant).inc(count)

    def ended(self, record: RequestRecord) -> None:
        tenant = record.request.tenant
        if tenant:
            self._ended.labels(tenant, record.reason).inc()
        if tenant and record.started is not None:
            self._prompt_tokens.labels(tenant).inc(len(record.request.prompt_token_ids))


class _EngineCollector(Collector):
    """The engine counts for itself; this reads it when asked."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = (
            ("num_requests_running", "Requests that have a slot.", stats.num_running),
            ("num_requests_waiting", "Requests that wait for a slot.", stats.num_waiting),
            ("waiting_prompt_tokens", "Of the prompts of those that wait.", stats.waiting_tokens),
            ("slots", "Requests that can run at the same time.", stats.slots),
            ("slots_used", "Slots that a request has.", stats.num_running),
            ("state_cache_snapshots", "Remembered states.", stats.cache.snapshots),
        )
        counters: tuple[tuple[str, str, float], ...] = (
            ("prompt_tokens", "Prompt tokens read.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
            ("engine_steps", "Batches run on the device.", stats.steps),
            ("compiles_since_ready", "Compilations after warm-up; must stay 0.", stats.compiles_since_ready),
            ("state_cache_queries", "Prompts looked up among remembered states.", stats.cache.queries),
            ("state_cache_hits", "Prompts of which a state was remembered.", stats.cache.hits),
            ("state_cache_hit_tokens", "Prompt tokens that had not to be read thanks to that.", stats.cache.hit_tokens),
            ("state_cache_disk_hits", "Prompts of which the disk knew more than memory.", stats.cache.disk_hits),
            ("state_cache_disk_errors", "Files of states that were broken, or not written.", stats.cache.disk_errors),
            ("state_cache_evictions", "Remembered states that made room for others.", stats.cache.evictions),
            ("state_cache_restore_seconds", "Spent on putting states back into slots.", stats.restore_seconds),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"roost_{name}", text, value)
        bytes_used = GaugeMetricFamily("roost_state_cache_bytes", "Of remembered states.", labels=["tier"])
        bytes_used.add_metric(["host"], stats.cache.num_bytes)
        bytes_used.add_metric(["disk"], stats.cache.disk_bytes)
        yield bytes_used
        for name, text, total in counters:
            yield CounterMetricFamily(f"roost_{name}", text, total)

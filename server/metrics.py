"""What Prometheus scrapes. The only room of prometheus-client."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine import EngineStats, QueueFullError, QueueTimeoutError, RequestTimeoutError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_CACHE_S: Final = 0.2
"""Scrapers may come as often as they like; the page is not made more often than this."""

_FIRST_TOKEN_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

# Times of creation double the number of series, and nobody asks for them; the library has no narrower switch.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server; histograms are filled by `track_request`, all else is read from the engine.

    Args:
      stats: gives the engine's last snapshot.
      clock: seconds that only go forward.
    """

    def __init__(self, stats: Callable[[], EngineStats], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        self.first_token = Histogram(
            "roost_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self.next_token = Histogram(
            "roost_inter_token_latency_seconds",
            "From a token to the next of the same request.",
            buckets=_NEXT_TOKEN_S,
            registry=self._registry,
        )
        self.whole_request = Histogram(
            "roost_e2e_request_latency_seconds",
            "From a request's arrival to its last token.",
            buckets=_REQUEST_S,
            registry=self._registry,
        )
        self.requests = Counter(
            "roost_requests", "Requests that have ended, by how.", ["reason"], registry=self._registry
        )
        for reason in ("stop", "length", "abort", "rejected", "timeout", "error"):
            self.requests.labels(reason)
        self._page: tuple[float, bytes] | None = None

    def track_request(self) -> "RequestRecord":
        """Times one request of the engine, from here to the end of the `with` block."""
        return RequestRecord(self)

    def page(self) -> bytes:
        """All metrics as text, at most `_CACHE_S` old."""
        now = self.clock()
        if self._page is None or now - self._page[0] >= _CACHE_S:
            self._page = (now, prometheus_client.generate_latest(self._registry))
        return self._page[1]


@dataclass(frozen=True, slots=True)
class Times:
    """When a request came, when its prompt began to be read, when its first output came, and when the last one so far;
    seconds of one clock."""

    arrived: float
    started: float
    first: float
    last: float


NEVER: Final = Times(0.0, 0.0, 0.0, 0.0)


class RequestRecord:
    """One request's times. It is left with the reason told to `finished`, else with what the exception says."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = metrics.clock()
        self._started: float | None = None
        self._first_output: float | None = None
        self._last_token: float | None = None
        self._reason: str | None = None

    def started(self, at: float | None) -> None:
        """Books when the engine began with it, as the first output tells; later ones say None."""
        self._started = at if self._started is None else self._started

    def tokens(self, count: int) -> None:
        """Books tokens that came together, as if they had come one after the other at equal distances."""
        if not count:
            return
        now = self._metrics.clock()
        if self._last_token is None:
            self._metrics.first_token.observe(now - self._arrived)
        else:
            for _ in range(count):
                self._metrics.next_token.observe((now - self._last_token) / count)
        self._last_token = now

    @property
    def times(self) -> Times:
        """Up to now; to be asked for with the first output, and later ones."""
        now = self._metrics.clock()
        self._first_output = now if self._first_output is None else self._first_output
        started = self._first_output if self._started is None else self._started
        return Times(self._arrived, started, self._first_output, now)

    def finished(self, reason: str) -> None:
        self._reason = reason
        self._metrics.whole_request.observe(self._metrics.clock() - self._arrived)

    def __enter__(self) -> "RequestRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._metrics.requests.labels(self._reason or _reason(error)).inc()


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
        counters = (
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


def _reason(error: BaseException | None) -> str:
    """Why a request ended that did not finish: closing its stream is what a client that goes away does."""
    match error:
        case QueueFullError():
            return "rejected"
        case QueueTimeoutError() | RequestTimeoutError():
            return "timeout"
        case Exception():
            return "error"
        case _:
            return "abort"

"""Prometheus metrics with the names `roost_*`, and their aliases with vLLM's names; a summary of throughput in the log.

Metrics of requests are in `request_metrics.py`, and vLLM's other metrics in `vllm_metrics.py`.
"""

import asyncio
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import DraftCounts, EngineStats
from .request_metrics import HttpMetrics, LatencyMetrics, Observer, RequestRecord, RequestTracker
from .vllm_metrics import VllmMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text format."""

_CACHE_S: Final = 0.2
"""Minimum seconds between two renderings of the page, for any number of scrapes and requests."""

INTERVAL_S: Final = 10.0
"""Seconds between two summaries of a busy server."""

_logger = logging.getLogger(__name__)

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


class _RenderedPage(NamedTuple):
    """A rendered page.

    Attributes:
      at: Time at which it was rendered, in seconds of the clock.
      num_ended: Number of requests that had ended by then.
    """

    at: float
    num_ended: int
    content: bytes


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
      reloads: Records reloads of files.
      http: Counts HTTP requests.
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
        self.registry = CollectorRegistry()
        self.reloads = ReloadMetrics(self.registry)
        self.http = HttpMetrics(self.registry)
        ProcessCollector(registry=self.registry)
        _add_build_info(self.registry)
        vllm_labels = None if vllm_model is None else {"model_name": vllm_model, "engine": "0"}
        self.registry.register(_EngineCollector(stats, vllm_labels))
        if connections is not None:
            self.registry.register(_ConnectionCollector(connections))
        if simulated is not None:
            gauge = Gauge(
                "roost_simulated", "1 on a server that simulates its device.", ["device"], registry=self.registry
            )
            gauge.labels(simulated).set(1)
        all_observers: list[Observer] = [LatencyMetrics(self.registry, vllm_labels), *observers]
        if tenants:
            all_observers.append(_TenantMetrics(self.registry, tenants))
        if vllm_labels is not None:
            all_observers.append(VllmMetrics(self.registry, stats, vllm_labels))
        self.requests = RequestTracker(all_observers, clock)
        self._page = _Page(self.registry, self.requests)

    def observe(self, observers: Iterable[Observer]) -> None:
        """Adds observers of all requests."""
        self.requests.observe(observers)

    async def page(self) -> bytes:
        """Returns all metrics as text, at most `_CACHE_S` old. Each request that has ended is counted."""
        return await self._page.rendered()


class _Page:
    """The rendered metrics, which take milliseconds to render: they are rendered every `_CACHE_S` at most."""

    def __init__(self, registry: CollectorRegistry, requests: RequestTracker) -> None:
        self._registry = registry
        self._requests = requests
        self._clock = requests.clock
        self._rendered: _RenderedPage | None = None

    async def rendered(self) -> bytes:
        """Returns the page. A client that has its response finds its tokens counted, if need be after a wait."""
        num_ended, page = self._requests.num_ended, self._rendered
        if page is not None and (age := self._clock() - page.at) < _CACHE_S:
            if page.num_ended < num_ended:
                await asyncio.sleep(_CACHE_S - age)
                page = self._rendered
            if page is not None and page.num_ended >= num_ended:  # also one that another client has waited for
                return page.content
        content = prometheus_client.generate_latest(self._registry)
        self._rendered = _RenderedPage(self._clock(), self._requests.num_ended, content)
        return content


def _add_build_info(registry: CollectorRegistry) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("roost", "jax")}
    facts = {"version": versions["roost"], "jax": versions["jax"], "python": platform.python_version()}
    Gauge("roost_build_info", "1, with versions as labels.", tuple(facts), registry=registry).labels(**facts).set(1)


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


class _Row(NamedTuple):
    """A value of the engine's statistics.

    Attributes:
      name: Roost's name of the metric, without its prefix; empty if only vLLM has it.
      text: Description.
      value: The value.
      vllm: vLLM's name of the metric, without its prefix; empty if only Roost has it.
    """

    name: str
    text: str
    value: float
    vllm: str = ""


def _gauges(stats: EngineStats) -> Iterator[_Row]:
    running, waiting = "num_requests_running", "num_requests_waiting"
    yield _Row(running, "Running requests, each of which has a slot.", stats.num_running, running)
    yield _Row(waiting, "Requests that wait for a slot.", stats.num_waiting, waiting)
    yield _Row("waiting_prompt_tokens", "Total prompt tokens of waiting requests.", stats.waiting_tokens)
    yield _Row("slots", "Maximum number of requests that run at the same time.", stats.slots)
    yield _Row("slots_used", "Slots in use.", stats.num_running)
    usage = stats.num_running / max(stats.slots, 1)
    yield _Row("", "Share of slots in use, from 0 to 1.", usage, "kv_cache_usage_perc")
    yield _Row("state_cache_snapshots", "Snapshots in the prefix cache.", stats.cache.snapshots)
    yield _Row("batch_requests_running", "Lines of batches that have a slot.", stats.num_preemptible_running)
    yield _Row("batch_requests_waiting", "Lines of batches that wait here for a slot.", stats.num_preemptible_waiting)


def _counters(stats: EngineStats) -> Iterator[_Row]:
    cache = stats.cache
    looked_up = stats.prompt_tokens + cache.hit_tokens
    computed = "Prompt tokens processed, without those served from the prefix cache."
    yield _Row("prompt_tokens", computed, stats.prompt_tokens)
    yield _Row("", "Prompt tokens, including those served from the prefix cache.", looked_up, "prompt_tokens")
    yield _Row("generation_tokens", "Tokens generated.", stats.generated_tokens, "generation_tokens")
    preempted = "Times that a line of a batch gave its slot to another request."
    yield _Row("batch_preemptions", preempted, stats.preemptions, "num_preemptions")
    yield _Row("engine_steps", "Engine steps run on the device.", stats.steps)
    yield _Row("compiles_since_ready", "Compilations after warm-up; must stay 0.", stats.compiles_since_ready)
    yield _Row("state_cache_queries", "Prompts looked up in the prefix cache.", cache.queries)
    yield _Row("", "Prompt tokens looked up in the prefix cache.", looked_up, "prefix_cache_queries")
    yield _Row("state_cache_hits", "Prompts with a hit in the prefix cache.", cache.hits)
    saved = "Prompt tokens served from the prefix cache."
    yield _Row("state_cache_hit_tokens", saved, cache.hit_tokens, "prefix_cache_hits")
    yield _Row("state_cache_disk_hits", "Prompts with a longer hit on disk than in memory.", cache.disk_hits)
    broken = "Snapshot files that were corrupt or could not be written."
    yield _Row("state_cache_disk_errors", broken, cache.disk_errors)
    yield _Row("state_cache_evictions", "Snapshots evicted from the prefix cache.", cache.evictions)
    yield from () if stats.drafts is None else _draft_counters(stats.drafts)
    restored = "Seconds spent on restoring snapshots into slots."
    yield _Row("state_cache_restore_seconds", restored, stats.restore_seconds)


def _draft_counters(drafts: DraftCounts) -> Iterator[_Row]:
    rounds, accepted = "spec_decode_num_drafts", "spec_decode_num_accepted_tokens"
    yield _Row(rounds, "Steps with drafted tokens, for each request separately.", drafts.drafts, rounds)
    yield _Row("spec_decode_num_draft_tokens", "Drafted tokens.", drafts.tokens, "spec_decode_num_draft_tokens")
    yield _Row(accepted, "Drafted tokens that were accepted.", sum(drafts.accepted), accepted)


class _EngineCollector(Collector):
    """Reads the engine's statistics whenever metrics are collected.

    Args:
      stats: Returns the engine's latest statistics.
      vllm_labels: Labels of vLLM's metrics; None leaves these out.
    """

    def __init__(self, stats: Callable[[], EngineStats], vllm_labels: Mapping[str, str] | None) -> None:
        self._stats = stats
        self._vllm_labels = vllm_labels

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for kind, rows in ((GaugeMetricFamily, _gauges(stats)), (CounterMetricFamily, _counters(stats))):
            for row in rows:
                if row.name:
                    yield kind(f"roost_{row.name}", row.text, row.value)
                if row.vllm and self._vllm_labels is not None:
                    family = kind(f"vllm:{row.vllm}", row.text, labels=tuple(self._vllm_labels))
                    family.add_metric(tuple(self._vllm_labels.values()), row.value)
                    yield family
        bytes_used = GaugeMetricFamily(
            "roost_state_cache_bytes", "Bytes of snapshots in the prefix cache, by tier.", labels=["tier"]
        )
        bytes_used.add_metric(["host"], stats.cache.num_bytes)
        bytes_used.add_metric(["disk"], stats.cache.disk_bytes)
        yield bytes_used


_CONNECTIONS: Final = {
    "num_open": (GaugeMetricFamily, "", "Open connections"),
    "num_busy": (GaugeMetricFamily, "_busy", "Connections with a request, probes aside"),
    "limit": (GaugeMetricFamily, "_limit", "Maximum number of connections with a request"),
    "num_dropped": (
        CounterMetricFamily,
        "_dropped",
        "Connections without a request that were closed to make room for new ones",
    ),
    "num_refused": (
        CounterMetricFamily,
        "_refused",
        "Connections and requests that were refused since too many connections had a request",
    ),
}
"""Kind, end of the name and description of the metric of each field of `ConnectionCounts`."""


class _ConnectionCollector(Collector):
    """Reads the counts of connections."""

    def __init__(self, counts: Callable[[], Mapping[str, ConnectionCounts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        by_port = self._counts()
        for field, (kind, name, text) in _CONNECTIONS.items():
            family = kind(f"roost_connections{name}", f"{text}, by port.", labels=["port"])
            for port, counts in by_port.items():
                family.add_metric([port], getattr(counts, field))
            yield family


class ReloadMetrics:
    """Outcome of the last reload of keys and certificates. The start counts as the first.

    Args:
      registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._successful = Gauge(
            "roost_config_last_reload_successful",
            "1 if files of keys and certificates could be loaded when they were last read; 0 if old ones are in use.",
            registry=registry,
        )
        self._time = Gauge(
            "roost_config_last_reload_success_timestamp_seconds",
            "Time at which the files of keys and certificates were last loaded, in seconds since 1970.",
            registry=registry,
        )
        self._expiry = Gauge(
            "roost_certificate_expiry_timestamp_seconds",
            "Time at which the certificate in use expires, in seconds since 1970.",
            ["file"],
            registry=registry,
        )
        self.record(is_successful=True)

    def record(self, *, is_successful: bool) -> None:
        """Records a reload.

        Args:
          is_successful: Whether the current versions of all files are in use.
        """
        self._successful.set(is_successful)
        if is_successful:
            self._time.set_to_current_time()

    def record_certificate(self, file: str, expiry: float) -> None:
        """Records when the new certificate expires, in seconds since 1970."""
        self._expiry.labels(file).set(expiry)


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


class ThroughputLog:
    """Logs a line every `INTERVAL_S` while the engine is busy.

    Args:
      stats: Returns the current statistics of the engine.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats
        self._last = stats()

    async def run(self) -> None:
        """Logs until it is cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            await asyncio.sleep(INTERVAL_S)
            self.report(now() - began)

    def report(self, seconds: float) -> None:
        """Logs the throughput since the last call, unless the engine was idle.

        Args:
          seconds: Time since the last call.
        """
        last, new = self._last, self._stats()
        self._last = new
        prompt = new.prompt_tokens - last.prompt_tokens
        generated = new.generated_tokens - last.generated_tokens
        cached = new.cache.hit_tokens - last.cache.hit_tokens
        if not prompt + generated + cached + new.num_running + new.num_waiting:
            return
        rates = {
            "prompt_tokens_per_s": round(prompt / seconds, 1),
            "cached_tokens_per_s": round(cached / seconds, 1),
            "generated_tokens_per_s": round(generated / seconds, 1),
        }
        fields = {**rates, "running": new.num_running, "waiting": new.num_waiting}
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        _logger.info("throughput %s", text, extra={"fields": fields})

"""Prometheus metrics with the names `roost_*`, and their aliases with vLLM's names; a summary of throughput in the log.

Metrics of requests are in `request_metrics.py`. In vLLM's names slots stand for the KV cache: a request needs only a
slot, so the share of slots in use is exact, and only requests of batches are ever preempted.
"""

import asyncio
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import PREFILL_BLOCK, STEP_TOKEN_BOUNDS, DraftCounts, EngineStats
from .request_metrics import HttpMetrics, Observer, RequestMetrics, RequestTracker, Row, RowCollector, Values

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text format."""

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
        self.registry.register(RowCollector(lambda: _fact_rows(simulated)))
        vllm_labels = None if vllm_model is None else {"model_name": vllm_model, "engine": "0"}
        self.registry.register(RowCollector(lambda: _engine_rows(stats()), vllm_labels))
        if connections is not None:
            self.registry.register(RowCollector(lambda: _connection_rows(connections())))
        if vllm_labels is not None:
            self.registry.register(_StepTokens(stats, vllm_labels))
        own = RequestMetrics(self.registry, tenants, vllm_labels)
        self.requests = RequestTracker([own, *observers], clock)

    def page(self) -> bytes:
        """Returns all metrics as text."""
        return prometheus_client.generate_latest(self.registry)


def _fact_rows(simulated: str | None) -> Iterator[Row]:
    versions = {name: importlib.metadata.version(name) for name in ("roost", "jax")}
    facts = {"version": versions["roost"], "jax": versions["jax"], "python": platform.python_version()}
    text = "1, with versions as labels."
    yield Row(GaugeMetricFamily, "roost_build_info", text, {tuple(facts.values()): 1}, tuple(facts))
    if simulated is not None:
        text = "1 on a server that simulates its device."
        yield Row(GaugeMetricFamily, "roost_simulated", text, {(simulated,): 1}, ("device",))


def _engine_rows(stats: EngineStats) -> Iterator[Row]:
    gauge, counter, cache = GaugeMetricFamily, CounterMetricFamily, stats.cache
    running, waiting = "num_requests_running", "num_requests_waiting"
    yield Row(gauge, f"roost_{running}", "Running requests, each of which has a slot.", stats.num_running, vllm=running)
    yield Row(gauge, f"roost_{waiting}", "Requests that wait for a slot.", stats.num_waiting, vllm=waiting)
    text = "Waiting requests, by reason."
    by_reason: Values = {("capacity",): stats.num_waiting, ("deferred",): 0}  # the only reason is the number of slots
    yield Row(gauge, "", text, by_reason, ("reason",), "num_requests_waiting_by_reason")
    yield Row(gauge, "roost_waiting_prompt_tokens", "Total prompt tokens of waiting requests.", stats.waiting_tokens)
    yield Row(gauge, "roost_slots", "Maximum number of requests that run at the same time.", stats.slots)
    yield Row(gauge, "roost_slots_used", "Slots in use.", stats.num_running)
    usage = stats.num_running / max(stats.slots, 1)
    yield Row(gauge, "", "Share of slots in use, from 0 to 1.", usage, vllm="kv_cache_usage_perc")
    yield Row(gauge, "roost_state_cache_snapshots", "Snapshots in the prefix cache.", cache.snapshots)
    text = "Bytes of snapshots in the prefix cache, by tier."
    by_tier: Values = {("host",): cache.num_bytes, ("disk",): cache.disk_bytes}
    yield Row(gauge, "roost_state_cache_bytes", text, by_tier, ("tier",))
    text = "Lines of batches that have a slot."
    yield Row(gauge, "roost_batch_requests_running", text, stats.num_preemptible_running)
    text = "Lines of batches that wait here for a slot."
    yield Row(gauge, "roost_batch_requests_waiting", text, stats.num_preemptible_waiting)
    facts = {
        "block_size": str(PREFILL_BLOCK),  # the distance of snapshots, as KV blocks do not exist
        "num_gpu_blocks": "0",
        "kv_cache_size_tokens": "0",
        "kv_cache_max_concurrency": str(stats.slots),
    }
    text = "Configuration of the cache as labels; the value is 1."
    yield Row(gauge, "", text, {tuple(facts.values()): 1}, tuple(facts), "cache_config_info")
    text = "Prompt tokens processed, without those served from the prefix cache."
    yield Row(counter, "roost_prompt_tokens", text, stats.prompt_tokens)
    looked_up = stats.prompt_tokens + cache.hit_tokens
    text = "Prompt tokens, including those served from the prefix cache."
    yield Row(counter, "", text, looked_up, vllm="prompt_tokens")
    yield Row(counter, "", "Prompt tokens looked up in the prefix cache.", looked_up, vllm="prefix_cache_queries")
    yield Row(counter, "roost_generation_tokens", "Tokens generated.", stats.generated_tokens, vllm="generation_tokens")
    text = "Times that a line of a batch gave its slot to another request."
    yield Row(counter, "roost_batch_preemptions", text, stats.preemptions, vllm="num_preemptions")
    yield Row(counter, "roost_engine_steps", "Engine steps run on the device.", stats.steps)
    text = "Compilations after warm-up; must stay 0."
    yield Row(counter, "roost_compiles_since_ready", text, stats.compiles_since_ready)
    yield Row(counter, "roost_state_cache_queries", "Prompts looked up in the prefix cache.", cache.queries)
    yield Row(counter, "roost_state_cache_hits", "Prompts with a hit in the prefix cache.", cache.hits)
    text = "Prompt tokens served from the prefix cache."
    yield Row(counter, "roost_state_cache_hit_tokens", text, cache.hit_tokens, vllm="prefix_cache_hits")
    text = "Prompts with a longer hit on disk than in memory."
    yield Row(counter, "roost_state_cache_disk_hits", text, cache.disk_hits)
    text = "Snapshot files that were corrupt or could not be written."
    yield Row(counter, "roost_state_cache_disk_errors", text, cache.disk_errors)
    yield Row(counter, "roost_state_cache_evictions", "Snapshots evicted from the prefix cache.", cache.evictions)
    text = "Seconds spent on restoring snapshots into slots."
    yield Row(counter, "roost_state_cache_restore_seconds", text, stats.restore_seconds)
    if stats.drafts is not None:
        yield from _draft_rows(stats.drafts)


def _draft_rows(drafts: DraftCounts) -> Iterator[Row]:
    counter, accepted = CounterMetricFamily, "spec_decode_num_accepted_tokens"
    name, text = "spec_decode_num_drafts", "Steps with drafted tokens, for each request separately."
    yield Row(counter, f"roost_{name}", text, drafts.drafts, vllm=name)
    name = "spec_decode_num_draft_tokens"
    yield Row(counter, f"roost_{name}", "Drafted tokens.", drafts.tokens, vllm=name)
    yield Row(counter, f"roost_{accepted}", "Drafted tokens that were accepted.", sum(drafts.accepted), vllm=accepted)
    by_place: Values = {(str(place),): count for place, count in enumerate(drafts.accepted)}
    text = "Drafted tokens that were accepted, by place in the draft."
    yield Row(counter, "", text, by_place, ("position",), f"{accepted}_per_pos")


class _StepTokens(Collector):
    """Reads the histogram of tokens per step from the engine's statistics."""

    def __init__(self, stats: Callable[[], EngineStats], labels: Mapping[str, str]) -> None:
        self._stats = stats
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        stats, text = self._stats(), "Tokens processed by an engine step."
        family = HistogramMetricFamily("vllm:iteration_tokens_total", text, labels=tuple(self._labels))
        names = [*(f"{float(bound)}" for bound in STEP_TOKEN_BOUNDS), "+Inf"]
        counts = zip(names, accumulate(stats.step_tokens), strict=True)
        family.add_metric(tuple(self._labels.values()), list(counts), stats.prompt_tokens + stats.generated_tokens)
        yield family


def _connection_rows(ports: Mapping[str, ConnectionCounts]) -> Iterator[Row]:
    for field, (kind, name, text) in _CONNECTIONS.items():
        by_port: Values = {(port,): getattr(counts, field) for port, counts in ports.items()}
        yield Row(kind, f"roost_connections{name}", f"{text}, by port.", by_port, ("port",))


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


def store_rows(are_available: Mapping[str, bool]) -> Iterator[Row]:
    """Yields whether each database can be used, by the name of its feature."""
    if are_available:
        text = "1 while the database of --store can be used, 0 while it is unavailable, by feature."
        values: Values = {(name,): float(is_available) for name, is_available in are_available.items()}
        yield Row(GaugeMetricFamily, "roost_store_available", text, values, ("feature",))


class ReloadMetrics:
    """Outcome of the last reload of keys and certificates. The start counts as the first.

    Args:
      registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._expiries: dict[tuple[str, ...], float] = {}
        self.record(is_successful=True)
        registry.register(RowCollector(self._rows))

    def record(self, *, is_successful: bool) -> None:
        """Records a reload.

        Args:
          is_successful: Whether the current versions of all files are in use.
        """
        self._is_successful = is_successful
        if is_successful:
            self._loaded_at = time.time()

    def record_certificate(self, file: str, expiry: float) -> None:
        """Records when the new certificate expires, in seconds since 1970."""
        self._expiries[file,] = expiry

    def _rows(self) -> Iterator[Row]:
        gauge, name = GaugeMetricFamily, "roost_config_last_reload"
        text = "1 if files of keys and certificates could be loaded when they were last read; 0 if old ones are in use."
        yield Row(gauge, f"{name}_successful", text, self._is_successful)
        text = "Time at which the files of keys and certificates were last loaded, in seconds since 1970."
        yield Row(gauge, f"{name}_success_timestamp_seconds", text, self._loaded_at)
        text = "Time at which the certificate in use expires, in seconds since 1970."
        yield Row(gauge, "roost_certificate_expiry_timestamp_seconds", text, self._expiries, ("file",))


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

"""Prometheus metrics under vLLM's names, for dashboards, autoscalers and the Gateway API Inference Extension.

Slots stand for the KV cache: a slot is all that a request needs, so the share of slots in use is exact, and no request
but a batch's is ever preempted.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import PREFILL_BLOCK, STEP_TOKEN_BOUNDS, EngineStats
from .request_metrics import Histogram, LatencyMetrics, Observer, RequestRecord

_LABELS: Final = ("model_name", "engine")
_SECONDS: Final = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST_TOKEN_S: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_NEXT_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_FINISHED: Final = ("stop", "length", "abort", "error")
"""Reasons that vLLM counts as success; it includes aborts and errors."""

_MAX_OPEN: Final = 4096
"""Maximum number of prompts with open choices that are tracked."""


@dataclass(slots=True)
class _OpenPrompt:
    """A prompt with open choices.

    Attributes:
      num_left: Number of open choices.
      longest: Number of tokens of the longest choice that has ended.
    """

    num_left: int
    longest: int = 0


class VllmMetrics(Observer):
    """Metrics of requests, choices and the engine under vLLM's names.

    Args:
      registry: Registry that the metrics are added to.
      stats: Returns the engine's latest statistics.
      model: Name of the model, a label of every series.
      latencies: Latencies of tokens, which are observed once for all metrics.
    """

    def __init__(
        self, registry: CollectorRegistry, stats: Callable[[], EngineStats], model: str, latencies: LatencyMetrics
    ) -> None:
        labels = {"model_name": model, "engine": "0"}

        def histogram(name: str, text: str, buckets: Sequence[float | int]) -> Histogram:
            return Histogram(f"vllm:{name}", text, buckets, registry, labels)

        self._labels = labels
        latencies.first_token.show_as(
            "vllm:time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            _FIRST_TOKEN_S,
            labels,
        )
        latencies.next_token.show_as(
            "vllm:inter_token_latency_seconds",
            "Seconds between consecutive tokens of a request.",
            _NEXT_TOKEN_S,
            labels,
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean seconds per token of a request after the first.",
            _NEXT_TOKEN_S,
        )
        self._whole = histogram("e2e_request_latency_seconds", "Seconds from a request's arrival to its end.", _SECONDS)
        self._queue = histogram(
            "request_queue_time_seconds", "Seconds for which a request waited for a slot.", _SECONDS
        )
        self._inference = histogram(
            "request_inference_time_seconds", "Seconds for which a request had a slot.", _SECONDS
        )
        self._prefill = histogram(
            "request_prefill_time_seconds", "Seconds from a request's slot to its first token.", _SECONDS
        )
        self._decode = histogram(
            "request_decode_time_seconds", "Seconds from a request's first token to its last.", _SECONDS
        )
        self._prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generated_tokens = histogram("request_generation_tokens", "Tokens generated for a request.", _TOKENS)
        self._longest = histogram("request_max_num_generation_tokens", "Tokens of a prompt's longest choice.", _TOKENS)
        self._open: OrderedDict[str, _OpenPrompt] = OrderedDict()
        self._max_tokens = histogram("request_params_max_tokens", "Requested maximum number of tokens.", _TOKENS)
        self._n = histogram("request_params_n", "Requested number of choices of a prompt.", (1, 2, 5, 10, 20))
        self._ended = Counter(
            "vllm:request_success",
            "Requests that have ended, by reason.",
            (*_LABELS, "finished_reason"),
            registry=registry,
        )
        for reason in _FINISHED:
            self._ended.labels(**labels, finished_reason=reason)
        registry.register(_EngineCollector(stats, model))

    def on_start(self, record: RequestRecord, num_choices: int) -> None:
        self._n.observe(num_choices)
        self._open[record.request.id] = _OpenPrompt(num_choices)
        while len(self._open) > _MAX_OPEN:  # choices that never started don't end
            self._open.popitem(last=False)

    def on_end(self, record: RequestRecord) -> None:
        self._count_longest(record)
        if record.reason in _FINISHED:
            self._ended.labels(**self._labels, finished_reason=record.reason).inc()
        if not record.has_finished:
            return
        request = record.request
        self._prompt_tokens.observe(len(request.prompt_token_ids))
        self._generated_tokens.observe(record.num_tokens)
        if request.params.max_tokens is not None:
            self._max_tokens.observe(request.params.max_tokens)
        self._times(record)

    def _count_longest(self, record: RequestRecord) -> None:
        """Observes a prompt's longest choice once all of its choices have ended."""
        prompt_id = record.request.fork_of or record.request.id
        prompt = self._open.get(prompt_id)
        if prompt is None:
            return
        prompt.num_left -= 1
        prompt.longest = max(prompt.longest, record.num_tokens)
        if not prompt.num_left:
            del self._open[prompt_id]
            self._longest.observe(prompt.longest)

    def _times(self, record: RequestRecord) -> None:
        self._whole.observe(record.ended - record.arrived)
        if record.started is None or record.first_token is None:
            return
        decode_s = record.ended - record.first_token
        self._queue.observe(max(record.started - record.arrived, 0.0))
        self._inference.observe(record.ended - record.started)
        self._prefill.observe(max(record.first_token - record.started, 0.0))
        self._decode.observe(decode_s)
        if record.num_tokens > 1:
            self._per_token.observe(decode_s / (record.num_tokens - 1))


class _EngineCollector(Collector):
    """Reads the engine's statistics whenever metrics are collected."""

    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self._stats = stats
        self._values = (model, "0")

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = stats.num_running / max(stats.slots, 1)
        gauges = (
            ("num_requests_running", "Running requests, each of which has a slot.", stats.num_running),
            ("num_requests_waiting", "Requests that wait for a slot.", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of slots in use, from 0 to 1.", used),
        )
        counters = (
            (
                "prompt_tokens",
                "Prompt tokens, including those served from the prefix cache.",
                stats.prompt_tokens + stats.cache.hit_tokens,
            ),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prompt_tokens + stats.cache.hit_tokens,
            ),
            ("prefix_cache_hits", "Prompt tokens served from the prefix cache.", stats.cache.hit_tokens),
            ("num_preemptions", "Times that a line of a batch gave its slot to another request.", stats.preemptions),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            counter.add_metric(self._values, value)
            yield counter
        yield self._step_tokens(stats)
        yield self._waiting_by_reason(stats)
        yield self._config(stats)

    def _step_tokens(self, stats: EngineStats) -> Metric:
        family = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens processed by an engine step.", labels=_LABELS
        )
        names = [*(f"{float(bound)}" for bound in STEP_TOKEN_BOUNDS), "+Inf"]
        counts = zip(names, accumulate(stats.step_tokens), strict=True)
        family.add_metric(self._values, list(counts), stats.prompt_tokens + stats.generated_tokens)
        return family

    def _waiting_by_reason(self, stats: EngineStats) -> Metric:
        """Returns the waiting requests by reason; the only reason is the number of slots."""
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Waiting requests, by reason.", labels=(*_LABELS, "reason")
        )
        family.add_metric((*self._values, "capacity"), stats.num_waiting)
        family.add_metric((*self._values, "deferred"), 0)
        return family

    def _config(self, stats: EngineStats) -> Metric:
        """Returns the cache's configuration; `block_size` is the distance of snapshots, as there are no KV blocks."""
        facts = {
            "block_size": str(PREFILL_BLOCK),
            "num_gpu_blocks": "0",
            "kv_cache_size_tokens": "0",
            "kv_cache_max_concurrency": str(stats.slots),
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Configuration of the cache as labels; the value is 1.", labels=(*_LABELS, *facts)
        )
        family.add_metric((*self._values, *facts.values()), 1)
        return family

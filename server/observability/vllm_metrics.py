"""Prometheus metrics that only vLLM has, for dashboards, autoscalers and the Gateway API Inference Extension.

Metrics that Roost has under another name are aliases in `metrics.py` and `request_metrics.py`.

Slots stand for the KV cache: a request needs only a slot, so the share of slots in use is exact, and only requests of
batches are ever preempted.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import PREFILL_BLOCK, STEP_TOKEN_BOUNDS, EngineStats
from .request_metrics import VLLM_NEXT_TOKEN_S, VLLM_REQUEST_S, Histogram, Observer, RequestRecord

_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_FINISHED: Final = ("stop", "length", "abort", "error")
"""Reasons that vLLM counts as success, including aborts and errors."""

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
    """Metrics of requests, choices and the engine that only vLLM has.

    Args:
      registry: Registry that the metrics are added to.
      stats: Returns the engine's latest statistics.
      labels: Labels of every series.
    """

    def __init__(
        self, registry: CollectorRegistry, stats: Callable[[], EngineStats], labels: Mapping[str, str]
    ) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float | int]) -> Histogram:
            return Histogram(f"vllm:{name}", text, buckets, registry, labels)

        self._labels = labels
        text = "Mean seconds per token of a request after the first."
        self._per_token = histogram("request_time_per_output_token_seconds", text, VLLM_NEXT_TOKEN_S)
        text = "Seconds for which a request had a slot."
        self._inference = histogram("request_inference_time_seconds", text, VLLM_REQUEST_S)
        self._prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generated_tokens = histogram("request_generation_tokens", "Tokens generated for a request.", _TOKENS)
        self._longest = histogram("request_max_num_generation_tokens", "Tokens of a prompt's longest choice.", _TOKENS)
        self._open: OrderedDict[str, _OpenPrompt] = OrderedDict()
        self._max_tokens = histogram("request_params_max_tokens", "Requested maximum number of tokens.", _TOKENS)
        self._n = histogram("request_params_n", "Requested number of choices of a prompt.", (1, 2, 5, 10, 20))
        text, names = "Requests that have ended, by reason.", (*labels, "finished_reason")
        self._ended = Counter("vllm:request_success", text, names, registry=registry)
        for reason in _FINISHED:
            self._ended.labels(**labels, finished_reason=reason)
        registry.register(_EngineCollector(stats, labels))

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
        if record.started is None or record.first_token is None:
            return
        self._inference.observe(record.ended - record.started)
        if record.num_tokens > 1:
            self._per_token.observe((record.ended - record.first_token) / (record.num_tokens - 1))

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


class _EngineCollector(Collector):
    """Reads the engine's statistics whenever metrics are collected."""

    def __init__(self, stats: Callable[[], EngineStats], labels: Mapping[str, str]) -> None:
        self._stats = stats
        self._labels = tuple(labels)
        self._values = tuple(labels.values())

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield self._step_tokens(stats)
        reasons = {"capacity": stats.num_waiting, "deferred": 0}  # the only reason is the number of slots
        name, text = "vllm:num_requests_waiting_by_reason", "Waiting requests, by reason."
        yield self._labelled(GaugeMetricFamily, name, text, "reason", reasons)
        yield self._config(stats)
        if stats.drafts is not None:
            places = {str(place): count for place, count in enumerate(stats.drafts.accepted)}
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            text = "Drafted tokens that were accepted, by place in the draft."
            yield self._labelled(CounterMetricFamily, name, text, "position", places)

    def _labelled(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        label: str,
        values: Mapping[str, int],
    ) -> Metric:
        family = kind(name, text, labels=(*self._labels, label))
        for value, count in values.items():
            family.add_metric((*self._values, value), count)
        return family

    def _step_tokens(self, stats: EngineStats) -> Metric:
        text = "Tokens processed by an engine step."
        family = HistogramMetricFamily("vllm:iteration_tokens_total", text, labels=self._labels)
        names = [*(f"{float(bound)}" for bound in STEP_TOKEN_BOUNDS), "+Inf"]
        counts = zip(names, accumulate(stats.step_tokens), strict=True)
        family.add_metric(self._values, list(counts), stats.prompt_tokens + stats.generated_tokens)
        return family

    def _config(self, stats: EngineStats) -> Metric:
        """Returns the cache's configuration. `block_size` is the distance of snapshots, as KV blocks do not exist."""
        facts = {
            "block_size": str(PREFILL_BLOCK),
            "num_gpu_blocks": "0",
            "kv_cache_size_tokens": "0",
            "kv_cache_max_concurrency": str(stats.slots),
        }
        text = "Configuration of the cache as labels; the value is 1."
        family = GaugeMetricFamily("vllm:cache_config_info", text, labels=(*self._labels, *facts))
        family.add_metric((*self._values, *facts.values()), 1)
        return family

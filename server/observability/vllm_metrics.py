"""Prometheus metrics that only vLLM has, for dashboards, autoscalers and the Gateway API Inference Extension.

Metrics that Roost has under another name are aliases in `metrics.py` and `request_metrics.py`.

Slots stand for the KV cache: a request needs only a slot, so the share of slots in use is exact, and only requests of
batches are ever preempted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine import STEP_TOKEN_BOUNDS, EngineStats
from .request_metrics import NEXT_TOKEN_S, REQUEST_S, Histogram, Observer, RequestRecord

_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_FINISHED: Final = ("stop", "length", "abort", "error")
"""Reasons that vLLM counts as success, including aborts and errors."""


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
        def histogram(text: str, bounds: Sequence[float | int], *names: str) -> Histogram:
            return Histogram({f"vllm:{name}": labels for name in names}, text, bounds, registry)

        self._labels = labels
        text = "Mean seconds per token of a request after the first."
        self._per_token = histogram(text, NEXT_TOKEN_S, "request_time_per_output_token_seconds")
        text = "Seconds for which a request had a slot."
        self._inference = histogram(text, REQUEST_S, "request_inference_time_seconds")
        self._prompt_tokens = histogram("Prompt tokens of a request.", _TOKENS, "request_prompt_tokens")
        # vLLM's second name is that of a prompt's longest choice; here each choice is a request.
        names = ("request_generation_tokens", "request_max_num_generation_tokens")
        self._generated_tokens = histogram("Tokens generated for a request.", _TOKENS, *names)
        self._max_tokens = histogram("Requested maximum number of tokens.", _TOKENS, "request_params_max_tokens")
        self._n = histogram("Requested number of choices of a prompt.", (1, 2, 5, 10, 20), "request_params_n")
        text = "Requests that have ended, by reason."
        self._ended = Counter("vllm:request_success", text, (*labels, "finished_reason"), registry=registry)
        for reason in _FINISHED:
            self._ended.labels(**labels, finished_reason=reason)
        registry.register(_StepTokens(stats, labels))

    def on_start(self, record: RequestRecord, num_choices: int) -> None:
        self._n.observe(num_choices)

    def on_end(self, record: RequestRecord) -> None:
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

"""Records of engine requests for metrics, traces, responses and the access log, and the metrics made from them."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ...engine import (
    EngineDeadError,
    FinishReason,
    QueueFullError,
    QueueTimeoutError,
    Request,
    RequestTimeoutError,
    TokenOutput,
)

REASONS: Final = ("stop", "length", "abort", "rejected", "timeout", "error")
"""Reasons for which requests end."""

_FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320),
)

_NEXT_TOKEN_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)

_REQUEST_S: Final = (
    *(0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50),
    *(60, 120, 240, 480, 960, 1920, 3840, 7680),
)
"""Upper bounds of buckets: those of vLLM, which its dashboards expect, and finer ones."""

_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)

_FINISHED: Final = ("stop", "length", "abort", "error")
"""Reasons that vLLM counts as success, including aborts and errors."""


class Observer:
    """Receives the progress of requests. The base class does nothing."""

    def on_tokens(self, record: "RequestRecord", count: int, gap_s: float) -> None:
        """Called when tokens have been generated, before the record counts them.

        Args:
          record: Record of the request.
          count: Number of tokens that arrived together.
          gap_s: Seconds since the previous tokens, or since the arrival.
        """

    def on_end(self, record: "RequestRecord") -> None:
        """Called when a request has ended; `record.reason` is set."""

    def on_settle(self, record: "RequestRecord") -> None:
        """Called when a request has ended, and it is known whether anybody got its output; `record.is_left` is set."""


class RequestTracker:
    """Makes the records of requests.

    Attributes:
      observers: Observers of all requests.
      clock: Monotonic clock in seconds.
    """

    def __init__(self, observers: Iterable[Observer], clock: Callable[[], float]) -> None:
        self.observers = list(observers)
        self.clock = clock

    def track(self, requests: Sequence[Request]) -> list["RequestRecord"]:
        """Returns the records of the choices of one or several prompts, which all have the same number of choices."""
        num_prompts = len([request for request in requests if request.fork_of is None]) or 1
        return [RequestRecord(request, self, len(requests) // num_prompts) for request in requests]


class RequestRecord:
    """Timeline of one engine request. The caller must end it.

    Args:
      tracker: Has the observers and the clock.

    Attributes:
      request: The engine request.
      num_choices: Number of the choices of its prompt, each of which is a request.
      clock: Monotonic clock in seconds.
      arrived: Time of arrival. All times are seconds of one monotonic clock.
      started: Time at which prefill started; None before that.
      first_token: Time of the first token; None before that.
      last_token: Time of the last token so far; None before the first.
      num_tokens: Number of tokens so far.
      num_cached: Number of prompt tokens that were served from the prefix cache.
      num_earlier: Number of tokens that another replica has generated.
      is_chat: Whether the prompt is a conversation.
      is_left: Whether the request does not count as usage: it ended with its engine, is a line of a batch that was
        given back for another replica to run, or its output was discarded.
      reason: One of `REASONS`, once the request has ended.
      has_finished: Whether the request ended with all of its output.
      ended: Time of the end, once the request has ended.
    """

    def __init__(self, request: Request, tracker: RequestTracker, num_choices: int = 1) -> None:
        self.request = request
        self.num_choices = num_choices
        self.clock = tracker.clock
        self.arrived = self.ended = self.clock()
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.num_tokens = self.num_cached = self.num_earlier = 0
        self.is_chat = self.is_left = False
        self.reason = ""
        self.has_finished = False
        self._tracker = tracker

    def add(self, output: TokenOutput, num_tokens: int, finish_reason: FinishReason | None = None) -> None:
        """Records an output that has been detokenized, and reports its tokens to the observers.

        Args:
          num_tokens: Number of its tokens that belong to the request.
          finish_reason: Reason why the request ended with all of its output; None if it did not.
        """
        if self.started is None:
            self.started, self.num_cached = output.started_at, output.num_cached
        if num_tokens:
            now, last = self.clock(), self.last_token
            if last is None:
                last, self.first_token = self.arrived, now
            for observer in self._tracker.observers:
                observer.on_tokens(self, num_tokens, now - last)
            self.last_token = now
            self.num_tokens += num_tokens
        if finish_reason is not None:
            self.reason, self.has_finished = finish_reason, True

    def end(self, error: BaseException | None = None) -> None:
        """Adds the request to the token counts of its HTTP request, and reports its end to the observers.

        Args:
          error: Error that ended it; None if it finished or was aborted.
        """
        self.ended = self.clock()
        self.reason = self.reason or _reason(error)
        given_back = self.request.preemptible and self.reason == "abort"
        self.is_left = self.is_left or isinstance(error, EngineDeadError) or given_back
        if (tokens := request_tokens.get()) is not None:
            tokens.add(self)
        for observer in self._tracker.observers:
            observer.on_end(self)

    def settle(self) -> None:
        """Reports to the observers that `is_left` does not change any more."""
        for observer in self._tracker.observers:
            observer.on_settle(self)


def _reason(error: BaseException | None) -> str:
    """Returns why a request ended early. A client's disconnect is not an `Exception`."""
    match error:
        case QueueFullError():
            return "rejected"
        case QueueTimeoutError() | RequestTimeoutError():
            return "timeout"
        case Exception():
            return "error"
        case _:
            return "abort"


type Values = Mapping[tuple[str, ...], float]
"""Values of a metric by the values of its labels."""


class Row(NamedTuple):
    """A metric that is read whenever metrics are collected.

    Attributes:
      kind: Kind of the metric.
      name: Name of the metric; empty if only vLLM has it.
      text: Description.
      value: The value, or several.
      labels: Names of labels.
      vllm: vLLM's name of the metric, without its prefix; empty if only Roost has it.
    """

    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    text: str
    value: float | Values
    labels: tuple[str, ...] = ()
    vllm: str = ""

    def family(self, name: str, labels: Mapping[str, str]) -> Metric:
        """Returns the metric under a name, with further labels."""
        family = self.kind(name, self.text, labels=(*labels, *self.labels))
        values = self.value if isinstance(self.value, Mapping) else {(): self.value}
        for own, value in values.items():
            family.add_metric((*labels.values(), *own), value)
        return family


class RowCollector(Collector):
    """Collects rows.

    Args:
      rows: Returns the rows.
      vllm_labels: Labels of vLLM's metrics; None leaves these out.
    """

    def __init__(self, rows: Callable[[], Iterable[Row]], vllm_labels: Mapping[str, str] | None = None) -> None:
        self._rows = rows
        self._vllm_labels = vllm_labels

    def collect(self) -> Iterator[Metric]:
        for row in self._rows():
            if row.name:
                yield row.family(row.name, {})
            if row.vllm and self._vllm_labels is not None:
                yield row.family(f"vllm:{row.vllm}", self._vllm_labels)


class Histogram(Collector):
    """A histogram that a single thread observes and collects. The library's histogram takes two locks per observation.

    Args:
      names: Names of the metric, with the labels of its only series under each.
      text: Description.
      bounds: Upper bounds of all buckets except the last, in rising order.
      registry: Registry that collects it.
    """

    def __init__(
        self,
        names: Mapping[str, Mapping[str, str]],
        text: str,
        bounds: Sequence[float | int],
        registry: CollectorRegistry,
    ) -> None:
        self._names = names
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float | int, count: int = 1) -> None:
        """Counts a value that was observed `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        bounds = map(floatToGoString, (*self._bounds, math.inf))
        buckets = [(bound, float(total)) for bound, total in zip(bounds, accumulate(self._counts), strict=True)]
        for name, labels in self._names.items():
            family = HistogramMetricFamily(name, self._text, labels=tuple(labels))
            family.add_metric(tuple(labels.values()), buckets, self._sum)
            yield family


class RequestMetrics(Observer):
    """Latencies, sizes and outcomes of requests.

    The server's own requests (`/health_generate`) have no tenant.

    Args:
      registry: Registry that the metrics are added to.
      tenants: Tenants whose requests are counted by name, which bounds the number of series.
      vllm_labels: Labels of vLLM's metrics; None leaves these out.
    """

    def __init__(
        self, registry: CollectorRegistry, tenants: Sequence[str] = (), vllm_labels: Mapping[str, str] | None = None
    ) -> None:
        def histogram(text: str, bounds: Sequence[float | int], name: str, *vllm_names: str) -> Histogram:
            names: dict[str, Mapping[str, str]] = {f"roost_{name}": {}} if name else {}
            if vllm_labels is not None:
                names |= {f"vllm:{each}": vllm_labels for each in vllm_names or (name,)}
            return Histogram(names, text, bounds, registry)

        text = "Seconds from a request's arrival to its first token."
        self._first_token = histogram(text, _FIRST_TOKEN_S, "time_to_first_token_seconds")
        text = "Seconds between consecutive tokens of a request."
        self._next_token = histogram(text, _NEXT_TOKEN_S, "inter_token_latency_seconds")
        text = "Mean seconds per token of a request after the first."
        self._per_token = histogram(text, _NEXT_TOKEN_S, "", "request_time_per_output_token_seconds")
        text = "Seconds from a request's arrival to its end."
        self._whole = histogram(text, _REQUEST_S, "e2e_request_latency_seconds")
        text = "Seconds from a request's arrival to the start of its prefill."
        self._queue = histogram(text, _REQUEST_S, "request_queue_time_seconds")
        text = "Seconds for which a request had a slot."
        self._inference = histogram(text, _REQUEST_S, "", "request_inference_time_seconds")
        text = "Seconds from the start of a request's prefill to its first token."
        self._prefill = histogram(text, _REQUEST_S, "request_prefill_time_seconds")
        text = "Seconds from a request's first token to its last."
        self._decode = histogram(text, _REQUEST_S, "request_decode_time_seconds")
        self._prompt = histogram("Prompt tokens of a request.", _TOKENS, "", "request_prompt_tokens")
        # vLLM's second name is that of a prompt's longest choice; here each choice is a request.
        names = ("request_generation_tokens", "request_max_num_generation_tokens")
        self._generated = histogram("Tokens generated for a request.", _TOKENS, "", *names)
        text = "Requested maximum number of tokens."
        self._max_tokens = histogram(text, _TOKENS, "", "request_params_max_tokens")
        self._n = histogram("Requested number of choices of a prompt.", (1, 2, 5, 10, 20), "", "request_params_n")
        self._ended = Counter[tuple[str, ...]]()
        self._tenants_ended = Counter[tuple[str, ...]]()
        self._tenants_prompt = Counter[tuple[str, ...]]({(tenant,): 0 for tenant in tenants})
        self._tenants_generated = self._tenants_prompt.copy()
        self._has_tenants = bool(tenants)
        registry.register(RowCollector(self._rows, vllm_labels))

    def on_tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        """Observes tokens that arrived together as if they had arrived at equal intervals."""
        if record.last_token is None:
            self._first_token.observe(gap_s)
        else:
            self._next_token.observe(gap_s / count, count)
        if self._has_tenants and record.request.tenant:
            self._tenants_generated[record.request.tenant,] += count

    def on_end(self, record: RequestRecord) -> None:
        request = record.request
        self._ended[record.reason,] += 1
        if self._has_tenants and request.tenant:
            self._tenants_ended[request.tenant, record.reason] += 1
            self._tenants_prompt[request.tenant,] += 0 if record.started is None else len(request.prompt_token_ids)
        if request.fork_of is None:
            self._n.observe(record.num_choices)
        if not record.has_finished:
            return
        self._whole.observe(record.ended - record.arrived)
        self._prompt.observe(len(request.prompt_token_ids))
        self._generated.observe(record.num_tokens)
        if request.params.max_tokens is not None:
            self._max_tokens.observe(request.params.max_tokens)
        if record.started is not None:
            self._queue.observe(max(record.started - record.arrived, 0.0))
        if record.started is not None and record.first_token is not None:
            self._prefill.observe(max(record.first_token - record.started, 0.0))
            self._decode.observe(record.ended - record.first_token)
            self._inference.observe(record.ended - record.started)
            if record.num_tokens > 1:
                self._per_token.observe((record.ended - record.first_token) / (record.num_tokens - 1))

    def _rows(self) -> Iterator[Row]:
        kind, text = CounterMetricFamily, "Requests that have ended, by reason."
        ended: Values = {(reason,): self._ended[reason,] for reason in REASONS}
        yield Row(kind, "roost_requests", text, ended, ("reason",))
        finished: Values = {(reason,): self._ended[reason,] for reason in _FINISHED}
        yield Row(kind, "", text, finished, ("finished_reason",), "request_success")
        if self._has_tenants:
            labels, text = ("tenant",), "Requests of a tenant that have ended, by reason."
            yield Row(kind, "roost_tenant_requests", text, self._tenants_ended, ("tenant", "reason"))
            text = "Prompt tokens of a tenant's requests that got a slot."
            yield Row(kind, "roost_tenant_prompt_tokens", text, self._tenants_prompt, labels)
            text = "Tokens generated for a tenant."
            yield Row(kind, "roost_tenant_generation_tokens", text, self._tenants_generated, labels)


@dataclass(slots=True)
class RequestTokens:
    """Token counts of the ended choices of one HTTP request.

    Attributes:
      prompt: Number of tokens of its prompts. Each prompt is counted once for all of its choices.
      cached: Number of prompt tokens that were served from the prefix cache.
      completion: Number of generated tokens.
      first_token_s: Shortest time from a choice's arrival at the engine to its first token in seconds; None without
        tokens.
      num_choices: Number of choices.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    first_token_s: float | None = None
    num_choices: int = 0

    def add(self, record: RequestRecord) -> None:
        """Adds a choice."""
        self.num_choices += 1
        self.completion += record.num_tokens
        if record.request.fork_of is None:
            self.prompt += len(record.request.prompt_token_ids)
            self.cached += record.num_cached
        if record.first_token is not None:
            found = record.first_token - record.arrived
            self.first_token_s = found if self.first_token_s is None else min(found, self.first_token_s)


request_tokens: Final[ContextVar[RequestTokens | None]] = ContextVar("request_tokens", default=None)
"""Tokens of the current HTTP request."""

UNKNOWN_HANDLER: Final = "none"
"""Handler of requests whose path matches no endpoint."""

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_OTHER_METHOD: Final = "other"
"""Label of all other methods. Clients can send arbitrary methods."""


class HttpMetrics:
    """Counts HTTP requests that have ended.

    Statuses are not grouped into classes. An expression for either form is `status=~"5.."`.

    Args:
      registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter[tuple[str, ...]]()
        registry.register(RowCollector(self._rows))

    def count(self, handler: str, method: str, status: int) -> None:
        """Counts a request.

        Args:
          handler: Path template of its endpoint, or `UNKNOWN_HANDLER`.
        """
        self._requests[handler, method if method in _METHODS else _OTHER_METHOD, str(status)] += 1

    def _rows(self) -> Iterator[Row]:
        text = "HTTP requests by path template, method and status; 499 if the client left. Probes are not counted."
        yield Row(CounterMetricFamily, "http_requests", text, self._requests, ("handler", "method", "status"))

"""Response builders: what those of all APIs have in common, and what chat, completions and `/generate` share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict
from uuid import uuid4

from ...errors import ApiError
from ...generation.delta import Delta
from ...generation.prompts import Prompt
from ...observability.request_metrics import Times
from ...text.served_model import ServedModel
from .encoding import CHUNKS, SseEncoder


class ResponseBuilder(ABC):
    """Builds one response from deltas, either whole or as the chunks of a stream.

    Attributes:
      id: Id of the response, by which clients and the engine know it.
      sse: Encoder of the chunks.
    """

    id: str
    sse: SseEncoder = CHUNKS

    @abstractmethod
    def whole(self, choices: Sequence[Delta]) -> Mapping[str, Any]:
        """Returns the response to a request that does not stream."""

    def finish(self) -> None:  # noqa: B027 - most builders have nothing to do
        """Runs on the event loop after `whole`, which may run on a worker thread."""

    def repeats_much(self, delta: Delta) -> bool:
        """Returns whether the chunks of a delta repeat so much of a prompt that a worker thread builds them."""
        return False

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        """Returns the indices of the choices that `whole` returns, in the order of the response."""
        return range(len(choices))

    def opening(self) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks before any token."""
        yield from ()

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks of a delta; none if there is nothing to report yet."""

    @abstractmethod
    def closing(self) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks after the end of the last choice."""

    def failure(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks that end a stream with an error."""
        yield error.body


class PromptTokensDetails(TypedDict):
    """Details of `Usage.prompt_tokens`."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Details of `Usage.completion_tokens`."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Numbers of tokens of a response. Each prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChoiceEnd(TypedDict):
    """Fields of every choice, streamed or whole, about its end."""

    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class Timings(TypedDict):
    """Times of a response, in llama.cpp's names.

    `prompt_n` tokens were prefilled and `cache_n` were served from the prefix cache. `prompt_ms` runs from the
    request's arrival to its first token. Its part `queue_ms` ends when the prompt's first chunk is handed to the
    device.
    """

    queue_ms: float
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


def choice_end(delta: Delta, *, with_ids: bool) -> ChoiceEnd:
    """Returns the fields about a choice's end, with its token ids if they are requested."""
    finish_reason = "tool_calls" if delta.called else delta.finish_reason
    end = ChoiceEnd(finish_reason=finish_reason, stop_reason=delta.stop_reason)
    if with_ids:
        end["token_ids"] = list(delta.token_ids)
    return end


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Reports that a request asks for.

    Attributes:
      usage: Whether a stream ends with a chunk about usage.
      continuous_usage: Whether the other chunks hold the usage so far too.
      timings: Whether the response holds `Timings`.
      service_tier: Whether the response names the service tier.
    """

    usage: bool = False
    continuous_usage: bool = False
    timings: bool = False
    service_tier: bool = False


class Report:
    """Fields that all chunks of a response have in common, with usage and timings counted over all choices.

    Args:
      prefix: Prefix of the response's id.
      num_choices: Number of choices that the engine generates.
    """

    def __init__(
        self, prefix: str, model: ServedModel, prompts: Sequence[Prompt], num_choices: int, options: ReportOptions
    ) -> None:
        self.id = f"{prefix}-{uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._options = options
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._num_tokens = 0
        self._num_cached = 0
        self._num_open = num_choices
        self._times: list[Times] = []

    def count(self, delta: Delta) -> None:
        """Counts the next delta."""
        self._num_tokens += len(delta.token_ids)
        self._num_cached += delta.num_cached
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._times.append(delta.times)

    def whole(self, object_name: str, choices: Sequence[Any], deltas: Sequence[Delta]) -> dict[str, Any]:
        """Returns a response that is no stream.

        Args:
          deltas: All choices that were generated, whole.
        """
        for delta in deltas:
            self.count(delta)
        return {**self._fields(object_name, choices), "usage": self._usage(), **self.timings()}

    def chunk(self, object_name: str, choice: Any) -> dict[str, Any]:
        """Returns a chunk with a choice."""
        fields = self._fields(object_name, [choice])
        if self._options.usage:
            fields["usage"] = self._usage() if self._options.continuous_usage else None
        return fields

    def last_chunks(self, object_name: str) -> Iterator[dict[str, Any]]:
        """Yields the chunk about usage at the end of a stream, if it is requested."""
        if self._options.usage:
            yield {**self._fields(object_name, []), "usage": self._usage()}

    def timings(self) -> dict[str, Timings]:
        """Returns the field `timings` once the last choice has ended, if it is requested."""
        return {"timings": self._timings()} if self._options.timings and not self._num_open else {}

    def _fields(self, object_name: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": self._model.fingerprint,
            **({"service_tier": "default"} if self._options.service_tier else {}),
            "choices": choices,
        }

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            total_tokens=self._num_prompt_tokens + self._num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._num_cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
        )

    def _timings(self) -> Timings:
        arrived = min(times.arrived for times in self._times)
        started = min(times.started for times in self._times)
        first = min(times.first for times in self._times)
        last = max(times.last for times in self._times)
        prompt_n = self._num_prompt_tokens - self._num_cached
        return Timings(
            queue_ms=(started - arrived) * 1000,
            cache_n=self._num_cached,
            prompt_n=prompt_n,
            prompt_ms=(first - arrived) * 1000,
            prompt_per_second=_rate(prompt_n, first - arrived),
            predicted_n=self._num_tokens,
            predicted_ms=(last - first) * 1000,
            predicted_per_second=_rate(self._num_tokens, last - first),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0

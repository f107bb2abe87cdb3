"""Parts of responses: the fields that several endpoints share, and their encoding as JSON and events.

Large JSON is encoded on a worker thread and sent in slices.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NotRequired, TypedDict
from uuid import uuid4

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from ...engine import UNUSED_PREDICTION
from ..generation.admission import admission
from ..generation.delta import Delta
from ..generation.prompts import Prompt
from ..generation.service import Service
from ..observability.request_metrics import Times
from ..text.served_model import ServedModel

_DEPTH: Final = 5
"""Depth to which lists are written in slices: response, choices, choice, log-probabilities, list by token."""

_ENTRIES: Final = 512
"""Number of entries of a long list that are written at a time."""

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

_MARK: Final = uuid4().hex
"""Placeholder for the text of an event."""


class PromptTokensDetails(TypedDict):
    """Details of `Usage.prompt_tokens`."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Details of `Usage.completion_tokens`.

    `accepted_prediction_tokens` and `rejected_prediction_tokens` count tokens of `prediction`, each once for a choice:
    those that were drafted and accepted, and those that were drafted but never accepted. Both are 0 until the choice
    ends, and without speculative decoding.
    """

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """Numbers of tokens of a response. Each prompt counts once, even if it has several choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChoiceEnd(TypedDict):
    """Fields about the end of a choice, in streams and whole responses."""

    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class Timings(TypedDict):
    """Times of a response, with llama.cpp's names.

    `prompt_n` tokens were prefilled and `cache_n` were served from the prefix cache. `prompt_ms` runs from the
    request's arrival to its first token. Its part `queue_ms` ends when the prompt's first chunk is dispatched to the
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


def choice_end(delta: Delta, token_ids: Sequence[int] | None) -> ChoiceEnd:
    """Returns the fields about a choice's end, with its token ids if they are requested."""
    end = ChoiceEnd(finish_reason=delta.reported_reason, stop_reason=delta.stop_reason)
    if token_ids is not None:
        end["token_ids"] = list(token_ids)
    return end


@dataclass(frozen=True, slots=True)
class RequestedReports:
    """Reports that a request asks for.

    Attributes:
      usage: Whether a stream ends with a chunk about usage.
      continuous_usage: Whether the other chunks also hold the usage so far.
      timings: Whether the response holds `Timings`.
      service_tier: Whether the response names the service tier.
    """

    usage: bool = False
    continuous_usage: bool = False
    timings: bool = False
    service_tier: bool = False


class ResponseKind(NamedTuple):
    """Names of a kind of response.

    Attributes:
      id_prefix: Prefix of ids.
      whole: Value of `object` in a whole response.
      chunk: Value of `object` in the chunks of a stream.
    """

    id_prefix: str
    whole: str
    chunk: str


class Report:
    """Builds responses and chunks around their choices, with usage and timings counted over all choices.

    Args:
      kind: Kind of the response.
      num_choices: Number of choices that the engine generates.

    Attributes:
      id: Id of the response.
    """

    def __init__(
        self,
        kind: ResponseKind,
        model: ServedModel,
        prompts: Sequence[Prompt],
        num_choices: int,
        options: RequestedReports,
    ) -> None:
        self.id = f"{kind.id_prefix}-{uuid4().hex}"
        self._kind = kind
        self._constants = {
            "created": int(time.time()),
            "model": model.id,
            "system_fingerprint": model.fingerprint,
            **({"service_tier": "default"} if options.service_tier else {}),
        }
        self._options = options
        self._num_prompt_tokens = sum([len(prompt.token_ids) for prompt in prompts])
        self._num_tokens = 0
        self._num_cached = 0
        self._num_accepted = 0
        self._num_rejected = 0
        self._num_open = num_choices
        self._times: list[Times] = []
        self._around_text: dict[int, tuple[bytes, bytes]] = {}

    def whole(self, choices: Sequence[Any], deltas: Sequence[Delta]) -> dict[str, Any]:
        """Returns the response to a request that does not stream.

        Args:
          choices: Choices of the response.
          deltas: All choices that were generated, whole.
        """
        for delta in deltas:
            self._count(delta)
        timings = {"timings": self._timings()} if self._options.timings else {}
        return {**self._fields(self._kind.whole, choices), "usage": self._usage(), **timings}

    def chunk(self, choice: Any) -> dict[str, Any]:
        """Returns a chunk with a choice."""
        fields = self._fields(self._kind.chunk, [choice])
        if self._options.usage:
            fields["usage"] = self._usage() if self._options.continuous_usage else None
        return fields

    def chunks(self, delta: Delta, choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Counts a delta, and yields its chunks.

        After the end of the last choice, its last chunk holds the timings and a chunk about usage follows, if
        requested.

        Args:
          delta: Next delta of a choice.
          choices: Parts that the delta adds to the choice, one for each chunk.
        """
        self._count(delta)
        is_over = not self._num_open
        for place, choice in enumerate(choices, start=1):
            is_last = is_over and self._options.timings and place == len(choices)
            chunk = self.chunk(choice)
            yield {**chunk, "timings": self._timings()} if is_last else chunk
        if is_over and self._options.usage:
            yield {**self._fields(self._kind.chunk, []), "usage": self._usage()}

    def text_event(self, index: int, text: str, num_tokens: int, choice: Callable[[Delta], Any]) -> bytes | None:
        """Counts a delta that has only text, and returns the event of its chunk. The bytes around the text are encoded
        once.

        Returns None, and counts nothing, if chunks differ by more than their text.

        Args:
          index: Index of the choice.
          text: New text.
          num_tokens: Number of new tokens.
          choice: Returns the part that a delta of text adds to the choice.
        """
        if self._options.continuous_usage:
            return None
        self._num_tokens += num_tokens
        around = self._around_text.get(index)
        if around is None:
            head, _, tail = CHUNKS.encode(self.chunk(choice(Delta(index, _MARK)))).partition(to_json(_MARK))
            around = self._around_text[index] = (head, tail)
        return around[0] + to_json(text) + around[1]

    def _count(self, delta: Delta) -> None:
        self._num_tokens += len(delta.token_ids)
        self._num_cached += delta.num_cached
        if delta.finish_reason is not None:
            self._num_open -= 1
            if delta.prediction is not UNUSED_PREDICTION:
                self._num_accepted += delta.prediction.num_accepted
                self._num_rejected += delta.prediction.num_rejected
            self._times.append(delta.times)

    def _fields(self, object_name: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": object_name, **self._constants, "choices": choices}

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            total_tokens=self._num_prompt_tokens + self._num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._num_cached),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=0,
                accepted_prediction_tokens=self._num_accepted,
                rejected_prediction_tokens=self._num_rejected,
            ),
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


def to_json(value: Any) -> bytes:
    """Returns the JSON of a value, which may contain packed token ids."""
    try:
        return orjson.dumps(value, _unpacked)
    except TypeError:  # an integer of more than 64 bits, which the client sent and gets back
        return json.dumps(value, default=_unpacked).encode()


def _unpacked(value: Any) -> list[int]:
    if isinstance(value, memoryview):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


def large_to_json(value: Any) -> bytes:
    """Returns the same as `to_json`, but lets other threads run between slices."""
    written = bytearray()
    _write(written, value, 0)
    return bytes(written)


def _write(written: bytearray, value: Any, depth: int) -> None:
    is_list = isinstance(value, list | tuple | memoryview)
    if depth < _DEPTH and isinstance(value, dict):
        for place, (key, each) in enumerate(value.items()):
            written += (b"," if place else b"{") + to_json(key) + b":"
            _write(written, each, depth + 1)
        written += b"}" if value else b"{}"
    elif depth < _DEPTH and is_list and len(value) > _ENTRIES:
        for start in range(0, len(value), _ENTRIES):
            written += b"," if start else b"["
            written += to_json(value[start : start + _ENTRIES])[1:-1]
        written += b"]"
    elif depth < _DEPTH and is_list:
        for place, each in enumerate(value):
            written += b"," if place else b"["
            _write(written, each, depth + 1)
        written += b"]" if value else b"[]"
    else:
        written += to_json(value)


@dataclass(frozen=True, slots=True)
class SseEncoder:
    """Encodes events.

    Attributes:
      is_named: Whether an event's type is also sent as the SSE field `event`.
      keep_alive: Bytes that a silent stream sends, so that proxies and clients see that it is alive.
      end: Bytes after the last event of a stream that ended without an error.
    """

    is_named: bool
    keep_alive: bytes = KEEP_ALIVE
    end: bytes = b""

    def encode(self, event: Mapping[str, Any], write: Callable[[Any], bytes] = to_json) -> bytes:
        """Returns the bytes of an event.

        Args:
          write: Returns the JSON of the event; `large_to_json` on worker threads.
        """
        data = b"data: " + write(event) + b"\n\n"
        return b"event: " + event["type"].encode() + b"\n" + data if self.is_named else data


CHUNKS: Final = SseEncoder(is_named=False, end=DONE)
"""Encoder of OpenAI's chat completions and completions."""


MANY_VALUES: Final = 1024
"""Number of tokens and alternatives above which a response takes some milliseconds to encode."""

_SLICE: Final = 256 * 2**10
"""Number of bytes that are passed to a connection at a time."""


class SlicedResponse(Response):
    """A large JSON response, sent in slices so that its memory stays charged until the client has received it."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _SLICE):
            await send({"type": "http.response.body", "body": bytes(body[start : start + _SLICE]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(content: Any) -> Response:
    """Returns a response with this content."""
    return Response(to_json(content), media_type="application/json")


async def made_json_response(service: Service, make: Callable[[], Any], *, num_values: int = 0) -> Response:
    """Returns a response with the content from `make`. Large content is built on a worker thread.

    Args:
      num_values: Number of tokens and alternatives that were generated for the content.
    """
    if admission.get().is_large or num_values >= MANY_VALUES:
        return SlicedResponse(await service.workers.run(lambda: large_to_json(make())))
    return json_response(make())

"""`POST /v1/chat/completions` and `POST /v1/completions`: bodies, routes, and builders of responses.

Completions take raw text or token ids, and can score a prompt with `echo` and `logprobs`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from ...engine import UNUSED_PREDICTION
from ..constraints.tools import CallPiece
from ..errors.request_errors import bad_value, warn
from ..generation.admission import admission
from ..generation.delta import Delta
from ..generation.logprobs import (
    CompletionLogprobs,
    CompletionLogprobsBuilder,
    TokenNames,
    chat_logprobs,
    join_logprobs,
    prompt_logprobs,
    with_top,
)
from ..generation.prompts import Prompt
from ..generation.requests import chat, completion
from ..http.openapi import streamable
from ..http.responses import CHUNKS, ResponseBuilder, respond, to_json
from ..http.routes import JsonRoute, ReadyService
from ..observability.request_metrics import Times
from ..schemas.body import Body, Fields
from ..schemas.generation_fields import ChatFields, CompletionFields
from ..text.served_model import ServedModel
from ..text.tokenizer import Tokenizer
from .response_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceEnd,
    Completion,
    CompletionTokensDetails,
    PromptTokensDetails,
    Timings,
    Usage,
)


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


router = APIRouter(route_class=JsonRoute)

_CHAT: Final = ResponseKind("chatcmpl", "chat.completion", "chat.completion.chunk")

_COMPLETION: Final = ResponseKind("cmpl", "text_completion", "text_completion")

_MARK: Final = uuid4().hex
"""Placeholder for the text of an event."""


class StreamOptions(Fields):
    """`include_obfuscation` is accepted, and nothing is obfuscated."""

    include_usage: bool = False
    """Whether the last chunk of a stream has the counts of tokens."""

    continuous_usage_stats: bool = False
    """Whether each chunk has the counts of tokens so far."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


_NO_OPTIONS: Final = StreamOptions()


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


class StreamingFields(Body):
    """Fields about the form of the response."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: StreamOptions | None = None
    """Options of the stream. They need `stream`."""

    return_timings: bool = False
    """Whether the response has the field `timings`, in milliseconds and under llama.cpp's names."""

    @property
    def reports(self) -> RequestedReports:
        """Reports that the request asks for."""
        stream = self.stream_options or _NO_OPTIONS
        return RequestedReports(stream.include_usage, stream.continuous_usage_stats, self.return_timings)


class TokenNameFields(Body):
    """Fields about the names of tokens."""

    return_tokens_as_token_ids: bool = False
    """Whether log-probabilities name a token by its id, such as `token_id:5`, rather than by its text."""


class ChatBody(ChatFields, StreamingFields, TokenNameFields):
    """`POST /v1/chat/completions`."""

    store: bool = False
    """Accepted without effect: nothing is stored, and true is reported in `x-roost-warnings`."""


class CompletionBody(CompletionFields, StreamingFields, TokenNameFields):
    """`POST /v1/completions`."""


@router.post("/v1/chat/completions", responses=streamable(ChatCompletion, ChatCompletionChunk))
async def create_chat_completion(body: ChatBody, request: Request, service: ReadyService) -> Response:
    """Returns the assistant's next message."""
    if body.store:
        warn("store")
    check_stream(body)
    spec = await chat(body, service, holds_output=not body.stream)
    builder = ChatResponseBuilder(body, service.model, spec.prompts[0])
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


@router.post("/v1/completions", responses=streamable(Completion, Completion))
async def create_completion(body: CompletionBody, request: Request, service: ReadyService) -> Response:
    """Returns continuations of each prompt."""
    service.check_count(len(body.prompts), body.num_candidates)
    check_stream(body)
    if body.num_candidates > body.n and body.stream:
        raise bad_value("best_of", "best_of larger than n cannot be streamed: which is best is known at the end")
    spec = await completion(body, service, holds_output=not body.stream)
    builder = CompletionResponseBuilder(body, service.model, spec.prompts)
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


def check_stream(body: ChatBody | CompletionBody) -> None:
    """Checks that the requested fields can be streamed.

    Raises:
      ApiError: A field cannot be streamed.
    """
    if body.stream_options is not None:
        check_stream_options(stream=body.stream, options=body.stream_options)
    if body.prompt_logprobs is not None and body.stream:
        raise bad_value("prompt_logprobs", "prompt_logprobs cannot be streamed; use echo with logprobs instead")


def check_stream_options(*, stream: bool, options: Fields | None) -> None:
    """Checks that only requests for a stream have stream options.

    Raises:
      ApiError: A request without a stream has options.
    """
    if options is not None and options.model_fields_set and not stream:
        raise bad_value("stream_options", "stream_options needs stream: true")


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


def choice_end(delta: Delta, token_ids: Sequence[int] | None) -> ChoiceEnd:
    """Returns the fields about a choice's end, with its token ids if they are requested."""
    end = ChoiceEnd(finish_reason=delta.reported_reason, stop_reason=delta.stop_reason)
    if token_ids is not None:
        end["token_ids"] = list(token_ids)
    return end


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


class ChatResponseBuilder(ResponseBuilder):
    """Builds chat completions and their chunks."""

    def __init__(self, body: ChatBody, model: ServedModel, prompt: Prompt) -> None:
        options = replace(body.reports, service_tier="service_tier" in (body.model_extra or {}))
        self._report = Report(_CHAT, model, [prompt], body.n, options)
        self.id = self._report.id
        self._body = body
        self._prompt = prompt
        self._tokenizer = model.tokenizer
        self._names = TokenNames(model.tokenizer, by_id=body.return_tokens_as_token_ids) if body.logprobs else None
        self._reports_tokens = body.logprobs or body.return_token_ids

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        response = self._report.whole([self._whole_choice(choice) for choice in choices], choices)
        if self._body.return_token_ids:  # next to the choices, as in vLLM
            response["prompt_token_ids"] = self._prompt.token_ids
        return {**response, **self._prompt_logprobs(choices[0])}

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._body.n):
            start = {"role": "assistant", "content": ""}
            chunk = self._report.chunk({"index": index, "delta": start, "logprobs": None, "finish_reason": None})
            if index == 0 and self._body.return_token_ids:  # all choices have the same prompt
                chunk["prompt_token_ids"] = self._prompt.token_ids
            yield chunk

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        yield from self._report.chunks(delta, self._choices(delta))

    def text_event(self, index: int, text: str, num_tokens: int) -> bytes | None:
        if self._reports_tokens or not text:
            return None
        return self._report.text_event(index, text, num_tokens, self._choice)

    def _choices(self, delta: Delta) -> Sequence[dict[str, Any]]:
        """Returns the parts that a delta adds to its choice: text or calls, then the end, whose `delta` is empty."""
        choices = []
        if delta.text or delta.calls or (delta.token_ids and self._reports_tokens):
            choices.append(self._choice(delta))
        if delta.finish_reason is not None:
            end = choice_end(delta, () if self._body.return_token_ids else None)
            choices.append({"index": delta.index, "delta": {}, "logprobs": None, **end})
        return choices

    def _choice(self, delta: Delta) -> dict[str, Any]:
        pieces = [{"index": piece.index, **_call(piece)} for piece in delta.calls]
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": {"tool_calls": pieces} if pieces else {"content": delta.text},
            "logprobs": None if self._names is None else chat_logprobs(self._names, delta.token_ids, delta.logprobs),
            "finish_reason": None,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _whole_choice(self, choice: Delta) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None, **_whole_content(choice)},
            "logprobs": None if self._names is None else chat_logprobs(self._names, choice.token_ids, choice.logprobs),
            **choice_end(choice, choice.token_ids if self._body.return_token_ids else None),
        }

    def _prompt_logprobs(self, choice: Delta) -> dict[str, Any]:
        num_top = self._body.prompt_logprobs
        if num_top is None:
            return {}
        entries = choice.prompt_logprobs or ()
        return {"prompt_logprobs": prompt_logprobs(self._tokenizer, self._prompt.token_ids, entries, num_top)}


def _whole_content(choice: Delta) -> dict[str, Any]:
    if not choice.calls:
        return {"content": choice.text}
    return {"content": None, "tool_calls": [_call(piece) for piece in choice.calls]}


def _call(piece: CallPiece) -> dict[str, Any]:
    """Returns a piece of a call; its id and name come with the first piece only."""
    if piece.id is None:
        return {"function": {"arguments": piece.arguments}}
    return {
        "id": piece.id,
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    }


class CompletionResponseBuilder(ResponseBuilder):
    """Builds completions and their chunks."""

    def __init__(self, body: CompletionBody, model: ServedModel, prompts: Sequence[Prompt]) -> None:
        num_choices = len(prompts) * body.num_candidates
        self._report = Report(_COMPLETION, model, prompts, num_choices, body.reports)
        self.id = self._report.id
        self._body = body
        self._reports_tokens = body.logprobs is not None or body.return_token_ids
        self._choices = [
            ChoiceBuilder(body, model.tokenizer, prompt) for prompt in prompts for _ in range(body.num_candidates)
        ]

    def repeats_much(self, delta: Delta) -> bool:
        return admission.get().is_large and self._choices[delta.index].is_new

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        kept = enumerate(most_likely(choices, self._body.n, self._body.num_candidates))
        built = [self._choices[each.index].build(replace(each, index=index)) for index, each in kept]
        return self._report.whole(built, choices)

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        return [each.index for each in most_likely(choices, self._body.n, self._body.num_candidates)]

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        has_news = delta.finish_reason is not None or self._choices[delta.index].has_news(delta)
        yield from self._report.chunks(delta, [self._choice(delta)] if has_news else [])

    def text_event(self, index: int, text: str, num_tokens: int) -> bytes | None:
        if self._reports_tokens or not text or self._choices[index].is_new:
            return None
        return self._report.text_event(index, text, num_tokens, self._choice)

    def _choice(self, delta: Delta) -> dict[str, Any]:
        return self._choices[delta.index].build(delta)


def most_likely(choices: Sequence[Delta], kept: int, candidates: int) -> list[Delta]:
    """Returns each prompt's candidates with the highest mean log-probability of their tokens, best first.

    Args:
      choices: All candidates, prompt by prompt.
      kept: Number of candidates to return for each prompt.
      candidates: Number of candidates of each prompt. If all are kept, they stay in their order.
    """
    if kept == candidates:
        return list(choices)
    groups = [choices[start : start + candidates] for start in range(0, len(choices), candidates)]
    return [choice for group in groups for choice in sorted(group, key=_mean_logprob, reverse=True)[:kept]]


def _mean_logprob(choice: Delta) -> float:
    return sum(entry.logprob for entry in choice.logprobs) / max(len(choice.logprobs), 1)


class ChoiceBuilder:
    """Builds one choice. Fields about the prompt are part of the first delta."""

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._prompt: Prompt | None = prompt
        self._logprobs = CompletionLogprobsBuilder(TokenNames(tokenizer, by_id=body.return_tokens_as_token_ids))
        self._reports_tokens = body.logprobs is not None or body.return_token_ids

    @property
    def is_new(self) -> bool:
        """Whether nothing has been built yet."""
        return self._prompt is not None

    def has_news(self, delta: Delta) -> bool:
        """Returns whether a delta has anything to report."""
        reports_prompt = self._prompt is not None and self._body.echo
        return bool(delta.text) or reports_prompt or (bool(delta.token_ids) and self._reports_tokens)

    def build(self, delta: Delta) -> dict[str, Any]:
        """Returns the choice's part of a chunk, or the whole choice."""
        prompt, self._prompt = self._prompt, None
        echo = prompt if self._body.echo else None
        choice = {
            "index": delta.index,
            "text": (echo.text(self._tokenizer) if echo else "") + delta.text,
            "logprobs": self._build_logprobs(echo, delta),
            **choice_end(delta, delta.token_ids if self._body.return_token_ids else None),
        }
        if prompt is not None and self._body.return_token_ids:
            choice["prompt_token_ids"] = prompt.token_ids
        if prompt is not None and (num_top := self._body.prompt_logprobs) is not None:
            entries = delta.prompt_logprobs or ()
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, prompt.token_ids, entries, num_top)
        return choice

    def _build_logprobs(self, echo: Prompt | None, delta: Delta) -> CompletionLogprobs | None:
        num_top = self._body.logprobs
        if num_top is None:
            return None
        if echo is None:
            return self._logprobs.build(delta.token_ids, delta.logprobs)
        entries = [None if entry is None else with_top(entry, num_top) for entry in delta.prompt_logprobs or ()]
        prompt_part = self._logprobs.build(echo.token_ids, entries, echo.pieces(self._tokenizer))
        return join_logprobs(prompt_part, self._logprobs.build(delta.token_ids, delta.logprobs))

"""`POST /v1/chat/completions` and `POST /v1/completions`: bodies, routes, and builders of responses.

Completions take raw text or token ids, and can score a prompt with `echo` and `logprobs`.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from ...engine import UNUSED_PREDICTION
from ..constraints.tool_calls import CallPiece
from ..errors.request_errors import bad_value, warn
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
from ..http.responses import CHUNKS, ResponseBuilder, respond, to_json
from ..http.routes import JsonRoute, ReadyService, streamable
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
    Usage,
)

router = APIRouter(route_class=JsonRoute)

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


class StreamingFields(Body):
    """Fields about the form of the response."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: StreamOptions | None = None
    """Options of the stream. They need `stream`."""


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
    return await respond(service, request, spec, builder, stream=body.stream)


@router.post("/v1/completions", responses=streamable(Completion, Completion))
async def create_completion(body: CompletionBody, request: Request, service: ReadyService) -> Response:
    """Returns continuations of each prompt."""
    service.check_count(len(body.prompts), body.num_candidates)
    check_stream(body)
    if body.num_candidates > body.n and body.stream:
        raise bad_value("best_of", "best_of larger than n cannot be streamed: which is best is known at the end")
    spec = await completion(body, service, holds_output=not body.stream)
    builder = CompletionResponseBuilder(body, service.model, spec.prompts)
    return await respond(service, request, spec, builder, stream=body.stream)


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


class ChoicesBuilder(ResponseBuilder):
    """Builds responses that are lists of choices, and their chunks, with usage counted over all choices.

    Args:
      num_choices: Number of choices that the engine generates.

    Attributes:
      id_prefix: Prefix of ids.
      whole_object: Value of `object` in a whole response.
      chunk_object: Value of `object` in the chunks of a stream.
    """

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, body: StreamingFields, model: ServedModel, prompts: Sequence[Prompt], num_choices: int) -> None:
        self.id = f"{self.id_prefix}-{uuid4().hex}"
        self._constants = {
            "created": int(time.time()),
            "model": model.id,
            "system_fingerprint": model.fingerprint,
        }
        self._stream_options = body.stream_options or _NO_OPTIONS
        self._num_prompt_tokens = sum([len(prompt.token_ids) for prompt in prompts])
        self._num_tokens = self._num_cached = self._num_accepted = self._num_rejected = 0
        self._num_open = num_choices
        self._around_text: dict[int, tuple[bytes, bytes]] = {}

    @abstractmethod
    def whole_choices(self, choices: Sequence[Delta]) -> list[dict[str, Any]]:
        """Returns the choices of a whole response, from all generated ones."""

    @abstractmethod
    def parts(self, delta: Delta) -> Sequence[dict[str, Any]]:
        """Returns the parts that a delta adds to its choice, one for each chunk."""

    def has_text_events(self, index: int) -> bool:
        """Returns whether the next chunks of a choice may differ only by their text."""
        return False

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        for delta in choices:
            self._count(delta)
        return {**self._fields(self.whole_object, self.whole_choices(choices)), "usage": self._usage()}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Returns a chunk with a part of a choice."""
        fields = self._fields(self.chunk_object, [choice])
        if self._stream_options.include_usage:
            fields["usage"] = self._usage() if self._stream_options.continuous_usage_stats else None
        return fields

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yields the chunks of a delta. After the end of the last choice, a chunk about usage follows, if requested."""
        self._count(delta)
        for part in self.parts(delta):
            yield self.chunk(part)
        if not self._num_open and self._stream_options.include_usage:
            yield {**self._fields(self.chunk_object, []), "usage": self._usage()}

    def text_event(self, index: int, text: str, num_tokens: int) -> bytes | None:
        if not text or self._stream_options.continuous_usage_stats or not self.has_text_events(index):
            return None
        self._num_tokens += num_tokens
        around = self._around_text.get(index)
        if around is None:  # the bytes around the text are encoded once
            (part,) = self.parts(Delta(index, _MARK))
            head, _, tail = CHUNKS.encode(self.chunk(part)).partition(to_json(_MARK))
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


def choice_end(delta: Delta, token_ids: Sequence[int] | None) -> ChoiceEnd:
    """Returns the fields about a choice's end, with its token ids if they are requested."""
    reason = "tool_calls" if delta.called else delta.finish_reason
    end = ChoiceEnd(finish_reason=reason, stop_reason=delta.stop_reason)
    if token_ids is not None:
        end["token_ids"] = list(token_ids)
    return end


class ChatResponseBuilder(ChoicesBuilder):
    """Builds chat completions and their chunks."""

    id_prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatBody, model: ServedModel, prompt: Prompt) -> None:
        super().__init__(body, model, [prompt], body.n)
        if "service_tier" in (body.model_extra or {}):
            self._constants["service_tier"] = "default"
        self._body = body
        self._prompt = prompt
        self._tokenizer = model.tokenizer
        self._names = TokenNames(model.tokenizer, by_id=body.return_tokens_as_token_ids) if body.logprobs else None
        self._reports_tokens = body.logprobs or body.return_token_ids

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        response = super().whole(choices)
        if self._body.return_token_ids:  # next to the choices, as in vLLM
            response["prompt_token_ids"] = self._prompt.token_ids
        if (num_top := self._body.prompt_logprobs) is not None:
            entries = choices[0].prompt_logprobs or ()
            prompt_ids = self._prompt.token_ids
            response["prompt_logprobs"] = prompt_logprobs(self._tokenizer, prompt_ids, entries, num_top)
        return response

    def whole_choices(self, choices: Sequence[Delta]) -> list[dict[str, Any]]:
        return [
            {
                "index": choice.index,
                "message": {"role": "assistant", "refusal": None, **_whole_content(choice)},
                "logprobs": chat_logprobs(self._names, choice.token_ids, choice.logprobs) if self._names else None,
                **choice_end(choice, choice.token_ids if self._body.return_token_ids else None),
            }
            for choice in choices
        ]

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._body.n):
            start = {"role": "assistant", "content": ""}
            chunk = self.chunk({"index": index, "delta": start, "logprobs": None, "finish_reason": None})
            if index == 0 and self._body.return_token_ids:  # all choices have the same prompt
                chunk["prompt_token_ids"] = self._prompt.token_ids
            yield chunk

    def has_text_events(self, index: int) -> bool:
        return not self._reports_tokens

    def parts(self, delta: Delta) -> Sequence[dict[str, Any]]:
        """Returns the parts that a delta adds to its choice: text or calls, then the end, whose `delta` is empty."""
        parts: list[dict[str, Any]] = []
        if delta.text or delta.calls or (delta.token_ids and self._reports_tokens):
            pieces = [{"index": piece.index, **_call(piece)} for piece in delta.calls]
            content = {"tool_calls": pieces} if pieces else {"content": delta.text}
            logprobs = chat_logprobs(self._names, delta.token_ids, delta.logprobs) if self._names else None
            part = {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": None}
            parts.append(part | ({"token_ids": delta.token_ids} if self._body.return_token_ids else {}))
        if delta.finish_reason is not None:
            end = choice_end(delta, () if self._body.return_token_ids else None)
            parts.append({"index": delta.index, "delta": {}, "logprobs": None, **end})
        return parts


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


class CompletionResponseBuilder(ChoicesBuilder):
    """Builds completions and their chunks."""

    id_prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: CompletionBody, model: ServedModel, prompts: Sequence[Prompt]) -> None:
        super().__init__(body, model, prompts, len(prompts) * body.num_candidates)
        self._body = body
        self._reports_tokens = body.logprobs is not None or body.return_token_ids
        self._choices = [
            ChoiceBuilder(body, model.tokenizer, prompt) for prompt in prompts for _ in range(body.num_candidates)
        ]

    def repeats_prompt(self, delta: Delta) -> bool:
        return self._choices[delta.index].is_new

    def whole_choices(self, choices: Sequence[Delta]) -> list[dict[str, Any]]:
        kept = enumerate(most_likely(choices, self._body.n, self._body.num_candidates))
        return [self._choices[each.index].build(replace(each, index=index)) for index, each in kept]

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        return [each.index for each in most_likely(choices, self._body.n, self._body.num_candidates)]

    def has_text_events(self, index: int) -> bool:
        return not (self._reports_tokens or self._choices[index].is_new)

    def parts(self, delta: Delta) -> Sequence[dict[str, Any]]:
        choice = self._choices[delta.index]
        reports_tokens = bool(delta.token_ids) and self._reports_tokens
        has_news = delta.text or reports_tokens or (choice.is_new and self._body.echo)
        return [choice.build(delta)] if has_news or delta.finish_reason is not None else []


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

    @property
    def is_new(self) -> bool:
        """Whether nothing has been built yet."""
        return self._prompt is not None

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

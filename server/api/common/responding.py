"""What clients get back: the parts that chat and completions have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict
from uuid import uuid4

from ...errors import ApiError
from ...generation.delta import Delta
from ...generation.prompts import Prompt
from ...text.served_model import ServedModel
from ..openai.schemas import ChatBody, GenerationBody, StreamOptions
from .sse import CHUNKS, Framing


class AnswerWriter(ABC):
    """Writes one answer, either whole or as the chunks of a stream.

    Attributes:
      framing: how the chunks are sent.
    """

    framing: Framing = CHUNKS

    @abstractmethod
    def whole(self, choices: Sequence[Delta]) -> Mapping[str, Any]:
        """The answer to a request that does not stream."""

    def finish(self) -> None:  # noqa: B027 - most writers have nothing to do
        """Called on the event loop after `whole`, which may run on a worker thread."""

    def repeats_much(self, delta: Delta) -> bool:
        """Whether the chunks of a delta repeat so much of a prompt that a worker thread writes them."""
        return False

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        """Indices of those choices that `whole` answers with, in the order of the answer."""
        return range(len(choices))

    def opening(self) -> Iterator[Mapping[str, Any]]:
        """The chunks that come before any token."""
        yield from ()

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Mapping[str, Any]]:
        """The chunks that tell of a delta; none where there is nothing to tell yet."""

    @abstractmethod
    def closing(self) -> Iterator[Mapping[str, Any]]:
        """The chunks that come after the last choice has finished."""

    def failing(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        """The chunks that end a stream in which something went wrong."""
        yield error.body


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChoiceEnd(TypedDict):
    """How every choice, streamed or whole, tells of its end and, if asked, of its tokens."""

    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is the same in all chunks of an answer."""

    id: str
    created: int
    model: ServedModel
    service_tier: dict[str, str]

    @classmethod
    def new(cls, prefix: str, body: GenerationBody, model: ServedModel) -> "Envelope":
        """Clients of chat that name a tier get to know which one they had: there is one."""
        named = isinstance(body, ChatBody) and "service_tier" in (body.model_extra or {})
        tier = {"service_tier": "default"} if named else {}
        return cls(f"{prefix}-{uuid4().hex}", int(time.time()), model, tier)

    def wrap(self, object_name: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.model.fingerprint,
            **self.service_tier,
            "choices": choices,
        }


def usage(prompts: Sequence[Prompt], completion_tokens: int, cached_tokens: int) -> Usage:
    """Each prompt counts once, however many choices go on from it."""
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
    )


def total_usage(prompts: Sequence[Prompt], choices: Sequence[Delta]) -> Usage:
    return usage(prompts, sum(len(c.token_ids) for c in choices), sum(c.num_cached for c in choices))


def choice_end(body: GenerationBody, delta: Delta) -> ChoiceEnd:
    finish_reason = "tool_calls" if delta.called else delta.finish_reason
    end = ChoiceEnd(finish_reason=finish_reason, stop_reason=delta.stop_reason)
    if body.return_token_ids:
        end["token_ids"] = list(delta.token_ids)
    return end


class UsageReport:
    """The usage of a stream: in a chunk of its own at the end, or in every chunk too, or not at all."""

    def __init__(self, body: GenerationBody, prompts: Sequence[Prompt]) -> None:
        self._options = body.stream_options or StreamOptions()
        self._prompts = prompts
        self._completion_tokens = 0
        self._cached_tokens = 0

    def count(self, delta: Delta) -> None:
        self._completion_tokens += len(delta.token_ids)
        self._cached_tokens += delta.num_cached

    def fields(self) -> dict[str, Usage | None]:
        """What a chunk with choices says of usage."""
        if not self._options.include_usage:
            return {}
        return {"usage": self._now() if self._options.continuous_usage_stats else None}

    def last_fields(self) -> dict[str, Usage] | None:
        """What the last chunk, which has no choices, says; None where there is to be none."""
        return {"usage": self._now()} if self._options.include_usage else None

    def _now(self) -> Usage:
        return usage(self._prompts, self._completion_tokens, self._cached_tokens)

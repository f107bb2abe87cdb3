"""Anthropic's messages: a body becomes chat's, and what chat makes of it blocks of content."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from ..engine import FinishReason
from .answers import AnswerWriter
from .error_answers import anthropic_body
from .errors import ApiError
from .framing import PINGED_EVENTS
from .generation import Delta
from .messages_schema import MessagesBody
from .prompts import Prompt
from .schema import ChatBody
from .served_model import ServedModel


def chat_of(body: MessagesBody) -> ChatBody:
    """The same request to chat. Where the last message is the assistant's, the answer goes on with it."""
    return ChatBody(
        messages=body.chat_messages,
        continue_final_message=body.is_begun,
        max_completion_tokens=body.max_tokens,
        stop=body.stop_sequences or None,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
    )


class MessageWriter(AnswerWriter):
    """
    Attributes:
      id: the message's.
    """

    framing = PINGED_EVENTS

    def __init__(self, model: ServedModel, prompt: Prompt) -> None:
        self.id = f"msg_{uuid4().hex}"
        self._model = model
        self._prompt = prompt
        self._num_tokens = 0
        self._end = Delta(0)

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        (choice,) = choices
        content = [{"type": "text", "text": choice.text}]
        return {**self._message(content, len(choice.token_ids)), **_stop(choice)}

    def opening(self) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._message([], 0)}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "ping"}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        self._num_tokens += len(delta.token_ids)
        self._end = delta
        if delta.text:
            text = {"type": "text_delta", "text": delta.text}
            yield {"type": "content_block_delta", "index": 0, "delta": text}

    def closing(self) -> Iterator[dict[str, Any]]:
        yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": _stop(self._end), "usage": self._usage(self._num_tokens)}
        yield {"type": "message_stop"}

    def failing(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        yield anthropic_body(error)

    def _message(self, content: list[dict[str, Any]], output_tokens: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model.id,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> dict[str, int]:
        return {
            "input_tokens": len(self._prompt.token_ids),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        }


def _stop(delta: Delta) -> dict[str, str | None]:
    if isinstance(delta.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": delta.stop_reason}
    cut = delta.finish_reason is FinishReason.LENGTH
    return {"stop_reason": "max_tokens" if cut else "end_turn", "stop_sequence": None}

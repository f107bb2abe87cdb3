"""Anthropic's messages: a body becomes chat's, and what chat makes of it blocks of content."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from ....engine import PREFILL_BLOCK, FinishReason
from ...error_responses import anthropic_body
from ...errors import ApiError, bad_value
from ...generation.delta import Delta
from ...generation.prompts import Prompt
from ...generation.tools import CallPiece
from ...text.served_model import ServedModel
from ..common.responding import AnswerWriter
from ..common.sse import PINGED_EVENTS
from ..openai.response_format_schemas import JsonSchema, ResponseFormat
from ..openai.schemas import ChatBody, TemplateFields
from ..openai.tool_schemas import ToolChoice
from .schemas import AnthropicOtherTool, CountTokensBody, MessagesBody

_EMPTY_TEXT: Final = {"type": "text", "text": ""}


def prompt_of(body: CountTokensBody) -> TemplateFields:
    """What becomes the prompt. Where the last message is the assistant's, the answer goes on with it."""
    return TemplateFields(
        continue_final_message=body.is_begun,
        tools=[tool.as_chat() for tool in body.functions],
        tool_choice=_tool_choice(body),
    )


def chat_of(body: MessagesBody) -> ChatBody:
    """The same request to chat.

    Raises:
      ApiError: it asks for a tool that the server cannot run.
    """
    prompt, asked = prompt_of(body), body.output_config.format or body.output_format
    schema = None if asked is None else JsonSchema(schema=asked.schema_)
    return ChatBody(
        messages=body.chat_messages,
        continue_final_message=prompt.continue_final_message,
        tools=prompt.tools,
        tool_choice=prompt.tool_choice,
        parallel_tool_calls=not body.tool_choice.disable_parallel_tool_use,
        response_format=None if schema is None else ResponseFormat(type="json_schema", json_schema=schema),
        max_completion_tokens=body.max_tokens,
        stream=body.stream,
        stop=body.stop_sequences or None,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        priority=body.priority,
        queue_timeout=body.queue_timeout,
        timeout=body.timeout,
        cache_salt=body.cache_salt,
    )


def _tool_choice(body: CountTokensBody) -> ToolChoice:
    for tool in body.tools:
        if isinstance(tool, AnthropicOtherTool) and body.tool_choice.name == tool.name:
            raise bad_value("tool_choice", f"tool_choice: this server runs no tools of the type {tool.type[:60]!r}")
    return body.tool_choice.as_chat()


class MessageWriter(AnswerWriter):
    """
    Attributes:
      id: the message's.

    Args:
      counts_cache: whether the whole blocks of the prompt that were not cached count as added to the prefix cache.
    """

    framing = PINGED_EVENTS

    def __init__(self, model: ServedModel, prompt: Prompt, *, counts_cache: bool = False) -> None:
        self._counts_cache = counts_cache
        self.id = f"msg_{uuid4().hex}"
        self._model = model
        self._prompt = prompt
        self._num_tokens = 0
        self._num_cached = 0
        self._num_blocks = 0
        self._end = Delta(0)

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        (choice,) = choices
        self._num_cached = choice.num_cached
        calls = [_tool_use(call, _parsed(call.arguments)) for call in choice.calls]
        content = calls or [{"type": "text", "text": choice.text}]
        return {**self._message(content, len(choice.token_ids)), **_stop(choice)}

    def opening(self) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._message([], 0)}
        yield {"type": "ping"}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """A block begins when it is known what it is."""
        self._num_tokens += len(delta.token_ids)
        self._num_cached += delta.num_cached
        self._end = delta
        if delta.text:
            if not self._num_blocks:
                yield from self._begin(_EMPTY_TEXT)
            yield self._block_delta({"type": "text_delta", "text": delta.text})
        for piece in delta.calls:
            if piece.id is not None:
                yield from self._begin(_tool_use(piece, {}))
            if piece.arguments:
                yield self._block_delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def closing(self) -> Iterator[dict[str, Any]]:
        if not self._num_blocks:
            yield from self._begin(_EMPTY_TEXT)
        yield self._stopped_block()
        yield {"type": "message_delta", "delta": _stop(self._end), "usage": self._usage(self._num_tokens)}
        yield {"type": "message_stop"}

    def failing(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        yield anthropic_body(error)

    def _begin(self, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The next block; the one before it ends."""
        if self._num_blocks:
            yield self._stopped_block()
        yield {"type": "content_block_start", "index": self._num_blocks, "content_block": block}
        self._num_blocks += 1

    def _block_delta(self, delta: dict[str, str]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _stopped_block(self) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": self._num_blocks - 1}

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
        """In this API `input_tokens` are those that were neither served from the prefix cache nor added to it. Before
        the first token nobody knows how many were."""
        num_read = len(self._prompt.token_ids) - self._num_cached
        num_added = num_read // PREFILL_BLOCK * PREFILL_BLOCK if self._counts_cache else 0
        return {
            "input_tokens": num_read - num_added,
            "cache_creation_input_tokens": num_added,
            "cache_read_input_tokens": self._num_cached,
            "output_tokens": output_tokens,
        }


def _tool_use(call: CallPiece, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _parsed(arguments: str) -> dict[str, Any]:
    """Empty where an answer was cut short within them: this API has no place for half of them."""
    try:
        parsed: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return parsed


def _stop(delta: Delta) -> dict[str, str | None]:
    if delta.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(delta.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": delta.stop_reason}
    cut = delta.finish_reason is FinishReason.LENGTH
    return {"stop_reason": "max_tokens" if cut else "end_turn", "stop_sequence": None}

"""OpenAI's responses: a body becomes chat's, and what chat makes of it an object that grows event by event."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

from ....engine import FinishReason, SamplingParams
from ...errors import ApiError, bad_value
from ...generation.delta import Delta, DeltaJoiner
from ...generation.prompts import Prompt
from ...generation.tools import CallJoiner, CallPiece
from ...text.served_model import ServedModel
from ..common.logprobs import response_delta_logprobs, response_logprobs
from ..common.responding import AnswerWriter
from ..common.sse import TYPED_EVENTS
from .responses_schemas import LOGPROBS, ItemReference, ResponseBody, ResponseTool
from .schemas import ChatBody, ChatMessage
from .tool_schemas import CalledFunction, OtherTool, ToolCall

_TEXT_PLACE: Final = {"output_index": 0, "content_index": 0}
"""There is one message, with one text, or none but calls."""

_NO_ANSWER: Final = ChatMessage(role="assistant", content="")


def chat_of(body: ResponseBody, conversation: Sequence[ChatMessage]) -> ChatBody:
    """The same request to chat.

    Args:
      conversation: all messages but the instructions.

    Raises:
      ApiError: it asks for what chat cannot do.
    """
    if body.top_logprobs is not None and not body.wants_logprobs:
        raise bad_value("top_logprobs", f'top_logprobs needs include: ["{LOGPROBS}"]')
    choice = body.tool_choice
    if isinstance(choice, OtherTool):
        raise bad_value("tool_choice", f"tool_choice: this server runs no tools of the type {choice.type[:60]!r}")
    instructions = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    return ChatBody(
        messages=[*instructions, *conversation],
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        priority=body.priority,
        queue_timeout=body.queue_timeout,
        timeout=body.timeout,
        cache_salt=body.cache_salt,
        logprobs=body.wants_logprobs,
        top_logprobs=body.top_logprobs,
        response_format=body.text.format.as_chat(),
        tools=[tool.as_chat() for tool in body.functions],
        tool_choice=choice if isinstance(choice, str) else choice.as_chat(),
        parallel_tool_calls=body.parallel_tool_calls,
    )


def messages_of(body: ResponseBody, referred: Mapping[str, ChatMessage]) -> list[ChatMessage]:
    """Returns the input as chat knows it.

    Args:
      referred: the messages that items of stored responses stand for, by the items' ids.
    """
    if isinstance(body.input, str):
        return [ChatMessage(role="user", content=body.input)]
    return [
        message
        for item in body.input
        for message in ([referred[item.id]] if isinstance(item, ItemReference) else item.as_chat())
    ]


class ResponseWriter(AnswerWriter):
    """
    Attributes:
      id: the response's.

    Args:
      params: what the engine was told; the response shows what of it the client left to us.
      keep: gets the response in its final state, and the answer.
    """

    framing = TYPED_EVENTS

    def __init__(
        self,
        body: ResponseBody,
        model: ServedModel,
        prompt: Prompt,
        params: SamplingParams,
        keep: Callable[[dict[str, Any], ChatMessage], None],
    ) -> None:
        self.id = f"resp_{uuid4().hex}"
        self._item_id = self.id.replace("resp_", "msg_")  # items are found again by their response's id
        self._created = int(time.time())
        self._body = body
        self._model = model
        self._prompt = prompt
        self._params = params
        self._keep = keep
        self._numbers = itertools.count()
        self._answer = DeltaJoiner()
        self._unsent = DeltaJoiner()
        self._call = CallJoiner()
        self._has_message = False
        self._call_item_id = ""
        self._ended: tuple[dict[str, Any], ChatMessage] | None = None

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        (choice,) = choices
        response = self._finished(choice)
        self._ended = response, _answer(choice)
        return response

    def finish(self) -> None:
        if self._ended is not None:
            self._keep(*self._ended)

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._event("response.created", response=self.begun())
        yield self._event("response.in_progress", response=self.begun())

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """An item begins when it is known whether it is a message or a call."""
        self._answer.add(delta)
        for piece in delta.calls:
            yield from self._call_chunks(piece)
        if delta.text or (self._body.wants_logprobs and not delta.calls):
            self._unsent.add(delta)
        if delta.text or (self._has_message and delta.token_ids and self._body.wants_logprobs):
            yield from self._text_chunks()

    def closing(self) -> Iterator[dict[str, Any]]:
        choice = self._answer.take()
        response = self._finished(choice)
        if choice.calls:
            yield from self._ended_call(choice.calls[-1], response["output"][-1])
        else:
            yield from self._ended_message(choice, response["output"][0])
        self._keep(response, _answer(choice))
        yield self._event(f"response.{response['status']}", response=response)

    def failing(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """What somebody cancelled in the background has not failed, but there is no other event for it."""
        is_cancelled = self._body.background and error.body["error"]["code"] == "request_aborted"
        response = self._response("cancelled") if is_cancelled else self._failed(error)
        self._keep(response, _NO_ANSWER)
        yield self._event("response.failed", response=response)

    def begun(self) -> dict[str, Any]:
        """The response before there is anything of an answer."""
        return self._response("in_progress")

    def _failed(self, error: ApiError) -> dict[str, Any]:
        code = "rate_limit_exceeded" if error.status_code == 429 else "server_error"
        return self._response("failed", error={"code": code, "message": error.body["error"]["message"]})

    def _finished(self, choice: Delta) -> dict[str, Any]:
        cut = choice.finish_reason is FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        return self._response(
            status,
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            completed_at=None if cut else int(time.time()),
            output=self._call_items(choice.calls, status) or [self._item(status, [self._part(choice)])],
            usage=self._usage(choice),
        )

    def _text_chunks(self) -> Iterator[dict[str, Any]]:
        """The unsent part of the text; first of all, that there is a text."""
        if not self._has_message:
            self._has_message = True
            yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
            yield self._text_event("response.content_part.added", part=self._part(Delta(0)))
        news = self._unsent.take() if self._unsent else Delta(0)
        if news.text or (news.token_ids and self._body.wants_logprobs):
            yield self._text_event("response.output_text.delta", delta=news.text, logprobs=self._delta_logprobs(news))

    def _ended_message(self, choice: Delta, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._text_chunks()
        logprobs = self._delta_logprobs(choice)
        yield self._text_event("response.output_text.done", text=choice.text, logprobs=logprobs)
        yield self._text_event("response.content_part.done", part=item["content"][0])
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _call_chunks(self, piece: CallPiece) -> Iterator[dict[str, Any]]:
        if piece.id is not None:
            if piece.index:
                (before,) = self._call.joined()
                yield from self._ended_call(before, self._call_item(before, "completed"))
            self._call = CallJoiner()
            item = self._call_item(replace(piece, arguments=""), "in_progress")
            self._call_item_id = item["id"]
            yield self._event("response.output_item.added", output_index=piece.index, item=item)
        self._call.add(piece)
        if piece.arguments:
            place = {"item_id": self._call_item_id, "output_index": piece.index}
            yield self._event("response.function_call_arguments.delta", **place, delta=piece.arguments)

    def _ended_call(self, call: CallPiece, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = {"item_id": item["id"], "output_index": call.index}
        yield self._event("response.function_call_arguments.done", **place, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=call.index, item=item)

    def _response(self, status: str, **news: Any) -> dict[str, Any]:
        body = self._body
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": body.background,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": self._params.max_tokens,
            "metadata": body.metadata,
            "model": self._model.id,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "temperature": self._params.temperature if body.temperature is None else body.temperature,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_unset=True)},
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [_described(tool) for tool in body.functions],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self._params.top_p if body.top_p is None else body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": body.user,
            **news,
        }

    def _call_items(self, calls: Sequence[CallPiece], status: str) -> list[dict[str, Any]]:
        """If the answer was cut short, it was within the last call."""
        last = len(calls) - 1
        return [self._call_item(call, status if call.index == last else "completed") for call in calls]

    def _call_item(self, call: CallPiece, status: str) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": f"{self.id.replace('resp_', 'fc_')}_c{call.index}",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": status,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "message", "id": self._item_id, "status": status, "role": "assistant", "content": content}

    def _part(self, choice: Delta) -> dict[str, Any]:
        logprobs = (
            response_logprobs(self._model.tokenizer, choice.token_ids, choice.logprobs)
            if self._body.wants_logprobs
            else []
        )
        return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": logprobs}

    def _delta_logprobs(self, delta: Delta) -> list[Any]:
        if not self._body.wants_logprobs:
            return []
        return list(response_delta_logprobs(self._model.tokenizer, delta.token_ids, delta.logprobs))

    def _usage(self, choice: Delta) -> dict[str, Any]:
        input_tokens, output_tokens = len(self._prompt.token_ids), len(choice.token_ids)
        return {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": choice.num_cached, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        }

    def _text_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._item_id, **_TEXT_PLACE, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


def _answer(choice: Delta) -> ChatMessage:
    """As the conversation goes on from it."""
    calls = [
        ToolCall(id=call.id or "", function=CalledFunction(name=call.name or "", arguments=call.arguments))
        for call in choice.calls
    ]
    return ChatMessage(role="assistant", content=choice.text, tool_calls=calls or None)


def _described(tool: ResponseTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }

"""Responses of `/v1/responses`: their schemas for `/openapi.json`, and the builder that writes them, event by event."""

import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NotRequired, TypedDict

from ....engine import FinishReason
from ...constraints.tool_calls import CallJoiner, CallPiece
from ...errors.request_errors import ApiError
from ...generation.admission import admission
from ...generation.delta import Delta, DeltaJoiner
from ...generation.logprobs import ResponseTokenLogprob, response_logprobs
from ...generation.spec import GenerationSpec
from ...http.responses import ResponseBuilder, SseEncoder
from ...openai.response_schemas import ItemUsage, item_usage
from ...text.chat_format import ConversationMessage, FunctionCall
from ...text.served_model import ServedModel
from .body import ResponseBody
from .input_items import call_item, message_item


class OutputText(TypedDict):
    """Text of an output message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseTokenLogprob]


class OutputMessage(TypedDict):
    """Output item with a text."""

    type: Literal["message"]
    id: str
    status: str
    role: Literal["assistant"]
    content: list[OutputText]


class OutputFunctionCall(TypedDict):
    """Output item with a call."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class StoredError(TypedDict):
    """Error of a failed response."""

    code: str
    message: str


class ResponseConversation(TypedDict):
    """Conversation that a response continues."""

    id: str


class ResponseObject(TypedDict):
    """Response of `/v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: StoredError | None
    frequency_penalty: float
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputFunctionCall]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ItemUsage | None
    user: str | None
    conversation: NotRequired[ResponseConversation]
    inexact: NotRequired[bool]


class InputTokens(TypedDict):
    """Response of `/v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactionOutput(TypedDict):
    """Item that stands for all messages of a conversation so far."""

    type: Literal["compaction"]
    id: str
    encrypted_content: str


class CompactedInput(TypedDict):
    """Response of `/v1/responses/compact`."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[CompactionOutput]
    usage: ItemUsage


class ResponseEvent(TypedDict):
    """Event of a streamed response. Further fields depend on its type."""

    type: str
    sequence_number: int


TYPED_EVENTS: Final = SseEncoder(is_named=True)
"""Encoder of events."""

_ECHOED: Final = (
    *("background", "frequency_penalty", "instructions", "max_tool_calls", "metadata", "parallel_tool_calls"),
    *("presence_penalty", "previous_response_id", "prompt_cache_key", "safety_identifier", "store", "truncation"),
    "user",
)
"""Fields of the body that a response repeats."""

NO_OUTPUT: Final = ConversationMessage("assistant", "")


def new_response_id() -> str:
    """Returns the id of a new response."""
    return f"resp_{admission.get().new_id('response')}"


def error_event(error: ApiError, number: int) -> dict[str, Any]:
    """Returns the event that ends a stream which could not be sent to its end.

    Args:
      number: Number of the last event before it.
    """
    detail = error.body["error"]
    return {"type": "error", "sequence_number": number, **{name: detail[name] for name in ("code", "message", "param")}}


def compacted(output: list[dict[str, Any]], usage: ItemUsage) -> dict[str, Any]:
    """Returns the result of a compaction."""
    fields = {"id": new_response_id(), "object": "response.compaction", "created_at": int(time.time())}
    return {**fields, "output": output, "usage": usage}


class ResponsesBuilder(ResponseBuilder):
    """Builds responses and their events.

    Args:
      spec: Spec of its only choice; the response reports the parameters that the client left out.
      keep: Stores the final response and its message before the client gets them.
      response_id: Id of the response; None makes one.
      created: Time of its creation, in seconds since 1970; None is now.

    Attributes:
      ended: The final response and its message; None before the end.
    """

    sse = TYPED_EVENTS

    def __init__(
        self,
        body: ResponseBody,
        model: ServedModel,
        spec: GenerationSpec,
        keep: Callable[[dict[str, Any], ConversationMessage], Awaitable[None]] | None = None,
        response_id: str | None = None,
        created: int | None = None,
    ) -> None:
        self.id = response_id or new_response_id()
        self._item_id = self.id.replace("resp_", "msg_")  # the store finds items by their response's id
        self._created = created or int(time.time())
        self._is_inexact = False
        self._body = body
        self._model = model
        self._spec = spec
        self._keep = keep
        self._numbers = itertools.count()
        self._output = DeltaJoiner()
        self._unsent = DeltaJoiner()
        self._call = CallJoiner()
        self._has_message = False
        self.ended: tuple[dict[str, Any], ConversationMessage] | None = None

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        (choice,) = choices
        return self._finished(choice)

    async def finish(self) -> None:
        keep, self._keep = self._keep, None  # a response that cannot be kept fails, and is not kept as a failed one
        if self.ended is not None and keep is not None:
            await keep(*self.ended)

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._event(
            "response.created", response=self.response("queued" if self._body.background else "in_progress")
        )
        yield self._event("response.in_progress", response=self.response("in_progress"))

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yields the events of a delta. An item begins when it is known whether it is a message or a call."""
        self._output.add(delta)
        for piece in delta.calls:
            yield from self._call_chunks(piece)
        if not delta.calls:
            self._unsent.add(delta)
        if delta.text:
            yield from self._text_chunks()

    def closing(self) -> Iterator[dict[str, Any]]:
        choice = self._output.take()
        response = self._finished(choice)
        if choice.calls:
            yield from self._ended_call(choice.calls[-1], response["status"])
        else:
            (item,) = response["output"]
            (part,) = item["content"]
            yield from self._text_chunks()
            yield self._text_event("response.output_text.done", text=choice.text, logprobs=part["logprobs"])
            yield self._text_event("response.content_part.done", part=part)
            yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """Yields the event about an error. A cancelled background response has the same event, since OpenAI's API has
        no other.
        """
        is_cancelled = self._body.background and error.body["error"]["code"] == "request_aborted"
        code = "rate_limit_exceeded" if error.status_code == 429 else "server_error"
        detail = {"code": code, "message": error.body["error"]["message"]}
        response = self.response("cancelled") if is_cancelled else self.response("failed", error=detail)
        self.ended = response, NO_OUTPUT
        yield self._event("response.failed", response=response)

    def replay(self, deltas: Sequence[Delta], num_events: int, *, is_exact: bool) -> None:
        """Replays deltas whose events another replica has sent, and continues with the next event number.

        Args:
          is_exact: Whether the response continues exactly as on that replica. If not, it is marked as inexact, unless
            it has no output yet.
        """
        self._is_inexact = bool(deltas) and not is_exact
        for delta in deltas:
            for _ in self.chunks(delta):
                pass
        self._numbers = itertools.count(num_events)

    def response(self, status: str, **changes: Any) -> dict[str, Any]:
        """Returns the response with a status, without output unless `changes` has it."""
        body, params = self._body, self._spec.params[0]
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "max_output_tokens": params.max_tokens,
            "model": self._model.id,
            "output": [],
            "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "service_tier": "default",
            "temperature": params.temperature if body.temperature is None else body.temperature,
            "text": body.text.described(),
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [dict(tool) for tool in body.functions],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p if body.top_p is None else body.top_p,
            "usage": None,
            **{name: getattr(body, name) for name in _ECHOED},
            **({} if body.conversation_id is None else {"conversation": {"id": body.conversation_id}}),
            **({"inexact": True} if self._is_inexact else {}),
            **changes,
        }

    def _finished(self, choice: Delta) -> dict[str, Any]:
        """Returns the final response, which is noted with its message."""
        cut = choice.finish_reason is FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        output = [self._call_item(call, "completed") for call in choice.calls[:-1]]
        output += [self._call_item(call, status) for call in choice.calls[-1:]]  # truncated output ends within it
        response = self.response(
            status,
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            completed_at=None if cut else int(time.time()),
            output=output or [self._item(status, [self._part(choice)])],
            usage=item_usage(len(self._spec.prompts[0].token_ids), choice.num_cached, len(choice.token_ids)),
        )
        calls = tuple(FunctionCall(call.id or "", call.name or "", call.arguments) for call in choice.calls)
        self.ended = response, ConversationMessage("assistant", choice.text, calls)
        return response

    def _text_chunks(self) -> Iterator[dict[str, Any]]:
        """Yields the events about the unsent part of the text, beginning with the event that starts the text."""
        if not self._has_message:
            self._has_message = True
            yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
            yield self._text_event("response.content_part.added", part=self._part(Delta(0)))
        unsent = self._unsent.take() if self._unsent else Delta(0)
        if unsent.text or (unsent.token_ids and self._body.wants_logprobs):
            logprobs = self._logprobs(unsent)
            yield self._text_event("response.output_text.delta", delta=unsent.text, logprobs=logprobs)

    def _call_chunks(self, piece: CallPiece) -> Iterator[dict[str, Any]]:
        if piece.id is not None:
            if piece.index:
                (before,) = self._call.joined()
                yield from self._ended_call(before, "completed")
            self._call = CallJoiner()
            item = self._call_item(replace(piece, arguments=""), "in_progress")
            yield self._event("response.output_item.added", output_index=piece.index, item=item)
        self._call.add(piece)
        if piece.arguments:
            yield self._call_event("delta", piece, delta=piece.arguments)

    def _ended_call(self, call: CallPiece, status: str) -> Iterator[dict[str, Any]]:
        yield self._call_event("done", call, name=call.name, arguments=call.arguments)
        item = self._call_item(call, status)
        yield self._event("response.output_item.done", output_index=call.index, item=item)

    def _call_item(self, call: CallPiece, status: str) -> dict[str, Any]:
        return call_item(self._call_id(call), call, status)

    def _call_id(self, call: CallPiece) -> str:
        return f"{self.id.replace('resp_', 'fc_')}_c{call.index}"

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return message_item(self._item_id, "assistant", content, status)

    def _part(self, choice: Delta) -> dict[str, Any]:
        logprobs = self._logprobs(choice)
        return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, delta: Delta) -> list[ResponseTokenLogprob]:
        if not self._body.wants_logprobs:
            return []
        return response_logprobs(self._model.tokenizer, delta.token_ids, delta.logprobs)

    def _call_event(self, step: str, call: CallPiece, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self._call_id(call), "output_index": call.index}
        return self._event(f"response.function_call_arguments.{step}", **place, **fields)

    def _text_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Returns an event of the text. The output is either one message with one text, or calls."""
        return self._event(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

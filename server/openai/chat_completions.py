"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ..constraints.tools import CallPiece
from ..errors.request_warnings import warn
from ..generation.delta import Delta
from ..generation.logprobs import ChatLogprobs, TokenNames, chat_logprobs, prompt_logprobs
from ..generation.prompts import Prompt
from ..generation.requests import chat
from ..generation.service import Service
from ..generation.spec import GenerationSpec
from ..http.openapi import streamable
from ..http.response_parts import Report, ResponseKind, choice_end
from ..http.routes import JsonRoute, ReadyService
from ..http.streaming import ResponseBuilder, respond
from ..text.served_model import ServedModel
from .response_schemas import ChatCompletion, ChatCompletionChunk
from .schemas import ChatBody, check_stream

router = APIRouter(route_class=JsonRoute)

_KIND: Final = ResponseKind("chatcmpl", "chat.completion", "chat.completion.chunk")


@router.post("/v1/chat/completions", responses=streamable(ChatCompletion, ChatCompletionChunk))
async def create_chat_completion(body: ChatBody, request: Request, service: ReadyService) -> Response:
    """Returns the assistant's next message."""
    if body.store:
        warn("store")
    spec = await chat_spec(body, service)
    builder = ChatResponseBuilder(body, service.model, spec.prompts[0])
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


async def chat_spec(body: ChatBody, service: Service) -> GenerationSpec:
    """Converts a body to a spec.

    Raises:
      ApiError: The body cannot be converted.
    """
    check_stream(body)
    return replace(await chat(body, service), holds_output=not body.stream)


class ChatResponseBuilder(ResponseBuilder):
    """Builds chat completions and their chunks."""

    def __init__(self, body: ChatBody, model: ServedModel, prompt: Prompt) -> None:
        options = replace(body.reports, service_tier="service_tier" in (body.model_extra or {}))
        self._report = Report(_KIND, model, [prompt], body.n, options)
        self.id = self._report.id
        self._body = body
        self._prompt = prompt
        self._tokenizer = model.tokenizer
        self._names = TokenNames(model.tokenizer, by_id=body.return_tokens_as_token_ids) if body.logprobs else None
        self._reports_tokens = body.logprobs or body.return_token_ids

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        response = self._report.whole([self._whole_choice(choice) for choice in choices], choices)
        return {**response, **self._prompt_token_ids(), **self._prompt_logprobs(choices[0])}

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._body.n):
            start = {"role": "assistant", "content": ""}
            chunk = self._report.chunk({"index": index, "delta": start, "logprobs": None, "finish_reason": None})
            yield {**chunk, **self._prompt_token_ids()} if index == 0 else chunk

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        return self._report.chunks(delta, self._choices(delta))

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
            end = choice_end(replace(delta, token_ids=()), with_ids=self._body.return_token_ids)
            choices.append({"index": delta.index, "delta": {}, "logprobs": None, **end})
        return choices

    def _choice(self, delta: Delta) -> dict[str, Any]:
        choice = {
            "index": delta.index,
            "delta": _content(delta),
            "logprobs": self._logprobs(delta),
            "finish_reason": None,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _whole_choice(self, choice: Delta) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None, **_whole_content(choice)},
            "logprobs": self._logprobs(choice),
            **choice_end(choice, with_ids=self._body.return_token_ids),
        }

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if self._names is None:
            return None
        return chat_logprobs(self._names, delta.token_ids, delta.logprobs)

    def _prompt_token_ids(self) -> dict[str, Any]:
        """Returns the prompt's ids next to the choices, as in vLLM: all choices have the same prompt."""
        return {"prompt_token_ids": self._prompt.token_ids} if self._body.return_token_ids else {}

    def _prompt_logprobs(self, choice: Delta) -> dict[str, Any]:
        num_top = self._body.prompt_logprobs
        if num_top is None:
            return {}
        entries = choice.prompt_logprobs or ()
        return {"prompt_logprobs": prompt_logprobs(self._tokenizer, self._prompt.token_ids, entries, num_top)}


def _content(delta: Delta) -> dict[str, Any]:
    if not delta.calls:
        return {"content": delta.text}
    return {"tool_calls": [{"index": piece.index, **_call(piece)} for piece in delta.calls]}


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

"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ...generation.delta import Delta
from ...generation.output_constraint import chat_wish
from ...generation.prompts import Prompt
from ...generation.service import ReadyService
from ...generation.tools import CallPiece
from ..common.json_route import JsonRoute
from ..common.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from ..common.openapi import STREAMABLE
from ..common.responding import AnswerWriter, Envelope, UsageReport, choice_end, total_usage
from ..common.sampling import chat_params
from ..common.timings import TimingReport
from .schemas import ChatBody

router = APIRouter(route_class=JsonRoute)

_WHOLE: Final = "chat.completion"
_CHUNK: Final = "chat.completion.chunk"


@router.post("/v1/chat/completions", responses=STREAMABLE)
async def create_chat_completion(body: ChatBody, request: Request, service: ReadyService) -> Response:
    """The assistant's next message."""
    service.check(body)
    params, wish = await service.prepare(lambda: (chat_params(body, service.model), chat_wish(body)))
    prompt = await service.prompts.chat(body.messages, body.ending, tools=body.usable_tools)
    prompt = service.prompts.truncated(prompt, body)
    envelope = Envelope.new("chatcmpl", body, service.model)
    choices = await service.choices(body, [prompt], params, wish, receive=request.receive)
    writer = ChatWriter(envelope, body, prompt)
    return await service.respond(
        request, envelope.id, choices, writer, stream=body.stream, report_warnings=body.return_warnings
    )


class ChatWriter(AnswerWriter):
    def __init__(self, envelope: Envelope, body: ChatBody, prompt: Prompt) -> None:
        self._envelope = envelope
        self._body = body
        self._prompt = prompt
        self._usage = UsageReport(body, [prompt])
        self._timings = TimingReport(body, [prompt], body.n)
        self._tells_tokens = body.logprobs or body.return_token_ids

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        answer = self._envelope.wrap(_WHOLE, [self._whole_choice(choice) for choice in choices])
        report = {"usage": total_usage([self._prompt], choices), **self._timings.whole(choices)}
        return {**answer, **report, **self._prompt_token_ids(), **self._prompt_logprobs(choices[0])}

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._body.n):
            start = {"role": "assistant", "content": ""}
            chunk = self._chunk({"index": index, "delta": start, "logprobs": None, "finish_reason": None})
            yield {**chunk, **self._prompt_token_ids()} if index == 0 else chunk

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The last tokens come in a chunk before the one that finishes, whose `delta` is empty."""
        self._usage.count(delta)
        self._timings.count(delta)
        if delta.text or delta.calls or (delta.token_ids and self._tells_tokens):
            choice = {
                "index": delta.index,
                "delta": _news(delta),
                "logprobs": self._logprobs(delta),
                "finish_reason": None,
            }
            if self._body.return_token_ids:
                choice["token_ids"] = delta.token_ids
            yield self._chunk(choice)
        if delta.finish_reason is not None:
            end = replace(delta, token_ids=())
            last = self._chunk({"index": delta.index, "delta": {}, "logprobs": None, **choice_end(self._body, end)})
            yield {**last, **self._timings.fields()}

    def closing(self) -> Iterator[dict[str, Any]]:
        if (usage := self._usage.last_fields()) is not None:
            yield {**self._envelope.wrap(_CHUNK, []), **usage}

    def _whole_choice(self, choice: Delta) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None, **_whole_content(choice)},
            "logprobs": self._logprobs(choice),
            **choice_end(self._body, choice),
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._envelope.wrap(_CHUNK, [choice]), **self._usage.fields()}

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._envelope.model.tokenizer, delta.token_ids, delta.logprobs)

    def _prompt_token_ids(self) -> dict[str, Any]:
        """Beside the choices, as in vLLM: they all have the same prompt."""
        return {"prompt_token_ids": self._prompt.token_ids} if self._body.return_token_ids else {}

    def _prompt_logprobs(self, choice: Delta) -> dict[str, Any]:
        num_top, tokenizer = self._body.prompt_logprobs, self._envelope.model.tokenizer
        if num_top is None:
            return {}
        entries = choice.prompt_logprobs or ()
        return {"prompt_logprobs": prompt_logprobs(tokenizer, self._prompt.token_ids, entries, num_top)}


def _news(delta: Delta) -> dict[str, Any]:
    if not delta.calls:
        return {"content": delta.text}
    return {"tool_calls": [{"index": piece.index, **_call(piece)} for piece in delta.calls]}


def _whole_content(choice: Delta) -> dict[str, Any]:
    if not choice.calls:
        return {"content": choice.text}
    return {"content": None, "tool_calls": [_call(piece) for piece in choice.calls]}


def _call(piece: CallPiece) -> dict[str, Any]:
    """The id and the name come once, with a call's first piece."""
    if piece.id is None:
        return {"function": {"arguments": piece.arguments}}
    return {
        "id": piece.id,
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    }

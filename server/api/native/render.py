"""Prompts as the model reads them, without running it: for debugging, and for `/generate`."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Response

from ...generation.answer_size import text_answer_bytes
from ...generation.prompts import Prompt
from ...generation.service import AnyService, Service
from ...tenancy.memory import keep
from ..common.json_route import JsonRoute
from ..openai.schemas import ChatBody, CompletionBody

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions/render")
@router.post("/apply-template")
async def render_chat(body: ChatBody, service: AnyService) -> Response:
    """The one prompt of a chat. The paths are vLLM's and llama.cpp's."""
    service.check(body)
    prompt = await service.prompts.chat(body.messages, body.ending, tools=body.usable_tools)
    prompt = service.prompts.truncated(prompt, body)
    return await _answer(service, lambda: _rendered(service, prompt), [prompt])


@router.post("/v1/completions/render")
async def render_completions(body: CompletionBody, service: AnyService) -> Response:
    """The prompts of a completion, in their order."""
    service.check(body)
    service.check_count(len(body.prompts))
    prompts = await service.prompts.completions(body.prompts, add_bos=body.add_special_tokens)
    prompts = [service.prompts.truncated(prompt, body) for prompt in prompts]
    return await _answer(service, lambda: [_rendered(service, prompt) for prompt in prompts], prompts)


async def _answer(service: Service, make: Callable[[], Any], prompts: Sequence[Prompt]) -> Response:
    keep(sum(text_answer_bytes(prompt.token_ids, service.model.tokenizer) for prompt in prompts))
    return await service.json_answer(make)


def _rendered(service: Service, prompt: Prompt) -> dict[str, Any]:
    """The text says what stands where, but encoding it is not the same: it does not tell markup from messages."""
    tokenizer = service.model.tokenizer
    return {"prompt": prompt.text(tokenizer), "token_ids": prompt.token_ids, "count": len(prompt.token_ids)}

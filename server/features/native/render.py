"""Prompts as the model sees them, without running it: for debugging, and for `/generate`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Response

from ...generation.prompts import Prompt
from ...generation.requests import chat_conversation
from ...generation.response_size import text_response_bytes
from ...generation.service import Service
from ...http.json_response import made_json_response
from ...http.openapi import success
from ...http.routes import AnyService, JsonRoute
from ...openai.schemas import ChatBody, CompletionBody
from ...tenancy.request_memory import keep
from .response_schemas import RenderedPrompt

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions/render", responses=success(RenderedPrompt))
@router.post("/apply-template", responses=success(RenderedPrompt))
async def render_chat(body: ChatBody, service: AnyService) -> Response:
    """Returns the prompt of a chat. The paths are vLLM's and llama.cpp's."""
    prompt = await service.prompts.chat(await service.prepare(partial(chat_conversation, body)))
    prompt = service.prompts.truncated(prompt, body.truncate_prompt_tokens, body.truncation_side)
    return await _rendered_response(service, lambda: _rendered(service, prompt), [prompt])


@router.post("/v1/completions/render", responses=success(list[RenderedPrompt]))
async def render_completions(body: CompletionBody, service: AnyService) -> Response:
    """Returns the prompts of a completion, in their order."""
    service.check_count(len(body.prompts))
    prompts = await service.prompts.completions(body.prompts, add_bos=body.add_special_tokens)
    limit, side = body.truncate_prompt_tokens, body.truncation_side
    prompts = [service.prompts.truncated(prompt, limit, side) for prompt in prompts]
    return await _rendered_response(service, lambda: [_rendered(service, prompt) for prompt in prompts], prompts)


async def _rendered_response(service: Service, make: Callable[[], Any], prompts: Sequence[Prompt]) -> Response:
    keep(sum(text_response_bytes(prompt.token_ids, service.model.tokenizer) for prompt in prompts))
    return await made_json_response(service, make)


def _rendered(service: Service, prompt: Prompt) -> RenderedPrompt:
    """Returns a prompt as text and ids. Encoding the text gives other ids, as it does not tell markup from messages."""
    tokenizer = service.model.tokenizer
    token_ids = list(prompt.token_ids)
    return RenderedPrompt(prompt=prompt.text(tokenizer), token_ids=token_ids, count=len(token_ids))

"""Prompts as the model reads them, without running it: for debugging, and for `/generate`."""

from typing import Any

from fastapi import APIRouter, Response

from ..body import JsonRoute
from ..prompts import Prompt
from ..schema import ChatBody, CompletionBody
from ..service import AnyService, Service, json_response

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions/render")
@router.post("/apply-template")
async def render_chat(body: ChatBody, service: AnyService) -> Response:
    """The one prompt of a chat. The paths are vLLM's and llama.cpp's."""
    service.check(body)
    prompt = await service.prompts.chat(body.messages, body.ending, tools=body.usable_tools)
    prompt = service.prompts.truncated(prompt, body)
    return json_response(_rendered(service, prompt))


@router.post("/v1/completions/render")
async def render_completions(body: CompletionBody, service: AnyService) -> Response:
    """The prompts of a completion, in their order."""
    service.check(body)
    prompts = await service.prompts.completions(body.prompts, add_bos=body.add_special_tokens)
    return json_response([_rendered(service, service.prompts.truncated(prompt, body)) for prompt in prompts])


def _rendered(service: Service, prompt: Prompt) -> dict[str, Any]:
    """The text says what stands where, but encoding it is not the same: it does not tell markup from messages."""
    tokenizer = service.model.tokenizer
    return {"prompt": prompt.text(tokenizer), "token_ids": prompt.token_ids, "count": len(prompt.token_ids)}

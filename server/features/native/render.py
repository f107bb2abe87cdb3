"""Prompts as the model sees them, without running it, for debugging and for `/generate`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Response

from ...generation.admission import admission
from ...generation.prompts import Prompt
from ...generation.requests import chat_conversation, chat_prompts, completion_prompts
from ...generation.response_size import text_response_bytes
from ...generation.service import Service
from ...http.openapi import success
from ...http.responses import made_json_response
from ...http.routes import AnyService, JsonRoute
from ...openai.completions import ChatBody, CompletionBody
from .response_schemas import RenderedPrompt

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions/render", responses=success(RenderedPrompt))
@router.post("/apply-template", responses=success(RenderedPrompt))
async def render_chat(body: ChatBody, service: AnyService) -> Response:
    """Returns the prompt of a chat. The paths are vLLM's and llama.cpp's."""
    conversation = await admission.get().run(partial(chat_conversation, body))
    (prompt,) = await chat_prompts(body, conversation, service.saved_state(body.from_state), service)
    return await _rendered_response(service, lambda: _rendered(service, prompt), [prompt])


@router.post("/v1/completions/render", responses=success(list[RenderedPrompt]))
async def render_completions(body: CompletionBody, service: AnyService) -> Response:
    """Returns the prompts of a completion, in their order."""
    service.check_count(len(body.prompts))
    prompts = await completion_prompts(body, service.saved_state(body.from_state), service)
    return await _rendered_response(service, lambda: [_rendered(service, prompt) for prompt in prompts], prompts)


async def _rendered_response(service: Service, make: Callable[[], Any], prompts: Sequence[Prompt]) -> Response:
    await admission.get().keep(
        sum(text_response_bytes(prompt.token_ids, service.model.tokenizer) for prompt in prompts)
    )
    return await made_json_response(service, make)


def _rendered(service: Service, prompt: Prompt) -> RenderedPrompt:
    """Returns a prompt as text and ids. Encoding the text may give other ids: it mixes markup with messages."""
    tokenizer = service.model.tokenizer
    token_ids = list(prompt.token_ids)
    return RenderedPrompt(prompt=prompt.text(tokenizer), token_ids=token_ids, count=len(token_ids))

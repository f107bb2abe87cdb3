"""`/v1/messages`: Anthropic's way to chat. The header `anthropic-version` is let pass."""

from fastapi import APIRouter, Request, Response

from ... import request_warnings
from ...generation.output_constraint import chat_wish
from ...generation.service import AnyService, ReadyService
from ..common.json_route import JsonRoute
from ..common.openapi import ANTHROPIC_ERRORS, STREAMABLE
from ..common.sampling import chat_params
from .message_builder import MessageWriter, chat_of, prompt_of
from .schemas import CountTokensBody, MessagesBody

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/messages", responses=STREAMABLE | ANTHROPIC_ERRORS)
async def create_message(body: MessagesBody, request: Request, service: ReadyService) -> Response:
    """The assistant's next message."""
    service.check(body)
    request_warnings.warn_all(body.dropped)
    chat = await service.prepare(lambda: chat_of(body))
    params, wish = await service.prepare(
        lambda: (chat_params(chat, service.model), chat_wish(chat, format_param="output_config.format"))
    )
    prompt = await service.prompts.chat(chat.messages, chat.ending, tools=chat.usable_tools)
    counts_cache = body.wants_cache and service.engine.stats.cache.budget > 0
    writer = MessageWriter(service.model, prompt, counts_cache=counts_cache)
    choices = await service.choices(chat, [prompt], params, wish, receive=request.receive)
    return await service.respond(
        request, writer.id, choices, writer, stream=body.stream, report_warnings=body.return_warnings
    )


@router.post("/v1/messages/count_tokens", responses=ANTHROPIC_ERRORS)
async def count_tokens(body: CountTokensBody, service: AnyService) -> dict[str, int]:
    """How long the prompt would be."""
    service.check(body)
    asked, messages = await service.prepare(lambda: (prompt_of(body), body.chat_messages))
    prompt = await service.prompts.chat(messages, asked.ending, tools=asked.usable_tools)
    return {"input_tokens": len(prompt.token_ids)}

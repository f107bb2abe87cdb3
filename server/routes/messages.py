"""`/v1/messages`: Anthropic's way to chat. The header `anthropic-version` is let pass."""

from fastapi import APIRouter, Request, Response

from ..chat import Ending
from ..messages import MessageWriter, chat_of
from ..messages_schema import CountTokensBody, MessagesBody
from ..openapi import ANTHROPIC_ERRORS, STREAMABLE
from ..sampling import chat_params
from ..service import AnyService, ReadyService

router = APIRouter()


@router.post("/v1/messages", responses=STREAMABLE | ANTHROPIC_ERRORS)
async def create_message(body: MessagesBody, request: Request, service: ReadyService) -> Response:
    """The assistant's next message."""
    service.check(body)
    chat = chat_of(body)
    params = chat_params(chat, service.model)
    prompt = await service.prompts.chat(chat.messages, chat.ending)
    writer = MessageWriter(service.model, prompt)
    choices = service.choices(chat, [prompt], params)
    return await service.respond(request, writer.id, choices, writer, stream=body.stream)


@router.post("/v1/messages/count_tokens", responses=ANTHROPIC_ERRORS)
async def count_tokens(body: CountTokensBody, service: AnyService) -> dict[str, int]:
    """How long the prompt would be."""
    service.check(body)
    ending = Ending(add_header=not body.is_begun, stay_open=body.is_begun)
    return {"input_tokens": len((await service.prompts.chat(body.chat_messages, ending)).token_ids)}

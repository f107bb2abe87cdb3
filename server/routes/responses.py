"""`/v1/responses`: OpenAI's newer way to chat, in which the server remembers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from ..errors import ApiError, bad_value, from_exception
from ..generation import Choice, collect
from ..openapi import STREAMABLE
from ..responses import ResponseWriter, chat_of
from ..responses_schema import ResponseBody
from ..sampling import chat_params
from ..schema import ChatMessage
from ..service import AnyService, ReadyService, Service, json_response
from ..structured import chat_wish

router = APIRouter()


@router.post("/v1/responses", responses=STREAMABLE)
async def create_response(body: ResponseBody, request: Request, service: ReadyService) -> Response:
    """The assistant's next message, after those of a previous response if one is named."""
    service.check(body)
    _check_background(body)
    conversation = [*service.responses.conversation(body.previous_response_id), *body.messages]
    chat = chat_of(body, conversation)
    params = chat_params(chat, service.model)
    prompt = await service.prompts.chat(chat.messages, chat.ending, tools=chat.usable_tools, param="input")
    keep = partial(_keep, service, conversation) if body.store else _forget
    writer = ResponseWriter(body, service.model, prompt, params[0], keep)
    choices = await service.choices(chat, [prompt], params, chat_wish(chat, format_param="text.format"))
    if not body.background:
        return await service.respond(request, writer.id, choices, writer, stream=body.stream)
    begun = writer.begun()
    service.responses.keep(begun, conversation)
    service.background.start(writer.id, _run(service, choices, writer))
    return json_response(begun)


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, service: AnyService, stream: bool = False) -> Response:
    """A response that is stored, as it is now."""
    if stream:
        raise bad_value("stream", "a response cannot be streamed again: leave stream out")
    return json_response(service.responses.get(response_id).response)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, service: AnyService) -> Response:
    """Ends a background response; one that has ended already stays as it is."""
    if not service.responses.get(response_id).response["background"]:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(service, response_id)
    return json_response(service.responses.get(response_id).response)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, service: AnyService) -> dict[str, Any]:
    """Forgets a response; one that still runs in the background is ended first."""
    await _end(service, response_id)
    service.responses.delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def _end(service: Service, response_id: str) -> None:
    if service.background.is_running(response_id):
        service.running.abort(response_id)
        await service.background.wait(response_id)


def _check_background(body: ResponseBody) -> None:
    if body.background and body.stream:
        raise bad_value("background", "a background response cannot be streamed: ask for it by its id")
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")


def _keep(service: Service, conversation: Sequence[ChatMessage], response: dict[str, Any], answer: ChatMessage) -> None:
    service.responses.keep(response, [*conversation, answer])


def _forget(response: dict[str, Any], answer: ChatMessage) -> None:
    pass


async def _run(service: Service, choices: Sequence[Choice], writer: ResponseWriter) -> None:
    """Makes an answer that nobody waits for; how it ended is in the store."""
    try:
        async with service.generation(writer.id, choices) as generation:
            writer.whole(await collect(generation))
    except ApiError:  # nothing else in there has one: somebody aborted it
        writer.cancelled()
    except Exception as error:
        writer.failed(from_exception(error))

"""`/v1/responses`: OpenAI's newer way to chat, in which the server remembers."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ... import request_warnings
from ...errors import bad_value
from ...generation.choices import Choice
from ...generation.event_log import EventLog, replay
from ...generation.output_constraint import chat_wish
from ...generation.response_store import pack
from ...generation.service import AnyService, ReadyService, Service, json_response
from ..common.json_route import JsonRoute
from ..common.openapi import STREAMABLE
from ..common.paging import Order
from ..common.sampling import chat_params
from ..common.streaming import EventStream, stream_events
from .input_items import page
from .response_builder import ResponseWriter, chat_of, messages_of
from .responses_schemas import ResponseBody
from .schemas import ChatMessage

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=STREAMABLE)
async def create_response(body: ResponseBody, request: Request, service: ReadyService) -> Response:
    """The assistant's next message, after those of a previous response if one is named."""
    service.check(body)
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")
    log = EventLog() if body.background and body.stream else None
    writer, choices, asked = await _prepare(body, request, service, log)
    if not body.background:
        return await service.respond(
            request, writer.id, choices, writer, stream=body.stream, report_warnings=body.return_warnings
        )
    begun = writer.begun()
    service.responses.keep(begun, asked, log)
    service.background.start(writer.id, _run(service, choices, writer, log))
    return json_response(begun) if log is None else _follow(service, log, 0)


@router.get("/v1/responses/{response_id}", responses=STREAMABLE)
async def get_response(
    response_id: str,
    service: AnyService,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A response that is stored, as it is now; or its events, those to come included."""
    stored = service.responses.get(response_id)
    if not stream:
        if starting_after is not None:
            raise bad_value("starting_after", "starting_after needs stream=true")
        return Response(stored.response, media_type="application/json")
    if stored.events is None:
        raise bad_value("stream", "only responses made with background: true and stream: true can be streamed again")
    return _follow(service, stored.events, 0 if starting_after is None else starting_after + 1)


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    service: AnyService,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: str | None = None,
) -> Response:
    """What the response was made of: its input, and the conversation that it goes on from."""
    stored = service.responses.get(response_id)
    return json_response(await service.workers.run(lambda: page(stored, limit, order, after)))


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, service: AnyService) -> Response:
    """Ends a background response; one that has ended already stays as it is."""
    if not service.responses.get(response_id).is_background:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(service, response_id)
    return Response(service.responses.get(response_id).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, service: AnyService) -> dict[str, Any]:
    """Forgets a response; one that still runs in the background is ended first."""
    service.responses.get(response_id)
    await _end(service, response_id)
    service.responses.delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def _end(service: Service, response_id: str) -> None:
    if service.background.is_running(response_id):
        service.running.abort(response_id)
        await service.background.wait(response_id)


def _follow(service: Service, log: EventLog, number: int) -> Response:
    log.check(number)
    return EventStream(replay(log, number, service.keep_alive_s), AsyncExitStack())


async def _prepare(
    body: ResponseBody, request: Request, service: Service, log: EventLog | None
) -> tuple[ResponseWriter, Sequence[Choice], bytes]:
    """What it takes to answer, and all messages up to the answer, packed.

    Unpacked messages, of which a small body may name many, are gone when this returns.
    """
    request_warnings.warn_all(body.dropped)
    previous = service.responses.previous(body.previous_response_id)
    referred = await service.responses.items(body.references)
    async with service.responses.unpacked(previous) as earlier:
        messages = [*earlier, *await service.prepare(lambda: messages_of(body, referred))]
        chat = await service.prepare(lambda: chat_of(body, messages))
        params, wish = await service.prepare(
            lambda: (chat_params(chat, service.model), chat_wish(chat, format_param="text.format"))
        )
        prompt = await service.prompts.chat(chat.messages, chat.ending, tools=chat.usable_tools, param="input")
        asked = await service.workers.run(lambda: pack(messages)) if body.store else b""
        chat = chat.model_copy(update={"messages": []})
        del messages, earlier
    keep = partial(_keep, service, asked, log) if body.store else _forget
    writer = ResponseWriter(body, service.model, prompt, params[0], keep)
    return writer, await service.choices(chat, [prompt], params, wish, receive=request.receive), asked


def _keep(
    service: Service,
    asked: bytes,
    log: EventLog | None,
    response: dict[str, Any],
    answer: ChatMessage,
) -> None:
    service.responses.keep(response, asked, log, answer)


def _forget(response: dict[str, Any], answer: ChatMessage) -> None:
    pass


async def _run(service: Service, choices: Sequence[Choice], writer: ResponseWriter, log: EventLog | None) -> None:
    """Makes an answer that nobody waits for; how it ended is in the store, and how it came about in the log."""
    try:
        async with service.generation(writer.id, choices) as generation:
            async for event in stream_events(generation, None, writer, keep_alive_s=None):
                if log is not None and event:
                    service.responses.log(writer.id, log, event)
    finally:
        if log is not None:
            log.close()

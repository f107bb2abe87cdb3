"""`/v1/responses`: OpenAI's newer way to chat, in which the server stores responses."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...database.errors import StoreUnavailableError
from ...errors.request_errors import ApiError, bad_value, from_exception
from ...errors.request_warnings import warn_all
from ...generation.spec import GenerationSpec
from ...http.json_response import json_response
from ...http.openapi import streamable, success
from ...http.paging import After, Limit, QueryOrder
from ...http.response_parts import to_json
from ...http.routes import JsonRoute, ReadyService
from ...http.streaming import EventStream, choices_of, respond
from ...openai.response_schemas import DeletedObject, ItemList
from ...text.conversation import Conversation, ConversationMessage
from .background_responses import BackgroundRun, end_early, job_of
from .body import ResponseBody
from .builder import TYPED_EVENTS, ResponsesBuilder
from .conversion import generation_options, generation_spec, input_messages, tool_options
from .durable_responses import DurableResponses
from .input_items import page
from .open_responses import OpenResponses, Responses
from .response_schemas import ResponseEvent, ResponseObject
from .response_store import StoredResponse, pack
from .resumable_stream import ResumableBuilder

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def create_response(
    body: ResponseBody, request: Request, service: ReadyService, responses: Responses
) -> Response:
    """Returns the assistant's next message, after those of a previous response if one is named."""
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")
    spec, history = await _prepare(body, responses)
    if body.background:
        return await _create_background(body, responses, spec, history, request)
    builder = _builder(body, responses, spec, history)
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


def _builder(body: ResponseBody, responses: OpenResponses, spec: GenerationSpec, history: bytes) -> ResponsesBuilder:
    """Returns the builder of a response in the foreground."""
    service, store = responses.service, responses.store

    async def keep(response: dict[str, Any], output: ConversationMessage) -> None:
        await store.keep(response["id"], to_json(response), history, output)

    if body.store and body.stream and isinstance(store, DurableResponses):
        return ResumableBuilder(body, service, store, spec, history, keep)
    return ResponsesBuilder(body, service.model, spec.prompts[0], spec.params[0], keep if body.store else None)


async def _create_background(
    body: ResponseBody, responses: OpenResponses, spec: GenerationSpec, history: bytes, request: Request
) -> Response:
    """Starts a background response, which is in the store before the client learns its id."""
    service = responses.service
    (choice,) = await choices_of(service, request, spec)
    builder = ResponsesBuilder(body, service.model, spec.prompts[0], spec.params[0])
    response = to_json(builder.in_progress())
    pending = StoredResponse(builder.id, bytes(memoryview(response)), history, pack([]), True, body.stream)
    log = await responses.store.open(pending, job_of(body, choice.prompt, choice.params, service))
    BackgroundRun(service, builder, choice, log).start(responses.background)
    return await _follow(responses, pending, 0) if body.stream else Response(response, media_type="application/json")


@router.get("/v1/responses/{response_id}", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def get_response(
    response_id: str,
    responses: Responses,
    stream: Annotated[bool, Query(description="Whether to return the events of a background stream.")] = False,
    starting_after: Annotated[
        int | None,
        Query(
            ge=-1,
            lt=2**31,
            description="Number of the event after which `stream=true` begins; -1 begins with the first.",
        ),
    ] = None,
) -> Response:
    """Returns a stored response as it is now, or its events, those to come included."""
    stored = await responses.store.get(response_id)
    if not stream:
        if starting_after is not None:
            raise bad_value("starting_after", "starting_after needs stream=true")
        return Response(stored.response, media_type="application/json")
    if not stored.is_streamed:
        raise bad_value("stream", "only responses made with background: true and stream: true can be streamed again")
    return await _follow(responses, stored, 0 if starting_after is None else starting_after + 1)


@router.get("/v1/responses/{response_id}/input_items", responses=success(ItemList))
async def list_input_items(
    response_id: str,
    responses: Responses,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> Response:
    """Lists the input of a response, the conversation that it continues included."""
    stored = await responses.store.get(response_id)
    return json_response(await responses.service.workers.run(lambda: page(stored, limit, order, after)))


@router.post("/v1/responses/{response_id}/cancel", responses=success(ResponseObject))
async def cancel_response(response_id: str, responses: Responses) -> Response:
    """Cancels a background response; one that has ended already stays as it is."""
    if not (await responses.store.get(response_id)).is_background:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(responses, response_id)
    return Response((await responses.store.get(response_id)).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, responses: Responses) -> DeletedObject:
    """Deletes a response; one that still runs in the background is cancelled first."""
    await responses.store.get(response_id)
    await _end(responses, response_id)
    await responses.store.delete(response_id)
    return DeletedObject(id=response_id, object="response", deleted=True)


async def _end(responses: OpenResponses, response_id: str) -> None:
    """Cancels a response, whichever replica generates it."""
    if responses.background.is_running(response_id):
        responses.service.tracked.abort(response_id)
        await responses.background.wait(response_id)
    elif seized := await responses.store.seize(response_id):
        log, number = seized
        pending = (await responses.store.get(response_id)).response
        await end_early(log, number, pending, status="cancelled")


async def _follow(responses: OpenResponses, stored: StoredResponse, number: int) -> Response:
    events = responses.store.follow(stored, number, responses.service.limits.keep_alive_s)
    return EventStream(replay(events, number), AsyncExitStack())


async def replay(events: AsyncGenerator[bytes | None], number: int) -> AsyncGenerator[bytes]:
    """Yields the bytes of a stored stream, which an error may end.

    An error has the number of the last event before it, so that a client which goes on after it misses nothing.

    Args:
      number: Number of the first event.
    """
    try:
        async for event in events:
            number += event is not None
            yield TYPED_EVENTS.keep_alive if event is None else event
    except (ApiError, StoreUnavailableError) as error:  # a log that drops events a client is slow to read, or an outage
        detail = from_exception(error).body["error"]
        about = {"code": detail["code"], "message": detail["message"], "param": detail["param"]}
        yield TYPED_EVENTS.encode({"type": "error", "sequence_number": number - 1, **about})


async def _prepare(body: ResponseBody, responses: OpenResponses) -> tuple[GenerationSpec, bytes]:
    """Converts a body to a spec, and packs the messages before the response's own if they are to be stored.

    Unpacked messages, of which a small body may name many, are released when this returns.

    Raises:
      ApiError: The body cannot be converted.
    """
    service, store = responses.service, responses.store
    warn_all(body.dropped)
    previous = await store.previous(body.previous_response_id)
    referred = await store.items(body.references)
    async with store.unpacked(previous) as earlier:
        messages = [*earlier, *await service.prepare(lambda: input_messages(body, referred))]
        options = tool_options(body)
        params, constraint = await service.prepare(lambda: generation_options(body, service))
        instructions = [ConversationMessage("system", body.instructions)] if body.instructions else []
        conversation = Conversation([*instructions, *messages], tools=options)
        prompt = await service.prompts.chat(conversation, param="input")
        history = await service.workers.run(lambda: pack(messages)) if body.store else b""
    return generation_spec(body, prompt, params, constraint), history

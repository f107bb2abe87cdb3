"""`/v1/responses`: OpenAI's newer chat API, in which the server stores responses."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from ...database.errors import StoreUnavailableError, WriteTooLargeError
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value, from_exception, warn, warn_all
from ...generation.admission import admission, stored_json
from ...generation.prompts import Prompt
from ...generation.state_store import StoredState
from ...http.responses import EventStream, json_response, respond, to_json, until_disconnect
from ...http.routes import JsonRoute, ListPage, QueryPage, ReadyService, page_object, page_of, streamable, success
from ...openai.completions import check_stream_options
from ...openai.response_schemas import DeletedObject, item_usage
from ...schemas.body import MAX_MESSAGES
from ...storage.work import Lease
from ...tenants import tenant
from ...text.chat_format import Conversation, ConversationMessage, Ending
from . import response_table
from .background_responses import BackgroundRun, Prepared, ResumableBuilder, encoded, end_early
from .body import CompactBody, InputTokensBody, PromptFields, ResponseBody, generation_spec
from .builder import (
    TYPED_EVENTS,
    CompactedInput,
    InputTokens,
    ResponseEvent,
    ResponseObject,
    ResponsesBuilder,
    compacted,
    error_event,
    new_response_id,
)
from .conversations import Turn
from .event_log import BEFORE_FIRST
from .expansion import MAX_ADDED, Room, StoredPart, expanded
from .input_items import STATE_ROLE, compaction_of, items_with_ids, new_items, output_items
from .open_responses import OpenResponses, Responses
from .response_table import ResponseRecord, pack

router = APIRouter(route_class=JsonRoute)

MAX_HISTORY: Final = 32 * 2**20
"""Maximum bytes of a stored response's history, half of what one transaction stores."""


@router.post("/v1/responses", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def create_response(
    body: ResponseBody, request: Request, service: ReadyService, responses: Responses
) -> Response:
    """Returns the assistant's next message, which continues a previous response if one is named."""
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")
    check_stream_options(stream=body.stream, options=body.stream_options)
    if body.store or body.conversation_id is not None:
        await responses.store.database.check()
    response_id = new_response_id()
    if body.store and admission.get().is_repeated and (earlier := await responses.store.find(response_id)) is not None:
        return Response(earlier.response, media_type="application/json")
    async with AsyncExitStack() as resources:
        turn = responses.store.conversations.turn(body.conversation_id, response_id)
        lease = await resources.enter_async_context(turn)
        async with until_disconnect(request.receive):
            prepared = await _prepare(body, responses, response_id, lease)
        if body.background:
            return await _create_background(responses, prepared, request)
        builder, spec = _builder(responses, prepared), prepared.spec
        response = await respond(service, request, spec, builder, stream=body.stream)
        if isinstance(response, EventStream):
            response.hold(resources.pop_all())
        return response


def _builder(responses: OpenResponses, prepared: Prepared) -> ResponsesBuilder:
    """Returns the builder of a response in the foreground."""
    service, store = responses.service, responses.store
    body, spec, turn = prepared.body, prepared.spec, prepared.turn

    async def keep(response: dict[str, Any], output: ConversationMessage) -> None:
        ended = None if turn is None else turn.ended(output_items(response))
        try:
            if body.store:
                written = to_json(response)
                record = ResponseRecord(prepared.tenant, prepared.id, written, prepared.history, pack([output]))
                stored = await store.keep(record, ended)
                if stored != written:  # a line of a batch that another replica ran at the same time
                    response.update(stored_json(stored))
            elif ended is not None:
                await store.conversations.end(ended)
        except (StoreUnavailableError, WriteTooLargeError):
            if turn is not None or "store" in body.model_fields_set:
                message = "the response was generated, and could not be stored: nothing of it is kept"
                raise ApiError(kinds.RESPONSE_NOT_STORED, message) from None
            warn("store: the response could not be stored")
            response["store"] = False

    if body.store and body.stream and store.is_shared:
        return ResumableBuilder(prepared, service, store, keep)
    return ResponsesBuilder(body, service.model, spec, keep, prepared.id)


async def _create_background(responses: OpenResponses, prepared: Prepared, request: Request) -> Response:
    """Starts a background response, which is stored before the client receives its id."""
    service, body, spec = responses.service, prepared.body, prepared.spec
    async with until_disconnect(request.receive):
        (engine_request,) = await service.requests(spec, prepared.id)
    builder = ResponsesBuilder(body, service.model, spec, response_id=prepared.id)
    pending, is_imported = builder.response("in_progress"), engine_request.state_is_imported
    job = prepared.job(service, pending, is_streamed=body.stream, state_is_imported=is_imported)
    async with AsyncExitStack() as resources:
        if body.stream:
            resources.enter_context(responses.store.followers.hold())
        opening = BEFORE_FIRST.followed_by(encoded(builder.opening()), keeps_events=body.stream)
        log = await responses.store.open(job, opening)
        log.start(BackgroundRun(service, builder, spec, engine_request, log).run())
        if body.stream:
            return await _follow(responses, request, resources, prepared.id, 0)
    return json_response(builder.response("queued"))


@router.get("/v1/responses/{response_id}", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def get_response(
    response_id: str,
    responses: Responses,
    request: Request,
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
    """Returns the current version of a stored response, or its events, including future ones."""
    stored = await responses.store.get(response_id)
    if not stream:
        if starting_after is not None:
            raise bad_value("starting_after", "starting_after needs stream=true")
        await admission.get().keep(len(stored.response))
        return Response(stored.response, media_type="application/json")
    if not stored.is_streamed:
        raise bad_value("stream", "only responses made with background: true and stream: true can be streamed again")
    async with AsyncExitStack() as resources:
        resources.enter_context(responses.store.followers.hold())
        number = 0 if starting_after is None else starting_after + 1
        return await _follow(responses, request, resources, response_id, number)


@router.get("/v1/responses/{response_id}/input_items", responses=success(ListPage[dict[str, Any]]))
async def list_input_items(
    response_id: str,
    responses: Responses,
    request: Request,
    spec: QueryPage,
) -> Response:
    """Lists the input of a response, the conversation that it continues included."""
    history, room = StoredPart("history", response_id), Room(sys.maxsize, sys.maxsize)
    await responses.store.get(response_id)
    async with (
        until_disconnect(request.receive),
        expanded(responses.store, room, "input", [], {history: "response_id"}) as (messages, _),
    ):
        items = await responses.service.workers.run(lambda: items_with_ids(response_id, messages, is_input=True))
        id_of = itemgetter("id")
        return json_response(page_object(page_of(items, spec, id_of), spec.after, id_of, dict))


@router.post("/v1/responses/{response_id}/cancel", responses=success(ResponseObject))
async def cancel_response(response_id: str, responses: Responses) -> Response:
    """Cancels a background response; a response that has ended is unchanged."""
    found = await responses.store.get(response_id)
    if not found.is_background:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(responses, found)
    return Response((await responses.store.get(response_id)).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, responses: Responses) -> DeletedObject:
    """Deletes a response. A response that is running in the background is cancelled first."""
    await _end(responses, await responses.store.get(response_id))
    await responses.store.write(response_table.delete, response_id)
    return DeletedObject(id=response_id, object="response", deleted=True)


async def _end(responses: OpenResponses, record: ResponseRecord) -> None:
    """Cancels a response on whichever replica generates it."""
    if (task := responses.store.tasks.get((record.tenant, record.id))) is not None:
        responses.service.tracked.abort(record.id)
        await asyncio.wait([task])
    elif record.is_running:
        await end_early(responses.store, record, status="cancelled")


async def _follow(
    responses: OpenResponses, request: Request, resources: AsyncExitStack, response_id: str, number: int
) -> EventStream:
    """Returns the events of a stored stream. It releases the resources at its end."""
    await resources.enter_async_context(until_disconnect(request.receive))
    events = await responses.store.followers.follow(response_id, number, responses.service.limits.keep_alive_s)
    return EventStream(replay(events, number), resources.pop_all())


async def replay(events: AsyncGenerator[bytes | None], number: int) -> AsyncGenerator[bytes]:
    """Yields the bytes of a stored stream, which an error may end.

    An error carries the number of the last event before it, so that a client that continues after it misses nothing.

    Args:
      number: Number of the first event.
    """
    try:
        async for event in events:
            number += event is not None
            yield TYPED_EVENTS.keep_alive if event is None else event
    except (ApiError, StoreUnavailableError) as error:  # a log that drops events a client is slow to read, or an outage
        yield TYPED_EVENTS.encode(error_event(from_exception(error), number - 1))


@router.post("/v1/responses/input_tokens", responses=success(InputTokens))
async def count_input_tokens(body: InputTokensBody, responses: Responses, request: Request) -> InputTokens:
    """Counts the prompt tokens of a response that the same request would create."""
    async with until_disconnect(request.receive), _prompt(body, responses) as found:
        return InputTokens(object="response.input_tokens", input_tokens=len(found.prompt.token_ids))


@router.post("/v1/responses/compact", responses=success(CompactedInput))
async def compact_input(body: CompactBody, responses: Responses, request: Request) -> Response:
    """Returns one item that stands for all messages so far. It holds them whole, since no length needs a summary."""
    async with until_disconnect(request.receive), _prompt(body, responses) as found:
        if found.state is not None:
            raise bad_value("input", "a conversation that continues a saved state cannot be compacted")
        output = [await responses.service.workers.run(lambda: compaction_of(found.messages))]
        return json_response(compacted(output, item_usage(len(found.prompt.token_ids))))


async def _prepare(body: ResponseBody, responses: OpenResponses, response_id: str, lease: Lease | None) -> Prepared:
    """Converts a body to a spec, and packs the messages before the response's own if they are to be stored.

    Args:
      lease: Lease of its turn in its conversation; None if it has none.

    Raises:
      ApiError: The body cannot be converted.
    """
    service, own, turn = responses.service, admission.get(), None
    async with _prompt(body, responses) as found:
        if own.name and body.seed is None:  # work that runs again says the same again
            body = body.model_copy(update={"seed": int(own.new_id("seed")[:16], 16)})
        spec = await own.run(lambda: generation_spec(body, found.prompt, service, found.state))
        history = await own.run(lambda: pack(found.messages)) if body.store else b""
        if len(history) > MAX_HISTORY:
            message = (
                f"input: with what it continues, it has {len(history):,} bytes, and at most {MAX_HISTORY:,} are stored"
            )
            raise ApiError(kinds.REQUEST_TOO_LARGE, f"{message}: send less, or store: false", param="input")
        await own.keep(len(history))
        if lease is not None:
            if len(found.own) > MAX_ADDED:
                message = (
                    f"input: adds {len(found.own):,} items to the conversation, and may add {MAX_ADDED:,} at a time"
                )
                raise ApiError(kinds.REQUEST_TOO_LARGE, message, param="input")
            turn = Turn(str(body.conversation_id), lease, await own.run(lambda: new_items(found.own)))
            await own.keep(sum(len(item.text) for item in turn.items))
    return Prepared(tenant.get(), response_id, body, spec, history, turn)


@dataclass(frozen=True, slots=True)
class _Input:
    """Input of a response.

    Attributes:
      prompt: Whole prompt.
      state: Saved state that the prompt begins with; None without one.
      messages: All messages to store. The first has `STATE_ROLE` if the others continue a saved state.
      own: Messages of the body's input.
    """

    prompt: Prompt
    state: StoredState | None
    messages: Sequence[ConversationMessage]
    own: Sequence[ConversationMessage]


@asynccontextmanager
async def _prompt(body: PromptFields, responses: OpenResponses) -> AsyncGenerator[_Input]:
    """Yields the input of a body.

    A small body may name many messages, so unpacked messages are released at the end of the `with` block.

    Raises:
      ApiError: The body cannot be converted.
    """
    warn_all(body.dropped)
    service, room = responses.service, Room(MAX_MESSAGES, responses.service.admissions.max_expanded_bytes)
    async with expanded(responses.store, room, "input", body.items, _continued(body)) as (earlier, own):
        has_state = bool(earlier) and earlier[0].role == STATE_ROLE
        state = service.saved_state(str(earlier[0].content) if has_state else body.from_state)
        new = [message for message in (*earlier, *own) if message.role != STATE_ROLE]
        if not new:
            raise bad_value("input", "there is no message: send input, or a response or conversation with messages")
        instructions = [ConversationMessage("system", body.instructions)] if body.instructions else []
        ending = Ending(variables=body.chat_template_kwargs)
        conversation = Conversation([*instructions, *new], ending, body.tool_options)
        prompt = await service.prompts.chat(conversation, param="input", state=state)
        yield _Input(prompt, state, new if state is None else [ConversationMessage(STATE_ROLE, state.id), *new], own)


def _continued(body: PromptFields) -> Mapping[StoredPart, str]:
    """Returns the stored parts that a response continues, and the field that names each.

    Raises:
      ApiError: The body names several things to continue.
    """
    previous, conversation = body.previous_response_id, body.conversation_id
    fields = {"previous_response_id": previous, "conversation": conversation, "from_state": body.from_state}
    named = [name for name, value in fields.items() if value is not None]
    if len(named) > 1:
        raise bad_value(named[-1], f"{' and '.join(named)} exclude each other: send one of them")
    if conversation is not None:
        return {StoredPart("conversation", conversation): "conversation"}
    parts = () if previous is None else (StoredPart("history", previous), StoredPart("output", previous))
    return dict.fromkeys(parts, "previous_response_id")

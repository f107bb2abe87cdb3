"""`/v1/responses`: OpenAI's newer way to chat, in which the server stores responses."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ....engine import SamplingParams
from ...errors import ApiError, bad_value
from ...generation.conversation import Conversation, ConversationMessage, ToolOptions
from ...generation.event_log import EventLog
from ...generation.output_constraint import OutputConstraint, constraint, json_constraint, with_tools
from ...generation.response_store import pack
from ...generation.service import Service
from ...generation.spec import Choice, GenerationSpec
from ...request_warnings import warn_all
from ...text.grammar import OBJECT_SCHEMA
from ..common.json_response import json_response
from ..common.openapi import streamable, success
from ..common.paging import After, Limit, QueryOrder
from ..common.response_parts import TYPED_EVENTS, to_json
from ..common.routes import AnyService, JsonRoute, ReadyService
from ..common.sampling_fields import sampling_params
from ..common.schema_base import check_body
from ..common.streaming import EventStream, choices_of, respond, stream_events
from .input_items import ItemReference, page
from .response_schemas import DeletedObject, ItemList, ResponseEvent, ResponseObject
from .responses_body import LOGPROBS, ResponseBody
from .responses_builder import ResponsesBuilder
from .tool_schemas import OtherTool

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=streamable(ResponseObject, ResponseEvent))
async def create_response(body: ResponseBody, request: Request, service: ReadyService) -> Response:
    """Returns the assistant's next message, after those of a previous response if one is named."""
    check_body(body, request)
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")
    spec, history = await _prepare(body, service)
    log = EventLog() if body.background and body.stream else None
    keeper = _Keeper(service, body, history, log)
    builder = ResponsesBuilder(body, service.model, spec.prompts[0], spec.params[0], keeper.keep)
    if not body.background:
        return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)
    choices = await choices_of(service, request, spec)
    pending = builder.in_progress()
    keeper.keep(pending)
    service.background.start(builder.id, _run(service, choices, builder, log))
    return json_response(pending) if log is None else _follow(service, log, 0)


@router.get("/v1/responses/{response_id}", responses=streamable(ResponseObject, ResponseEvent))
async def get_response(
    response_id: str,
    service: AnyService,
    stream: Annotated[bool, Query(description="Whether to return the events of a background stream.")] = False,
    starting_after: Annotated[
        int | None,
        Query(ge=0, description="Number of the event after which `stream=true` begins."),
    ] = None,
) -> Response:
    """Returns a stored response as it is now, or its events, those to come included."""
    stored = service.responses.get(response_id)
    if not stream:
        if starting_after is not None:
            raise bad_value("starting_after", "starting_after needs stream=true")
        return Response(stored.response, media_type="application/json")
    if stored.events is None:
        raise bad_value("stream", "only responses made with background: true and stream: true can be streamed again")
    return _follow(service, stored.events, 0 if starting_after is None else starting_after + 1)


@router.get("/v1/responses/{response_id}/input_items", responses=success(ItemList))
async def list_input_items(
    response_id: str,
    service: AnyService,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> Response:
    """Lists the input of a response, the conversation that it continues included."""
    stored = service.responses.get(response_id)
    return json_response(await service.workers.run(lambda: page(stored, limit, order, after)))


@router.post("/v1/responses/{response_id}/cancel", responses=success(ResponseObject))
async def cancel_response(response_id: str, service: AnyService) -> Response:
    """Cancels a background response; one that has ended already stays as it is."""
    if not service.responses.get(response_id).is_background:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(service, response_id)
    return Response(service.responses.get(response_id).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, service: AnyService) -> DeletedObject:
    """Deletes a response; one that still runs in the background is cancelled first."""
    service.responses.get(response_id)
    await _end(service, response_id)
    service.responses.delete(response_id)
    return DeletedObject(id=response_id, object="response", deleted=True)


async def _end(service: Service, response_id: str) -> None:
    if service.background.is_running(response_id):
        service.tracked.abort(response_id)
        await service.background.wait(response_id)


def _follow(service: Service, log: EventLog, number: int) -> Response:
    log.check(number)
    return EventStream(replay(log, number, service.keep_alive_s), AsyncExitStack())


async def replay(log: EventLog, number: int, keep_alive_s: float) -> AsyncGenerator[bytes]:
    """Yields the bytes of a stored stream from the event of this number on."""
    try:
        async for event in log.follow(number, keep_alive_s):
            number += event is not None
            yield TYPED_EVENTS.keep_alive if event is None else event
    except ApiError as error:  # the client reads more slowly than the log drops events
        detail = error.body["error"]
        about = {"code": detail["code"], "message": detail["message"], "param": detail["param"]}
        yield TYPED_EVENTS.encode({"type": "error", "sequence_number": number, **about})


async def _prepare(body: ResponseBody, service: Service) -> tuple[GenerationSpec, bytes]:
    """Converts a body to a spec, and packs the messages before the response's own if they are to be stored.

    Unpacked messages, of which a small body may name many, are released when this returns.

    Raises:
      ApiError: The body cannot be converted.
    """
    warn_all(body.dropped)
    previous = service.responses.previous(body.previous_response_id)
    referred = await service.responses.items(body.references)
    async with service.responses.unpacked(previous) as earlier:
        messages = [*earlier, *await service.prepare(lambda: _input_messages(body, referred))]
        options = _tool_options(body)
        params, constraint = await service.prepare(
            lambda: (_params(body, service), with_tools(_text_constraint(body), options))
        )
        instructions = [ConversationMessage("system", body.instructions)] if body.instructions else []
        conversation = Conversation([*instructions, *messages], tools=options)
        prompt = await service.prompts.chat(conversation, param="input")
        history = await service.workers.run(lambda: pack(messages)) if body.store else b""
    spec = GenerationSpec(
        [prompt],
        params,
        constraint,
        ignore_eos=body.ignore_eos,
        may_call=bool(options.introduced),
        limit_param=None if body.max_output_tokens is None else "max_output_tokens",
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
    )
    return spec, history


def _input_messages(body: ResponseBody, referred: Mapping[str, ConversationMessage]) -> list[ConversationMessage]:
    """Returns the messages of the input.

    Args:
      referred: Messages of the stored items that the input refers to, by the items' ids.
    """
    if isinstance(body.input, str):
        return [ConversationMessage("user", body.input)]
    return [
        message
        for item in body.input
        for message in ([referred[item.id]] if isinstance(item, ItemReference) else item.as_messages())
    ]


def _tool_options(body: ResponseBody) -> ToolOptions:
    """Returns the tools and the tool choice.

    Raises:
      ApiError: The body asks for what cannot be done.
    """
    if body.top_logprobs is not None and not body.wants_logprobs:
        raise bad_value("top_logprobs", f'top_logprobs needs include: ["{LOGPROBS}"]')
    if isinstance(body.tool_choice, OtherTool):
        kind = body.tool_choice.type
        raise bad_value("tool_choice", f"tool_choice: this server runs no tools of the type {kind[:60]!r}")
    return body.tool_options


def _text_constraint(body: ResponseBody) -> OutputConstraint | None:
    requested, param = body.text.format, "text.format"
    if requested.type == "text":
        return None
    schema = OBJECT_SCHEMA if requested.schema_ is None or requested.type == "json_object" else requested.schema_
    is_strict = requested.strict and requested.type == "json_schema"
    return constraint(param, lambda: json_constraint(param, schema, is_strict=is_strict, close_objects=True))


def _params(body: ResponseBody, service: Service) -> list[SamplingParams]:
    max_tokens = body.max_output_tokens or service.model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    return sampling_params(body, service.model, max_tokens, logprobs=logprobs)


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Stores the states of a response, if the request allows it."""

    service: Service
    body: ResponseBody
    history: bytes
    log: EventLog | None

    def keep(self, response: dict[str, Any], output: ConversationMessage | None = None) -> None:
        """Stores the response as it is now."""
        if self.body.store:
            self.service.responses.keep(
                response["id"],
                to_json(response),
                self.history,
                self.log,
                output,
                is_background=self.body.background,
            )


async def _run(service: Service, choices: Sequence[Choice], builder: ResponsesBuilder, log: EventLog | None) -> None:
    """Generates a background response, which ends in the store. Its events go to the log."""
    try:
        async with service.generation(builder.id, choices) as generation:
            async for event in stream_events(generation, None, builder, keep_alive_s=None):
                if log is not None and event:
                    service.responses.log(builder.id, log, event)
    finally:
        if log is not None:
            log.close()

"""`/v1/responses`: OpenAI's newer way to chat, in which the server stores responses."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ....engine import SamplingParams
from ...errors import ApiError, bad_value, from_exception
from ...generation.conversation import Conversation, ConversationMessage, ToolOptions
from ...generation.durable_responses import DurableResponses
from ...generation.output_constraint import OutputConstraint, constraint, json_constraint, with_tools
from ...generation.prompts import Prompt
from ...generation.response_store import StoredResponse, pack
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...request_warnings import warn_all
from ...store import StoreUnavailableError
from ...text.grammar import OBJECT_SCHEMA
from ..common.json_response import json_response
from ..common.openapi import streamable, success
from ..common.paging import After, Limit, QueryOrder
from ..common.response_parts import TYPED_EVENTS, to_json
from ..common.routes import AnyService, JsonRoute, ReadyService
from ..common.sampling_fields import sampling_params
from ..common.streaming import EventStream, choices_of, respond
from .background_responses import BackgroundRun, end_early, job_of
from .input_items import ItemReference, page
from .response_schemas import DeletedObject, ItemList, ResponseEvent, ResponseObject
from .responses_body import LOGPROBS, ResponseBody
from .responses_builder import ResponsesBuilder
from .resumable_stream import ResumableBuilder
from .tool_schemas import OtherTool

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def create_response(body: ResponseBody, request: Request, service: ReadyService) -> Response:
    """Returns the assistant's next message, after those of a previous response if one is named."""
    if body.background and not body.store:
        raise bad_value("background", "background needs store: true, as the answer is fetched later")
    spec, history = await _prepare(body, service)
    if body.background:
        return await _create_background(body, service, spec, history, request)
    builder = _builder(body, service, spec, history)
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


def _builder(body: ResponseBody, service: Service, spec: GenerationSpec, history: bytes) -> ResponsesBuilder:
    """Returns the builder of a response in the foreground."""

    async def keep(response: dict[str, Any], output: ConversationMessage) -> None:
        await service.responses.keep(response["id"], to_json(response), history, output)

    responses = service.responses
    if body.store and body.stream and isinstance(responses, DurableResponses):
        return ResumableBuilder(body, service, responses, spec, history, keep)
    return ResponsesBuilder(body, service.model, spec.prompts[0], spec.params[0], keep if body.store else None)


async def _create_background(
    body: ResponseBody, service: Service, spec: GenerationSpec, history: bytes, request: Request
) -> Response:
    """Starts a background response, which is in the store before the client learns its id."""
    (choice,) = await choices_of(service, request, spec)
    builder = ResponsesBuilder(body, service.model, spec.prompts[0], spec.params[0])
    response = to_json(builder.in_progress())
    pending = StoredResponse(builder.id, bytes(memoryview(response)), history, pack([]), True, body.stream)
    log = await service.responses.open(pending, job_of(body, choice.prompt, choice.params, service))
    BackgroundRun(service, builder, choice, log).start()
    return await _follow(service, pending, 0) if body.stream else Response(response, media_type="application/json")


@router.get("/v1/responses/{response_id}", responses=streamable(ResponseObject, ResponseEvent, TYPED_EVENTS))
async def get_response(
    response_id: str,
    service: AnyService,
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
    stored = await service.responses.get(response_id)
    if not stream:
        if starting_after is not None:
            raise bad_value("starting_after", "starting_after needs stream=true")
        return Response(stored.response, media_type="application/json")
    if not stored.is_streamed:
        raise bad_value("stream", "only responses made with background: true and stream: true can be streamed again")
    return await _follow(service, stored, 0 if starting_after is None else starting_after + 1)


@router.get("/v1/responses/{response_id}/input_items", responses=success(ItemList))
async def list_input_items(
    response_id: str,
    service: AnyService,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> Response:
    """Lists the input of a response, the conversation that it continues included."""
    stored = await service.responses.get(response_id)
    return json_response(await service.workers.run(lambda: page(stored, limit, order, after)))


@router.post("/v1/responses/{response_id}/cancel", responses=success(ResponseObject))
async def cancel_response(response_id: str, service: AnyService) -> Response:
    """Cancels a background response; one that has ended already stays as it is."""
    if not (await service.responses.get(response_id)).is_background:
        message = "only background responses can be cancelled: close the connection of others, or POST /abort_request"
        raise bad_value(None, message)
    await _end(service, response_id)
    return Response((await service.responses.get(response_id)).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, service: AnyService) -> DeletedObject:
    """Deletes a response; one that still runs in the background is cancelled first."""
    await service.responses.get(response_id)
    await _end(service, response_id)
    await service.responses.delete(response_id)
    return DeletedObject(id=response_id, object="response", deleted=True)


async def _end(service: Service, response_id: str) -> None:
    """Cancels a response, whichever replica generates it."""
    if service.background.is_running(response_id):
        service.tracked.abort(response_id)
        await service.background.wait(response_id)
    elif seized := await service.responses.seize(response_id):
        log, number = seized
        pending = (await service.responses.get(response_id)).response
        await end_early(log, number, pending, status="cancelled")


async def _follow(service: Service, stored: StoredResponse, number: int) -> Response:
    events = service.responses.follow(stored, number, service.keep_alive_s)
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


async def _prepare(body: ResponseBody, service: Service) -> tuple[GenerationSpec, bytes]:
    """Converts a body to a spec, and packs the messages before the response's own if they are to be stored.

    Unpacked messages, of which a small body may name many, are released when this returns.

    Raises:
      ApiError: The body cannot be converted.
    """
    warn_all(body.dropped)
    previous = await service.responses.previous(body.previous_response_id)
    referred = await service.responses.items(body.references)
    async with service.responses.unpacked(previous) as earlier:
        messages = [*earlier, *await service.prepare(lambda: _input_messages(body, referred))]
        options = _tool_options(body)
        params, constraint = await service.prepare(lambda: generation_options(body, service))
        instructions = [ConversationMessage("system", body.instructions)] if body.instructions else []
        conversation = Conversation([*instructions, *messages], tools=options)
        prompt = await service.prompts.chat(conversation, param="input")
        history = await service.workers.run(lambda: pack(messages)) if body.store else b""
    return generation_spec(body, prompt, params, constraint), history


def generation_options(
    body: ResponseBody, service: Service
) -> tuple[Sequence[SamplingParams], OutputConstraint | None]:
    """Returns the sampling parameters and the output constraint of a body.

    Raises:
      ApiError: The body asks for what cannot be done.
    """
    return _params(body, service), with_tools(_text_constraint(body), body.tool_options)


def generation_spec(
    body: ResponseBody, prompt: Prompt, params: Sequence[SamplingParams], constraint: OutputConstraint | None
) -> GenerationSpec:
    """Returns the spec of a body, given what was prepared for it."""
    return GenerationSpec(
        [prompt],
        params,
        constraint,
        ignore_eos=body.ignore_eos,
        may_call=bool(body.tool_options.introduced),
        limit_param=None if body.max_output_tokens is None else "max_output_tokens",
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
    )


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

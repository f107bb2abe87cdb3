"""Anthropic's API: `/v1/messages`, in the version of every header `anthropic-version`."""

from typing import Final

from fastapi import APIRouter, Request, Response

from ....engine import SamplingParams
from ...constraints.output_constraint import OutputConstraint, json_constraint, with_tools
from ...errors.request_errors import warn_all
from ...feature import Feature
from ...generation.admission import admission
from ...generation.requests import sampling_params
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...http.error_responses import ErrorShape
from ...http.responses import respond
from ...http.routes import AnyService, JsonRoute, ReadyService, errors, streamable
from ...openai.response_schemas import AnthropicErrorBody
from ...text.chat_format import Conversation, Ending, ToolOptions
from .messages import PINGED_EVENTS, MessageBuilder, MessageEvent, MessageObject, TokenCount, anthropic_body
from .schemas import CountTokensBody, MessagesBody

router = APIRouter(route_class=JsonRoute, responses=errors(AnthropicErrorBody))


@router.post("/v1/messages", responses=streamable(MessageObject, MessageEvent, PINGED_EVENTS))
async def create_message(body: MessagesBody, request: Request, service: ReadyService) -> Response:
    """Returns the assistant's next message."""
    warn_all(body.dropped)
    spec = await messages_spec(body, service)
    builder = MessageBuilder(service.model, spec.prompts[0])
    return await respond(service, request, spec, builder, stream=body.stream)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountTokensBody, service: AnyService) -> TokenCount:
    """Returns the number of tokens of the prompt."""
    conversation = await admission.get().run(lambda: _conversation(body))
    state = service.saved_state(body.from_state)
    prompt = await service.prompts.chat(conversation, state=state)
    return TokenCount(input_tokens=len(prompt.token_ids))


async def messages_spec(body: MessagesBody, service: Service) -> GenerationSpec:
    """Converts a body to a spec.

    Raises:
      ApiError: The body cannot be converted.
    """

    def convert() -> tuple[Conversation, list[SamplingParams], OutputConstraint | None]:
        params, options = sampling_params(body, service.model, body.max_tokens), _tool_options(body)
        return _conversation(body), params, with_tools(_text_constraint(body), options)

    conversation, params, output_constraint = await admission.get().run(convert)
    state = service.saved_state(body.from_state)
    return GenerationSpec(
        [await service.prompts.chat(conversation, state=state)],
        params,
        output_constraint,
        stop=body.stop_sequences,
        ignore_eos=body.ignore_eos,
        may_call=conversation.tools is not None and bool(conversation.tools.introduced),
        holds_output=not body.stream,
        state=state,
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
    )


def _text_constraint(body: MessagesBody) -> OutputConstraint | None:
    requested = body.output_config.format or body.output_format
    return None if requested is None else json_constraint("output_config.format", requested.schema_)


def _tool_options(body: CountTokensBody) -> ToolOptions:
    return body.tool_choice.as_options([tool.as_tool() for tool in body.functions])


def _conversation(body: CountTokensBody) -> Conversation:
    is_continued = body.messages[-1].role == "assistant"
    ending = Ending(add_header=not is_continued, stay_open=is_continued)
    return Conversation(body.as_messages(), ending, _tool_options(body))


FEATURE: Final = Feature(
    "anthropic",
    routers=(router,),
    path_hints={"use {root}/v1/messages": "/v1/complete"},
    events=(MessageEvent,),
    error_shape=ErrorShape("/v1/messages", "anthropic-version", anthropic_body),
)

"""Requests in this process, from prompts and messages to outputs, on the same service as HTTP.

Their fields are the fields of HTTP bodies, so checks, defaults and results are the same.
"""

import asyncio
import operator
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, SupportsIndex, TypedDict, cast
from uuid import uuid4

from ...engine import FinishReason, Request
from ..errors.request_errors import request_warnings
from ..generation import requests
from ..generation.admission import admission
from ..generation.service import Service
from ..generation.spec import GenerationSpec
from ..schemas.body import BodyCheck
from ..schemas.generation_fields import ChatFields, CompletionFields
from .outputs import OutputBuilder, RequestOutput, State
from .sampling_params import RequestError, RequestOutputKind, SamplingParams, as_json, checked, python_errors


class TextPrompt(TypedDict):
    """A prompt as text, in vLLM's envelope.

    Attributes:
      prompt: The text, to which a BOS is added.
    """

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids, in vLLM's envelope.

    Attributes:
      prompt_token_ids: The ids, to which nothing is added.
    """

    prompt_token_ids: Sequence[int]


type Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
"""Text, to which a BOS is added, or token ids, to which nothing is added."""

type Conversation = Sequence[Mapping[str, Any]]
"""Messages as in OpenAI's API, oldest first."""


class ChatOptions(TypedDict, total=False):
    """Options of a chat's prompt, which have the same meaning as in `/v1/chat/completions`.

    Attributes:
      add_generation_prompt: Whether the prompt ends with the header of an assistant's message.
      continue_final_message: Whether the output continues the last message instead of answering it.
      chat_template_kwargs: Variables for the checkpoint's chat template.
      tools: Functions that the model may call.
      tool_choice: Whether the model may or must call a function, or which one.
    """

    add_generation_prompt: bool
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any]


_NEUTRAL: Final = (("chat_template", None), ("chat_template_content_format", "auto"), ("lora_request", None))
"""Options of vLLM's `chat` with values that have no effect here."""

_VLLM: Final = {
    "lora_request": "merge adapters into the model with LLM(model, lora=[...])",
    "prompt_token_ids": "pass token ids as prompts, such as generate([[2, 651], [2, 139]])",
    "priority": "set it in SamplingParams",
}
"""Arguments of vLLM's `generate`, and what to use instead."""

MAX_CONSTRAINED_TOKENS: Final = 16_384
"""Default of `max_tokens` with an output constraint, under which a model may repeat itself without end.

Over HTTP, the server's `request_timeout` ends such a request.
"""

_check: Final = BodyCheck([""])
"""Check of fields, in which no model is named."""


def check_vllm(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of vLLM's `generate` that have an effect there.

    Raises:
      TypeError: There is one, or an argument that neither vLLM nor Roost has.
    """
    for name, value in arguments.items():
        if name not in _VLLM:
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}")
        if value is not None:
            raise TypeError(f"{name} is vLLM's name: {_VLLM[name]}")


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Returns one prompt or several as a list."""
    is_one = isinstance(prompts, str | Mapping) or isinstance(next(iter(prompts), None), SupportsIndex)
    return [cast(Prompt, prompts)] if is_one else list(cast(Sequence[Prompt], prompts))


def as_conversation(prompt: Prompt | Conversation) -> Conversation | None:
    """Returns the messages, unless they are a text, token ids or a dict."""
    if isinstance(prompt, str | Mapping):
        return None
    first: object = next(iter(prompt), None)
    return cast(Conversation, prompt) if isinstance(first, Mapping) else None


def conversations_of(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """Returns one conversation or several as a list."""
    is_one = isinstance(next(iter(messages), None), Mapping)
    return [cast(Conversation, messages)] if is_one else list(cast(Sequence[Conversation], messages))


def params_of(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """Returns a list of `count` parameters, one for each request.

    Raises:
      RequestError: `params` is a list whose length is not `count`.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"sampling_params must be one for all or one for each of {count} prompts, got {len(params)}")
    return list(params)


def completion_fields(prompt: Prompt, params: SamplingParams, state: State | None = None) -> CompletionFields:
    """Returns the fields of a completion.

    Args:
      state: Saved state that the prompt continues.

    Raises:
      RequestError: The prompt or a parameter has the wrong type or is out of range.
    """
    fields = {**params.body_fields(), "prompt": prompt_content(prompt), "from_state": state and state.id}
    return checked(CompletionFields, fields)


def chat_fields(
    messages: Conversation, params: SamplingParams, options: ChatOptions, state: State | None = None
) -> ChatFields:
    """Returns the fields of a chat.

    Args:
      state: Saved state that the conversation continues.

    Raises:
      RequestError: A message, a parameter or an option has the wrong type or is out of range.
      TypeError: An option is unknown.
    """
    options = cast(ChatOptions, {name: value for name, value in options.items() if (name, value) not in _NEUTRAL})
    for name in options:
        if name not in ChatOptions.__annotations__:
            raise TypeError(f"chat() has no option {name!r}; it has {', '.join(ChatOptions.__annotations__)}")
    fields = params.body_fields()
    if (num_top := fields.pop("logprobs", None)) is not None:
        fields |= {"logprobs": True, "top_logprobs": num_top}
    fields |= {"messages": as_json(messages), **as_json(options), "from_state": state and state.id}
    return checked(ChatFields, fields)


def prompt_content(prompt: Prompt, param: str = "prompt", *, may_be_empty: bool = False) -> str | list[int]:
    """Returns the text or the token ids of a prompt.

    Args:
      param: Name of the parameter in errors.
      may_be_empty: Whether the list of token ids may be empty.

    Raises:
      RequestError: The prompt has the wrong type or no token ids.
    """
    if isinstance(prompt, Mapping):
        found: Any = prompt.get("prompt_token_ids", prompt.get("prompt"))
        if found is None:
            raise RequestError(f"{param}: a dict must have the key prompt or prompt_token_ids", param)
        return prompt_content(found, param, may_be_empty=may_be_empty)
    if isinstance(prompt, str):
        return prompt
    try:
        token_ids = [operator.index(token_id) for token_id in prompt]  # also NumPy's integers
    except TypeError:
        raise RequestError(f"{param} must be text or token ids", param) from None
    if not token_ids and not may_be_empty:
        raise RequestError(f"{param}: the list of token ids is empty", param)
    return token_ids


async def outputs(
    service: Service,
    body: CompletionFields | ChatFields,
    request_id: str | None = None,
    kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY,
) -> AsyncGenerator[RequestOutput]:
    """Yields the outputs of a request.

    Args:
      request_id: Unique id of the request. Random by default.
      kind: Content of the outputs.

    Raises:
      RequestError: The request is invalid.
      RoostError: The request failed for another reason.
    """
    request_id = request_id or f"{'chatcmpl' if isinstance(body, ChatFields) else 'cmpl'}-{uuid4().hex}"
    with python_errors():
        spec, engine_requests, builder, needs_limit = await asyncio.create_task(_prepare(service, body, request_id))
        async with service.generation(request_id, spec, engine_requests) as generation:
            async for delta in generation:
                builder.add(delta)
                if needs_limit and delta.finish_reason is FinishReason.LENGTH:
                    builder.warn(f"max_tokens: the default of {engine_requests[0].params.max_tokens} ended the output")
                if kind is not RequestOutputKind.FINAL_ONLY:
                    yield builder.news() if kind is RequestOutputKind.DELTA else builder.so_far()
        if kind is RequestOutputKind.FINAL_ONLY:
            yield builder.so_far()


async def _prepare(
    service: Service, body: CompletionFields | ChatFields, request_id: str
) -> tuple[GenerationSpec, Sequence[Request], OutputBuilder, bool]:
    """Encodes a request's prompt. Run it as a task, since the warnings and the admission belong to its context.

    Returns:
      The spec, the engine's requests, the builder of outputs, and whether neither the request nor its model limits
      their tokens.

    Raises:
      ApiError: The request is invalid.
    """
    warnings: list[str] = []
    request_warnings.set(warnings)
    admission.set(service.admissions.unbounded())
    if isinstance(body, ChatFields):
        _check(body)  # messages and tools may have fields that no schema names
        spec = await requests.chat(body, service)
    else:
        spec = await requests.completion(body, service)
    needs_limit = spec.constraint is not None and spec.params[0].max_tokens is None
    if needs_limit:
        spec = replace(spec, params=[replace(each, max_tokens=MAX_CONSTRAINED_TOKENS) for each in spec.params])
    engine_requests, (prompt,) = await service.requests(spec, request_id), spec.prompts
    builder = OutputBuilder(request_id, prompt, len(engine_requests), spec.copies.logprobs, service.model.tokenizer)
    builder.warn(*warnings)
    return spec, engine_requests, builder, needs_limit


async def final_output(service: Service, body: CompletionFields | ChatFields) -> RequestOutput:
    """Returns the whole output of a request; see `outputs`."""
    async with aclosing(outputs(service, body)) as generated:
        return await anext(generated)

"""Requests in this process, from prompts and messages to outputs, on the same service as HTTP.

Their fields are the fields of HTTP bodies, so checks, defaults and results are the same.
"""

import asyncio
import operator
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
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
from .errors import RequestError, checked, python_errors, wrong_value
from .outputs import OutputBuilder, RequestOutput, State
from .sampling_params import PARAMS, LLMCompletionFields, RequestOutputKind, SamplingParams, as_json


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


CONVERSATION: Final = 'a list of messages, such as [{"role": "user", "content": "Hello!"}]'
"""Description of a conversation for errors."""

MAX_CONSTRAINED_TOKENS: Final = 16_384
"""Default of `max_tokens` with an output constraint, under which a model may repeat itself without end.

Over HTTP, the server's `request_timeout` ends such a request.
"""

_check: Final = BodyCheck([""])
"""Check of fields, in which no model is named."""


def is_list(value: object) -> bool:
    """Returns whether a value is a list, or like one: a tuple, an array of NumPy, a column of a table."""
    is_other = isinstance(value, str | bytes | bytearray | Mapping)
    return isinstance(value, Collection) and hasattr(value, "__getitem__") and not is_other


def is_prompt(value: object) -> bool:
    """Returns whether a value may be a prompt or a list of prompts."""
    return isinstance(value, str | Mapping) or is_list(value)


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[str | list[int]]:
    """Returns the text or the token ids of one prompt or several.

    Raises:
      RequestError: A prompt has the wrong type or no token ids.
    """
    first: object = None if isinstance(prompts, str | Mapping) else next(iter(prompts), None)
    has_ids = isinstance(first, SupportsIndex) and not is_list(first)  # unlike an array, which has the method, too
    if has_ids or isinstance(prompts, str | Mapping):
        return [prompt_content(cast(Prompt, prompts), "prompts")]
    listed = enumerate(cast(Sequence[Prompt], prompts))
    return [prompt_content(prompt, f"prompts[{index}]") for index, prompt in listed]


def pairs_of(pairs: Sequence[tuple[Prompt, Prompt]]) -> list[tuple[Prompt, Prompt]]:
    """Returns the pairs to score as a list.

    Raises:
      RequestError: An entry is no pair.
    """
    for index, pair in enumerate(pairs):
        if not is_list(pair) or len(pair) != 2:
            raise wrong_value(f"pairs[{index}]", 'a context and a continuation, such as ("The sea is", " blue")', pair)
    return list(pairs)


def as_conversation(prompt: Prompt | Conversation) -> Conversation | None:
    """Returns the messages, unless they are a text, token ids or a dict."""
    if isinstance(prompt, str | Mapping):
        return None
    first: object = next(iter(prompt), None)
    return cast(Conversation, prompt) if isinstance(first, Mapping) else None


def conversations_of(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """Returns one conversation or several as a list.

    Raises:
      RequestError: An entry is neither a message nor a conversation.
    """
    if isinstance(next(iter(messages), None), Mapping):
        return [cast(Conversation, messages)]
    for index, conversation in enumerate(messages):
        if not is_list(conversation):
            raise wrong_value(f"messages[{index}]", f"a message, or {CONVERSATION}", conversation)
    return list(cast(Sequence[Conversation], messages))


def params_of(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """Returns a list of `count` parameters, one for each request.

    Raises:
      RequestError: `params` is a list whose length is not `count`, or has an entry of another type.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"sampling_params must be one for all or one for each of {count} prompts, got {len(params)}")
    for index, entry in enumerate(params):
        if not isinstance(entry, SamplingParams):
            raise wrong_value(f"sampling_params[{index}]", PARAMS, entry)
    return list(params)


def completion_fields(prompt: Prompt, params: SamplingParams, state: State | None = None) -> CompletionFields:
    """Returns the fields of a completion.

    Args:
      state: Saved state that the prompt continues.

    Raises:
      RequestError: The prompt or a parameter has the wrong type or is out of range.
    """
    fields = {**params.body_fields(), "prompt": prompt_content(prompt), "from_state": state and state.id}
    return checked(LLMCompletionFields, fields)


def scored_fields(token_ids: Sequence[int]) -> CompletionFields:
    """Returns the fields of a completion that reports the log-probabilities of a prompt, and generates nothing.

    Raises:
      RequestError: There are too many tokens.
    """
    return checked(CompletionFields, {"prompt": list(token_ids), "max_tokens": 0, "prompt_logprobs": 1})


def chat_fields(
    messages: Conversation, params: SamplingParams, options: ChatOptions, state: State | None = None
) -> ChatFields:
    """Returns the fields of a chat.

    Args:
      state: Saved state that the conversation continues.

    Raises:
      RequestError: A message, a parameter or an option has the wrong type or is out of range.
    """
    taken = {name: value for name, value in options.items() if name in ChatOptions.__annotations__}
    fields = params.body_fields()
    if (num_top := fields.pop("logprobs", None)) is not None:
        fields |= {"logprobs": True, "top_logprobs": num_top}
    fields |= {"messages": as_json(messages), **as_json(taken), "from_state": state and state.id}
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
            fix = "; chat takes messages" if "role" in prompt else ""
            raise RequestError(f"{param}: a dict must have the key prompt or prompt_token_ids{fix}", param)
        return prompt_content(found, param, may_be_empty=may_be_empty)
    if isinstance(prompt, str):
        return prompt
    token_ids = as_token_ids(prompt)
    if token_ids is None:
        raise wrong_value(param, "text or token ids", prompt)
    if not token_ids and not may_be_empty:
        raise RequestError(f"{param}: the list of token ids is empty", param)
    return token_ids


def as_token_ids(value: object) -> list[int] | None:
    """Returns a list of whole numbers, also NumPy's; None if the value is no such list."""
    try:
        return [operator.index(token_id) for token_id in cast(Iterable[Any], value)] if is_list(value) else None
    except TypeError:
        return None


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

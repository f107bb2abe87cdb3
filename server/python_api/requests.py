"""Requests in this process: from a prompt to outputs, on the service that HTTP uses too."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from ..api.openai.chat_completions import chat_spec
from ..api.openai.completions import completion_spec
from ..generation.service import Service
from ..generation.spec import Choice, GenerationSpec
from ..request_warnings import request_warnings
from .bodies import ChatOptions, Conversation, Prompt, chat_body, completion_body
from .errors import python_errors
from .outputs import OutputBuilder, RequestOutput
from .sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request whose prompt is not encoded yet.

    Attributes:
      spec: Returns the spec.
      id: Id of the request.
    """

    spec: Callable[[Service], Awaitable[GenerationSpec]]
    id: str


def completion(prompt: Prompt, params: SamplingParams, request_id: str | None = None) -> GenerationRequest:
    """Returns the request to continue a prompt.

    Raises:
      RequestError: The prompt or a parameter has the wrong type or is out of range.
    """
    body = completion_body(prompt, params)
    return GenerationRequest(lambda service: completion_spec(body, service), request_id or f"cmpl-{uuid4().hex}")


def chat(
    messages: Conversation, params: SamplingParams, options: ChatOptions, request_id: str | None = None
) -> GenerationRequest:
    """Returns the request for the next message of a conversation.

    Raises:
      RequestError: A message, a parameter or an option has the wrong type or is out of range.
    """
    body = chat_body(messages, params, options)
    return GenerationRequest(lambda service: chat_spec(body, service), request_id or f"chatcmpl-{uuid4().hex}")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that can be generated."""

    spec: GenerationSpec
    choices: Sequence[Choice]
    warnings: tuple[str, ...]


async def outputs(
    service: Service, request: GenerationRequest, kind: RequestOutputKind
) -> AsyncGenerator[RequestOutput]:
    """Yields the outputs of a request.

    Args:
      kind: Content of the outputs.

    Raises:
      RequestError: The request is invalid.
      RoostError: The request failed for another reason.
    """
    with python_errors():
        prepared = await asyncio.create_task(_prepare(service, request))  # in a context of its own
        (prompt,) = prepared.spec.prompts
        num_prompt_logprobs = prepared.spec.copies.logprobs
        num_choices, tokenizer = len(prepared.choices), service.model.tokenizer
        builder = OutputBuilder(request.id, prompt, num_choices, num_prompt_logprobs, tokenizer, prepared.warnings)
        async with service.generation(request.id, prepared.choices) as generation:
            async for delta in generation:
                builder.add(delta)
                if kind is not RequestOutputKind.FINAL_ONLY:
                    yield builder.news() if kind is RequestOutputKind.DELTA else builder.so_far()
        if kind is RequestOutputKind.FINAL_ONLY:
            yield builder.so_far()


async def _prepare(service: Service, request: GenerationRequest) -> _Prepared:
    warnings: list[str] = []
    request_warnings.set(warnings)
    spec = await request.spec(service)
    choices = await service.choices(spec)
    return _Prepared(spec, choices, tuple(warnings))


async def final_outputs(
    service: Service,
    requests: Sequence[GenerationRequest],
    max_running: int,
    on_finished: Callable[[], None] = lambda: None,
) -> list[RequestOutput]:
    """Returns the outputs of requests, in their order. The first error ends the others.

    Args:
      max_running: Maximum number of requests at the same time.
      on_finished: Called after each request.

    Raises:
      RequestError: A request is invalid.
      RoostError: A request failed for another reason.
    """
    found: dict[int, RequestOutput] = {}
    pending = iter(enumerate(requests))

    async def work() -> None:
        for index, request in pending:
            async with aclosing(outputs(service, request, RequestOutputKind.FINAL_ONLY)) as generated:
                found[index] = await anext(generated)
            on_finished()

    tasks = [asyncio.create_task(work()) for _ in range(min(max_running, len(requests)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [found[index] for index in range(len(requests))]

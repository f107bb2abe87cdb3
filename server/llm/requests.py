"""Requests in this process, from a prompt to outputs, on the same service as HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

from ...engine import FinishReason
from ..errors.request_errors import request_warnings
from ..generation import requests
from ..generation.service import Service
from ..generation.spec import Choice, GenerationSpec
from ..schemas.body import BodyCheck
from .errors import python_errors
from .outputs import OutputBuilder, RequestOutput
from .prompts import ChatOptions, Conversation, Prompt, chat_fields, completion_fields
from .sampling_params import RequestOutputKind, SamplingParams
from .states import State

MAX_CONSTRAINED_TOKENS: Final = 16_384
"""Default of `max_tokens` with an output constraint, under which a model may repeat itself without end.

Over HTTP, the server's `request_timeout` ends such a request.
"""

_check: Final = BodyCheck("")
"""Check of fields, in which no model is named."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request whose prompt is not encoded yet.

    Attributes:
      spec: Returns the spec.
      id: Id of the request.
    """

    spec: Callable[[Service], Awaitable[GenerationSpec]]
    id: str


def completion(
    prompt: Prompt, params: SamplingParams, request_id: str | None = None, state: State | None = None
) -> GenerationRequest:
    """Returns the request to continue a prompt, after a saved state if one is given.

    Raises:
      RequestError: The prompt or a parameter has the wrong type or is out of range.
    """
    fields = completion_fields(prompt, params, None if state is None else state.id)
    return GenerationRequest(lambda service: requests.completion(fields, service), request_id or f"cmpl-{uuid4().hex}")


def chat(
    messages: Conversation,
    params: SamplingParams,
    options: ChatOptions,
    request_id: str | None = None,
    state: State | None = None,
) -> GenerationRequest:
    """Returns the request for the next message of a conversation, after a saved state if one is given.

    Raises:
      RequestError: A message, a parameter or an option has the wrong type or is out of range.
    """
    fields = chat_fields(messages, params, options, None if state is None else state.id)

    async def spec(service: Service) -> GenerationSpec:
        _check(fields)  # messages and tools may have fields that no schema names
        return await requests.chat(fields, service)

    return GenerationRequest(spec, request_id or f"chatcmpl-{uuid4().hex}")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that can be generated.

    Attributes:
      limit_warning: Warning if the limit of tokens ends a choice; None if the request or its model sets the limit.
    """

    spec: GenerationSpec
    choices: Sequence[Choice]
    warnings: tuple[str, ...]
    limit_warning: str | None


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
        prepared = await asyncio.create_task(prepare(service, request))
        (prompt,) = prepared.spec.prompts
        num_prompt_logprobs = prepared.spec.copies.logprobs
        num_choices, tokenizer = len(prepared.choices), service.model.tokenizer
        builder = OutputBuilder(request.id, prompt, num_choices, num_prompt_logprobs, tokenizer, prepared.warnings)
        async with service.generation(request.id, prepared.choices) as generation:
            async for delta in generation:
                builder.add(delta)
                if delta.finish_reason is FinishReason.LENGTH and prepared.limit_warning is not None:
                    builder.warn(prepared.limit_warning)
                if kind is not RequestOutputKind.FINAL_ONLY:
                    yield builder.news() if kind is RequestOutputKind.DELTA else builder.so_far()
        if kind is RequestOutputKind.FINAL_ONLY:
            yield builder.so_far()


async def prepare(service: Service, request: GenerationRequest) -> PreparedRequest:
    """Encodes a request's prompt. Run it as a task, since the warnings belong to its context.

    Raises:
      ApiError: The request is invalid.
    """
    warnings: list[str] = []
    request_warnings.set(warnings)
    spec = await request.spec(service)
    needs_limit = spec.constraint is not None and spec.params[0].max_tokens is None
    if needs_limit:
        spec = replace(spec, params=[replace(each, max_tokens=MAX_CONSTRAINED_TOKENS) for each in spec.params])
    choices = await service.choices(spec)
    limit_warning = f"max_tokens: the default of {choices[0].params.max_tokens} ended the output"
    return PreparedRequest(spec, choices, tuple(warnings), limit_warning if needs_limit else None)


async def final_output(service: Service, request: GenerationRequest) -> RequestOutput:
    """Returns the whole output of a request; see `outputs`."""
    async with aclosing(outputs(service, request, RequestOutputKind.FINAL_ONLY)) as generated:
        return await anext(generated)


async def run_all[Result](
    jobs: Sequence[Callable[[], Awaitable[Result]]], max_running: int, on_finished: Callable[[], None] = lambda: None
) -> list[Result]:
    """Returns the results of jobs, in their order. The first error cancels the remaining jobs.

    Args:
      max_running: Maximum number of jobs at the same time.
      on_finished: Called after each job.

    Raises:
      Exception: Any error of a job.
    """
    found: dict[int, Result] = {}
    pending = iter(enumerate(jobs))

    async def work() -> None:
        for index, job in pending:
            found[index] = await job()
            on_finished()

    tasks = [asyncio.create_task(work()) for _ in range(min(max_running, len(jobs)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [found[index] for index in range(len(jobs))]

"""Converts a body of `/v1/responses` to a spec."""

from collections.abc import Sequence

from ....engine import SamplingParams
from ...constraints.output_constraint import OutputConstraint, with_tools
from ...errors.request_errors import bad_value
from ...generation.prompts import Prompt
from ...generation.requests import constraint_of, sampling_params
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...generation.state_store import StoredState
from ...schemas.output_formats import schema_spelling
from ...schemas.tools import OtherTool
from ...text.conversation import ToolOptions
from .body import LOGPROBS, ResponseBody
from .prompt_fields import PromptFields


def generation_options(
    body: ResponseBody, service: Service
) -> tuple[Sequence[SamplingParams], OutputConstraint | None]:
    """Returns the sampling parameters and the output constraint of a body.

    Raises:
      ApiError: The body requests something that the server cannot do.
    """
    return _params(body, service), with_tools(_text_constraint(body), body.tool_options)


def generation_spec(
    body: ResponseBody,
    prompt: Prompt,
    params: Sequence[SamplingParams],
    constraint: OutputConstraint | None,
    state: StoredState | None = None,
) -> GenerationSpec:
    """Returns the spec of a body from its prepared parts.

    Args:
      state: Saved state that the prompt begins with; None prefills the whole prompt.
    """
    return GenerationSpec(
        [prompt],
        params,
        constraint,
        ignore_eos=body.ignore_eos,
        may_call=bool(body.tool_options.introduced),
        limit_param=None if body.max_output_tokens is None else "max_output_tokens",
        state=state,
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
    )


def tool_options(body: PromptFields) -> ToolOptions:
    """Returns the tools and the tool choice.

    Raises:
      ApiError: The only tool to call is one that the server cannot run.
    """
    if isinstance(body.tool_choice, OtherTool):
        kind = body.tool_choice.type
        raise bad_value("tool_choice", f"tool_choice: this server runs no tools of the type {kind[:60]!r}")
    return body.tool_options


def _text_constraint(body: ResponseBody) -> OutputConstraint | None:
    requested = body.text.format
    if requested.type == "text":
        return None
    is_schema = requested.type == "json_schema"
    schema = requested.schema_ if is_schema else None
    return constraint_of([schema_spelling("text.format", schema, requested.strict and is_schema)])


def _params(body: ResponseBody, service: Service) -> list[SamplingParams]:
    if body.top_logprobs is not None and not body.wants_logprobs:
        raise bad_value("top_logprobs", f'top_logprobs needs include: ["{LOGPROBS}"]')
    max_tokens = body.max_output_tokens or service.model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    return sampling_params(body, service.model, max_tokens, logprobs=logprobs)

"""Converts the fields that chat, completions and `/generate` share to a `GenerationSpec`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ....engine import SamplingParams
from ...errors import bad_value
from ...generation.output_constraint import OutputConstraint, constraint, json_constraint
from ...generation.prompts import Prompt
from ...generation.spec import GenerationSpec
from ...text.grammar import (
    OBJECT_SCHEMA,
    GrammarError,
    GrammarSpec,
    choice_spec,
    json_spec,
    lark_spec,
    regex_spec,
)
from ..common.response_builder import ReportOptions
from .response_format_schemas import ResponseFormat, StructuredFields, StructuredOutputs
from .schemas import GenerationBody

type _Made = GrammarSpec | OutputConstraint

type _Draft = tuple[str, Callable[[], _Made]]
"""A field, and the function that returns its constraint."""


def spec_of(body: GenerationBody, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> GenerationSpec:
    """Returns the part of a request's spec that the three endpoints share.

    Args:
      params: Sampling parameters of the choices of each prompt.
    """
    return GenerationSpec(
        prompts,
        params,
        stop=body.stop_strings,
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        holds_output=not body.stream,
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
        limit_param=None if body.max_tokens is None else "max_tokens",
    )


def report_options(body: GenerationBody) -> ReportOptions:
    """Returns the reports that a request asks for."""
    stream = body.stream_options
    if stream is None:
        return ReportOptions(timings=body.return_timings)
    return ReportOptions(stream.include_usage, stream.continuous_usage_stats, body.return_timings)


def constraint_of(body: StructuredFields) -> OutputConstraint | None:
    """Returns the output constraint of a request.

    Raises:
      ApiError: Several fields ask for one, or the constraint is invalid.
    """
    drafts = list(_drafts(body))
    if not drafts:
        return None
    (param, make), *others = drafts
    if others:
        raise bad_value(others[0][0], f"{param} and {others[0][0]} exclude each other")
    return constraint(param, make)


def _drafts(body: StructuredFields) -> Iterator[_Draft]:
    if body.response_format is not None and body.response_format.type != "text":
        requested = body.response_format
        yield "response_format", lambda: _format_constraint(requested)
    if body.structured_outputs is not None:
        yield _draft_within("structured_outputs", body.structured_outputs)
    yield from _drafts_by_kind("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    yield from _drafts_by_kind("", None, body.regex or None, None, body.grammar or None)
    if body.json_schema:
        schema = body.json_schema
        yield "json_schema", lambda: json_constraint("json_schema", schema)
    if body.ebnf:
        ebnf = body.ebnf
        yield "ebnf", lambda: lark_spec(ebnf)


def _draft_within(param: str, requested: StructuredOutputs) -> _Draft:
    """Returns the draft of an object that holds exactly one constraint. Errors name the whole object."""
    drafts = list(_drafts_by_kind("", requested.json_, requested.regex, requested.choice, requested.grammar, param))
    if requested.json_object:
        drafts.append((param, lambda: json_spec(OBJECT_SCHEMA)))
    if not drafts:
        raise bad_value(param, f"{param} must have one of json, regex, choice, grammar and json_object")
    if len(drafts) > 1:
        raise bad_value(param, f"{param} must have only one of json, regex, choice, grammar and json_object")
    return drafts[0]


def _drafts_by_kind(
    prefix: str,
    schema: str | Mapping[str, Any] | None,
    regex: str | None,
    choices: list[str] | None,
    lark: str | None,
    param: str | None = None,
) -> Iterator[_Draft]:
    """Yields the drafts of fields that are named by the kind of constraint.

    Args:
      prefix: Prefix of the fields' names.
      param: Field that holds all of them, and that errors name instead.
    """
    json_param, regex_param, choice_param, grammar_param = (
        param or f"{prefix}{kind}" for kind in ("json", "regex", "choice", "grammar")
    )
    if schema is not None:
        yield json_param, lambda: json_constraint(json_param, schema)
    if regex is not None:
        yield regex_param, lambda: regex_spec(regex)
    if choices is not None:
        yield choice_param, lambda: choice_spec(choices)
    if lark is not None:
        yield grammar_param, lambda: lark_spec(lark)


def _format_constraint(requested: ResponseFormat) -> _Made:
    """Returns the constraint of OpenAI's `json_schema`, llama.cpp's `schema` or TGI's `value`."""
    beside = requested.value if requested.schema_ is None else requested.schema_
    if requested.type == "regex":
        if not isinstance(beside, str):
            raise GrammarError("the type regex needs the field value, a string")
        return regex_spec(beside)
    if requested.type == "json_schema" and requested.json_schema is None and beside is None:
        raise GrammarError("the type json_schema needs the field json_schema")
    named = requested.json_schema
    schema = beside if named is None or named.schema_ is None else named.schema_
    is_strict = named is not None and named.strict
    wanted = OBJECT_SCHEMA if schema is None else schema
    return json_constraint("response_format", wanted, is_strict=is_strict, close_objects=True)

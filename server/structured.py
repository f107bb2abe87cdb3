"""From the fields that ask for structured output, or for calls of tools, to the one grammar that they mean."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError, bad_value
from .grammar import OBJECT_SCHEMA, GrammarError, GrammarSpec, choice_spec, json_spec, lark_spec, regex_spec
from .schema import ChatBody
from .structured_schema import ResponseFormat, StructuredFields, StructuredOutputs
from .tools import calls_spec, text_or_calls_spec
from .tools_schema import NamedTool, Tool


@dataclass(frozen=True, slots=True)
class Wish:
    """
    Attributes:
      param: the field that asks for it.
    """

    param: str
    spec: GrammarSpec

    def refused(self, error: GrammarError) -> ApiError:
        return bad_value(self.param, f"{self.param}: {error}")


type _Draft = tuple[str, Callable[[], GrammarSpec]]
"""A field, and what makes a grammar of it."""


def wish_of(body: StructuredFields, format_param: str = "response_format") -> Wish | None:
    """
    Args:
      format_param: what the client calls `response_format`.

    Raises:
      ApiError: several fields ask for something, or one is wrong.
    """
    drafts = list(_drafts(body, format_param))
    if not drafts:
        return None
    (param, make), *others = drafts
    if others:
        raise bad_value(others[0][0], f"{param} and {others[0][0]} exclude each other")
    try:
        return Wish(param, make())
    except GrammarError as error:
        raise bad_value(param, f"{param}: {error}") from None


def chat_wish(body: ChatBody, format_param: str = "response_format") -> Wish | None:
    """What the answer of a chat has to keep to; see `wish_of`. A format is for text: calls have their own.

    Raises:
      ApiError: also, tools are asked for that are not there.
    """
    wish = wish_of(body, format_param)
    forced = _forced_tools(body)
    if not body.may_call:
        return wish
    if not forced and wish is not None and wish.spec.schema is None:
        raise bad_value(wish.param, f"beside tools, {wish.param} cannot ask for anything but JSON")
    try:
        if forced:
            several = body.parallel_tool_calls and body.tool_choice == "required"
            return Wish("tools", calls_spec(forced, parallel=several))
        schema = None if wish is None else wish.spec.schema
        return Wish("tools", text_or_calls_spec(body.tools, schema, parallel=body.parallel_tool_calls))
    except GrammarError as error:
        raise bad_value("tools", f"tools: {error}") from None


def _forced_tools(body: ChatBody) -> list[Tool]:
    """Those of which one has to be called, if one has to."""
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise bad_value("tools", "tools: two functions have the same name")
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise bad_value("tool_choice", f"tool_choice: tools has no function {choice.function.name!r}")
        return [tool for tool in body.tools if tool.function.name == choice.function.name]
    if choice == "required" and not body.tools:
        raise bad_value("tool_choice", "tool_choice: required needs tools")
    return body.tools if choice == "required" else []


def _drafts(body: StructuredFields, format_param: str) -> Iterator[_Draft]:
    if body.response_format is not None and body.response_format.type != "text":
        asked = body.response_format
        yield format_param, lambda: _format_spec(asked)
    if body.structured_outputs is not None:
        yield from _drafts_within("structured_outputs", body.structured_outputs)
    yield from _drafts_by_kind("guided", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _drafts_within(param: str, asked: StructuredOutputs) -> Iterator[_Draft]:
    """The whole object is to blame for what is in it."""
    drafts = [
        *_drafts_by_kind(param, asked.json_, asked.regex, asked.choice, asked.grammar),
        *([(f"{param}_json_object", lambda: json_spec(OBJECT_SCHEMA))] if asked.json_object else []),
    ]
    if not drafts:
        raise bad_value(param, f"{param} must have one of json, regex, choice, grammar and json_object")
    if len(drafts) > 1:
        raise bad_value(param, f"{param} must have only one of json, regex, choice, grammar and json_object")
    yield param, drafts[0][1]


def _drafts_by_kind(
    prefix: str, schema: str | Mapping[str, Any] | None, regex: str | None, choices: list[str] | None, lark: str | None
) -> Iterator[_Draft]:
    if schema is not None:
        yield f"{prefix}_json", lambda: json_spec(_parsed(schema))
    if regex is not None:
        yield f"{prefix}_regex", lambda: regex_spec(regex)
    if choices is not None:
        yield f"{prefix}_choice", lambda: choice_spec(choices)
    if lark is not None:
        yield f"{prefix}_grammar", lambda: lark_spec(lark)


def _format_spec(asked: ResponseFormat) -> GrammarSpec:
    if asked.type == "json_object":
        return json_spec(OBJECT_SCHEMA)
    if asked.json_schema is None:
        raise GrammarError("the type json_schema needs the field json_schema")
    return json_spec(OBJECT_SCHEMA if asked.json_schema.schema_ is None else asked.json_schema.schema_)


def _parsed(schema: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError):
        raise GrammarError("the schema is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise GrammarError("the schema must be a JSON object")
    return parsed

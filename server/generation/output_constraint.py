"""From the fields that ask for structured output, or for calls of tools, to the one grammar that they mean."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .. import request_warnings
from ..api.openai.response_format_schemas import ResponseFormat, StructuredFields, StructuredOutputs
from ..api.openai.schemas import ChatBody
from ..api.openai.tool_schemas import AllowedTools, NamedTool, Tool
from ..errors import ApiError, bad_value
from ..text.grammar import (
    OBJECT_SCHEMA,
    GrammarError,
    GrammarSpec,
    choice_spec,
    json_spec,
    lark_spec,
    prepare,
    regex_spec,
)
from .tools import calls_spec, parameters, text_or_calls_spec


@dataclass(frozen=True, slots=True)
class Fallback:
    """A wider grammar, for when the one that was asked for cannot be compiled.

    Attributes:
      warning: what is not enforced then.
    """

    spec: GrammarSpec
    warning: str


@dataclass(frozen=True, slots=True)
class Wish:
    """
    Attributes:
      param: the field that asks for it.
      fallbacks: what else will do, in this order.
    """

    param: str
    spec: GrammarSpec
    fallbacks: tuple[Fallback, ...] = ()

    def refused(self, error: GrammarError) -> ApiError:
        return bad_value(self.param, f"{self.param}: {error}", is_private=True)


type _Draft = tuple[str, Callable[[], Wish]]
"""A field, and what makes a grammar of it."""

_ANY_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object"}


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
        return make()
    except GrammarError as error:
        raise bad_value(param, f"{param}: {error}", is_private=True) from None


def chat_wish(body: ChatBody, format_param: str = "response_format") -> Wish | None:
    """What the answer of a chat has to keep to; see `wish_of`. A format is for text: calls have their own.

    Raises:
      ApiError: also, tools are asked for that are not there.
    """
    wish = wish_of(body, format_param)
    tools, is_forced = _callable_tools(body)
    if not tools or not body.may_call:
        return wish
    if not is_forced and wish is not None and wish.spec.schema is None:
        raise bad_value(wish.param, f"beside tools, {wish.param} cannot ask for anything but JSON")
    try:
        if is_forced:
            return _forced_calls(
                tools, parallel=body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool)
            )
        schema = None if wish is None else wish.spec.schema
        return _possible_calls(tools, schema, parallel=body.parallel_tool_calls)
    except GrammarError as error:
        raise bad_value("tools", f"tools: {error}", is_private=True) from None


def _forced_calls(tools: Sequence[Tool], *, parallel: bool) -> Wish:
    tools = [_enforceable_tool(tool) for tool in tools]
    spec, coerced = (calls_spec(tools, parallel=parallel, coerce_one_of=coerces) for coerces in (False, True))
    may_coerce = not any(tool.function.strict for tool in tools)
    return Wish("tools", spec, (Fallback(coerced, "tools: oneOf"),) if may_coerce and "oneOf" in spec.source else ())


def _possible_calls(tools: Sequence[Tool], schema: str | None, *, parallel: bool) -> Wish:
    """Text or calls. Where a tool's schema cannot be enforced, and it does not demand that, any arguments will do."""

    def spec(tools: Sequence[Tool], *, coerces: bool = False) -> GrammarSpec:
        return text_or_calls_spec(tools, schema, parallel=parallel, coerce_one_of=coerces)

    known = [_known_tool(tool) for tool in tools]
    asked, fallbacks = spec(known), []
    if not any(tool.function.strict for tool in tools):
        if "oneOf" in asked.source:
            fallbacks.append(Fallback(spec(known, coerces=True), "tools: oneOf"))
        fallbacks.append(Fallback(spec([_with_schema(tool, _ANY_ARGUMENTS) for tool in tools]), "tools: parameters"))
    return Wish("tools", asked, tuple(fallbacks))


def _known_tool(tool: Tool) -> Tool:
    """A tool with a schema that can be enforced, or with none."""
    try:
        return _enforceable_tool(tool)
    except GrammarError:
        if tool.function.strict:
            raise
        request_warnings.warn(f"tools.{tool.function.name}: parameters")
        return _with_schema(tool, _ANY_ARGUMENTS)


def _enforceable_tool(tool: Tool) -> Tool:
    """
    Raises:
      GrammarError: its parameters are no schema of an object, or have a keyword that cannot be enforced but must be.
    """
    function, schema = tool.function, parameters(tool)
    if schema["type"] != "object":
        raise GrammarError(f"the parameters of {function.name} must be of the type object")
    param = f"tools.{function.name}"
    return _with_schema(tool, _enforceable(param, schema, is_strict=function.strict, close_objects=True))


def _with_schema(tool: Tool, schema: Mapping[str, Any]) -> Tool:
    return tool.model_copy(update={"function": tool.function.model_copy(update={"parameters": schema})})


def _enforceable(param: str, schema: Mapping[str, Any], *, is_strict: bool, close_objects: bool) -> Mapping[str, Any]:
    """The schema without the keywords that cannot be enforced, which are reported.

    Raises:
      GrammarError: there are such keywords, and the client demands that all are enforced.
    """
    prepared = prepare(schema, close_objects=close_objects)
    if is_strict and prepared.dropped:
        raise GrammarError(f"unsupported keyword: {', '.join(prepared.dropped)}")
    request_warnings.warn_all(f"{param}: {keyword}" for keyword in prepared.dropped)
    return prepared.schema


def _json_wish(
    param: str, schema: str | Mapping[str, Any], *, is_strict: bool = False, close_objects: bool = False
) -> Wish:
    enforceable = _enforceable(param, _parsed(schema), is_strict=is_strict, close_objects=close_objects)
    spec = json_spec(enforceable)
    if is_strict or "oneOf" not in spec.source:
        return Wish(param, spec)
    return Wish(param, spec, (Fallback(json_spec(enforceable, coerce_one_of=True), f"{param}: oneOf"),))


def _callable_tools(body: ChatBody) -> tuple[list[Tool], bool]:
    """Returns the tools that the answer may call, and whether it has to call one.

    Raises:
      ApiError: a tool is asked for that is not there, or two have one name.
    """
    tools, choice = {tool.function.name: tool for tool in body.tools}, body.tool_choice
    if len(tools) < len(body.tools):
        raise bad_value("tools", "tools: two functions have the same name")
    names, is_forced = list(tools), choice == "required"
    if isinstance(choice, NamedTool):
        names, is_forced = [choice.function.name], True
    elif isinstance(choice, AllowedTools):
        names, is_forced = sorted(choice.allowed_tools.names), choice.allowed_tools.mode == "required"
    for name in names:
        if name not in tools:
            raise bad_value("tool_choice", f"tool_choice: tools has no function {name!r}")
    if is_forced and not names:
        raise bad_value("tool_choice", "tool_choice: required needs a tool of the type function")
    return [tool for name, tool in tools.items() if name in names], is_forced


def _drafts(body: StructuredFields, format_param: str) -> Iterator[_Draft]:
    if body.response_format is not None and body.response_format.type != "text":
        asked = body.response_format
        yield format_param, lambda: _format_wish(format_param, asked)
    if body.structured_outputs is not None:
        yield from _drafts_within("structured_outputs", body.structured_outputs)
    yield from _drafts_by_kind("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    yield from _drafts_by_kind("", None, body.regex or None, None, body.grammar or None)
    if body.json_schema:
        schema = body.json_schema
        yield "json_schema", lambda: _json_wish("json_schema", schema)
    if body.ebnf:
        ebnf = body.ebnf
        yield "ebnf", lambda: Wish("ebnf", lark_spec(ebnf))


def _drafts_within(param: str, asked: StructuredOutputs) -> Iterator[_Draft]:
    """The whole object is to blame for what is in it."""
    drafts = [
        *_drafts_by_kind("", asked.json_, asked.regex, asked.choice, asked.grammar, param),
        *([(param, lambda: Wish(param, json_spec(OBJECT_SCHEMA)))] if asked.json_object else []),
    ]
    if not drafts:
        raise bad_value(param, f"{param} must have one of json, regex, choice, grammar and json_object")
    if len(drafts) > 1:
        raise bad_value(param, f"{param} must have only one of json, regex, choice, grammar and json_object")
    yield param, drafts[0][1]


def _drafts_by_kind(
    prefix: str,
    schema: str | Mapping[str, Any] | None,
    regex: str | None,
    choices: list[str] | None,
    lark: str | None,
    param: str | None = None,
) -> Iterator[_Draft]:
    """
    Args:
      prefix: of the fields' names.
      param: the field that all of them are in, and that is to blame.
    """
    json_param, regex_param, choice_param, grammar_param = (
        param or f"{prefix}{kind}" for kind in ("json", "regex", "choice", "grammar")
    )
    if schema is not None:
        yield json_param, lambda: _json_wish(json_param, schema)
    if regex is not None:
        yield regex_param, lambda: Wish(regex_param, regex_spec(regex))
    if choices is not None:
        yield choice_param, lambda: Wish(choice_param, choice_spec(choices))
    if lark is not None:
        yield grammar_param, lambda: Wish(grammar_param, lark_spec(lark))


def _format_wish(param: str, asked: ResponseFormat) -> Wish:
    """Whatever way of saying it: OpenAI's `json_schema`, llama.cpp's `schema`, or TGI's `value`."""
    beside = asked.value if asked.schema_ is None else asked.schema_
    if asked.type == "regex":
        if not isinstance(beside, str):
            raise GrammarError("the type regex needs the field value, a string")
        return Wish(param, regex_spec(beside))
    if asked.type == "json_schema" and asked.json_schema is None and beside is None:
        raise GrammarError("the type json_schema needs the field json_schema")
    named = asked.json_schema
    schema = beside if named is None or named.schema_ is None else named.schema_
    is_strict = named is not None and named.strict
    return _json_wish(param, OBJECT_SCHEMA if schema is None else schema, is_strict=is_strict, close_objects=True)


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

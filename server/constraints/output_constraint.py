"""Output constraints: JSON schemas, regular expressions, grammars and tool calls, as one grammar per request."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors.request_errors import ApiError, bad_value, warn, warn_all
from ..text.chat_format import FunctionTool, ToolOptions
from .grammar_spec import OBJECT_SCHEMA, GrammarError, GrammarSpec, json_spec
from .schema_preparation import prepare
from .tool_calls import calls_spec, parameters, text_or_calls_spec

_ANY_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """A grammar that the output of every choice matches.

    Attributes:
      param: Field of the request that requests the constraint.
      fallback: Wider grammar with arbitrary arguments of tools, used and reported if `spec` cannot be compiled.
    """

    param: str
    spec: GrammarSpec
    fallback: GrammarSpec | None = None

    def refused(self, error: GrammarError) -> ApiError:
        """Returns the error for a constraint that cannot be compiled."""
        return _refused(self.param, error)


def constraint(param: str, make: Callable[[], GrammarSpec]) -> OutputConstraint:
    """Returns the constraint that a field requests.

    Args:
      make: Returns the grammar; may raise `GrammarError`.

    Raises:
      ApiError: The field's value cannot become a grammar.
    """
    try:
        return OutputConstraint(param, make())
    except GrammarError as error:
        raise _refused(param, error) from None


def schema_spec(param: str, schema: str | Mapping[str, Any], *, is_strict: bool = False) -> GrammarSpec:
    """Returns the language of JSON that matches a client's schema.

    Args:
      param: Name of the schema in warnings.
      schema: JSON schema, as an object or as JSON text.
      is_strict: Whether a keyword that cannot be enforced is an error. Otherwise it is dropped and reported.

    Raises:
      GrammarError: The schema is too large or has no value, or is strict and has keywords that cannot be enforced.
    """
    return json_spec(_enforceable(param, _parsed(schema), is_strict=is_strict))


def json_constraint(param: str, schema: str | Mapping[str, Any] | None, *, is_strict: bool = False) -> OutputConstraint:
    """Returns the constraint to JSON of a client's schema, or to any object without one; see `schema_spec`."""
    wanted = OBJECT_SCHEMA if schema is None else schema
    return constraint(param, lambda: schema_spec(param, wanted, is_strict=is_strict))


def with_tools(text: OutputConstraint | None, options: ToolOptions) -> OutputConstraint | None:
    """Returns the constraint of output that may call tools.

    Args:
      text: Constraint of output that is text. Calls have separate constraints.

    Raises:
      ApiError: The requested tool does not exist, two tools have the same name, or the tools are too large.
    """
    tools, is_forced = _callable_tools(options)
    if not tools or not options.introduced:
        return text
    if not is_forced and text is not None and text.spec.schema is None:
        raise bad_value(text.param, f"with tools, {text.param} can only request JSON")
    if is_forced:
        return constraint("tools", lambda: calls_spec([*map(_enforceable_tool, tools)], parallel=options.parallel))

    def spec(tools: Sequence[FunctionTool]) -> GrammarSpec:
        return text_or_calls_spec(tools, None if text is None else text.spec.schema, parallel=options.parallel)

    made = constraint("tools", lambda: spec([*map(_known_tool, tools)]))
    if any(tool.strict for tool in tools):
        return made
    return replace(made, fallback=spec([_with_any_arguments(tool) for tool in tools]))


def _callable_tools(options: ToolOptions) -> tuple[list[FunctionTool], bool]:
    """Returns the tools that the model may call, and whether it must call one.

    Raises:
      ApiError: The requested tool does not exist, or two tools have the same name.
    """
    tools = {tool.name: tool for tool in options.tools}
    if len(tools) < len(options.tools):
        repeated = next(name for name, count in Counter(tool.name for tool in options.tools).items() if count > 1)
        raise bad_value("tools", f"tools: several functions have the name {repeated!r}")
    names, is_forced = list(tools if options.names is None else options.names), options.mode == "required"
    for name in names:
        if name not in tools:
            raise bad_value("tool_choice", f"tool_choice: tools has no function {name!r}")
    if is_forced and not names:
        raise bad_value("tool_choice", "tool_choice: required needs a tool of the type function")
    return [tool for name, tool in tools.items() if name in names], is_forced


def _known_tool(tool: FunctionTool) -> FunctionTool:
    """Returns the tool with a schema that can be enforced, or with arbitrary arguments if it has no such schema.

    Raises:
      GrammarError: The tool is strict, and its schema cannot be enforced.
    """
    try:
        return _enforceable_tool(tool)
    except GrammarError:
        if tool.strict:
            raise
        warn(f"tools.{tool.name}: parameters")
        return _with_any_arguments(tool)


def _with_any_arguments(tool: FunctionTool) -> FunctionTool:
    return replace(tool, parameters=_ANY_ARGUMENTS)


def _enforceable_tool(tool: FunctionTool) -> FunctionTool:
    """Returns the tool with a schema for llguidance.

    Raises:
      GrammarError: The parameters are not a schema of an object, or cannot be enforced.
    """
    schema = parameters(tool)
    if schema["type"] != "object":
        raise GrammarError(f"the parameters of {tool.name} must be of the type object")
    return replace(tool, parameters=_enforceable(f"tools.{tool.name}", schema, is_strict=tool.strict))


def _enforceable(name: str, schema: Mapping[str, Any], *, is_strict: bool) -> Mapping[str, Any]:
    """Returns a schema for llguidance, and reports the keywords that cannot be enforced.

    Raises:
      GrammarError: No value fits the schema, or it is strict and has keywords that cannot be enforced.
    """
    prepared = prepare(schema)
    if prepared.schema is None:
        raise GrammarError("no text can satisfy it")
    if is_strict and prepared.dropped:
        raise GrammarError(f"unsupported keyword: {', '.join(prepared.dropped)}")
    warn_all(f"{name}: {keyword}" for keyword in dict.fromkeys((*prepared.dropped, *prepared.widened)))
    return prepared.schema


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


def _refused(param: str, error: GrammarError) -> ApiError:
    return bad_value(param, f"{param}: {error}", is_private=True)

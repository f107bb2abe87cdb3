"""Output constraints: JSON schemas, regular expressions, grammars and tool calls, as one grammar per request."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors.request_errors import ApiError, bad_value
from ..errors.request_warnings import warn, warn_all
from ..text.conversation import FunctionTool, ToolOptions
from .grammar import GrammarError, GrammarSpec, json_spec, prepare
from .tools import calls_spec, parameters, text_or_calls_spec

_ANY_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Fallback:
    """A wider grammar, used if the requested one cannot be compiled.

    Attributes:
      warning: Name of what the wider grammar does not enforce.
    """

    spec: GrammarSpec
    warning: str


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """A grammar that the output of every choice matches.

    Attributes:
      param: Field of the request that asks for the constraint.
      fallbacks: Grammars to try in this order if `spec` cannot be compiled.
    """

    param: str
    spec: GrammarSpec
    fallbacks: tuple[Fallback, ...] = ()

    def refused(self, error: GrammarError) -> ApiError:
        """Returns the response to a constraint that cannot be compiled."""
        return _refused(self.param, error)


def constraint(param: str, make: Callable[[], GrammarSpec | OutputConstraint]) -> OutputConstraint:
    """Returns the constraint that a field asks for.

    Args:
      make: Returns the grammar or constraint; may raise `GrammarError`.

    Raises:
      ApiError: The field's value cannot become a grammar.
    """
    try:
        made = make()
    except GrammarError as error:
        raise _refused(param, error) from None
    return made if isinstance(made, OutputConstraint) else OutputConstraint(param, made)


def json_constraint(
    param: str, schema: str | Mapping[str, Any], *, is_strict: bool = False, close_objects: bool = False
) -> OutputConstraint:
    """Returns the constraint to JSON that matches a schema.

    Args:
      schema: JSON schema, as an object or as JSON text.
      is_strict: Whether a keyword that cannot be enforced is an error. Otherwise it is dropped and reported.
      close_objects: Whether objects have no properties but those that the schema names.

    Raises:
      GrammarError: The schema is too large, or has keywords that cannot be enforced but must be.
    """
    enforceable = _enforceable(param, _parsed(schema), is_strict=is_strict, close_objects=close_objects)
    spec = json_spec(enforceable)
    if is_strict or "oneOf" not in spec.source:
        return OutputConstraint(param, spec)
    return OutputConstraint(param, spec, (Fallback(json_spec(enforceable, coerce_one_of=True), f"{param}: oneOf"),))


def with_tools(text: OutputConstraint | None, options: ToolOptions) -> OutputConstraint | None:
    """Returns the constraint of output that may call tools.

    Args:
      text: Constraint of output that is text. Calls have constraints of their own.

    Raises:
      ApiError: A tool is requested that is not there, two tools have one name, or the tools are too large.
    """
    tools, is_forced = _callable_tools(options)
    if not tools or not options.introduced:
        return text
    if not is_forced and text is not None and text.spec.schema is None:
        raise bad_value(text.param, f"beside tools, {text.param} cannot ask for anything but JSON")
    if is_forced:
        return constraint("tools", lambda: _forced_calls(tools, parallel=options.parallel))
    schema = None if text is None else text.spec.schema
    return constraint("tools", lambda: _possible_calls(tools, schema, parallel=options.parallel))


def _callable_tools(options: ToolOptions) -> tuple[list[FunctionTool], bool]:
    """Returns the tools that the model may call, and whether it must call one.

    Raises:
      ApiError: A tool is requested that is not there, or two tools have one name.
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


def _forced_calls(tools: Sequence[FunctionTool], *, parallel: bool) -> OutputConstraint:
    tools = [_enforceable_tool(tool) for tool in tools]
    spec, coerced = (calls_spec(tools, parallel=parallel, coerce_one_of=coerces) for coerces in (False, True))
    may_coerce = not any(tool.strict for tool in tools) and "oneOf" in spec.source
    return OutputConstraint("tools", spec, (Fallback(coerced, "tools: oneOf"),) if may_coerce else ())


def _possible_calls(tools: Sequence[FunctionTool], schema: str | None, *, parallel: bool) -> OutputConstraint:
    """Returns the constraint to text or calls. Tools that are not strict may fall back to any arguments."""

    def spec(tools: Sequence[FunctionTool], *, coerces: bool = False) -> GrammarSpec:
        return text_or_calls_spec(tools, schema, parallel=parallel, coerce_one_of=coerces)

    known = [_known_tool(tool) for tool in tools]
    requested, fallbacks = spec(known), []
    if not any(tool.strict for tool in tools):
        if "oneOf" in requested.source:
            fallbacks.append(Fallback(spec(known, coerces=True), "tools: oneOf"))
        any_arguments = [replace(tool, parameters=_ANY_ARGUMENTS) for tool in tools]
        fallbacks.append(Fallback(spec(any_arguments), "tools: parameters"))
    return OutputConstraint("tools", requested, tuple(fallbacks))


def _known_tool(tool: FunctionTool) -> FunctionTool:
    """Returns the tool with a schema that can be enforced, or with any arguments if there is none.

    Raises:
      GrammarError: The tool is strict, and its schema cannot be enforced.
    """
    try:
        return _enforceable_tool(tool)
    except GrammarError:
        if tool.strict:
            raise
        warn(f"tools.{tool.name}: parameters")
        return replace(tool, parameters=_ANY_ARGUMENTS)


def _enforceable_tool(tool: FunctionTool) -> FunctionTool:
    """Returns the tool with a schema that can be enforced.

    Raises:
      GrammarError: The parameters are no schema of an object, or have a keyword that cannot be enforced but must be.
    """
    schema = parameters(tool)
    if schema["type"] != "object":
        raise GrammarError(f"the parameters of {tool.name} must be of the type object")
    schema_param = f"tools.{tool.name}"
    return replace(tool, parameters=_enforceable(schema_param, schema, is_strict=tool.strict, close_objects=True))


def _enforceable(param: str, schema: Mapping[str, Any], *, is_strict: bool, close_objects: bool) -> Mapping[str, Any]:
    """Returns the schema without the keywords that cannot be enforced, which are reported.

    Raises:
      GrammarError: There are such keywords, and the request demands that all are enforced.
    """
    prepared = prepare(schema, close_objects=close_objects)
    if is_strict and prepared.dropped:
        raise GrammarError(f"unsupported keyword: {', '.join(prepared.dropped)}")
    warn_all(f"{param}: {keyword}" for keyword in prepared.dropped)
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

"""Output constraints: JSON schemas, regular expressions, grammars and tool calls, as one grammar per request."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors.request_errors import ApiError, bad_value, warn, warn_all
from ..text.chat_format import FunctionTool, ToolOptions
from .grammar_spec import GrammarError, GrammarSpec, json_spec
from .schema_preparation import prepare
from .tool_calls import calls_spec, parameters, text_or_calls_spec

_ANY_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Fallback:
    """A wider grammar, used if the requested one cannot be compiled.

    Attributes:
      make: Returns the grammar; raises `GrammarError` if it is too large.
      warnings: Names of the keywords that the wider grammar does not enforce.
    """

    make: Callable[[], GrammarSpec]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """A grammar that the output of every choice matches.

    Attributes:
      param: Field of the request that requests the constraint.
      fallbacks: Grammars to try in this order if `spec` cannot be compiled.
    """

    param: str
    spec: GrammarSpec
    fallbacks: tuple[Fallback, ...] = ()

    def refused(self, error: GrammarError) -> ApiError:
        """Returns the error for a constraint that cannot be compiled."""
        return _refused(self.param, error)


def constraint(param: str, make: Callable[[], GrammarSpec | OutputConstraint]) -> OutputConstraint:
    """Returns the constraint that a field requests.

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


def json_constraint(param: str, schema: str | Mapping[str, Any], *, is_strict: bool = False) -> OutputConstraint:
    """Returns the constraint to JSON that matches a schema.

    Args:
      schema: JSON schema, as an object or as JSON text.
      is_strict: Whether a keyword that cannot be enforced is an error. Otherwise it is dropped and reported.

    Raises:
      GrammarError: The schema is too large, or is strict and has keywords that cannot be enforced.
    """
    prepared = _Prepared(param, _parsed(schema), is_strict=is_strict)
    prepared.warn()
    return _with_fallbacks(
        param,
        lambda rewrites, coerces: json_spec(prepared.schema(rewrites=rewrites), coerce_one_of=coerces),
        [prepared],
    )


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
        return constraint("tools", lambda: _forced_calls(tools, parallel=options.parallel))
    schema = None if text is None else text.spec.schema
    return constraint("tools", lambda: _possible_calls(tools, schema, parallel=options.parallel))


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


def _forced_calls(tools: Sequence[FunctionTool], *, parallel: bool) -> OutputConstraint:
    enforceable = [_EnforceableTool(tool) for tool in tools]
    for each in enforceable:
        each.warn()
    return _calls(enforceable, lambda tools, coerces: calls_spec(tools, parallel=parallel, coerce_one_of=coerces))


def _possible_calls(tools: Sequence[FunctionTool], schema: str | None, *, parallel: bool) -> OutputConstraint:
    """Returns the constraint to text or calls. Tools that are not strict may fall back to arbitrary arguments."""

    def spec(tools: Sequence[FunctionTool], coerces: bool) -> GrammarSpec:
        return text_or_calls_spec(tools, schema, parallel=parallel, coerce_one_of=coerces)

    made = _calls([_known_tool(tool) for tool in tools], spec)
    if any(tool.strict for tool in tools):
        return made
    any_arguments = [replace(tool, parameters=_ANY_ARGUMENTS) for tool in tools]
    last = Fallback(lambda: spec(any_arguments, False), ("tools: parameters",))
    return replace(made, fallbacks=(*made.fallbacks, last))


def _known_tool(tool: FunctionTool) -> "_EnforceableTool":
    """Returns the tool with a schema that can be enforced, or with arbitrary arguments if it has no such schema.

    Raises:
      GrammarError: The tool is strict, and its schema cannot be enforced.
    """
    try:
        made = _EnforceableTool(tool)
        made.warn()
    except GrammarError:
        if tool.strict:
            raise
        warn(f"tools.{tool.name}: parameters")
        return _EnforceableTool(replace(tool, parameters=_ANY_ARGUMENTS))
    return made


def _calls(
    tools: "Sequence[_EnforceableTool]", spec: Callable[[Sequence[FunctionTool], bool], GrammarSpec]
) -> OutputConstraint:
    return _with_fallbacks(
        "tools", lambda rewrites, coerces: spec([tool.tool(rewrites=rewrites) for tool in tools], coerces), tools
    )


def _with_fallbacks(
    param: str, spec: Callable[[bool, bool], GrammarSpec], schemas: "Sequence[_Prepared]"
) -> OutputConstraint:
    """Returns a constraint that falls back to wider grammars, unless a schema is strict.

    Args:
      spec: Returns a grammar, given whether keywords become unions and whether `oneOf` is treated as `anyOf`.

    Raises:
      GrammarError: Each grammar is too large.
    """
    rewritten = [warning for schema in schemas for warning in schema.rewritten]
    try:
        made = spec(True, False)
    except GrammarError:
        if not rewritten or any(schema.is_strict for schema in schemas):
            raise
        warn_all(rewritten)
        return OutputConstraint(param, spec(False, True))
    if any(schema.is_strict for schema in schemas):
        return OutputConstraint(param, made)
    fallbacks = [Fallback(lambda: spec(True, True), (f"{param}: oneOf",))] if "oneOf" in made.source else []
    if rewritten:
        fallbacks.append(Fallback(lambda: spec(False, True), tuple(rewritten)))
    return OutputConstraint(param, made, tuple(fallbacks))


class _Prepared:
    """A schema that can be enforced.

    Args:
      schema: JSON schema.

    Raises:
      GrammarError: No value fits the schema.

    Attributes:
      param: Name of the schema in warnings.
      is_strict: Whether a keyword that cannot be enforced is an error.
      rewritten: Warnings about the keywords that became unions, used if these keywords are dropped.
    """

    def __init__(self, param: str, schema: Mapping[str, Any], *, is_strict: bool) -> None:
        self.param, self.is_strict = param, is_strict
        self._schema = schema
        self._prepared = prepare(schema)
        if self._prepared.schema is None and (is_strict or prepare(schema, rewrites=False).schema is None):
            raise _unsatisfiable()
        self.rewritten = [f"{param}: {keyword}" for keyword in self._prepared.rewritten]

    def warn(self) -> None:
        """Reports the keywords that cannot be enforced.

        Raises:
          GrammarError: The request requires that all keywords are enforced.
        """
        if self.is_strict and self._prepared.dropped:
            raise GrammarError(f"unsupported keyword: {', '.join(self._prepared.dropped)}")
        warn_all(f"{self.param}: {keyword}" for keyword in self._prepared.dropped)

    def schema(self, *, rewrites: bool) -> Mapping[str, Any]:
        """Returns the schema for llguidance.

        Args:
          rewrites: Whether keywords become unions, which may be too much for llguidance.

        Raises:
          GrammarError: No value fits the schema.
        """
        prepared = self._prepared if rewrites else prepare(self._schema, rewrites=False)
        if prepared.schema is None:
            raise _unsatisfiable()
        return prepared.schema


class _EnforceableTool(_Prepared):
    """A tool whose arguments can be enforced.

    Raises:
      GrammarError: The parameters are not a schema of an object.
    """

    def __init__(self, tool: FunctionTool) -> None:
        schema = parameters(tool)
        if schema["type"] != "object":
            raise GrammarError(f"the parameters of {tool.name} must be of the type object")
        super().__init__(f"tools.{tool.name}", schema, is_strict=tool.strict)
        self._tool = tool

    def tool(self, *, rewrites: bool) -> FunctionTool:
        """Returns the tool with a schema for llguidance; see `schema`."""
        return replace(self._tool, parameters=self.schema(rewrites=rewrites))


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


def _unsatisfiable() -> GrammarError:
    return GrammarError("no text can satisfy it")


def _refused(param: str, error: GrammarError) -> ApiError:
    return bad_value(param, f"{param}: {error}", is_private=True)

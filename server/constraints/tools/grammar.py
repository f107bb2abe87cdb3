"""Grammars of output that calls tools."""

from collections.abc import Sequence
from typing import Final

from ...text.conversation import FunctionTool
from ..grammar import GrammarError, GrammarSpec, grammar_spec, lark_text, schema_text
from .form import BETWEEN_CALLS, CALL_END, MARK, call_start, parameters

MAX_CALLS: Final = 16
"""Maximum number of calls in one output. It ends the output of a model that repeats itself."""


def calls_spec(tools: Sequence[FunctionTool], *, parallel: bool, coerce_one_of: bool = False) -> GrammarSpec:
    """Returns the grammar of output that consists of calls.

    Args:
      parallel: Whether there may be several calls.
      coerce_one_of: See `schema_text`.

    Raises:
      GrammarError: The tools are too large.
    """
    return grammar_spec("start: calls\n" + _calls(tools, parallel, coerce_one_of))


def text_or_calls_spec(
    tools: Sequence[FunctionTool], schema: str | None, *, parallel: bool, coerce_one_of: bool = False
) -> GrammarSpec:
    """Returns the grammar of output that is calls if it begins with `MARK`, and text otherwise.

    Args:
      schema: JSON schema of the text, as `schema_text` returns it; None allows any text.
      parallel: Whether there may be several calls.
      coerce_one_of: See `schema_text`.

    Raises:
      GrammarError: The tools are too large.
    """
    text = "text: TEXT\n" + f"TEXT: /(?s:.*)/ & ~/{MARK}(?s:.*)/\n" if schema is None else f"text: %json {schema}\n"
    return grammar_spec("start: text | calls\n" + text + _calls(tools, parallel, coerce_one_of))


def _calls(tools: Sequence[FunctionTool], parallel: bool, coerce_one_of: bool) -> str:
    more = f" ({lark_text(BETWEEN_CALLS)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = (f"call_{index}: {_call(tool, coerce_one_of)}" for index, tool in enumerate(tools))
    return "\n".join((f"calls: call{more}", f"call: {names}", *rules, ""))


def _call(tool: FunctionTool, coerce_one_of: bool) -> str:
    schema = parameters(tool)
    if schema["type"] != "object":
        raise GrammarError(f"the parameters of {tool.name} must be of the type object")
    text = schema_text(schema, coerce_one_of=coerce_one_of)
    return f"{lark_text(call_start(tool.name))} %json {text} {lark_text(CALL_END)}"

"""The grammar of answers that call tools."""

from collections.abc import Sequence
from typing import Final

from ...api.openai.tool_schemas import Tool
from ...text.grammar import GrammarError, GrammarSpec, grammar_spec, lark_text, schema_text
from .form import BETWEEN_CALLS, CALL_END, MARK, call_start, parameters

MAX_CALLS: Final = 16
"""In one answer: a model that has begun to repeat itself would never end."""


def calls_spec(tools: Sequence[Tool], *, parallel: bool, coerce_one_of: bool = False) -> GrammarSpec:
    """An answer of nothing but calls.

    Args:
      parallel: whether there may be several.
      coerce_one_of: see `schema_text`.

    Raises:
      GrammarError: the tools are too large.
    """
    return grammar_spec("start: calls\n" + _calls(tools, parallel, coerce_one_of))


def text_or_calls_spec(
    tools: Sequence[Tool], schema: str | None, *, parallel: bool, coerce_one_of: bool = False
) -> GrammarSpec:
    """An answer that is text, or calls if it begins with their mark.

    Args:
      schema: what the text has to keep to, if anything, as from `schema_text`.
      parallel, coerce_one_of: see `calls_spec`.

    Raises:
      GrammarError: the tools are too large.
    """
    text = "text: TEXT\n" + f"TEXT: /(?s:.*)/ & ~/{MARK}(?s:.*)/\n" if schema is None else f"text: %json {schema}\n"
    return grammar_spec("start: text | calls\n" + text + _calls(tools, parallel, coerce_one_of))


def _calls(tools: Sequence[Tool], parallel: bool, coerce_one_of: bool) -> str:
    more = f" ({lark_text(BETWEEN_CALLS)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = (f"call_{index}: {_call(tool, coerce_one_of)}" for index, tool in enumerate(tools))
    return "\n".join((f"calls: call{more}", f"call: {names}", *rules, ""))


def _call(tool: Tool, coerce_one_of: bool) -> str:
    schema = parameters(tool)
    if schema["type"] != "object":
        raise GrammarError(f"the parameters of {tool.function.name} must be of the type object")
    text = schema_text(schema, coerce_one_of=coerce_one_of)
    return f"{lark_text(call_start(tool.function.name))} %json {text} {lark_text(CALL_END)}"

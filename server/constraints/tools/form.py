"""Text form of tools, calls and results in prompts, and of calls in model output, with its grammar.

Most models with tools were trained on this form: a call is a JSON object with `name` and `arguments`, on a line between
the marks `<tool_call>` and `</tool_call>`. Consecutive calls are on consecutive lines.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from ...text.chat_format import FunctionTool
from ..grammar import GrammarError, GrammarSpec, grammar_spec, lark_text, schema_text

MARK: Final = "<tool_call>"
"""Start of output that consists of calls. Any other output is text."""

CALL_END: Final = "}\n</tool_call>"

BETWEEN_CALLS: Final = "\n"

MAX_CALLS: Final = 16
"""Maximum number of calls in one output. It ends the output of a model that repeats itself."""

_INSTRUCTIONS: Final = """\
You can call these functions:
{functions}
To call one, answer with nothing but the call, in this form; for several calls, one after the other:
{example}"""


def call_start(name: str) -> str:
    """Returns a call up to its arguments; `CALL_END` follows them."""
    return f'{MARK}\n{{"name": "{name}", "arguments": '


def call_text(name: str, arguments: str) -> str:
    """Returns the text of a whole call."""
    return f"{call_start(name)}{arguments.strip() or '{}'}{CALL_END}"


def result_text(result: str) -> str:
    """Returns the text of a call's result, which is part of a user's turn."""
    return f"<tool_response>\n{result}\n</tool_response>"


def tools_text(tools: Sequence[FunctionTool]) -> str:
    """Returns the introduction of the tools, which is part of the system text."""
    functions = "\n".join(json.dumps(described(tool)["function"], ensure_ascii=False) for tool in tools)
    return _INSTRUCTIONS.format(functions=functions, example=call_text("NAME", '{"ARGUMENT": VALUE}'))


def described(tool: FunctionTool) -> dict[str, Any]:
    """Returns the description of a tool for the model or a chat template, in OpenAI's shape."""
    description = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **description, "parameters": parameters(tool)}}


def parameters(tool: FunctionTool) -> dict[str, Any]:
    """Returns the JSON schema of a tool's arguments, which are always an object; empty without a schema."""
    schema = tool.parameters or {"properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


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

"""How tools, calls and their results are written in a prompt, and calls in an answer.

The form is the one that most models with tools have learnt: a call is a JSON object with `name` and `arguments`, on a
line between the marks `<tool_call>` and `</tool_call>`; several calls follow each other line by line.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from ...api.openai.tool_schemas import Tool

MARK: Final = "<tool_call>"
"""An answer that begins with it consists of calls; any other is text, whatever else it holds."""

CALL_END: Final = "}\n</tool_call>"
BETWEEN_CALLS: Final = "\n"

_INSTRUCTIONS: Final = """\
You can call these functions:
{functions}
To call one, answer with nothing but the call, in this form; for several calls, one after the other:
{example}"""


def call_start(name: str) -> str:
    """A call up to its arguments; `CALL_END` follows them."""
    return f'{MARK}\n{{"name": "{name}", "arguments": '


def call_text(name: str, arguments: str) -> str:
    """A call that was made."""
    return f"{call_start(name)}{arguments.strip() or '{}'}{CALL_END}"


def result_text(result: str) -> str:
    """What a call gave; it belongs to a turn of the user's."""
    return f"<tool_response>\n{result}\n</tool_response>"


def tools_text(tools: Sequence[Tool]) -> str:
    """Introduces the tools; it belongs to the system text."""
    functions = "\n".join(json.dumps(described(tool)["function"], ensure_ascii=False) for tool in tools)
    return _INSTRUCTIONS.format(functions=functions, example=call_text("NAME", '{"ARGUMENT": VALUE}'))


def described(tool: Tool) -> dict[str, Any]:
    """What the model, or a chat template, needs to know of a tool."""
    function = tool.function
    description = {} if function.description is None else {"description": function.description}
    return {
        "type": "function",
        "function": {"name": function.name, **description, "parameters": parameters(tool)},
    }


def parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object in any case; without a schema it is empty."""
    schema = tool.function.parameters or {"properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}

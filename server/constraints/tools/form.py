"""Text form of tools, calls and results in prompts, and of calls in model output.

Most models with tools were trained on this form: a call is a JSON object with `name` and `arguments`, on a line between
the marks `<tool_call>` and `</tool_call>`. Consecutive calls are on consecutive lines.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from ...text.conversation import FunctionTool

MARK: Final = "<tool_call>"
"""Start of output that consists of calls. Any other output is text."""

CALL_END: Final = "}\n</tool_call>"
BETWEEN_CALLS: Final = "\n"

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

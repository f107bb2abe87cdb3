"""Text form of tools, calls and results, its grammar, and the reader of calls in output.

Most models with tools were trained on this form: a call is a JSON object with `name` and `arguments`, on a line between
the marks `<tool_call>` and `</tool_call>`. Consecutive calls are on consecutive lines.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any, Final
from uuid import uuid4

from ..text.chat_format import FunctionTool
from ..text.detokenizer import start_of_prefix
from .grammar_spec import GrammarSpec, grammar_spec, lark_text, schema_text

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


def calls_spec(tools: Sequence[FunctionTool], *, parallel: bool) -> GrammarSpec:
    """Returns the grammar of output that consists of calls.

    Args:
      parallel: Whether there may be several calls.

    Raises:
      GrammarError: The tools are too large.
    """
    return grammar_spec("start: calls\n" + _calls(tools, parallel))


def text_or_calls_spec(tools: Sequence[FunctionTool], schema: str | None, *, parallel: bool) -> GrammarSpec:
    """Returns the grammar of output that is calls if it begins with `MARK`, and text otherwise.

    Args:
      schema: JSON schema of the text, as `schema_text` returns it; None allows any text.
      parallel: Whether there may be several calls.

    Raises:
      GrammarError: The tools are too large.
    """
    text = "text: TEXT\n" + f"TEXT: /(?s:.*)/ & ~/{MARK}(?s:.*)/\n" if schema is None else f"text: %json {schema}\n"
    return grammar_spec("start: text | calls\n" + text + _calls(tools, parallel))


def _calls(tools: Sequence[FunctionTool], parallel: bool) -> str:
    more = f" ({lark_text(BETWEEN_CALLS)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = (f"call_{index}: {_call(tool)}" for index, tool in enumerate(tools))
    return "\n".join((f"calls: call{more}", f"call: {names}", *rules, ""))


def _call(tool: FunctionTool) -> str:
    return f"{lark_text(call_start(tool.name))} %json {schema_text(parameters(tool))} {lark_text(CALL_END)}"


_START: Final = re.compile(rf'{BETWEEN_CALLS}?{MARK}\n\{{"name": "([^"]+)", "arguments": ')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call, or a whole call.

    Attributes:
      index: Place among the calls of the output.
      id, name: Set on a call's first piece.
      arguments: A piece of the arguments' JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class CallJoiner:
    """Joins the pieces of calls on arrival, without keeping all of them."""

    def __init__(self) -> None:
        self._calls: list[tuple[CallPiece, StringIO]] = []

    def add(self, piece: CallPiece) -> None:
        """Adds the next piece."""
        if not self._calls or self._calls[-1][0].index != piece.index:
            self._calls.append((piece, StringIO()))
        self._calls[-1][1].write(piece.arguments)

    def joined(self) -> tuple[CallPiece, ...]:
        """Returns one piece for each call so far."""
        return tuple(replace(first, arguments=arguments.getvalue()) for first, arguments in self._calls)


def join_calls(pieces: Sequence[CallPiece]) -> tuple[CallPiece, ...]:
    """Returns whole calls, given all their pieces in order."""
    joiner = CallJoiner()
    for piece in pieces:
        joiner.add(piece)
    return joiner.joined()


class CallReader:
    """Separates text from calls in output that arrives piece by piece.

    A grammar ensures that output which begins with `MARK` has the form of calls. Its JSON has no line breaks, neither
    in strings nor between its parts, so `CALL_END` is not in arguments. If the output is truncated, the last call is
    incomplete.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False
        self._num_calls = 0
        self._in_arguments = False

    @property
    def is_complete(self) -> bool:
        """Whether the output consists of calls, and the last of them has ended."""
        return self._num_calls > 0 and not self._in_arguments and not self._held

    @property
    def is_holding(self) -> bool:
        """Whether there is text that may be either text or part of a call, or either arguments or their end."""
        return bool(self._held)

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[CallPiece, ...]]:
        """Returns the text and the pieces of calls that are certain after more output.

        Args:
          text: Next piece of the output.
          is_last: Whether it is the last piece.
        """
        self._held += text
        if not self._num_calls:
            start = self._held[: len(MARK)]
            self._is_text = self._is_text or not MARK.startswith(start) or (is_last and start != MARK)
        if not self._is_text:
            return "", tuple(self._pieces())
        shown, self._held = self._held, ""
        return shown, ()

    def _pieces(self) -> Iterator[CallPiece]:
        """Yields the pieces of calls in the held text, without the part that may continue."""
        while True:
            if not self._in_arguments:
                if (start := _START.match(self._held)) is None:
                    return
                self._held = self._held[start.end() :]
                self._in_arguments = True
                self._num_calls += 1
                yield CallPiece(self._num_calls - 1, f"call_{uuid4().hex}", start[1])
            arguments, end, rest = self._held.partition(CALL_END)
            if not end:
                length = start_of_prefix(self._held, CALL_END)
                arguments, rest = self._held[:length], self._held[length:]
            self._held = rest
            if arguments:
                yield CallPiece(self._num_calls - 1, arguments=arguments)
            if not end:
                return
            self._in_arguments = False

"""Text form of tools, calls and results, its grammar, and the reader of calls in output.

Most models with tools were trained on this form: a call is a JSON object with `name` and `arguments`, on a line between
the marks `<tool_call>` and `</tool_call>`. Consecutive calls are on consecutive lines.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from io import StringIO
from typing import Any, Final
from uuid import uuid4

from ..text.chat_format import FunctionTool
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


_START: Final = re.compile(re.escape(MARK) + r'\n\{"name": "([^"]+)", "arguments": ')


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


class _Place(Enum):
    """Position of the reader in the output."""

    BEGINNING = auto()
    TEXT = auto()
    BEFORE_ARGUMENTS = auto()
    ARGUMENTS = auto()
    BEHIND_ARGUMENTS = auto()


class CallReader:
    """Separates text from calls in output that arrives piece by piece.

    A grammar ensures that output which begins with `MARK` has the form of calls. If the output is truncated, the last
    call is incomplete.

    Attributes:
      is_complete: Whether the output consists of calls, and the last of them has ended.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._place = _Place.BEGINNING
        self._held = ""
        self._num_calls = 0
        self._end = _ObjectEnd()

    @property
    def is_holding(self) -> bool:
        """Whether there is text that may be either text or part of a call."""
        return bool(self._held)

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[CallPiece, ...]]:
        """Returns the text and the pieces of calls that are certain after more output.

        Args:
          text: Next piece of the output.
          is_last: Whether it is the last piece.
        """
        self._held += text
        pieces: list[CallPiece] = []
        place = None
        while place is not self._place:
            place = self._place
            pieces += self._step()
        shown = self._held if self._place is _Place.TEXT or (is_last and self._place is _Place.BEGINNING) else ""
        self._held = self._held[len(shown) :]
        return shown, tuple(pieces)

    def _step(self) -> list[CallPiece]:
        """Advances to the next place if the held text is sufficient, and returns the pieces of calls that are found."""
        match self._place:
            case _Place.BEGINNING if not MARK.startswith(self._held[: len(MARK)]):
                self._place = _Place.TEXT
            case _Place.BEGINNING if len(self._held) >= len(MARK):
                self._place = _Place.BEFORE_ARGUMENTS
            case _Place.BEFORE_ARGUMENTS if found := _START.match(self._held):
                return self._begin(found)
            case _Place.ARGUMENTS if self._held:
                return self._go_on()
            case _Place.BEHIND_ARGUMENTS if self._held.startswith(CALL_END):
                self.is_complete = True
                if self._held.startswith(CALL_END + BETWEEN_CALLS):
                    self._held = self._held.removeprefix(CALL_END + BETWEEN_CALLS)
                    self._place, self.is_complete = _Place.BEFORE_ARGUMENTS, False
        return []

    def _begin(self, start: re.Match[str]) -> list[CallPiece]:
        self._held = self._held[start.end() :]
        self._place = _Place.ARGUMENTS
        self._end = _ObjectEnd()
        self._num_calls += 1
        return [CallPiece(self._num_calls - 1, f"call_{uuid4().hex}", start[1])]

    def _go_on(self) -> list[CallPiece]:
        length = self._end.find(self._held)
        if length is not None:
            self._place = _Place.BEHIND_ARGUMENTS
        arguments, self._held = self._held[:length], "" if length is None else self._held[length:]
        return [CallPiece(self._num_calls - 1, arguments=arguments)]


class _ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, piece: str) -> int | None:
        """Returns the number of the piece's characters that belong to the object; None if the object continues."""
        for position, char in enumerate(piece, start=1):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return position
        return None

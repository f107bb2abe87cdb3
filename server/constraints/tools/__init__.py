"""Tools: their text in prompts, the grammars of calls, and the parser of calls in model output."""

from .form import call_text, calls_spec, described, parameters, result_text, text_or_calls_spec, tools_text
from .reader import CallJoiner, CallPiece, CallReader, join_calls

__all__ = [
    "CallJoiner",
    "CallPiece",
    "CallReader",
    "call_text",
    "calls_spec",
    "described",
    "join_calls",
    "parameters",
    "result_text",
    "text_or_calls_spec",
    "tools_text",
]

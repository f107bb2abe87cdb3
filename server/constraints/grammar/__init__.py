"""Structured output: compiles schemas, regular expressions, choices and grammars to token masks."""

from ..grammar_worker.limits import GrammarLimits
from .compiler import Compilation, GrammarCompiler
from .constraint import Grammar, GrammarConstraint, GrammarFailedError
from .spec import (
    MAX_CHOICES,
    OBJECT_SCHEMA,
    GrammarBusyError,
    GrammarError,
    GrammarSpec,
    choice_spec,
    grammar_spec,
    json_spec,
    lark_spec,
    lark_text,
    regex_spec,
    schema_text,
)

__all__ = [
    "MAX_CHOICES",
    "OBJECT_SCHEMA",
    "Compilation",
    "Grammar",
    "GrammarBusyError",
    "GrammarCompiler",
    "GrammarConstraint",
    "GrammarError",
    "GrammarFailedError",
    "GrammarLimits",
    "GrammarSpec",
    "choice_spec",
    "grammar_spec",
    "json_spec",
    "lark_spec",
    "lark_text",
    "regex_spec",
    "schema_text",
]

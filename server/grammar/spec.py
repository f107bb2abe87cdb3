"""Languages that an answer may have to keep to, as values: what llguidance is told, and within which limits."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

MAX_SOURCE: Final = 256 * 1024
"""Characters of a schema, of a grammar, or of all choices together."""

MAX_REGEX: Final = 16 * 1024
MAX_CHOICES: Final = 4096

MAX_NESTING: Final = 1500
"""The library follows definitions that lead to definitions by recursion, and at some 4000 levels the process would be
out of stack. So definitions times the nesting within them has a limit far below."""

MAX_GBNF_RULES: Final = 500
"""Translating them takes time that grows with the square of their number: a tenth of a second for so many."""

_GBNF_RULE: Final = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

JSON_STYLE: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As most JSON that models have read. White space that is free is a trap: models stay in it."""

OBJECT_SCHEMA: Final[Mapping[str, Any]] = {"type": "object"}


class GrammarError(ValueError):
    """This cannot become a grammar; the text is one line, fit to show to the caller."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A language. Equal ones are compiled once.

    Attributes:
      source: in one of llguidance's notations, mostly Lark's, or in GBNF.
      schema: where the language is the JSON of one schema, that one.
      is_gbnf: whether it is yet to be translated for llguidance.
    """

    source: str
    schema: str | None = None
    is_gbnf: bool = False

    def for_library(self) -> str:
        """The source as llguidance takes it.

        Raises:
          GrammarError: it is no GBNF, although it looks like it.
        """
        if not self.is_gbnf:
            return self.source
        try:
            return gbnf_to_lark(self.source)
        except RecursionError:
            raise GrammarError("the grammar is nested too deeply") from None
        except Exception as error:  # the library has no class for all of its own
            raise GrammarError(f"invalid GBNF: {one_line(str(error))}") from None


def json_spec(schema: Mapping[str, Any], *, coerce_one_of: bool = False) -> GrammarSpec:
    """JSON that a schema describes, its properties in the schema's order.

    Args:
      coerce_one_of: see `schema_text`.

    Raises:
      GrammarError: the schema is too large. Whether it can be compiled shows when it is.
    """
    text = schema_text(schema, coerce_one_of=coerce_one_of)
    return grammar_spec(f"start: %json {text}\n", text)


def schema_text(schema: Mapping[str, Any], *, coerce_one_of: bool = False) -> str:
    """A schema as it stands behind `%json` in Lark's notation, with our style of JSON.

    Args:
      coerce_one_of: whether `oneOf` whose branches overlap is taken as `anyOf`, instead of being an error.

    Raises:
      GrammarError: the schema is too large.
    """
    guidance = {**JSON_STYLE, "coerce_one_of": True} if coerce_one_of else JSON_STYLE
    try:
        text = json.dumps({**schema, "x-guidance": guidance}, ensure_ascii=False)
        references = {value for value in _references(schema) if isinstance(value, str)}
        depth = _depth(schema)
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None
    _check_nesting("the schema", len(references) + 1, depth)
    return text


def regex_spec(pattern: str) -> GrammarSpec:
    """Texts that match a regular expression as a whole.

    Raises:
      GrammarError: it is too long.
    """
    _check_length("the regular expression", pattern, MAX_REGEX)
    return GrammarSpec(LLMatcher.grammar_from_regex(pattern))


def choice_spec(choices: Sequence[str]) -> GrammarSpec:
    """One of these texts.

    Raises:
      GrammarError: there are none, too many, or they are too long.
    """
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise GrammarError(f"there must be 1 to {MAX_CHOICES} choices")
    alternatives = " | ".join(map(lark_text, choices))
    return grammar_spec(f"start: CHOICE\nCHOICE: {alternatives}\n")


def grammar_spec(source: str, schema: str | None = None) -> GrammarSpec:
    """What a grammar of our own making says.

    Raises:
      GrammarError: it is too large.
    """
    _check_length("it", source, MAX_SOURCE)
    return GrammarSpec(source, schema)


def lark_spec(grammar: str) -> GrammarSpec:
    """What a grammar says: in Lark's notation with the rule `start`, or in GBNF, llama.cpp's kind of EBNF, with `root`.

    Raises:
      GrammarError: it is too large.
    """
    _check_length("the grammar", grammar, MAX_SOURCE)
    num_gbnf_rules = len(_GBNF_RULE.findall(grammar))
    if num_gbnf_rules > MAX_GBNF_RULES:
        raise GrammarError(f"the grammar has more than {MAX_GBNF_RULES} rules in GBNF; write it in Lark's notation")
    if "%json" in grammar and "$ref" in grammar:
        raise GrammarError("$ref inside %json is not supported")
    _check_nesting("the grammar", sum(":" in line for line in grammar.splitlines()), _bracket_depth(grammar))
    return GrammarSpec(grammar, is_gbnf=num_gbnf_rules > 0)


def lark_text(text: str) -> str:
    """A literal in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)


def one_line(message: str) -> str:
    """What the library says about a grammar, without the grammar."""
    if found := re.search(r"Unimplemented keys: \[(.*)\]", message):
        return f"unsupported keyword: {found[1].replace(chr(34), '')}"
    if found := re.search(r"^error: (.*)$", message, re.MULTILINE):
        return f"invalid regular expression: {found[1]}"
    first = message.partition("\n")[0].partition(". Enable")[0]
    if first.startswith("NoExtension"):
        return "no text can satisfy it"
    return first if len(first) <= 300 else first[:300] + "…"


def _references(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield from (value for key, value in schema.items() if key == "$ref")
    for child in _children(schema):
        yield from _references(child)


def _depth(schema: Any) -> int:
    return 1 + max(map(_depth, _children(schema)), default=0)


def _children(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield from schema.values()
    elif isinstance(schema, list):
        yield from schema


def _bracket_depth(grammar: str) -> int:
    depth = deepest = 1
    for char in grammar:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _check_length(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise GrammarError(f"{what} is longer than {limit} characters")


def _check_nesting(what: str, definitions: int, depth: int) -> None:
    if definitions * depth > MAX_NESTING:
        raise GrammarError(f"{what} has too many definitions: at most {MAX_NESTING // depth} at this depth of nesting")

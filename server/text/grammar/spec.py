"""Languages that an answer may have to keep to, as values: what llguidance is told, and within which limits."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher

from ....engine import RoostError

MAX_SOURCE: Final = 256 * 1024
"""Characters of a schema, of a grammar, or of all choices together."""

MAX_REGEX: Final = 16 * 1024
MAX_CHOICES: Final = 4096

_GBNF_RULE: Final = re.compile(r"^[ \t\r]*+[\w-]++[ \t]*+::=", re.MULTILINE)
"""Possessive, and within a line: a grammar of blank lines must not take minutes."""

JSON_STYLE: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As most JSON that models have read. White space that is free is a trap: models stay in it."""

OBJECT_SCHEMA: Final[Mapping[str, Any]] = {"type": "object"}


class GrammarError(ValueError):
    """This cannot become a grammar; the text is one line, fit to show to the caller."""


class GrammarBusyError(RoostError):
    """There is no room for another grammar now; later there may be."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A language. Equal ones are compiled once.

    Attributes:
      source: in one of llguidance's notations, mostly Lark's, or in GBNF.
      schema: where the language is the JSON of one schema, that one.
      is_gbnf: whether it is yet to be translated for llguidance; whoever compiles it does.
    """

    source: str
    schema: str | None = None
    is_gbnf: bool = False

    @property
    def num_bytes(self) -> int:
        """Memory that its texts take."""
        return sys.getsizeof(self.source) + sys.getsizeof(self.schema)


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
        return json.dumps({**schema, "x-guidance": guidance}, ensure_ascii=False)
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None


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
    return GrammarSpec(grammar, is_gbnf=_GBNF_RULE.search(grammar) is not None)


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


def _check_length(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise GrammarError(f"{what} is longer than {limit} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{what} has half of a surrogate pair, which is no text") from None

"""Specifications of output languages: sources of grammars, within limits of size."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...engine import RoostError
from .grammar_worker.protocol import Notation

MAX_SOURCE: Final = 2**20
"""Maximum characters of a schema, of all tools' schemas, or of all choices together."""

MAX_GRAMMAR: Final = 256 * 1024
"""Maximum characters of a client's grammar."""

MAX_REGEX: Final = 16 * 1024
"""Maximum characters of a regular expression."""

MAX_CHOICES: Final = 4096
"""Maximum number of choices."""

_GBNF_RULE: Final = re.compile(r"^[ \t\r]*+[\w-]++[ \t]*+::=", re.MULTILINE)
"""A rule of GBNF. Possessive and within a line, so that a grammar of blank lines doesn't take minutes."""

JSON_STYLE: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""Whitespace of generated JSON, as in most training data. Models tend to loop in optional whitespace."""

OBJECT_SCHEMA: Final[Mapping[str, Any]] = {"type": "object"}
"""Schema of any JSON object."""


class GrammarError(ValueError):
    """The source is not a usable grammar. The message is one line and safe to show to the client."""


class GrammarBusyError(RoostError):
    """The server has no room for another grammar at the moment."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """An output language. Equal specifications are compiled once.

    Attributes:
      source: Grammar.
      schema: JSON schema, if the language is the JSON of one schema.
      notation: Notation of the source.
    """

    source: str
    schema: str | None = None
    notation: Notation = Notation.LARK

    @property
    def num_bytes(self) -> int:
        """Bytes of memory of the sources."""
        return sys.getsizeof(self.source) + sys.getsizeof(self.schema)


def json_spec(schema: Mapping[str, Any]) -> GrammarSpec:
    """Returns the language of JSON that matches a schema, with properties in the schema's order.

    Args:
      schema: JSON schema.

    Raises:
      GrammarError: The schema is too large. Other errors are raised by its compilation.
    """
    text = schema_text(schema)
    return grammar_spec(f"start: %json {text}\n", text)


def schema_text(schema: Mapping[str, Any]) -> str:
    """Returns a schema as source for `%json` in Lark's notation, with `JSON_STYLE`.

    Raises:
      GrammarError: The schema is nested too deeply.
    """
    try:
        return json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False)
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None


def regex_spec(pattern: str) -> GrammarSpec:
    """Returns the language of texts that match a regular expression as a whole.

    Raises:
      GrammarError: The regular expression is too long.
    """
    _check_length("the regular expression", pattern, MAX_REGEX)
    return GrammarSpec(pattern, notation=Notation.REGEX)


def choice_spec(choices: Sequence[str]) -> GrammarSpec:
    """Returns the language of several fixed texts.

    Raises:
      GrammarError: The list of choices is empty, or the choices are too many or too long.
    """
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise GrammarError(f"there must be 1 to {MAX_CHOICES} choices")
    alternatives = " | ".join(map(lark_text, choices))
    return grammar_spec(f"start: CHOICE\nCHOICE: {alternatives}\n")


def grammar_spec(source: str, schema: str | None = None) -> GrammarSpec:
    """Returns the language of a Lark grammar that the server has built.

    Args:
      source: Lark grammar.
      schema: JSON schema, if the language is the JSON of one schema.

    Raises:
      GrammarError: The grammar is too large.
    """
    _check_length("it", source, MAX_SOURCE)
    return GrammarSpec(source, schema)


def lark_spec(grammar: str) -> GrammarSpec:
    """Returns the language of a client's grammar: Lark with the rule `start`, or GBNF (llama.cpp's EBNF) with `root`.

    Raises:
      GrammarError: The grammar is too large.
    """
    _check_length("the grammar", grammar, MAX_GRAMMAR)
    is_gbnf = _GBNF_RULE.search(grammar) is not None
    return GrammarSpec(grammar, notation=Notation.GBNF if is_gbnf else Notation.LARK)


def lark_text(text: str) -> str:
    """Returns a literal in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)


def one_line(message: str) -> str:
    """Returns a message of the library as one line, without the grammar that it quotes."""
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
        raise GrammarError(f"{what} has a lone surrogate, which is not valid text") from None

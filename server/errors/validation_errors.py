"""Errors of names and values: names of other servers, and error messages for values that a schema refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import orjson


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A field or a setting of another server.

    Attributes:
      instead: Alternative in Roost, as the end of a sentence; empty if there is none.
      neutral: Values without effect here.
      is_harmless: Whether no value has an effect here.
    """

    instead: str = ""
    neutral: tuple[Any, ...] = ()
    is_harmless: bool = False

    def has_effect(self, value: Any) -> bool:
        """Returns whether a value would change something elsewhere. Null is like leaving the name out."""
        return not (self.is_harmless or value is None or value in self.neutral)


_MAX_SHOWN: Final = 60
"""Maximum characters of a value that an error repeats."""

type _Detail = Mapping[str, Any]
"""One entry of pydantic's `errors()`."""

_RULES: Final[Mapping[str, str]] = {
    "bool": "must be true or false",
    "dict": "must be an object",
    "finite_number": "must be a finite number",
    "float": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list": "must be an array",
    "literal_error": "must be {expected}",
    "model": "must be an object",
    "string_pattern_mismatch": "must match {pattern}",
    "string_type": "must be a string",
    "tuple": "must be an array",
}
"""Descriptions of accepted values, by the type of pydantic's error or its first word."""

_SIZES: Final = {
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
}


def describe(detail: _Detail, location: Sequence[str | int]) -> str:
    """Returns one sentence about an error.

    Args:
      detail: An entry of pydantic's `errors()`.
      location: Place of the value within the body or query.
    """
    path, kind, value = path_of(location), detail["type"], detail.get("input")
    if kind == "missing":
        return f"{path} is required"
    if kind == "extra_forbidden":
        return f"{path} is unknown"
    if kind == "too_short" and isinstance(value, str):  # a secret, which pydantic measures like a list
        kind = "string_too_short"
    if kind in _SIZES:
        rule = _SIZES[kind].format(**detail["ctx"]).replace(" 1 characters", " 1 character")
        return f"{path} {rule.replace(' 1 entries', ' 1 entry')}, got {len(value or ())}"
    if kind == "wrong_kind":
        return f"{path} {detail['msg']}, got {_shown(value)}"
    if accepted := _RULES.get(kind) or _RULES.get(kind.partition("_")[0]):
        limits = {name: _limit(limit) for name, limit in detail.get("ctx", {}).items()}
        return f"{path} {accepted.format(**limits)}, got {_shown(value)}"
    return f"{path}: {str(detail['msg']).removeprefix('Value error, ')}"


class ClientName(str):
    """A name that the client chose within a value, such as one of metadata."""

    __slots__ = ()


def without_client_names(location: Sequence[str | int]) -> Sequence[str | int]:
    """Returns a place for the log, where a name that the client chose is an ellipsis."""
    return ["…" if isinstance(step, ClientName) else step for step in location]


def path_of(location: Sequence[str | int]) -> str:
    """Returns a place such as `messages[0].content`.

    Names in angle brackets come from the schema of a union, and pydantic adds `[key]` to a name that is invalid itself.
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<") and step != "[key]":
            name = step[:_MAX_SHOWN] if step.isprintable() else ascii(step[:_MAX_SHOWN])
            path += f".{name}" if path else name
    return path


def _limit(value: Any) -> str:
    """Returns a bound, or `"a", "b" or "c"` from pydantic's sentence about choices."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace("'", '"')


def _shown(value: Any) -> str:
    """Returns the value as JSON, or its type if it has no short form."""
    if value is None:
        return "null"
    if isinstance(value, float) and not isfinite(value):
        return "a number that is not finite"
    if isinstance(value, dict | list) and value:
        return "an object" if isinstance(value, dict) else "an array"
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a whole number of more than 64 bits, whose digits may be thousands
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"

"""Error messages for values that a schema refuses: the field, the accepted values, and the value sent."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final

import orjson

_MAX_SHOWN: Final = 60
"""Maximum characters of a value that an error repeats."""

_KINDS: Final[Mapping[type, str]] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
}

type _Detail = Mapping[str, Any]
"""One entry of pydantic's `errors()`."""

_RULES: Final[Mapping[str, Callable[[_Detail], str]]] = {
    "bool_parsing": lambda _: "must be true or false",
    "bool_type": lambda _: "must be true or false",
    "dict_type": lambda _: "must be an object",
    "float_parsing": lambda _: "must be a number",
    "float_type": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "greater_than": lambda detail: f"must be above {_limit(detail, 'gt')}",
    "greater_than_equal": lambda detail: f"must be at least {_limit(detail, 'ge')}",
    "int_from_float": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a smaller whole number",
    "int_type": lambda _: "must be a whole number",
    "less_than": lambda detail: f"must be below {_limit(detail, 'lt')}",
    "less_than_equal": lambda detail: f"must be at most {_limit(detail, 'le')}",
    "list_type": lambda _: "must be an array",
    "literal_error": lambda detail: f"must be {_choices(detail)}",
    "model_attributes_type": lambda _: "must be an object",
    "model_type": lambda _: "must be an object",
    "string_pattern_mismatch": lambda detail: f"must match {detail['ctx']['pattern']}",
    "string_type": lambda _: "must be a string",
    "wrong_kind": lambda detail: str(detail["msg"]),
}
"""Descriptions of accepted values, by the type of pydantic's error."""

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
    path, kind, value = _subject(detail, location), detail["type"], detail.get("input")
    if kind == "missing":
        return f"{path} is required"
    if kind == "extra_forbidden":
        return f"{path} is unknown"
    if kind == "too_short" and isinstance(value, str):  # a secret, which pydantic measures like a list
        kind = "string_too_short"
    if kind in _SIZES:
        rule = _SIZES[kind].format(**detail["ctx"]).replace(" 1 characters", " 1 character")
        return f"{path} {rule.replace(' 1 entries', ' 1 entry')}, got {len(value or ())}"
    if kind in _RULES:
        return f"{path} {_RULES[kind](detail)}, got {_shown(value)}"
    return f"{path}: {str(detail['msg']).removeprefix('Value error, ')}"


def _subject(detail: _Detail, location: Sequence[str | int]) -> str:
    """Returns the place of a value; of a name that is invalid itself, the place of the object that has it."""
    if location[-1:] == ("[key]",) and location[-2:-1] == (detail.get("input"),):
        return f"a name in {path_of(location[:-2])}"
    return path_of(location)


def path_of(location: Sequence[str | int]) -> str:
    """Returns a place such as `messages[0].content`. Names in angle brackets come from the schema of a union."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            name = step[:_MAX_SHOWN] if step.isprintable() else ascii(step[:_MAX_SHOWN])
            path += f".{name}" if path else name
    return path


def _limit(detail: _Detail, name: str) -> str:
    return f"{detail['ctx'][name]:g}" if isinstance(detail["ctx"][name], float) else str(detail["ctx"][name])


def _choices(detail: _Detail) -> str:
    """Returns `"a", "b" or "c"`, from pydantic's sentence about the choices."""
    return str(detail["ctx"]["expected"]).replace("'", '"')


def _shown(value: Any) -> str:
    """Returns the value as JSON, or its type if it has no short form."""
    if value is None:
        return "null"
    if isinstance(value, float) and not isfinite(value):
        return "a number that is not finite"
    if isinstance(value, dict | list):
        return _KINDS[type(value)] if value else orjson.dumps(value).decode()
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a whole number of more than 64 bits, whose digits may be thousands
        return _KINDS.get(type(value), "something else")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"

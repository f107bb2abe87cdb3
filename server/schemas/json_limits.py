"""JSON of clients: limits that apply before it is parsed, and the memory that its values take.

Nothing here imports the engine, which commands for other servers do without.
"""

import codecs
import sys
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import from_json

MAX_CONTAINERS: Final = 2**17
"""Maximum number of arrays and objects in a body. The maximum number of messages, each with parts, has fewer."""

LONG_BYTES: Final = 16 * 2**10
"""Bytes of JSON above which a worker thread parses it, which takes about a millisecond."""

_LARGEST_SHARED_INT: Final = 256
"""Largest integer that CPython caches."""

_FAULTS: Final = {
    "recursion limit exceeded": "has more than 201 arrays and objects within each other",
    "number out of range": "has a number with more than 4,300 digits",
}
"""The parser's errors about JSON that is valid and exceeds its limits, in words that say so."""

_NOT_STRUCTURE: Final = bytes({*range(256)} - {*b'"[{'})


class JsonError(ValueError):
    """Bytes are not JSON that Roost accepts. The message lacks its subject."""


def decode_json(raw: bytes | bytearray) -> Any:
    """Returns the value of JSON in UTF-8, with or without a byte order mark. It is stricter than Python's decoder.

    Raises:
      JsonError: The text has too many arrays and objects, is not JSON, or is nested too deeply.
    """
    if has_too_many_containers(raw):
        raise JsonError(f"must have at most {MAX_CONTAINERS} arrays and objects")
    try:
        return from_json(raw.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        fault, at, place = str(error).partition(" at ")
        raise JsonError(f"{_FAULTS.get(fault, f'is not valid JSON: {fault}')}{at}{place}") from None


def has_too_many_containers(raw: bytes | bytearray) -> bool:
    """Returns whether JSON has more than `MAX_CONTAINERS` arrays and objects: millions take seconds to parse.

    Brackets inside strings don't count. For text that is not JSON, the result is meaningless.
    """
    if raw.count(b"[") + raw.count(b"{") <= MAX_CONTAINERS:
        return False
    outside = _outside_strings(raw)
    return outside.count(b"[") + outside.count(b"{") > MAX_CONTAINERS


def _outside_strings(raw: bytes | bytearray) -> bytes:
    """Returns opening brackets that are not in strings.

    No other thread runs during one of these calls. Each takes milliseconds, where a regular expression takes a second
    for millions of strings.
    """
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = bytes(unescaped.translate(None, _NOT_STRUCTURE))
    return b"".join(structure.replace(b'""', b"").split(b'"')[::2])  # two quotes in a row change nothing around them


def size_of(value: Any) -> int:
    """Returns an upper bound, at most 25% too large, of the bytes that a parsed body takes.

    Visits about 10 million values per second.

    Args:
      value: Tree of pydantic models and JSON types. Only keys of objects may occur twice in it.
    """
    total, stack = 0, [value]
    keys = set[int]()
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is list:
            total += _allocated(item)
            if {*map(type, item)} == {int}:
                total += sum(_allocated(number) for number in item if number > _LARGEST_SHARED_INT)
            else:
                stack += item
        elif kind is dict:
            total += _allocated(item)
            new = [key for key in item if id(key) not in keys]
            keys.update(map(id, new))
            total += sum(map(_allocated, new))
            stack += item.values()
        elif isinstance(item, BaseModel):
            total += _allocated(item) + _allocated(item.__dict__) + _allocated(item.__pydantic_fields_set__)
            stack += item.__dict__.values()
            stack += [each for each in (item.__pydantic_extra__, item.__pydantic_private__) if each is not None]
        elif kind is str and len(item) <= 1:
            continue  # CPython shares strings of one character, except rare ones
        elif item is not None and kind is not bool:
            total += _allocated(item)
    return total


def _allocated(value: object) -> int:
    """Returns an object's own bytes; CPython allocates in multiples of 16."""
    return (sys.getsizeof(value) + 15) & ~15

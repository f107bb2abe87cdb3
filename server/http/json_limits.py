"""Limits on JSON that hold before it is parsed, and the memory that parsed values take."""

import sys
from typing import Any, Final

from pydantic import BaseModel

MAX_CONTAINERS: Final = 2**17
"""Maximum number of arrays and objects in a body. The maximum number of messages, each with parts, has fewer."""

LONG_BYTES: Final = 16 * 2**10
"""Bytes of JSON from which on a worker thread parses it, since parsing takes about a millisecond."""

_LARGEST_SHARED_INT: Final = 256
"""Largest integer that CPython caches."""

_NOT_STRUCTURE: Final = bytes({*range(256)} - {*b'"[{'})


def has_too_many_containers(raw: bytes | bytearray) -> bool:
    """Returns whether JSON has more than `MAX_CONTAINERS` arrays and objects: millions take seconds to parse.

    Brackets inside strings don't count. Of text that is not JSON, the result has no meaning.
    """
    return _num_containers(raw) > MAX_CONTAINERS and _num_containers(_outside_strings(raw)) > MAX_CONTAINERS


def _outside_strings(raw: bytes | bytearray) -> bytes:
    """Returns opening brackets that are not in strings.

    No other thread runs during one of these calls. Each takes milliseconds, where a regular expression takes a second
    for millions of strings.
    """
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = bytes(unescaped.translate(None, _NOT_STRUCTURE))
    return b"".join(structure.replace(b'""', b"").split(b'"')[::2])  # two quotes in a row change nothing around them


def _num_containers(raw: bytes | bytearray) -> int:
    return raw.count(b"[") + raw.count(b"{")


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
            if item.__pydantic_extra__ is not None:
                stack.append(item.__pydantic_extra__)
        elif kind is str and len(item) <= 1:
            continue  # CPython shares strings of one character, except rare ones
        elif item is not None and kind is not bool:
            total += _allocated(item)
    return total


def _allocated(value: object) -> int:
    """Returns an object's own bytes; CPython allocates in multiples of 16."""
    return (sys.getsizeof(value) + 15) & ~15

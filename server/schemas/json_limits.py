"""JSON of clients, with limits that apply before it is parsed.

Nothing here imports the engine, which commands for other servers do without.
"""

import codecs
from typing import Any, Final

from pydantic_core import from_json

MAX_CONTAINERS: Final = 2**17
"""Maximum number of arrays and objects in a body. The maximum number of messages, each with parts, has fewer."""

LONG_BYTES: Final = 16 * 2**10
"""Bytes of JSON above which a worker thread parses it, which takes about a millisecond."""

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
        raise JsonError(f"is not valid JSON: {error}") from None


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

"""Encoding of JSON, and of server-sent events in each API's form."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

_DEPTH: Final = 5
"""Depth down to which lists are written in slices: response, choices, choice, log-probabilities, list by token."""

_ENTRIES: Final = 512
"""Number of entries of a long list that are written at a time."""

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Returns the JSON of a value."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer of more than 64 bits, which the client sent and gets back
        return json.dumps(value).encode()


def large_to_json(value: Any) -> bytes:
    """Returns the same as `to_json`, but releases the interpreter to other threads between slices."""
    written = bytearray()
    _write(written, value, 0)
    return bytes(written)


def _write(written: bytearray, value: Any, depth: int) -> None:
    is_list = isinstance(value, list | tuple)
    if depth < _DEPTH and isinstance(value, dict):
        for place, (key, each) in enumerate(value.items()):
            written += (b"," if place else b"{") + to_json(key) + b":"
            _write(written, each, depth + 1)
        written += b"}" if value else b"{}"
    elif depth < _DEPTH and is_list and len(value) > _ENTRIES:
        for start in range(0, len(value), _ENTRIES):
            written += b"," if start else b"["
            written += to_json(value[start : start + _ENTRIES])[1:-1]
        written += b"]"
    elif depth < _DEPTH and is_list:
        for place, each in enumerate(value):
            written += b"," if place else b"["
            _write(written, each, depth + 1)
        written += b"]" if value else b"[]"
    else:
        written += to_json(value)


@dataclass(frozen=True, slots=True)
class SseEncoder:
    """Encodes events.

    Attributes:
      is_named: Whether an event's type stands in a line of its own too.
      keep_alive: Bytes that a silent stream sends, so that proxies and clients see that it is alive.
      end: Bytes behind the last event of a stream that ended well.
    """

    is_named: bool
    keep_alive: bytes = KEEP_ALIVE
    end: bytes = b""

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """Returns the bytes of an event."""
        return self._name(event) + b"data: " + to_json(event) + b"\n\n"

    def encode_large(self, event: Mapping[str, Any]) -> bytes:
        """Returns the same as `encode`, for worker threads; see `large_to_json`."""
        return self._name(event) + b"data: " + large_to_json(event) + b"\n\n"

    def _name(self, event: Mapping[str, Any]) -> bytes:
        return b"event: " + event["type"].encode() + b"\n" if self.is_named else b""


CHUNKS: Final = SseEncoder(is_named=False, end=DONE)
"""Encoder of OpenAI's chat completions and completions."""

TYPED_EVENTS: Final = SseEncoder(is_named=True)
"""Encoder of OpenAI's responses."""

PINGED_EVENTS: Final = SseEncoder(is_named=True, keep_alive=b'event: ping\ndata: {"type":"ping"}\n\n')
"""Encoder of Anthropic's messages."""

"""How the events of each API look on the wire: server-sent events, with or without names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson


@dataclass(frozen=True, slots=True)
class Framing:
    """
    Attributes:
      named: whether an event's type stands in a line of its own too.
      pause: what a stream sends when nothing happens; it tells proxies and people that it is alive.
      end: what follows the last event of a stream that ended well.
    """

    named: bool
    pause: bytes
    end: bytes = b""

    def encode(self, event: Mapping[str, Any]) -> bytes:
        name = b"event: " + event["type"].encode() + b"\n" if self.named else b""
        return name + b"data: " + to_json(event) + b"\n\n"

    def encode_large(self, event: Mapping[str, Any]) -> bytes:
        """The same on a worker thread, see `large_to_json`."""
        name = b"event: " + event["type"].encode() + b"\n" if self.named else b""
        return name + b"data: " + large_to_json(event) + b"\n\n"


def to_json(value: Any) -> bytes:
    """As it goes over the wire."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a number of more than 64 bits, which a client sent and gets back
        return json.dumps(value).encode()


def large_to_json(value: Any) -> bytes:
    """The same as `to_json` in many short calls: other threads stand still within one."""
    written = bytearray()
    _write(written, value, 0)
    return bytes(written)


_DEPTH: Final = 5
"""Answer, choices, choice, log-probabilities, list by token."""

_SLICE: Final = 512
"""Entries of a long list that are written at a time."""


def _write(written: bytearray, value: Any, depth: int) -> None:
    is_list = isinstance(value, list | tuple)
    if depth < _DEPTH and isinstance(value, dict):
        for place, (key, each) in enumerate(value.items()):
            written += (b"," if place else b"{") + to_json(key) + b":"
            _write(written, each, depth + 1)
        written += b"}" if value else b"{}"
    elif depth < _DEPTH and is_list and len(value) > _SLICE:
        for start in range(0, len(value), _SLICE):
            written += b"," if start else b"["
            written += to_json(value[start : start + _SLICE])[1:-1]
        written += b"]"
    elif depth < _DEPTH and is_list:
        for place, each in enumerate(value):
            written += b"," if place else b"["
            _write(written, each, depth + 1)
        written += b"]" if value else b"[]"
    else:
        written += to_json(value)


KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

CHUNKS: Final = Framing(named=False, pause=KEEP_ALIVE, end=DONE)
"""Of OpenAI's chat and completions."""

TYPED_EVENTS: Final = Framing(named=True, pause=KEEP_ALIVE)
"""Of OpenAI's responses."""

PINGED_EVENTS: Final = Framing(named=True, pause=b'event: ping\ndata: {"type":"ping"}\n\n')
"""Of Anthropic's messages."""

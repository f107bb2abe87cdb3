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


def to_json(value: Any) -> bytes:
    """As it goes over the wire."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a number of more than 64 bits, which a client sent and gets back
        return json.dumps(value).encode()


KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

CHUNKS: Final = Framing(named=False, pause=KEEP_ALIVE, end=DONE)
"""Of OpenAI's chat and completions."""

TYPED_EVENTS: Final = Framing(named=True, pause=KEEP_ALIVE)
"""Of OpenAI's responses."""

PINGED_EVENTS: Final = Framing(named=True, pause=b'event: ping\ndata: {"type":"ping"}\n\n')
"""Of Anthropic's messages."""

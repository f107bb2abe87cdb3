"""Server-sent events, in the form that each API gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .json_response import large_to_json, to_json

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


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

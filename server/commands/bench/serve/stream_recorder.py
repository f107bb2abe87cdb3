"""Turns a stream of completion chunks into a trace."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ....client.http_client import Response
from ....client.openai_server import EventParser, error_message, http_failure
from ..latency import RequestTrace

_TEXTS: Final = ("text", "content", "reasoning_content", "reasoning")
"""Fields of a choice or its delta that hold text."""


class StreamRecorder:
    """Receives the pieces of a response as they arrive. Token counts are the server's; times are when its chunks
    arrive.

    Only a chunk with text or token ids counts as a piece. The first chunk of a chat and the chunk with the usage have
    neither.

    Args:
      due_s: Time when the request was to be sent, in seconds of `time.perf_counter`.
      sent_s: Time when it was sent.
    """

    def __init__(self, due_s: float, sent_s: float) -> None:
        self._due_s = due_s
        self._sent_s = sent_s
        self._parser = EventParser()
        self._times_s: list[float] = []
        self._last_s: float | None = None
        self._ended_s: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._failure: str | None = None

    def feed(self, piece: bytes, now: float) -> None:
        """Receives bytes that arrived at `now`."""
        for event in self._parser.feed(piece):
            if event == b"[DONE]":
                self._ended_s = now
            else:
                self._read(event, now)

    def finish(self, response: Response, now: float) -> RequestTrace:
        """Returns the trace of an exchange that HTTP completed."""
        if response.status != 200:
            return self.fail(http_failure(response), now)
        if self._failure is None and self._ended_s is None:
            return self.fail("the stream ended without [DONE]", now)
        return self._trace(now)

    def fail(self, reason: str, now: float) -> RequestTrace:
        """Returns the trace of an exchange that failed; an error in the stream itself takes precedence."""
        self._failure = self._failure or reason
        return self._trace(now)

    def _read(self, event: bytes, now: float) -> None:
        try:
            chunk = orjson.loads(event)
            if chunk.get("choices"):
                self._read_choice(chunk["choices"][0], now)
            if chunk.get("usage"):
                self._usage = chunk["usage"]
            if "error" in chunk:
                self._failure = f"error in the stream: {error_message(chunk)}"
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            self._failure = "an event of the stream is not a completion chunk"

    def _read_choice(self, choice: Mapping[str, Any], now: float) -> None:
        delta = choice.get("delta") or choice
        if choice.get("finish_reason"):
            self._last_s = now
        if choice.get("token_ids") or any(delta.get(name) for name in _TEXTS) or (self._last_s and not self._times_s):
            self._times_s.append(now)

    def _trace(self, now: float) -> RequestTrace:
        return RequestTrace(
            sent_s=self._sent_s,
            token_times_s=self._times_s,
            end_s=now if self._failure or self._ended_s is None else self._ended_s,
            prompt_tokens=self._usage.get("prompt_tokens"),
            output_tokens=self._usage.get("completion_tokens"),
            last_s=self._last_s,
            failure=self._failure,
            lag_s=max(0.0, self._sent_s - self._due_s),
        )

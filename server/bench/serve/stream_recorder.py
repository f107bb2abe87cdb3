"""A stream of completion chunks becomes a trace."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ...client.http_client import Answer
from ...client.sse import EventParser
from ..latency import RequestTrace

_TEXTS: Final = ("text", "content", "reasoning_content", "reasoning")
_MAX_REASON: Final = 160


class StreamRecorder:
    """Takes an answer's pieces as they come. Tokens are counted by the server, and times are those of its chunks.

    A piece of the answer is a chunk with text or with token ids; the first of a chat and the one with the usage have
    neither.

    Args:
      due_s, sent_s: when the request was to set out, and when it did, in seconds of `time.perf_counter`.
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
        """Takes bytes that came at this time."""
        for event in self._parser.feed(piece):
            if event == b"[DONE]":
                self._ended_s = now
            else:
                self._read(event, now)

    def finish(self, answer: Answer, now: float) -> RequestTrace:
        """The trace of an exchange that went well as far as HTTP goes."""
        if answer.status != 200:
            return self.fail(http_failure(answer), now)
        if self._failure is None and self._ended_s is None:
            return self.fail("the stream ended without [DONE]", now)
        return self._trace(now)

    def fail(self, reason: str, now: float) -> RequestTrace:
        """The trace of an exchange that did not; what the stream itself said goes first."""
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
                self._failure = f"error in the stream: {_message(chunk)}"
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            self._failure = "an event of the stream is no completion chunk"

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


def http_failure(answer: Answer) -> str:
    """What a status other than 200 says, in a line."""
    try:
        body = orjson.loads(answer.body)
        message = _message(body) if isinstance(body, dict) else ""
    except orjson.JSONDecodeError:
        message = ""
    return f"HTTP {answer.status}" + (f": {message}" if message else "")


def _message(body: Mapping[str, Any]) -> str:
    """The text of an error in OpenAI's shape, or in one of those that others use."""
    error = body.get("error") or body
    text = error.get("message") or error.get("detail") or "" if isinstance(error, dict) else error
    return " ".join(str(text).split())[:_MAX_REASON]

"""Deltas of choices, and how consecutive deltas are joined."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Final

from ...engine import FinishReason, TokenLogprobs
from ..observability.request_record import NEVER, Times
from .tools import CallJoiner, CallPiece, join_calls


@dataclass(slots=True)  # a frozen one takes three times as long to construct, and there is one per event
class Delta:
    """Part of a choice that was generated since the delta before; a whole choice is one delta, too.

    Attributes:
      index: Index of the choice.
      text: New text; empty while half a character, or a possible stop string or tool call, is held back.
      calls: New pieces of tool calls; there is no text then.
      called: Whether the choice consists of complete tool calls; on the last delta only.
      token_ids: New tokens, including the one that ended the choice.
      logprobs: One entry per new token, if requested.
      prompt_logprobs: Entries of the prompt's tokens, if requested; on the first delta only.
      finish_reason: Why the choice ended; on the last delta only.
      stop_reason: The stop string or stop token that ended the choice, if one did.
      num_cached: Prompt tokens served from the prefix cache; on the first delta only. 0 for a fork of another choice,
        which reports them for both.
      times: Times of the request; on the last delta only.
      num_sent: Number of the choice's tokens, so far, whose text was sent whole; see `Detokenizer.num_sent`.
    """

    index: int
    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    called: bool = False
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached: int = 0
    times: Times = NEVER
    num_sent: int = 0


_TOKEN_BYTES: Final = 8
_LOGPROBS_BYTES: Final = 128
_LOGPROB_BYTES: Final = 128
"""Estimated memory of a token id, of an entry of logprobs, and of each alternative in an entry."""


class DeltaJoiner:
    """Joins consecutive deltas of one choice, without keeping each of them."""

    def __init__(self) -> None:
        self._first: Delta | None = None
        self._joined: _JoinedDeltas | None = None

    def __bool__(self) -> bool:
        """Whether anything was added since the last `take`."""
        return self._first is not None

    @property
    def num_bytes(self) -> int:
        """Estimated memory of what was added since the last `take`."""
        if self._joined is not None:
            return self._joined.num_bytes
        return 0 if self._first is None else _num_bytes(self._first)

    def add(self, delta: Delta) -> None:
        """Adds the next delta. Nothing is copied before the second one, since most deltas are taken alone."""
        if self._first is None:
            self._first = delta
            return
        if self._joined is None:
            self._joined = _JoinedDeltas(self._first)
        self._joined.add(delta)

    def take(self) -> Delta:
        """Returns what was added since the last `take` as one delta. At least one delta must have been added."""
        first, joined = self._first, self._joined
        assert first is not None
        self._first = self._joined = None
        if joined is not None:
            return joined.whole()
        return replace(first, calls=join_calls(first.calls)) if first.calls else first


class _JoinedDeltas:
    """Joined deltas, in no more memory than their content takes."""

    def __init__(self, first: Delta) -> None:
        self.num_bytes = 0
        self._first = first
        self._text = StringIO()
        self._calls = CallJoiner()
        self._token_ids = array("i")
        self._logprobs: list[TokenLogprobs] = []
        self._num_cached = 0
        self.add(first)

    def add(self, delta: Delta) -> None:
        self._last = delta
        self._text.write(delta.text)
        for piece in delta.calls:
            self._calls.add(piece)
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._num_cached += delta.num_cached
        self.num_bytes += _num_bytes(delta)

    def whole(self) -> Delta:
        """Returns all deltas as one."""
        first, last = self._first, self._last
        return Delta(
            index=first.index,
            text=self._text.getvalue(),
            calls=self._calls.joined(),
            called=last.called,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=first.prompt_logprobs,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            num_cached=self._num_cached,
            times=last.times,
            num_sent=last.num_sent,
        )


def _num_bytes(delta: Delta) -> int:
    texts = [delta.text, *(piece.arguments for piece in delta.calls)]
    num_bytes = sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    num_bytes += _TOKEN_BYTES * len(delta.token_ids)
    for entries in (delta.logprobs, delta.prompt_logprobs):
        if entries:
            num_bytes += len(entries) * _entry_bytes(entries)
    return num_bytes


def _entry_bytes(entries: Sequence[TokenLogprobs | None]) -> int:
    """Returns the memory of each entry: all have equally many alternatives, but a prompt's first one is None."""
    entry = entries[-1]
    return 0 if entry is None else _LOGPROBS_BYTES + _LOGPROB_BYTES * (len(entry.top) + len(entry.named))

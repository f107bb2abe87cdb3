"""Deltas of a choice, and their joining."""

from array import array
from dataclasses import dataclass
from io import StringIO
from typing import Final

from ...engine import UNUSED_PREDICTION, FinishReason, PredictionUse, TokenLogprobs
from ..constraints.tool_calls import CallJoiner, CallPiece

_CHARACTER_BYTES: Final = 4

_TOKEN_BYTES: Final = 8

_LOGPROB_BYTES: Final = 128
"""Estimated memory of a character, of a token id, and of a log-probability of a token or an alternative."""


@dataclass(slots=True)  # a frozen one takes three times as long to construct, and each event has one
class Delta:
    """Part of a choice that was generated since the previous delta. A whole choice is also one delta.

    Attributes:
      index: Index of the choice.
      text: New text; empty while half a character, or a possible stop string or tool call, is held back.
      calls: New pieces of tool calls. The text is empty then.
      called: Whether the choice consists of complete tool calls; on the last delta only.
      token_ids: New tokens, including the one that ended the choice.
      logprobs: One entry per new token, if requested.
      prompt_logprobs: Entries of the prompt's tokens, if requested; on the first delta only.
      finish_reason: Why the choice ended; on the last delta only.
      stop_reason: The stop string or stop token that ended the choice, if any.
      num_cached: Prompt tokens served from the prefix cache; on the first delta only. 0 for a fork of another choice,
        which reports them for both.
      num_sent: Number of the choice's tokens, so far, whose text was sent whole; see `Detokenizer.num_sent`.
      prediction: Tokens of the request's prediction that were drafted; on the last delta only.
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
    num_sent: int = 0
    prediction: PredictionUse = UNUSED_PREDICTION


class DeltaJoiner:
    """Joins consecutive deltas of one choice, which then take only the memory of their content.

    Attributes:
      num_bytes: Estimated memory of the deltas added since the last `take`.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._first: Delta | None = None
        self._last: Delta | None = None
        self._text = StringIO()
        self._calls = CallJoiner()
        self._token_ids = array("i")
        self._logprobs: list[TokenLogprobs] = []
        self._num_cached = 0
        self.num_bytes = 0

    def __bool__(self) -> bool:
        """Whether a delta was added since the last `take`."""
        return self._first is not None

    def add(self, delta: Delta) -> None:
        """Adds the next delta."""
        self._first = self._first or delta
        self._last = delta
        self._text.write(delta.text)
        for piece in delta.calls:
            self._calls.add(piece)
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._num_cached += delta.num_cached
        self.num_bytes += num_bytes(delta)

    def take(self) -> Delta:
        """Returns the deltas added since the last `take` as one. At least one delta must have been added."""
        first, last = self._first, self._last
        assert first is not None
        assert last is not None
        joined = Delta(
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
            num_sent=last.num_sent,
            prediction=last.prediction,
        )
        self._clear()
        return joined


def num_bytes(delta: Delta) -> int:
    """Returns the estimated memory of a delta, without log-probabilities of the prompt."""
    num_characters = len(delta.text) + sum(len(piece.arguments) for piece in delta.calls)
    num_logprobs = sum(1 + len(entry.top) + len(entry.named) for entry in delta.logprobs)
    return _CHARACTER_BYTES * num_characters + _TOKEN_BYTES * len(delta.token_ids) + _LOGPROB_BYTES * num_logprobs

"""Delta of a choice."""

from dataclasses import dataclass

from ...engine import UNUSED_PREDICTION, FinishReason, PredictionUse, TokenLogprobs
from ..constraints.tools import CallPiece
from ..observability.request_metrics import NEVER, Times


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
      times: Times of the request; on the last delta only.
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
    times: Times = NEVER
    num_sent: int = 0
    prediction: PredictionUse = UNUSED_PREDICTION

    @property
    def reported_reason(self) -> str | None:
        """Reason why the choice ended, as OpenAI's `finish_reason`."""
        return "tool_calls" if self.called else self.finish_reason and self.finish_reason.value

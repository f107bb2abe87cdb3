"""The request for a generation, independent of the API that received it, and its choices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...engine import Replay, SamplingParams, Snapshot
from ..constraints.grammar import Grammar
from ..constraints.output_constraint import OutputConstraint
from .prompts import Prompt
from .state_store import StoredState


@dataclass(frozen=True, slots=True)
class PromptCopies:
    """Parts of the prompts that a response repeats.

    Attributes:
      token_ids: Number of copies of each prompt's token ids.
      logprobs: Number of alternatives of each prompt token in `prompt_logprobs`; None without them.
      is_echoed: Whether every choice begins with the prompt's text.
      echo_logprobs: Number of alternatives of each token of that text; None without log-probabilities.
    """

    token_ids: int = 0
    logprobs: int | None = None
    is_echoed: bool = False
    echo_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """A request for choices of one or several prompts.

    Attributes:
      prompts: Prompts, with at least one token each.
      params: Sampling parameters of the choices of each prompt, which differ in their seeds.
      constraint: Constraint on the output of every choice.
      stop: Stop strings.
      include_stop: Whether the output includes the stop string, or the text of the stop token, that ended it.
      ignore_eos: Whether end tokens do not end the output.
      may_call: Whether the output may consist of tool calls.
      sends_ids: Whether clients receive token ids instead of text.
      holds_output: Whether the whole output is held until the response ends, as opposed to streamed and discarded.
      limit_param: Field that limits the number of tokens; None if the request sets no limit.
      copies: Parts of the prompts that the response repeats.
      state: Saved state that all prompts continue. The prompts already include its token history.
      cache_salt: Name of a separate prefix cache: requests share cached states only with the same salt.
      prediction: Text that the output is expected to begin with; empty without a prediction.
      priority: Scheduling priority; lower values are scheduled first.
      queue_timeout_s: Maximum time without a slot, in seconds.
      timeout_s: Maximum time until the last token, in seconds.
    """

    prompts: Sequence[Prompt]
    params: Sequence[SamplingParams]
    constraint: OutputConstraint | None = None
    stop: Sequence[str] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    may_call: bool = False
    sends_ids: bool = False
    holds_output: bool = True
    limit_param: str | None = None
    copies: PromptCopies = PromptCopies()
    state: StoredState | None = None
    cache_salt: str = ""
    prediction: str = ""
    priority: int = 0
    queue_timeout_s: float | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice to generate.

    Attributes:
      index: Place among the choices of the request.
      stop: Strings that end the output; the choices of a request share one `StopStrings`.
      fork_of: Index of the earlier choice with the same prompt, whose prefill this choice shares.
      include_stop: Whether the output includes the stop string, or the text of the stop token, that ended it.
      grammar: Grammar that the output matches.
      may_call: Whether the output may consist of tool calls, which are then parsed.
      priority, start_by, deadline, cache_salt, state, state_is_imported: See `engine.Request`.
      sends_ids: Whether clients receive token ids instead of text; then each token counts as sent immediately.
      earlier_ids: Tokens of the choice that another replica has generated. They are prefilled as part of the prompt, so
        the remaining tokens may differ from the tokens of that replica.
      replay: The same tokens, decoded again on an engine like that replica's, so that nothing differs; None otherwise.
      predicted_ids: See `engine.Request.predicted_token_ids`.
    """

    index: int
    prompt: Prompt
    params: SamplingParams
    stop: Sequence[str] = ()
    include_stop: bool = False
    fork_of: int | None = None
    grammar: Grammar | None = None
    may_call: bool = False
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False
    sends_ids: bool = False
    earlier_ids: tuple[int, ...] = ()
    replay: Replay | None = None
    predicted_ids: Sequence[int] = ()

"""Outputs of requests, in vLLM's shapes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...engine import TokenLogprobs
from ..generation.delta import Delta, DeltaJoiner
from ..generation.logprobs import alternatives, with_top
from ..generation.prompts import Prompt
from ..generation.state_store import StoredState
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of a token at one position, before temperature and masks.

    Attributes:
      logprob: The log-probability.
      rank: Place among the most likely tokens, from 1; None if the token is not among the reported ones.
      decoded_token: Printable name of the token.
    """

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the model.

    Attributes:
      id: Id of the call, which the message with its result names.
      name: Name of the function.
      arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice of a request.

    Attributes:
      index: Index of the choice.
      text: Generated text. It is empty if the choice calls tools.
      token_ids: Generated tokens, including the one that ended the choice.
      cumulative_logprob: Sum of the tokens' log-probabilities; None without `SamplingParams.logprobs`.
      logprobs: Log-probabilities by token id, for each generated token; None without `SamplingParams.logprobs`.
      finish_reason: `stop`, `length` or `tool_calls`; None while the choice is unfinished.
      stop_reason: The stop string or stop token that ended the choice, if any.
      tool_calls: Calls of tools.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def finished(self) -> bool:
        """Returns whether the choice has ended."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """Output of one request.

    Attributes:
      request_id: Id of the request.
      prompt: Text of the prompt, for a chat with its control tokens; None if the prompt was given as token ids.
      prompt_token_ids: Tokens of the prompt.
      prompt_logprobs: Log-probabilities by token id, for each prompt token, None for the first one; None without
        `SamplingParams.prompt_logprobs`.
      outputs: The choices; one choice of several in a stream of deltas.
      finished: Whether all choices have ended.
      num_cached_tokens: Prompt tokens served from the prefix cache.
      warnings: Parts of the request that were dropped or ignored, such as keywords of a schema, and a default of
        `max_tokens` that ended an output with a constraint.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of a continuation.

    Attributes:
      logprob: Natural log-probability of the whole continuation.
      is_greedy: Whether all of its tokens are the most likely ones at their positions.
      token_ids: Tokens of the continuation.
      token_logprobs: Log-probabilities of these tokens.
    """

    logprob: float
    is_greedy: bool
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A saved state, which any number of requests may continue. It stays in memory until it is deleted.

    Attributes:
      id: Id of the state.
      num_tokens: Number of tokens of its history.
      num_bytes: Memory that it takes.
    """

    id: str
    num_tokens: int
    num_bytes: int


def state_of(stored: StoredState) -> State:
    """Returns a state that the service keeps."""
    return State(stored.id, stored.state.num_tokens, stored.num_bytes)


class OutputBuilder:
    """Builds the outputs of one request from the deltas of its choices.

    Args:
      request_id: Id of the request.
      prompt: Prompt.
      num_choices: Number of choices.
      num_prompt_logprobs: Number of alternatives of each prompt token; None without log-probabilities.
      tokenizer: Tokenizer of the model.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        num_choices: int,
        num_prompt_logprobs: int | None,
        tokenizer: Tokenizer,
    ) -> None:
        self._request_id = request_id
        self._prompt = prompt
        self._prompt_text = prompt.text(tokenizer) if prompt.from_text else None
        self._num_prompt_logprobs = num_prompt_logprobs
        self._tokenizer = tokenizer
        self._warnings: tuple[str, ...] = ()
        self._choices = [DeltaJoiner() for _ in range(num_choices)]
        self._num_unfinished = num_choices

    def warn(self, *warnings: str) -> None:
        """Adds warnings to all later outputs, unless they have them."""
        self._warnings = tuple(dict.fromkeys((*self._warnings, *warnings)))

    def add(self, delta: Delta) -> None:
        """Adds the next delta."""
        self._choices[delta.index].add(delta)
        if delta.finish_reason is not None:
            self._num_unfinished -= 1

    def so_far(self) -> RequestOutput:
        """Returns an output of all deltas so far."""
        deltas = [joiner.take() if joiner else Delta(index) for index, joiner in enumerate(self._choices)]
        for joiner, delta in zip(self._choices, deltas, strict=True):
            joiner.add(delta)
        return self._output(deltas)

    def news(self) -> RequestOutput:
        """Returns an output of the deltas added since the last call. At least one delta must have been added."""
        return self._output([joiner.take() for joiner in self._choices if joiner])

    def _output(self, deltas: Sequence[Delta]) -> RequestOutput:
        return RequestOutput(
            self._request_id,
            self._prompt_text,
            tuple(self._prompt.token_ids),
            self._prompt_logprobs(deltas[0]),
            tuple(map(self._choice, deltas)),
            not self._num_unfinished,
            sum(delta.num_cached for delta in deltas),
            self._warnings,
        )

    def _choice(self, delta: Delta) -> CompletionOutput:
        has_logprobs = bool(delta.logprobs)
        return CompletionOutput(
            delta.index,
            delta.text,
            delta.token_ids,
            math.fsum(entry.logprob for entry in delta.logprobs) if has_logprobs else None,
            tuple(map(self._by_id, delta.token_ids, delta.logprobs)) if has_logprobs else None,
            "tool_calls" if delta.called else delta.finish_reason and delta.finish_reason.value,
            delta.stop_reason,
            tuple(ToolCall(call.id or "", call.name or "", call.arguments) for call in delta.calls),
        )

    def _prompt_logprobs(self, first: Delta) -> tuple[dict[int, Logprob] | None, ...] | None:
        num_top = self._num_prompt_logprobs
        if num_top is None or first.prompt_logprobs is None:
            return None
        pairs = zip(self._prompt.token_ids, first.prompt_logprobs, strict=True)
        return tuple(
            None if entry is None else self._by_id(token_id, with_top(entry, num_top)) for token_id, entry in pairs
        )

    def _by_id(self, token_id: int, entry: TokenLogprobs) -> dict[int, Logprob]:
        """Returns the log-probabilities at one position: the token's own, then the alternatives."""
        ranks = {alternative: rank for rank, (alternative, _) in enumerate(entry.top, start=1)}
        found = {token_id: entry.logprob, **dict(alternatives(entry))}
        return {
            each: Logprob(logprob, ranks.get(each), self._tokenizer.token_text(each)) for each, logprob in found.items()
        }

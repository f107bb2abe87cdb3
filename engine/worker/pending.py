"""Batches that the device may still be working on, and their results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Array, Float

from ..core.batch import DecodeBatch, PrefillBatch, PrefillChunk, RowResult
from ..core.request import Request, TokenLogprobs
from ..model.state import BlockStates
from ..sampling.logprobs import Logprobs
from ..sampling.sampler import Sampled
from .transfer import read_block_states


@dataclass(frozen=True, slots=True)
class PendingDecode:
    """Decode steps on the device.

    Attributes:
      batch: The batch.
      sampled: Tokens of the steps, for the first slots.
    """

    batch: DecodeBatch
    sampled: Sampled

    def wait(self) -> tuple[RowResult, ...]:
        """Waits for the device and returns one result per request."""
        tokens = np.asarray(self.sampled.tokens)[: self.batch.steps].T.tolist()
        return tuple(
            _row_result(
                request, tuple(tokens[slot]), self.sampled.logprobs, [(t, slot) for t in range(self.batch.steps)]
            )
            for request, slot in zip(self.batch.requests, self.batch.slots, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PendingPrefill:
    """A prefill step on the device.

    Attributes:
      batch: The batch.
      places: Row of each chunk in the step.
      ends: Row of each chunk's last token in `last`.
      last: Activations of last tokens. Every prefill has them, so that the host never runs ahead of the device.
      sampled: First tokens of the prompts that end in this batch and of their forks, `MAX_PREFILL_ROWS` at a time.
      scores: Log-probabilities of the token after each of the chunks' tokens, if a request wants them.
      block_states: States at the chunks' block boundaries, per layer slice, if there is a prefix cache.
    """

    batch: PrefillBatch
    places: tuple[int, ...]
    ends: tuple[int, ...]
    last: Float[Array, "R D"]
    sampled: tuple[Sampled, ...]
    scores: Logprobs | None = None
    block_states: tuple[BlockStates, ...] = ()

    def wait(self) -> tuple[RowResult, ...]:
        """Waits for the device and returns one result per chunk and per fork."""
        self.last.block_until_ready()
        firsts = ((sampled, place) for sampled in self.sampled for place in range(len(sampled.tokens)))
        results = [self._row(row, chunk, firsts) for row, chunk in enumerate(self.batch.rows)]
        if self.block_states:
            chunks = self.batch.chunks
            read = read_block_states(self.block_states, self.last, chunks, self.places, self.ends)
            for row, states in enumerate(read):
                results[row] = replace(results[row], block_states=states)
        return tuple(results)

    def _row(self, row: int, chunk: PrefillChunk, firsts: Iterator[tuple[Sampled, int]]) -> RowResult:
        result = RowResult()
        if chunk.is_last:
            sampled, place = next(firsts)
            token = int(np.asarray(sampled.tokens)[place])
            result = _row_result(chunk.request, (token,), sampled.logprobs, [(place,)])
        num_top = chunk.request.params.prompt_logprobs
        if num_top is None:
            return result
        assert self.scores is not None
        count = chunk.length - chunk.is_last  # the token after the prompt is sampled, not scored
        place = self.places[row]
        scores = tuple(_token_logprobs(self.scores, (place, t), num_top) for t in range(count))
        return replace(result, prompt_logprobs=scores)


@dataclass(frozen=True, slots=True)
class PendingSlice:
    """A layer slice of a prefill step on the device, but not the last one.

    Attributes:
      batch: The batch.
      last: Activations after the slice.
    """

    batch: PrefillBatch
    last: Float[Array, "R D"]

    def wait(self) -> tuple[RowResult, ...]:
        """Waits for the device and returns an empty result per row."""
        self.last.block_until_ready()
        return (RowResult(),) * len(self.batch.rows)


def _row_result(
    request: Request, tokens: tuple[int, ...], logprobs: Logprobs, places: Sequence[tuple[int, ...]]
) -> RowResult:
    """Returns one row's tokens, with the log-probabilities at their places if the request wants them."""
    num_top, named = request.params.logprobs, request.params.logprob_token_ids
    if num_top is None:
        return RowResult(tokens)
    return RowResult(tokens, tuple(_token_logprobs(logprobs, place, num_top, named) for place in places))


def _token_logprobs(
    logprobs: Logprobs, index: tuple[int, ...], num_top: int, named: Sequence[int] = ()
) -> TokenLogprobs:
    """Returns the log-probabilities at one index, with the requested number of alternatives and the named tokens."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:num_top], values[:num_top], strict=True))
    of_named = np.asarray(logprobs.named)[index].tolist() if named else ()
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top, tuple(zip(named, of_named, strict=False)))

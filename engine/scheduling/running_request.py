"""A request that owns a slot, the token mask that its output constraint sets, and the tokens it has sampled."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Final

import numpy as np

from ..core.batch import PrefillChunk, RowResult
from ..core.config import PREFILL_BLOCK
from ..core.errors import ConstraintError, NumericError, RoostError
from ..core.output_constraint import Constraint, TokenMask, joined_constraint
from ..core.request import FinishReason, Request, TokenLogprobs, TokenOutput, error_output
from ..core.sampling_params import NO_CHOICE
from ..core.snapshot import Snapshot
from ..prefix_cache.tree import PrefixKey
from .token_history import TokenHistory

MASK_WAIT_S: Final = 0.002
"""Seconds that a step may wait for a mask. Most take a tenth of a millisecond, those of hostile grammars minutes."""

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""Error of a request whose constraint and masks leave no token."""

_NOT_FINITE: Final = "the model's activations are not finite; the request was ended"


@dataclass(eq=False, slots=True)
class RunningRequest:
    """A request from the moment it has a slot until it ends. Only the engine's thread touches it.

    Attributes:
      request: The request itself.
      slot: Slot in which its state lies; slot compaction changes it.
      assigned_at: Time at which it got the slot, in seconds.
      parent: Request with the same prompt whose state it copies when that prompt is prefilled; None if it prefills its
        prompt itself.
      num_prompt_dispatched: Number of prompt tokens that are restored, or in batches dispatched to the device.
      num_tokens_dispatched: Maximum number of tokens that dispatched batches will have generated.
      num_tokens: Number of generated tokens that were read back.
      started_at: Time at which its first batch was dispatched, in seconds.
      token_ids: Generated tokens, if there is a prefix cache.
      prompt_logprobs: Log-probabilities of prompt tokens after the first so far, if requested.
      key: Prompt as a key of the prefix cache; None if there is none, and for the engine's own requests.
      restore: Snapshot that is restored into the slot with the first chunk.
      num_cached: Number of prompt tokens that the snapshot covers.
      last_snapshot: Snapshot of the last committed chunk, or the restored one.
      is_finite: Whether every committed chunk left finite values. If not, no more snapshots are taken.
      constraint: Output constraint that follows the generated tokens, if there is one.
      mask: Mask of the next token, if a constraint decides it.
      awaits_mask: Whether the constraint has not computed the mask yet. The request sits out until then.
    """

    request: Request
    slot: int
    assigned_at: float = 0.0
    parent: "RunningRequest | None" = None
    num_prompt_dispatched: int = 0
    num_tokens_dispatched: int = 0
    num_tokens: int = 0
    started_at: float | None = None
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    key: PrefixKey | None = None
    restore: Snapshot | None = None
    num_cached: int = 0
    last_snapshot: Snapshot | None = None
    is_finite: bool = True
    constraint: Constraint | None = field(init=False)
    mask: TokenMask | None = None
    awaits_mask: bool = False

    def __post_init__(self) -> None:
        self.constraint = joined_constraint(self.request.constraint, self.request.params.bad_phrases)

    @property
    def num_prompt_left(self) -> int:
        """Number of prompt tokens that are not dispatched yet."""
        return len(self.request.prompt_token_ids) - self.num_prompt_dispatched

    @property
    def needs_prefill(self) -> bool:
        """Whether its own prompt has to be prefilled or restored, and its first token sampled."""
        return self.parent is None and not self.num_tokens_dispatched and not self.awaits_mask

    @property
    def can_decode(self) -> bool:
        """Whether one more token may be dispatched, though others may be in flight.

        A constraint must have seen the last token before the next one is sampled.
        """
        limit = self.request.params.max_tokens
        waits = self.awaits_mask or (self.constraint is not None and self.num_tokens < self.num_tokens_dispatched)
        return self.num_tokens_dispatched > 0 and not waits and (limit is None or self.num_tokens_dispatched < limit)

    @property
    def can_fork(self) -> bool:
        """Whether other requests may still copy its state when its prompt is prefilled."""
        return not self.num_tokens_dispatched and self.request.params.prompt_logprobs is None

    @property
    def history(self) -> TokenHistory | None:
        """Token history so far; None if no key is known."""
        if self.key is None:
            return None
        request, generated = self.request, array("i", self.token_ids).tobytes()
        return TokenHistory(self.key.tokens, generated, self.key.salt, request.tenant, request.state_is_imported)

    def restore_from(self, snapshot: Snapshot) -> None:
        """Continues the prompt after a snapshot of its first tokens."""
        self.restore = self.last_snapshot = snapshot
        self.num_cached = self.num_prompt_dispatched = snapshot.length

    def take_chunk(self, most: int, running: "Iterable[RunningRequest]") -> PrefillChunk:
        """Returns the next chunk of the prompt, up to a maximum length, and books it as dispatched.

        Args:
          most: Maximum number of tokens; 0 if the whole prompt is restored.
          running: All requests with a slot; the forks among them copy the state with the last chunk.
        """
        start = self.num_prompt_dispatched
        to_boundary = -start % PREFILL_BLOCK or most  # a restored snapshot may lie between two block boundaries
        length = min(self.num_prompt_left, most, to_boundary)
        is_last = length == self.num_prompt_left
        forks = [each for each in running if is_last and each.parent is self]
        chunk, *fork_chunks = (each._book_chunk(start, length) for each in (self, *forks))
        return replace(chunk, forks=tuple(fork_chunks)) if fork_chunks else chunk

    def _book_chunk(self, start: int, length: int) -> PrefillChunk:
        chunk = PrefillChunk(self.request, self.slot, start, length, self.mask, self.restore)
        self.parent = self.restore = None
        self.num_prompt_dispatched = start + length
        if chunk.is_last:
            self.num_tokens_dispatched = 1
        return chunk


def update_pending_masks(
    requests: Iterable[RunningRequest], words: int
) -> list[tuple[RunningRequest, ConstraintError]]:
    """Updates masks that were not computed yet. Waits for one constraint at most, to keep the step short.

    Args:
      requests: Running requests, oldest first.
      words: Number of words of a mask.

    Returns:
      Requests whose constraint failed.
    """
    failed = []
    wait_s = MASK_WAIT_S
    for running in [each for each in requests if each.awaits_mask]:
        try:
            update_mask(running, words, wait_s)
        except ConstraintError as error:
            failed.append((running, error))
        if running.awaits_mask:
            wait_s = 0.0
    return failed


def advance_constraint(running: RunningRequest, token_id: int, words: int) -> None:
    """Passes a generated token to the constraint, and updates the mask of the next one.

    Raises:
      ConstraintError: The constraint failed, or allows no token.
    """
    if running.constraint is None:
        return
    try:
        running.constraint.advance(token_id)
    except Exception as error:  # a constraint may raise anything; only this request depends on it
        raise ConstraintError(str(error)) from error
    update_mask(running, words)


def update_mask(running: RunningRequest, words: int, wait_s: float = 0.0) -> None:
    """Asks the constraint for the mask of the next token; sets `awaits_mask` if it is not computed yet.

    Args:
      running: Request with or without a constraint.
      words: Number of words of the mask.
      wait_s: Maximum number of seconds to wait for the constraint.

    Raises:
      ConstraintError: The constraint failed, or allows no token.
    """
    try:
        _update_mask(running, words, wait_s)
    except Exception as error:  # a constraint may raise anything; only this request depends on it
        raise ConstraintError(str(error)) from error


def _update_mask(running: RunningRequest, words: int, wait_s: float) -> None:
    if running.constraint is None:
        return
    running.awaits_mask = not running.constraint.is_ready(wait_s)
    if running.awaits_mask:
        return
    mask, static = np.zeros(words, np.uint32), running.request.params.static_mask
    running.constraint.fill_mask(mask)
    if static is not None:
        static.narrow(mask)
    if not mask.any():
        raise ConstraintError(NO_CHOICE_TEXT)
    running.mask = mask


def book_result(running: RunningRequest, result: RowResult, mask_words: int) -> list[TokenOutput]:
    """Books a row's tokens up to the one that ends the request; the device stopped there too.

    Tokens before a sentinel, which stands for non-finite activations or for masks without a token, are valid. Their
    output comes before the error.

    Args:
      running: Request of the row.
      result: Result with at least one token or sentinel.
      mask_words: Number of words of a token mask.

    Returns:
      One or two outputs; only the last one may end the request.
    """
    valid = tuple(takewhile(lambda token_id: token_id >= 0, result.token_ids))
    outputs = []
    if valid:
        output = _book_tokens(running, valid, result.logprobs)
        outputs.append(_constrained(running, output, mask_words))
    if len(valid) < len(result.token_ids) and not any(output.finish_reason for output in outputs):
        outputs.append(error_output(_sentinel_error(running, result.token_ids[len(valid)])))
    return outputs


def _book_tokens(
    running: RunningRequest, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...] | None
) -> TokenOutput:
    """Returns the output of valid tokens; the first output also describes the prompt."""
    is_first = not running.num_tokens
    count, reason = _count_until_end(running, token_ids)
    tokens = token_ids[:count]
    running.num_tokens += count
    if running.key is not None:
        running.token_ids += tokens
    return TokenOutput(
        token_ids=tokens,
        logprobs=logprobs[:count] if logprobs and count else None,
        prompt_logprobs=_prompt_logprobs(running) if is_first else None,
        finish_reason=reason,
        stop_reason=_stop_reason(running, tokens),
        started_at=running.started_at if is_first else None,
        num_cached=running.num_cached if is_first else 0,
    )


def _prompt_logprobs(running: RunningRequest) -> tuple[TokenLogprobs | None, ...] | None:
    request = running.request
    if request.params.prompt_logprobs is None:
        return None
    return (None, *running.prompt_logprobs)[: len(request.prompt_token_ids)]


def _count_until_end(running: RunningRequest, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
    """Returns the number of tokens that belong to the request, and why it ends with them if it does."""
    params = running.request.params
    if params.max_tokens == 0:
        return 0, FinishReason.LENGTH
    for count, token_id in enumerate(token_ids, 1):
        if token_id in params.stop_ids:
            return count, FinishReason.STOP
        if running.num_tokens + count == params.max_tokens:
            return count, FinishReason.LENGTH
    return len(token_ids), None


def _stop_reason(running: RunningRequest, token_ids: tuple[int, ...]) -> int | None:
    """Returns the last token if it is one of the caller's stop ids."""
    params = running.request.params
    is_stop = bool(token_ids) and token_ids[-1] in params.stop_token_ids and token_ids[-1] not in params.end_token_ids
    return token_ids[-1] if is_stop else None


def _constrained(running: RunningRequest, output: TokenOutput, mask_words: int) -> TokenOutput:
    """Returns the output, or an error's if the constraint fails on its last token."""
    if output.finish_reason is not None:
        return output
    try:
        advance_constraint(running, output.token_ids[-1], mask_words)
    except ConstraintError as error:
        return error_output(error)
    return output


def _sentinel_error(running: RunningRequest, sentinel: int) -> RoostError:
    """Returns the error that a sampled `NO_CHOICE` or `NO_TOKEN` stands for."""
    if sentinel == NO_CHOICE:
        return ConstraintError(NO_CHOICE_TEXT)
    return NumericError(_NOT_FINITE, from_imported_state=running.request.state_is_imported)

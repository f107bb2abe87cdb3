"""A request with a slot, its sampled tokens, its output constraint, and the token histories of ended requests."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import numpy as np

from ..prefix_cache.cache import PrefixKey
from ..types.config import HISTORY, MAX_TOKENS, UNUSED_PREDICTION, PredictionUse
from ..types.errors import ConstraintError, ConstraintLostError, NumericError, RoostError
from ..types.host_memory import ID_BYTES, TenantStore, id_bytes
from ..types.output_constraint import Forced, ForcingConstraint, TokenMask, joined_constraint
from ..types.request import FinishReason, Request, RowResult, TokenLogprobs, TokenOutput, error_output
from ..types.sampling_params import NO_CHOICE
from ..types.snapshot import SavedState, Snapshot

type RequestOutput = tuple[str, TokenOutput]
"""A request's id and its output."""

type TokenHistory = tuple[int, SavedState]
"""Number of prompt tokens of a request, and all its tokens without a snapshot."""

MAX_BYTES: Final = 16 * 2**20

MAX_HISTORIES: Final = 1000
"""Limits of the histories of all ended requests together: bytes of memory, and their number."""

_OBJECT_BYTES: Final = 1024
"""Memory of a history in addition to token ids and strings: its objects, and entries of three dictionaries."""

_NOT_FINITE: Final = "the model's activations are not finite; the request was ended"

MASK_WAIT_S: Final = 0.002
"""Seconds for which a step may wait for a mask. Most masks take a tenth of a millisecond, masks of hostile grammars
minutes."""

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""Error of a request whose constraint and masks leave no token."""

_NOT_ALLOWED: Final = "a token was sampled that the constraint does not allow"
"""Error of a request that got a token without, or against, the mask of its constraint. It never reaches the client."""


class TokenConstraint:
    """Masks tokens by a request's constraint, its bad words and its allowed tokens. Any failure is a `ConstraintError`.

    Args:
      request: Request with a constraint, or with bad words of several tokens. Its replayed tokens are processed
        immediately.
      words: Number of words of a mask.

    Attributes:
      num_tokens: Number of tokens that the constraint has processed.
      mask: Mask of the token after them; None if it is not computed yet.
      forced: Tokens that the constraint forces after them, the first of which is the only one of `mask`; None if it is
        known to force none.
    """

    def __init__(self, request: Request, words: int) -> None:
        constraint = joined_constraint(request.constraint, request.params.bad_phrases)
        assert constraint is not None
        self.num_tokens = 0
        self.mask: TokenMask | None = None
        self.forced: Forced | None = None
        self._constraint = constraint
        self._static = request.params.static_mask
        self._words = words
        if request.replay is not None:
            self._advance(request.replay.token_ids)
        self.update()

    def update(self, wait_s: float = 0.0) -> None:
        """Sets the mask of the next token and the forced tokens, if they are computed.

        Args:
          wait_s: Maximum number of seconds to wait for the constraint.

        Raises:
          ConstraintError: The constraint failed, or allows no token.
        """
        try:
            if self.mask is None and self._constraint.is_ready(wait_s):
                self.mask = self._compute_mask()
                self.forced = self._compute_forced()
        except ConstraintLostError:
            raise
        except Exception as error:  # a constraint may raise anything; only this request depends on it
            raise ConstraintError(str(error)) from error

    def take(self, token_ids: tuple[int, ...]) -> None:
        """Processes a token that was sampled under the mask, or forced tokens and the one after them.

        Raises:
          ConstraintError: A token is not allowed, or the constraint failed.
        """
        forced, mask = self.forced or ((), self.mask)
        is_forced = token_ids[: len(forced)] == forced[: len(token_ids)]
        rest = token_ids[len(forced) :]
        if mask is None or not is_forced or not all(mask[each >> 5] >> np.uint32(each & 31) & 1 for each in rest):
            raise ConstraintError(_NOT_ALLOWED)
        self._advance(token_ids)

    def _advance(self, token_ids: Sequence[int]) -> None:
        self.mask = self.forced = None
        self.num_tokens += len(token_ids)
        try:
            for token_id in token_ids:
                self._constraint.advance(token_id)
        except Exception as error:  # as above
            raise ConstraintError(str(error)) from error

    def _compute_mask(self) -> TokenMask:
        mask = np.zeros(self._words, np.uint32)
        self._constraint.fill_mask(mask)
        if self._static is not None:
            self._static.narrow(mask)
        if not mask.any():
            raise ConstraintError(NO_CHOICE_TEXT)
        return mask

    def _compute_forced(self) -> Forced | None:
        """Returns the forced tokens; None with other masks, which may leave no token somewhere ahead."""
        if self._static is not None or not isinstance(self._constraint, ForcingConstraint):
            return None
        token_ids, mask = self._constraint.forced()
        return Forced(token_ids, mask[: self._words]) if token_ids and mask.any() else None


class Repetition:
    """Last tokens of a request. New text has many pairs of tokens twice, but few longer sequences.

    Args:
      prompt: Token ids of the prompt, or others before the generated ones.
      length: Number of last tokens that must have occurred before, in the same order.
    """

    def __init__(self, prompt: Sequence[int], length: int) -> None:
        self._tokens = np.array(prompt[-HISTORY:], np.int32)
        self._length = length

    def add(self, token_ids: Sequence[int]) -> None:
        """Adds tokens."""
        self._tokens = np.concatenate((self._tokens, np.array(token_ids, np.int32)))[-HISTORY:]

    @property
    def is_repeating(self) -> bool:
        """Whether the last tokens occurred before."""
        length, tokens = self._length, self._tokens
        if len(tokens) <= length:
            return False
        ends = np.flatnonzero(tokens[length - 1 : -1] == tokens[-1]) + length - 1
        for back in range(1, length):
            ends = ends[tokens[ends - back] == tokens[-1 - back]]
        return ends.size > 0


@dataclass(eq=False, slots=True)
class RunningRequest:
    """A request from the moment it has a slot until it ends. Only the engine's thread accesses it.

    Attributes:
      request: The request itself.
      slot: Slot that holds its state; slot compaction changes it.
      assigned_at: Time at which it got the slot, in seconds.
      parent: Request with the same prompt whose state it copies when that prompt is prefilled; None if it prefills its
        prompt itself.
      num_prompt_dispatched: Number of prompt tokens that are restored, or in batches dispatched to the device.
      num_tokens_dispatched: Number of tokens that dispatched batches will have generated, unless the request ends
        before. Accepted drafts are added when they are read back.
      num_tokens: Number of generated tokens that were read back.
      started_at: Time at which its first batch was dispatched, in seconds.
      token_ids: Generated tokens, if there is a prefix cache.
      prompt_logprobs: Log-probabilities of prompt tokens after the first so far, if requested.
      key: Prompt as a key of the prefix cache; None without a cache, and for the engine's own requests.
      looked_up_at: `PrefixCache.num_inserts` when the prompt was last looked up.
      restore: Snapshot that is restored into the slot with the first chunk, or before the first replayed token.
      num_cached: Number of prompt tokens that the snapshot covers.
      last_snapshot: Snapshot of the last committed chunk, or the restored one.
      is_finite: Whether every committed chunk produced finite values. If not, no more snapshots are taken.
      constraint: Output constraint that follows the generated tokens, if there is one.
      has_output: Whether an output has been returned.
      repetition: Its last tokens, with speculation and once it has an output.
      prediction: Tokens of the request's prediction that were drafted so far.
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
    looked_up_at: int | None = None
    restore: Snapshot | None = None
    num_cached: int = 0
    last_snapshot: Snapshot | None = None
    is_finite: bool = True
    constraint: TokenConstraint | None = None
    has_output: bool = False
    repetition: Repetition | None = None
    prediction: PredictionUse = UNUSED_PREDICTION

    @property
    def keeps_tokens(self) -> bool:
        """Whether `token_ids` has the generated tokens, for the prefix cache or for continuing in another slot."""
        return self.key is not None or self.request.preemptible

    @property
    def awaits_mask(self) -> bool:
        """Whether the constraint has not computed the mask of the next token yet."""
        return self.constraint is not None and self.constraint.mask is None

    @property
    def may_sample(self) -> bool:
        """Whether one more token may be sampled. A constraint must have received all tokens before it, and computed
        their mask.

        A replayed token needs no mask.
        """
        if self.constraint is None or self.num_tokens_dispatched < self.request.num_replayed:
            return True
        return self.mask is not None

    @property
    def mask(self) -> TokenMask | None:
        """Mask of the next token to dispatch; None without a constraint, or if the mask is not computed yet."""
        constraint = self.constraint
        if constraint is None or constraint.num_tokens != self.num_tokens_dispatched:
            return None
        return constraint.mask

    @property
    def is_prefilled(self) -> bool:
        """Whether all chunks of its prompt are dispatched to the device."""
        return self.restore is None and self.num_prompt_dispatched == len(self.request.prompt_token_ids)

    @property
    def can_fork(self) -> bool:
        """Whether other requests may still copy its state when its prompt is prefilled."""
        return not (self.num_tokens_dispatched or self.is_prefilled) and self.request.params.prompt_logprobs is None

    @property
    def history(self) -> "TokenHistory | None":
        """Token history so far; None if the prompt has no key."""
        if self.key is None:
            return None
        request, tokens = self.request, self.key.tokens + id_bytes(self.token_ids)
        state = SavedState(tokens, None, self.key.salt, request.tenant, request.state_is_imported)
        return len(request.prompt_token_ids), state

    def restore_from(self, snapshot: Snapshot) -> None:
        """Continues the prompt after a snapshot of its first tokens."""
        self.restore = self.last_snapshot = snapshot
        self.num_cached = self.num_prompt_dispatched = snapshot.length

    def replay_from(self, snapshot: Snapshot) -> None:
        """Continues after a snapshot of the prompt and some replayed tokens."""
        assert self.request.replay is not None
        self.num_prompt_dispatched = len(self.request.prompt_token_ids)
        self.num_tokens = self.num_tokens_dispatched = snapshot.length - self.num_prompt_dispatched + 1
        self.token_ids = list(self.request.replay.token_ids[: self.num_tokens]) if self.keeps_tokens else []
        self.restore = snapshot

    def resume(self, last: "RunningRequest") -> None:
        """Continues with the values, other than tokens, that the request had in its last slot."""
        self.started_at, self.num_cached, self.has_output = last.started_at, last.num_cached, last.has_output
        self.constraint, self.prediction = last.constraint, last.prediction


class TokenHistories(TenantStore[str, TokenHistory]):
    """Histories of the latest requests. The oldest history of the tenant with the most memory is evicted first."""

    def __init__(self) -> None:
        super().__init__(MAX_HISTORIES, MAX_BYTES)

    def keep(self, ended: RunningRequest) -> None:
        """Stores the history of a request, and replaces an earlier one with the same id."""
        request_id, history = ended.request.id, ended.history
        if history is None:
            return
        _, state = history
        if len(state.tokens) <= MAX_TOKENS * ID_BYTES:
            num_bytes = sum(map(sys.getsizeof, (request_id, state.tokens, state.salt, state.tenant))) + _OBJECT_BYTES
            self.put(request_id, state.tenant, history, num_bytes)


def book_result(running: RunningRequest, result: RowResult) -> list[TokenOutput]:
    """Records a row's tokens up to the one that ends the request. The device also stopped there.

    Tokens before a sentinel, which stands for non-finite activations or for masks without a token, are valid. Their
    output comes before the error.

    Args:
      result: Result with at least one token or sentinel.

    Returns:
      Up to two outputs, none for a replayed token; only the last one may end the request.
    """
    replay = running.request.replay
    if replay is not None and running.num_tokens < len(replay.token_ids):
        return _book_replayed(running, replay.token_ids[running.num_tokens], result.token_ids[0])
    if min(result.token_ids) >= 0:  # the usual case
        return [_book_tokens(running, result.token_ids, result.logprobs)]
    valid = tuple(takewhile(lambda token_id: token_id >= 0, result.token_ids))
    outputs = [_book_tokens(running, valid, result.logprobs)] if valid else []
    if not any(output.finish_reason for output in outputs):
        outputs.append(error_output(_sentinel_error(running, result.token_ids[len(valid)])))
    return outputs


def _book_replayed(running: RunningRequest, token_id: int, sampled: int) -> list[TokenOutput]:
    """Records a replayed token instead of the sampled one. It returns an output only for an error."""
    if sampled < 0:
        return [error_output(_sentinel_error(running, sampled))]
    running.num_tokens += 1
    if running.keeps_tokens:
        running.token_ids.append(token_id)
    return []


def _book_tokens(
    running: RunningRequest, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...] | None
) -> TokenOutput:
    """Returns the output of valid tokens, or of an error if a constraint refuses a token or fails after it.

    The first output also describes the prompt.
    """
    request = running.request
    count, reason = _count_until_end(running, token_ids)
    if running.constraint is not None:
        try:
            running.constraint.take(token_ids)
            if reason is None:
                running.constraint.update()
        except ConstraintError as error:
            return error_output(error)
    tokens = token_ids[:count]
    running.num_tokens += count
    if running.keeps_tokens:
        running.token_ids += tokens
    output = TokenOutput(tokens, logprobs[:count] if logprobs and count else None)
    if reason is not None:
        is_stop = reason is FinishReason.STOP and tokens[-1] in request.params.stop_token_ids
        stop_reason = tokens[-1] if is_stop and tokens[-1] not in request.params.end_token_ids else None
        output = output._replace(finish_reason=reason, stop_reason=stop_reason, prediction=running.prediction)
    if not running.has_output:
        running.has_output = True
        is_scored = request.params.prompt_logprobs is not None and request.replay is None
        scores = (None, *running.prompt_logprobs)[: len(request.prompt_token_ids)] if is_scored else None
        output = output._replace(prompt_logprobs=scores, started_at=running.started_at, num_cached=running.num_cached)
    return output


def _count_until_end(running: RunningRequest, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
    """Returns the number of tokens that belong to the request, and why it ends with them if it does."""
    params, count = running.request.params, len(token_ids)
    most = count + 1 if params.max_tokens is None else params.max_tokens - running.num_tokens
    if params.stop_ids.isdisjoint(token_ids):  # the usual case
        return (count, None) if count < most else (most, FinishReason.LENGTH)
    count = 1 + next(place for place, token_id in enumerate(token_ids) if token_id in params.stop_ids)
    return (count, FinishReason.STOP) if count <= most else (most, FinishReason.LENGTH)


def _sentinel_error(running: RunningRequest, sentinel: int) -> RoostError:
    """Returns the error for a sampled `NO_CHOICE` or `NO_TOKEN`."""
    if sentinel == NO_CHOICE:
        return ConstraintError(NO_CHOICE_TEXT)
    return NumericError(_NOT_FINITE, from_imported_state=running.request.state_is_imported)

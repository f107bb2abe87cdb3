"""Requests, batches of their work, and results: frozen values that the parts of the engine pass to each other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from .config import HISTORY, MAX_MATCH, MAX_PREDICTION, UNUSED_PREDICTION, DraftCounts, PredictionUse
from .errors import RoostError
from .host_memory import pack_ids
from .output_constraint import Constraint, Forced, TokenMask
from .sampling_params import SamplingParams
from .snapshot import BlockState, Snapshot


class FinishReason(StrEnum):
    """Reason why a request ended: a stop token, its length limit, its caller's abort, or an error."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Tokens that a request generated before, on this engine or on another one.

    The engine feeds them to the model one by one, as decoding did, and does not deliver them again. If decoding is
    reproducible, the state is therefore bit-identical to the state after the last of them.

    Attributes:
      token_ids: Generated tokens, at least one. The request continues after the last one.
      snapshot: State of the request's slot after the prompt and part of the tokens, without the last one; None prefills
        the prompt.
    """

    token_ids: tuple[int, ...]
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how to generate after it.

    Attributes:
      id: Id that no other waiting or running request has.
      prompt_token_ids: At least one token id of the vocabulary, packed by `pack_ids`. No BOS token is added.
      params: Sampling parameters.
      constraint: Output constraint that decides for each token which may come next. It belongs to this request alone.
      fork_of: Id of a request with the same prompt that was added before. If that prompt is not prefilled yet, this
        request waits for it and copies its state.
      stepwise: Whether the caller may end the request after any token, for example at a stop string. The engine then
        generates one token per step.
      tenant: Tenant. Slots and the queue are shared fairly between tenants; "" if there is only one.
      priority: Requests of a tenant with a lower number get a slot first.
      start_by: Time until which the request must have a slot, in seconds of `time.monotonic`.
      deadline: Time until which the request must be done, in seconds of `time.monotonic`.
      preemptible: Whether the request takes only slots that no other request needs, yields its slot when one does, and
        continues later. It counts neither for its tenant's share nor for the queue's limits.
      cache_salt: Salt of the prefix cache. Requests share snapshots only with the same salt.
      state: Snapshot of the prompt's first tokens at a block boundary, if the caller has one.
      state_is_imported: Whether `state` came from a file, directly or through earlier requests. Non-finite activations
        may then be caused by the state.
      replay: Tokens after which the request continues; None for a new request. Prompt tokens are not scored again.
      predicted_token_ids: Tokens that the output is expected to have, from its first one on, packed by `pack_ids`.
        Drafts are looked up in them; they change no output. Only the first `MAX_PREDICTION` are kept.

    Raises:
      ValueError: The prompt is empty, or the replay's snapshot does not match its tokens.
    """

    id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stepwise: bool = False
    constraint: Constraint | None = None
    fork_of: str | None = None
    tenant: str = ""
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf
    preemptible: bool = False
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False
    replay: Replay | None = None
    predicted_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt_token_ids, memoryview):
            object.__setattr__(self, "prompt_token_ids", pack_ids(self.prompt_token_ids))
        if self.predicted_token_ids:
            object.__setattr__(self, "predicted_token_ids", pack_ids(self.predicted_token_ids[:MAX_PREDICTION]))
        if not self.prompt_token_ids:
            raise ValueError("prompt must hold at least one token")
        if self.replay is not None and self.replay.snapshot is not None:
            num_tokens = self.replay.snapshot.length - len(self.prompt_token_ids) + 1
            if not 0 < num_tokens <= len(self.replay.token_ids):
                raise ValueError(f"a snapshot before token {num_tokens} of {len(self.replay.token_ids)} to replay")

    @property
    def num_replayed(self) -> int:
        """Number of tokens that were generated before."""
        return 0 if self.replay is None else len(self.replay.token_ids)

    @property
    def searched_token_ids(self) -> Sequence[int]:
        """Tokens in which drafts are looked up, before the generated ones.

        A prediction follows the prompt, whose last tokens are repeated after it. They then occur before the prediction,
        whose first tokens are drafted after them.
        """
        prompt, predicted = self.prompt_token_ids[-HISTORY:], self.predicted_token_ids
        return pack_ids(prompt, predicted, prompt[-MAX_MATCH:]) if predicted else prompt


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one position.

    Attributes:
      logprob: Log-probability of the token itself.
      top: Pairs of id and log-probability of the most probable tokens, in descending order.
      named: The same pairs for the request's `logprob_token_ids`, in their order.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    named: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + length) of a request, prefilled into its slot.

    Attributes:
      request: Request whose prompt the tokens belong to.
      slot: Slot that the request owned when the chunk was planned.
      start: Number of prompt tokens before the chunk.
      length: Number of tokens in the chunk; 0 if the whole prompt is restored.
      is_last: Whether the prompt ends with this chunk.
      snapshot: Snapshot of the tokens before the chunk, restored into the slot first.
      forks: Slots of requests with the same prompt, which copy this slot after the chunk. Only the last chunk of a
        prompt has forks.
    """

    request: Request
    slot: int
    start: int
    length: int
    is_last: bool
    snapshot: Snapshot | None = None
    forks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A request whose slot has the state of its whole prompt, and whose first token is sampled.

    Attributes:
      slot: Slot that the request owned when the row was planned.
      mask: Mask of the token, if an output constraint decides it.
    """

    request: Request
    slot: int
    mask: TokenMask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PrefillBatch:
    """Chunks that are prefilled together: all layers in one step, or a slice of the layers per step.

    Attributes:
      chunks: Chunks in the order of planning, of length 0 all or none; no chunk if only first tokens are sampled.
      first_tokens: Tokens that are sampled after the chunks, of prompts that end with these or earlier ones.
      layer_slice: Index of this step's slice of the layers.
      is_last_slice: Whether the chunks have passed all layers after this step, which then has results.
      num_tokens: Number of tokens in all chunks.
    """

    chunks: tuple[PrefillChunk, ...]
    first_tokens: tuple[FirstToken, ...] = ()
    layer_slice: int = 0
    is_last_slice: bool = True
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", sum([chunk.length for chunk in self.chunks]))

    @property
    def rows(self) -> tuple[PrefillChunk | FirstToken, ...]:
        """Rows that get a result each, in this order."""
        return (*self.chunks, *self.first_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedRow:
    """A slot's decoding state before a step that feeds a replayed token to the model.

    Attributes:
      slot: Slot that the request owned when the row was planned.
      num_tokens: Number of tokens that the request has generated before the step, which processes the last of them.
      mask: Mask of the next token, if an output constraint decides it.
      snapshot: State of the tokens before, restored into the slot first; None if the slot already has it.
    """

    request: Request
    slot: int
    num_tokens: int
    mask: TokenMask | None = None
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DecodeBatch:
    """Requests that generate tokens together.

    Attributes:
      requests: Requests that get tokens.
      slots: Slot of each request when the batch was planned.
      steps: Maximum number of tokens for each request; the device stops a request where it ends.
      moves: Slot compaction before the step, as pairs of source and target.
      masks: Pairs of slot and mask, for requests whose next token an output constraint decides; `steps` is 1 then.
      replays: Slots whose decoding state is set before the step; `steps` is 1 then.
      drafts: Maximum number of drafted tokens of each request in each step, all of which it may get in addition to the
        step's token; or tokens that its output constraint forces, which are drafted. Empty without drafts.
    """

    requests: tuple[Request, ...]
    slots: tuple[int, ...]
    steps: int = 1
    moves: tuple[tuple[int, int], ...] = ()
    masks: tuple[tuple[int, TokenMask], ...] = ()
    replays: tuple[ReplayedRow, ...] = ()
    drafts: tuple[int | Forced, ...] = ()


type Batch = PrefillBatch | DecodeBatch
"""One step of the device. Batches are compared by identity."""


type Pending = Callable[[], Sequence[RowResult]]
"""Waits for a batch that the device is running, and returns one result per row, in the batch's order."""

type BlockStatesReader = Callable[[], Callable[[], Sequence[BlockState]]]
"""Begins to read block states on another thread, and returns a function that waits for them."""


class RowResult(NamedTuple):  # a frozen dataclass takes five times as long to construct, and each token has one
    """Result of one row of a batch.

    Attributes:
      token_ids: Sampled tokens; none for a chunk. Tokens after the one that ends the request are meaningless.
      logprobs: Log-probabilities of these tokens, if the request asks for them.
      prompt_logprobs: Log-probabilities of the prompt token after each token of the chunk, if requested.
      block_states: Reads the states at the block boundaries that the chunk has passed, in order; None without a prefix
        cache, and for chunks of length 0.
      drafts: Drafted and accepted tokens, if any were drafted.
      prediction: Tokens of the request's prediction among them, if it has one.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    block_states: BlockStatesReader | None = None
    drafts: DraftCounts | None = None
    prediction: PredictionUse | None = None


class TokenOutput(NamedTuple):  # like `RowResult`
    """Output of one step for one request.

    Attributes:
      token_ids: New tokens, including an end or stop id; empty if the request ends without a token.
      logprobs: One entry per new token, if requested.
      prompt_logprobs: One entry per prompt token, if requested, on the first output only. The first entry is None.
      finish_reason: Reason of the end, on the last output only.
      stop_reason: Id from `stop_token_ids` that ended the request, if any.
      num_cached: Number of prompt tokens that were restored instead of prefilled, on the first output only.
      error: Error, with `FinishReason.ERROR`.
      started_at: Time at which the prompt's first chunk was dispatched, in seconds of `time.monotonic`, on the first
        output only.
      prediction: Tokens of the request's prediction that were drafted, on the last output only.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    started_at: float | None = None
    error: RoostError | None = None
    num_cached: int = 0
    prediction: PredictionUse = UNUSED_PREDICTION


def join_outputs(outputs: Sequence[TokenOutput]) -> TokenOutput:
    """Returns consecutive outputs of one request as one."""
    if len(outputs) == 1:
        return outputs[0]
    first, last = outputs[0], outputs[-1]
    wants_logprobs = any(output.logprobs is not None for output in outputs)
    return first._replace(
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs or ()) if wants_logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
        prediction=last.prediction,
    )


def error_output(error: RoostError) -> TokenOutput:
    """Returns the last output of a request that ends with an error."""
    return TokenOutput(finish_reason=FinishReason.ERROR, error=error)

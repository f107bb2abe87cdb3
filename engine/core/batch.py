"""Units of device work and their results, as frozen values: what the scheduler plans and the worker runs."""

from dataclasses import dataclass, field

from .output_constraint import TokenMask
from .request import Request, TokenLogprobs
from .snapshot import BlockState, Snapshot


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + length) of a request, prefilled into its slot.

    Attributes:
      request: Request whose prompt the tokens belong to.
      slot: Slot that the request owned when the chunk was planned.
      start: Number of prompt tokens before the chunk.
      length: Number of tokens in the chunk; 0 if the whole prompt is restored.
      mask: Mask of the first generated token, if an output constraint decides it.
      snapshot: Snapshot of the tokens before the chunk, restored into the slot first.
      forks: Requests with the same prompt that copy this slot's state, as chunks of their own slots. Only the last
        chunk of a prompt has forks.
      is_last: Whether the prompt ends here, so that the first token is sampled.
    """

    request: Request
    slot: int
    start: int
    length: int
    mask: TokenMask | None = None
    snapshot: Snapshot | None = None
    forks: "tuple[PrefillChunk, ...]" = ()
    is_last: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_last = self.start + self.length == len(self.request.prompt_token_ids)
        object.__setattr__(self, "is_last", is_last)


@dataclass(frozen=True, slots=True, eq=False)
class PrefillBatch:
    """Chunks that are prefilled together, all layers in one step or some layers in each of several steps.

    Attributes:
      chunks: At least one chunk, in the order of planning.
      layer_slice: Index of this step's slice of the layers.
      layer_slices: Number of slices; the last one has results.
      is_last_slice: Whether the chunks have passed all layers after this step.
      rows: Chunks that get a result: all chunks, then all forks.
    """

    chunks: tuple[PrefillChunk, ...]
    layer_slice: int = 0
    layer_slices: int = 1
    is_last_slice: bool = field(init=False, repr=False)
    rows: tuple[PrefillChunk, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = (*self.chunks, *(fork for chunk in self.chunks for fork in chunk.forks))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "is_last_slice", self.layer_slice == self.layer_slices - 1)


@dataclass(frozen=True, slots=True, eq=False)
class RestoreBatch(PrefillBatch):
    """Chunks of length 0 whose whole prompts are restored: only their first tokens are sampled."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodeBatch:
    """Requests that generate tokens together.

    Attributes:
      requests: Requests that get tokens.
      slots: Slot of each request when the batch was planned.
      steps: Maximum number of tokens for each request; the device stops a request where it ends.
      moves: Slot compaction before the step, as pairs of source and target.
      masks: Pairs of slot and mask, for requests whose next token an output constraint decides; `steps` is 1 then.
    """

    requests: tuple[Request, ...]
    slots: tuple[int, ...]
    steps: int = 1
    moves: tuple[tuple[int, int], ...] = ()
    masks: tuple[tuple[int, TokenMask], ...] = ()


type Batch = PrefillBatch | RestoreBatch | DecodeBatch
"""One step of the device. Batches are compared by identity."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """Result of one row of a batch.

    Attributes:
      token_ids: Sampled tokens; none for a chunk that is not its prompt's last. Tokens after the one that ends the
        request are meaningless.
      logprobs: Log-probabilities of those tokens, if the request asks for them.
      prompt_logprobs: Log-probabilities of the prompt tokens that follow each of the chunk's tokens, if requested.
      block_states: States at the block boundaries that the chunk has passed, in order, if there is a prefix cache.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    block_states: tuple[BlockState, ...] = ()

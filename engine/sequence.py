"""A request that owns a slot, and the units of device work that name such sequences."""

from dataclasses import dataclass, field

from .request import Request, TokenLogprobs


@dataclass(eq=False, slots=True)
class Sequence:
    """A request from the moment it has a slot until it ends. Only the engine's thread touches it.

    Attributes:
      request, slot: who, and where its state lies.
      num_prompt_dispatched: prompt tokens in batches handed to the device.
      num_tokens_dispatched: tokens whose sampling has been handed to the device, were it to go on for so long.
      num_tokens: tokens read back.
      prompt_logprobs: collected chunk by chunk where the request asks for them.
    """

    request: Request
    slot: int
    num_prompt_dispatched: int = 0
    num_tokens_dispatched: int = 0
    num_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])

    @property
    def num_prompt_left(self) -> int:
        """Prompt tokens not yet handed to the device."""
        return len(self.request.prompt_token_ids) - self.num_prompt_dispatched

    @property
    def can_decode(self) -> bool:
        """Whether one more token may be asked for, judged by what has been dispatched, not by what came back."""
        limit = self.request.params.max_tokens
        return not self.num_prompt_left and (limit is None or self.num_tokens_dispatched < limit)


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + length) of a sequence, which owned `slot` when the chunk was planned."""

    sequence: Sequence
    slot: int
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends here, so that the first token is sampled."""
        return self.start + self.length == len(self.sequence.request.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Chunks of prompts that are read in one device step."""

    chunks: tuple[PrefillChunk, ...]


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Sequences that get more tokens in one dispatch.

    Attributes:
      slots: those they owned when it was planned.
      steps: tokens for each of them, at most; the device stops a sequence where it ends.
      moves: (from, to) of slots whose state is moved before that.
    """

    sequences: tuple[Sequence, ...]
    slots: tuple[int, ...]
    steps: int = 1
    moves: tuple[tuple[int, int], ...] = ()


type Batch = PrefillBatch | DecodeBatch


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a batch gave to one of its rows.

    Attributes:
      token_ids: the tokens sampled; none for a chunk that is not its prompt's last. Behind the one that ends its
        sequence they mean nothing.
      logprobs: of those tokens, if the request asks for them.
      prompt_logprobs: of the prompt tokens after this chunk's tokens (the next one each), if asked for.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

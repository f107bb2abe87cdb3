"""A request that owns a slot."""

from array import array
from dataclasses import dataclass, field

from ..core.output_constraint import Constraint, TokenMask
from ..core.request import Request, TokenLogprobs
from ..core.snapshot import Snapshot
from ..core.token_masks import constraint_of
from ..prefix_cache.prefix_key import PrefixKey
from .token_history import TokenHistory


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
      prompt_logprobs: Log-probabilities of prompt tokens so far, if requested; the first token has none.
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
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    key: PrefixKey | None = None
    restore: Snapshot | None = None
    num_cached: int = 0
    last_snapshot: Snapshot | None = None
    is_finite: bool = True
    constraint: Constraint | None = field(init=False)
    mask: TokenMask | None = None
    awaits_mask: bool = False

    def __post_init__(self) -> None:
        self.constraint = constraint_of(self.request)

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

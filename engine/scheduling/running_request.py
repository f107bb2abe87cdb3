"""A request that owns a slot."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..core.errors import ConstraintError
from ..core.output_constraint import Constraint, TokenMask
from ..core.request import Request, TokenLogprobs
from ..core.snapshot import Snapshot
from ..core.token_masks import constraint_of
from ..prefix_cache.prefix_key import PrefixKey

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""The error of a request whose constraint and masks leave no token."""


@dataclass(eq=False, slots=True)
class RunningRequest:
    """A request from the moment it has a slot until it ends. Only the engine's thread touches it.

    Attributes:
      request, slot: who, and where its state lies.
      num_prompt_dispatched: prompt tokens in batches handed to the device.
      num_tokens_dispatched: tokens whose sampling has been handed to the device, were it to go on for so long.
      num_tokens: tokens read back.
      started_at: when the first batch that has it was handed to the device.
      started: when it got its slot, in seconds.
      token_ids: these, where states are remembered.
      prompt_logprobs: collected chunk by chunk where the request asks for them.
      parent: whose state it will go on from, while that one reads the prompt that they share.
      key: its prompt, for the state cache and for saved states; None where there is no cache.
      resume: a remembered state that its slot gets with its first chunk.
      num_cached: prompt tokens that need not be read thanks to that.
      read: the state after the last chunk that came back, or that it was resumed from.
      is_finite: whether all chunks that came back left finite numbers; if not, nothing of it is published any more.
      constraint: the request's, with what its parameters add; None if nothing changes from token to token.
      mask: what may come next, where the constraint decides that.
      awaits_mask: the constraint has not yet worked out what may come next; until then the sequence sits out.
    """

    request: Request
    slot: int
    num_prompt_dispatched: int = 0
    num_tokens_dispatched: int = 0
    num_tokens: int = 0
    started_at: float | None = None
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    parent: "RunningRequest | None" = None
    started: float = 0.0
    key: PrefixKey | None = None
    resume: Snapshot | None = None
    num_cached: int = 0
    read: Snapshot | None = None
    is_finite: bool = True
    constraint: Constraint | None = field(init=False)
    mask: TokenMask | None = None
    awaits_mask: bool = False

    def __post_init__(self) -> None:
        self.constraint = constraint_of(self.request)

    @property
    def num_prompt_left(self) -> int:
        """Prompt tokens not yet handed to the device."""
        return len(self.request.prompt_token_ids) - self.num_prompt_dispatched

    @property
    def is_reading(self) -> bool:
        """Whether it waits for its own prompt to be read, or resumed from, and its first token to be sampled."""
        return self.parent is None and not self.num_tokens_dispatched and not self.awaits_mask

    @property
    def can_decode(self) -> bool:
        """Whether one more token may be asked for, judged by what has been dispatched, not by what came back; but a
        constraint must have seen the last one."""
        limit = self.request.params.max_tokens
        waits = self.awaits_mask or (self.constraint is not None and self.num_tokens < self.num_tokens_dispatched)
        return self.num_tokens_dispatched > 0 and not waits and (limit is None or self.num_tokens_dispatched < limit)

    @property
    def can_fork(self) -> bool:
        """Whether others may still take its state over when its prompt has been read."""
        return not self.num_tokens_dispatched and self.request.params.prompt_logprobs is None

    def resume_from(self, snapshot: Snapshot) -> None:
        """Spares it the prompt up to there."""
        self.resume = self.read = snapshot
        self.num_cached = self.num_prompt_dispatched = snapshot.length

    def refresh_mask(self, words: int, wait_s: float = 0.0) -> None:
        """Asks the constraint what may come next; if it does not know yet, `awaits_mask` says so.

        Args:
          words: of the mask.
          wait_s: how long to wait for it.

        Raises:
          ConstraintError: nothing may.
          Exception: whatever the constraint raises.
        """
        if self.constraint is None:
            return
        self.awaits_mask = not self.constraint.is_ready(wait_s)
        if self.awaits_mask:
            return
        mask, static = np.zeros(words, np.uint32), self.request.params.static_mask
        self.constraint.fill_mask(mask)
        if static is not None:
            static.narrow(mask)
        if not mask.any():
            raise ConstraintError(NO_CHOICE_TEXT)
        self.mask = mask

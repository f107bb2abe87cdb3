"""Decides whose prompt is prefilled next. Pure host Python."""

from collections.abc import Sequence
from typing import Final

from ..core.batch import PrefillBatch
from ..core.config import PREFILL_BLOCK
from .running_request import RunningRequest
from .waiting_queue import FairShares

OLDEST_EVERY: Final = 4
"""Every fourth turn of a tenant goes to its oldest prompt, so that shorter ones cannot starve it."""


class PrefillOrder:
    """Orders the sequences whose prompts are unfinished.

    Tenants take turns by the number of tokens that were prefilled for them (start-time fair queueing). Within a tenant
    the prompt with the fewest blocks left goes first, of equals the oldest, which keeps the mean time to first token
    low.
    """

    def __init__(self) -> None:
        self._shares = FairShares()
        self._tenants: frozenset[str] = frozenset()
        self._num_turns: dict[str, int] = {}

    def next(self, reading: Sequence[RunningRequest]) -> list[RunningRequest]:
        """Returns the sequences in the order in which they go into the next batch.

        Args:
          reading: at least one, oldest first.
        """
        tenants = dict.fromkeys(sequence.request.tenant for sequence in reading)
        for tenant in tenants:
            if tenant not in self._tenants:
                self._shares.enter(tenant)
        self._tenants = frozenset(tenants)
        first = self._first_of(self._shares.first(tenants), reading)
        return [first, *sorted((each for each in reading if each is not first), key=blocks_left)]

    def charge(self, batch: PrefillBatch) -> None:
        """Books a batch; a chunk that only restores a snapshot costs a block."""
        for chunk in batch.chunks:
            self._shares.charge(chunk.request.tenant, max(chunk.length, PREFILL_BLOCK))

    def _first_of(self, tenant: str, reading: Sequence[RunningRequest]) -> RunningRequest:
        own = [sequence for sequence in reading if sequence.request.tenant == tenant]
        turn = self._num_turns[tenant] = self._num_turns.get(tenant, 0) + 1
        return own[0] if turn % OLDEST_EVERY == 0 else min(own, key=blocks_left)


def blocks_left(running: RunningRequest) -> int:
    """Number of blocks that are left of a prompt; the cost of prefilling it."""
    return -(-running.num_prompt_left // PREFILL_BLOCK)

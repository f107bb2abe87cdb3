"""Orders prompts for prefill: fair between tenants, shortest first within one."""

from collections.abc import Sequence
from typing import Final

from ..core.batch import PrefillBatch
from ..core.config import PREFILL_BLOCK
from .fair_shares import FairShares
from .running_request import RunningRequest

OLDEST_EVERY: Final = 4
"""Number of a tenant's turns, one of which goes to its oldest prompt, so that shorter prompts cannot starve it."""


class PrefillOrder:
    """Orders requests that need prefill.

    Tenants take turns by the number of tokens that were prefilled for them (start-time fair queueing). Within a tenant,
    the prompt with the fewest blocks left goes first, which keeps the mean time to first token low; among equals, the
    oldest.
    """

    def __init__(self) -> None:
        self._shares = FairShares()
        self._tenants: frozenset[str] = frozenset()
        self._num_turns: dict[str, int] = {}

    def next(self, requests: Sequence[RunningRequest]) -> list[RunningRequest]:
        """Returns requests in the order in which they go into the next batch.

        Args:
          requests: Requests that need prefill, oldest first; at least one.
        """
        tenants = dict.fromkeys(each.request.tenant for each in requests)
        for tenant in tenants:
            if tenant not in self._tenants:
                self._shares.enter(tenant)
        self._tenants = frozenset(tenants)
        first = self._first_of(self._shares.first(tenants), requests)
        return [first, *sorted((each for each in requests if each is not first), key=blocks_left)]

    def charge(self, batch: PrefillBatch) -> None:
        """Charges tenants for a batch; a chunk that only restores a snapshot costs a block."""
        for chunk in batch.chunks:
            self._shares.charge(chunk.request.tenant, max(chunk.length, PREFILL_BLOCK))

    def _first_of(self, tenant: str, requests: Sequence[RunningRequest]) -> RunningRequest:
        own = [each for each in requests if each.request.tenant == tenant]
        turn = self._num_turns[tenant] = self._num_turns.get(tenant, 0) + 1
        return own[0] if turn % OLDEST_EVERY == 0 else min(own, key=blocks_left)


def blocks_left(running: RunningRequest) -> int:
    """Returns the number of blocks that are left of a prompt, which is the cost of its prefill."""
    return -(-running.num_prompt_left // PREFILL_BLOCK)

"""Plans which chunks of which prompts are prefilled in a step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..core.batch import PrefillBatch, PrefillChunk, RestoreBatch
from ..core.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, StepLimits
from .running_request import RunningRequest
from .slots import SlotPool
from .waiting_queue import FairShares

_OLDEST_EVERY: Final = 4
"""Number of a tenant's turns, one of which goes to its oldest prompt, so that shorter prompts cannot starve it."""


class PrefillPlanner:
    """Plans prefill batches. A batch in progress is completed before another one starts.

    Slots of a batch in progress are pinned: if a request ends meanwhile, its slot is reused after the last slice only,
    since the device still writes to it.

    Attributes:
      in_progress: Requests whose chunks have passed some of the layers.

    Args:
      limits: Compiled sizes of a step.
      pool: Pool of the slots.
    """

    def __init__(self, limits: StepLimits, pool: SlotPool) -> None:
        self.in_progress: tuple[RunningRequest, ...] = ()
        self._limits = limits
        self._pool = pool
        self._order = _PrefillOrder()
        self._last_slice: PrefillBatch | None = None

    def plan(
        self, candidates: Sequence[RunningRequest], running: Mapping[str, RunningRequest], *, is_busy: bool
    ) -> tuple[PrefillBatch, tuple[RunningRequest, ...]]:
        """Plans the next slice of the batch in progress, or else a new batch.

        Args:
          candidates: Requests that need prefill, oldest first; at least one unless a batch is in progress.
          running: All requests with a slot, by id.
          is_busy: Whether at least as many requests decode as need prefill, so that they should not wait for long.

        Returns:
          The batch, and the requests of its rows.
        """
        if self._last_slice is not None:
            rows = self.in_progress
            batch = replace(self._last_slice, layer_slice=self._last_slice.layer_slice + 1)
        else:
            batch = self._plan_batch(self._order.next(candidates), running, is_busy=is_busy)
            rows = tuple(running[row.request.id] for row in batch.rows)
            self._order.charge(batch)
        if not batch.is_last_slice:
            self._last_slice, self.in_progress = batch, rows
            self._pool.pin(row.slot for row in batch.rows)
        elif self._last_slice is not None:
            self._end_slices()
        return batch, rows

    def drop_unless_wanted(self, running: Iterable[RunningRequest]) -> None:
        """Gives up the batch in progress if none of its requests is still running."""
        if self._last_slice is not None and set(self.in_progress).isdisjoint(running):
            self._end_slices()

    def _end_slices(self) -> None:
        self._last_slice, self.in_progress = None, ()
        self._pool.unpin()

    def _plan_batch(
        self, ordered: Sequence[RunningRequest], running: Mapping[str, RunningRequest], *, is_busy: bool
    ) -> PrefillBatch:
        """Plans a chunk of the first prompt, and of as many others as fit a compiled shape without padding rows."""
        first = ordered[0]
        if not first.num_prompt_left:
            restored = [each for each in ordered if not each.num_prompt_left][:MAX_PREFILL_ROWS]
            return RestoreBatch(tuple(_plan_chunk(each, 0, running) for each in restored))
        ordered = [each for each in ordered if each.num_prompt_left]
        is_busy |= any(_blocks_left(each) < _blocks_left(first) for each in ordered)
        budget = self._limits.prefill_beside_decode if is_busy else self._limits.prefill_chunk
        length = _chunk_length(first.num_prompt_left, budget)
        rows = self._choose_rows(ordered, min(budget // length, self._limits.prefill_rows))
        chunks = tuple(_plan_chunk(each, min(length, budget), running) for each in rows)
        is_sliced = len(chunks) == 1 and chunks[0].length <= PREFILL_BLOCK
        return PrefillBatch(chunks, layer_slices=self._limits.prefill_layer_slices if is_sliced else 1)

    def _choose_rows(self, ordered: Sequence[RunningRequest], most: int) -> list[RunningRequest]:
        """Returns the first requests of each shard, a power of two; one whose prompt tokens are scored goes alone."""
        if ordered[0].request.params.prompt_logprobs is not None:
            return [ordered[0]]
        shards: dict[int, list[RunningRequest]] = {}
        for each in ordered:
            if each.request.params.prompt_logprobs is None:
                shards.setdefault(each.slot // (self._limits.shard_rows or self._pool.size), []).append(each)
        count = _floor_power_of_two(min(most, max(map(len, shards.values()))))
        return [each for shard in shards.values() for each in shard[:count]]


class _PrefillOrder:
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
        return [first, *sorted((each for each in requests if each is not first), key=_blocks_left)]

    def charge(self, batch: PrefillBatch) -> None:
        """Charges tenants for a batch; a chunk that only restores a snapshot costs a block."""
        for chunk in batch.chunks:
            self._shares.charge(chunk.request.tenant, max(chunk.length, PREFILL_BLOCK))

    def _first_of(self, tenant: str, requests: Sequence[RunningRequest]) -> RunningRequest:
        own = [each for each in requests if each.request.tenant == tenant]
        turn = self._num_turns[tenant] = self._num_turns.get(tenant, 0) + 1
        return own[0] if turn % _OLDEST_EVERY == 0 else min(own, key=_blocks_left)


def _blocks_left(running: RunningRequest) -> int:
    """Returns the number of blocks that are left of a prompt, which is the cost of its prefill."""
    return -(-running.num_prompt_left // PREFILL_BLOCK)


def _chunk_length(num_tokens: int, budget: int) -> int:
    """Returns the length of a compiled shape for the next chunk of a prompt.

    Args:
      num_tokens: Number of tokens that are left of the prompt.
      budget: Maximum number of tokens in a step.
    """
    length = PREFILL_BLOCK
    while length < min(num_tokens, budget):
        length *= 2
    if length >= 4 * PREFILL_BLOCK and 8 * num_tokens <= 5 * length:
        length //= 2  # two steps, the second of which is short, pad less than one
    return length


def _plan_chunk(request: RunningRequest, most: int, running: Mapping[str, RunningRequest]) -> PrefillChunk:
    """Plans the next chunk of a prompt, up to a maximum length, and records it as dispatched."""
    start = request.num_prompt_dispatched
    to_boundary = -start % PREFILL_BLOCK or most  # a restored snapshot may lie between two block boundaries
    length = min(request.num_prompt_left, most, to_boundary)
    is_last = length == request.num_prompt_left
    forks = [each for each in running.values() if is_last and each.parent is request]
    chunk, *fork_chunks = (_plan_row(each, start, length) for each in (request, *forks))
    return replace(chunk, forks=tuple(fork_chunks)) if fork_chunks else chunk


def _plan_row(running: RunningRequest, start: int, length: int) -> PrefillChunk:
    chunk = PrefillChunk(running.request, running.slot, start, length, running.mask, running.restore)
    running.parent = running.restore = None
    running.num_prompt_dispatched = start + length
    if chunk.is_last:
        running.num_tokens_dispatched = 1
    return chunk


def _floor_power_of_two(n: int) -> int:
    return 1 << (n.bit_length() - 1)

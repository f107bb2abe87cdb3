"""Plans batches: which chunks are prefilled, which requests get tokens, and which states move to earlier slots."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, StepLimits
from ..types.output_constraint import Forced
from ..types.request import Batch, DecodeBatch, FirstToken, PrefillBatch, PrefillChunk, ReplayedRow
from .drafting import Drafting
from .preemption import Demand, Preemption
from .prefill_budget import PrefillBudget, StepTimes
from .running_request import RunningRequest
from .slots import FairShares, SlotAssignment

_OLDEST_EVERY: Final = 4
"""Interval, in turns of a tenant, at which its oldest prompt goes first, so that shorter prompts cannot starve it."""

type Planned = tuple[Batch, Sequence[RunningRequest]]
"""A batch, and the requests of its rows."""


class BatchPlanner:
    """Plans batches one after the other, and records the dispatched tokens.

    While some requests need prefill and others decode, at least one prefill step runs between two decode steps, and
    more if the target for the inter-token latency permits. A prefill batch in progress is completed before another one
    starts. Its slots are pinned: if a request ends before the last slice, its slot is reused only after that slice,
    since the device still writes to it.

    The first token of a prompt is sampled in the batch that ends the prompt, or held until later prompts have ended
    too, since one pass over the output embedding serves several. It is held only as long as tokens may wait for
    prefill, and never past a decode step.

    Args:
      limits: Compiled sizes of a step.
      assignment: Slots, and the requests that have them.
      times: Durations of steps.
      drafting: Decides which requests have drafts; None without speculation.
    """

    def __init__(
        self, limits: StepLimits, assignment: SlotAssignment, times: StepTimes, drafting: Drafting | None
    ) -> None:
        self._limits = limits
        self._assignment = assignment
        self._pool = assignment.pool
        self._budget = PrefillBudget(limits, times)
        self._drafting = drafting
        self._precedence: Preemption | None = None
        self._num_idle_rows = 0  # of the decode steps since a smaller step would have sufficed
        self._orders = {is_urgent: _PrefillOrder() for is_urgent in (False, True)}
        self._in_progress: tuple[RunningRequest, ...] = ()  # requests whose chunks have passed only the first layers
        self._last_slice: PrefillBatch | None = None
        self._in_flight: tuple[RunningRequest, ...] = ()  # requests of the last batch, if it produces snapshots

    def plan(self, running: Mapping[str, RunningRequest], precedence: Preemption | None = None) -> Planned | None:
        """Plans the next batch.

        Args:
          running: All requests with a slot by id, oldest first.
          precedence: Decides for which requests a step may run; None lets it run for all.

        Returns:
          The batch; None if there is nothing to run.
        """
        self._precedence = precedence
        demand = self._demand(running.values())
        planned = (
            self._plan_prefill(demand, running)
            or self._plan_held(demand)
            or self._plan_decode(demand, running.values())
        )
        if planned is not None and precedence is not None:
            precedence.book(*planned, demand)
        return planned

    def drop_unless_wanted(self, running: Iterable[RunningRequest]) -> None:
        """Abandons the prefill batch in progress if none of its requests is still running."""
        if self._last_slice is not None and set(self._in_progress).isdisjoint(running):
            self._end_slices()

    def _demand(self, running: Collection[RunningRequest]) -> Demand:
        """Sorts requests by whether they need prefill or another token."""
        prompts: list[RunningRequest] = []
        decoding: list[RunningRequest] = []
        awaited: set[RunningRequest | None] = set()  # a fork needs its mask with the prompt
        for each in running:
            may_sample, limit = each.constraint is None or each.may_sample, each.request.params.max_tokens
            if not may_sample:
                awaited.add(each.parent)
            if each.num_tokens_dispatched:  # one more token may be dispatched, even if others are in flight
                if may_sample and (limit is None or each.num_tokens_dispatched < limit):
                    decoding.append(each)
            elif each.is_prefilled:
                if each not in self._in_progress:
                    decoding.append(each)
            elif may_sample and each.parent is None:
                prompts.append(each)
        return self._weigh([each for each in prompts if each not in awaited], decoding)

    def _weigh(self, prompts: Sequence[RunningRequest], decoding: Sequence[RunningRequest]) -> Demand:
        """Returns the requests for which the next step may run: all of them, unless some have precedence."""
        if self._precedence is not None:
            return self._precedence.demand(prompts, decoding)
        return Demand(prompts, decoding, len(decoding), len(decoding), is_urgent=True)

    def _plan_prefill(self, demand: Demand, running: Mapping[str, RunningRequest]) -> Planned | None:
        """Plans the next slice of the batch in progress, or a new batch if the budget permits one.

        First tokens follow, unless they are held.
        """
        in_flight, self._in_flight = self._in_flight, ()
        ready = [each for each in demand.prompts if not any(_shares_chunk(each, other) for other in in_flight)]
        if self._last_slice is None and not ready:
            return None
        load = (len(demand.decoding), num_waiting(demand, ready, self._in_progress), demand.num_awaited)
        if self._last_slice is not None:
            requests = self._in_progress
            index = self._last_slice.layer_slice + 1
            is_last = index == self._limits.prefill_layer_slices - 1
            batch = replace(self._last_slice, layer_slice=index, is_last_slice=is_last)
            if not self._budget.allows(batch, *load):
                return None
        else:
            most = self._budget.max_tokens(*load)
            if not most:
                return None
            order = self._orders[demand.is_urgent]
            batch = self._plan_chunks(order.next(ready), running.values(), most, is_urgent=demand.is_urgent)
            requests = _owners(batch, running.values())
            order.charge(batch)
        if not batch.is_last_slice:
            self._last_slice, self._in_progress = batch, requests
            self._pool.pinned.update([each.slot for each in requests])
        elif self._last_slice is not None:
            self._end_slices()
        self._in_flight = requests if batch.is_last_slice else ()
        held = _ended(demand.decoding)
        new = [each for each in _ended(requests) if running.get(each.request.id) is each]  # others were aborted
        firsts = [] if self._holds(batch, held, new, demand) else [*held, *new]
        batch = replace(batch, first_tokens=tuple(map(_take_first_token, firsts)))
        self._budget.spend(batch, len(demand.decoding), is_holding=bool(held))
        return batch, (*requests[: len(batch.chunks)], *firsts)

    def _holds(
        self, batch: PrefillBatch, held: Sequence[RunningRequest], new: Sequence[RunningRequest], demand: Demand
    ) -> bool:
        """Returns whether first tokens wait until another prompt has ended, before the next decode step.

        Args:
          batch: The batch without them.
          held: Requests whose first tokens are held already.
          new: Requests whose prompts end with the batch.
        """
        if not batch.is_last_slice:
            return True
        if not (held or new):
            return False
        left = [each for each in demand.prompts if not each.is_prefilled]
        later = self._weigh(left, (*demand.decoding, *new))
        if not later.prompts:
            return False
        load = (len(later.decoding), num_waiting(later, later.prompts), later.num_awaited)
        return self._budget.max_held(batch, *load, is_holding=bool(held)) >= min(map(_num_left, later.prompts))

    def _plan_held(self, demand: Demand) -> Planned | None:
        """Plans the first tokens that were held, without a chunk."""
        held = _ended(demand.decoding)
        if not held:
            return None
        batch = PrefillBatch((), tuple(map(_take_first_token, held)))
        self._budget.spend(batch, len(demand.decoding), is_holding=True)
        return batch, held

    def _end_slices(self) -> None:
        self._last_slice, self._in_progress = None, ()
        self._pool.unpin()

    def _plan_chunks(
        self, ordered: Sequence[RunningRequest], running: Collection[RunningRequest], most: int, *, is_urgent: bool
    ) -> PrefillBatch:
        """Plans a chunk of the first prompt, and of as many others as fit a compiled shape without padding rows.

        Args:
          ordered: Requests that need prefill, in order; at least one.
          running: All requests with a slot.
          most: Maximum number of tokens.
          is_urgent: Whether a short prompt may wait for at most a block of another one.
        """
        first = ordered[0]
        for each in ordered[: self._limits.prefill_rows]:
            self._assignment.extend_restored(each)
        if not _num_left(first):
            restored = [each for each in ordered if not _num_left(each)][:MAX_PREFILL_ROWS]
            return PrefillBatch(tuple(_take_chunk(each, 0, running) for each in restored))
        ordered = [each for each in ordered if _num_left(each)]
        is_urgent = is_urgent and self._limits.itl_target_s != 0
        if is_urgent and any(_blocks_left(each) < _blocks_left(first) for each in ordered):
            most = PREFILL_BLOCK
        length = _chunk_length(_num_left(first), most)
        rows = self._choose_rows(ordered, min(most // length, self._limits.rows_of(length)))
        chunks = tuple(_take_chunk(each, min(length, most), running) for each in rows)
        return PrefillBatch(chunks, is_last_slice=self._limits.prefill_layer_slices == 1)

    def _choose_rows(self, ordered: Sequence[RunningRequest], most: int) -> list[RunningRequest]:
        """Returns the first requests of each shard, a power of two. A request with scored prompt tokens is alone."""
        if ordered[0].request.params.prompt_logprobs is not None:
            return [ordered[0]]
        shards: dict[int, list[RunningRequest]] = {}
        for each in ordered:
            if each.request.params.prompt_logprobs is None:
                shards.setdefault(each.slot // (self._limits.shard_rows or self._pool.size), []).append(each)
        count = 1 << (min(most, max(map(len, shards.values()))).bit_length() - 1)
        return [each for shard in shards.values() for each in shard[:count]]

    def _plan_decode(self, demand: Demand, running: Collection[RunningRequest]) -> Planned | None:
        """Plans tokens for all requests that decode, and records them as dispatched.

        Each request gets only one token if a prefill step comes before or after this step.
        """
        beside_prefill = self._budget.renew() or bool(demand.prompts or self._in_progress)
        requests = demand.decoding
        if not requests:
            return None
        moves = () if self._in_progress else self._compact(requests, running)
        steps = 1 if beside_prefill else self._limits.decode_steps
        if steps > 1 and any(each.constraint is not None or _takes_single_tokens(each) for each in running):
            steps = 1
        replays = tuple(_take_replayed(each) for each in requests if each.request.replay and _replays_next(each))
        slots = tuple(each.slot for each in requests)
        drafts: tuple[int | Forced, ...] = ()
        if self._drafting is not None:
            drafts = self._drafting.drafts([None if _takes_single_tokens(each) else each for each in requests], steps)
        masks = tuple((each.slot, mask) for each in requests if each.constraint and (mask := each.mask) is not None)
        for request in requests:
            request.num_tokens_dispatched += steps
        batch = DecodeBatch(tuple(each.request for each in requests), slots, steps, moves, masks, replays, drafts)
        return batch, requests

    def _compact(
        self, requests: Sequence[RunningRequest], running: Collection[RunningRequest]
    ) -> tuple[tuple[int, int], ...]:
        """Moves states to earlier slots if it is due; returns source and target of each.

        This step and later ones then need fewer rows. States move once the idle rows of the steps since a smaller step
        would have sufficed outweigh the moves. If the load hovers at the number of rows of a compiled step, most states
        stay until they end.
        """
        fewest, rows = self._rows(len(running)), self._rows(1 + max([self._pool.rank[each.slot] for each in requests]))
        if rows <= fewest:
            self._num_idle_rows = 0
            return ()
        moved = [each for each in running if self._pool.rank[each.slot] >= fewest]
        self._num_idle_rows += rows - fewest
        if self._num_idle_rows < self._limits.idle_rows_per_move * len(moved):
            return ()
        self._num_idle_rows = 0
        moves = []
        for each in moved:
            source, each.slot = each.slot, self._pool.claim()
            self._pool.release(source)
            moves.append((source, each.slot))
        return tuple(moves)

    def _rows(self, num_slots: int) -> int:
        """Returns the number of rows of the step that is compiled for the first slots."""
        return next((rows for rows in self._limits.decode_rows if rows >= num_slots), self._pool.size)


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
        """Charges tenants for a batch. A chunk that only restores costs a block."""
        for chunk in batch.chunks:
            self._shares.charge(chunk.request.tenant, max(chunk.length, PREFILL_BLOCK))

    def _first_of(self, tenant: str, requests: Sequence[RunningRequest]) -> RunningRequest:
        own = [each for each in requests if each.request.tenant == tenant]
        turn = self._num_turns[tenant] = self._num_turns.get(tenant, 0) + 1
        return own[0] if turn % _OLDEST_EVERY == 0 else min(own, key=_blocks_left)


def num_waiting(demand: Demand, *groups: Sequence[RunningRequest]) -> int:
    """Returns the largest number of prompts in a group for which tokens may wait longer."""
    if demand.num_awaited:
        groups = tuple([[each for each in group if not each.request.preemptible] for group in groups])
    return max(1, *map(len, groups))


def _owners(batch: PrefillBatch, running: Iterable[RunningRequest]) -> tuple[RunningRequest, ...]:
    """Returns the requests of a batch's chunks, then the requests of their forks."""
    owners = {each.slot: each for each in running}
    forks = (slot for chunk in batch.chunks for slot in chunk.forks)
    return tuple(owners[slot] for slot in (*(chunk.slot for chunk in batch.chunks), *forks))


def _ended(requests: Iterable[RunningRequest]) -> list[RunningRequest]:
    """Returns requests whose prompts have ended, and whose first tokens are not sampled yet."""
    return [each for each in requests if each.is_prefilled and not each.num_tokens_dispatched]


def _takes_single_tokens(running: RunningRequest) -> bool:
    """Returns whether the host must see each token of a request before the next."""
    return running.request.stepwise or _replays_next(running)


def _replays_next(running: RunningRequest) -> bool:
    """Returns whether a request's next decode step processes a replayed token."""
    return 0 < running.num_tokens_dispatched <= running.request.num_replayed


def _num_left(running: RunningRequest) -> int:
    """Returns the number of prompt tokens that are not dispatched yet."""
    return len(running.request.prompt_token_ids) - running.num_prompt_dispatched


def _shares_chunk(running: RunningRequest, other: RunningRequest) -> bool:
    """Returns whether the next block of a prompt is in the last chunk of another one, whose snapshots will be available
    soon.
    """
    key, other_key, is_scored = running.key, other.key, running.request.params.prompt_logprobs is not None
    if running is other or key is None or other_key is None or is_scored:
        return False
    end = (running.num_prompt_dispatched // PREFILL_BLOCK + 1) * PREFILL_BLOCK
    return end <= other.num_prompt_dispatched and end < len(key) and key.shares(other_key, end)


def _blocks_left(running: RunningRequest) -> int:
    """Returns the number of remaining blocks of a prompt, which is the cost of its prefill."""
    return -(-_num_left(running) // PREFILL_BLOCK)


def _take_chunk(running: RunningRequest, most: int, others: Iterable[RunningRequest]) -> PrefillChunk:
    """Returns the next chunk of a prompt, up to a maximum length, and records it as dispatched.

    Args:
      running: Request with the prompt.
      most: Maximum number of tokens; 0 if the whole prompt is restored.
      others: All requests with a slot; the forks among them copy the state with the last chunk.
    """
    start, left = running.num_prompt_dispatched, _num_left(running)
    to_boundary = -start % PREFILL_BLOCK or most  # a restored snapshot may lie between two block boundaries
    length = min(left, most, to_boundary)
    forks = [each for each in others if length == left and each.parent is running]
    slots = tuple(each.slot for each in forks)
    chunk = PrefillChunk(running.request, running.slot, start, length, length == left, running.restore, slots)
    for each in (running, *forks):
        each.parent = each.restore = None
        each.num_prompt_dispatched = start + length
    return chunk


def _take_first_token(running: RunningRequest) -> FirstToken:
    mask = None if running.constraint is None else running.mask
    running.num_tokens_dispatched = 1
    return FirstToken(running.request, running.slot, mask)


def _take_replayed(running: RunningRequest) -> ReplayedRow:
    """Returns the row that the next decode step processes. A mask applies only after the last replayed token."""
    row = ReplayedRow(running.request, running.slot, running.num_tokens_dispatched, running.mask, running.restore)
    running.restore = None
    return row


def _chunk_length(num_tokens: int, budget: int) -> int:
    """Returns the length of a compiled shape for the next chunk of a prompt.

    Args:
      num_tokens: Number of remaining tokens of the prompt.
      budget: Maximum number of tokens in a step.
    """
    length = PREFILL_BLOCK
    while length < min(num_tokens, budget):
        length *= 2
    if length >= 4 * PREFILL_BLOCK and 8 * num_tokens <= 5 * length:
        length //= 2  # two steps, the second of which is short, need less padding than one
    return length

"""Decides the next batch and books results. Pure host Python: no clock, no thread, no JAX, no randomness."""

import math
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Final

from ..core.batch import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RestoreBatch, RowResult
from ..core.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, StepLimits
from ..core.errors import (
    ConstraintError,
    NumericError,
    QueueFullError,
    QueueTimeoutError,
    RequestFailedError,
    RequestTimeoutError,
    RoostError,
)
from ..core.request import FinishReason, Request, TokenOutput
from ..core.sampling_limits import NO_CHOICE
from ..core.snapshot import Snapshot
from ..prefix_cache.cache import PrefixCache
from ..prefix_cache.prefix_key import PrefixKey
from .prefetch import Fetch, Prefetcher
from .prefill_order import PrefillOrder, blocks_left
from .retry_after import Pace
from .running_request import NO_CHOICE_TEXT, RunningRequest
from .slots import SlotPool, SlotReserve
from .token_history import RecentTexts, Text
from .waiting_queue import WaitingQueue, expected_tokens

MASK_WAIT_S: Final = 0.002
"""Seconds that a step may wait for a constraint: most masks take a tenth of a millisecond, hostile ones minutes."""

_NOT_NUMBERS: Final = "the model's activations are not numbers any more; the request was ended"

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


class Scheduler:
    """Lets requests into slots in the queue's order; a request that has a slot keeps it until it ends.

    Prefill and decode take turns while both have work: a decode waits for at most one prefill step. Whose prompt goes
    into a prefill step is up to `PrefillOrder`. A batch whose layers are read in several steps is done before the next
    one begins.

    Args:
      slots: how many requests run at a time.
      max_queue: how many may wait for a slot.
      limits: how large a batch may be.
      max_queue_tokens, tenants: see `WaitingQueue`.
      reserved_slots: slots kept free for tenants with nothing running; see `SlotReserve`.
      cache: remembers states of prompts that were read; None remembers nothing.
    """

    def __init__(
        self,
        slots: int,
        max_queue: int,
        limits: StepLimits,
        max_queue_tokens: int | None = None,
        tenants: int = 1,
        *,
        reserved_slots: int = 0,
        cache: PrefixCache | None = None,
    ) -> None:
        self.slots = SlotPool(slots, limits.slot_order or None)
        self._reserve = SlotReserve(slots, reserved_slots)
        self.cache = cache
        self._limits = limits
        self._waiting = WaitingQueue(max_queue, max_queue_tokens, tenants)
        self._prefetcher = Prefetcher(self._waiting, cache)
        self._prefill_order = PrefillOrder()
        self._probes: deque[Request] = deque()
        self._pace = Pace(slots)
        self._now = 0.0
        self._next_deadline = math.inf
        self._running: dict[str, RunningRequest] = {}
        self._failed: list[tuple[str, TokenOutput]] = []
        self._ends: list[tuple[PrefixKey, int]] = []
        self._decode_is_due = False
        self._begun: PrefillBatch | None = None
        self._begun_rows: tuple[RunningRequest, ...] = ()
        self._in_flight: dict[Batch, tuple[RunningRequest, ...]] = {}
        self._slots_to_free: list[int] = []
        self._ended = RecentTexts()

    def __repr__(self) -> str:
        return f"Scheduler(waiting={self.num_waiting}, running={self.num_running}, slots={self.slots!r})"

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to plan and nothing to tell."""
        return not (self._waiting or self._running or self._failed or self._probes)

    @property
    def next_timeout(self) -> float | None:
        """When there will be something to plan though nothing happens, in seconds; None if there is already."""
        if not self._prefetcher.is_planned or self._waiting.num_ready or self._running or self._failed or self._probes:
            return None
        return min(self._next_deadline, self._prefetcher.timeout)

    @property
    def num_waiting_tokens(self) -> int:
        """Of the prompts of those without a slot."""
        return self._waiting.num_tokens

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
          QueueFullError: as many wait already as may, and no slot is free for this one.
          ValueError: a request with this id is alive.
        """
        if request.id in self._running or request.id in self._waiting:
            raise ValueError(f"request id {request.id!r} is in use")
        if self.num_waiting >= self._reserve.num_open(self.slots.num_used):
            self._fill_slots()
            self._check_room(request)
        self._waiting.add(request)
        if self._parent_of(request) is None:
            self._prefetcher.offer(request)
        self._next_deadline = min(self._next_deadline, request.deadline, request.start_by)

    def probe(self, request: Request) -> None:
        """Gives a request of the engine's own the next free slot, ahead of the queue. Nothing of it is cached."""
        self._probes.append(request)

    def abort(self, request_id: str) -> bool:
        """Ends a request at once; its slot is free for the next batch. Says whether it was alive."""
        if request_id in self._running:
            self._release(self._running[request_id])
            return True
        self._prefetcher.take(request_id)
        return self._waiting.remove(request_id)

    def tick(self, now: float) -> list[tuple[str, TokenOutput]]:
        """Says what time it is, in seconds of `time.monotonic`; gives the ends of requests that have none left."""
        self._now = now
        if now < self._next_deadline:
            return []
        waiting = [(r, _lateness(r, now, is_waiting=True)) for r in self._waiting]
        running = [(s.request, _lateness(s.request, now, is_waiting=False)) for s in self._running.values()]
        late = [(request.id, _failed(error)) for request, error in waiting + running if error is not None]
        for request_id, _ in late:
            self.abort(request_id)
        starts = [request.start_by for request in self._waiting]
        ends = [r.deadline for r in (*self._waiting, *(s.request for s in self._running.values()))]
        self._next_deadline = min([*starts, *ends], default=math.inf)
        return late

    def schedule(self) -> Batch | None:
        """Plans the next batch and books it as dispatched; None where there is nothing to do."""
        self._fill_slots()
        self._take_masks()
        unready = {s.parent for s in self._running.values() if s.awaits_mask}  # a fork needs its mask with the prompt
        reading = [s for s in self._running.values() if s.is_reading and s not in unready]
        begun = self._being_read()
        decoding = [s for s in self._running.values() if s.can_decode and s not in begun]
        if (reading or begun) and not (self._decode_is_due and decoding):
            self._decode_is_due = True
            if self._begun is not None:
                return self._dispatch(replace(self._begun, layer_slice=self._begun.layer_slice + 1))
            batch = self._plan_prefill(self._prefill_order.next(reading), is_busy=len(decoding) >= len(reading))
            self._prefill_order.charge(batch)
            return self._dispatch(batch)
        self._decode_is_due = False
        return self._plan_decode(decoding, is_alone=not (reading or begun)) if decoding else None

    def note_start(self, batch: Batch, now: float) -> None:
        for sequence in self._in_flight[batch]:
            sequence.started_at = now if sequence.started_at is None else sequence.started_at

    def plan_fetches(self) -> list[Fetch]:
        """Returns the prompts that are to be searched for below the cache's memory, and books that this has begun."""
        return self._prefetcher.plan(self._now)

    def commit_fetch(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Books what a search has found; its request may get a slot from now on."""
        self._prefetcher.commit(fetch, found)

    def text_of(self, request_id: str) -> Text | None:
        """Of a request that runs, so far, or has ended lately; None of any other, and where nothing is remembered."""
        sequence = self._running.get(request_id)
        return self._ended.get(request_id) if sequence is None else _text_of(sequence)

    def take_failed(self) -> list[tuple[str, TokenOutput]]:
        """The ends of requests that could not be planned since this was asked last."""
        failed, self._failed = self._failed, []
        return failed

    def take_ends(self) -> list[tuple[PrefixKey, int]]:
        """The texts that slots have read whose requests have ended since this was asked last, if they are to be gone on
        from. What lies in the slots is theirs until the next batch is planned."""
        ends, self._ends = self._ends, []
        return ends

    def commit(self, batch: Batch, results: Sequence[RowResult]) -> list[tuple[str, TokenOutput]]:
        """Books what a batch gave. Rows whose request has ended since are dropped."""
        outputs: list[tuple[str, TokenOutput]] = []
        for sequence, result in zip(self._in_flight.pop(batch), results, strict=True):
            if result.block_states:  # also of a request that has ended: another one may be restored from them
                self._remember(sequence, result)
            if self._running.get(sequence.request.id) is not sequence:
                continue
            sequence.prompt_logprobs.extend(result.prompt_logprobs)
            if not result.token_ids:
                continue
            for output in map(partial(self._constrain, sequence), self._commit_tokens(sequence, result)):
                outputs.append((sequence.request.id, output))
                if output.finish_reason is not None:
                    self._note_end(sequence, output)
                    self._release(sequence)
                    break
        return outputs

    def _check_room(self, request: Request) -> None:
        if self._may_start(request.tenant) and self._waiting.num_held < self.slots.num_free:
            return
        try:
            self._waiting.check_room(request)
        except QueueFullError as error:
            raise QueueFullError(str(error), self._pace.refused()) from None

    def _fill_slots(self) -> None:
        while self._probes and self.slots.num_free:
            probe = self._probes.popleft()
            self._running[probe.id] = RunningRequest(probe, self.slots.claim(), started=self._now)
        while self.slots.num_free and (request := self._waiting.pop(self._may_start)) is not None:
            self._start(request)

    def _may_start(self, tenant: str) -> bool:
        """Whether a request of this tenant may take a slot now."""
        if self._reserve.num_open(self.slots.num_used):
            return True
        return bool(self.slots.num_free) and all(s.request.tenant != tenant for s in self._running.values())

    def _start(self, request: Request) -> None:
        """Gives a request a slot. What goes wrong here, whatever it is, ends this request and no other."""
        slot = self.slots.claim()
        try:
            sequence = RunningRequest(request, slot, parent=self._parent_of(request), started=self._now)
            self._look_up(sequence)
            _refresh_mask(sequence, self._limits.mask_words)
        except Exception as error:
            self.slots.release(slot)
            self._prefetcher.take(request.id)
            self._waiting.shares.charge(request.tenant, -expected_tokens(request))
            own = error if isinstance(error, RoostError) else RequestFailedError(_NOT_STARTED)
            self._failed.append((request.id, _failed(own)))
        else:
            self._running[request.id] = sequence

    def _take_masks(self) -> None:
        """Lets those go on whose constraints know by now what may come next. The step waits a moment for one that does
        not, and no more for any other."""
        wait_s = MASK_WAIT_S
        for sequence in [s for s in self._running.values() if s.awaits_mask]:
            try:
                sequence.refresh_mask(self._limits.mask_words, wait_s)
            except Exception as error:  # of somebody else's code; only this request depends on it
                self._release(sequence)
                self._failed.append((sequence.request.id, _failed(ConstraintError(str(error)))))
            if sequence.awaits_mask:
                wait_s = 0.0

    def _look_up(self, sequence: RunningRequest) -> None:
        """Resumes a sequence that reads its own prompt from what is remembered of it, if all it wants is its end."""
        fetch = self._prefetcher.take(sequence.request.id)
        if sequence.parent is not None:
            if sequence.parent.key is not None:  # the prompts are the same
                sequence.key = PrefixKey(sequence.request.cache_salt, sequence.parent.key.tokens)
            return
        request, found = sequence.request, sequence.request.state
        if found is not None and found.length >= len(request.prompt_token_ids):
            found = None  # nothing would be left to read
        scores = request.params.prompt_logprobs is not None
        if self.cache is not None:
            fetched = None if fetch is None else fetch.key
            sequence.key = sequence.key or fetched or PrefixKey.of(request.prompt_token_ids, request.cache_salt)
            known = None if scores else self.cache.match_prefix(sequence.key, None if fetch is None else fetch.found)
            found = max(filter(None, (known, found)), key=lambda state: state.length, default=None)
        if found is not None and not scores:
            sequence.resume_from(found)

    def _remember(self, sequence: RunningRequest, result: RowResult) -> None:
        """Publishes what a chunk left, while all of the sequence's state is finite."""
        sequence.is_finite = sequence.is_finite and all(state.is_finite for state in result.block_states)
        if self.cache is not None and sequence.key is not None and sequence.is_finite:
            sequence.read = self.cache.insert_chunk(sequence.key, sequence.read, result.block_states)

    def _parent_of(self, request: Request) -> RunningRequest | None:
        """Who reads this request's prompt anyway, and may be forked when that is done."""
        parent = None if request.fork_of is None else self._running.get(request.fork_of)
        if parent is None or not parent.can_fork or request.params.prompt_logprobs is not None:
            return None
        is_same = parent.request.prompt_token_ids == request.prompt_token_ids
        return (parent.parent or parent) if is_same else None

    def _plan_prefill(self, reading: Sequence[RunningRequest], *, is_busy: bool) -> PrefillBatch:
        """Plans a chunk of the first prompt, and of as many others as make a compiled shape without padding.

        Args:
          reading: in the order in which they are to be prefilled.
          is_busy: whether most requests decode, so that they should not wait for a large chunk.
        """
        if not reading[0].num_prompt_left:
            known = [s for s in reading if not s.num_prompt_left][:MAX_PREFILL_ROWS]
            return RestoreBatch(tuple(self._plan_chunk(s, 0) for s in known))
        reading = [s for s in reading if s.num_prompt_left]
        is_busy |= any(blocks_left(s) < blocks_left(reading[0]) for s in reading)
        budget = self._limits.prefill_beside_decode if is_busy else self._limits.prefill_chunk
        length = PREFILL_BLOCK
        while length < min(reading[0].num_prompt_left, budget):
            length *= 2
        if length >= 4 * PREFILL_BLOCK and 8 * reading[0].num_prompt_left <= 5 * length:
            length //= 2  # two steps of which the second is short, rather than one that is padding for a large part
        scored = [s for s in reading[:1] if s.request.params.prompt_logprobs is not None]  # scored one by one
        plain = [s for s in reading if s.request.params.prompt_logprobs is None]
        rows = scored or self._first_of_each_shard(plain, min(budget // length, self._limits.prefill_rows))
        chunks = tuple(self._plan_chunk(s, min(length, budget)) for s in rows)
        is_cut = len(chunks) == 1 and chunks[0].length <= PREFILL_BLOCK
        return PrefillBatch(chunks, layer_slices=self._limits.prefill_layer_slices if is_cut else 1)

    def _dispatch[Chunks: PrefillBatch](self, batch: Chunks) -> Chunks:
        """Notes whether there are parts to come."""
        if self._begun is None:
            self._in_flight[batch] = tuple(self._running[row.request.id] for row in batch.rows)
        else:
            self._in_flight[batch] = self._begun_rows
        self._begun_rows = self._in_flight[batch]
        self._begun = None if batch.is_last_slice else batch
        if self._begun is None:
            self._free_slots()
        return batch

    def _free(self, sequence: RunningRequest) -> None:
        """Gives a slot back; one that a begun batch works on, with its last part, or when nobody wants that now."""
        begun = self._being_read()
        if sequence not in begun:
            self.slots.release(sequence.slot)
            return
        self._slots_to_free.append(sequence.slot)
        if all(self._running.get(s.request.id) is not s for s in begun):
            self._begun = None
            self._free_slots()

    def _free_slots(self) -> None:
        for slot in self._slots_to_free:
            self.slots.release(slot)
        self._slots_to_free.clear()

    def _being_read(self) -> set[RunningRequest]:
        """By some of the layers so far."""
        return set() if self._begun is None else set(self._begun_rows)

    def _first_of_each_shard(self, reading: Sequence[RunningRequest], most: int) -> list[RunningRequest]:
        """The oldest of each shard, as many as make a compiled shape."""
        shards: dict[int, list[RunningRequest]] = {}
        for sequence in reading:
            shards.setdefault(sequence.slot // (self._limits.shard_rows or self.slots.size), []).append(sequence)
        count = _floor_power_of_two(min(most, max(map(len, shards.values()))))
        return [sequence for shard in shards.values() for sequence in shard[:count]]

    def _plan_chunk(self, sequence: RunningRequest, most: int) -> PrefillChunk:
        start = sequence.num_prompt_dispatched
        to_grid = -start % PREFILL_BLOCK or most  # it may have been resumed between two points
        length = min(sequence.num_prompt_left, most, to_grid)
        ends = length == sequence.num_prompt_left
        forks = [s for s in self._running.values() if ends and s.parent is sequence]
        planned = [self._plan_row(s, start, length) for s in (sequence, *forks)]
        return replace(planned[0], forks=tuple(planned[1:]))

    def _plan_row(self, sequence: RunningRequest, start: int, length: int) -> PrefillChunk:
        chunk = PrefillChunk(sequence.request, sequence.slot, start, length, sequence.mask, sequence.resume)
        sequence.parent = sequence.resume = None
        sequence.num_prompt_dispatched = start + length
        if chunk.is_last:
            sequence.num_tokens_dispatched = 1
        return chunk

    def _plan_decode(self, sequences: Sequence[RunningRequest], is_alone: bool) -> DecodeBatch:
        """
        Args:
          is_alone: nobody waits for a prompt to be read; then several tokens may be asked for at once.
        """
        lookahead = is_alone and not any(s.request.stepwise or s.mask is not None for s in self._running.values())
        steps = self._limits.decode_steps if lookahead else 1
        moves = self._plan_moves(sequences)
        for sequence in sequences:
            sequence.num_tokens_dispatched += steps
        masks = tuple((s.slot, s.mask) for s in sequences if s.mask is not None)
        slots = tuple(s.slot for s in sequences)
        batch = DecodeBatch(tuple(s.request for s in sequences), slots, steps, moves, masks)
        self._in_flight[batch] = tuple(sequences)
        return batch

    def _plan_moves(self, decoding: Sequence[RunningRequest]) -> tuple[tuple[int, int], ...]:
        """Moves into lower slots that let this step, and those to come, make do with fewer rows."""
        enough = next((rows for rows in self._limits.decode_rows if rows >= self.num_running), self.slots.size)
        if self._begun is not None or max(s.slot for s in decoding) < enough:
            return ()
        moves = []
        for sequence in self._running.values():
            if sequence.slot >= enough:
                target = self.slots.claim()
                self.slots.release(sequence.slot)
                moves.append((sequence.slot, target))
                sequence.slot = target
        return tuple(moves)

    def _commit_tokens(self, sequence: RunningRequest, result: RowResult) -> list[TokenOutput]:
        """Books a row's tokens up to the one that ends it; the device stopped there too. Tokens that came before the
        activations broke, or nothing was allowed, are good, and are reported before the error is."""
        good = tuple(takewhile(lambda token_id: token_id >= 0, result.token_ids))
        failed = [_failed(_error_for(sequence, sentinel)) for sentinel in result.token_ids[len(good) :][:1]]
        if not good:
            return failed
        output = self._commit_good_tokens(sequence, replace(result, token_ids=good))
        return [output] if output.finish_reason is not None else [output, *failed]

    def _commit_good_tokens(self, sequence: RunningRequest, result: RowResult) -> TokenOutput:
        params = sequence.request.params
        started_at = None if sequence.num_tokens else sequence.started_at
        prompt_logprobs = None
        if params.prompt_logprobs is not None and not sequence.num_tokens:
            prompt_logprobs = tuple(sequence.prompt_logprobs[: len(sequence.request.prompt_token_ids)])
        num_cached = 0 if sequence.num_tokens else sequence.num_cached
        if params.max_tokens == 0:
            return TokenOutput(
                prompt_logprobs=prompt_logprobs,
                finish_reason=FinishReason.LENGTH,
                started_at=started_at,
                num_cached=num_cached,
            )
        count, reason = 0, None
        while reason is None and count < len(result.token_ids):
            count += 1
            if result.token_ids[count - 1] in params.stop_ids:
                reason = FinishReason.STOP
            elif sequence.num_tokens + count == params.max_tokens:
                reason = FinishReason.LENGTH
        sequence.num_tokens += count
        if self.cache is not None:
            sequence.token_ids += result.token_ids[:count]
        last = result.token_ids[count - 1]
        stopped_by = last in params.stop_token_ids and last not in params.end_token_ids
        return TokenOutput(
            token_ids=result.token_ids[:count],
            logprobs=None if result.logprobs is None else result.logprobs[:count],
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            stop_reason=last if stopped_by else None,
            started_at=started_at,
            num_cached=num_cached,
        )

    def _constrain(self, sequence: RunningRequest, output: TokenOutput) -> TokenOutput:
        """Lets the constraint see the token and say what may come next; what goes wrong there ends the request."""
        constraint = sequence.constraint
        if constraint is None or output.finish_reason is not None:
            return output
        try:
            constraint.advance(output.token_ids[-1])
            sequence.refresh_mask(self._limits.mask_words)
        except Exception as error:  # of somebody else's code; only this request depends on it
            return _failed(ConstraintError(str(error)))
        return output

    def _note_end(self, sequence: RunningRequest, output: TokenOutput) -> None:
        """The last token was sampled, but not read any more; with the first, the state is the prompt's."""
        is_whole = output.finish_reason is not FinishReason.ERROR and len(sequence.token_ids) > 1
        if is_whole and self.cache is not None and self.cache.is_inexact:
            request = sequence.request
            text = request.prompt_token_ids + tuple(sequence.token_ids[:-1])
            self._ends.append((PrefixKey.of(text, request.cache_salt), sequence.slot))

    def _release(self, sequence: RunningRequest) -> None:
        request = sequence.request
        del self._running[request.id]
        if self.cache is not None:
            self._ended.keep(request.id, _text_of(sequence))
        self._free(sequence)
        self._pace.released(self._now - sequence.started)
        num_tokens = sequence.num_prompt_dispatched + sequence.num_tokens
        self._waiting.shares.charge(request.tenant, num_tokens - expected_tokens(request))
        orphans = [s for s in self._running.values() if s.parent is sequence]
        for orphan in orphans:  # the first reads the prompt in its stead
            orphan.parent = None if orphan is orphans[0] else orphans[0]
            with suppress(Exception):  # a restored snapshot only saves work
                self._look_up(orphan)


def _failed(error: RoostError) -> TokenOutput:
    return TokenOutput(finish_reason=FinishReason.ERROR, error=error)


def _refresh_mask(sequence: RunningRequest, words: int) -> None:
    """
    Raises:
      ConstraintError: the constraint failed, in whatever way.
    """
    try:
        sequence.refresh_mask(words)
    except Exception as error:
        raise ConstraintError(str(error)) from error


def _error_for(sequence: RunningRequest, sentinel: int) -> RoostError:
    """Returns the error that a sampled `NO_CHOICE` or `NO_TOKEN` stands for."""
    if sentinel == NO_CHOICE:
        return ConstraintError(NO_CHOICE_TEXT)
    return NumericError(_NOT_NUMBERS, is_of_import=sequence.request.state_is_imported)


def _lateness(request: Request, now: float, *, is_waiting: bool) -> RoostError | None:
    """Why a request has to end, if it has no time left."""
    if now >= request.deadline:
        return RequestTimeoutError("the request was not done in the time that it had")
    if is_waiting and now >= request.start_by:
        return QueueTimeoutError("no slot came free in the time that the request would wait for one")
    return None


def _text_of(sequence: RunningRequest) -> Text:
    request = sequence.request
    prompt = sequence.key or PrefixKey.of(request.prompt_token_ids, request.cache_salt)
    answer = array("i", sequence.token_ids).tobytes()
    return Text(prompt.tokens, answer, request.cache_salt, request.tenant, request.state_is_imported)


def _floor_power_of_two(n: int) -> int:
    return 1 << (n.bit_length() - 1)

"""Plans device steps, and records their results. Pure host Python: no clock, no thread, no JAX, no files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..prefix_cache.cache import PrefixCache, PrefixKey
from ..types.config import PREFILL_BLOCK, DraftCounts, StepLimits
from ..types.errors import ConstraintError, QueueTimeoutError, RequestTimeoutError, RoostError
from ..types.host_memory import ID_BYTES, pack_ids
from ..types.request import (
    Batch,
    BlockStatesReader,
    DecodeBatch,
    FinishReason,
    Request,
    RowResult,
    TokenOutput,
    error_output,
)
from ..types.snapshot import SavedState, Snapshot
from .batch_planner import BatchPlanner
from .drafting import Drafting
from .preemption import Preemption, Waiting
from .prefetcher import Fetch, Prefetcher
from .prefill_budget import StepTimes
from .running_request import MASK_WAIT_S, RequestOutput, RunningRequest, TokenHistories, book_result
from .slots import QueuedRequest, SlotAssignment, SlotPool, WaitingQueue


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for one step.

    Attributes:
      batch: Next batch for the device; None if there is nothing to run.
      failed: Last outputs of requests that ended with an error before they could be part of the batch: they timed out,
        could not be started, or their output constraint failed.
      fetches: Searches on disk that are to begin, for prompts of waiting requests.
    """

    batch: Batch | None
    failed: tuple[RequestOutput, ...] = ()
    fetches: tuple[Fetch, ...] = ()


type FinishedState = tuple[PrefixKey, int]
"""All tokens that the state of an ended request covers, and the slot that holds it until the next batch is planned."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Results of a batch.

    Attributes:
      outputs: Outputs of the batch's requests, in the order of its rows.
      finished: States of requests that ended, if the prefix cache keeps inexact states.
    """

    outputs: tuple[RequestOutput, ...]
    finished: tuple[FinishedState, ...] = ()


class Scheduler:
    """Continuous batching: plans batches one after the other, and records each batch's results.

    Attributes:
      slots: Pool of the slots.
      preemption: Preemptible requests.
      queue: All other requests without a slot.
      running: Requests with a slot by id, oldest first.
      cache: The prefix cache, if there is one.

    Args:
      slots: Number of requests that run at a time.
      max_queue: Maximum number of requests that wait for a slot.
      limits: Compiled sizes of a step.
      max_queue_tokens: Maximum number of prompt tokens that wait; None sets no limit.
      tenants: Number of tenants that share the queue.
      reserved_slots: Number of slots kept free for tenants without a running request; see `SlotAssignment`.
      cache: Prefix cache; None prefills every prompt as a whole.
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
        self.cache = cache
        self.queue = WaitingQueue(max_queue, max_queue_tokens, tenants)
        self._prefetcher = (
            None if cache is None or cache.disk is None else Prefetcher(self.queue, cache, cache.disk.max_fetches)
        )
        take_fetch = None if self._prefetcher is None else self._prefetcher.take
        self._assignment = SlotAssignment(
            self.slots, self.queue, cache, take_fetch, mask_words=limits.mask_words, reserved=reserved_slots
        )
        self.running = self._assignment.running
        self._times = StepTimes(limits)
        max_bytes = 0 if cache is None else cache.stats.budget
        self.preemption = Preemption(self._assignment, limits, self._times, max_bytes)
        self._waiting: tuple[Mapping[str, QueuedRequest | Waiting], ...] = (self.queue.waiting, self.preemption.waiting)
        self._drafting = None if limits.speculation is None else Drafting(limits.speculation)
        self._planner = BatchPlanner(limits, self._assignment, self._times, self._drafting)
        self._histories = TokenHistories()
        self._now = 0.0
        self._next_end = math.inf  # earliest time at which a request may time out
        self._in_flight: dict[Batch, Sequence[RunningRequest]] = {}

    @property
    def drafts(self) -> DraftCounts | None:
        """Total drafted and accepted tokens; None without speculation."""
        return None if self._drafting is None else self._drafting.counts

    @property
    def next_timeout(self) -> float | None:
        """Time at which there will be something to plan if nothing happens, in seconds of `time.monotonic`.

        None if there is already something to plan; infinite if the scheduler is idle.
        """
        if self.running or self._assignment.failed or self._assignment.probe is not None:
            return None
        if not any(self._waiting):
            return math.inf
        if self._prefetcher is None or not self._prefetcher.is_planned:
            return None
        if self.queue.num_held < sum(map(len, self._waiting)):
            return None
        return min(self._next_end, self._prefetcher.timeout)

    def add(self, request: Request, now: float) -> None:
        """Queues a request.

        Args:
          request: Request with an id that no waiting or running request has.
          now: Current time, in seconds of `time.monotonic`.

        Raises:
          QueueFullError: The queue is full, and no slot is free for this request.
          ValueError: The id is in use.
        """
        if any(request.id in each for each in (self.running, *self._waiting)):
            raise ValueError(f"request id {request.id!r} is in use")
        self._now = now
        if request.preemptible:
            self.preemption.add(request)
        else:
            self._assignment.add(request, now)
            if self._prefetcher is not None and self._assignment.parent_of(request) is None:
                self._prefetcher.offer(request)
        self._next_end = min(self._next_end, request.start_by, request.deadline)

    def probe(self, request: Request) -> None:
        """Gives a request of the engine itself the next free slot, ahead of the queue. It uses no prefix cache."""
        self._assignment.probe = request

    def abort(self, request_id: str) -> bool:
        """Ends a request and immediately frees its slot; returns whether it was waiting or running."""
        if request_id in self.running:
            self._release(self.running[request_id])
            return True
        if self._prefetcher is not None:
            self._prefetcher.take(request_id)
        return self.queue.remove(request_id) or self.preemption.waiting.pop(request_id, None) is not None

    def commit_fetch(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Records the result of a search on disk. Its request may then get a slot."""
        assert self._prefetcher is not None
        self._prefetcher.commit(fetch, found)

    def schedule(self, now: float) -> Plan:
        """Plans the next batch and searches on disk, and records both as started.

        Args:
          now: Current time, in seconds of `time.monotonic`.
        """
        self._now = now
        failed = [] if now < self._next_end else self._end_expired(now)
        fetches = () if self._prefetcher is None else self._prefetcher.plan(now)
        precedence = self.preemption if self.preemption.waiting or self.preemption.running else None
        if precedence is None:
            self._assignment.assign(now)
        else:
            precedence.assign(now)
        failed += self._assignment.failed
        self._assignment.failed.clear()
        if late := [each for each in self.running.values() if each.constraint is not None and each.awaits_mask]:
            failed += self._update_masks(late)
        planned = self._planner.plan(self.running, precedence)
        if planned is None:
            return Plan(None, tuple(failed), tuple(fetches))
        batch, self._in_flight[batch] = planned
        for running in self._in_flight[batch]:
            if running.started_at is None:
                running.started_at = now
        return Plan(batch, tuple(failed), tuple(fetches))

    def commit(self, batch: Batch, results: Sequence[RowResult], seconds: float) -> Commit:
        """Records the results of a batch. Tokens of requests that have ended since it was planned are dropped.

        Args:
          batch: A batch of `schedule`; each is committed once.
          results: Results of its rows, in their order.
          seconds: Time that the device took for it.
        """
        if self.cache is not None:  # the chunks of the batch before: the device ran this one while they were read
            self.cache.settle()
        self._times.record(batch, seconds)
        if self._drafting is not None and isinstance(batch, DecodeBatch):
            self._drafting.record(batch, results, seconds)
        outputs: list[RequestOutput] = []
        finished: list[FinishedState] = []
        for running, result in zip(self._in_flight.pop(batch), results, strict=True):
            if isinstance(batch, DecodeBatch):
                running.num_tokens_dispatched += max(0, len(result.token_ids) - batch.steps)
            booked = self._commit_row(running, result)
            for output in booked:
                outputs.append((running.request.id, output))
                if self._drafting is not None:
                    self._drafting.add(running, output.token_ids)
            if booked and booked[-1].finish_reason is not None:
                finished += self._finished_state(running, booked[-1])
                self._release(running)
        if self.cache is not None and not self._in_flight:  # no later commit may follow, and the device is idle
            self.cache.settle()
        return Commit(tuple(outputs), tuple(finished))

    def generating(self, request_id: str) -> RunningRequest | None:
        """Returns a running request whose slot has the state of its prompt and generated tokens; None if it has not."""
        running = self.running.get(request_id)
        return None if running is None or not running.num_tokens or running.restore is not None else running

    def history_of(self, request_id: str, num_generated: int | None = None) -> SavedState | None:
        """Returns the tokens of a request that is running or ended recently; None without a prefix cache.

        Args:
          num_generated: Number of generated tokens that are included; None includes all.
        """
        running = self.running.get(request_id)
        history = self._histories.get(request_id) if running is None else running.history
        if history is None:
            return None
        num_prompt, state = history
        end = None if num_generated is None else (num_prompt + num_generated) * ID_BYTES
        return replace(state, tokens=state.tokens[:end])

    def _end_expired(self, now: float) -> list[RequestOutput]:
        """Ends requests that have timed out, and finds the earliest time at which another one may."""
        queued = [each.request for waiting in self._waiting for each in waiting.values()]
        ends = [(each, each.start_by) for each in queued]
        ends += [(each.request, math.inf) for each in self.running.values()]
        failed = []
        self._next_end = math.inf
        for request, start_by in ends:
            if now < min(start_by, request.deadline):
                self._next_end = min(self._next_end, start_by, request.deadline)
                continue
            error: RoostError = QueueTimeoutError("the request got no slot within its queue timeout")
            if now >= request.deadline:
                error = RequestTimeoutError("the request took longer than its timeout")
            self.abort(request.id)
            failed.append((request.id, error_output(error)))
        return failed

    def _update_masks(self, waiting: Sequence[RunningRequest]) -> list[RequestOutput]:
        """Updates masks that were not computed yet. Waits for at most one constraint, to keep the step short.

        Returns:
          Last outputs of requests whose constraint failed.
        """
        failed, wait_s = [], MASK_WAIT_S
        for running in waiting:
            assert running.constraint is not None
            try:
                running.constraint.update(wait_s)
            except ConstraintError as error:
                self._release(running)
                failed.append((running.request.id, error_output(error)))
            if running.awaits_mask:
                wait_s = 0.0
        return failed

    def _commit_row(self, running: RunningRequest, result: RowResult) -> Sequence[TokenOutput]:
        """Records a row's result; returns its outputs, none for a request that has already ended."""
        if result.block_states is not None:
            self._defer_insert(running, result.block_states)
        if self.running.get(running.request.id) is not running:
            return ()
        if result.prompt_logprobs:
            running.prompt_logprobs.extend(result.prompt_logprobs)
        if result.prediction is not None:
            running.prediction = running.prediction.plus(result.prediction)
        return book_result(running, result) if result.token_ids else ()

    def _defer_insert(self, running: RunningRequest, block_states: BlockStatesReader) -> None:
        """Lets the states that a chunk produced be read, and inserts them later if all of the request's are finite.

        The request may have ended: its states are computed, and another request may use them.
        """
        cache, key = self.cache, running.key
        if cache is None or key is None:
            return
        read = block_states()

        def insert() -> None:
            states = read()
            running.is_finite = running.is_finite and all(state.is_finite for state in states)
            if running.is_finite:
                running.last_snapshot = cache.insert_chunk(key, running.last_snapshot, states)

        start = 0 if running.last_snapshot is None else running.last_snapshot.length
        cache.defer(key, min(start // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, len(key)), insert)

    def _finished_state(self, running: RunningRequest, output: TokenOutput) -> Sequence[FinishedState]:
        """Returns the state that an ended request has left in its slot, if the cache keeps inexact states.

        The last token was sampled, but never processed. After the first token, the state is that of the prompt.
        """
        is_whole = output.finish_reason is not FinishReason.ERROR and len(running.token_ids) > 1
        if not is_whole or self.cache is None or not self.cache.is_inexact:
            return ()
        request = running.request
        tokens = pack_ids(request.prompt_token_ids, running.token_ids[:-1])
        return ((PrefixKey.of(tokens, request.cache_salt), running.slot),)

    def _release(self, running: RunningRequest) -> None:
        """Ends a running request for any reason."""
        self._assignment.release(running, self._now)
        if self.slots.retained:  # of a prefill batch in progress
            self._planner.drop_unless_wanted(self.running.values())
        self._histories.keep(running)

"""The engine without its thread: runs the scheduler's plans, one step at a time."""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, runtime_checkable

from .prefix_cache.cache import PrefixKey
from .scheduling.prefetcher import Fetch
from .scheduling.running_request import RequestOutput, RunningRequest
from .scheduling.scheduler import Scheduler
from .types.config import STEP_TOKEN_BOUNDS, CacheStats, EngineStats
from .types.errors import EngineDeadError, NumericError, UnknownRequestError
from .types.host_memory import ID_BYTES
from .types.request import Batch, Pending, PrefillBatch, Request
from .types.sampling_params import NO_TOKEN, SamplingParams
from .types.snapshot import RequestSnapshot, RequestSnapshotFormat, SavedState, SavedStateFormat, Snapshot

_NEXT_TOKEN: Final = PrefixKey.of([NO_TOKEN], "").tokens
"""A token after a history. The prefix cache leaves at least one token to prefill, so this token lets it cover the whole
history."""

CANARY_ID: Final = "roost-canary"
"""Id of the engine's own request. Its outputs are not delivered."""

_CANARY_REQUEST: Final = Request(CANARY_ID, (1, 2, 3), SamplingParams(max_tokens=2, temperature=0.0))
"""A request that fails only if the model's parameters are broken: a prefill and a decode step, without a snapshot."""

_MAX_FAILURES: Final = 8
"""Number of consecutive requests with non-finite activations after which the engine checks itself. Rows are independent
of each other, so fewer failures are likely caused by the requests' tokens or states."""


@runtime_checkable
class Runner(Protocol):
    """Runs batches: `ModelRunner` on a device, a fake in tests."""

    @property
    def compiles_since_ready(self) -> int:
        """Number of XLA compilations after warm-up."""

    @property
    def restore_seconds(self) -> float:
        """Total time spent on restoring snapshots."""

    def run(self, batch: Batch) -> Pending:
        """Dispatches a batch, without waiting for it. Batches run in the order of these calls."""

    def close(self) -> None:
        """Releases the other hosts, if there are any."""

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns a slot's state after all dispatched batches, and waits for them.

        Args:
          slot: Slot to copy.
          length: Number of tokens that led to the state.
        """


@runtime_checkable
class Hosts(Protocol):
    """Other hosts that serve the model together with this one.

    Attributes:
      failure: Error that ends the engine, once a host has been lost. Another thread sets it.
    """

    failure: EngineDeadError | None


class EngineCore:
    """Runs steps one after the other, with one batch in flight: the host plans and reads while the device computes.

    Attributes:
      state_format: Format of saved states; None if states cannot be saved.
      request_snapshot_format: Format of request snapshots as files; None without them.
      hosts: Other hosts, if there are any.
      wake: Called on another thread when a search on disk has ended, so that the next step has something to do.

    Args:
      scheduler: Plans the steps of the device.
      runner: Runs batches on the device.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        state_format: SavedStateFormat | None = None,
        hosts: Hosts | None = None,
        request_snapshot_format: RequestSnapshotFormat | None = None,
    ) -> None:
        self.state_format = state_format
        self.request_snapshot_format = request_snapshot_format
        self.hosts = hosts
        self.wake: Callable[[], None] = lambda: None
        self._arrived: deque[tuple[Fetch, Snapshot | None]] = deque()
        self._scheduler = scheduler
        self._runner = runner
        self._in_flight: tuple[Batch, Pending, float] | None = None  # with the time at which it was dispatched
        self._last_end = self._wait_seconds = 0.0
        self._committed: list[RequestOutput] = []  # outputs committed by `snapshot_request`, reported by the next step
        self._canary = Canary(scheduler.probe)
        self._steps = 0
        self._step_tokens = [0] * (len(STEP_TOKEN_BOUNDS) + 1)
        self._prompt_tokens = 0
        self._generated_tokens = 0

    @property
    def stats(self) -> EngineStats:
        """Current statistics. Any thread may read them; those read during a step need not agree with each other."""
        scheduler, preemption, cache = self._scheduler, self._scheduler.preemption, self._scheduler.cache
        return EngineStats(
            num_waiting=len(scheduler.queue.waiting),
            num_running=len(scheduler.running),
            num_preemptible_running=len(preemption.running),
            num_preemptible_waiting=len(preemption.waiting),
            num_preemptible_slots=preemption.num_slots,
            preemptions=preemption.num_preempted,
            waiting_tokens=scheduler.queue.num_tokens,
            slots=scheduler.slots.size,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            step_tokens=tuple(self._step_tokens),
            compiles_since_ready=self._runner.compiles_since_ready,
            restore_seconds=self._runner.restore_seconds,
            wait_seconds=self._wait_seconds,
            cache=CacheStats() if cache is None else cache.stats,
            drafts=scheduler.drafts,
        )

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return self.next_timeout == math.inf

    @property
    def next_timeout(self) -> float | None:
        """Time at which a step has something to do if nothing arrives, in seconds of `time.monotonic`.

        None if it already has something to do; infinite if it is idle. All requests may be waiting for the disk.
        """
        is_due = self._in_flight is not None or self._arrived or self._committed
        return None if is_due else self._scheduler.next_timeout

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
          QueueFullError: The queue is full, and no slot is free for this request.
          ValueError: The id is in use.
        """
        self._scheduler.add(request, time.monotonic())

    def abort(self, request_id: str) -> bool:
        """Ends a request and immediately frees its slot; returns whether it was waiting or running."""
        return self._scheduler.abort(request_id)

    def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        """Returns the token history of a request that is running or ended recently, with its longest snapshot.

        Args:
          num_generated: Number of generated tokens that the history includes; None includes all.

        Raises:
          UnknownRequestError: No request with this id is running or ended recently, or there is no prefix cache.
        """
        state, cache = self._scheduler.history_of(request_id, num_generated), self._scheduler.cache
        if state is None or cache is None:
            raise UnknownRequestError(f"no request with the id {request_id!r} is running or ended recently")
        key = PrefixKey(state.salt, state.tokens + _NEXT_TOKEN)
        return replace(state, snapshot=cache.match_prefix(key, at_block_boundary=True))

    def insert(self, state: SavedState) -> None:
        """Adds a state's snapshot to the prefix cache, under the state's salt."""
        cache, snapshot = self._scheduler.cache, state.snapshot
        if cache is not None and snapshot is not None:
            key = PrefixKey(state.salt, state.tokens[: snapshot.length * ID_BYTES])
            cache.insert(key, [snapshot], on_disk=False)

    def snapshot_request(self, request_id: str) -> RequestSnapshot:
        """Returns the state of a running request, from which it can continue; waits for the batch in flight.

        Args:
          request_id: Id of a request that has generated a token.

        Raises:
          UnknownRequestError: No request with this id is running, or it has not generated a token yet.
        """
        self._settle()
        running = self._scheduler.generating(request_id)
        if running is None:
            raise UnknownRequestError(f"no request with the id {request_id!r} is generating tokens")
        return RequestSnapshot(running.num_tokens, self._snapshot(running))

    def settle(self) -> list[RequestOutput]:
        """Commits the batch in flight without dispatching another one; returns the requests' new outputs."""
        self._settle()
        return self._report(())

    def close(self) -> None:
        """Closes the runner, and completes the writes of the prefix cache."""
        self._runner.close()
        if self._scheduler.cache is not None:
            self._scheduler.cache.close()

    def step(self) -> list[RequestOutput]:
        """Dispatches the next batch, then commits the one before it; returns the requests' new outputs.

        Raises:
          EngineDeadError: The model's parameters are broken.
        """
        while self._arrived:
            self._scheduler.commit_fetch(*self._arrived.popleft())
        if self._scheduler.preemption.running:
            self._preempt()
        plan = self._scheduler.schedule(time.monotonic())
        in_flight, self._in_flight = self._in_flight, None
        if (batch := plan.batch) is not None:
            start = time.monotonic()
            self._in_flight = batch, self._runner.run(batch), start
            self._steps += 1
        for fetch in plan.fetches:
            assert self._scheduler.cache is not None
            assert self._scheduler.cache.disk is not None
            self._scheduler.cache.disk.fetch(fetch.key, fetch.above, partial(self._on_arrival, fetch))
        committed = self._commit(*in_flight) if in_flight is not None else ()
        num_prefilled = batch.num_tokens if isinstance(batch, PrefillBatch) and batch.is_last_slice else 0
        return self._report((*plan.failed, *committed), num_prefilled)

    def _preempt(self) -> None:
        """Preempts requests so that others can start. Their states are copied to the host."""
        preemption, can_replay = self._scheduler.preemption, self.request_snapshot_format is not None
        if not preemption.victims(can_replay=can_replay):
            return
        self._settle()
        for running in preemption.victims(can_replay=can_replay):
            snapshot = None
            if running.num_tokens:  # until its snapshot is restored, the slot has another state
                snapshot = running.restore or self._snapshot(running)
            preemption.preempt(running, snapshot)

    def _on_arrival(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Receives the result of a search on disk, on another thread."""
        self._arrived.append((fetch, found))
        self.wake()

    def _settle(self) -> None:
        """Commits the batch in flight; the next step reports its outputs."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            self._committed += self._commit(*in_flight)

    def _commit(self, batch: Batch, pending: Pending, dispatched_at: float) -> Sequence[RequestOutput]:
        """Waits for a batch, and records its results. Snapshots finished requests before their slots are reused."""
        wait_start = time.monotonic()
        results = pending()
        start, self._last_end = max(dispatched_at, self._last_end), time.monotonic()
        self._wait_seconds += self._last_end - wait_start
        commit = self._scheduler.commit(batch, results, self._last_end - start)
        for history, slot in commit.finished:
            assert self._scheduler.cache is not None
            self._scheduler.cache.insert(history, [self._runner.snapshot(slot, len(history))], on_disk=False)
        return commit.outputs

    def _snapshot(self, running: RunningRequest) -> Snapshot:
        """Returns the state of a request after all tokens that were read back, except the last."""
        length = len(running.request.prompt_token_ids) + running.num_tokens - 1
        return self._runner.snapshot(running.slot, length)

    def _report(self, outputs: Sequence[RequestOutput], num_prompt_tokens: int = 0) -> list[RequestOutput]:
        """Counts the tokens of a step, and returns the outputs of requests.

        Args:
          outputs: The step's outputs, besides those that were committed before it.
          num_prompt_tokens: Number of prompt tokens whose prefill the step completes.

        Raises:
          EngineDeadError: The model's parameters are broken.
        """
        reported, self._committed = [*self._committed, *outputs], []
        num_generated = sum([len(output.token_ids) for _, output in reported])
        self._prompt_tokens += num_prompt_tokens
        self._generated_tokens += num_generated
        if num_tokens := num_prompt_tokens + num_generated:
            self._step_tokens[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1
        return self._canary.check(reported)


class Canary:
    """Runs one of the engine's own requests if consecutive requests fail with a `NumericError`.

    Args:
      start: Starts a request of the engine.
    """

    def __init__(self, start: Callable[[Request], None]) -> None:
        self._start = start
        self._is_running = False
        self._num_failures = 0

    def check(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        """Returns the outputs of a step without the canary's. Starts the canary if too many requests have failed.

        Raises:
          EngineDeadError: The canary failed as well, so the parameters are broken.
        """
        errors = [output.error for _, output in outputs if output.error is not None]
        if not (errors or self._num_failures or self._is_running):
            return outputs  # the usual case
        for request_id, output in outputs:
            error = output.error if isinstance(output.error, NumericError) else None
            if request_id == CANARY_ID:
                self._is_running = output.finish_reason is None
                if error is not None:
                    failures = f"the activations of {_MAX_FAILURES} requests in a row were not finite"
                    raise EngineDeadError(f"{failures}, and neither were those of the engine's own test prompt")
            elif error is not None:
                self._num_failures += not error.from_imported_state
            elif output.token_ids:
                self._num_failures = 0
        if self._num_failures >= _MAX_FAILURES and not self._is_running:
            self._num_failures, self._is_running = 0, True
            self._start(_CANARY_REQUEST)
        return [output for output in outputs if output[0] != CANARY_ID]

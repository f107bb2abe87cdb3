"""The engine without its thread: a scheduler and a runner, one step at a time."""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, runtime_checkable

from .core.batch import Batch, PrefillBatch, RowResult
from .core.config import STEP_TOKEN_BOUNDS, CacheStats, EngineStats
from .core.errors import EngineDeadError, NumericError, UnknownRequestError
from .core.request import Request
from .core.sampling_limits import NO_TOKEN
from .core.sampling_params import SamplingParams
from .core.snapshot import Snapshot
from .prefix_cache.prefix_key import PrefixKey
from .prefix_cache.saved_state import SavedState, SavedStateFormat
from .scheduling.plan import RequestOutput
from .scheduling.prefetch import Fetch
from .scheduling.scheduler import Scheduler

_SUSPICIOUS_FAILURES: Final = 8
"""Number of requests in a row with non-finite activations after which the engine checks itself. Rows don't touch each
other, so what breaks one is its own text, state or slot."""

_CANARY: Final = Request("roost-canary", (1, 2, 3), SamplingParams(max_tokens=2, temperature=0.0))
"""A request that only broken parameters can break: prefill and a decode step, with nothing restored."""

_ONE_MORE: Final = PrefixKey.of([NO_TOKEN], "").tokens
"""A token behind a history: a look-up leaves at least one to prefill, and a saved history may be covered whole."""


@runtime_checkable
class Pending(Protocol):
    """A batch on its way through the device."""

    def wait(self) -> Sequence[RowResult]:
        """Blocks until the batch is done; one result per row of the batch, in its order."""


@runtime_checkable
class Runner(Protocol):
    """Turns batches into tokens; `ModelRunner` on a device, a fake in tests."""

    @property
    def failure(self) -> EngineDeadError | None:
        """Why nothing can go on, if that shows beside the steps."""

    @property
    def compiles_since_ready(self) -> int:
        """XLA compilations since every shape was compiled."""

    @property
    def restore_seconds(self) -> float:
        """Spent on putting remembered states into slots."""

    def run(self, batch: Batch) -> Pending:
        """Hands a batch to the device and returns at once; batches run in the order of these calls."""

    def close(self) -> None:
        """Lets go of what others wait for."""

    def read(self, slot: int, length: int) -> Snapshot:
        """The state of a slot that has read so many tokens, behind all batches so far; waits for them."""


class EngineCore:
    """Runs batches one after the other, with one in flight: the host reads a step while the device runs the next.

    Attributes:
      state_format: of states that are saved.
      wake: called by another thread when a search on disk has ended, so that the next step has something to do.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, state_format: SavedStateFormat | None = None) -> None:
        self.state_format = state_format
        self.wake: Callable[[], None] = lambda: None
        self._arrived: deque[tuple[Fetch, Snapshot | None]] = deque()
        self._scheduler = scheduler
        self._runner = runner
        self._in_flight: tuple[Batch, Pending] | None = None
        self._num_failures = 0
        self._is_checking = False
        self._steps = 0
        self._step_tokens = [0] * (len(STEP_TOKEN_BOUNDS) + 1)
        self._prompt_tokens = 0
        self._generated_tokens = 0

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return self._in_flight is None and not self._arrived and self._scheduler.is_idle

    @property
    def next_timeout(self) -> float | None:
        """When a step will have something to do though nothing arrives, in seconds of `time.monotonic`; None if it has
        already. All requests may be waiting for the disk."""
        if self.is_idle:
            return math.inf
        return None if self._in_flight is not None or self._arrived else self._scheduler.next_timeout

    @property
    def failure(self) -> EngineDeadError | None:
        """Why nothing can go on, though no step has said so; for any thread."""
        return self._runner.failure

    @property
    def stats(self) -> EngineStats:
        """The engine as it is between two steps."""
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            num_running=self._scheduler.num_running,
            waiting_tokens=self._scheduler.num_waiting_tokens,
            slots=self._scheduler.slots.size,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            step_tokens=tuple(self._step_tokens),
            compiles_since_ready=self._runner.compiles_since_ready,
            restore_seconds=self._runner.restore_seconds,
            cache=CacheStats() if self._scheduler.cache is None else self._scheduler.cache.stats,
        )

    def add(self, request: Request) -> None:
        """Queues a request; see `Scheduler.add` for what it raises."""
        self._scheduler.add(request, time.monotonic())

    def abort(self, request_id: str) -> bool:
        """Ends a request and frees its slot, whatever it was doing; says whether it was alive."""
        return self._scheduler.abort(request_id)

    def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        """The token history of a request that runs or ended lately, and the snapshot that spares prefilling it again.

        Args:
          num_generated: Generated tokens that belong to it, from the first one on; None takes all.

        Raises:
          UnknownRequestError: No such request runs or ended lately, or there is no prefix cache.
        """
        history, cache = self._scheduler.history_of(request_id), self._scheduler.cache
        if history is None or cache is None:
            raise UnknownRequestError(f"no request with the id {request_id!r} runs, or has ended lately")
        tokens, salt = history.tokens(num_generated), history.salt
        known = cache.match_prefix(PrefixKey(salt, tokens + _ONE_MORE), at_block_boundary=True)
        return SavedState(tokens, known, salt, history.tenant, history.is_imported)

    def close(self) -> None:
        """Returns once what is to be kept has been written, and nobody waits for more."""
        self._runner.close()
        if self._scheduler.cache is not None:
            self._scheduler.cache.close()

    def step(self) -> list[RequestOutput]:
        """Dispatches the next batch, then commits the one before it; returns the requests' new outputs."""
        now = time.monotonic()
        while self._arrived:
            self._scheduler.commit_fetch(*self._arrived.popleft())
        plan = self._scheduler.schedule(now)
        in_flight, self._in_flight = self._in_flight, self._dispatch(plan.batch)
        self._start_fetches(plan.fetches)
        outputs = [*plan.failed, *self._commit(in_flight)]
        num_prompt_tokens, num_generated = _num_prompt_tokens(plan.batch), _num_tokens(outputs)
        self._prompt_tokens += num_prompt_tokens
        self._generated_tokens += num_generated
        self._count_step(num_prompt_tokens + num_generated)
        self._check_numbers(outputs)
        return [output for output in outputs if output[0] != _CANARY.id]

    def _start_fetches(self, fetches: Sequence[Fetch]) -> None:
        """Starts searches on disk; each calls back from another thread."""
        for fetch in fetches:
            assert self._scheduler.cache is not None
            self._scheduler.cache.fetch(fetch.key, fetch.above, partial(self._on_arrival, fetch))

    def _on_arrival(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Takes the result of a search on disk, on another thread."""
        self._arrived.append((fetch, found))
        self.wake()

    def _dispatch(self, batch: Batch | None) -> tuple[Batch, Pending] | None:
        if batch is None:
            return None
        self._steps += 1
        return batch, self._runner.run(batch)

    def _commit(self, in_flight: tuple[Batch, Pending] | None) -> Sequence[RequestOutput]:
        """Waits for a batch, and books its results. Snapshots finished requests before their slots are reused."""
        if in_flight is None:
            return ()
        batch, pending = in_flight
        commit = self._scheduler.commit(batch, pending.wait())
        for state in commit.finished:
            assert self._scheduler.cache is not None
            self._scheduler.cache.insert_end(state.history, self._runner.read(state.slot, len(state.history)))
        return commit.outputs

    def _count_step(self, num_tokens: int) -> None:
        if num_tokens:
            self._step_tokens[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1

    def _check_numbers(self, outputs: Sequence[RequestOutput]) -> None:
        """Runs the canary where one request after the other fails with non-finite activations.

        Raises:
          EngineDeadError: the canary failed as well, so it is not the requests that are broken.
        """
        for request_id, output in outputs:
            error = output.error if isinstance(output.error, NumericError) else None
            if request_id == _CANARY.id:
                self._is_checking = output.finish_reason is None
                if error is not None:
                    failures = f"the activations of {_SUSPICIOUS_FAILURES} requests in a row were not numbers"
                    raise EngineDeadError(f"{failures}, nor were those of the engine's own test prompt")
            elif error is not None:
                self._num_failures += not error.is_of_import
            elif output.token_ids:
                self._num_failures = 0
        if self._num_failures >= _SUSPICIOUS_FAILURES and not self._is_checking:
            self._num_failures, self._is_checking = 0, True
            self._scheduler.probe(_CANARY)


def _num_prompt_tokens(batch: Batch | None) -> int:
    """Returns the number of prompt tokens whose prefill a batch completes."""
    if not isinstance(batch, PrefillBatch) or not batch.is_last_slice:
        return 0
    return sum(chunk.length for chunk in batch.chunks)


def _num_tokens(outputs: Sequence[RequestOutput]) -> int:
    return sum(len(output.token_ids) for _, output in outputs)

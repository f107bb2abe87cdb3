"""An engine whose answers a reader can work out: each token is the last one plus one, modulo the vocabulary.

Or it says what it was given. Where there is a constraint, it asks it before each token and tells it of it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from roost.engine import (
    UNUSED_PREDICTION,
    AsyncEngine,
    CacheStats,
    ConstraintError,
    DraftCounts,
    EngineDeadError,
    EngineStats,
    EngineStoppedError,
    FinishReason,
    OutputSink,
    QueueFullError,
    Request,
    RequestSnapshot,
    RequestSnapshotFormat,
    RoostError,
    SavedState,
    SavedStateFormat,
    Snapshot,
    TokenLogprobs,
    TokenOutput,
    UnknownRequestError,
)
from roost.engine.types.output_constraint import words_of_mask
from roost.engine.types.snapshot import SnapshotFormat
from unpacked_states import saved_state

TURNS_PER_TOKEN = 16
"""Turns of the event loop before each token, so that a stream keeps up and sends one event per token."""

STATE_FORMAT = SavedStateFormat(
    "counter",
    512,
    SnapshotFormat(
        64, {"h": ((1, 2), "float32"), "conv": ((1, 3, 2), "float32")}, ((1, 2, 2), "float32"), ((2,), "float32")
    ),
)


def snapshot_of(token_ids: Sequence[int]) -> Snapshot | None:
    """As nothing is thought here, there is nothing to know."""
    length = len(token_ids) // 64 * 64
    arrays = np.zeros((1, 2), np.float32), np.zeros((1, 3, 2), np.float32)
    return Snapshot(length, arrays, (np.zeros((64, 1, 2, 2), np.float32),)) if length else None


def logprob(token_id: int) -> float:
    """Token 7 has -0.7; each step up or down in the alternatives costs one more."""
    return -token_id / 10


def entry(token_id: int, num_top: int, names: Sequence[int] = ()) -> TokenLogprobs:
    """The likeliest alternatives of token 7 are 7 (-0.7), 8 (-1.7), 9 (-2.7), and so on."""
    top = tuple((token_id + step, logprob(token_id) - step) for step in range(num_top))
    return TokenLogprobs(logprob(token_id), top, tuple((name, logprob(name)) for name in names))


class FakeEngine(AsyncEngine):
    """Counts instead of thinking, one token per output.

    Attributes:
      says: the tokens of every answer, if not counted; then an end token follows, as far as there is one.
      says_by_index: the same, of the answer with this number among those of an HTTP request.
      requests: every one that was taken, in order.
      given: all tokens of each, by its id.
      running: ids of those that have not ended.
      gate: nobody gets a token, or a state, while it is closed.
      num_served: Number of requests that get tokens; later ones wait until they are aborted.
      num_saving: states that are being saved.
      capacity: requests from this number on find a full queue.
      dies_after, breaks_after: so many tokens of a request are given before the engine dies, or a bug shows.
      fails_after, fails_with: the same, but only the request fails, with this.
      num_cached: what it says of every prompt.
      drafts: what it says of speculation, if it has any.
      prediction: what it says of every request's prediction.
      constraint_error: what ends every request that has a constraint, after its first token.
      checkpoints: format of its checkpoints, if it has any.
      inserted: states that were put into its prefix cache.
      ready, failure, step: what the engine says of itself.
      lost: what is wrong though the engine has not noticed.
      num_checks: Number of calls of `check`.
    """

    def __init__(self, vocab_size: int = 512) -> None:
        self.vocab_size = vocab_size
        self.says: Sequence[int] = ()
        self.says_by_index: dict[int, Sequence[int]] = {}
        self.requests: list[Request] = []
        self.given: dict[str, list[int]] = {}
        self.running: set[str] = set()
        self._serving: dict[str, asyncio.Task[None]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_served: int | None = None
        self.num_saving = 0
        self.capacity = 1000
        self.dies_after: int | None = None
        self.fails_after: int | None = None
        self.fails_with: RoostError | None = None
        self.breaks_after: int | None = None
        self.constraint_error: str | None = None
        self.num_cached = 0
        self.drafts: DraftCounts | None = None
        self.prediction = UNUSED_PREDICTION
        self.inserted: list[SavedState] = []
        self.checkpoints: RequestSnapshotFormat | None = None
        self.ready = asyncio.Event()
        self.ready.set()
        self.failure: BaseException | None = None
        self.lost: EngineDeadError | None = None
        self.stopped = False
        self.step: int | None = None
        self.num_checks = 0

    @property
    def stats(self) -> EngineStats:
        cache = CacheStats(budget=4000, num_bytes=1000, hit_tokens=7)
        num_others = len(self.running - {request.id for request in self.requests if request.preemptible})
        return EngineStats(
            num_running=len(self.running),
            num_preemptible_running=len(self.running) - num_others,
            num_preemptible_slots=max(4 - num_others, 0),
            slots=4,
            prompt_tokens=30,
            generated_tokens=20,
            steps=10,
            cache=cache,
            drafts=self.drafts,
        )

    @property
    def error(self) -> BaseException | None:
        return self.failure

    @property
    def is_ready(self) -> bool:
        return self.ready.is_set() and self.failure is None

    def start(self) -> None:
        pass

    async def wait_ready(self) -> None:
        await self.ready.wait()
        if self.failure is not None:
            raise self.failure

    def check(self) -> int | None:
        self.num_checks += 1
        if self.lost is not None and self.failure is None:
            self.fail(self.lost)
        return self.step

    def fail(self, error: BaseException) -> None:
        self.failure = error
        self.gate.set()

    async def stop(self, timeout_s: float | None = None) -> None:
        self.stopped = True
        self.failure = EngineStoppedError("the engine was stopped")
        self.gate.set()

    def submit(self, request: Request, sink: OutputSink) -> None:
        if len(self.running) >= self.capacity:
            sink.put(QueueFullError("the queue is full"))
            return
        self.requests.append(request)
        self.running.add(request.id)
        if self.num_served is not None and len(self.requests) > self.num_served:
            return
        self._serving[request.id] = asyncio.create_task(self._serve(request, sink))

    def abort(self, request_id: str) -> None:
        self.running.discard(request_id)
        task = self._serving.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def _serve(self, request: Request, sink: OutputSink) -> None:
        try:
            async for output in self._count(request):
                await self.gate.wait()
                if self.failure is not None:
                    is_own = isinstance(self.failure, EngineDeadError)
                    raise self.failure if is_own else EngineDeadError("the engine died")
                if output.finish_reason is not None:
                    self._forget(request)
                sink.put(output)
        except Exception as error:
            self._forget(request)
            sink.put(error)

    def _forget(self, request: Request) -> None:
        self.running.discard(request.id)
        self._serving.pop(request.id, None)

    @property
    def request_snapshot_format(self) -> RequestSnapshotFormat | None:
        return self.checkpoints

    @property
    def state_format(self) -> SavedStateFormat:
        return STATE_FORMAT

    async def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        """With a state if the prompt is long enough."""
        request = next((r for r in self.requests if r.id == request_id), None)
        if request is None:
            raise UnknownRequestError(f"no request {request_id!r}")
        self.num_saving += 1
        await self.gate.wait()
        self.num_saving -= 1
        return saved_state(
            (*request.prompt_token_ids, *self.given.get(request_id, [])[:num_generated]),
            snapshot_of(tuple(request.prompt_token_ids)),
            request.cache_salt,
            request.tenant,
            request.state_is_imported,
        )

    async def insert(self, state: SavedState) -> None:
        self.inserted.append(state)

    async def pause(self) -> None:
        self.gate.clear()

    async def snapshot_request(self, request_id: str) -> RequestSnapshot:
        """Zeros, as nothing is thought here, after the tokens that were given."""
        request = next((r for r in self.requests if r.id == request_id and r.id in self.running), None)
        given = [] if request is None else self.given.get(request_id, [])
        if request is None or not given:
            raise UnknownRequestError(f"no request {request_id!r}")
        num_tokens = request.num_replayed + len(given)
        length = len(request.prompt_token_ids) + num_tokens - 1
        arrays = np.zeros((1, 2), np.float32), np.zeros((1, 3, 2), np.float32)
        window = np.zeros((min(length, 64), 1, 2, 2), np.float32)
        return RequestSnapshot(num_tokens, Snapshot(length, arrays, (window,)))

    async def _count(self, request: Request) -> AsyncGenerator[TokenOutput]:
        params = request.params
        first = TokenOutput(started_at=time.monotonic(), num_cached=self.num_cached)
        if params.prompt_logprobs is not None:
            scored = [entry(token_id, params.prompt_logprobs) for token_id in request.prompt_token_ids[1:]]
            first = first._replace(prompt_logprobs=(None, *scored))
        if params.max_tokens == 0:
            yield first._replace(finish_reason=FinishReason.LENGTH)
            return
        token_id, num_tokens = request.prompt_token_ids[-1], 0
        for token_id in () if request.replay is None else request.replay.token_ids:
            num_tokens += 1
            if request.constraint is not None:
                request.constraint.advance(token_id)
        while True:
            for _ in range(TURNS_PER_TOKEN):
                await asyncio.sleep(0)
            if num_tokens == self.dies_after:
                raise EngineDeadError("the engine died")
            if num_tokens == 1 and request.constraint is not None and self.constraint_error is not None:
                error = ConstraintError(self.constraint_error)
                yield TokenOutput(finish_reason=FinishReason.ERROR, error=error)
                return
            if num_tokens == self.fails_after:
                yield TokenOutput(finish_reason=FinishReason.ERROR, error=self.fails_with)
                return
            if num_tokens == self.breaks_after:
                raise RuntimeError("secret detail")
            token_id = self._next(request, token_id, num_tokens)
            num_tokens += 1
            self.given.setdefault(request.id, []).append(token_id)
            finish_reason = None
            if token_id in params.stop_ids:
                finish_reason = FinishReason.STOP
            elif num_tokens == params.max_tokens:
                finish_reason = FinishReason.LENGTH
            yield first._replace(
                token_ids=(token_id,),
                logprobs=None
                if params.logprobs is None
                else (entry(token_id, params.logprobs, params.logprob_token_ids),),
                finish_reason=finish_reason,
                stop_reason=token_id if token_id in params.stop_token_ids else None,
                prediction=UNUSED_PREDICTION if finish_reason is None else self.prediction,
            )
            first = TokenOutput()
            if finish_reason is not None:
                return

    def _next(self, request: Request, last: int, num_tokens: int) -> int:
        """What is wanted, or else the first token that is allowed."""
        params = request.params
        wanted = (last + 1) % self.vocab_size
        says = self.says_by_index.get(int(request.id.rpartition("-")[2])) if self.says_by_index else self.says
        if says:
            wanted = [*says, *params.end_token_ids[:1]][num_tokens]
        elif num_tokens < params.min_tokens and wanted in params.stop_ids:
            wanted = (last + 2) % self.vocab_size
        if request.constraint is None:
            return wanted
        mask = np.zeros(words_of_mask(self.vocab_size), np.uint32)
        request.constraint.fill_mask(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
        token_id: int = wanted if wanted in allowed else allowed[0]
        request.constraint.advance(token_id)
        return token_id

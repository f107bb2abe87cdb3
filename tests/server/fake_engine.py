"""An engine whose answers a reader can work out: each token is the last one plus one, modulo the vocabulary."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from roost.engine import (
    AsyncEngine,
    EngineDeadError,
    EngineStats,
    FinishReason,
    QueueFullError,
    Request,
    TokenLogprobs,
    TokenOutput,
)


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
      requests: every one that was taken, in order.
      running: ids of those that have not ended.
      gate: nobody gets a token while it is closed.
      capacity: requests from this number on find a full queue.
      dies_after, breaks_after: so many tokens of a request are given before the engine dies, or a bug shows.
      ready, failure: what the engine says of itself.
    """

    def __init__(self, vocab_size: int = 512) -> None:
        self.vocab_size = vocab_size
        self.requests: list[Request] = []
        self.running: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.capacity = 1000
        self.dies_after: int | None = None
        self.breaks_after: int | None = None
        self.ready = asyncio.Event()
        self.ready.set()
        self.failure: BaseException | None = None
        self.stopped = False

    @property
    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.running), slots=4, prompt_tokens=30, generated_tokens=20, steps=10)

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

    async def stop(self) -> None:
        self.stopped = True
        self.failure = EngineDeadError("the engine was stopped")
        self.gate.set()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput]:
        if len(self.running) >= self.capacity:
            raise QueueFullError("the queue is full")
        self.requests.append(request)
        self.running.add(request.id)
        try:
            async for output in self._count(request):
                await self.gate.wait()
                if self.failure is not None:
                    raise EngineDeadError("the engine died")
                yield output
        finally:
            self.running.remove(request.id)

    async def _count(self, request: Request) -> AsyncGenerator[TokenOutput]:
        params = request.params
        first = TokenOutput()
        if params.prompt_logprobs is not None:
            scored = [entry(token_id, params.prompt_logprobs) for token_id in request.prompt_token_ids[1:]]
            first = TokenOutput(prompt_logprobs=(None, *scored))
        if params.max_tokens == 0:
            yield replace(first, finish_reason=FinishReason.LENGTH)
            return
        token_id, num_tokens = request.prompt_token_ids[-1], 0
        while True:
            await asyncio.sleep(0)
            if num_tokens == self.dies_after:
                raise EngineDeadError("the engine died")
            if num_tokens == self.breaks_after:
                raise RuntimeError("secret detail")
            token_id = (token_id + 1) % self.vocab_size
            if num_tokens < params.min_tokens and token_id in params.stop_ids:
                token_id = (token_id + 1) % self.vocab_size
            num_tokens += 1
            finish_reason = None
            if token_id in params.stop_ids:
                finish_reason = FinishReason.STOP
            elif num_tokens == params.max_tokens:
                finish_reason = FinishReason.LENGTH
            yield replace(
                first,
                token_ids=(token_id,),
                logprobs=None
                if params.logprobs is None
                else (entry(token_id, params.logprobs, params.logprob_token_ids),),
                finish_reason=finish_reason,
                stop_reason=token_id if token_id in params.stop_token_ids else None,
            )
            first = TokenOutput()
            if finish_reason is not None:
                return

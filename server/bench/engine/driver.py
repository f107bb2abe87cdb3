"""Drives an engine step by step, and keeps the times."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ....engine import EngineCore, Request
from ..latency import RequestTrace
from ..progress import Advance

type Clock = Callable[[], float]
"""Seconds that only go forward."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the engine's.

    Attributes:
      seconds: that it took.
      rows: requests that got tokens.
      tokens: that they got together.
      rounds: tokens of the request that got most; a device may go on for several before the host looks.
      is_decode: no prompt was read in this call's batch nor in the one before, whose end it waited for.
    """

    seconds: float
    rows: int
    tokens: int
    rounds: int
    is_decode: bool


class Driver:
    """An engine, and what was seen of it. All requests must have different ids.

    Attributes:
      steps: in their order.
      num_rounds: of the model: one for every token of a request, and for every chunk of a prompt.
      num_alive: requests that were added and have not ended.
    """

    def __init__(
        self, core: EngineCore, advance: Advance = lambda count: None, clock: Clock = time.perf_counter
    ) -> None:
        self._core = core
        self._advance = advance
        self.clock = clock
        self.started_s: Final = clock()
        self.steps: list[Step] = []
        self.num_rounds = 0
        self.num_alive = 0
        self._arrived: dict[str, tuple[float, Request]] = {}
        self._times: dict[str, list[float]] = {}
        self._tokens: Counter[str] = Counter()
        self._prompt_tokens = core.stats.prompt_tokens
        self._prompt_tokens_before = self._prompt_tokens
        self._last_was_prefill = False

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return self._core.is_idle

    @property
    def prompt_tokens(self) -> int:
        """Read since the start."""
        return self._prompt_tokens - self._prompt_tokens_before

    @property
    def generated_tokens(self) -> int:
        """Since the start."""
        return sum(step.tokens for step in self.steps)

    def add(self, request: Request, due_s: float | None = None) -> None:
        """Queues a request.

        Args:
          due_s: when it came, on the clock, if that was before now.
        """
        self._arrived[request.id] = (self.clock() if due_s is None else due_s, request)
        self._times[request.id] = []
        self.num_alive += 1
        self._core.add(request)

    def step(self) -> None:
        """One step of the engine."""
        began = self.clock()
        outputs = self._core.step()
        now = self.clock()
        for request_id, output in outputs:
            self.num_alive -= output.finish_reason is not None
            if output.token_ids:
                self._times[request_id].append(now)
                self._tokens[request_id] += len(output.token_ids)
        self._note(now - began, [len(output.token_ids) for _, output in outputs])

    def _note(self, seconds: float, tokens: Sequence[int]) -> None:
        read = self._core.stats.prompt_tokens
        is_prefill, self._prompt_tokens = read > self._prompt_tokens, read
        is_decode = not is_prefill and not self._last_was_prefill
        rounds = max(tokens, default=0)
        if tokens or is_prefill:
            self.steps.append(Step(seconds, len(tokens), sum(tokens), rounds, is_decode))
        self.num_rounds += max(1, rounds)
        self._last_was_prefill = is_prefill
        self._advance(sum(tokens))

    def fewest_tokens(self) -> int:
        """What the request that has least got so far."""
        return min(self._tokens[request_id] for request_id in self._times)

    def end(self) -> None:
        """Ends all requests; what the device still does is not booked."""
        for request_id in self._times:
            self._core.abort(request_id)
        while not self._core.is_idle:
            self._core.step()
        self.num_alive = 0

    def traces(self) -> Sequence[RequestTrace]:
        """Of all requests that have given a token, whether or not they have ended."""
        return [self._trace(request_id, times) for request_id, times in self._times.items() if times]

    def _trace(self, request_id: str, times: list[float]) -> RequestTrace:
        arrived, request = self._arrived[request_id]
        return RequestTrace(arrived, times, times[-1], len(request.prompt_token_ids), self._tokens[request_id])


def run_in_turn(driver: Driver, requests: Iterable[Request], concurrency: int) -> None:
    """A closed loop: the next request is added as soon as fewer than `concurrency` are alive."""
    waiting = iter(requests)
    following = next(waiting, None)
    while following is not None or driver.num_alive:
        while following is not None and driver.num_alive < concurrency:
            driver.add(following)
            following = next(waiting, None)
        driver.step()


def run_together(driver: Driver, requests: Iterable[Request], num_tokens: int) -> None:
    """All at once, until the last to begin has as many tokens; the others have more by then. Nothing else ends them."""
    for request in requests:
        driver.add(request)
    while driver.fewest_tokens() < num_tokens:
        driver.step()


def run_by_rounds(driver: Driver, requests: Sequence[Request], interval: int) -> None:
    """An open loop on the engine's own clock: a request every `interval` rounds; the same batches each time."""
    num_added = 0
    while num_added < len(requests) or driver.num_alive:
        if num_added < len(requests) and (driver.num_rounds >= num_added * interval or driver.is_idle):
            driver.add(requests[num_added])
            num_added += 1
        driver.step()


def run_at(
    driver: Driver, requests: Sequence[Request], times: Sequence[float], sleep: Callable[[float], None] = time.sleep
) -> None:
    """An open loop in time: each request comes at its own, in seconds from now."""
    start, num_added = driver.clock(), 0
    while num_added < len(requests) or driver.num_alive:
        while num_added < len(requests) and start + times[num_added] <= driver.clock():
            driver.add(requests[num_added], start + times[num_added])
            num_added += 1
        if driver.is_idle and num_added < len(requests):
            sleep(max(0.0, start + times[num_added] - driver.clock()))
        else:
            driver.step()

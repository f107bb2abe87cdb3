"""Loads an engine as `roost serve` does, steps it, and records times."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ....engine import EngineCore, ModelSource, Request, SamplingParams, load_engine, state_bytes
from ...assembly.service import LoadProgress, engine_config, exit_while_loading
from ...settings import Settings
from ...terminal.failure import INTERRUPTED_STATUS
from .latency import RequestTrace
from .report import Advance

type Clock = Callable[[], float]
"""Returns monotonic seconds."""


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of the engine.

    Attributes:
      seconds: Duration.
      host_seconds: Part of it in which the host did not wait for the device: planning, dispatch, booking.
      rows: Number of requests that got tokens.
      tokens: Number of tokens of all requests.
      rounds: Maximum number of tokens of a request; the device may decode several before the host sees them.
      is_decode: Whether neither this step nor the one before, whose end it waited for, prefilled a prompt.
    """

    seconds: float
    host_seconds: float
    rows: int
    tokens: int
    rounds: int
    is_decode: bool


class Driver:
    """Steps an engine and records its times. All requests must have different ids.

    Args:
      core: Engine that is ready.
      advance: Called with the number of tokens of each step.
      clock: Source of time.

    Attributes:
      clock: Source of time.
      started_s: Time when the driver was made.
      steps: Steps in their order.
      num_rounds: Model rounds so far: one for every token of a request, and one for every chunk of a prompt.
      num_unfinished: Number of requests that were added and have not ended.
    """

    def __init__(
        self, core: EngineCore, advance: Advance = lambda count: None, clock: Clock = time.perf_counter
    ) -> None:
        self._core = core
        self._advance = advance
        self.clock = clock
        self.started_s: Final = clock()
        self.steps: list[MeasuredStep] = []
        self.num_rounds = 0
        self.num_unfinished = 0
        self._arrived: dict[str, tuple[float, Request]] = {}
        self._times: dict[str, list[float]] = {}
        self._tokens: Counter[str] = Counter()
        self._prompt_tokens = core.stats.prompt_tokens
        self._prompt_tokens_before = self._prompt_tokens
        self._last_was_prefill = False

    @property
    def is_idle(self) -> bool:
        """Returns whether a step would do nothing."""
        return self._core.is_idle

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens prefilled since the start."""
        return self._prompt_tokens - self._prompt_tokens_before

    @property
    def generated_tokens(self) -> int:
        """Number of tokens generated since the start."""
        return sum(step.tokens for step in self.steps)

    def add(self, request: Request, due_s: float | None = None) -> None:
        """Queues a request.

        Args:
          request: Request to run.
          due_s: Time of its arrival on the clock; None is now.
        """
        self._arrived[request.id] = (self.clock() if due_s is None else due_s, request)
        self._times[request.id] = []
        self.num_unfinished += 1
        self._core.add(request)

    def step(self) -> None:
        """Runs one step of the engine."""
        began, waited_s = self.clock(), self._core.stats.wait_seconds
        outputs = self._core.step()
        now = self.clock()
        for request_id, output in outputs:
            self.num_unfinished -= output.finish_reason is not None
            if output.token_ids:
                self._times[request_id].append(now)
                self._tokens[request_id] += len(output.token_ids)
        seconds, waited_s = now - began, self._core.stats.wait_seconds - waited_s
        self._record(seconds, seconds - waited_s, [len(output.token_ids) for _, output in outputs])

    def _record(self, seconds: float, host_seconds: float, tokens: Sequence[int]) -> None:
        read = self._core.stats.prompt_tokens
        is_prefill, self._prompt_tokens = read > self._prompt_tokens, read
        is_decode = not is_prefill and not self._last_was_prefill
        rounds = max(tokens, default=0)
        if tokens or is_prefill:
            self.steps.append(MeasuredStep(seconds, host_seconds, len(tokens), sum(tokens), rounds, is_decode))
        self.num_rounds += max(1, rounds)
        self._last_was_prefill = is_prefill
        self._advance(sum(tokens))

    def fewest_tokens(self) -> int:
        """Returns the minimum number of tokens over all requests."""
        return min(self._tokens[request_id] for request_id in self._times)

    def end(self) -> None:
        """Aborts all requests. The steps that this takes are not recorded."""
        for request_id in self._times:
            self._core.abort(request_id)
        while not self._core.is_idle:
            self._core.step()
        self.num_unfinished = 0

    def traces(self) -> Sequence[RequestTrace]:
        """Returns the traces of all requests that have a token, whether or not they have ended."""
        return [self._trace(request_id, times) for request_id, times in self._times.items() if times]

    def _trace(self, request_id: str, times: list[float]) -> RequestTrace:
        arrived, request = self._arrived[request_id]
        return RequestTrace(arrived, times, times[-1], len(request.prompt_token_ids), self._tokens[request_id])


def run_in_turn(driver: Driver, requests: Iterable[Request], concurrency: int) -> None:
    """Adds the next request as soon as fewer than `concurrency` are unfinished (closed loop)."""
    waiting = iter(requests)
    following = next(waiting, None)
    while following is not None or driver.num_unfinished:
        while following is not None and driver.num_unfinished < concurrency:
            driver.add(following)
            following = next(waiting, None)
        driver.step()


def run_together(driver: Driver, requests: Iterable[Request], num_tokens: int) -> None:
    """Runs all requests concurrently until each has at least `num_tokens` tokens. The requests have no limit."""
    for request in requests:
        driver.add(request)
    while driver.fewest_tokens() < num_tokens:
        driver.step()


def run_by_rounds(driver: Driver, requests: Sequence[Request], interval: int) -> None:
    """Adds a request every `interval` model rounds (open loop), which gives the same batches each time."""
    num_added = 0
    while num_added < len(requests) or driver.num_unfinished:
        if num_added < len(requests) and (driver.num_rounds >= num_added * interval or driver.is_idle):
            driver.add(requests[num_added])
            num_added += 1
        driver.step()


def run_at(
    driver: Driver, requests: Sequence[Request], times: Sequence[float], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Adds each request at its time, in seconds from now (open loop)."""
    start, num_added = driver.clock(), 0
    while num_added < len(requests) or driver.num_unfinished:
        while num_added < len(requests) and start + times[num_added] <= driver.clock():
            driver.add(requests[num_added], start + times[num_added])
            num_added += 1
        if driver.is_idle and num_added < len(requests):
            sleep(max(0.0, start + times[num_added] - driver.clock()))
        else:
            driver.step()


def load(settings: Settings, source: ModelSource, max_queue: int, slots: int | None = None) -> EngineCore:
    """Returns an engine that is ready. It has no prefix cache, so that every prompt is prefilled.

    Args:
      settings: Settings of the engine.
      source: Model to load.
      max_queue: Number of requests that may wait.
      slots: Number of slots, if the settings leave it open.

    Raises:
      RoostError: A setting is wrong, or the model cannot be loaded.
    """
    config = replace(engine_config(settings), slots=settings.slots or slots, max_queue=max_queue, state_cache_gib=0)
    progress = LoadProgress()
    try:
        with _exit_on_interrupt(progress):
            return load_engine(source, config, progress)
    finally:
        progress.close()


def make_request(name: str, prompt: Sequence[int], max_tokens: int | None) -> Request:
    """Returns a greedy request that ends only at its limit; None sets no limit."""
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0.0))


def model_facts(source: ModelSource, settings: Settings, core: EngineCore) -> Mapping[str, Any]:
    """Returns facts about the model and its slots."""
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    config = source.with_kv_dtype(settings.kv_dtype).config
    return {
        "name": source.name,
        "parameters": source.config.num_parameters,
        "dtype": dtype,
        "quantize": settings.quantize or source.config.quantize,
        "kv_dtype": settings.kv_dtype,
        "slots": core.stats.slots,
        "state_bytes_per_slot": state_bytes(config, 4 if dtype == "float32" else 2),
    }


def settings_as_json(settings: Settings) -> Mapping[str, Any]:
    """Returns the settings that affect an engine; None slots means as many as memory permits."""
    return settings.model_dump(include={"model", "slots", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed"})


@contextlib.contextmanager
def _exit_on_interrupt(progress: LoadProgress) -> Iterator[None]:
    """Makes Ctrl-C exit the process immediately, since a compilation cannot be interrupted."""
    before = signal.signal(signal.SIGINT, lambda number, frame: exit_while_loading(progress, INTERRUPTED_STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""A device on a clock of its own, whose steps take a known time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from roost.engine.scheduling.prefill_budget import StepTimes
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.request import Batch, DecodeBatch, FirstToken, PrefillBatch, PrefillChunk, Request, RowResult
from roost.engine.types.sampling_params import SamplingParams
from roost.engine.types.snapshot import Snapshot

LIMITS = StepLimits(512, prefill_rows=1, prefill_layer_slices=6, decode_steps=2, decode_rows=(4, 8, 16, 32))

DECODE = {4: 0.006, 8: 0.008, 16: 0.014, 32: 0.026}
PREFILL = {64: 0.030, 128: 0.048, 256: 0.086, 512: 0.163}
FIRST_TOKENS = 0.002
"""Seconds by rows and by tokens, and of first tokens alone: about those of the model "small" in int8 on two cores."""


REQUEST = Request("a", (1,) * 4096)


def seconds_of(
    batch: Batch, layer_slices: int = LIMITS.prefill_layer_slices, decode: Mapping[int, float] = DECODE
) -> float:
    """Returns the seconds that the device takes for a batch."""
    if isinstance(batch, DecodeBatch):
        return batch.steps * decode[next(rows for rows in decode if rows > max(batch.slots))]
    if not batch.num_tokens:
        return FIRST_TOKENS
    tokens = next(size for size in PREFILL if size >= max(chunk.length for chunk in batch.chunks))
    return PREFILL[tokens] / layer_slices


def prefill(*lengths: int, layer_slice: int = 0) -> PrefillBatch:
    chunks = tuple(PrefillChunk(REQUEST, slot, 0, length, is_last=False) for slot, length in enumerate(lengths))
    return PrefillBatch(chunks, layer_slice=layer_slice)


def decode(rows: int, steps: int = 1) -> DecodeBatch:
    return DecodeBatch((REQUEST,) * rows, tuple(range(rows)), steps)


def measured(limits: StepLimits = LIMITS) -> StepTimes:
    """Returns the durations of the simulated device, all measured."""
    times = StepTimes(limits)
    record_all(times, limits)
    return times


def record_all(times: StepTimes, limits: StepLimits = LIMITS, decode_s: Mapping[int, float] = DECODE) -> None:
    """Measures all steps of the simulated device."""
    slices = limits.prefill_layer_slices
    chunks: list[PrefillBatch | DecodeBatch] = [
        prefill(tokens, layer_slice=index) for tokens in PREFILL for index in range(slices)
    ]
    steps = [decode(rows, num_steps) for num_steps in (1, 8) for rows in decode_s]
    for batch in chunks + steps:
        times.record(batch, seconds_of(batch, slices, decode_s))


@dataclass
class Simulation:
    """Runs a scheduler on the device, with one batch in flight like `EngineCore`.

    Attributes:
      batches: Batches in order, each with the time at which it ended.
      arrivals: Times at which outputs of each request came.
      decode: Seconds of a decode step by rows.
      noise: Returns the ratio of the next step's duration to the known one.
    """

    scheduler: Scheduler
    now: float = 0.0
    batches: list[tuple[Batch, float]] = field(default_factory=list)
    arrivals: dict[str, list[float]] = field(default_factory=dict)
    decode: Mapping[int, float] = field(default_factory=lambda: DECODE)
    noise: Callable[[], float] = lambda: 1.0
    _in_flight: Batch | None = None

    def add(self, name: str, prompt: int, new: int, *, preemptible: bool = False, tenant: str = "") -> None:
        self.arrivals[name] = []
        params = SamplingParams(max_tokens=new)
        request = Request(name, (1,) * prompt, params, preemptible=preemptible, tenant=tenant)
        self.scheduler.add(request, self.now)

    def step(self) -> bool:
        """Returns whether there was something to do."""
        self._preempt()
        planned, ended = self.scheduler.schedule(self.now).batch, self._in_flight
        self._commit()
        self._in_flight = planned
        return planned is not None or ended is not None

    def _commit(self) -> None:
        ended, self._in_flight = self._in_flight, None
        if ended is None:
            return
        seconds = seconds_of(ended, decode=self.decode) * self.noise()
        self.now += seconds
        self.batches.append((ended, self.now))
        for name, _ in self.scheduler.commit(ended, results(ended), seconds).outputs:
            self.arrivals[name].append(self.now)

    def _preempt(self) -> None:
        preemption = self.scheduler.preemption
        if preemption.victims(can_replay=True):
            self._commit()
        for running in preemption.victims(can_replay=True):
            length = len(running.request.prompt_token_ids) + running.num_tokens - 1
            preemption.preempt(running, Snapshot(length, (), ()) if running.num_tokens else None)
            assert running.request.id in preemption.waiting

    def run(self) -> "Simulation":
        """Runs to the end. Preemptible requests may wait for a moment that no step takes."""
        while self.step() or self.scheduler.next_timeout != math.inf:
            if self._in_flight is None:
                self.now += 0.01
        return self

    def gaps(self, name: str, since: float = 0.0) -> list[float]:
        """Returns the seconds between outputs of a request that came after a time."""
        times = self.arrivals[name]
        return [after - before for before, after in pairwise(times) if before >= since]


def results(batch: Batch) -> Sequence[RowResult]:
    if isinstance(batch, DecodeBatch):
        return [RowResult((7,) * batch.steps) for _ in batch.slots]
    return [RowResult((7,) if isinstance(row, FirstToken) else ()) for row in batch.rows]

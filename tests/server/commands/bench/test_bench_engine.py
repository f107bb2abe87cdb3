"""`roost bench engine` and `benchmarks/growth.py` on a fake engine."""

from typing import Any

import pytest
from growth import measure
from roost.engine import EngineCore, EngineStats, FinishReason, Request, TokenOutput
from roost.server.commands.bench.engine import (
    Bench,
    Driver,
    MeasuredStep,
    full_batch_rate,
    make_request,
    run_by_rounds,
    run_in_turn,
    summarize,
)
from roost.server.commands.options import EngineBenchOptions
from roost.server.settings import Settings, SettingsError

SLOTS, CHUNK = 4, 64


class Ticks:
    """Clock that advances by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class CountingCore(EngineCore):
    """An engine that reads one prompt in a step, or else gives every request that runs one token.

    It waits a quarter of a second for its device in each step.

    Args:
      rounds: tokens that a decode step gives each request.
    """

    def __init__(self, rounds: int = 1) -> None:
        self._rounds = rounds
        self._left: dict[str, int] = {}
        self._unread: list[Request] = []
        self._results: list[tuple[str, int]] = []
        self._read = 0
        self.steps: list[str] = []
        self.most = 0

    @property
    def is_idle(self) -> bool:
        return not (self._left or self._unread or self._results)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(slots=SLOTS, prompt_tokens=self._read, wait_seconds=0.25 * len(self.steps))

    def add(self, request: Request) -> None:
        self._unread.append(request)

    def abort(self, request_id: str) -> bool:
        return self._left.pop(request_id, None) is not None

    def step(self) -> list[tuple[str, TokenOutput]]:
        """Returns the outputs of the step before, as the real engine does."""
        last, self._results = self._results, self._plan()
        outputs = []
        for request_id, count in last:
            if request_id not in self._left:
                continue
            count = min(count, self._left[request_id])
            self._left[request_id] -= count
            reason = None if self._left[request_id] else FinishReason.LENGTH
            if reason:
                del self._left[request_id]
            outputs.append((request_id, TokenOutput((7,) * count, finish_reason=reason)))
        return outputs

    def _plan(self) -> list[tuple[str, int]]:
        self.steps.append("prefill" if self._unread else "decode")
        if self._unread:
            request = self._unread.pop(0)
            limit = request.params.max_tokens
            self._left[request.id] = 10**9 if limit is None else limit
            self._read += len(request.prompt_token_ids)
            return [(request.id, 1)]
        self.most = max(self.most, len(self._left))
        return [(request_id, self._rounds) for request_id in self._left]


@pytest.fixture
def core() -> CountingCore:
    return CountingCore()


def requests(count: int, prompt_len: int = 3, max_tokens: int | None = 5) -> list[Request]:
    return [make_request(f"r{place}", [5] * prompt_len, max_tokens) for place in range(count)]


def test_a_closed_loop_keeps_to_its_concurrency(core: CountingCore) -> None:
    driver = Driver(core)
    run_in_turn(driver, requests(7), 3)
    assert core.most == 3
    assert (driver.prompt_tokens, driver.generated_tokens) == (7 * 3, 7 * 5)
    assert [len(trace.token_times_s) for trace in driver.traces()] == [5] * 7


def test_arrivals_by_rounds_make_the_same_steps_each_time() -> None:
    seen = []
    for _ in range(2):
        core = CountingCore()
        driver = Driver(core)
        run_by_rounds(driver, requests(6), 3)
        seen.append(core.steps)
        assert driver.generated_tokens == 6 * 5
    assert seen[0] == seen[1]
    assert seen[0][:5] == ["prefill", "decode", "decode", "prefill", "decode"]


def test_a_step_of_several_rounds_is_several_tokens_and_one_piece() -> None:
    driver = Driver(CountingCore(rounds=4), clock=Ticks())
    run_in_turn(driver, requests(1, max_tokens=9), 1)
    (trace,) = driver.traces()
    assert (len(trace.token_times_s), trace.output_tokens) == (3, 9)
    assert summarize("mixed", driver)["decode_step_ms"]["p50"] == 250.0


def test_only_steps_without_a_prompt_near_are_decode_steps(core: CountingCore) -> None:
    driver = Driver(core, clock=Ticks())
    run_in_turn(driver, requests(1), 1)
    first, second = MeasuredStep(1.0, 0.75, 0, 0, 0, False), MeasuredStep(1.0, 0.75, 1, 1, 1, False)
    assert driver.steps[:3] == [first, second, MeasuredStep(1.0, 0.75, 1, 1, 1, True)]


def test_the_rate_is_that_of_full_batches() -> None:
    sizes = [(1.0, 1, 1, 1), (0.5, 4, 4, 1), (1.5, 4, 12, 3), (2.0, 3, 3, 1)]
    steps = [MeasuredStep(seconds, seconds, rows, tokens, rounds, True) for seconds, rows, tokens, rounds in sizes]
    assert full_batch_rate(steps) == 8.0
    assert full_batch_rate([]) is None


@pytest.mark.parametrize("workload", ["prefill", "decode", "mixed"])
def test_each_workload_reports_what_it_measures(core: CountingCore, workload: str) -> None:
    driver = Driver(core, clock=Ticks())
    run_in_turn(driver, requests(3), 3)
    result = summarize(workload, driver)
    assert (result["prompt_tokens"], result["generated_tokens"]) == (9, 15)
    assert (result["prompt_tokens_per_s"] is None) == (workload == "decode")
    assert (result["generated_tokens_per_s"] is None) == (workload == "prefill")
    assert result["decode_step_ms"]["p50"] == 1000.0


def bench_of(core: CountingCore, **changes: Any) -> Bench:
    options = EngineBenchOptions(input_len=70, output_len=8, repeat=2, **changes)
    return Bench(options, Settings(prefill_chunk=CHUNK), vocab_size=100, core=core)


def test_more_requests_than_slots_are_refused(core: CountingCore) -> None:
    with pytest.raises(SettingsError, match=r"--concurrency 5: .*--slots 5"):
        bench_of(core, concurrency=5)


def test_a_benchmark_repeats_every_workload(core: CountingCore) -> None:
    result = bench_of(core).run()
    workloads = result["workloads"]
    assert (result["concurrency"], result["rounds_between_arrivals"]) == (SLOTS, 2 + 2)
    tokens = {name: [run["generated_tokens"] for run in found["runs"]] for name, found in workloads.items()}
    assert tokens == {"prefill": [8, 8], "decode": [32, 32], "mixed": [64, 64]}
    assert core.is_idle
    assert workloads["mixed"]["median"]["prompt_tokens"] == 8 * 70


def test_stretches_hold_all_tokens_and_sequences_are_aborted(core: CountingCore) -> None:
    advanced: list[int] = []
    stretches = list(measure(core, requests(3, max_tokens=None), [4, 8, 11], Ticks(), advanced.append))
    assert [stretch.length for stretch in stretches] == [4, 8, 11]
    assert [stretch.tokens for stretch in stretches] == [3 * 3, 3 * 4, 3 * 3]
    assert all(stretch.resident_bytes > 0 for stretch in stretches)
    assert stretches[0].tokens_per_s == 9.0
    assert core.is_idle

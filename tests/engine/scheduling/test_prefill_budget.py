"""How much prefill runs between two decode steps."""

import statistics
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from roost.engine.core.config import StepLimits
from roost.engine.core.request import DecodeBatch, PrefillBatch, PrefillChunk, Request
from roost.engine.scheduling.prefill_budget import PrefillBudget, StepTimes, prefill_seconds
from roost.engine.scheduling.scheduler import Scheduler
from simulated_device import DECODE, LIMITS, PREFILL, Simulation, seconds_of

REQUEST = Request("a", (1,) * 4096)


def prefill(tokens: int, layer_slice: int = 0) -> PrefillBatch:
    return PrefillBatch((PrefillChunk(REQUEST, 0, 0, tokens, is_last=False),), layer_slice)


def decode(rows: int, steps: int = 1) -> DecodeBatch:
    return DecodeBatch((REQUEST,) * rows, tuple(range(rows)), steps)


def measured(limits: StepLimits = LIMITS) -> StepTimes:
    """Returns the durations of the simulated device, all measured."""
    times = StepTimes(limits)
    slices = limits.prefill_layer_slices
    chunks = [prefill(tokens, index) for tokens in PREFILL for index in range(slices)]
    for batch in (*chunks, *map(decode, DECODE), *(decode(rows, 8) for rows in DECODE)):
        times.record(batch, seconds_of(batch, slices))
    return times


@pytest.mark.parametrize(
    ("target_s", "decoding", "waiting", "seconds"),
    [
        (None, 8, 1, 0.85 * 2.9 * 0.008 - 0.008),
        (None, 16, 1, 0.85 * 2.9 * 0.014 - 0.014),
        (0.1, 8, 1, 0.85 * 0.1 - 0.008),
        (0.1, 8, 2, 0.85 * 0.1 - 0.008),
        (0.1, 8, 4, 0.85 * 0.1 * 3 - 0.008),
        (0.1, 32, 3, 0.85 * 0.1 - 0.026),
        (0.1, 32, 4, 0.85 * 0.1 * 2 - 0.026),
        (0.0, 8, 1, 32 * 0.008),
        (0.0, 8, 20, 32 * 0.008),
    ],
)
def test_time_between_decode_steps(target_s: float | None, decoding: int, waiting: int, seconds: float) -> None:
    assert prefill_seconds(target_s, measured(), decoding, waiting) == pytest.approx(seconds)


def test_lines_of_batches_do_not_weaken_the_target() -> None:
    """It is that of the other requests alone, though all rows are in the step."""
    assert prefill_seconds(None, measured(), 16, 1, num_batch=8) == pytest.approx(0.85 * 2.9 * 0.008 - 0.014)
    assert prefill_seconds(0.1, measured(), 16, 3, num_batch=12) == pytest.approx(0.85 * 0.1 * 4 - 0.014)
    budget = PrefillBudget(replace(LIMITS, itl_target_s=0.001), measured())
    assert budget.max_tokens(8, 1, num_batch=7) == 64
    assert budget.max_tokens(8, 1, num_batch=8) == 512  # nobody waits for tokens


@pytest.mark.parametrize(
    ("target_s", "others", "rows"),
    [
        (None, 0, 32),
        (None, 3, 8),
        (None, 4, 8),
        (None, 6, 16),
        (None, 9, 32),
        (0.001, 6, 8),
        (0.04, 1, 32),
        (0.0, 4, 32),
    ],
)
def test_lines_take_rows_for_which_a_step_keeps_the_target(target_s: float | None, others: int, rows: int) -> None:
    """A slice of a prompt fits beside it. Rows that are computed anyway cost nothing."""
    assert PrefillBudget(replace(LIMITS, itl_target_s=target_s), measured()).max_rows(others, 32) == rows


def test_no_time_is_known_before_a_decode_step() -> None:
    times = StepTimes(LIMITS)
    times.record(prefill(512), 0.2)
    assert prefill_seconds(None, times, 1, 9) == 0


@pytest.mark.parametrize(
    ("target_ms", "tokens"), [(1, 64), (17, 64), (20, 128), (30, 256), (45, 512), (1000, 512), (0, 512)]
)
def test_the_longest_chunk_of_which_a_slice_fits_is_next(target_ms: float, tokens: int) -> None:
    budget = PrefillBudget(replace(LIMITS, itl_target_s=target_ms / 1e3), measured())
    assert budget.max_tokens(num_decoding=8, num_waiting=1) == tokens


def test_nothing_limits_prefill_while_no_request_decodes() -> None:
    budget = PrefillBudget(LIMITS, measured())
    for _ in range(3):
        assert budget.max_tokens(0, 1) == 512
        budget.spend(prefill(512), num_decoding=8)


def test_slices_run_until_the_time_is_spent() -> None:
    """Three of 5 ms fit beside a decode step of 8 ms."""
    budget = PrefillBudget(replace(LIMITS, prefill_chunk=64, itl_target_s=0.024 / 0.85), measured())
    assert budget.max_tokens(8, 1) == 64
    for index in range(3):
        assert budget.allows(prefill(64, index), 8, 1)
        budget.spend(prefill(64, index), num_decoding=8)
    assert not budget.allows(prefill(64, 3), 8, 1)
    budget.renew()
    assert budget.allows(prefill(64, 3), 8, 1)


def test_a_single_step_runs_between_two_decode_steps_however_long_it_takes() -> None:
    budget = PrefillBudget(replace(LIMITS, itl_target_s=0.001), measured())
    assert budget.max_tokens(8, 1) == 64
    budget.spend(prefill(64, 0), num_decoding=8)
    assert budget.max_tokens(8, 1) == 0
    assert not budget.allows(prefill(64, 1), 8, 1)


@pytest.mark.parametrize("chunk", [64, 128, 192, 320, 512])
def test_chunks_stay_within_the_limit(chunk: int) -> None:
    """A chunk need not be a power of two."""
    budget = PrefillBudget(replace(LIMITS, prefill_chunk=chunk, itl_target_s=0.0), measured())
    assert budget.max_tokens(8, 1) == chunk


# --- with a scheduler


def burst(target_s: float | None, *, is_batch: bool = False) -> Simulation:
    """Runs 32 requests of 512 + 128 tokens that arrive at once."""
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)))
    for number in range(32):
        simulation.add(str(number), 512, 128, is_batch=is_batch)
    return simulation.run()


def test_time_of_a_burst_is_near_that_of_its_phases() -> None:
    phases = 32 * PREFILL[512] + 127 * DECODE[32]
    assert burst(0.0).now <= 1.10 * phases
    assert burst(None).now <= 1.10 * phases


def test_lines_of_batches_run_for_throughput() -> None:
    """If no other request decodes, whatever the target."""
    assert burst(0.01, is_batch=True).now == burst(0.0).now < burst(0.01).now


def test_streams_keep_the_target_above_lines_of_batches() -> None:
    """Prompts of lines come one after the other, and take no longer than one prompt of another request may."""
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=0.06)))
    for number in range(6):
        simulation.add(f"stream {number}", 64, 400)
    while simulation.now < 1:
        simulation.step()
    for number in range(60):
        simulation.add(f"line {number}", 512, 20, is_batch=True)
    while not simulation.arrivals["line 3"]:  # steps with more rows are measured
        simulation.step()
    begin = simulation.now
    while not simulation.arrivals["line 12"]:
        simulation.step()
    gaps = [gap for number in range(6) for gap in simulation.gaps(f"stream {number}", begin)]
    assert len(gaps) > 50
    assert statistics.quantiles(gaps, n=100)[98] <= 0.06


@pytest.mark.parametrize("target_s", [None, 0.03, 0.06, 0.1])
def test_one_prompt_after_the_other_keeps_the_target(target_s: float | None) -> None:
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)))
    for number in range(6):
        simulation.add(f"stream {number}", 64, 400)
    while simulation.now < 1:
        simulation.step()
    simulation.add("warm", 2048, 1)  # its chunks are measured
    while not simulation.arrivals["warm"]:
        simulation.step()
    begin = simulation.now
    for number in range(2):
        simulation.add(f"long {number}", 2048, 1)
        while not simulation.arrivals[f"long {number}"]:
            simulation.step()
    gaps = [gap for number in range(6) for gap in simulation.gaps(f"stream {number}", begin)]
    assert len(gaps) > 100
    assert statistics.quantiles(gaps, n=100)[98] <= (2.9 * DECODE[8] if target_s is None else target_s)


@settings(max_examples=40)
@given(
    target_s=st.none() | st.floats(0, 0.5),
    prompts=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6),
)
def test_neither_prefill_nor_decode_starves(target_s: float | None, prompts: list[tuple[int, int, int]]) -> None:
    """Whatever the target, a prefill step follows each decode step while a prompt waits, and every request ends."""
    simulation = Simulation(Scheduler(8, 100, replace(LIMITS, itl_target_s=target_s)))
    for number, (prompt, new, steps) in enumerate(prompts):
        simulation.add(str(number), prompt, new)
        for _ in range(steps):
            simulation.step()
    simulation.run()
    assert simulation.scheduler.is_idle
    assert all(simulation.arrivals.values())
    left = {str(number): prompt for number, (prompt, _, _) in enumerate(prompts)}
    started, was_decode = set[str](), False
    for batch, _ in simulation.batches:
        if isinstance(batch, DecodeBatch):
            assert not (was_decode and any(left[name] for name in started)), "two decode steps while a prompt waits"
        elif batch.is_last_slice:
            for chunk in batch.chunks:
                started.add(chunk.request.id)
                left[chunk.request.id] -= chunk.length
        was_decode = isinstance(batch, DecodeBatch)
    assert not any(left.values())


@given(
    target_s=st.none() | st.floats(0, 0.5),
    decoding=st.integers(1, 32),
    waiting=st.integers(1, 32),
)
def test_prefill_takes_no_longer_than_its_time(target_s: float | None, decoding: int, waiting: int) -> None:
    """A single step may take longer."""
    limits = replace(LIMITS, prefill_layer_slices=1, itl_target_s=target_s)
    times = measured(limits)
    budget, durations = PrefillBudget(limits, times), list[float]()
    while tokens := budget.max_tokens(decoding, waiting):
        budget.spend(prefill(tokens), num_decoding=8)
        durations.append(seconds_of(prefill(tokens), limits.prefill_layer_slices))
    assert durations
    assert sum(durations) <= prefill_seconds(target_s, times, decoding, waiting) + 1e-9 or len(durations) == 1

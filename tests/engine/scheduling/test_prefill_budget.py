"""How much prefill runs between two decode steps."""

import math
import random
import statistics
from collections.abc import Mapping
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


LINGER_S = 0.3
"""More than the seconds for which lines leave room for others that have ended."""


def measured(limits: StepLimits = LIMITS) -> StepTimes:
    """Returns the durations of the simulated device, all measured."""
    times = StepTimes(limits)
    record_all(times, limits)
    return times


def record_all(times: StepTimes, limits: StepLimits = LIMITS, decode_s: Mapping[int, float] = DECODE) -> None:
    """Measures all steps of the simulated device."""
    slices = limits.prefill_layer_slices
    chunks = [prefill(tokens, index) for tokens in PREFILL for index in range(slices)]
    for batch in (*chunks, *map(decode, decode_s), *(decode(rows, 8) for rows in decode_s)):
        times.record(batch, seconds_of(batch, slices, decode_s))


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
        (0.0, 8, 24, 32 * 0.008),
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
        (None, 3, 4),
        (None, 4, 4),
        (None, 6, 8),
        (None, 20, 32),
        (0.001, 6, 8),
        (0.04, 1, 32),
        (0.03, 4, 16),
        (0.0, 4, 32),
    ],
)
def test_lines_take_rows_that_delay_others_little(target_s: float | None, others: int, rows: int) -> None:
    """Or for which a step and a slice of a prompt keep a target that was set. Rows of padding cost nothing."""
    budget = PrefillBudget(replace(LIMITS, itl_target_s=target_s), measured())
    assert budget.max_rows(others, 32) == budget.max_rows(others, 32, is_entry=True) == rows


def test_lines_neither_come_nor_go_where_they_delay_others_by_a_tenth() -> None:
    times = StepTimes(LIMITS)
    for rows, seconds in ((4, 0.006), (8, 0.0066), (16, 0.02)):
        times.record(decode(rows), seconds)
    budget = PrefillBudget(LIMITS, times)
    assert (budget.max_rows(2, 16), budget.max_rows(2, 16, is_entry=True)) == (8, 4)


def test_no_line_comes_beside_others_before_a_step_without_lines_is_measured() -> None:
    times = StepTimes(LIMITS)
    times.record(decode(32), 0.026)
    budget = PrefillBudget(LIMITS, times)
    assert (budget.max_rows(3, 32), budget.max_rows(3, 32, is_entry=True)) == (32, 4)
    times.record(decode(4), 0.025)
    assert (budget.max_rows(3, 32), budget.max_rows(3, 32, is_entry=True)) == (32, 32)


def test_prompts_of_lines_take_a_tenth_of_the_time_of_decode_steps() -> None:
    budget = PrefillBudget(LIMITS, measured())
    budget.spend(prefill(64), num_decoding=4)
    assert not budget.is_in_debt  # a prompt of another request
    budget.spend(prefill(64), num_decoding=4, num_delayed=4)  # 5 ms
    for _ in range(4):
        budget.repay(4, steps=2)  # of 6 ms each
        assert budget.is_in_debt
    budget.repay(4, steps=1)
    assert not budget.is_in_debt


def test_a_step_with_free_slots_between_is_one_of_more_rows() -> None:
    times = StepTimes(LIMITS)
    times.record(DecodeBatch((REQUEST,) * 2, (1, 6)), 0.008)
    assert (times.has_decode(2), times.has_decode(8)) == (False, True)
    in_order = StepTimes(replace(LIMITS, slot_order=(0, 16, 1, 17)))
    in_order.record(DecodeBatch((REQUEST,) * 2, (0, 17)), 0.006)
    assert in_order.has_decode(4)


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


FLAT = {4: 0.006, 8: 0.0062, 16: 0.0065, 32: 0.0068}
"""Seconds of a decode step that is bound by reading the weights, as on accelerators."""


@settings(max_examples=15, deadline=None)
@given(
    target_s=st.none() | st.sampled_from([0.03, 0.06]),
    table=st.sampled_from([DECODE, FLAT]),
    streams=st.lists(st.tuples(st.integers(1, 300), st.integers(20, 200)), min_size=1, max_size=6),
    lines=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 80)), min_size=1, max_size=50),
)
def test_lines_delay_streams_little(
    target_s: float | None,
    table: dict[int, float],
    streams: list[tuple[int, int]],
    lines: list[tuple[int, int]],
) -> None:
    """Or keep a target that was set. Every line ends, and prompts of lines take a tenth of the time of decode steps."""
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)), decode=table)
    record_all(simulation.scheduler._times, decode_s=table)
    for kind, requests in (("stream", streams), ("line", lines)):
        for number, (prompt, new) in enumerate(requests):
            simulation.add(f"{kind} {number}", prompt, new, is_batch=kind == "line")
    simulation.run()
    assert all(simulation.arrivals.values())
    spans = [
        (simulation.arrivals[f"stream {number}"][0], simulation.arrivals[f"stream {number}"][-1])
        for number in range(len(streams))
    ]
    steps = prompts = 0.0
    is_between_slices = False
    for batch, end in simulation.batches:
        start = end - seconds_of(batch, decode=table)
        is_beside = any(first <= start and end <= last for first, last in spans)
        if isinstance(batch, DecodeBatch):
            num_others = sum(start < last + LINGER_S for _, last in spans)
            if is_beside and not is_between_slices:  # when no state can be moved to a lower row
                most = 1.15 * table[next(rows for rows in table if rows >= num_others)]
                room = target_s / 1.05 if target_s else 0.0  # what is planned of a target where durations don't vary
                most = max(most, room - PREFILL[64] / LIMITS.prefill_layer_slices)
                assert (end - start) / batch.steps <= most + 1e-9
            steps += is_beside * (end - start)
        else:
            is_between_slices = not batch.is_last_slice
            prompts += is_beside * batch.rows[0].request.is_batch * (end - start)
    assert prompts <= 0.1 * steps + PREFILL[512]


def gaps_beside_prompts(simulation: Simulation) -> list[float]:
    """Returns the times between tokens of six streams while long prompts arrive one after the other."""
    for number in range(6):
        simulation.add(f"stream {number}", 64, 1000)
    while simulation.now < 1:
        simulation.step()
    begin = simulation.now
    for number in range(6):
        if number == 2:  # all sizes are measured by then
            begin = simulation.now
        simulation.add(f"long {number}", 2048, 1)
        while not simulation.arrivals[f"long {number}"]:
            simulation.step()
    return [gap for number in range(6) for gap in simulation.gaps(f"stream {number}", begin)]


@pytest.mark.parametrize("target_s", [None, 0.03, 0.06, 0.1])
@pytest.mark.parametrize("deviation", [0.0, 0.2])
def test_one_prompt_after_the_other_keeps_the_target(target_s: float | None, deviation: float) -> None:
    """The 99th percentile does, whether or not durations vary."""
    draw = random.Random(7)
    simulation = Simulation(
        Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)), noise=lambda: math.exp(draw.gauss(0, deviation))
    )
    gaps = gaps_beside_prompts(simulation)
    assert len(gaps) > 250
    assert statistics.quantiles(gaps, n=100)[98] <= (2.9 * DECODE[8] if target_s is None else target_s)


def test_steady_durations_leave_more_time_for_prompts() -> None:
    def seconds(deviation: float) -> float:
        draw = random.Random(7)
        simulation = Simulation(
            Scheduler(32, 100, replace(LIMITS, itl_target_s=0.06)), noise=lambda: math.exp(draw.gauss(0, deviation))
        )
        gaps_beside_prompts(simulation)
        return simulation.now

    assert seconds(0.0) < 0.95 * seconds(0.2)


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

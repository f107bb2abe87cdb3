"""When states move to earlier slots, and how often they move under simulated loads."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import pytest
from roost.engine.devices.platform import CPU, TPU
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.request import Batch, DecodeBatch, Request
from roost.engine.types.sampling_params import SamplingParams
from simulated_device import results

ROWS = (64, 128, 256, 512)
SLOTS = 608


def decode_steps(idle_rows_per_move: int, loads: Iterable[int], mean_tokens: int = 128) -> Iterator[DecodeBatch]:
    """Yields the decode steps of a scheduler that has these numbers of requests, one after the other.

    Replies are of random lengths. A request that is one too many is aborted, and one that is missing is added.
    """
    limits = StepLimits(512, itl_target_s=0.0, decode_rows=ROWS, idle_rows_per_move=idle_rows_per_move)
    scheduler, names, rng = Scheduler(SLOTS, SLOTS, limits), count(), random.Random(1)
    for load in loads:
        for _ in range(load - len(scheduler.running)):
            tokens = 1 + round(rng.expovariate(1 / mean_tokens))
            scheduler.add(Request(str(next(names)), (1,), SamplingParams(max_tokens=tokens)), 0.0)
        for name in rng.sample(list(scheduler.running), max(0, len(scheduler.running) - load)):
            scheduler.abort(name)
        batch: Batch | None = None
        while not isinstance(batch, DecodeBatch):
            batch = scheduler.schedule(0.0).batch
            if batch is None:
                break
            scheduler.commit(batch, results(batch), 1.0)
        else:
            yield batch


def around(mean: int, steps: int) -> list[int]:
    """Returns numbers of requests around a mean, each near the one before."""
    rng, offset, loads = random.Random(2), 0.0, []
    for _ in range(steps):
        offset = 0.9 * offset + rng.gauss(0, 3)
        loads.append(mean + round(offset))
    return loads


def num_moves(steps: Sequence[DecodeBatch]) -> int:
    return sum(len(step.moves) for step in steps)


def num_rows(steps: Sequence[DecodeBatch]) -> int:
    """Returns the number of rows that the steps compute."""
    return sum(next(rows for rows in (*ROWS, SLOTS) if rows > max(step.slots)) for step in steps)


def test_a_load_that_hovers_at_256_moves_fewer_states_for_hardly_more_rows() -> None:
    loads = around(256, 900)
    eager, patient = (list(decode_steps(price, loads)) for price in (0, TPU.idle_rows_per_move))
    assert num_moves(patient) < 0.8 * num_moves(eager)
    assert num_rows(patient) < 1.05 * num_rows(eager)


def test_a_load_that_falls_for_good_moves_each_state_once() -> None:
    loads = [500] * 5 + [250] * 30
    steps = list(decode_steps(TPU.idle_rows_per_move, loads, mean_tokens=10_000))
    moved = [len(step.moves) for step in steps]
    assert sum(number > 0 for number in moved) == 1
    assert max(steps[-1].slots) < 256
    begin = next(i for i, number in enumerate(moved) if number)
    assert 256 * (begin - 5) < TPU.idle_rows_per_move * sum(moved) <= 256 * (begin - 4)


def test_idle_rows_of_a_full_step_are_forgotten() -> None:
    steps = list(decode_steps(TPU.idle_rows_per_move, [300, 250] * 20, mean_tokens=10_000))
    assert num_moves(steps) == 0


def test_moves_that_cost_nothing_are_never_delayed() -> None:
    steps = list(decode_steps(CPU.idle_rows_per_move, [500] * 5 + [250] * 2, mean_tokens=10_000))
    assert [len(step.moves) > 0 for step in steps] == [*[False] * 5, True, False]
    assert max(steps[4].slots) > 256 > max(steps[5].slots)


@pytest.mark.parametrize("load", [64, 128, 256])
def test_a_steady_load_of_a_compiled_size_moves_nothing(load: int) -> None:
    steps = list(decode_steps(TPU.idle_rows_per_move, [load] * 40))
    assert num_moves(steps) == 0
    assert max(max(step.slots) for step in steps) == load - 1

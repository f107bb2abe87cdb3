"""RG-LRU against its float64 reference, with padding, chunking and resets, and the bits of its block."""

from dataclasses import dataclass, replace
from functools import partial

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from chunk_cases import CPU_OPTIONS, SEEDS, cut, positions
from hypothesis import given
from roost.kernels import XLA
from roost.kernels.recurrent_block import RecurrentWeights, recurrent_block
from roost.kernels.recurrent_block.rg_lru import rg_lru
from roost.kernels.references import rg_lru_reference
from sweeps import full

ROWS, STEPS, WIDTH = 3, 8, 6
PACKED = positions(ROWS, STEPS, several_documents=True)

jitted = jax.jit(rg_lru, compiler_options=CPU_OPTIONS)


@dataclass(frozen=True)
class Case:
    """Draws the arguments of one call except positions; the three sequences are one array `[3, B, T, E]`."""

    sequences: np.ndarray
    log_decay: np.ndarray
    h0: np.ndarray

    @classmethod
    def of(cls, seed: int) -> "Case":
        """Channels forget within a step or hardly ever (a from e^-20 to 1 - 1e-7); gates are open, shut or between."""
        rng = np.random.default_rng(seed)
        sequences = rng.normal(size=(3, ROWS, STEPS, WIDTH)) * rng.choice([1.0, 8.0], size=(3, 1, 1, WIDTH))
        log_decay = -np.exp(rng.uniform(np.log(1e-7), np.log(20.0), WIDTH))
        h0 = rng.normal(size=(ROWS, WIDTH))
        return cls(*(x.astype(np.float32) for x in (sequences, log_decay, h0)))

    def run(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, last = jitted(*self.sequences, self.log_decay, self.h0, positions)
        return np.asarray(y), np.asarray(last)


@given(seed=SEEDS, positions=PACKED)
def test_equals_the_reference(seed: int, positions: np.ndarray) -> None:
    case, valid = Case.of(seed), positions >= 0
    y, last = case.run(positions)
    expected, expected_last = rg_lru_reference(*case.sequences, case.log_decay, case.h0, positions)
    np.testing.assert_allclose(y[valid], expected[valid], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(last, expected_last, rtol=2e-5, atol=2e-6)


@given(seed=SEEDS, positions=PACKED)
def test_padding_is_inert(seed: int, positions: np.ndarray) -> None:
    """Values in padding, even NaN, reach neither an output nor the state."""
    case, valid = Case.of(seed), positions >= 0
    y, last = case.run(positions)
    poisoned = replace(case, sequences=np.where(valid[..., None], case.sequences, np.nan))
    poisoned_y, poisoned_last = poisoned.run(positions)
    np.testing.assert_array_equal(poisoned_y[valid], y[valid])
    np.testing.assert_array_equal(poisoned_last, last)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_row_of_padding_keeps_its_state(steps: int) -> None:
    case = Case.of(1)
    padding = replace(case, sequences=np.full((3, ROWS, steps, WIDTH), np.nan, np.float32))
    _, last = padding.run(np.full((ROWS, steps), -1, np.int32))
    np.testing.assert_array_equal(last, case.h0)


@given(seed=SEEDS, positions=PACKED, at=st.integers(0, STEPS))
def test_any_cut_equals_one_pass_bit_for_bit(seed: int, positions: np.ndarray, at: int) -> None:
    case = Case.of(seed)
    y, last = case.run(positions)
    outputs, h = [], case.h0
    halves = zip(*(cut(x, positions, at) for x in case.sequences), strict=True)
    for half in halves:
        part = half[0][1]
        out, h = replace(case, sequences=np.stack([x for x, _ in half]), h0=h).run(part)
        outputs.append(out[part >= 0])
    whole = np.concatenate([y[:, :at][positions[:, :at] >= 0], y[:, at:][positions[:, at:] >= 0]])
    np.testing.assert_array_equal(np.concatenate(outputs), whole)
    np.testing.assert_array_equal(h, last)


@given(seed=SEEDS, positions=PACKED)
def test_single_steps_equal_the_chunk(seed: int, positions: np.ndarray) -> None:
    case = Case.of(seed)
    y, last = case.run(positions)
    h = case.h0
    for t in range(STEPS):
        now = positions[:, t : t + 1]
        out, h = replace(case, sequences=case.sequences[:, :, t : t + 1], h0=h).run(now)
        valid = now[:, 0] >= 0
        np.testing.assert_allclose(out[valid, 0], y[valid, t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h, last, rtol=1e-5, atol=1e-6)


@given(seed=SEEDS, begin=st.integers(0, STEPS - 1))
def test_a_document_forgets_everything_before_its_start(seed: int, begin: int) -> None:
    """At position 0, in the middle of a row too, h is the gated input alone: a counts as 0 and its scale as 1."""
    case = Case.of(seed)
    positions = np.tile(np.r_[7 + np.arange(begin), np.arange(STEPS - begin)].astype(np.int32), (ROWS, 1))
    y, _ = case.run(positions)
    other_past = np.where(np.arange(STEPS)[:, None] >= begin, case.sequences, 3.0).astype(np.float32)
    other_y, _ = replace(case, sequences=other_past, h0=100 * case.h0).run(positions)
    np.testing.assert_array_equal(other_y[:, begin:], y[:, begin:])
    x, input_gate, _ = case.sequences[:, :, begin].astype(np.float64)
    np.testing.assert_allclose(y[:, begin], x / (1 + np.exp(-input_gate)), rtol=1e-5, atol=1e-6)


def test_a_channel_that_never_forgets_keeps_its_state() -> None:
    """log a = 0 means a = 1 and no input: the scale sqrt(1 - a^2) is 0, not a rounding of it."""
    case = replace(Case.of(4), log_decay=np.zeros(WIDTH, np.float32))
    y, last = case.run(np.tile(np.arange(5, 5 + STEPS, dtype=np.int32), (ROWS, 1)))
    np.testing.assert_array_equal(y, np.broadcast_to(case.h0[:, None], y.shape))
    np.testing.assert_array_equal(last, case.h0)


@pytest.mark.parametrize(("rows", "steps"), [(33, 1), (1, 160)])
@pytest.mark.parametrize("block", [*full(16), 256])
def test_a_recurrent_block_gives_a_token_the_same_bits_among_any_number(block: int, rows: int, steps: int) -> None:
    """XLA for CPUs multiplies and adds in orders that depend on the number of rows, at these sizes of gates too."""
    width, taps, rng = 2 * block, 4, np.random.default_rng(block)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    gates = normal(2, block, 2 * block), normal(2, 2 * block)
    weights = RecurrentWeights(normal(taps, width), normal(width), *gates, normal(width))
    xy, conv, h = normal(rows, steps, 2 * width), normal(taps - 1, rows, width), normal(rows, width)
    positions = np.full((rows, 1), 7, np.int32) + np.arange(steps, dtype=np.int32)

    expected = np.asarray(compute(weights, xy, conv, h, positions))
    for count in (1, 2, 5, 32) if steps == 1 else (16, 64, 128):
        few, first = min(count, rows), min(count, steps)
        mixed = compute(weights, xy[:few, :first], conv[:, :few], h[:few], positions[:few, :first])
        np.testing.assert_array_equal(mixed, expected[:few, :first])


@partial(jax.jit, compiler_options=CPU_OPTIONS)
def compute(weights: RecurrentWeights, xy: jax.Array, conv: jax.Array, h: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the outputs of a recurrent block, except its last product."""
    return recurrent_block(lambda _: xy, weights, conv, h, positions, 16, 1, XLA).mixed

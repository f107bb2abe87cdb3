"""Causal convolution and RG-LRU against float64, with padding, chunking and resets, and the bits of their block."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import CPU_OPTIONS, SEEDS, cut, positions
from hypothesis import given
from roost.kernels import XLA
from roost.kernels.recurrent_block import RecurrentWeights, recurrent_block
from roost.kernels.recurrent_block.xla import causal_conv1d, rg_lru
from roost.kernels.references import causal_conv1d_reference, rg_lru_reference
from sweeps import full

ROWS, STEPS, WIDTH = 3, 8, 6
PACKED = positions(ROWS, STEPS, several_documents=True)

jit = partial(jax.jit, compiler_options=CPU_OPTIONS)
run_conv, run_scan = jit(causal_conv1d), jit(rg_lru)


@dataclass(frozen=True)
class Case:
    """Arguments of one call except positions.

    Attributes:
      call, reference: The op and its reference, of the same arguments.
      sequences: Arrays along the chunk, `[S, B, T, E]`.
      weights: Arguments between these and the state.
      close: Compares outputs, and states unless they are copies of inputs.
    """

    call: Callable[..., Any]
    reference: Callable[..., Any]
    sequences: np.ndarray
    weights: tuple[np.ndarray, ...]
    state: np.ndarray
    close: Callable[..., None]
    close_state: Callable[..., None]

    def run(self, positions: np.ndarray, *, reference: bool = False) -> tuple[np.ndarray, np.ndarray]:
        call = self.reference if reference else self.call
        y, state = call(*self.sequences, *self.weights, self.state, positions)
        return np.asarray(y), np.asarray(state)


def conv(seed: int, taps: int = 4, dtype: str = "float32") -> Case:
    rng, kind = np.random.default_rng(seed), jnp.dtype(dtype)
    sequences = rng.normal(size=(1, ROWS, STEPS, WIDTH)).astype(kind)
    weights = rng.normal(size=(taps, WIDTH)).astype(np.float32), rng.normal(size=WIDTH).astype(np.float32)
    state, close = rng.normal(size=(taps - 1, ROWS, WIDTH)).astype(kind), partial(np.testing.assert_allclose, rtol=1e-5)
    exactly = np.testing.assert_array_equal
    return Case(run_conv, causal_conv1d_reference, sequences, weights, state, partial(close, atol=1e-5), exactly)


def scan(seed: int) -> Case:
    """Channels forget within a step or hardly ever (a from e^-20 to 1 - 1e-7); gates are open, shut or between."""
    rng = np.random.default_rng(seed)
    sequences = rng.normal(size=(3, ROWS, STEPS, WIDTH)) * rng.choice([1.0, 8.0], size=(3, 1, 1, WIDTH))
    log_decay = -np.exp(rng.uniform(np.log(1e-7), np.log(20.0), WIDTH))
    arrays = (x.astype(np.float32) for x in (sequences, log_decay, rng.normal(size=(ROWS, WIDTH))))
    sequences, log_decay, h0 = arrays
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    return Case(run_scan, rg_lru_reference, sequences, (log_decay,), h0, close, close)


OPS = pytest.mark.parametrize("draw", [conv, scan])


@pytest.mark.parametrize("draw", [conv, partial(conv, dtype="bfloat16"), partial(conv, taps=2), scan])
@given(seed=SEEDS, positions=PACKED)
def test_equals_the_reference(draw: Callable[[int], Case], seed: int, positions: np.ndarray) -> None:
    case, valid = draw(seed), positions >= 0
    y, state = case.run(positions)
    wide = replace(case, sequences=case.sequences.astype(np.float32), state=case.state.astype(np.float32))
    expected, expected_state = wide.run(positions, reference=True)
    case.close(y[valid], expected[valid])
    case.close_state(state.astype(np.float64), expected_state)
    assert state.dtype == case.state.dtype


@OPS
@given(seed=SEEDS, positions=PACKED)
def test_padding_is_inert(draw: Callable[[int], Case], seed: int, positions: np.ndarray) -> None:
    """Values in padding, even NaN, reach neither an output nor the state."""
    case, valid = draw(seed), positions >= 0
    y, state = case.run(positions)
    poisoned = replace(case, sequences=np.where(valid[..., None], case.sequences, np.nan))
    poisoned_y, poisoned_state = poisoned.run(positions)
    np.testing.assert_array_equal(poisoned_y[valid], y[valid])
    np.testing.assert_array_equal(poisoned_state, state)


@OPS
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_row_of_padding_keeps_its_state(draw: Callable[[int], Case], steps: int) -> None:
    case = draw(1)
    padding = replace(case, sequences=np.full_like(case.sequences[:, :, :steps], np.nan))
    _, state = padding.run(np.full((ROWS, steps), -1, np.int32))
    np.testing.assert_array_equal(state, case.state)


@OPS
@given(seed=SEEDS, positions=PACKED, at=st.integers(0, STEPS))
def test_any_cut_equals_one_pass_bit_for_bit(
    draw: Callable[[int], Case], seed: int, positions: np.ndarray, at: int
) -> None:
    case = draw(seed)
    y, state = case.run(positions)
    outputs, carried = [], case.state
    for half in zip(*(cut(x, positions, at) for x in case.sequences), strict=True):
        part = half[0][1]
        out, carried = replace(case, sequences=np.stack([x for x, _ in half]), state=carried).run(part)
        outputs.append(out[part >= 0])
    whole = np.concatenate([y[:, :at][positions[:, :at] >= 0], y[:, at:][positions[:, at:] >= 0]])
    np.testing.assert_array_equal(np.concatenate(outputs), whole)
    np.testing.assert_array_equal(carried, state)


@OPS
@given(seed=SEEDS, positions=PACKED)
def test_single_steps_equal_the_chunk(draw: Callable[[int], Case], seed: int, positions: np.ndarray) -> None:
    case = draw(seed)
    y, state = case.run(positions)
    carried = case.state
    for t in range(STEPS):
        now = positions[:, t : t + 1]
        out, carried = replace(case, sequences=case.sequences[:, :, t : t + 1], state=carried).run(now)
        valid = now[:, 0] >= 0
        np.testing.assert_allclose(out[valid, 0], y[valid, t], rtol=1e-5, atol=1e-6)
    case.close_state(carried, state)


def test_a_document_sees_nothing_before_its_start() -> None:
    """A document start hides the convolution's state and, inside a row, the tokens of the previous document."""
    case, begin = conv(2), 4
    positions = np.tile(np.r_[np.arange(30, 30 + begin), np.arange(STEPS - begin)].astype(np.int32), (ROWS, 1))
    y, _ = case.run(positions)
    x = np.where(np.arange(STEPS)[:, None] >= begin, case.sequences, np.nan)
    unseen, _ = replace(case, sequences=x, state=np.full_like(case.state, np.nan)).run(positions)
    np.testing.assert_array_equal(unseen[:, begin:], y[:, begin:])
    assert np.isnan(unseen[:, :begin]).all()


def test_the_last_tap_meets_the_current_token() -> None:
    """An impulse gives the taps in reverse order: w[K-1] first, w[0] three steps later, then zeros."""
    case = conv(3)
    x = np.zeros_like(case.sequences)
    x[:, :, 2] = 1.0
    weight, bias = case.weights
    impulse = replace(case, sequences=x, weights=(weight, np.zeros_like(bias)))
    y, state = impulse.run(np.tile(np.arange(STEPS, dtype=np.int32), (ROWS, 1)))
    expected = np.zeros_like(y[0])
    expected[2:6] = weight[::-1]
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))
    assert not state.any()


@given(seed=SEEDS, begin=st.integers(0, STEPS - 1))
def test_a_document_forgets_everything_before_its_start(seed: int, begin: int) -> None:
    """At position 0, in the middle of a row too, h is the gated input alone: a counts as 0 and its scale as 1."""
    case = scan(seed)
    positions = np.tile(np.r_[7 + np.arange(begin), np.arange(STEPS - begin)].astype(np.int32), (ROWS, 1))
    y, _ = case.run(positions)
    other_past = np.where(np.arange(STEPS)[:, None] >= begin, case.sequences, 3.0).astype(np.float32)
    other_y, _ = replace(case, sequences=other_past, state=100 * case.state).run(positions)
    np.testing.assert_array_equal(other_y[:, begin:], y[:, begin:])
    x, input_gate, _ = case.sequences[:, :, begin].astype(np.float64)
    np.testing.assert_allclose(y[:, begin], x / (1 + np.exp(-input_gate)), rtol=1e-5, atol=1e-6)


def test_a_channel_that_never_forgets_keeps_its_state() -> None:
    """log a = 0 means a = 1 and no input: the scale sqrt(1 - a^2) is 0, not a rounding of it."""
    case = replace(scan(4), weights=(np.zeros(WIDTH, np.float32),))
    y, last = case.run(np.tile(np.arange(5, 5 + STEPS, dtype=np.int32), (ROWS, 1)))
    np.testing.assert_array_equal(y, np.broadcast_to(case.state[:, None], y.shape))
    np.testing.assert_array_equal(last, case.state)


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


@jit
def compute(weights: RecurrentWeights, xy: jax.Array, conv: jax.Array, h: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the outputs of a recurrent block, except its last product."""
    return recurrent_block(lambda _: xy, weights, conv, h, positions, 16, 1, XLA).mixed

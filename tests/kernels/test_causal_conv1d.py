"""Causal convolution against its float64 reference, with padding, chunking and document starts."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import CPU_OPTIONS, SEEDS, cut, positions
from hypothesis import given
from roost.kernels.recurrent_block.causal_conv1d import causal_conv1d
from roost.kernels.references import causal_conv1d_reference

ROWS, STEPS, WIDTH = 3, 8, 5
POSITIONS = positions(ROWS, STEPS)
PACKED = positions(ROWS, STEPS, several_documents=True)

jitted = jax.jit(causal_conv1d, compiler_options=CPU_OPTIONS)


@dataclass(frozen=True)
class Case:
    """Draws the arguments of one call except positions."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    state: np.ndarray

    @classmethod
    def of(cls, seed: int, taps: int = 4, dtype: str = "float32") -> "Case":
        rng, kind = np.random.default_rng(seed), jnp.dtype(dtype)
        x = rng.normal(size=(ROWS, STEPS, WIDTH)).astype(kind)
        weight, bias = rng.normal(size=(taps, WIDTH)).astype(np.float32), rng.normal(size=WIDTH).astype(np.float32)
        return cls(x, weight, bias, rng.normal(size=(taps - 1, ROWS, WIDTH)).astype(kind))

    def run(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, state = jitted(self.x, self.weight, self.bias, self.state, positions)
        return np.asarray(y), np.asarray(state)


@pytest.mark.parametrize(("taps", "dtype"), [(4, "float32"), (4, "bfloat16"), (2, "float32")])
@given(seed=SEEDS, positions=PACKED)
def test_equals_the_reference(taps: int, dtype: str, seed: int, positions: np.ndarray) -> None:
    case = Case.of(seed, taps, dtype)
    y, state = case.run(positions)
    x, old_state = case.x.astype(np.float32), case.state.astype(np.float32)
    expected, expected_state = causal_conv1d_reference(x, case.weight, case.bias, old_state, positions)
    valid = positions >= 0
    np.testing.assert_allclose(y[valid], expected[valid], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.astype(np.float64), expected_state)
    assert state.dtype == case.state.dtype


@given(seed=SEEDS, positions=PACKED)
def test_padding_is_inert(seed: int, positions: np.ndarray) -> None:
    """Values in padding, even NaN, reach neither an output nor the state."""
    case, valid = Case.of(seed), positions >= 0
    y, state = case.run(positions)
    poisoned_y, poisoned_state = replace(case, x=np.where(valid[..., None], case.x, np.nan)).run(positions)
    np.testing.assert_array_equal(poisoned_y[valid], y[valid])
    np.testing.assert_array_equal(poisoned_state, state)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_row_of_padding_keeps_its_state(steps: int) -> None:
    case = Case.of(1)
    positions = np.full((ROWS, steps), -1, np.int32)
    _, state = replace(case, x=np.full((ROWS, steps, WIDTH), np.nan, np.float32)).run(positions)
    np.testing.assert_array_equal(state, case.state)


@given(seed=SEEDS, positions=PACKED, at=st.integers(0, STEPS))
def test_any_cut_equals_one_pass_bit_for_bit(seed: int, positions: np.ndarray, at: int) -> None:
    case = Case.of(seed)
    y, state = case.run(positions)
    outputs, carried = [], case.state
    for x, part in cut(case.x, positions, at):
        out, carried = replace(case, x=x, state=carried).run(part)
        outputs.append(out[part >= 0])
    whole = np.concatenate([y[:, :at][positions[:, :at] >= 0], y[:, at:][positions[:, at:] >= 0]])
    np.testing.assert_array_equal(np.concatenate(outputs), whole)
    np.testing.assert_array_equal(carried, state)


@given(seed=SEEDS, positions=PACKED)
def test_single_steps_equal_the_chunk(seed: int, positions: np.ndarray) -> None:
    case = Case.of(seed)
    y, state = case.run(positions)
    carried = case.state
    for t in range(STEPS):
        now = positions[:, t : t + 1]
        out, carried = replace(case, x=case.x[:, t : t + 1], state=carried).run(now)
        valid = now[:, 0] >= 0
        np.testing.assert_allclose(out[valid, 0], y[valid, t], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(carried, state)


def test_a_document_sees_nothing_before_its_start() -> None:
    """A document start hides the state and, inside a row, the tokens of the previous document."""
    case = Case.of(2)
    begin = 4
    positions = np.tile(np.r_[np.arange(30, 30 + begin), np.arange(STEPS - begin)].astype(np.int32), (ROWS, 1))
    y, _ = case.run(positions)
    x = np.where(np.arange(STEPS)[:, None] >= begin, case.x, np.nan)
    unseen, _ = replace(case, x=x, state=np.full_like(case.state, np.nan)).run(positions)
    np.testing.assert_array_equal(unseen[:, begin:], y[:, begin:])
    assert np.isnan(unseen[:, :begin]).all()


def test_the_last_tap_meets_the_current_token() -> None:
    """An impulse gives the taps in reverse order: w[K-1] first, w[0] three steps later, then zeros."""
    case = Case.of(3)
    x = np.zeros_like(case.x)
    x[:, 2] = 1.0
    y, state = replace(case, x=x, bias=np.zeros_like(case.bias)).run(np.tile(np.arange(STEPS, dtype=np.int32), (3, 1)))
    expected = np.zeros_like(y[0])
    expected[2:6] = case.weight[::-1]
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))
    assert not state.any()

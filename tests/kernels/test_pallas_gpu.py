"""Pallas kernels that only GPUs have, interpreted on a CPU, against the references."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import SEEDS, positions
from hypothesis import given
from interpreted import GPU_SIZES, interpreted
from roost.kernels import GpuSizes
from roost.kernels.recurrent_block import RecurrentInputs, RecurrentWeights
from roost.kernels.recurrent_block.pallas_gpu import recurrent_step_gpu, rg_lru_gpu
from roost.kernels.references import recurrent_block_reference, rg_lru_reference
from sweeps import examples, swept

ROWS = 3

close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)

scan = interpreted(partial(rg_lru_gpu, gpu=GPU_SIZES))


@cache
def step_of_groups(groups: int) -> Callable[..., Any]:
    return interpreted(partial(recurrent_step_gpu, groups=groups))


@pytest.mark.parametrize(
    ("rows", "pool", "groups", "blocks", "taps"), [(3, 3, 1, 2, 4), (20, 45, 1, 1, 2), (12, 40, 2, 1, 4)]
)
@given(seed=SEEDS)
@examples(3, sweep=10)
def test_recurrent_step(rows: int, pool: int, groups: int, blocks: int, taps: int, seed: int) -> None:
    """Rows at, near and far from a document start, and idle rows; the other rows of the state stay as they are."""
    rng, size = np.random.default_rng(seed), 128
    width = blocks * size
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    where = rng.choice([-1, 0, 1, 2, 3, 50], rows).astype(np.int32)
    xy, conv, h = draw(rows, 2 * width), draw(taps - 1, pool, width), draw(pool, width)
    weights = (draw(taps, width), draw(width), draw(blocks, size, 2 * size) / size**0.5, draw(blocks, 2 * size))
    a_param = 2 * draw(width) - 2
    own = [group * (pool // groups) + row for group in range(groups) for row in range(rows // groups)]
    out, new_conv, new_h = step_of_groups(groups)(
        xy, RecurrentInputs(RecurrentWeights(*weights, a_param), conv, h, where)
    )
    expected, expected_conv, expected_h = recurrent_block_reference(
        xy[:, None], *weights, a_param, conv[:, own], h[own], where[:, None]
    )
    busy = where >= 0
    np.testing.assert_allclose(np.asarray(out)[busy], expected[busy, 0], rtol=1e-4, atol=1e-4)
    idle_h = h[own][~busy]
    conv[:, own], h[own] = expected_conv, expected_h
    np.testing.assert_allclose(new_h, h, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(new_h)[own][~busy], idle_h)
    np.testing.assert_array_equal(new_conv, conv)


def test_a_recurrent_step_rounds_sums_of_projections() -> None:
    """To the dtype of the convolution's state, as XLA would."""
    rng, rows, width = np.random.default_rng(0), 5, 128
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    weights = (draw(4, width), draw(width), draw(1, width, 2 * width) / width**0.5, draw(1, 2 * width), draw(width))
    sums, conv, h = draw(rows, 2 * width), jnp.asarray(draw(3, rows, width), jnp.bfloat16), draw(rows, width)
    where = np.array([-1, 0, 1, 3, 50], np.int32)
    from_sums, from_rounded = (
        step_of_groups(1)(xy, RecurrentInputs(RecurrentWeights(*weights), conv, h, where))
        for xy in (sums, jnp.asarray(sums, jnp.bfloat16))
    )
    assert from_sums[0].dtype == from_sums[1].dtype == jnp.bfloat16
    for one, other in zip(from_sums, from_rounded, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("steps", "width"),
    [(1, 24), (300, 256), *swept((20, 24), (20, 256), (300, 128))],
)
@given(data=st.data(), seed=SEEDS)
@examples(3, sweep=10)
def test_rg_lru(steps: int, width: int, data: st.DataObject, seed: int) -> None:
    """One or several blocks of time, full or partial registers, resets anywhere, and padding."""
    where = data.draw(positions(ROWS, steps, several_documents=True))
    rng = np.random.default_rng(seed)
    x, input_gate, recurrence_gate = (2 * rng.normal(size=(3, ROWS, steps, width))).astype(np.float32)
    log_decay = -np.exp(2 * rng.normal(size=width) - 2).astype(np.float32)
    h0 = rng.normal(size=(ROWS, width)).astype(np.float32)
    dirty = [
        np.where((where >= 0)[..., None], values, np.float32("nan")) for values in (x, input_gate, recurrence_gate)
    ]
    y, last = scan(*dirty, log_decay, h0, where)
    expected, expected_last = rg_lru_reference(x, input_gate, recurrence_gate, log_decay, h0, where)
    close(np.asarray(y)[where >= 0], expected[where >= 0])
    close(last, expected_last)
    idle = np.all(where < 0, axis=1)
    np.testing.assert_array_equal(np.asarray(last)[idle], h0[idle])


@pytest.mark.parametrize("multiprocessors", [1, *swept(1000)])
def test_channels_of_a_program_do_not_change_the_scan(multiprocessors: int) -> None:
    """A GPU with few multiprocessors walks along 32 channels at a time, one with many along 16."""
    scan = interpreted(partial(rg_lru_gpu, gpu=GpuSizes(101_376, multiprocessors)))
    rng = np.random.default_rng(2)
    x, input_gate, recurrence_gate = (2 * rng.normal(size=(3, 2, 300, 40))).astype(np.float32)
    log_decay, h0 = -np.exp(rng.normal(size=40)).astype(np.float32), rng.normal(size=(2, 40)).astype(np.float32)
    where = np.tile(np.arange(5, 305, dtype=np.int32), (2, 1))
    y, last = scan(x, input_gate, recurrence_gate, log_decay, h0, where)
    expected, expected_last = rg_lru_reference(x, input_gate, recurrence_gate, log_decay, h0, where)
    close(y, expected)
    close(last, expected_last)

"""Pallas kernels that only GPUs have, interpreted on a CPU, against the references."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import SEEDS
from hypothesis import given, settings
from interpreted import interpreted
from roost.kernels.recurrent_block import RecurrentWeights
from roost.kernels.recurrent_block.pallas_gpu import recurrent_step_gpu
from roost.kernels.recurrent_block.reference import recurrent_block_reference


@cache
def step_of_groups(groups: int) -> Callable[..., Any]:
    return interpreted(partial(recurrent_step_gpu, groups=groups))


@pytest.mark.parametrize(
    ("rows", "pool", "groups", "blocks", "taps"), [(3, 3, 1, 2, 4), (20, 45, 1, 1, 2), (12, 40, 2, 1, 4)]
)
@given(seed=SEEDS)
@settings(max_examples=3)
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
    out, new_conv, new_h = step_of_groups(groups)(xy, RecurrentWeights(*weights, a_param), conv, h, where)
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
        step_of_groups(1)(xy, RecurrentWeights(*weights), conv, h, where)
        for xy in (sums, jnp.asarray(sums, jnp.bfloat16))
    )
    assert from_sums[0].dtype == from_sums[1].dtype == jnp.bfloat16
    for one, other in zip(from_sums, from_rounded, strict=True):
        np.testing.assert_array_equal(one, other)

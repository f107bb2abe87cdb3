"""The largest elements of a row, found by blocks, are those of `jax.lax.top_k`, places of equal ones included."""

from collections.abc import Sequence

import jax
import numpy as np
import pytest
from roost.kernels.sampling import top_k_by_blocks

K = 4
"""Number of elements; a row of more than 64 * K is not sorted as a whole."""

ROWS = 64
by_blocks = jax.jit(top_k_by_blocks, static_argnums=1)


@pytest.mark.parametrize("width", [1024, 1000, 257, 256, 4])
@pytest.mark.parametrize("values", [1, 2, 5, 10**6])
def test_elements_and_places(width: int, values: int) -> None:
    """Few different values make ties within blocks, between them, and of all elements."""
    rows = np.random.default_rng(width + values).integers(0, values, (ROWS, width)).astype(np.float32)
    check(rows)


@pytest.mark.parametrize("count", [0, 1, K - 1, K, 300])
def test_masked_rows(count: int) -> None:
    """With fewer than k tokens allowed, the first of those that are not come next; padding never does."""
    rows = np.full((ROWS, 300), -np.inf, np.float32)
    rng = np.random.default_rng(count)
    for row in rows:
        row[rng.choice(300, count, replace=False)] = rng.integers(-2, 3, count)
    check(rows)


def test_nan_is_the_largest_of_all() -> None:
    """The sampler finds rows with NaN by their largest element."""
    rows = np.random.default_rng(0).normal(size=(ROWS, 300)).astype(np.float32)
    rows[:, 7] = np.inf
    rows[np.arange(ROWS), 4 * np.arange(ROWS)] = np.nan
    check(rows, (1,))


def test_rows_of_any_number_of_axes() -> None:
    check(np.random.default_rng(0).normal(size=300).astype(np.float32))
    check(np.random.default_rng(0).normal(size=(2, 3, 300)).astype(np.float32))


def check(rows: np.ndarray, counts: Sequence[int] = (1, K)) -> None:
    for k in counts:
        (largest, places), (expected, expected_places) = by_blocks(rows, k), jax.lax.top_k(rows, k)
        np.testing.assert_array_equal(places, expected_places)
        np.testing.assert_array_equal(largest, expected)

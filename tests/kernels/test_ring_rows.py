"""Reading rows of rings, so that what was written there can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.kernels.window_attention import Vectors, quantize, read_blocks, split_ring, write_blocks

WINDOW, HEAD, COUNT = 12, 8, 5


def vectors(seed: int, length: int, kind: str) -> Vectors:
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(3, length, HEAD)), jnp.float32)
    return quantize(x) if kind == "int8" else x.astype(kind)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("sizes", [(12,), (4, 8), (3, 3, 6)])
def test_rows_that_were_read_undo_what_was_written(kind: str, sizes: tuple[int, ...]) -> None:
    """Rows begin before, at and across the ring's end; each row undoes all but its first tokens."""
    before = split_ring((vectors(0, WINDOW, kind), vectors(1, WINDOW, kind)), sizes)
    start, kept = jnp.array([2, 9, 35], jnp.int32), jnp.array([5, 2, 0], jnp.int32)
    positions = start[:, None] + jnp.arange(COUNT)
    old = read_blocks(before, start, COUNT)
    new = vectors(2, COUNT, kind), vectors(3, COUNT, kind)
    written = write_blocks(before, *new, positions, start)
    undone = write_blocks(written, *old, jnp.where(jnp.arange(COUNT) < kept[:, None], -1, positions), start)
    only_kept = jnp.where(jnp.arange(COUNT) < kept[:, None], positions, -1)
    expected = write_blocks(before, *new, only_kept, start)
    for ours, theirs in zip(jax.tree.leaves(undone), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)

"""Reading rows of rings, so that what was written there can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.kernels.window_attention import Rings, Vectors, put_tokens, quantize, read_ring, write_ring
from sweeps import full

WINDOW, HEAD, COUNT = 12, 8, 5


def vectors(seed: int, length: int, kind: str) -> Vectors:
    x = np.random.default_rng(seed).normal(size=(3, length, HEAD)).astype(np.float32)
    return quantized(x) if kind == "int8" else x.astype(kind)


quantized = jax.jit(quantize)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", *full("float32")])
def test_rows_that_were_read_undo_what_was_written(kind: str) -> None:
    """Rows begin before, at and across the ring's end; each row undoes all but its first tokens."""
    before = vectors(0, WINDOW, kind), vectors(1, WINDOW, kind)
    new = vectors(2, COUNT, kind), vectors(3, COUNT, kind)
    for ours, theirs in zip(*map(jax.tree.leaves, undone_and_expected(before, new)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@jax.jit
def undone_and_expected(before: Rings, new: tuple[Vectors, Vectors]) -> tuple[Rings, Rings]:
    """Writes all tokens and undoes all but the first ones; and writes only those."""
    start, kept = jnp.array([2, 9, 35], jnp.int32), jnp.array([5, 2, 0], jnp.int32)
    positions, is_kept = start[:, None] + jnp.arange(COUNT), jnp.arange(COUNT) < kept[:, None]
    old_k, old_v = new
    for offset in range(COUNT):
        k, v = read_ring(before, start + offset)
        old_k, old_v = put_tokens(old_k, k, jnp.int32(offset)), put_tokens(old_v, v, jnp.int32(offset))
    written = write_ring(before, *new, positions, start)
    undone = write_ring(written, old_k, old_v, jnp.where(is_kept, -1, positions), start)
    return undone, write_ring(before, *new, jnp.where(is_kept, positions, -1), start)

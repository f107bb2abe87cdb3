"""Reading rows of rings, so that what was written there can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.kernels.window_attention import Blocks, Vectors, quantize, read_blocks, split_ring, write_blocks
from sweeps import full

WINDOW, HEAD, COUNT = 12, 8, 5


def vectors(seed: int, length: int, kind: str) -> Vectors:
    x = np.random.default_rng(seed).normal(size=(3, length, HEAD)).astype(np.float32)
    return quantized(x) if kind == "int8" else x.astype(kind)


quantized = jax.jit(quantize)
split = jax.jit(split_ring, static_argnums=1)


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ((12,), "bfloat16"),
        ((4, 8), "int8"),
        ((3, 3, 6), "float32"),
        *full(((12,), "float32"), ((12,), "int8"), ((4, 8), "float32"), ((4, 8), "bfloat16")),
        *full(((3, 3, 6), "bfloat16"), ((3, 3, 6), "int8")),
    ],
)
def test_rows_that_were_read_undo_what_was_written(sizes: tuple[int, ...], kind: str) -> None:
    """Rows begin before, at and across the ring's end; each row undoes all but its first tokens."""
    before = split((vectors(0, WINDOW, kind), vectors(1, WINDOW, kind)), sizes)
    new = vectors(2, COUNT, kind), vectors(3, COUNT, kind)
    for ours, theirs in zip(*map(jax.tree.leaves, undone_and_expected(before, new)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@jax.jit
def undone_and_expected(before: Blocks, new: tuple[Vectors, Vectors]) -> tuple[Blocks, Blocks]:
    """Writes all tokens and undoes all but the first ones; and writes only those."""
    start, kept = jnp.array([2, 9, 35], jnp.int32), jnp.array([5, 2, 0], jnp.int32)
    positions, is_kept = start[:, None] + jnp.arange(COUNT), jnp.arange(COUNT) < kept[:, None]
    old = read_blocks(before, start, COUNT)
    written = write_blocks(before, *new, positions, start)
    undone = write_blocks(written, *old, jnp.where(is_kept, -1, positions), start)
    return undone, write_blocks(before, *new, jnp.where(is_kept, positions, -1), start)

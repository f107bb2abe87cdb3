"""Window attention as matrix products, for every backend."""

from functools import partial
from itertools import accumulate
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ..arithmetic import max_last, product_precision, rounded, sum_last
from .pallas import MASKED
from .ring import (
    Blocks,
    Int8Vectors,
    Rings,
    Vectors,
    block_sizes,
    concatenate_rings,
    first_rings,
    map_tokens,
    slice_ring,
    with_token_axis,
    write_blocks,
    write_ring,
)

_FIRST_ROWS: Final = 256
"""Ring rows that a block of a prompt attends to at first; doubled as more of the ring is filled."""


def decode_attention_xla(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    rings: tuple[Blocks, ...],
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], tuple[Blocks, ...]]:
    """Returns outputs of one query per row, and the rings with the new keys; see `decode_attention`."""
    sizes = [blocks[0][0].shape[0] for blocks in rings]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    parts = [
        _attend_group(q[r], _rows(k, r), _rows(v, r), first_rings(blocks, q[r].shape[0]), positions[r])
        for r, blocks in zip(rows, rings, strict=True)
    ]
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    out, k, v = jax.lax.optimization_barrier((out, k, v))  # reads before writes: no copy of the rings
    new_k, new_v = with_token_axis(k), with_token_axis(v)
    written = [
        write_blocks(blocks, _rows(new_k, r), _rows(new_v, r), positions[r, None], positions[r])
        for r, blocks in zip(rows, rings, strict=True)
    ]
    return out, tuple(written)


def _rows[Tree](tree: Tree, rows: slice) -> Tree:
    taken: Tree = jax.tree.map(lambda x: x[rows], tree)
    return taken


def _attend_group(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    blocks: Blocks,
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """Returns outputs of one query per row of a group. Blocks that are empty in every row are not read.

    Rows that are not filled are masked and add exactly 0, so a result does not depend on the rest of the batch.
    """
    ends = [sum(keys.shape[1] for keys, _ in blocks[: i + 1]) for i in range(len(blocks))]
    branches = [partial(_attend_blocks, q, k, v, blocks[: i + 1], positions) for i in range(len(blocks))]
    return jax.lax.switch(jnp.sum(jnp.max(positions) > jnp.array(ends[:-1], jnp.int32)), branches)


def _attend_blocks(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    blocks: Blocks,
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """See `_attend_group`. A single row is computed twice, since XLA for CPUs would add in another order."""
    if q.shape[0] == 1:
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (q, k, v, blocks, positions))
        return _attend_blocks(*twice)[:1]
    scale = q.shape[-1] ** -0.5
    own = jnp.sum(q.astype(jnp.float32) * _widened(k)[:, None], axis=-1, keepdims=True)
    own = rounded(own * scale)
    top, scores, start = own, [], 0
    for keys, _ in blocks:
        filled = start + jnp.arange(keys.shape[1]) < positions[:, None]
        scores.append(jnp.where(filled[:, None], _scores("bnd,bwd->bnw", q, keys) * scale, MASKED))
        top = jnp.maximum(top, jnp.max(scores[-1], axis=-1, keepdims=True))
        start += keys.shape[1]
    total = jnp.exp(own - top)
    mixed = total * _widened(v)[:, None]
    mixed = jnp.where(jnp.isfinite(mixed), rounded(mixed), mixed)
    for (_, values), score in zip(blocks, scores, strict=True):
        weights = jnp.exp(score - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        mixed += _mixed("bnw,bwd->bnd", weights, values, q.dtype)
    return mixed / total


def _widened(x: Vectors) -> Float32[Array, "B d"]:
    """Returns one token per row in float32."""
    if isinstance(x, Int8Vectors):
        return x.values.astype(jnp.float32) * x.scale
    return x.astype(jnp.float32)


def _scores(subscripts: str, q: Array, keys: Vectors) -> Array:
    """Returns the products of queries and keys in float32; int8 is exact in any dtype of q, and scaled afterwards."""
    if isinstance(keys, Int8Vectors):
        product = _product(subscripts, q, keys.values.astype(q.dtype))
        return product * _for_scores(keys.scale, product)
    return _product(subscripts, q, keys)


def _mixed(subscripts: str, weights: Array, values: Vectors, dtype: jnp.dtype) -> Array:
    """Returns the sums of values times weights, rounded to the dtype of the values or, for int8, to `dtype`."""
    if isinstance(values, Int8Vectors):
        scaled = weights * _for_scores(values.scale, weights)
        return _product(subscripts, scaled.astype(dtype), values.values.astype(dtype))
    return _product(subscripts, weights.astype(values.dtype), values)


def _for_scores(scale: Float32[Array, "B 1 W"], scores: Array) -> Array:
    """Returns scales of keys with the axes of scores, `[B, …, W]`."""
    return scale.reshape(scale.shape[0], *[1] * (scores.ndim - 2), scale.shape[2])


def _product(subscripts: str, x: Array, y: Array) -> Array:
    """Returns the einsum in float32; the dtype of y, keys or values, selects the precision."""
    return jnp.einsum(subscripts, x, y, precision=product_precision(y.dtype), preferred_element_type=jnp.float32)


def prefill_attention_xla(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"] | Int8Vectors,
    v: Float[Array, "B T d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, "B T"],
    block: int,
) -> tuple[Float32[Array, "B T N d"], Rings]:
    """Returns outputs and rings of a chunk; see `prefill_attention`.

    Each block of the chunk attends to its ring and to itself, and is then written into the ring. Its result depends on
    its position in the document but not in the chunk, so a sequence split at any multiples of `block` gives the same
    bits. Documents may begin inside a row if its rings are not used afterwards.
    """
    one_by_one = (q, k, v, rings, positions)  # the scores of a single row already fill a cache

    def attend(row: tuple[Any, ...]) -> tuple[Array, tuple[Vectors, Vectors]]:
        return _prefill_row(*jax.tree.map(lambda x: x[None], row), block=block)

    attended: tuple[Array, Rings] = jax.lax.map(attend, one_by_one)
    return attended


def _prefill_row(
    q: Float[Array, "1 T N d"],
    k: Float[Array, "1 T d"] | Int8Vectors,
    v: Float[Array, "1 T d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, "1 T"],
    *,
    block: int,
) -> tuple[Float32[Array, "T N d"], tuple[Vectors, Vectors]]:
    """Returns outputs and rings of one row, without the axis of rows."""
    count = q.shape[1] // block
    starts = positions[:, 0] + block * jnp.arange(count)[:, None]

    def split(axis: int, x: Array) -> Array:
        return x.reshape(count, *x.shape[:axis], block, *x.shape[axis + 1 :])

    def step(rings: Rings, inputs: tuple[Any, ...]) -> tuple[Rings, Array]:
        q, k, v, positions, start = inputs
        out = _attend_filled(q, k, v, rings, positions, start)
        out, k, v = jax.lax.optimization_barrier((out, k, v))  # reads before writes: no copy of the rings
        return write_ring(rings, k, v, positions, start), out

    inputs = (split(1, q), map_tokens(split, k), map_tokens(split, v))
    rings, out = jax.lax.scan(step, rings, (*inputs, split(1, positions), starts))
    written: tuple[Vectors, Vectors] = jax.tree.map(lambda x: x[0], rings)
    return out.reshape(q.shape[1:]), written


def _attend_filled(
    q: Float[Array, "1 C N d"],
    k: Float[Array, "1 C d"] | Int8Vectors,
    v: Float[Array, "1 C d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, "1 C"],
    start: Int32[Array, " 1"],
) -> Float32[Array, "1 C N d"]:
    """Attends to the ring's rows up to the first block boundary at or after `start`, and to the block itself."""
    window = rings[0].shape[1]
    ends = list(accumulate(block_sizes(window, _FIRST_ROWS)))
    branches = [partial(_attend_block, q, k, v, rings, positions, start, end) for end in ends]
    return jax.lax.switch(jnp.sum(start[0] > jnp.array(ends[:-1], jnp.int32)), branches)


def _attend_block(
    q: Float[Array, "B C N d"],
    k: Float[Array, "B C d"] | Int8Vectors,
    v: Float[Array, "B C d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, "B C"],
    start: Int32[Array, " B"],
    end: int,
) -> Float32[Array, "B C N d"]:
    """Attends to the first `end` rows of the rings and to the block itself."""
    keys, values = (
        concatenate_rings(slice_ring(ring, 0, end), _as_ring(new, ring)) for ring, new in ((rings[0], k), (rings[1], v))
    )
    scores = _scores("bcnd,bwd->bcnw", q, keys) * q.shape[-1] ** -0.5
    visible = _visible(positions, start, rings[0].shape[1], end)
    scores = jnp.where(visible[:, :, None], scores, MASKED)
    weights = jnp.exp(scores - max_last(scores))
    return _mixed("bcnw,bwd->bcnd", weights, values, q.dtype) / sum_last(weights)


def _as_ring(x: Vectors, ring: Vectors) -> Vectors:
    """Returns vectors in the ring's dtype; those in int8 are so already."""
    return x if isinstance(x, Int8Vectors) else x.astype(ring.dtype)


def _visible(
    positions: Int32[Array, "B C"], start: Int32[Array, " B"], window: int, end: int
) -> Bool[Array, "B C end_plus_C"]:
    """Returns which keys each query sees: those at most W positions back and in its document.

    The keys are the first `end` rows of the ring, then the block itself.
    """
    steps = positions.shape[1]
    ring_age = 1 + (start[:, None] - 1 - jnp.arange(end)) % window  # distance of a ring row from the block's start
    offsets = jnp.concatenate([-ring_age, jnp.broadcast_to(jnp.arange(steps), (start.shape[0], steps))], axis=1)
    distance = jnp.arange(steps)[None, :, None] - offsets[:, None, :]
    return (distance >= 0) & (distance <= jnp.minimum(window, positions)[..., None])

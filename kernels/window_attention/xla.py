"""Window attention as matrix products, for every backend."""

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ..arithmetic import max_last, product_precision, rounded, sum_last
from .pallas import MASKED
from .ring import (
    Int8Vectors,
    Rings,
    Vectors,
    concatenate_rings,
    filled_ends,
    map_tokens,
    slice_ring,
    with_token_axis,
    write_ring,
)

_FIRST_ROWS: Final = 256
"""Ring rows that a block of a prompt attends to at first, and half of those of a decode step; doubled as more of the
ring is filled."""


def decode_attention_xla(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], Rings]:
    """Returns outputs of one query per row, and the rings with the new keys; see `decode_attention`."""
    own: Rings = jax.tree.map(lambda x: x[: q.shape[0]], rings)
    return _with_new_keys(_attend(q, k, v, own, positions), k, v, rings, positions)


def decode_attention_by_row(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], Rings]:
    """Returns the same as `decode_attention_xla`, computed row by row, each of which reads the filled part of its ring.

    That is faster on CPUs. A row's bits do not depend on the others, whatever their number is. Idle rows are zeros.
    """
    ends = filled_ends(rings[0].shape[1], 2 * _FIRST_ROWS)

    def attend(row: Array) -> Float32[Array, "N d"]:
        own_q, own_k, own_v, position = jax.tree.map(lambda x: x[row][None], (q, k, v, positions))

        def attend_filled(end: int) -> Float32[Array, "1 N d"]:
            def filled(axis: int, ring: Array) -> Array:
                sizes = (1, *ring.shape[1:axis], end, *ring.shape[axis + 1 :])
                return jax.lax.dynamic_slice(ring, [row, *[0] * (ring.ndim - 1)], sizes)

            return _attend(own_q, own_k, own_v, (map_tokens(filled, rings[0]), map_tokens(filled, rings[1])), position)

        nothing = partial(jnp.zeros, (1, *q.shape[1:]), jnp.float32)
        branches = [nothing, *(partial(attend_filled, end) for end in ends)]
        return jax.lax.switch(jnp.sum(position[0] > jnp.array([-1, *ends[:-1]], jnp.int32)), branches)[0]

    return _with_new_keys(jax.lax.map(attend, jnp.arange(q.shape[0])), k, v, rings, positions)


def _with_new_keys(
    out: Float32[Array, "B N d"], k: Vectors, v: Vectors, rings: Rings, positions: Int32[Array, " B"]
) -> tuple[Float32[Array, "B N d"], Rings]:
    out, k, v = jax.lax.optimization_barrier((out, k, v))  # reads before writes: no copy of the rings
    return out, write_ring(rings, with_token_axis(k), with_token_axis(v), positions[:, None], positions)


def _attend(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """Returns outputs of one query per row.

    Rows of a ring that are not filled are masked and add exactly 0.
    """
    keys, values = rings
    scale = q.shape[-1] ** -0.5
    own = jnp.sum(q.astype(jnp.float32) * _widened(k)[:, None], axis=-1, keepdims=True)
    own = rounded(own * scale)
    filled = jnp.arange(keys.shape[1]) < positions[:, None]
    scores = jnp.where(filled[:, None], _scores("bnd,bwd->bnw", q, keys) * scale, MASKED)
    top = jnp.maximum(own, jnp.max(scores, axis=-1, keepdims=True))
    own_weight = jnp.exp(own - top)
    mixed = own_weight * _widened(v)[:, None]
    mixed = jnp.where(jnp.isfinite(mixed), rounded(mixed), mixed)
    weights = jnp.exp(scores - top)
    total = own_weight + jnp.sum(weights, axis=-1, keepdims=True)
    return (mixed + _mixed("bnw,bwd->bnd", weights, values, q.dtype)) / total


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

    return jax.lax.map(attend, one_by_one)


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
        nothing = partial(jnp.zeros, q.shape, jnp.float32)  # for a block of padding alone
        attend = partial(_attend_filled, q, k, v, rings, positions, start)
        out = jax.lax.cond(positions[0, 0] < 0, nothing, attend)
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
    ends = filled_ends(window, _FIRST_ROWS)
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

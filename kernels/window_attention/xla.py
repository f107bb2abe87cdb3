"""Window attention as plain matrix products, for every backend."""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

type Rings = tuple[Float[Array, "B W d"], Float[Array, "B W d"]]

_MASKED: Final = -2.3819763e38
"""Finite, so that a query that sees nothing (padding) gives numbers and not NaN."""


def decode_attention(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    rings: tuple[Float[Array, "B W d"], Float[Array, "B W d"]],
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], tuple[Float[Array, "B W d"], Float[Array, "B W d"]]]:
    """One query per row against its ring and its own key, then the key is written into the ring.

    Args:
      q, k, v: of the new token, after RoPE.
      rings: keys and values of the W tokens before it.
      positions: of the new token; negative rows are idle: nothing is written there.

    Returns:
      The heads' outputs, and the rings.
    """
    ring_k, ring_v = rings
    window = ring_k.shape[1]
    scale = q.shape[-1] ** -0.5
    filled = jnp.arange(window) < positions[:, None]
    scores = jnp.einsum("bnd,bwd->bnw", q, ring_k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(filled[:, None], scores, _MASKED)
    own = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32)[:, None], axis=-1, keepdims=True) * scale
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), own)
    weights, own_weight = jnp.exp(scores - top), jnp.exp(own - top)
    mixed = jnp.einsum("bnw,bwd->bnd", weights.astype(v.dtype), ring_v, preferred_element_type=jnp.float32)
    total = jnp.sum(weights, axis=-1, keepdims=True) + own_weight
    out = (mixed + own_weight * v.astype(jnp.float32)[:, None]) / total
    row, slot = jnp.arange(q.shape[0]), jnp.where(positions >= 0, positions % window, window)
    return out, (_put(ring_k, row, slot, k), _put(ring_v, row, slot, v))


def prefill_attention(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    rings: tuple[Float[Array, "B W d"], Float[Array, "B W d"]],
    positions: Int32[Array, "B T"],
    block: int,
) -> tuple[Float32[Array, "B T N d"], tuple[Float[Array, "B W d"], Float[Array, "B W d"]]]:
    """A chunk of queries per row, in blocks: each block attends to its ring and itself, then is written.

    The result of a block does not depend on where in the chunk it stands, so every cut of a sequence at multiples
    of `block` gives the same bits. Documents may begin inside a row if its rings are not carried on.

    Args:
      q, k, v: of the chunk, after RoPE.
      rings: keys and values of the W tokens before it.
      positions: see `roost.kernels`.
      block: queries per block; T is a multiple of it.
    """
    rows, steps, heads, size = q.shape
    count = steps // block
    starts = positions[:, :1] + block * jnp.arange(count)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(rows, count, block, *x.shape[2:]), 1, 0)

    def step(rings: Rings, inputs: tuple[Array, ...]) -> tuple[Rings, Array]:
        q, k, v, positions, start = inputs
        out = _attend_block(q, k, v, rings, positions, start)
        return _write_block(k, v, rings, positions, start), out

    inputs = (split(q), split(k), split(v), split(positions), starts.T)
    rings, out = jax.lax.scan(step, rings, inputs)
    return jnp.moveaxis(out, 0, 1).reshape(rows, steps, heads, size), rings


def _attend_block(
    q: Float[Array, "B C N d"],
    k: Float[Array, "B C d"],
    v: Float[Array, "B C d"],
    rings: tuple[Float[Array, "B W d"], Float[Array, "B W d"]],
    positions: Int32[Array, "B C"],
    start: Int32[Array, " B"],
) -> Float32[Array, "B C N d"]:
    keys = jnp.concatenate([rings[0], k.astype(rings[0].dtype)], axis=1)
    values = jnp.concatenate([rings[1], v.astype(rings[1].dtype)], axis=1)
    scores = jnp.einsum("bcnd,bwd->bcnw", q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = _visible(positions, start, rings[0].shape[1])
    scores = jnp.where(visible[:, :, None], scores, _MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out = jnp.einsum("bcnw,bwd->bcnd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out / jnp.sum(weights, axis=-1, keepdims=True)


def _visible(positions: Int32[Array, "B C"], start: Int32[Array, " B"], window: int) -> Bool[Array, "B C W_plus_C"]:
    """Which keys (ring, then block) each query sees: those at most W back, and not before its document's start."""
    steps = positions.shape[1]
    ring_age = 1 + (start[:, None] - 1 - jnp.arange(window)) % window  # steps from a ring row to the block's start
    offsets = jnp.concatenate([-ring_age, jnp.broadcast_to(jnp.arange(steps), (start.shape[0], steps))], axis=1)
    distance = jnp.arange(steps)[None, :, None] - offsets[:, None, :]
    return (distance >= 0) & (distance <= jnp.minimum(window, positions)[..., None])


def _write_block(
    k: Float[Array, "B C d"],
    v: Float[Array, "B C d"],
    rings: tuple[Float[Array, "B W d"], Float[Array, "B W d"]],
    positions: Int32[Array, "B C"],
    start: Int32[Array, " B"],
) -> tuple[Float[Array, "B W d"], Float[Array, "B W d"]]:
    window, step = rings[0].shape[1], jnp.arange(k.shape[1])
    valid = positions >= 0
    kept = valid & (step >= jnp.sum(valid, axis=1, keepdims=True) - window)  # of two for one row, the later
    slot = jnp.where(kept, (start[:, None] + step) % window, window)
    row = jnp.arange(k.shape[0])[:, None]
    return _put(rings[0], row, slot, k), _put(rings[1], row, slot, v)


def _put(ring: Float[Array, "B W d"], row: Array, slot: Array, new: Array) -> Float[Array, "B W d"]:
    """Writes into the ring; a slot past its end is dropped."""
    return ring.at[row, slot].set(new.astype(ring.dtype), mode="drop")

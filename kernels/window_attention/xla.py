"""Window attention as plain matrix products, for every backend."""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from .ring import Rings, write_ring

_MASKED: Final = -2.3819763e38
"""Finite, so that a query that sees nothing (padding) gives numbers and not NaN."""


def decode_attention_xla(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    ring_k: Float[Array, "B W d"],
    ring_v: Float[Array, "B W d"],
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """See `decode_attention`; the whole ring is read and what is not filled is masked."""
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
    return (mixed + own_weight * v.astype(jnp.float32)[:, None]) / total


def prefill_attention_xla(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    rings: Rings,
    positions: Int32[Array, "B T"],
    block: int,
) -> tuple[Float32[Array, "B T N d"], Rings]:
    """See `prefill_attention`. Each block attends to its ring and to itself, and is then written into the ring.

    The result of a block does not depend on where in the chunk it stands, so every cut of a sequence at multiples
    of `block` gives the same bits. Documents may begin inside a row if its rings are not carried on.
    """
    rows, steps, heads, size = q.shape
    count = steps // block
    starts = positions[:, :1] + block * jnp.arange(count)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(rows, count, block, *x.shape[2:]), 1, 0)

    def step(rings: Rings, inputs: tuple[Array, ...]) -> tuple[Rings, Array]:
        q, k, v, positions, start = inputs
        out = _attend_block(q, k, v, rings, positions, start)
        return write_ring(rings, k, v, positions, start), out

    inputs = (split(q), split(k), split(v), split(positions), starts.T)
    rings, out = jax.lax.scan(step, rings, inputs)
    return jnp.moveaxis(out, 0, 1).reshape(rows, steps, heads, size), rings


def _attend_block(
    q: Float[Array, "B C N d"],
    k: Float[Array, "B C d"],
    v: Float[Array, "B C d"],
    rings: Rings,
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

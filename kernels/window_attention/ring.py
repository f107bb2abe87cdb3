"""Keys and values of the last W tokens: position p lies in row p mod W."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

Rings = tuple[Float[Array, "B W d"], Float[Array, "B W d"]]


def write_ring(
    rings: Rings,
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    positions: Int32[Array, "B T"],
    start: Int32[Array, " B"],
) -> Rings:
    """Writes a chunk's keys and values; padding is dropped, and of two tokens for one row the later one stays.

    Args:
      rings, k, v, positions: see `prefill_attention`.
      start: the position of the chunk's first token.
    """
    window, step = rings[0].shape[1], jnp.arange(k.shape[1])
    valid = positions >= 0
    kept = valid & (step >= jnp.sum(valid, axis=1, keepdims=True) - window)
    slot = jnp.where(kept, (start[:, None] + step) % window, window)
    row = jnp.arange(k.shape[0])[:, None]

    def write(ring: Float[Array, "B W d"], new: Float[Array, "B T d"]) -> Float[Array, "B W d"]:
        return ring.at[row, slot].set(new.astype(ring.dtype), mode="drop")

    return write(rings[0], k), write(rings[1], v)

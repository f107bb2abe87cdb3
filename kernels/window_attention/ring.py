"""Rings of keys and values of the last W tokens: position p is in row p mod W."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

Rings = tuple[Float[Array, "P W d"], Float[Array, "P W d"]]
"""Keys and values of whole rings; a decode step takes P ≥ B rings, of which the first B belong to its rows."""

Blocks = tuple[tuple[Float[Array, "_ _ d"], Float[Array, "_ _ d"]], ...]
"""Keys and values of rings split along W, so that blocks not filled yet need not be read."""


def block_sizes(length: int, first: int) -> tuple[int, ...]:
    """Returns block sizes for `length` rows of a ring or a pool: the first block, then blocks that double the total."""
    ends = [min(first, length)]
    while ends[-1] < length:
        ends.append(min(2 * ends[-1], length))
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def split_ring(rings: Rings, sizes: Sequence[int]) -> Blocks:
    """Splits rings into blocks of these numbers of rows."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    keys, values = ([x[:, at : at + size] for at, size in zip(starts, sizes, strict=True)] for x in rings)
    return tuple(zip(keys, values, strict=True))


def join_ring(blocks: Blocks) -> Rings:
    """Joins the blocks of rings split by `split_ring`."""
    if len(blocks) == 1:
        return blocks[0]
    return jnp.concatenate([k for k, _ in blocks], axis=1), jnp.concatenate([v for _, v in blocks], axis=1)


def first_rings(blocks: Blocks, count: int) -> Blocks:
    """Returns the first rings of a group."""
    return tuple((keys[:count], values[:count]) for keys, values in blocks)


def write_ring(
    rings: Rings,
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    positions: Int32[Array, "B T"],
    start: Int32[Array, " B"],
) -> Rings:
    """Writes a chunk's keys and values into whole rings, without padding and without what later tokens overwrite.

    Args:
      rings: Rings before the chunk, of the chunk's rows and maybe of others behind them.
      k: Keys of the chunk, after RoPE.
      v: Values of the chunk.
      positions: Positions of the tokens; see `prefill_attention`.
      start: Position of the chunk's first token.
    """
    (written,) = write_blocks((rings,), k, v, positions, start)
    return written


def write_blocks(
    blocks: Blocks,
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    positions: Int32[Array, "B T"],
    start: Int32[Array, " B"],
) -> Blocks:
    """Writes a chunk's keys and values into rings split into blocks; see `write_ring`."""
    window, step = sum(keys.shape[1] for keys, _ in blocks), jnp.arange(k.shape[1])
    valid = positions >= 0
    kept = valid & (step >= jnp.sum(valid, axis=1, keepdims=True) - window)
    slot = jnp.where(kept, (start[:, None] + step) % window, window)
    row = jnp.arange(k.shape[0])[:, None]

    def write(ring: Float[Array, "P W d"], new: Float[Array, "B T d"], at: int) -> Float[Array, "P W d"]:
        local = jnp.where(slot >= at, slot - at, window)  # a negative index would count from the end of the array
        return ring.at[row, local].set(new.astype(ring.dtype), mode="drop")

    starts = [sum(keys.shape[1] for keys, _ in blocks[:i]) for i in range(len(blocks))]
    return tuple((write(keys, k, at), write(values, v, at)) for (keys, values), at in zip(blocks, starts, strict=True))


def in_order(
    ring: Float[Array, "B W d"], new: Float[Array, "B T d"], start: Int32[Array, " B"], multiple: int
) -> Float[Array, "B W_plus_T d"]:
    """Returns the ring's W rows in order of position, then the new ones, then zeros up to a multiple of `multiple`."""
    oldest_first = jax.vmap(lambda rows, s: jnp.roll(rows, -s, axis=0))(ring, start % ring.shape[1])
    return pad_rows(jnp.concatenate([oldest_first, new.astype(ring.dtype)], axis=1), multiple)


def round_up(n: int, multiple: int) -> int:
    """Returns the least multiple of `multiple` that is at least n."""
    return n + -n % multiple


def pad_rows(x: Array, multiple: int) -> Array:
    """Pads the second axis with zeros up to a multiple of `multiple`."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple), *[(0, 0)] * (x.ndim - 2)])

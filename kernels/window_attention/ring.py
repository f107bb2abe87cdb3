"""Rings of keys and values of the last W tokens: position p is in row p mod W.

With G > 1 key heads, arrays have an axis of G after that of the rows: rings are `[P, G, W, d]`. Kernels compute each
key head as separate rows, `[P * G, W, d]`, with the query heads that share it.

In int8, each token and head has a float32 scale. A vector is quantised once, before any query attends to it, and
queries attend to value * scale. Results therefore don't depend on whether a key is read from the ring, from its own
chunk or as a token's own.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, Int32, Shaped

from ..arithmetic import round_to_int8

SCALE_BYTES: Final = 4
"""Bytes of a packed vector's scale."""


class Int8Vectors(NamedTuple):
    """Keys or values of tokens in int8, with their scales. A single key head has an axis in the scales only.

    Attributes:
      values: Vectors: `[B, d]` for one token per row, `[B, T, d]` for several. G > 1 key heads are an axis after B.
      scale: Factors of the vectors: `[B, 1]` or `[B, 1, T]`, likewise. Tokens are the last axis, as they are in scores.
    """

    values: Int8[Array, "*rows d"]
    scale: Float32[Array, "*heads T"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the vectors' elements."""
        return self.values.dtype


type Vectors = Float[Array, "..."] | Int8Vectors
"""Keys or values of tokens, in a floating-point dtype or in int8."""


def quantize(x: Float[Array, "*rows d"]) -> Int8Vectors:
    """Quantises vectors `[B, d]` or `[B, T, d]` of one key head; see `round_to_int8`."""
    values, scale = round_to_int8(x)
    return Int8Vectors(values, scale if x.ndim == 2 else jnp.swapaxes(scale, 1, 2))


def pack(x: Vectors) -> Array:
    """Returns vectors of several tokens as one array; int8 vectors have the bytes of their scale behind them.

    Returns:
      Array `[B, T, ...]`; with G > 1 key heads, `[B, T, G, ...]`.
    """
    packed = x if not isinstance(x, Int8Vectors) else _with_scale_bytes(x)
    return packed if packed.ndim == 3 else jnp.swapaxes(packed, 1, 2)


def _with_scale_bytes(x: Int8Vectors) -> Int8[Array, "*rows T d_plus_4"]:
    scale = jax.lax.bitcast_convert_type(x.scale[..., 0, :], jnp.int8)
    return jnp.concatenate([x.values, scale], axis=-1)


def unpack(packed: Array) -> Vectors:
    """Returns the vectors of an array from `pack`."""
    vectors = packed if packed.ndim == 3 else jnp.swapaxes(packed, 1, 2)
    if vectors.dtype != jnp.int8:
        return vectors
    values, scale = vectors[..., :-SCALE_BYTES], vectors[..., -SCALE_BYTES:]
    return Int8Vectors(values, jax.lax.bitcast_convert_type(scale, jnp.float32)[..., None, :])


def with_token_axis(x: Vectors) -> Vectors:
    """Returns one token per row, `[B, d]`, as a chunk of one token, `[B, 1, d]`."""
    return Int8Vectors(x.values[:, None], x.scale[..., None]) if isinstance(x, Int8Vectors) else x[:, None]


def map_tokens(function: Callable[..., Any], first: Vectors, *others: Vectors) -> Any:
    """Applies `function(axis, *arrays)` to the vectors and, if they are in int8, to the scales.

    Args:
      function: Takes the axis of the tokens, then arrays.
      first, others: Vectors of several tokens, all of one kind.
    """
    axis = len(first.shape) - 2
    if not isinstance(first, Int8Vectors):
        return function(axis, first, *others)
    rest = [other for other in others if isinstance(other, Int8Vectors)]
    assert len(rest) == len(others)
    values = function(axis, first.values, *(other.values for other in rest))
    return Int8Vectors(values, function(axis + 1, first.scale, *(other.scale for other in rest)))


Rings = tuple[Float[Array, "P *G W d"] | Int8Vectors, Float[Array, "P *G W d"] | Int8Vectors]
"""Keys and values of whole rings; a decode step takes P ≥ B rings, of which the first B belong to its rows.

Only outside kernels, rings of several key heads have an axis of them."""


def zero_ring(rows: int, size: int, head_dim: int, dtype: jnp.dtype, heads: int = 1) -> Vectors:
    """Returns empty keys or values of rings, with scales if `dtype` is int8.

    Args:
      rows: Number of rings of each key head.
      size: Rows of a ring.
      head_dim: Size of a head.
      dtype: Dtype of the rings.
      heads: Number of key heads, which have an axis if there are several.
    """
    rings = (rows,) if heads == 1 else (rows, heads)
    zeros = jnp.zeros((*rings, size, head_dim), dtype)
    return Int8Vectors(zeros, jnp.zeros((*rings, 1, size), jnp.float32)) if dtype == jnp.int8 else zeros


def filled_ends(window: int, first: int) -> tuple[int, ...]:
    """Returns numbers of ring rows that are read as more of a ring is filled: the first, then doubled."""
    ends = [min(first, window)]
    while ends[-1] < window:
        ends.append(min(2 * ends[-1], window))
    return tuple(ends)


def slice_ring(ring: Vectors, start: int, stop: int) -> Vectors:
    """Returns the rows of a ring from `start` to `stop`."""
    return map_tokens(lambda axis, x: jax.lax.slice_in_dim(x, start, stop, axis=axis), ring)


def concatenate_rings(first: Vectors, *others: Vectors) -> Vectors:
    """Returns rings of the same rows one behind the other."""
    return map_tokens(lambda axis, *parts: jnp.concatenate(parts, axis=axis), first, *others)


def write_ring(
    rings: Rings,
    k: Float[Array, "B T d"] | Int8Vectors,
    v: Float[Array, "B T d"] | Int8Vectors,
    positions: Int32[Array, "B T"],
    start: Int32[Array, " B"],
) -> Rings:
    """Writes a chunk's keys and values into rings, without padding and without what later tokens overwrite.

    Args:
      rings: Rings before the chunk, of the chunk's rows and maybe of others behind them.
      k: Keys of the chunk, after RoPE.
      v: Values of the chunk.
      positions: Positions of the tokens; see `prefill_attention`.
      start: Position of the chunk's first token.
    """
    window, step = rings[0].shape[1], jnp.arange(k.shape[1])
    valid = positions >= 0
    kept = valid & (step >= jnp.sum(valid, axis=1, keepdims=True) - window)
    slot = jnp.where(kept, (start[:, None] + step) % window, window)
    row = jnp.arange(k.shape[0])[:, None]

    def put(axis: int, ring: Array, new: Array) -> Array:
        if axis == 1:
            return ring.at[row, slot].set(new.astype(ring.dtype), mode="drop")
        return ring.at[row, 0, slot].set(new[:, 0], mode="drop")

    return map_tokens(put, rings[0], k), map_tokens(put, rings[1], v)


def read_ring(rings: Rings, positions: Int32[Array, " B"]) -> tuple[Vectors, Vectors]:
    """Returns what rings hold for one position of each row: keys and values as `write_ring` takes them.

    Args:
      rings: Rings of the rows and maybe of others behind them.
    """
    slot, row = positions[:, None] % rings[0].shape[1], jnp.arange(positions.shape[0])[:, None]

    def read(axis: int, ring: Array) -> Array:
        return ring[row, slot] if axis == 1 else ring[row, 0, slot][:, None]

    return map_tokens(read, rings[0]), map_tokens(read, rings[1])


def put_tokens(vectors: Vectors, new: Vectors, at: Int32[Array, ""]) -> Vectors:
    """Returns vectors of several tokens with those from index `at` on replaced."""

    def put(axis: int, vectors: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(vectors, new, at, axis)

    return map_tokens(put, vectors, new)


def in_order(ring: Vectors, new: Vectors, start: Int32[Array, " B"], multiple: int) -> Any:
    """Returns the ring's W rows in order of position, then the new ones, then zeros up to a multiple of `multiple`."""

    def order(axis: int, ring: Array, new: Array) -> Array:
        oldest_first = jax.vmap(lambda rows, s: jnp.roll(rows, -s, axis=axis - 1))(ring, start % ring.shape[axis])
        return pad_rows(jnp.concatenate([oldest_first, new.astype(ring.dtype)], axis=axis), multiple, axis)

    return map_tokens(order, ring, new)


def round_up(n: int, multiple: int) -> int:
    """Returns the least multiple of `multiple` that is at least n."""
    return n + -n % multiple


def pad_rows(x: Array, multiple: int, axis: int = 1) -> Array:
    """Pads an axis with zeros up to a multiple of `multiple`."""
    return jnp.pad(x, [(0, -size % multiple if place == axis else 0) for place, size in enumerate(x.shape)])


def num_key_heads(ring: Vectors) -> int:
    """Returns the number of key heads of rings `[P, W, d]` or `[P, G, W, d]`."""
    return ring.shape[1] if len(ring.shape) == 4 else 1


def heads_as_rows[Tree](tree: Tree, heads: int) -> Tree:
    """Merges the axes of rows and of key heads in all arrays."""
    if heads == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * heads, *x.shape[2:]), tree)


def rows_as_heads[Tree](tree: Tree, heads: int) -> Tree:
    """Splits the rows of all arrays into rows and key heads, the inverse of `heads_as_rows`."""
    if heads == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // heads, heads, *x.shape[1:]), tree)


def for_each_head(positions: Shaped[Array, "B ..."], heads: int) -> Shaped[Array, "BG ..."]:
    """Returns positions repeated for each key head of a row."""
    return positions if heads == 1 else jnp.repeat(positions, heads, axis=0)


def queries_by_key_head(q: Float[Array, "B ... d"], heads: int) -> Float[Array, "BG ... d"]:
    """Returns queries `[B, N, d]` or `[B, T, N, d]` as rows of the N / G heads that share a key head."""
    if heads == 1:
        return q
    grouped = q.reshape(*q.shape[:-2], heads, q.shape[-2] // heads, q.shape[-1])
    return heads_as_rows(jnp.moveaxis(grouped, -3, 1), heads)


def outputs_of_rows(mixed: Float[Array, "BG ... d"], heads: int) -> Float[Array, "B ... d"]:
    """Returns the outputs of all query heads of each row, the inverse of `queries_by_key_head`."""
    if heads == 1:
        return mixed
    grouped = jnp.moveaxis(rows_as_heads(mixed, heads), 1, -3)
    return grouped.reshape(*grouped.shape[:-3], heads * grouped.shape[-2], grouped.shape[-1])

"""Keys and values in int8: a float32 scale for each token and head.

A vector is quantised once, before any query attends to it, and queries attend to value * scale. Results therefore don't
depend on whether a key is read from the ring, from its own chunk or as a token's own.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

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
        shape: tuple[int, ...] = self.values.shape
        return shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the vectors' elements."""
        kind: jnp.dtype = self.values.dtype
        return kind


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

"""Argmax of logits for TPUs: the matrix streams through on-chip memory, and no logit leaves it."""

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..matrices import Int8Matrix, Matrix
from ..precision import float_dot
from ..product import fills_registers
from ..product.int8_pallas_tpu import (
    block_of_rows,
    compiler_params,
    in_main_memory,
    quantize_rows,
    quantized_block,
    scaled_dot,
)
from .xla import soft_cap

_LANES: Final = 128
"""Lanes of a vector register."""

_TILE: Final = 512
"""Maximum number of tokens whose logits are computed at a time."""


def takes(x: Array, weight: Matrix, cap: float | None) -> bool:
    """Returns whether `argmax_tpu` supports the matrix: in floats or int8, with sides of whole registers."""
    return isinstance(weight, Array | Int8Matrix) and fills_registers(weight.shape)


def argmax_tpu(
    x: Float[Array, "R D"], weight: Array | Int8Matrix, cap: float | None, *, interpret: Any = False
) -> Int32[Array, " R"]:
    """Returns the token with the largest logit of each row; see `argmax`.

    The grid walks over blocks of rows and, within one, over tiles of the matrix. Each lane keeps the largest of its
    logits and where it was; the lanes are compared at the end.

    Args:
      x: Activations.
      weight: Matrix with a row for each token.
      cap: Soft cap, which may make different logits equal; None without one.
      interpret: See `pallas_call`.
    """
    is_int8 = isinstance(weight, Int8Matrix)
    values = weight.values if isinstance(weight, Int8Matrix) else weight
    scale = weight.scale[None] if isinstance(weight, Int8Matrix) else jnp.ones((1, len(values)), jnp.float32)
    (rows, width), tokens = x.shape, len(values)
    tile = min(_TILE, tokens)
    row_bytes, fixed_bytes = width * (2 * x.dtype.itemsize + is_int8) + 8 * tile, 2 * tile * width * values.itemsize
    block = block_of_rows(rows, row_bytes, fixed_bytes)
    blocks, tiles = pl.cdiv(rows, block), pl.cdiv(tokens, tile)
    lanes = pltpu.VMEM((block, _LANES), jnp.float32), pltpu.VMEM((block, _LANES), jnp.int32)
    out: Array = pl.pallas_call(
        partial(_kernel, tokens, cap),
        out_shape=jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        grid=(blocks, tiles),
        in_specs=[
            pl.BlockSpec((block, width), lambda r, t: (r, 0)),
            pl.BlockSpec((tile, width), lambda r, t: (t, 0)),
            pl.BlockSpec((1, tile), lambda r, t: (0, t)),
        ],
        out_specs=pl.BlockSpec((block, 1), lambda r, t: (r, 0)),
        scratch_shapes=[*lanes, *(quantized_block(block, width) if is_int8 else ())],
        compiler_params=compiler_params(block * row_bytes + fixed_bytes),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * width * tokens,
            bytes_accessed=blocks * (values.nbytes + scale.nbytes) + x.nbytes + 4 * rows,
            transcendentals=rows * tokens * (cap is not None),
        ),
        interpret=interpret,
        name="argmax",
    )(x, in_main_memory(values, interpret), scale)
    return out[:, 0]


def _kernel(
    tokens: int, cap: float | None, x: Any, weight: Any, scale: Any, out: Any, best: Any, place: Any, *quantized: Any
) -> None:
    tile = pl.program_id(1)

    @pl.when(tile == 0)
    def start() -> None:
        best[...], place[...] = jnp.full_like(best, -jnp.inf), jnp.zeros_like(place)
        if quantized:
            quantize_rows(x, *quantized)

    logits = scaled_dot(quantized[0], weight, quantized[1], scale) if quantized else float_dot(x[...], weight[...])
    capped, first, count = soft_cap(logits, cap), tile * weight.shape[0], weight.shape[0]
    if tokens % count:  # the last tile ends beyond the matrix
        is_token = first + jax.lax.broadcasted_iota(jnp.int32, capped.shape, 1) < tokens
        capped = jnp.where(is_token, capped, -jnp.inf)
    largest, where = best[...], place[...]
    for start_of in range(0, count, _LANES):
        some = capped[:, start_of : start_of + _LANES]
        is_larger = some > largest
        largest, where = jnp.where(is_larger, some, largest), jnp.where(is_larger, first + start_of, where)
    best[...], place[...] = largest, where

    @pl.when(tile == pl.num_programs(1) - 1)
    def finish() -> None:
        ids = place[...] + jax.lax.broadcasted_iota(jnp.int32, place.shape, 1)
        is_best = best[...] == jnp.max(best[...], axis=1, keepdims=True)
        out[...] = jnp.min(jnp.where(is_best, ids, tokens - 1), axis=1, keepdims=True)

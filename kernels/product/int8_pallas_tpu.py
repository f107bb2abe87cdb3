"""Products of int8 matrices with activations that are quantised on the chip, for TPUs."""

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int8

from ..int8_rounding import FLOOR, LARGEST, STEP
from ..matrices import Int8Matrix

_LANES: Final = 128
"""Lanes of a vector register."""

_PIECE: Final = 512
"""Maximum number of columns that are quantised at a time."""

_TILE: Final = 512
"""Maximum number of rows of a tile of the matrix."""

_BUDGET: Final = 72 * 2**20
"""Bytes of on-chip memory, of 128 MiB, that a block of rows takes at most with its results."""

_SIZE_BITS: Final = 0x7FFFFFFF
"""Bits of a float32 without its sign."""

_FLOOR_BITS: Final = int(np.float32(FLOOR).view(np.int32))

_RESERVE: Final = 16 * 2**20
"""Bytes of on-chip memory that a kernel may take in addition to its blocks, for results on their way to them."""


def int8_product_tpu(
    x: Float[Array, "R I"],
    weight: Int8Matrix,
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
    *,
    interpret: Any = False,
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias, with each row of x quantised to int8.

    The grid walks over blocks of rows and, within one, over tiles of the matrix; the next tile is loaded while one is
    multiplied. A block of rows is quantised once. Sums are exact in int32, so the quantised rows and the result are
    XLA's.

    Args:
      x: Activations.
      weight: The matrix.
      bias: Bias of each output, or None.
      dtype: Dtype of the result.
      interpret: See `pallas_call`.
    """
    (rows, width), (values, scale) = x.shape, weight
    outputs, tile = len(values), min(_TILE, len(values))
    out_bytes = jnp.dtype(dtype).itemsize
    row_bytes, fixed_bytes = width * (2 * x.dtype.itemsize + 1) + 2 * tile * out_bytes, 2 * tile * width
    block = block_of_rows(rows, row_bytes, fixed_bytes)
    blocks, column = pl.cdiv(rows, block), pl.BlockSpec((1, tile), lambda r, o: (0, o))
    out: Array = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        grid=(blocks, pl.cdiv(outputs, tile)),
        in_specs=[
            pl.BlockSpec((block, width), lambda r, o: (r, 0)),
            pl.BlockSpec((tile, width), lambda r, o: (o, 0)),
            column,
            column,
        ],
        out_specs=pl.BlockSpec((block, tile), lambda r, o: (r, o)),
        scratch_shapes=quantized_block(block, width),
        compiler_params=compiler_params(block * row_bytes + fixed_bytes),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * width * outputs,
            bytes_accessed=blocks * (values.size + 8 * outputs)
            + rows * (width * x.dtype.itemsize + outputs * out_bytes),
            transcendentals=0,
        ),
        interpret=interpret,
        name="int8_product",
    )(x, in_main_memory(values, interpret), scale[None], (jnp.zeros_like(scale) if bias is None else bias)[None])
    return out


def block_of_rows(rows: int, row_bytes: int, fixed_bytes: int) -> int:
    """Returns the number of rows per block: of as few blocks as fit on the chip, of equal size.

    Args:
      rows: Number of all rows.
      row_bytes: Bytes of on-chip memory that a row takes.
      fixed_bytes: Bytes that all blocks take.
    """
    blocks = pl.cdiv(rows * row_bytes, max(_BUDGET - fixed_bytes, row_bytes))
    return rows if blocks == 1 else pl.cdiv(pl.cdiv(rows, blocks), 32) * 32  # 32 rows of int8 fill registers


def quantized_block(rows: int, width: int) -> list[Any]:
    """Returns scratch memory for a block of quantised rows, their scales and, lane by lane, their absolute maxima.

    The maxima are those of the bits without a sign, as integers. So a NaN is the largest, whatever a chip's maximum of
    a NaN and a number is.
    """
    lanes = math.gcd(width, _LANES)
    return [
        pltpu.VMEM((rows, width), jnp.int8),
        pltpu.VMEM((rows, 1), jnp.float32),
        pltpu.VMEM((rows, lanes), jnp.int32),
    ]


def in_main_memory(weight: Array, interpret: Any) -> Array:
    """Returns a matrix that XLA does not copy to on-chip memory ahead of the kernel, which streams it anyway."""
    return weight if interpret else pltpu.with_memory_space_constraint(weight, pltpu.HBM)


def compiler_params(block_bytes: int) -> pltpu.CompilerParams:
    """Returns the options of a kernel whose grid is blocks of rows, by tiles, with blocks of this many bytes."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=block_bytes + block_bytes // 8 + _RESERVE
    )


def _kernel(x: Any, weight: Any, scale: Any, bias: Any, out: Any, quantized: Any, row_scale: Any, largest: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        quantize_rows(x, quantized, row_scale, largest)

    out[...] = (scaled_dot(quantized, weight, row_scale, scale) + bias[...]).astype(out.dtype)


def quantize_rows(x: Any, quantized: Any, row_scale: Any, largest: Any) -> None:
    """Quantises a block of rows as `round_to_int8` does; see `quantized_block`."""
    piece = math.gcd(x.shape[1], _PIECE)

    def columns(i: Any) -> Any:
        return pl.ds(pl.multiple_of(i * piece, piece), piece)

    def measure(i: Any, _: Any) -> None:
        add_to_maxima(largest, x[:, columns(i)])

    def quantize(i: Any, factor: Array) -> Array:
        quantized[:, columns(i)] = rounded(x[:, columns(i)], factor)
        return factor

    largest[...] = jnp.zeros_like(largest)
    jax.lax.fori_loop(0, x.shape[1] // piece, measure, None)
    jax.lax.fori_loop(0, x.shape[1] // piece, quantize, take_scales(largest, row_scale))


def add_to_maxima(largest: Any, x: Array) -> None:
    """Includes more columns in the absolute maxima of rows, which are held lane by lane."""
    bits, lanes = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & _SIZE_BITS, largest.shape[1]
    for start in range(0, x.shape[1], lanes):
        largest[...] = jnp.maximum(largest[...], bits[:, start : start + lanes])


def take_scales(largest: Any, row_scale: Any) -> Array:
    """Writes the scales of rows with these absolute maxima, and returns the factors that quantise the rows."""
    bits = jnp.maximum(jnp.max(largest[...], axis=1, keepdims=True), _FLOOR_BITS)
    top = jax.lax.bitcast_convert_type(bits, jnp.float32)
    row_scale[...] = top * STEP
    factor: Array = LARGEST / top
    return factor


def rounded(x: Array, factor: Array) -> Int8[Array, "R I"]:
    """Returns rows of x, each times its factor, rounded to int8; halves go to the even number."""
    return jnp.round(x.astype(jnp.float32) * factor).astype(jnp.int8)


def scaled_dot(x: Any, weight: Any, row_scale: Any, scale: Any) -> Float32[Array, "R O"]:
    """Returns (x * row_scale) · (weight * scale)ᵀ, summed in int32."""
    sums = jax.lax.dot_general(x[...], weight[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product: Array = sums.astype(jnp.float32) * (row_scale[...] * scale[...])
    return product

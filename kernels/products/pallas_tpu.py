"""Products for TPUs: of int8 matrices, in gated MLPs, and of the output layer with their argmax.

All are one walk: over blocks of rows and, within one, over tiles of the matrices. A block's activations stay in on-chip
memory while the weights stream past them; the next tiles are loaded while some are multiplied. For int8 matrices, a
block's rows are quantised there, once.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int8, Int32

from ..arithmetic import INT8_FLOOR, INT8_LARGEST, INT8_STEP, float_dot
from ..matrices import Int8Matrix, Matrix
from . import fills_registers, soft_cap

_LANES: Final = 128
"""Lanes of a vector register."""

_PIECE: Final = 512
"""Maximum number of columns that are quantised at a time."""

_TILE: Final = 512
"""Maximum number of rows of a tile of a matrix; in a gated MLP, which has two of them at a time, half as many."""

_BUDGET: Final = 72 * 2**20
"""Bytes of on-chip memory, of 128 MiB, that a block of rows takes at most with its results and the tiles."""

_RESERVE: Final = 16 * 2**20
"""Bytes of on-chip memory that a kernel may take in addition, for results on their way to its blocks."""

_SIZE_BITS: Final = 0x7FFFFFFF
"""Bits of a float32 without its sign."""

_FLOOR_BITS: Final = int(np.float32(INT8_FLOOR).view(np.int32))


class _Streamed(NamedTuple):
    """An array that is streamed: a block of it for each step.

    Attributes:
      array: The array.
      block: Shape of its blocks.
      at: Returns the index of a step's block.
    """

    array: Array
    block: tuple[int, ...]
    at: Callable[[Any], tuple[Any, ...]]


def _tiles(matrix: Array, tile: int, number: Callable[[Any], Any] = lambda step: step) -> _Streamed:
    """Returns tiles of whole rows of a matrix; `number` returns that of a step's tile."""
    return _Streamed(matrix, (tile, matrix.shape[1]), lambda step: (number(step), 0))


def _columns(row: Float32[Array, "1 O"], tile: int, number: Callable[[Any], Any] = lambda step: step) -> _Streamed:
    """Returns the scales or biases that belong to the rows of such tiles."""
    return _Streamed(row, (1, tile), lambda step: (0, number(step)))


def _walk(
    name: str,
    kernel: Callable[..., None],
    x: Float[Array, "R I"],
    streamed: Sequence[_Streamed],
    steps: int,
    out: jax.ShapeDtypeStruct,
    out_tile: tuple[int, Callable[[Any], Any]],
    scratch: Callable[[int], Sequence[Any]],
    *,
    row_bytes: int,
    tile_bytes: int,
    flops: int,
    transcendentals: int,
    interpret: Any,
    limit: int = 0,
) -> Array:
    """Runs a kernel for every step of every block of rows, with matrices in main memory.

    Args:
      name: Name of the kernel in compiled programs.
      kernel: Takes references to a block of `x`, to the streamed blocks, to a tile of the result, and to the scratch
        memory. The second axis of its grid is that of the steps.
      x: Activations.
      streamed: The weights.
      steps: Number of steps of a block of rows.
      out: Shape and dtype of the result.
      out_tile: Number of the result's columns that are computed at a time, and the function from a step to their place.
      scratch: Returns scratch memory for a number of rows.
      row_bytes: Bytes of on-chip memory that a row takes.
      tile_bytes: Bytes of on-chip memory that the tiles take.
      flops, transcendentals: For the cost estimate.
      interpret: See `pallas_call`.
      limit: Bytes of on-chip memory in which XLA keeps nothing while the kernel runs, if that is more than it takes.
    """
    (rows, width), (columns, column) = x.shape, out_tile
    block = block_of_rows(rows, row_bytes, tile_bytes)
    blocks, block_bytes = pl.cdiv(rows, block), block * row_bytes + tile_bytes
    limit = max(limit, block_bytes + block_bytes // 8 + _RESERVE)
    weights = {id(each.array): each.array.nbytes for each in streamed}
    matrices = {id(each.array): _in_main_memory(each.array, interpret) for each in streamed if each.block[0] > 1}
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=(blocks, steps),
        in_specs=[
            pl.BlockSpec((block, width), lambda r, s: (r, 0)),
            *(pl.BlockSpec(each.block, lambda r, s, at=each.at: at(s)) for each in streamed),
        ],
        out_specs=pl.BlockSpec((block, columns), lambda r, s: (r, column(s))),
        scratch_shapes=[*scratch(block)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            bytes_accessed=blocks * sum(weights.values()) + x.nbytes + out.size * out.dtype.itemsize,
            transcendentals=transcendentals,
        ),
        interpret=interpret,
        name=name,
    )(x, *(matrices.get(id(each.array), each.array) for each in streamed))


def block_of_rows(rows: int, row_bytes: int, tile_bytes: int) -> int:
    """Returns the number of rows per block: of as few blocks as fit on the chip, of equal size; see `_walk`."""
    blocks = pl.cdiv(rows * row_bytes, max(_BUDGET - tile_bytes, row_bytes))
    return rows if blocks == 1 else pl.cdiv(pl.cdiv(rows, blocks), 32) * 32  # 32 rows of int8 fill registers


def _in_main_memory(weight: Array, interpret: Any) -> Array:
    """Returns a matrix that XLA does not copy to on-chip memory ahead of the kernel, which streams it anyway."""
    return weight if interpret else pltpu.with_memory_space_constraint(weight, pltpu.HBM)


def takes_int8_product(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether `int8_product_tpu` supports the matrix: in int8, with sides of whole registers."""
    return isinstance(weight, Int8Matrix) and fills_registers(weight.shape)


def int8_product_tpu(
    x: Float[Array, "R I"],
    weight: Int8Matrix,
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
    *,
    interpret: Any = False,
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias, with each row of x quantised to int8; see `product`.

    Sums are exact in int32, so the quantised rows and the result are XLA's.
    """
    (rows, width), (values, scale) = x.shape, weight
    outputs, tile = len(values), min(_TILE, len(values))
    bias = jnp.zeros_like(scale) if bias is None else bias
    return _walk(
        "int8_product",
        _product_kernel,
        x,
        [_tiles(values, tile), _columns(scale[None], tile), _columns(bias[None], tile)],
        pl.cdiv(outputs, tile),
        jax.ShapeDtypeStruct((rows, outputs), dtype),
        (tile, lambda step: step),
        lambda block: _quantized_block(block, width),
        row_bytes=width * (2 * x.dtype.itemsize + 1) + 2 * tile * jnp.dtype(dtype).itemsize,
        tile_bytes=2 * tile * width,
        flops=2 * rows * width * outputs,
        transcendentals=0,
        interpret=interpret,
    )


def _product_kernel(x: Any, weight: Any, scale: Any, bias: Any, out: Any, *quantized: Any) -> None:
    pl.when(pl.program_id(1) == 0)(lambda: _quantize_rows(x, *quantized))
    out[...] = (_products(x, quantized, weight, scale) + bias[...]).astype(out.dtype)


def takes_argmax(x: Array, weight: Matrix, cap: float | None) -> bool:
    """Returns whether `argmax_tpu` supports the matrix: in floats or int8, with sides of whole registers."""
    return isinstance(weight, Array | Int8Matrix) and fills_registers(weight.shape)


def argmax_tpu(
    x: Float[Array, "R D"], weight: Array | Int8Matrix, cap: float | None, *, interpret: Any = False
) -> Int32[Array, " R"]:
    """Returns the token with the largest logit of each row; see `argmax`.

    Each lane keeps the largest of its logits and where it was; the lanes are compared at the end.
    """
    is_int8 = isinstance(weight, Int8Matrix)
    values, scale = weight if isinstance(weight, Int8Matrix) else (weight, jnp.ones(len(weight), jnp.float32))
    (rows, width), tokens = x.shape, len(values)
    tile = min(_TILE, tokens)

    def scratch(block: int) -> list[Any]:
        lanes = (pltpu.VMEM((block, _LANES), dtype) for dtype in (jnp.float32, jnp.int32))
        return [*lanes, *(_quantized_block(block, width) if is_int8 else ())]

    out = _walk(
        "argmax",
        partial(_argmax_kernel, tokens, cap),
        x,
        [_tiles(values, tile), _columns(scale[None], tile)],
        pl.cdiv(tokens, tile),
        jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        (1, lambda step: 0),
        scratch,
        row_bytes=width * (2 * x.dtype.itemsize + is_int8) + 8 * tile,
        tile_bytes=2 * tile * width * values.itemsize,
        flops=2 * rows * width * tokens,
        transcendentals=rows * tokens * (cap is not None),
        interpret=interpret,
    )
    return out[:, 0]


def _argmax_kernel(
    tokens: int, cap: float | None, x: Any, weight: Any, scale: Any, out: Any, best: Any, place: Any, *quantized: Any
) -> None:
    tile = pl.program_id(1)

    @pl.when(tile == 0)
    def start() -> None:
        best[...], place[...] = jnp.full_like(best, -jnp.inf), jnp.zeros_like(place)
        if quantized:
            _quantize_rows(x, *quantized)

    capped = soft_cap(_products(x, quantized, weight, scale), cap)
    first, count = tile * weight.shape[0], weight.shape[0]
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


def takes_gated_mlp(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
    """Returns whether `gated_mlp_tpu` supports these: rows that fit on the chip, and matrices in floats."""
    rows = math.prod(x.shape[:-1])
    return isinstance(down, Array) and block_of_rows(rows, *_float_mlp_bytes(x, down)) == rows


def _float_mlp_bytes(x: Array, down: Array) -> tuple[int, int]:
    """Returns the bytes of on-chip memory that a row of a gated MLP in floats takes, and the bytes of the tiles."""
    width, hidden = down.shape
    return width * (4 * x.dtype.itemsize + 8), 6 * _float_mlp_tile(hidden) * width * down.dtype.itemsize


def _float_mlp_tile(hidden: int) -> int:
    return next((n for n in (256, 128) if hidden % n == 0), hidden)


def gated_mlp_tpu(
    x: Float[Array, "*rows D"],
    gate_up: Float[Array, "F2 D"],
    gate_up_bias: Float32[Array, " F2"],
    down: Float[Array, "D F"],
    down_bias: Float32[Array, " D"] | None,
    *,
    interpret: Any = False,
) -> Float[Array, "*rows D"]:
    """Computes down(gelu(gate(x)) * up(x)) with matrices in floats; see `gated_mlp`.

    A step multiplies tiles of the gate and the value, and adds the product of both with columns of the output
    projection to a sum.
    """
    rows, (width, hidden) = x.reshape(-1, x.shape[-1]), down.shape
    tile, (row_bytes, tile_bytes) = _float_mlp_tile(hidden), _float_mlp_bytes(x, down)
    steps, bias = hidden // tile, gate_up_bias.reshape(-1, 1, tile)
    down_bias = jnp.zeros(width, jnp.float32) if down_bias is None else down_bias
    return _walk(
        "gated_mlp",
        _mlp_kernel,
        rows,
        [
            _tiles(gate_up, tile),
            _tiles(gate_up, tile, lambda step: steps + step),
            _Streamed(bias, (1, 1, tile), lambda step: (step, 0, 0)),
            _Streamed(bias, (1, 1, tile), lambda step: (steps + step, 0, 0)),
            _Streamed(down, (width, tile), lambda step: (0, step)),
            _columns(down_bias[None], width, lambda step: 0),
        ],
        steps,
        jax.ShapeDtypeStruct(rows.shape, x.dtype),
        (width, lambda step: 0),
        lambda block: [pltpu.VMEM((block, width), jnp.float32)],
        row_bytes=row_bytes,
        tile_bytes=tile_bytes,
        flops=6 * len(rows) * width * hidden,
        transcendentals=len(rows) * hidden,
        interpret=interpret,
        limit=96 * 2**20,  # else XLA copies whole states there, of which the program needs few rows
    ).reshape(x.shape)


def _mlp_kernel(
    x: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any, down: Any, down_bias: Any, out: Any, total: Any
) -> None:
    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        total[...] = jnp.broadcast_to(down_bias[...], total.shape)

    gated = jax.nn.gelu(float_dot(x[...], gate[...]) + gate_bias[0], approximate=True)
    hidden = gated * (float_dot(x[...], up[...]) + up_bias[0])
    total[...] += float_dot(hidden.astype(x.dtype), down[...])

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def finish() -> None:
        out[...] = total[...].astype(out.dtype)


def takes_int8_gated_mlp(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
    """Returns whether `int8_gated_mlp_tpu` supports these: int8 matrices of whole vector registers."""
    if not (isinstance(gate_up, Int8Matrix) and isinstance(down, Int8Matrix)):
        return False
    return fills_registers(gate_up.shape, down.shape)


def int8_gated_mlp_tpu(
    x: Float[Array, "*rows D"],
    gate_up: Int8Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: Int8Matrix,
    down_bias: Float32[Array, " D"] | None,
    *,
    interpret: Any = False,
) -> Float[Array, "*rows D"]:
    """Computes down(gelu(gate(x)) * up(x)) with rows quantised to int8 before each product; see `gated_mlp`.

    The steps are those over tiles of the gate and the value, then those over tiles of the output projection. In between
    the products of both, rounded to the dtype of x, are quantised by whole rows, as the native kernel for CPUs does.
    They never leave the chip.
    """
    rows, (width, hidden), size = x.reshape(-1, x.shape[-1]), down.shape, x.dtype.itemsize
    tile, out_tile = math.gcd(hidden, _TILE // 2), math.gcd(width, _TILE // 2)
    steps = hidden // tile

    def gate(step: Any) -> Any:
        return jnp.minimum(step, steps - 1)

    def up(step: Any) -> Any:
        return steps + gate(step)

    def second(step: Any) -> Any:
        return jnp.maximum(step - steps, 0)

    scale, bias = gate_up.scale[None], gate_up_bias[None]
    down_bias = jnp.zeros_like(down.scale) if down_bias is None else down_bias
    out = _walk(
        "int8_gated_mlp",
        _int8_mlp_kernel,
        rows,
        [
            *(_tiles(gate_up.values, tile, half) for half in (gate, up)),
            *(_columns(each, tile, half) for each in (scale, bias) for half in (gate, up)),
            _tiles(down.values, out_tile, second),
            _columns(down.scale[None], out_tile, second),
            _columns(down_bias[None], out_tile, second),
        ],
        steps + width // out_tile,
        jax.ShapeDtypeStruct(rows.shape, x.dtype),
        (out_tile, second),
        lambda block: [
            *_quantized_block(block, width),
            pltpu.VMEM((steps, block, tile), x.dtype),
            *_quantized_block(block, hidden),
        ],
        row_bytes=width * (2 * size + 1) + hidden * (size + 1) + 2 * out_tile * size,
        tile_bytes=4 * tile * width + 2 * out_tile * hidden,
        flops=6 * len(rows) * width * hidden,
        transcendentals=len(rows) * hidden,
        interpret=interpret,
    )
    return out.reshape(x.shape)


def _int8_mlp_kernel(
    x: Any, gate: Any, up: Any, gate_scale: Any, up_scale: Any, gate_bias: Any, up_bias: Any, down: Any,
    down_scale: Any, down_bias: Any, out: Any, inputs: Any, input_scale: Any, largest_input: Any, products: Any,
    hidden: Any, hidden_scale: Any, largest: Any,
) -> None:  # fmt: skip
    """Kernel of `int8_gated_mlp_tpu`: `products` are gate times value by tile, `hidden` the same quantised."""
    step, (steps, _, tile) = pl.program_id(1), products.shape

    @pl.when(step == 0)
    def start() -> None:
        _quantize_rows(x, inputs, input_scale, largest_input)
        largest[...] = jnp.zeros_like(largest)

    @pl.when(step < steps)
    def gate_and_value() -> None:
        gated = jax.nn.gelu(_scaled_dot(inputs, gate, input_scale, gate_scale) + gate_bias[...], approximate=True)
        product = gated * (_scaled_dot(inputs, up, input_scale, up_scale) + up_bias[...])
        products[step] = product.astype(products.dtype)
        _add_to_maxima(largest, products[step])

    @pl.when(step == steps)
    def between() -> None:
        def quantize(s: Any, factor: Array) -> Array:
            hidden[:, pl.ds(pl.multiple_of(s * tile, tile), tile)] = _rounded(products[s], factor)
            return factor

        jax.lax.fori_loop(0, steps, quantize, _take_scales(largest, hidden_scale))

    @pl.when(step >= steps)
    def project() -> None:
        out[...] = (_scaled_dot(hidden, down, hidden_scale, down_scale) + down_bias[...]).astype(out.dtype)


def _products(x: Any, quantized: Sequence[Any], weight: Any, scale: Any) -> Float32[Array, "R O"]:
    """Returns the products of a block of rows with a tile; uses the quantised rows if there are any."""
    if not quantized:
        return float_dot(x[...], weight[...])
    return _scaled_dot(quantized[0], weight, quantized[1], scale)


def _scaled_dot(x: Any, weight: Any, row_scale: Any, scale: Any) -> Float32[Array, "R O"]:
    """Returns (x * row_scale) · (weight * scale)ᵀ, summed in int32."""
    sums = jax.lax.dot_general(x[...], weight[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * (row_scale[...] * scale[...])


def _quantized_block(rows: int, width: int) -> list[Any]:
    """Returns scratch memory for a block of quantised rows, their scales and, lane by lane, their absolute maxima.

    Maxima are taken over the bits without a sign, as integers. So a NaN is the largest, even if a chip's maximum of
    a NaN and a number is the number.
    """
    lanes = math.gcd(width, _LANES)
    return [
        pltpu.VMEM((rows, width), jnp.int8),
        pltpu.VMEM((rows, 1), jnp.float32),
        pltpu.VMEM((rows, lanes), jnp.int32),
    ]


def _quantize_rows(x: Any, quantized: Any, row_scale: Any, largest: Any) -> None:
    """Quantises a block of rows as `round_to_int8` does; see `_quantized_block`."""
    piece = math.gcd(x.shape[1], _PIECE)

    def columns(i: Any) -> Any:
        return pl.ds(pl.multiple_of(i * piece, piece), piece)

    def measure(i: Any, _: Any) -> None:
        _add_to_maxima(largest, x[:, columns(i)])

    def quantize(i: Any, factor: Array) -> Array:
        quantized[:, columns(i)] = _rounded(x[:, columns(i)], factor)
        return factor

    largest[...] = jnp.zeros_like(largest)
    jax.lax.fori_loop(0, x.shape[1] // piece, measure, None)
    jax.lax.fori_loop(0, x.shape[1] // piece, quantize, _take_scales(largest, row_scale))


def _add_to_maxima(largest: Any, x: Array) -> None:
    """Includes more columns in the absolute maxima of rows, which are held lane by lane."""
    bits, lanes = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & _SIZE_BITS, largest.shape[1]
    for start in range(0, x.shape[1], lanes):
        largest[...] = jnp.maximum(largest[...], bits[:, start : start + lanes])


def _take_scales(largest: Any, row_scale: Any) -> Array:
    """Writes the scales of rows with these absolute maxima, and returns the factors that quantise the rows."""
    bits = jnp.maximum(jnp.max(largest[...], axis=1, keepdims=True), _FLOOR_BITS)
    top = jax.lax.bitcast_convert_type(bits, jnp.float32)
    row_scale[...] = top * INT8_STEP
    return INT8_LARGEST / top


def _rounded(x: Array, factor: Array) -> Int8[Array, "R I"]:
    """Returns rows of x, each times its factor, rounded to int8; halves go to the even number."""
    return jnp.round(x.astype(jnp.float32) * factor).astype(jnp.int8)

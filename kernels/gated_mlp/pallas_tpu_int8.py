"""Gated MLP with int8 matrices for TPUs: weights stream through on-chip memory, activations are quantised there."""

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int8

from ..matrices import Int8Matrix, Matrix
from ..product import fills_registers
from ..product.int8_pallas_tpu import (
    add_to_maxima,
    block_of_rows,
    compiler_params,
    in_main_memory,
    quantize_rows,
    quantized_block,
    rounded,
    scaled_dot,
    take_scales,
)

_TILE: Final = 256
"""Maximum number of rows of a tile of each matrix."""


def takes_int8(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
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
    """Computes down(gelu(gate(x)) * up(x)) in the dtype of x, with rows quantised to int8 before each product.

    The grid walks over blocks of rows and, within one, first over tiles of the gate and the value, then over tiles of
    the output projection. In between the products of both, rounded to the dtype of x, are quantised by whole rows, as
    the native kernel for CPUs does. They never leave the chip.

    Args:
      x: Inputs.
      gate_up: Weights of the gate, then of the value.
      gate_up_bias: Biases of both.
      down: Weights of the output projection.
      down_bias: Bias of the output projection, or None.
      interpret: See `pallas_call`.
    """
    bias = jnp.zeros_like(down.scale) if down_bias is None else down_bias
    rows = x.reshape(-1, x.shape[-1])
    y = _int8_gated_mlp(rows, *gate_up, gate_up_bias, *down, bias, interpret)
    return y.reshape(x.shape)


def _int8_gated_mlp(
    x: Float[Array, "R D"],
    gate_up: Int8[Array, "F2 D"],
    gate_up_scale: Float32[Array, " F2"],
    gate_up_bias: Float32[Array, " F2"],
    down: Int8[Array, "D F"],
    down_scale: Float32[Array, " D"],
    down_bias: Float32[Array, " D"],
    interpret: Any,
) -> Float[Array, "R D"]:
    (rows, width), hidden, size = x.shape, down.shape[1], x.dtype.itemsize
    tile, out_tile = math.gcd(hidden, _TILE), math.gcd(width, _TILE)
    steps = hidden // tile
    row_bytes = width * (2 * size + 1) + hidden * (size + 1) + 2 * out_tile * size
    fixed_bytes = 4 * tile * width + 2 * out_tile * hidden
    block = block_of_rows(rows, row_bytes, fixed_bytes)
    blocks = pl.cdiv(rows, block)

    def first(s: Any) -> Any:
        return jnp.minimum(s, steps - 1)

    def second(s: Any) -> Any:
        return jnp.maximum(s - steps, 0)

    gate, up = (pl.BlockSpec((tile, width), lambda r, s, n=n: (n + first(s), 0)) for n in (0, steps))
    gate_column, up_column = (pl.BlockSpec((1, tile), lambda r, s, n=n: (0, n + first(s))) for n in (0, steps))
    out_column = pl.BlockSpec((1, out_tile), lambda r, s: (0, second(s)))
    gate_up, down = (in_main_memory(weight, interpret) for weight in (gate_up, down))
    out: Array = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(blocks, steps + width // out_tile),
        in_specs=[
            pl.BlockSpec((block, width), lambda r, s: (r, 0)),
            gate,
            up,
            gate_column,
            up_column,
            gate_column,
            up_column,
            pl.BlockSpec((out_tile, hidden), lambda r, s: (second(s), 0)),
            out_column,
            out_column,
        ],
        out_specs=pl.BlockSpec((block, out_tile), lambda r, s: (r, second(s))),
        scratch_shapes=[
            *quantized_block(block, width),
            pltpu.VMEM((steps, block, tile), x.dtype),
            *quantized_block(block, hidden),
        ],
        compiler_params=compiler_params(block * row_bytes + fixed_bytes),
        cost_estimate=pl.CostEstimate(
            flops=6 * rows * width * hidden,
            bytes_accessed=blocks * (3 * width * hidden + 8 * (2 * hidden + width)) + 2 * rows * width * size,
            transcendentals=rows * hidden,
        ),
        interpret=interpret,
        name="int8_gated_mlp",
    )(
        x, gate_up, gate_up, gate_up_scale[None], gate_up_scale[None], gate_up_bias[None], gate_up_bias[None], down,
        down_scale[None], down_bias[None],
    )  # fmt: skip
    return out


def _kernel(
    x: Any, gate: Any, up: Any, gate_scale: Any, up_scale: Any, gate_bias: Any, up_bias: Any, down: Any,
    down_scale: Any, down_bias: Any, out: Any, inputs: Any, input_scale: Any, largest_input: Any, products: Any,
    hidden: Any, hidden_scale: Any, largest: Any,
) -> None:  # fmt: skip
    """Kernel of `int8_gated_mlp_tpu`: `products` are gate times value by tile, `hidden` the same quantised."""
    step, (steps, _, tile) = pl.program_id(1), products.shape

    @pl.when(step == 0)
    def start() -> None:
        quantize_rows(x, inputs, input_scale, largest_input)
        largest[...] = jnp.zeros_like(largest)

    @pl.when(step < steps)
    def gate_and_value() -> None:
        gated = jax.nn.gelu(scaled_dot(inputs, gate, input_scale, gate_scale) + gate_bias[...], approximate=True)
        product = gated * (scaled_dot(inputs, up, input_scale, up_scale) + up_bias[...])
        products[step] = product.astype(products.dtype)
        add_to_maxima(largest, products[step])

    @pl.when(step == steps)
    def between() -> None:
        def quantize(s: Any, factor: Array) -> Array:
            hidden[:, pl.ds(pl.multiple_of(s * tile, tile), tile)] = rounded(products[s], factor)
            return factor

        jax.lax.fori_loop(0, steps, quantize, take_scales(largest, hidden_scale))

    @pl.when(step >= steps)
    def project() -> None:
        out[...] = (scaled_dot(hidden, down, hidden_scale, down_scale) + down_bias[...]).astype(out.dtype)

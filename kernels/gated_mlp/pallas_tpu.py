"""Gated MLP for TPUs: weights stream through on-chip memory, activations stay there."""

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from ..matrices import Matrix
from ..precision import float_dot

_BUDGET: Final = 64 * 2**20
"""Bytes of on-chip memory, of 128 MiB, that rows may take beside the weights: as inputs, results and float32 sums."""


def takes(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
    """Returns whether `gated_mlp_tpu` supports these: rows that fit on the chip, and matrices in floats."""
    return math.prod(x.shape) * (4 * x.dtype.itemsize + 8) <= _BUDGET and isinstance(down, Array)


def gated_mlp_tpu(
    x: Float[Array, "*rows D"],
    gate_up: Float[Array, "F2 D"],
    gate_up_bias: Float32[Array, " F2"],
    down: Float[Array, "D F"],
    down_bias: Float32[Array, " D"] | None,
    *,
    interpret: Any = False,
) -> Float[Array, "*rows D"]:
    """Computes down(gelu(gate(x)) * up(x)), in the dtype of x.

    Args:
      x: Inputs, of as many rows as `takes` allows.
      gate_up: Weights of the gate, then of the value.
      gate_up_bias: Biases of both.
      down: Weights of the output projection.
      down_bias: Bias of the output projection, or None.
      interpret: See `pallas_call`.
    """
    down_bias = jnp.zeros(down.shape[0], jnp.float32) if down_bias is None else down_bias
    return _gated_mlp(x.reshape(-1, x.shape[-1]), gate_up, gate_up_bias, down, down_bias, interpret).reshape(x.shape)


def _gated_mlp(
    x: Float[Array, "R D"],
    gate_up: Float[Array, "F2 D"],
    gate_up_bias: Float32[Array, " F2"],
    down: Float[Array, "D F"],
    down_bias: Float32[Array, " D"],
    interpret: Any,
) -> Float[Array, "R D"]:
    rows, width = x.shape
    hidden = down.shape[1]
    block = next((n for n in (256, 128) if hidden % n == 0), hidden)
    steps = hidden // block
    whole = pl.BlockSpec((rows, width), lambda f: (0, 0))
    bias = gate_up_bias.reshape(2 * steps, 1, block)
    weights = gate_up.size * gate_up.dtype.itemsize + down.size * down.dtype.itemsize
    out: Array = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(steps,),
        in_specs=[
            whole,
            pl.BlockSpec((block, width), lambda f: (f, 0)),
            pl.BlockSpec((block, width), lambda f: (steps + f, 0)),
            pl.BlockSpec((1, 1, block), lambda f: (f, 0, 0)),
            pl.BlockSpec((1, 1, block), lambda f: (steps + f, 0, 0)),
            pl.BlockSpec((width, block), lambda f: (0, f)),
            pl.BlockSpec((1, width), lambda f: (0, 0)),
        ],
        out_specs=whole,
        scratch_shapes=[pltpu.VMEM((rows, width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=96 * 2**20),
        cost_estimate=pl.CostEstimate(
            flops=6 * rows * width * hidden,
            bytes_accessed=weights + 2 * x.size * x.dtype.itemsize + (2 * hidden + width) * 4,
            transcendentals=rows * hidden,
        ),
        interpret=interpret,
        name="gated_mlp",
    )(x, gate_up, gate_up, bias, bias, down, down_bias[None])
    return out


def _kernel(
    x: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any, down: Any, down_bias: Any, out: Any, total: Any
) -> None:
    @pl.when(pl.program_id(0) == 0)
    def start() -> None:
        total[...] = jnp.broadcast_to(down_bias[...], total.shape)

    gated = jax.nn.gelu(float_dot(x[...], gate[...]) + gate_bias[0], approximate=True)
    hidden = gated * (float_dot(x[...], up[...]) + up_bias[0])
    total[...] += float_dot(hidden.astype(x.dtype), down[...])

    @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
    def finish() -> None:
        out[...] = total[...].astype(out.dtype)

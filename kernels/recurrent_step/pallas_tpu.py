"""The recurrent block's decode step for TPUs, in one pass over its state."""

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ..rg_lru.pallas_tpu import one_minus_exp

_ROWS: Final = 128
"""Rows per block, where there are as many."""


def recurrent_step_tpu(
    xy: Float[Array, "B E2"],
    conv_weight: Float32[Array, "K E"],
    conv_bias: Float32[Array, " E"],
    gate_weight: Float[Array, "N e e2"],
    gate_bias: Float32[Array, "N e2"],
    log_decay: Float32[Array, " E"],
    conv: Float[Array, "K1 B E"],
    h: Float32[Array, "B E"],
    positions: Int32[Array, " B"],
    *,
    interpret: Any = False,
) -> tuple[Float[Array, "B E"], Float[Array, "K1 B E"], Float32[Array, "B E"]]:
    """gelu(y) * RG-LRU(conv(x)) for one token per row; the state is updated in place.

    Args:
      xy: the block's input projections, x first.
      conv_weight, conv_bias, conv: see `causal_conv1d`.
      gate_weight, gate_bias: of N diagonal blocks; the input gate's columns first.
      log_decay, h: see `rg_lru`.
      positions: of the token; negative rows keep their state, and their output means nothing.
      interpret: as `pallas_call` has it.

    Returns:
      What the output projection reads, in the type of xy; then conv and h.
    """
    rows, width = h.shape
    blocks, size = gate_weight.shape[:2]
    taps = conv_weight.shape[0]
    block = _ROWS if rows % _ROWS == 0 else rows
    channels = pl.BlockSpec((block, size), lambda n, b: (b, n))
    gate = pl.BlockSpec((block, size), lambda n, b: (b, blocks + n))
    history = pl.BlockSpec((taps - 1, block, size), lambda n, b: (0, b, n))
    per_channel = pl.BlockSpec((1, size), lambda n, b: (0, n))
    elements, state = rows * width, rows * width * (4 + (taps - 1) * conv.dtype.itemsize)
    out, new_conv, new_h = pl.pallas_call(
        _kernel,
        out_shape=(
            jax.ShapeDtypeStruct((rows, width), xy.dtype),
            jax.ShapeDtypeStruct(conv.shape, conv.dtype),
            jax.ShapeDtypeStruct(h.shape, h.dtype),
        ),
        grid=(blocks, rows // block),
        in_specs=[
            channels,
            gate,
            pl.BlockSpec((taps, size), lambda n, b: (0, n)),
            per_channel,
            pl.BlockSpec((1, size, 2 * size), lambda n, b: (n, 0, 0)),
            pl.BlockSpec((1, 1, 2 * size), lambda n, b: (n, 0, 0)),
            per_channel,
            history,
            channels,
            pl.BlockSpec((block, 1), lambda n, b: (b, 0)),
        ],
        out_specs=(channels, history, channels),
        input_output_aliases={7: 1, 8: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=4 * elements * size + 30 * elements,
            bytes_accessed=3 * elements * xy.dtype.itemsize + 2 * state + gate_weight.size * gate_weight.dtype.itemsize,
            transcendentals=5 * elements,
        ),
        interpret=interpret,
        name="recurrent_step",
    )(
        xy, xy, conv_weight, conv_bias[None], gate_weight, gate_bias[:, None], log_decay[None], conv, h,
        positions[:, None],
    )  # fmt: skip
    return out, new_conv, new_h


def _kernel(
    x: Any, y: Any, conv_weight: Any, conv_bias: Any, gate_weight: Any, gate_bias: Any, log_decay: Any, conv: Any,
    h: Any, positions: Any, out: Any, new_conv: Any, new_h: Any,
) -> None:  # fmt: skip
    size, taps = x.shape[-1], conv_weight.shape[0]
    position = positions[...]
    token = x[...].astype(jnp.float32)
    c = token * conv_weight[taps - 1]
    for s in range(1, taps):
        tap = conv[taps - 1 - s].astype(jnp.float32) * conv_weight[taps - 1 - s]
        c += jnp.where(position >= s, tap, 0.0)
    c += conv_bias[...]
    gates = jnp.dot(
        c.astype(gate_weight.dtype),
        gate_weight[0],
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if gate_weight.dtype == jnp.float32 else None,
    )
    gates += gate_bias[0]
    log_a = log_decay[...] * jax.nn.sigmoid(gates[:, size:])
    gated = jax.nn.sigmoid(gates[:, :size]) * c
    moved = jnp.exp(log_a) * h[...] + jnp.sqrt(one_minus_exp(2.0 * log_a)) * gated
    state = jnp.where(position == 0, gated, jnp.where(position < 0, h[...], moved))
    new_h[...] = state
    out[...] = (jax.nn.gelu(y[...].astype(jnp.float32), approximate=True) * state).astype(out.dtype)
    for s in range(taps - 1):
        following = conv[s + 1] if s + 2 < taps else x[...].astype(conv.dtype)
        new_conv[s] = jnp.where(position >= 0, following, conv[s])

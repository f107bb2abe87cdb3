"""RG-LRU for TPUs: gates, scaling and recurrence in one pass over memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32


def rg_lru_tpu(
    x: Float[Array, "B T E"],
    input_gate: Float[Array, "B T E"],
    recurrence_gate: Float[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    *,
    interpret: Any = False,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Returns h of every step and the last h; see `rg_lru`.

    The grid walks over rows, blocks of channels and, in order, blocks of time; h stays in on-chip memory.
    """
    rows, steps, width = x.shape
    block, lanes = _time_block(steps), _lanes(width)
    padded = -steps % block
    inputs = [jnp.pad(v, ((0, 0), (0, padded), (0, 0))) for v in (x, input_gate, recurrence_gate)]
    positions = jnp.pad(positions, ((0, 0), (0, padded)), constant_values=-1)
    sequence = pl.BlockSpec((1, block, lanes), lambda b, e, t, *_: (b, t, e))
    channel = pl.BlockSpec((1, lanes), lambda b, e, t, *_: (0, e))
    state = pl.BlockSpec((1, 1, lanes), lambda b, e, t, *_: (b, 0, e))
    scratch = pltpu.VMEM((block, lanes), jnp.float32)
    elements = rows * (steps + padded) * width
    y, last = pl.pallas_call(
        functools.partial(_kernel, block=block),
        out_shape=(
            jax.ShapeDtypeStruct((rows, steps + padded, width), jnp.float32),
            jax.ShapeDtypeStruct((rows, 1, width), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, width // lanes, (steps + padded) // block),
            in_specs=[sequence, sequence, sequence, channel, state],
            out_specs=(sequence, state),
            scratch_shapes=[scratch, scratch],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=12 * elements,
            bytes_accessed=elements * (3 * x.dtype.itemsize + 4) + 2 * rows * width * 4 + width * 4,
            transcendentals=4 * elements,
        ),
        interpret=interpret,
        name="rg_lru",
    )(positions.reshape(-1), *inputs, log_decay[None], h0[:, None])
    return y[:, :steps], last[:, 0]


def _time_block(steps: int) -> int:
    """Returns the steps per block: whole tiles of 8, at most 256."""
    return min(256, steps + -steps % 8)


def _lanes(width: int) -> int:
    """Returns the channels per block: whole vector registers if the width is a multiple of them."""
    return next((n for n in (512, 256, 128) if width % n == 0), width)


def _kernel(
    positions: Any, x: Any, input_gate: Any, recurrence_gate: Any, log_decay: Any, h0: Any, y: Any, last: Any,
    decay: Any, gated: Any, *, block: int,
) -> None:  # fmt: skip
    """Computes all coefficients of a block, then one multiply-add per step; `last` carries h between blocks."""
    row, block_index = pl.program_id(0), pl.program_id(2)
    first = (row * pl.num_programs(2) + block_index) * block

    @pl.when(block_index == 0)
    def start() -> None:
        last[...] = h0[...]

    log_a = log_decay[...] * jax.nn.sigmoid(recurrence_gate[0].astype(jnp.float32))
    decay[...] = jnp.exp(log_a)
    gated[...] = jax.nn.sigmoid(input_gate[0].astype(jnp.float32)) * x[0].astype(jnp.float32)
    y[0] = jnp.sqrt(one_minus_exp(2.0 * log_a)) * gated[...]

    def step(t: Any, h: Array) -> Array:
        position = positions[first + t]
        at = pl.ds(t, 1)
        moved = decay[at] * h + y[0, at]
        h = jnp.where(position == 0, gated[at], jnp.where(position < 0, h, moved))
        y[0, at] = h
        return h

    last[0] = jax.lax.fori_loop(0, block, step, last[0], unroll=8)


def one_minus_exp(x: Array) -> Array:
    """Returns 1 - exp(x) for x ≤ 0 without cancellation near 0, because Mosaic has no expm1."""
    series = -x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720)))))
    return jnp.where(x > -0.5, series, 1.0 - jnp.exp(x))

"""Recurrent block of a decode step for NVIDIA GPUs: one kernel between the projections.

Separate operations are nine launches, which take longer than the bytes that they move. A program computes the rows of
one tile and the channels of one gate block: first gates and h, from the inputs and the old state of the convolution,
and only then the new state of the convolution, which replaces the old one in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Float32, Int32

from ..matrices import PackedGates
from ..precision import product_precision
from ..rg_lru.sequential import decay_and_input, log_decay_of
from .weights import Recurrence, RecurrentWeights

ROWS: Final = 16
"""Rows of a program, the fewest of a product on tensor cores: programs for 128 rows about fill a GPU."""

COLUMNS: Final = 64
"""Channels of a gate block that are computed at a time; more take more registers than there are."""

INNER_BYTES: Final = 64
"""Bytes of the gates' inputs, per row, that are multiplied at a time: with more, some cards spill registers."""

WARPS: Final = 8
"""Warps of a program, so that its weights, pointers and sums fit the registers."""

STAGES: Final = 2
"""Blocks of weights in flight: the one that is multiplied, and the next."""


def takes(
    project: Callable[..., Array],
    weights: RecurrentWeights,
    conv: Array,
    h: Array,
    positions: Int32[Array, "B T"],
    *others: int,
) -> bool:
    """Returns whether `recurrent_block_gpu` supports these: a single step, with gate blocks of multiples of 128."""
    return positions.shape[1] == 1 and weights.gate_block % 128 == 0


def recurrent_block_gpu(
    project: Callable[[jnp.dtype | None], Float[Array, "B 1 E2"]],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 P E"],
    h: Float32[Array, "P E"],
    positions: Int32[Array, "B 1"],
    every: int,
    groups: int,
) -> Recurrence:
    """Computes a step per row with one kernel; see `recurrent_block`."""
    xy = project(jnp.dtype("float32"))[:, 0]
    return Recurrence(*recurrent_step_gpu(xy, weights, conv, h, positions[:, 0], groups=groups))


def recurrent_step_gpu(
    xy: Float[Array, "B E2"],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 P E"],
    h: Float32[Array, "P E"],
    positions: Int32[Array, " B"],
    *,
    groups: int = 1,
    interpret: Any = False,
) -> tuple[Float[Array, "B E"], Float[Array, "K1 P E"], Float32[Array, "P E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row; the state is updated in place.

    Takes and returns the same as `recurrent_step_tpu`, with any numbers of rows; e is a multiple of 64. xy may be
    float32 in any case: it is rounded to the dtype of conv, which is also that of the output.
    """
    conv_weight, conv_bias, gate_weight, gate_bias, a_param = weights
    assert not isinstance(gate_weight, PackedGates)
    rows, (pool, width) = xy.shape[0], h.shape
    blocks, size = gate_weight.shape[:2]
    own, elements = rows // groups, rows * width
    state_bytes = elements * (4 + (conv_weight.shape[0] - 1) * conv.dtype.itemsize)
    whole = pl.BlockSpec()
    out, new_conv, new_h = pl.pallas_call(
        partial(_step_kernel, size=size, own=own, group=pool // groups, has_barrier=not interpret),
        out_shape=(
            jax.ShapeDtypeStruct((rows, width), conv.dtype),
            jax.ShapeDtypeStruct(conv.shape, conv.dtype),
            jax.ShapeDtypeStruct(h.shape, h.dtype),
        ),
        grid=(blocks, groups, pl.cdiv(own, ROWS)),
        in_specs=[whole] * 9,
        out_specs=(whole,) * 3,
        input_output_aliases={6: 1, 7: 2},
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        cost_estimate=pl.CostEstimate(
            flops=4 * elements * size + 30 * elements,
            bytes_accessed=3 * elements * xy.dtype.itemsize
            + 2 * state_bytes
            + gate_weight.size * gate_weight.dtype.itemsize,
            transcendentals=5 * elements,
        ),
        interpret=interpret,
        name="recurrent_step",
    )(xy, conv_weight, conv_bias, gate_weight, gate_bias, a_param, conv, h, positions)
    return out, new_conv, new_h


def _step_kernel(
    xy: Any, conv_weight: Any, conv_bias: Any, gate_weight: Any, gate_bias: Any, a_param: Any, conv: Any, h: Any,
    positions: Any, out: Any, new_conv: Any, new_h: Any, *, size: int, own: int, group: int, has_barrier: bool,
) -> None:  # fmt: skip
    n, first = pl.program_id(0), pl.program_id(2) * ROWS
    taps, width = conv_weight.shape[0], h.shape[1]
    exists = first + jnp.arange(ROWS) < own
    tokens, slots = pl.ds(pl.program_id(1) * own + first, ROWS), pl.ds(pl.program_id(1) * group + first, ROWS)
    position = plgpu.load(positions.at[tokens], mask=exists, other=-1)

    def load(ref: Any, count: Any) -> Array:
        mask = jnp.broadcast_to(exists[:, None], (ROWS, count))
        loaded: Array = plgpu.load(ref, mask=mask, other=0.0)
        return loaded

    def projected(channels: pl.Slice) -> Float[Array, "R C"]:
        return load(xy.at[tokens, channels], channels.size).astype(conv.dtype)

    def store(ref: Any, value: Array) -> None:
        plgpu.store(ref, value.astype(ref.dtype), mask=jnp.broadcast_to(exists[:, None], value.shape))

    def convolved(start: Any, count: int) -> Float32[Array, "R C"]:
        channels = pl.ds(n * size + start, count)
        c = projected(channels).astype(jnp.float32) * conv_weight[taps - 1, channels]
        for s in range(1, taps):
            tap = load(conv.at[jnp.int32(taps - 1 - s), slots, channels], count).astype(jnp.float32)
            c += jnp.where((position >= s)[:, None], tap * conv_weight[taps - 1 - s, channels], 0.0)
        convolution: Array = c + conv_bias[channels]
        return convolution

    inner = INNER_BYTES // gate_weight.dtype.itemsize
    for start in range(0, size, COLUMNS):

        def multiply(i: Array, gates: tuple[Array, Array], start: int = start) -> tuple[Array, Array]:
            inputs = convolved(i * inner, inner).astype(gate_weight.dtype)
            weights = (gate_weight[n, pl.ds(i * inner, inner), pl.ds(side + start, COLUMNS)] for side in (0, size))
            input_gate, recurrence_gate = (gate + _dot(inputs, w) for gate, w in zip(gates, weights, strict=True))
            return input_gate, recurrence_gate

        biases = (gate_bias[n, pl.ds(side + start, COLUMNS)] for side in (0, size))
        no_inputs = tuple(jnp.broadcast_to(bias[None], (ROWS, COLUMNS)) for bias in biases)
        input_gate, recurrence_gate = jax.lax.fori_loop(0, size // inner, multiply, no_inputs)
        channels = pl.ds(n * size + start, COLUMNS)
        log_decay = log_decay_of(a_param[channels])
        a, gated = decay_and_input(convolved(start, COLUMNS), input_gate, recurrence_gate, log_decay, position)
        state = a * load(h.at[slots, channels], COLUMNS) + gated
        y = projected(pl.ds(width + n * size + start, COLUMNS)).astype(jnp.float32)
        store(new_h.at[slots, channels], state)
        store(out.at[tokens, channels], state * jax.nn.gelu(y, approximate=True))
    if has_barrier:  # the interpreter has none
        plgpu.debug_barrier()  # every thread has read the old state of the convolution
    for start in range(0, size, COLUMNS):
        channels = pl.ds(n * size + start, COLUMNS)
        history = [load(conv.at[jnp.int32(s), slots, channels], COLUMNS) for s in range(taps - 1)]
        history.append(projected(channels))
        for s in range(taps - 1):
            store(
                new_conv.at[jnp.int32(s), slots, channels],
                jnp.where((position >= 0)[:, None], history[s + 1], history[s]),
            )


def _dot(inputs: Float[Array, "R I"], weights: Float[Array, "I C"]) -> Float32[Array, "R C"]:
    precision = product_precision(weights.dtype)
    product: Array = jnp.dot(inputs, weights, preferred_element_type=jnp.float32, precision=precision)
    return product

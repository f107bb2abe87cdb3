"""Recurrent block for NVIDIA GPUs: a decode step between the projections in one kernel, and the RG-LRU of a chunk.

Separate operations of a step are nine launches, which take longer than the bytes that they move. A program computes the
rows of one tile and the channels of one gate block: first gates and h, from the inputs and the old state of the
convolution, and only then the new state of the convolution, which replaces the old one in place.

The RG-LRU of a chunk is gates, scaling and recurrence in one pass over memory. A program walks along some channels of
one row, one block of time after the other. Within a block there are segments of `STEPS` steps, and each thread has a
channel of one segment: the thread loads all steps, composes their maps h -> a * h + b, and then applies them to the h
that the preceding segments lead to. This spreads the gates' exponentials and the loads over several warps even for a
single row. Only the result is written to memory.
"""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Float32, Int32

from ..arithmetic import product_precision
from ..backend import GpuSizes
from ..matrices import PackedGates
from .xla import Recurrence, RecurrentInputs, decay_and_input, log_decay_of

ROWS: Final = 16
"""Rows of a program, the fewest of a product on tensor cores: programs for 128 rows about fill a GPU."""

COLUMNS: Final = 64
"""Channels of a gate block that are computed at a time; more take more registers than there are."""

INNER_BYTES: Final = 64
"""Bytes of the gates' inputs, per row, that are multiplied at a time: with more, some cards spill registers."""

WARPS: Final = 8
"""Warps of a program, so that its weights, pointers and sums fit the registers."""

STAGES: Final = 2
"""Stages of the loop over blocks of weights: the copies of the next block start after the last use of this one."""


WARP: Final = 32
"""Threads of a warp. A program has as many channels, or half of them if that fills more multiprocessors: 64 bytes of
float32 are still whole transactions of memory."""

STEPS: Final = 16
"""Steps of a segment. Their inputs and composed maps take 113 of a thread's 255 registers."""

MAX_WARPS: Final = 8
"""Maximum number of warps of a program: two for each scheduler of a multiprocessor, which has four."""

type _Map = tuple[Array, Array]
"""The maps h -> a * h + b of all segments and channels, as a and b of shape `[S, C]`."""


def takes_block(project: Callable[..., Array], inputs: RecurrentInputs, *others: int) -> bool:
    """Returns whether `recurrent_block_gpu` supports these: a single step, with gate blocks of multiples of 128."""
    return inputs.positions.shape[1] == 1 and inputs.weights.gate_block % 128 == 0


def recurrent_block_gpu(
    project: Callable[[jnp.dtype | None], Float[Array, "B 1 E2"]], inputs: RecurrentInputs, every: int, groups: int
) -> Recurrence:
    """Computes a step per row with one kernel; see `recurrent_block`."""
    xy = project(jnp.dtype("float32"))[:, 0]
    return Recurrence(*recurrent_step_gpu(xy, inputs.of_step, groups=groups))


def recurrent_step_gpu(
    xy: Float[Array, "B E2"], inputs: RecurrentInputs, *, groups: int = 1, interpret: Any = False
) -> tuple[Float[Array, "B E"], Float[Array, "K1 P E"], Float32[Array, "P E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row; the state is updated in place.

    Takes and returns the same as `recurrent_step_tpu`, with any numbers of rows; e is a multiple of 64. xy may be
    float32 in any case: it is rounded to the dtype of conv, which is also that of the output.
    """
    (conv_weight, conv_bias, gate_weight, gate_bias, a_param), conv, h, positions = inputs
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
        return plgpu.load(ref, mask=mask, other=0.0)

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
        return c + conv_bias[channels]

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
    return jnp.dot(inputs, weights, preferred_element_type=jnp.float32, precision=precision)


def rg_lru_gpu(
    x: Float[Array, "B T E"],
    input_gate: Float[Array, "B T E"],
    recurrence_gate: Float[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    *,
    gpu: GpuSizes,
    interpret: Any = False,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Returns h of every step and the last h; see `rg_lru`. Blocks are for a GPU of these sizes."""
    channels = _channels(x.shape[0], x.shape[2], gpu)
    segments, whole, sequence, state = _blocks(x.shape[1], channels)
    y, last = pl.pallas_call(
        functools.partial(_rg_lru_kernel, steps=x.shape[1], segments=segments),
        out_shape=(jax.ShapeDtypeStruct(x.shape, jnp.float32), jax.ShapeDtypeStruct(h0.shape, jnp.float32)),
        grid=(pl.cdiv(x.shape[2], channels), x.shape[0]),
        in_specs=[
            pl.BlockSpec((None, whole), lambda e, b: (b, 0)),
            sequence,
            sequence,
            sequence,
            pl.BlockSpec((channels,), lambda e, b: (e,)),
            state,
        ],
        out_specs=(sequence, state),
        compiler_params=plgpu.CompilerParams(num_warps=pl.cdiv(segments * channels, WARP), num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=15 * x.size,
            bytes_accessed=x.size * (3 * x.dtype.itemsize + 4) + 8 * h0.size + 4 * log_decay.size + 4 * positions.size,
            transcendentals=4 * x.size,
        ),
        interpret=interpret,
        name="rg_lru",
    )(positions, x, input_gate, recurrence_gate, log_decay, h0)
    return y, last


def _channels(rows: int, width: int, gpu: GpuSizes) -> int:
    """Returns the channels of a program."""
    return WARP if rows * pl.cdiv(width, WARP) >= gpu.multiprocessors else WARP // 2


def _blocks(steps: int, channels: int) -> tuple[int, int, pl.BlockSpec, pl.BlockSpec]:
    """Returns the segments of a block of time, the padded number of steps, and a program's blocks of inputs and state.

    The inputs are `[B, T, E]` and the state `[B, E]`. Loads beyond an array return undefined numbers; stores there are
    dropped.
    """
    segments = min(MAX_WARPS * WARP // channels, pl.next_power_of_2(pl.cdiv(steps, STEPS)))
    whole = pl.cdiv(steps, segments * STEPS) * segments * STEPS
    sequence = pl.BlockSpec((None, whole, channels), lambda e, b: (b, 0, e))
    return segments, whole, sequence, pl.BlockSpec((None, channels), lambda e, b: (b, e))


def _rg_lru_kernel(
    positions: Any, x: Any, input_gate: Any, recurrence_gate: Any, log_decay: Any, h0: Any, y: Any, last: Any,
    *, steps: int, segments: int,
) -> None:  # fmt: skip
    decay = log_decay[...]

    def map_of(at: pl.Slice, position: Array, x: Array, input_gate: Array, recurrence_gate: Array) -> _Map:
        x, input_gate, recurrence_gate = (v.astype(jnp.float32) for v in (x, input_gate, recurrence_gate))
        return decay_and_input(x, input_gate, recurrence_gate, decay, jnp.where(_inside(at, steps), position, -1))

    def block(i: Array, h: Array) -> Array:
        times = _times(i, segments)
        loaded = [(at, positions[at], x[at, :], input_gate[at, :], recurrence_gate[at, :]) for at in times]
        maps = [map_of(*values) for values in loaded]  # all loads are issued before the first result is used
        states, h = _walk(maps, h)
        for at, state in zip(times, states[1:], strict=True):
            y[at, :] = state
        return h

    last[...] = jax.lax.fori_loop(0, pl.cdiv(steps, segments * STEPS), block, h0[...])


def _times(block: Array, segments: int) -> list[pl.Slice]:
    """Returns a block's slices of time: the first step of every segment, then the second of every one, and so on."""
    return [pl.ds(block * segments * STEPS + j, segments, stride=STEPS) for j in range(STEPS)]


def _inside(at: pl.Slice, steps: int) -> Bool[Array, " S"]:
    """Returns which of these times are before the end of a row."""
    return at.start + jnp.arange(at.size) * at.stride < steps


def _walk(maps: Iterable[_Map], h: Float32[Array, " C"]) -> tuple[list[Float32[Array, "S C"]], Float32[Array, " C"]]:
    """Applies the maps of all steps, one segment after the other.

    Args:
      maps: Maps of the segments' first steps, then of their second steps, and so on.
      h: State before the first segment.

    Returns:
      States of all segments before the first step and after every step, and the state after the last segment.
    """
    composed: list[_Map] = []
    for a, b in maps:
        composed.append((a * composed[-1][0], a * composed[-1][1] + b) if composed else (a, b))
    starts, h = _starts(*composed[-1], h)
    return [starts, *(a * starts + b for a, b in composed)], h


def _starts(
    a: Float32[Array, "S C"], b: Float32[Array, "S C"], h: Float32[Array, " C"]
) -> tuple[Float32[Array, "S C"], Float32[Array, " C"]]:
    """Returns h before each segment and after the last one, given the segments' composed maps."""
    segment = jnp.arange(a.shape[0])[:, None]
    starts = jnp.broadcast_to(h[None], a.shape)
    for s in range(a.shape[0]):
        starts = jnp.where(segment == s, h[None], starts)
        decay, own = (jnp.sum(jnp.where(segment == s, values, 0.0), axis=0) for values in (a, b))
        h = decay * h + own
    return starts, h

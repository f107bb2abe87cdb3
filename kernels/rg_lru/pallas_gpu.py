"""RG-LRU for NVIDIA GPUs: gates, scaling and recurrence in one pass over memory.

A program walks along some channels of one row, one block of time after the other. Within a block there are segments of
`STEPS` steps, and each thread has a channel of one segment: the thread loads all steps, composes their maps
h -> a * h + b, and then applies them to the h that the preceding segments lead to. This spreads the gates' exponentials
and the loads over several warps even for a single row. Only the result is written to memory.
"""

import functools
from collections.abc import Iterable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Float32, Int32

from ..backend import GpuSizes
from .sequential import decay_and_input

WARP: Final = 32
"""Threads of a warp. A program has as many channels, or half of them if that fills more multiprocessors: 64 bytes of
float32 are still whole transactions of memory."""

STEPS: Final = 16
"""Steps of a segment. Their inputs and composed maps take 113 of a thread's 255 registers."""

MAX_WARPS: Final = 8
"""Maximum number of warps of a program: two for each scheduler of a multiprocessor, which has four."""

type _Map = tuple[Array, Array]
"""The maps h -> a * h + b of all segments and channels, as a and b of shape `[S, C]`."""


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

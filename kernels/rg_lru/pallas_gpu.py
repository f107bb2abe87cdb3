"""The RG-LRU for NVIDIA GPUs: gates, scaling and recurrence in one pass over memory.

A program walks along one row with 32 channels, a block of time after the other. In a block, each warp has a segment of
`STEPS` steps and each of its threads a channel: it loads all of them, composes their maps h -> a * h + b, and learns
from the segments before it with which h its own begins. So the gates' exponentials, and the loads that wait for
memory, are spread over several warps even where a single row is all there is. Nothing is written but the result.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Float32, Int32

from .sequential import decay_and_input

CHANNELS: Final = 32
"""Of a program: one for each thread of a warp."""

STEPS: Final = 16
"""In a segment. What is loaded for them and their composed maps stay in registers, 113 of a thread's 255."""

MAX_SEGMENTS: Final = 8
"""In a block of time, a warp each: two for each of a multiprocessor's four schedulers."""

type _Map = tuple[Array, Array]
"""h -> a * h + b, for every segment and channel: two of `[S, C]`."""


def rg_lru_gpu(
    x: Float[Array, "B T E"],
    input_gate: Float[Array, "B T E"],
    recurrence_gate: Float[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    *,
    interpret: Any = False,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """See `rg_lru`."""
    segments, whole, sequence, state = _blocks(x.shape[1])
    y, last = pl.pallas_call(
        functools.partial(_rg_lru_kernel, steps=x.shape[1], segments=segments),
        out_shape=(jax.ShapeDtypeStruct(x.shape, jnp.float32), jax.ShapeDtypeStruct(h0.shape, jnp.float32)),
        grid=(pl.cdiv(x.shape[2], CHANNELS), x.shape[0]),
        in_specs=[
            pl.BlockSpec((None, whole), lambda e, b: (b, 0)),
            sequence,
            sequence,
            sequence,
            pl.BlockSpec((CHANNELS,), lambda e, b: (e,)),
            state,
        ],
        out_specs=(sequence, state),
        compiler_params=plgpu.CompilerParams(num_warps=segments, num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=15 * x.size,
            bytes_accessed=x.size * (3 * x.dtype.itemsize + 4) + 8 * h0.size + 4 * log_decay.size + 4 * positions.size,
            transcendentals=4 * x.size,
        ),
        interpret=interpret,
        name="rg_lru",
    )(positions, x, input_gate, recurrence_gate, log_decay, h0)
    return y, last


def _blocks(steps: int) -> tuple[int, int, pl.BlockSpec, pl.BlockSpec]:
    """How many segments a block of time has, the steps of all blocks, and a program's part of `[B, T, E]` and `[B, E]`.

    What is beyond an array may be anything when it is loaded, and is not stored.
    """
    segments = min(MAX_SEGMENTS, pl.next_power_of_2(pl.cdiv(steps, STEPS)))
    whole = pl.cdiv(steps, segments * STEPS) * segments * STEPS
    sequence = pl.BlockSpec((None, whole, CHANNELS), lambda e, b: (b, 0, e))
    return segments, whole, sequence, pl.BlockSpec((None, CHANNELS), lambda e, b: (b, e))


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
        maps = [map_of(*values) for values in loaded]  # all are on their way before the first is needed
        states, h = _walk(maps, h, range(segments))
        for at, state in zip(times, states[1:], strict=True):
            y[at, :] = state
        return h

    last[...] = jax.lax.fori_loop(0, pl.cdiv(steps, segments * STEPS), block, h0[...])


def _times(block: Array, segments: int) -> list[pl.Slice]:
    """The first step of every segment of a block, then the second of every one, and so on."""
    return [pl.ds(block * segments * STEPS + j, segments, stride=STEPS) for j in range(STEPS)]


def _inside(at: pl.Slice, steps: int) -> Bool[Array, " S"]:
    """Which of these times a row has."""
    return at.start + jnp.arange(at.size) * at.stride < steps


def _walk(
    maps: Iterable[_Map], h: Float32[Array, " C"], order: Sequence[int]
) -> tuple[list[Float32[Array, "S C"]], Float32[Array, " C"]]:
    """Every h that the maps lead through, the first before any of them, from one segment on to the next.

    Args:
      maps: of the segments' steps, in the order in which they are walked.
      h: before the first segment.
      order: of the segments.

    Returns:
      h of all segments before the first step and after every step, and h after the last segment.
    """
    composed: list[_Map] = []
    for a, b in maps:
        composed.append((a * composed[-1][0], a * composed[-1][1] + b) if composed else (a, b))
    starts, h = _starts(*composed[-1], h, order)
    return [starts, *(a * starts + b for a, b in composed)], h


def _starts(
    a: Float32[Array, "S C"], b: Float32[Array, "S C"], h: Float32[Array, " C"], order: Sequence[int]
) -> tuple[Float32[Array, "S C"], Float32[Array, " C"]]:
    """h before each segment, and after the last, given the segments' maps."""
    segment = jnp.arange(a.shape[0])[:, None]
    starts = jnp.broadcast_to(h[None], a.shape)
    for s in order:
        starts = jnp.where(segment == s, h[None], starts)
        decay, own = (jnp.sum(jnp.where(segment == s, values, 0.0), axis=0) for values in (a, b))
        h = decay * h + own
    return starts, h


def reverse_scan_gpu(
    a: Float32[Array, "B T E"],
    dy: Float32[Array, "B T E"],
    dlast: Float32[Array, "B E"],
    *,
    interpret: Any = False,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """See `ReverseScan`."""
    segments, _, sequence, state = _blocks(a.shape[1])
    dh, dh0 = pl.pallas_call(
        functools.partial(_reverse_kernel, steps=a.shape[1], segments=segments),
        out_shape=(jax.ShapeDtypeStruct(a.shape, jnp.float32), jax.ShapeDtypeStruct(dlast.shape, jnp.float32)),
        grid=(pl.cdiv(a.shape[2], CHANNELS), a.shape[0]),
        in_specs=[sequence, sequence, state],
        out_specs=(sequence, state),
        compiler_params=plgpu.CompilerParams(num_warps=segments, num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=6 * a.size, bytes_accessed=4 * (3 * a.size + 2 * dlast.size), transcendentals=0
        ),
        interpret=interpret,
        name="rg_lru_reverse",
    )(a, dy, dlast)
    return dh, dh0


def _reverse_kernel(a: Any, dy: Any, dlast: Any, dh: Any, dh0: Any, *, steps: int, segments: int) -> None:
    """What is carried is a[t] * dh[t]: each step's map is carry -> a * (carry + dy)."""
    blocks = pl.cdiv(steps, segments * STEPS)

    def load(at: pl.Slice) -> tuple[Array, Array]:
        inside = _inside(at, steps)[:, None]
        return jnp.where(inside, a[at, :], 1.0), jnp.where(inside, dy[at, :], 0.0)

    def block(i: Array, carry: Array) -> Array:
        times = _times(blocks - 1 - i, segments)[::-1]
        loaded = [load(at) for at in times]
        maps = [(decay, decay * own) for decay, own in loaded]
        states, carry = _walk(maps, carry, range(segments)[::-1])
        for at, (_, own), state in zip(times, loaded, states[:-1], strict=True):
            dh[at, :] = own + state
        return carry

    dh0[...] = jax.lax.fori_loop(0, blocks, block, dlast[...])

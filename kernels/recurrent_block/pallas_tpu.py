"""Recurrent block for TPUs: a decode step and a chunk of a prompt, each in one pass over memory."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from ..arithmetic import product_precision
from ..matrices import PackedGates
from .xla import Recurrence, RecurrentInputs, log_decay_of, next_state, states_at_boundaries

_ELEMENTS: Final = 256 * 256
"""Maximum elements of a block, so that on-chip memory does not depend on the size of the batch."""

_CUT_ROWS: Final = 128
"""Rows of blocks of which the last reaches past the end of a state."""

_TILE: Final = 8
"""Time steps in a vector register."""

_LOG2_E: Final = math.log2(math.e)

_LEAST: Final = 1e-37
"""Square of which a root is taken instead of 0."""


def takes(project: Callable[..., Array], inputs: RecurrentInputs, *others: int) -> bool:
    """Returns whether `recurrent_block_tpu` supports these weights: gate blocks of whole vector registers."""
    return inputs.weights.gate_block % 128 == 0


def recurrent_block_tpu(
    project: Callable[[jnp.dtype | None], Float[Array, "B T E2"]], inputs: RecurrentInputs, every: int, groups: int
) -> Recurrence:
    """Computes a step or a chunk per row with one kernel; see `recurrent_block`."""
    xy = project(None)
    if xy.shape[1] == 1:
        return Recurrence(*recurrent_step_tpu(xy[:, 0], inputs.of_step, groups=groups))
    _, conv, h, positions = inputs
    mixed, new_h, kept_h = recurrent_chunk_tpu(xy, inputs, every=every)
    x = xy[..., : h.shape[1]]
    kept_conv = states_at_boundaries(x, conv, positions, every)
    return Recurrence(mixed, next_state(x, conv, positions), new_h, kept_conv, kept_h)


def recurrent_step_tpu(
    xy: Float[Array, "B E2"], inputs: RecurrentInputs, *, groups: int = 1, interpret: Any = False
) -> tuple[Float[Array, "B E"], Float[Array, "K1 P E"], Float32[Array, "P E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row; the state is updated in place.

    A state may have P > B rows, in G groups of P / G rows. The kernel then reads and writes the first B / G rows of
    every group. B / G and, with several groups, P / G are multiples of 8.

    Args:
      xy: Input projections of the block, x first.
      inputs: The others. Rows with a negative position keep their state, and their output is undefined.
      groups: G, the number of groups of rows of the state.
      interpret: See `pallas_call`.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h.
    """
    (conv_weight, conv_bias, gate_weight, gate_bias, a_param), conv, h, positions = inputs
    assert not isinstance(gate_weight, PackedGates)
    rows, width = xy.shape[0], h.shape[1]
    blocks, size = gate_weight.shape[:2]
    taps = conv_weight.shape[0]
    block, place = _row_blocks(rows, h.shape[0], groups, size)
    channels = pl.BlockSpec((block, size), lambda n, b: (b, n))
    gate = pl.BlockSpec((block, size), lambda n, b: (b, blocks + n))
    state = pl.BlockSpec((block, size), lambda n, b: (place(b), n))
    history = pl.BlockSpec((taps - 1, block, size), lambda n, b: (0, place(b), n))
    per_channel = pl.BlockSpec((1, size), lambda n, b: (0, n))
    elements, state_bytes = rows * width, rows * width * (4 + (taps - 1) * conv.dtype.itemsize)
    out, new_conv, new_h = pl.pallas_call(
        _step_kernel,
        out_shape=(
            jax.ShapeDtypeStruct((rows, width), xy.dtype),
            jax.ShapeDtypeStruct(conv.shape, conv.dtype),
            jax.ShapeDtypeStruct(h.shape, h.dtype),
        ),
        grid=(blocks, pl.cdiv(rows, block)),
        in_specs=[
            channels,
            gate,
            pl.BlockSpec((taps, size), lambda n, b: (0, n)),
            per_channel,
            pl.BlockSpec((1, size, 2 * size), lambda n, b: (n, 0, 0)),
            pl.BlockSpec((1, 1, 2 * size), lambda n, b: (n, 0, 0)),
            per_channel,
            history,
            state,
            pl.BlockSpec((block, 1), lambda n, b: (b, 0)),
        ],
        out_specs=(channels, history, state),
        input_output_aliases={7: 1, 8: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=4 * elements * size + 30 * elements,
            bytes_accessed=3 * elements * xy.dtype.itemsize
            + 2 * state_bytes
            + gate_weight.size * gate_weight.dtype.itemsize,
            transcendentals=5 * elements,
        ),
        interpret=interpret,
        name="recurrent_step",
    )(
        xy, xy, conv_weight, conv_bias[None], gate_weight, gate_bias[:, None], log_decay_of(a_param)[None], conv, h,
        positions[:, None],
    )  # fmt: skip
    return out, new_conv, new_h


def _row_blocks(rows: int, pool: int, groups: int, size: int) -> tuple[int, Callable[[Any], Any]]:
    """Returns the rows per grid step of `recurrent_step_tpu`, and a function from a step to its block of the state.

    Blocks divide the rows. If only small ones do, the last block of a whole state reaches past its end instead. That of
    some rows may not: it would write rows behind them.
    """
    most = max(_ELEMENTS // size, 8) // 8 * 8
    if rows == pool:
        block = _divisor(rows, most)
        return (block if block >= min(rows, most // 4) else _CUT_ROWS), lambda b: b
    own, group = rows // groups, pool // groups
    block = _divisor(own if groups == 1 else math.gcd(own, group), most)

    def place(b: Any) -> Any:
        count = jnp.int32(own // block)
        return jax.lax.div(b, count) * (group // block) + jax.lax.rem(b, count)

    return block, place


def _divisor(rows: int, most: int) -> int:
    """Returns `rows` up to `most`, and of more rows the largest divisor that is a multiple of 8; 0 if there is none."""
    return rows if rows <= most else next((n for n in range(most, 0, -8) if rows % n == 0), 0)


def _step_kernel(
    x: Any, y: Any, conv_weight: Any, conv_bias: Any, gate_weight: Any, gate_bias: Any, log_decay: Any, conv: Any,
    h: Any, positions: Any, out: Any, new_conv: Any, new_h: Any,
) -> None:  # fmt: skip
    taps = conv_weight.shape[0]
    position = positions[...]
    token = x[...].astype(jnp.float32)
    c = token * conv_weight[taps - 1]
    for s in range(1, taps):
        tap = conv[taps - 1 - s].astype(jnp.float32) * conv_weight[taps - 1 - s]
        c += jnp.where(position >= s, tap, 0.0)
    c += conv_bias[...]
    log_a, gated = _gates(0.5 * c, gate_weight[0], gate_bias[0], log_decay[...])
    a, scale = _decay(log_a)
    moved = a * h[...] + scale * gated
    state = jnp.where(position == 0, gated, jnp.where(position < 0, h[...], moved))
    new_h[...] = state
    out[...] = (jax.nn.gelu(y[...].astype(jnp.float32), approximate=True) * state).astype(out.dtype)
    for s in range(taps - 1):
        following = conv[s + 1] if s + 2 < taps else x[...].astype(conv.dtype)
        new_conv[s] = jnp.where(position >= 0, following, conv[s])


def recurrent_chunk_tpu(
    xy: Float[Array, "B T E2"], inputs: RecurrentInputs, *, every: int = _TILE, interpret: Any = False
) -> tuple[Float[Array, "B T E"], Float32[Array, "B E"], Float32[Array, "B M E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for a chunk per row.

    The grid walks over gate blocks, whose weights are read once, rows and, in order, blocks of time; h and the last
    inputs stay in on-chip memory.
    Within a tile of 8 steps the recurrence is solved by recursive doubling, so that only one step in 8 waits for the
    one before.

    Args:
      xy: Input projections of the block, x first.
      inputs: The others. No document begins inside a row.
      every: Interval in steps at which h is returned; a multiple of 8 that divides 256.
      interpret: See `pallas_call`.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new h; and h after every `every` steps, with
      M = ceil(T / every).
    """
    (conv_weight, conv_bias, gate_weight, gate_bias, a_param), conv, h, positions = inputs
    assert not isinstance(gate_weight, PackedGates)
    rows, steps, width = xy.shape[0], xy.shape[1], h.shape[1]
    blocks, size = gate_weight.shape[:2]
    taps = conv_weight.shape[0]
    block = min(256, steps + -steps % every)
    padded = jnp.pad(xy, ((0, 0), (0, -steps % block), (0, 0)))
    lengths = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    per_channel = pl.BlockSpec((1, size), lambda n, b, t, *_: (0, n))
    state = pl.BlockSpec((1, 1, size), lambda n, b, t, *_: (b, 0, n))
    sequence = pl.BlockSpec((1, block, size), lambda n, b, t, *_: (b, t, n))
    scratch = pltpu.VMEM((block, size), jnp.float32)
    elements = rows * padded.shape[1] * width
    out, last, between = pl.pallas_call(
        partial(_chunk_kernel, every),
        out_shape=(
            jax.ShapeDtypeStruct((rows, padded.shape[1], width), xy.dtype),
            jax.ShapeDtypeStruct((rows, 1, width), jnp.float32),
            jax.ShapeDtypeStruct((rows, padded.shape[1] // every, 1, width), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(blocks, rows, padded.shape[1] // block),
            in_specs=[
                sequence,
                pl.BlockSpec((1, block, size), lambda n, b, t, *_: (b, t, blocks + n)),
                pl.BlockSpec((taps, size), lambda n, b, t, *_: (0, n)),
                per_channel,
                pl.BlockSpec((1, size, 2 * size), lambda n, b, t, *_: (n, 0, 0)),
                pl.BlockSpec((1, 1, 2 * size), lambda n, b, t, *_: (n, 0, 0)),
                per_channel,
                pl.BlockSpec((1, taps - 1, size), lambda n, b, t, *_: (b, 0, n)),
                state,
            ],
            out_specs=(
                sequence,
                state,
                pl.BlockSpec((1, block // every, 1, size), lambda n, b, t, *_: (b, t, 0, n)),
            ),
            scratch_shapes=[pltpu.VMEM((_TILE + block, size), jnp.float32), scratch, scratch],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * elements * size + 40 * elements,
            bytes_accessed=3 * elements * xy.dtype.itemsize
            + gate_weight.size * gate_weight.dtype.itemsize
            + rows * width * (2 * 4 + (taps - 1) * conv.dtype.itemsize),
            transcendentals=5 * elements,
        ),
        interpret=interpret,
        name="recurrent_chunk",
    )(
        jnp.maximum(positions[:, 0], 0), lengths, padded, padded, conv_weight, conv_bias[None], gate_weight,
        gate_bias[:, None], log_decay_of(a_param)[None], jnp.moveaxis(conv, 0, 1), h[:, None],
    )  # fmt: skip
    return out[:, :steps], last[:, 0], between[:, : -(-steps // every), 0]


def _chunk_kernel(
    every: int, starts: Any, lengths: Any, x: Any, y: Any, conv_weight: Any, conv_bias: Any, gate_weight: Any,
    gate_bias: Any, log_decay: Any, conv: Any, h0: Any, out: Any, last: Any, between: Any, history: Any, decay: Any,
    state: Any,
) -> None:  # fmt: skip
    """Kernel of `recurrent_chunk_tpu`: `history` holds the previous inputs and the block's, `last` carries h."""
    row, block_index = pl.program_id(1), pl.program_id(2)
    taps, (block, size) = conv_weight.shape[0], decay.shape
    begins = (starts[row] == 0) & (lengths[row] > 0) & (block_index == 0)

    @pl.when(block_index == 0)
    def start() -> None:
        last[0] = jnp.where(begins, 0.0, h0[0])
        age = taps - 1 - jax.lax.broadcasted_iota(jnp.int32, (taps - 1, size), 0)
        history[pl.ds(_TILE - taps + 1, taps - 1)] = jnp.where(age <= starts[row], conv[0].astype(jnp.float32), 0.0)

    @pl.when(block_index > 0)
    def go_on() -> None:
        history[pl.ds(0, _TILE)] = history[pl.ds(block, _TILE)]

    history[pl.ds(_TILE, block)] = x[0].astype(jnp.float32)
    c = 0.5 * conv_bias[...]
    for s in range(taps):
        c += history[pl.ds(_TILE - s, block)] * (0.5 * conv_weight[pl.ds(taps - 1 - s, 1)])
    log_a, gated = _gates(c, gate_weight[0], gate_bias[0], log_decay[...])
    step = block_index * block + jax.lax.broadcasted_iota(jnp.int32, (block, size), 0)
    a, scale = _decay(jnp.where(step < lengths[row], log_a, 0.0))  # padding keeps h
    is_first = begins & (step[:_TILE] == 0)
    scale = jnp.concatenate([jnp.where(is_first, 1.0, scale[:_TILE]), scale[_TILE:]])
    tiles = (block // _TILE, _TILE, size)
    solved_a, solved_b = _solve_tiles(a.reshape(tiles), (scale * gated).reshape(tiles))
    decay[...], state[...] = solved_a.reshape(block, size), solved_b.reshape(block, size)

    def tile(i: Any, h: Array) -> Array:
        at = pl.ds(pl.multiple_of(i * _TILE, _TILE), _TILE)
        solved = decay[at] * h + state[at]
        state[at] = solved
        return solved[_TILE - 1 :]

    last[0] = jax.lax.fori_loop(0, block // _TILE, tile, last[0], unroll=True)
    for i in range(block // every):
        between[0, i] = state[pl.ds((i + 1) * every - 1, 1)]
    out[0] = (jax.nn.gelu(y[0].astype(jnp.float32), approximate=True) * state[...]).astype(out.dtype)


def _solve_tiles(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns, for every step, the product of a and the state from 0 since the start of its tile of 8 steps."""
    step = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
    for distance in (1, 2, 4):
        inside = step >= distance
        earlier_a, earlier_b = (pltpu.roll(v, distance, axis=1) for v in (a, b))
        b += a * jnp.where(inside, earlier_b, 0.0)
        a *= jnp.where(inside, earlier_a, 1.0)
    return a, b


def _gates(half: Array, gate_weight: Array, gate_bias: Array, log_decay: Array) -> tuple[Array, Array]:
    """Returns log a and i * c of the recurrence for c / 2.

    A sigmoid is (1 + tanh(x / 2)) / 2, since the chip has an instruction for tanh and none for a division. That of the
    recurrence gate must be exact near 0 too, where log a is small, so there it is exp(x) times the sigmoid of -x.
    """
    halves = 0.5 * gate_bias + jnp.dot(
        half.astype(gate_weight.dtype),
        gate_weight,
        preferred_element_type=jnp.float32,
        precision=product_precision(gate_weight.dtype),
    )
    size = half.shape[1]
    recurrence = halves[:, size:]
    log_a = (1.0 + jnp.tanh(jnp.abs(recurrence))) * jnp.exp2((2.0 * _LOG2_E) * jnp.minimum(recurrence, 0.0))
    return (0.5 * log_decay) * log_a, (1.0 + jnp.tanh(halves[:, :size])) * half


def _decay(log_a: Array) -> tuple[Array, Array]:
    """Returns a and sqrt(1 - a²), where 1 - a² = -tanh(log a) (1 + a²) does not cancel near a = 1."""
    a = jnp.exp(log_a)
    rest = -jnp.tanh(log_a) * (1.0 + a * a)
    return a, rest * jax.lax.rsqrt(jnp.maximum(rest, _LEAST))

"""Window attention for TPUs: filled keys and values pass through on-chip memory once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .ring import in_order, pad_rows, round_up
from .softmax import Softmax, add_keys, no_keys, scores_of


def decode_attention_tpu(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    ring_k: Float[Array, "B W d"],
    ring_v: Float[Array, "B W d"],
    positions: Int32[Array, " B"],
    *,
    assumed_fill: float = 1.0,
    interpret: Any = False,
) -> Float[Array, "B N d"]:
    """Attends with one query per row to the filled part of its ring and to its own key; rings are only read.

    The grid walks over the busy rows and, within a row, over blocks of its ring. A grid step without work maps to the
    block that is loaded already, so it moves no bytes. Idle rows give zeros. The output has the dtype of q.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE.
      v: Values of the new tokens.
      ring_k: Keys of the W tokens before them.
      ring_v: Values of the W tokens before them.
      positions: Positions of the new tokens; negative for idle rows.
      assumed_fill: Filled share of the rings in the cost estimate.
      interpret: See `pallas_call`.
    """
    rows, heads, size = q.shape
    window = ring_k.shape[1]
    block = _ring_block(window)
    busy = positions >= 0
    order = jnp.argsort(~busy, stable=True).astype(jnp.int32)  # busy rows first
    count = jnp.sum(busy, dtype=jnp.int32)
    filled = jnp.clip(positions, 0, window)[order]

    def ring_index(i: Any, j: Any, order: Any, filled: Any, count: Any) -> tuple[Any, ...]:
        reader = jnp.minimum(i, jnp.maximum(count[0] - 1, 0))
        last = jnp.maximum(pl.cdiv(filled[reader], block) - 1, 0)
        return order[reader], jnp.where(i == reader, jnp.minimum(j, last), last), 0

    def row_index(i: Any, j: Any, order: Any, *_: Any) -> tuple[Any, ...]:
        return order[i], 0, 0

    query, own = (pl.BlockSpec((1, n, size), row_index) for n in (heads, 1))
    ring = pl.BlockSpec((1, block, size), ring_index)
    scratch = [pltpu.VMEM((heads, 1), jnp.float32), pltpu.VMEM((heads, 1), jnp.float32)]
    moved = 2 * rows * window * size * ring_k.dtype.itemsize * assumed_fill
    out: Array = pl.pallas_call(
        functools.partial(_decode_kernel, block=block),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(rows, window // block),
            in_specs=[query, own, own, ring, ring],
            out_specs=query,
            scratch_shapes=[*scratch, pltpu.VMEM((heads, size), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=int(4 * rows * heads * window * size * assumed_fill),
            bytes_accessed=int(moved) + rows * size * (2 * heads * q.dtype.itemsize + 2 * k.dtype.itemsize),
            transcendentals=int(rows * heads * window * assumed_fill),
        ),
        interpret=interpret,
        name="window_attention_decode",
    )(order, filled, count[None], q, k[:, None], v[:, None], ring_k, ring_v)
    return out


def _ring_block(window: int) -> int:
    """Returns the ring rows per grid step: few enough to skip unfilled rows, many enough to saturate memory."""
    return next((n for n in (512, 256, 128) if window % n == 0), window)


def _decode_kernel(
    order: Any, filled: Any, count: Any, q: Any, k: Any, v: Any, keys: Any, values: Any, out: Any,
    top: Any, total: Any, mixed: Any, *, block: int,
) -> None:  # fmt: skip
    """Kernel of `decode_attention_tpu`: an online softmax whose state is carried in scratch memory."""
    i, j = pl.program_id(0), pl.program_id(1)
    scale = q.shape[-1] ** -0.5
    works = i < count[0]

    @pl.when(works & (j == 0))
    def start() -> None:
        own = jnp.sum(q[0].astype(jnp.float32) * k[0].astype(jnp.float32), axis=-1, keepdims=True)
        top[...] = own * scale
        total[...] = jnp.ones_like(total)
        mixed[...] = jnp.broadcast_to(v[0].astype(jnp.float32), mixed.shape)

    @pl.when(works & (j * block < filled[i]))
    def step() -> None:
        left = filled[i] - j * block
        scores = scores_of(q[0], keys[0]) * scale
        known = jnp.where(_iota(values.shape[1:], 0) < left, values[0], jnp.zeros_like(values[0]))
        running = Softmax(top[...], total[...], mixed[...])
        top[...], total[...], mixed[...] = add_keys(running, scores, _iota(scores.shape, 1) < left, known)

    @pl.when(i >= count[0])
    def idle() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when(works & (j == pl.num_programs(1) - 1))
    def finish() -> None:
        out[0] = (mixed[...] / total[...]).astype(out.dtype)


def _iota(shape: tuple[int, ...], axis: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def prefill_attention_tpu(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    ring_k: Float[Array, "B W d"],
    ring_v: Float[Array, "B W d"],
    positions: Int32[Array, "B T"],
    *,
    interpret: Any = False,
) -> Float[Array, "B T N d"]:
    """Attends with a chunk of queries per row to the ring and the chunk; rings are only read.

    Ring and chunk are laid out in order of position, so that a token sees a band of W + 1 keys. The grid walks over the
    band of a block of queries; blocks of keys from before the document's start are skipped. The output has the dtype of
    q.

    Args:
      q: Queries of the chunk, after RoPE.
      k: Keys of the chunk, after RoPE.
      v: Values of the chunk.
      ring_k: Keys of the W tokens before the chunk.
      ring_v: Values of the W tokens before the chunk.
      positions: Positions of the tokens; see `prefill_attention`. No document begins inside a row.
      interpret: See `pallas_call`.
    """
    rows, steps, heads, size = q.shape
    window = ring_k.shape[1]
    queries = min(128, round_up(steps, 16))
    keys = min(256, round_up(window + steps, 16))
    start = jnp.maximum(positions[:, 0], 0)
    begin = window - jnp.minimum(start, window)  # index in the band of the first existing key
    all_k, all_v = (in_order(ring, new, start, keys) for ring, new in ((ring_k, k), (ring_v, v)))
    by_head = jnp.moveaxis(pad_rows(q, queries), 1, 2)
    num_queries, last = by_head.shape[2] // queries, all_k.shape[1] // keys - 1
    band = (window + queries + keys - 2) // keys + 1

    def key_index(b: Any, i: Any, j: Any, begin: Any) -> tuple[Any, ...]:
        return b, jnp.clip(_block_of(i * queries, keys) + j, jnp.minimum(_block_of(begin[b], keys), last), last), 0

    query = pl.BlockSpec((1, heads, queries, size), lambda b, i, j, _: (b, 0, i, 0))
    key = pl.BlockSpec((1, keys, size), key_index)
    flat = heads * queries
    column = pltpu.VMEM((flat, 1), jnp.float32)
    blocks = rows * num_queries * band
    out = pl.pallas_call(
        functools.partial(_prefill_kernel, window=window),
        out_shape=jax.ShapeDtypeStruct(by_head.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, num_queries, band),
            in_specs=[query, key, key],
            out_specs=query,
            scratch_shapes=[column, column, pltpu.VMEM((flat, size), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * blocks * flat * keys * size,
            bytes_accessed=2 * blocks * keys * size * all_k.dtype.itemsize + 2 * by_head.size * q.dtype.itemsize,
            transcendentals=blocks * flat * keys,
        ),
        interpret=interpret,
        name="window_attention_prefill",
    )(begin, by_head, all_k, all_v)
    return jnp.moveaxis(out, 2, 1)[:, :steps]


def _block_of(place: Any, size: int) -> Any:
    """Returns place // size for place ≥ 0, without the handling of signs that `//` adds."""
    return jax.lax.div(place, jnp.int32(size))


def _prefill_kernel(
    begin: Any, q: Any, keys: Any, values: Any, out: Any, top: Any, total: Any, mixed: Any, *, window: int
) -> None:
    """Kernel of `prefill_attention_tpu`: an online softmax over `queries` tokens with all their heads."""
    b, i, j = (pl.program_id(axis) for axis in range(3))
    heads, queries, size = q.shape[1:]
    first = (_block_of(i * queries, keys.shape[1]) + j) * keys.shape[1]
    scale = size**-0.5

    @pl.when(j == 0)
    def start() -> None:
        top[...], total[...], mixed[...] = no_keys(*mixed.shape)

    sees = (first + keys.shape[1] > jnp.maximum(i * queries, begin[b])) & (first <= window + (i + 1) * queries - 1)

    @pl.when(sees)
    def step() -> None:
        scores = scores_of(q[0].reshape(heads * queries, size), keys[0]) * scale
        token = i * queries + jax.lax.rem(_iota(scores.shape, 0), jnp.int32(queries))
        place = first + _iota(scores.shape, 1)
        visible = (place >= jnp.maximum(token, begin[b])) & (place <= window + token)
        exists = first + _iota(values.shape[1:], 0) >= begin[b]
        known = jnp.where(exists, values[0], jnp.zeros_like(values[0]))
        running = Softmax(top[...], total[...], mixed[...])
        top[...], total[...], mixed[...] = add_keys(running, scores, visible, known)

    @pl.when(j == pl.num_programs(2) - 1)
    def finish() -> None:
        out[0] = (mixed[...] / total[...]).reshape(heads, queries, size).astype(out.dtype)

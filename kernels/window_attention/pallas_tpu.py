"""Window attention for TPUs: filled keys and values pass through on-chip memory once."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..precision import product_precision
from .int8 import Int8Vectors, map_tokens
from .ring import Rings, in_order, pad_rows, round_up
from .softmax import MASKED, Softmax, add_keys, scores_of
from .tpu_grid import BusyRows, RingAttention, RingWalk, block_of, busy_rows_first, iota, row_index

_MAX_QUERY_BYTES: Final = 2560 * 256 * 2
"""Maximum bytes of a block of 256 tokens' queries that fit in on-chip memory with their scores and results."""

_LANES: Final = 128
"""Lanes of a vector register."""

MAX_RING_BLOCK: Final = 512
"""Maximum rows of a block in which decode attention reads a ring."""

RING_TILE: Final = 16
"""Rows of a ring that are copied together: on-chip memory holds whole tiles, in bfloat16 of 16 rows."""


def decode_attention_tpu(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    ring_k: Float[Array, "P W d"],
    ring_v: Float[Array, "P W d"],
    positions: Int32[Array, " B"],
    *,
    assumed_fill: float = 1.0,
    interpret: Any = False,
) -> tuple[Float[Array, "B N d"], Rings]:
    """Attends with one query per row to the filled part of its ring and to its own key, then writes the key.

    The grid walks over the busy rows, and a loop over the filled blocks of a row's ring; see `RingAttention`. The tile
    of rows with the new token's is always read: it is replaced in on-chip memory and copied back, so rings are updated
    in place. Idle rows give zeros and write nothing.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE.
      v: Values of the new tokens.
      ring_k: Keys of the W tokens before them, in the first B of P ≥ B rings. W is a multiple of `RING_TILE` unless
        the kernel is interpreted.
      ring_v: Values of the W tokens before them.
      positions: Positions of the new tokens; negative for idle rows.
      assumed_fill: Filled share of the rings in the cost estimate.
      interpret: See `pallas_call`.

    Returns:
      Outputs of the heads, in the dtype of q, and the rings.
    """
    rows, heads, size = q.shape
    window = ring_k.shape[1]
    walk, scalars = RingWalk.over(window, MAX_RING_BLOCK), busy_rows_first(positions)
    tile = RING_TILE if window % RING_TILE == 0 else window
    query, own = (pl.BlockSpec((1, n, size), row_index) for n in (heads, 1))
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    column = pltpu.VMEM((heads, 1), jnp.float32)
    read = 2 * rows * window * size * ring_k.dtype.itemsize * assumed_fill
    written = 2 * rows * tile * size * ring_k.dtype.itemsize
    out, *rings = pl.pallas_call(
        functools.partial(_decode_kernel, walk=walk),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, ring_k, ring_v)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(rows,),
            in_specs=[query, own, own, in_place, in_place],
            out_specs=[query, in_place, in_place],
            scratch_shapes=[
                [column, column, pltpu.VMEM((heads, size), jnp.float32)],
                [pltpu.VMEM((2, walk.block, size), ring_k.dtype)] * 2, [pltpu.VMEM((tile, size), ring_k.dtype)] * 2,
                pltpu.SemaphoreType.DMA((2, 2)), pltpu.SemaphoreType.DMA((2,)), pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        input_output_aliases={5: 1, 6: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), disable_bounds_checks=True),
        cost_estimate=pl.CostEstimate(
            flops=int(4 * rows * heads * window * size * assumed_fill),
            bytes_accessed=int(read) + written + rows * size * (2 * heads * q.dtype.itemsize + 2 * k.dtype.itemsize),
            transcendentals=int(rows * heads * window * assumed_fill),
        ),
        interpret=interpret,
        name="window_attention_decode",
    )(*scalars, q, k[:, None], v[:, None], ring_k, ring_v)  # fmt: skip
    return out, tuple(rings)


def _decode_kernel(
    order: Any, position: Any, q: Any, k: Any, v: Any, ring_k_in: Any, ring_v_in: Any, out: Any, ring_k: Any,
    ring_v: Any, *memory: Any, walk: RingWalk,
) -> None:  # fmt: skip
    """Kernel of `decode_attention_tpu`: an online softmax whose state is carried in scratch memory."""
    scale = q.shape[-1] ** -0.5
    (top, total, mixed), (keys, values), *_ = memory

    def own() -> tuple[Array, Array]:
        product = jnp.sum(q[0].astype(jnp.float32) * k[0].astype(jnp.float32), axis=-1, keepdims=True)
        return product * scale, v[0].astype(jnp.float32)

    def add(half: Any, left: Any, part: int) -> None:
        scores, found = scores_of(q[0], keys[half, :part]) * scale, values[half, :part]
        known = jnp.where(iota(found.shape, 0) < left, found, jnp.zeros_like(found))
        running = Softmax(top[...], total[...], mixed[...])
        top[...], total[...], mixed[...] = add_keys(running, scores, iota(scores.shape, 1) < left, known)

    attention = RingAttention(walk, BusyRows(order, position), (ring_k, ring_v), *memory)
    attention.attend(out, own, add, lambda: (k[0], v[0]))


def prefill_attention_tpu(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"] | Int8Vectors,
    v: Float[Array, "B T d"] | Int8Vectors,
    ring_k: Float[Array, "B W d"] | Int8Vectors,
    ring_v: Float[Array, "B W d"] | Int8Vectors,
    positions: Int32[Array, "B T"],
    *,
    interpret: Any = False,
) -> Float[Array, "B T N d"]:
    """Attends with a chunk of queries per row to the ring and the chunk; rings are only read.

    Ring and chunk are laid out in order of position, so that a token sees a band of W + 1 keys. The grid walks over the
    band of a block of queries; blocks of keys from before the document's start are skipped. Products take int8 as
    numbers of q's dtype, which holds them exactly; scales multiply scores and weights. The output has the dtype of q.

    Args:
      q: Queries of the chunk, after RoPE.
      k: Keys of the chunk, after RoPE, in int8 if the rings are.
      v: Values of the chunk, likewise.
      ring_k: Keys of the W tokens before the chunk.
      ring_v: Values of the W tokens before the chunk.
      positions: Positions of the tokens; see `prefill_attention`. No document begins inside a row.
      interpret: See `pallas_call`.
    """
    rows, steps, heads, size = q.shape
    window = ring_k.shape[1]
    is_small = 256 * heads * size * q.dtype.itemsize <= _MAX_QUERY_BYTES
    queries = min(256 if is_small else 128, round_up(steps, 16))
    keys = min(256, round_up(window + steps, 16))
    start = jnp.maximum(positions[:, 0], 0)
    begin = window - jnp.minimum(start, window)  # index in the band of the first existing key
    exists = jnp.arange(round_up(window + steps, keys)) >= begin[:, None]

    def clear(axis: int, x: Array) -> Array:
        return jnp.where(jnp.expand_dims(exists, 3 - axis), x, jnp.zeros((), x.dtype))

    all_k, all_v = (map_tokens(clear, in_order(ring, new, start, keys)) for ring, new in ((ring_k, k), (ring_v, v)))
    arrays: tuple[Array, ...] = (all_k, all_v)
    if isinstance(all_k, Int8Vectors):
        arrays = (all_k.values, all_v.values, all_k.scale, all_v.scale)
    by_head = jnp.moveaxis(pad_rows(q, queries), 1, 2)
    num_queries, last = by_head.shape[2] // queries, all_k.shape[1] // keys - 1
    most_before = keys - math.gcd(queries, keys)  # keys of a block before the first that a block of queries sees
    band = -(-(most_before + window + queries) // keys)

    def key_index(b: Any, i: Any, j: Any, begin: Any) -> tuple[Any, ...]:
        return b, jnp.clip(block_of(i * queries, keys) + j, jnp.minimum(block_of(begin[b], keys), last), last), 0

    query = pl.BlockSpec((1, heads, queries, size), lambda b, i, j, _: (b, 0, i, 0))

    def scale_index(*args: Any) -> tuple[Any, ...]:
        b, at, _ = key_index(*args)
        return b, 0, at

    key, scale = pl.BlockSpec((1, keys, size), key_index), pl.BlockSpec((1, 1, keys), scale_index)
    lanes = _LANES if keys % _LANES == size % _LANES == 0 else 1
    flat = heads * queries
    column = pltpu.VMEM((flat, lanes), jnp.float32)
    key_bytes = sum(x.size * x.dtype.itemsize for x in arrays) // all_k.shape[1]
    pairs = rows * heads * by_head.shape[2] * band * keys
    out = pl.pallas_call(
        functools.partial(_prefill_kernel, window=window),
        out_shape=jax.ShapeDtypeStruct(by_head.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, num_queries, band),
            in_specs=[query, key, key, scale, scale][: 1 + len(arrays)],
            out_specs=query,
            scratch_shapes=[column, column, pltpu.VMEM((flat, size), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * size,
            bytes_accessed=num_queries * band * keys * key_bytes + 2 * by_head.size * q.dtype.itemsize,
            transcendentals=pairs,
        ),
        interpret=interpret,
        name="window_attention_prefill",
    )(begin, by_head, *arrays)
    return jnp.moveaxis(out, 2, 1)[:, :steps]


def _prefill_kernel(begin: Any, q: Any, keys: Any, values: Any, *refs: Any, window: int) -> None:
    """Kernel of `prefill_attention_tpu`: an online softmax over `queries` tokens with all their heads.

    Blocks that all queries see need no mask. A query that sees no key of its first blocks collects values
    with a weight that its first visible key makes 0.
    """
    *scales, out, top, total, mixed = refs
    b, i, j = (pl.program_id(axis) for axis in range(3))
    heads, queries, size = q.shape[1:]
    block = keys.shape[1]
    first, token = (block_of(i * queries, block) + j) * block, i * queries

    @pl.when(j == 0)
    def start() -> None:
        top[...] = jnp.full_like(top, MASKED)
        total[...], mixed[...] = jnp.zeros_like(total), jnp.zeros_like(mixed)

    sees = (first + block > jnp.maximum(token, begin[b])) & (first <= window + token + queries - 1)
    is_inside = (first >= token + queries - 1) & (first + block - 1 <= window + token)
    add = functools.partial(_add_block, q, keys, values, scales, top, total, mixed)

    @pl.when(sees & is_inside)
    def inside() -> None:
        exists = first + iota((1, block), 1) >= begin[b]
        hidden = jnp.where(exists, 0.0, MASKED)
        add(lambda scores: scores + hidden)

    @pl.when(sees & ~is_inside)
    def edge() -> None:
        queried, place = token + iota((queries, block), 0), first + iota((queries, block), 1)
        visible = (place >= jnp.maximum(queried, begin[b])) & (place <= window + queried)
        add(lambda scores: jnp.where(jnp.concatenate([visible] * heads), scores, MASKED))

    @pl.when(j == pl.num_programs(2) - 1)
    def finish() -> None:
        out[0] = (mixed[...] / _spread(total[...], size)).reshape(heads, queries, size).astype(out.dtype)


def _add_block(
    q: Any, keys: Any, values: Any, scales: Sequence[Any], top: Any, total: Any, mixed: Any,
    mask: Callable[[Array], Array],
) -> None:  # fmt: skip
    """Adds a block of keys to the softmax; `mask` lowers the scores of hidden keys.

    Keys and values in int8 have scales, which multiply scores and weights.
    """
    block, size = keys.shape[1:]
    dtype = q.dtype if scales else values.dtype
    base_2 = size**-0.5 * math.log2(math.e)  # factor with which a power of 2 is the exponential of a scaled score
    products = scores_of(q[0].reshape(-1, size), keys[0].astype(dtype))
    scores, before = mask(products * scales[0][0] if scales else products), top[...]
    highest = jnp.maximum(before, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp2(scores * base_2 - _spread(highest * base_2, block))
    shrink = jnp.exp2((before - highest) * base_2)
    top[...] = highest
    total[...] = total[...] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    mixed[...] = mixed[...] * _spread(shrink, size) + jnp.dot(
        (weights * scales[1][0] if scales else weights).astype(dtype),
        values[0].astype(dtype),
        preferred_element_type=jnp.float32,
        precision=product_precision(dtype),
    )


def _spread(column: Array, lanes: int) -> Array:
    """Returns a column, which is held once or in every lane of a register, for an array of `lanes` lanes."""
    return column if column.shape[1] == 1 else jnp.concatenate([column] * (lanes // column.shape[1]), axis=1)

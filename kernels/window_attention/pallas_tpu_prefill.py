"""Window attention of chunks for TPUs: filled keys and values pass through on-chip memory once."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..arithmetic import product_precision
from .pallas import MASKED, block_of, iota, scores_of
from .ring import Int8Vectors, in_order, map_tokens, pad_rows, round_up

_MAX_QUERY_BYTES: Final = 2560 * 256 * 2
"""Maximum bytes of a block of 256 tokens' queries that fit in on-chip memory with their scores and results."""

_LANES: Final = 128
"""Lanes of a vector register."""


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

"""Window attention for NVIDIA GPUs: a program loads each key and value that it needs once, and no others.

A program keeps its online softmax in registers while it walks along blocks of keys. Loads pad head sizes with zeros to
a power of two, which changes no product, and queries to a whole tile. Masked lanes load nothing.
"""

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int32

from ..backend import GpuSizes
from .pallas import Softmax, add_keys, no_keys, scores_of
from .ring import Rings, in_order, round_up, write_ring

MIN_TILE: Final = 16
"""Minimum size of each axis of a product's operands."""

DECODE_BYTES: Final = 16 * 1024
"""Bytes of a block of keys in decode: few enough for several programs per multiprocessor, with the values and the next
block in flight, so that one program computes while another waits for memory."""

PREFILL_QUERIES: Final = {2: 64, 4: 32}
"""Queries of a program in prefill, by itemsize: the tile and its softmax about fill the registers of eight warps at a
head size of 256."""

PREFILL_BYTES: Final = {2: 32 * 1024, 4: 16 * 1024}
"""Maximum bytes of a block of keys in prefill, by itemsize."""

PREFILL_WARPS: Final = 8
"""Warps of a program in prefill. With fewer, the softmax spills from registers."""

STAGES: Final = 2
"""Blocks of keys and values in flight: the one that is computed with, and the next."""

SCRATCH_BYTES: Final = 4 * 1024
"""Bytes of shared memory, in addition to queries, keys and values, which reductions and changes of layout take."""

PROGRAMS_PER_MULTIPROCESSOR: Final = 2
"""Minimum number of programs in decode per multiprocessor; with few rows, several programs share a ring."""

MIN_SPAN: Final = 128
"""Minimum keys of a program's span of a ring, so that with up to 16 heads it writes at most an eighth of its reads."""


def decode_attention_gpu(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    ring_k: Float[Array, "P W d"],
    ring_v: Float[Array, "P W d"],
    positions: Int32[Array, " B"],
    *,
    gpu: GpuSizes,
    assumed_fill: float = 1.0,
    interpret: Any = False,
) -> tuple[Float[Array, "B N d"], Rings]:
    """Attends with one query per row to the filled part of its ring and to its own key, then writes the key.

    The grid walks over rows and spans of their rings. Each program returns a softmax over the filled part of its span,
    and XLA merges these with the row's own key and writes the key. Idle rows read nothing and give zeros.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE.
      v: Values of the new tokens.
      ring_k: Keys of the W tokens before them, in the first B of P ≥ B rings.
      ring_v: Values of the W tokens before them.
      positions: Positions of the new tokens; negative for idle rows.
      gpu: Sizes of the GPU.
      assumed_fill: Filled share of the rings in the cost estimate.
      interpret: See `pallas_call`.

    Returns:
      Outputs of the heads, in the dtype of q, and the rings.
    """
    rows, heads, size = q.shape
    window = ring_k.shape[1]
    block, width = _keys_per_block(ring_k, DECODE_BYTES), _power_of_two(size)
    programs = PROGRAMS_PER_MULTIPROCESSOR * gpu.multiprocessors
    span = round_up(min(window, max(MIN_SPAN, pl.cdiv(rows * window, programs))), block)
    spans = pl.cdiv(window, span)
    tile = _power_of_two(heads)
    query = pl.BlockSpec((None, tile, width), lambda b, s: (b, 0, 0))
    ring = pl.BlockSpec((None, spans * span, width), lambda b, s: (b, 0, 0))
    column = pl.BlockSpec((None, None, tile, 1), lambda b, s: (b, s, 0, 0))
    softmax = (rows, spans, heads)
    moved = 2 * rows * window * size * ring_k.dtype.itemsize * assumed_fill
    parts = pl.pallas_call(
        functools.partial(_decode_kernel, size=size, heads=heads, window=window, span=span, block=block),
        out_shape=[jax.ShapeDtypeStruct((*softmax, n), jnp.float32) for n in (1, 1, size)],
        grid=(rows, spans),
        in_specs=[pl.BlockSpec((1,), lambda b, s: (b,)), query, ring, ring],
        out_specs=[column, column, pl.BlockSpec((None, None, tile, width), lambda b, s: (b, s, 0, 0))],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=STAGES),
        cost_estimate=pl.CostEstimate(
            flops=int(4 * rows * heads * window * size * assumed_fill),
            bytes_accessed=int(moved) + q.size * q.dtype.itemsize + 4 * rows * spans * heads * (size + 2),
            transcendentals=int(rows * heads * window * assumed_fill),
        ),
        interpret=interpret,
        name="window_attention_decode",
    )(positions, q, ring_k, ring_v)
    out = _merge(q, k, v, Softmax(*parts), positions)
    out, k, v = jax.lax.optimization_barrier((out, k, v))  # reads before writes: no copy of the rings
    return out, write_ring((ring_k, ring_v), k[:, None], v[:, None], positions[:, None], positions)


def _keys_per_block(keys: Float[Array, "B K d"], num_bytes: int) -> int:
    """Returns the keys that fit in these bytes, from `MIN_TILE` to 128; more would only lengthen the last block."""
    return max(MIN_TILE, min(128, num_bytes // (_power_of_two(keys.shape[2]) * keys.dtype.itemsize)))


def _power_of_two(n: int) -> int:
    """Returns the least power of two that is at least n and `MIN_TILE`."""
    return max(MIN_TILE, 1 << (n - 1).bit_length())


def _decode_kernel(
    position: Any, q: Any, ring_k: Any, ring_v: Any, top: Any, total: Any, mixed: Any,
    *, size: int, heads: int, window: int, span: int, block: int,
) -> None:  # fmt: skip
    first = pl.program_id(1) * span
    filled = jnp.clip(position[0], 0, window)
    tile, width = q.shape
    query = _load_rows(q, jnp.int32(0), jnp.arange(tile) < heads, size)

    def step(j: Array, softmax: Softmax) -> Softmax:
        start = first + j * block
        known = start + jnp.arange(block) < filled
        keys, values = (_load_rows(ring, start, known, size) for ring in (ring_k, ring_v))
        scores = scores_of(query, keys) * size**-0.5
        return add_keys(softmax, scores, jnp.broadcast_to(known[None], scores.shape), values)

    blocks = pl.cdiv(jnp.clip(filled - first, 0, span), block)
    softmax = jax.lax.fori_loop(0, blocks, step, no_keys(tile, width))
    for ref, value in zip((top, total, mixed), softmax, strict=True):
        _store_rows(ref, value, heads, min(size, ref.shape[1]))


def _load_rows(ref: Any, start: Array, wanted: Bool[Array, " K"], size: int) -> Float[Array, "K D"]:
    """Loads rows of `[*, D]` from `start` on, with zeros for unwanted rows and behind the first `size` columns."""
    inside = wanted[:, None] & (jnp.arange(ref.shape[1]) < size)[None]
    return plgpu.load(ref.at[pl.ds(start, wanted.shape[0]), :], mask=inside, other=0.0)


def _store_rows(ref: Any, value: Float[Array, "K D"], rows: Any, size: int) -> None:
    """Stores the first `rows` rows and `size` columns of a tile."""
    inside = (jnp.arange(value.shape[0]) < rows)[:, None] & (jnp.arange(value.shape[1]) < size)[None]
    plgpu.store(ref, value.astype(ref.dtype), mask=inside)


def _merge(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    parts: Softmax,
    positions: Int32[Array, " B"],
) -> Float[Array, "B N d"]:
    """Merges the spans' softmaxes, `[B, S, N, …]`, with each row's own key."""
    own = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32)[:, None], axis=-1, keepdims=True) * q.shape[-1] ** -0.5
    top = jnp.maximum(own, jnp.max(parts.top, axis=1))
    shrink, weight = jnp.exp(parts.top - top[:, None]), jnp.exp(own - top)
    mixed = jnp.sum(shrink * parts.mixed, axis=1) + weight * v.astype(jnp.float32)[:, None]
    total = jnp.sum(shrink * parts.total, axis=1) + weight
    return jnp.where((positions >= 0)[:, None, None], mixed / total, 0.0).astype(q.dtype)


def prefill_attention_gpu(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    ring_k: Float[Array, "B W d"],
    ring_v: Float[Array, "B W d"],
    positions: Int32[Array, "B T"],
    *,
    gpu: GpuSizes,
    interpret: Any = False,
) -> Float[Array, "B T N d"]:
    """Attends with a chunk of queries per row to the ring and the chunk; rings are only read.

    Ring and chunk are laid out in order of position, so that a token sees a band of W + 1 keys. A tile of queries is
    some tokens with all their heads, as they lie in memory. Blocks of keys from before the document's start or of
    padding are skipped; a tile of padding reads nothing and gives zeros. The output has the dtype of q.

    Args:
      q: Queries of the chunk, after RoPE.
      k: Keys of the chunk, after RoPE.
      v: Values of the chunk.
      ring_k: Keys of the W tokens before the chunk.
      ring_v: Values of the W tokens before the chunk.
      positions: Positions of the tokens; see `prefill_attention`. No document begins inside a row.
      gpu: Sizes of the GPU.
      interpret: See `pallas_call`.
    """
    rows, steps, heads, size = q.shape
    window = ring_k.shape[1]
    tile, width = PREFILL_QUERIES[q.dtype.itemsize], _power_of_two(size)
    block = _keys_per_block(ring_k, _prefill_bytes(tile * width * q.dtype.itemsize, q.dtype.itemsize, gpu))
    start = jnp.maximum(positions[:, 0], 0)
    begin = window - jnp.minimum(start, window)  # index in the band of the first existing key
    end = window + jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    all_k, all_v = (in_order(ring, new, start, block) for ring, new in ((ring_k, k), (ring_v, v)))
    tiles = pl.cdiv(steps * heads, tile)
    query = pl.BlockSpec((None, tile, width), lambda b, i: (b, i, 0))
    key = pl.BlockSpec((None, all_k.shape[1], width), lambda b, i: (b, 0, 0))
    limit = pl.BlockSpec((1,), lambda b, i: (b,))
    keys_seen = rows * tiles * (window + pl.cdiv(tile, heads))
    out: Array = pl.pallas_call(
        functools.partial(_prefill_kernel, size=size, heads=heads, steps=steps, window=window, block=block),
        out_shape=jax.ShapeDtypeStruct((rows, steps * heads, size), q.dtype),
        grid=(rows, tiles),
        in_specs=[limit, limit, query, key, key],
        out_specs=query,
        compiler_params=plgpu.CompilerParams(num_warps=PREFILL_WARPS, num_stages=STAGES),
        cost_estimate=pl.CostEstimate(
            flops=4 * keys_seen * tile * size,
            bytes_accessed=2 * keys_seen * size * all_k.dtype.itemsize + 2 * q.size * q.dtype.itemsize,
            transcendentals=keys_seen * tile,
        ),
        interpret=interpret,
        name="window_attention_prefill",
    )(begin, end, q.reshape(rows, steps * heads, size), all_k, all_v)
    return out.reshape(q.shape)


def _prefill_bytes(query_bytes: int, itemsize: int, gpu: GpuSizes) -> int:
    """Returns the bytes of a block of keys: the maximum, halved until all that is in flight fits shared memory."""
    num_bytes, left = PREFILL_BYTES[itemsize], gpu.block_memory - query_bytes - SCRATCH_BYTES
    while 2 * STAGES * num_bytes > left and num_bytes > 1024:
        num_bytes //= 2
    return num_bytes


def _prefill_kernel(
    begin: Any, end: Any, q: Any, all_k: Any, all_v: Any, out: Any,
    *, size: int, heads: int, steps: int, window: int, block: int,
) -> None:  # fmt: skip
    tile, width = q.shape
    first = pl.program_id(1) * tile
    left = steps * heads - first
    query = _load_rows(q, jnp.int32(0), jnp.arange(tile) < left, size)
    token = (first + jnp.arange(tile)) // heads
    since, until = jnp.maximum(token, begin[0]), jnp.minimum(token + window + 1, end[0])

    def step(j: Array, softmax: Softmax) -> Softmax:
        place = j * block + jnp.arange(block)
        exists = (place >= begin[0]) & (place < end[0])
        keys, values = (_load_rows(ref, j * block, exists, size) for ref in (all_k, all_v))
        visible = (place >= since[:, None]) & (place < until[:, None])
        return add_keys(softmax, scores_of(query, keys) * size**-0.5, visible, values)

    oldest, newest = first // heads, jnp.minimum((first + tile - 1) // heads, steps - 1)
    is_padding = window + oldest >= end[0]
    low = jnp.maximum(oldest, begin[0]) // block
    high = jnp.where(is_padding, low, pl.cdiv(jnp.minimum(newest + window + 1, end[0]), block))
    softmax = jax.lax.fori_loop(low, high, step, no_keys(tile, width))
    total = jnp.where(softmax.total > 0.0, softmax.total, 1.0)
    _store_rows(out, softmax.mixed / total, left, size)

"""Window attention of decode steps for TPUs over rings in int8; see `decode_attention_tpu` for floating-point rings."""

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..precision import product_precision
from .int8 import Int8Vectors
from .pallas_tpu import iota
from .softmax import MASKED, scores_of
from .tpu_grid import RingWalk, block_of, busy_rows_first, row_index

INT8_RING_MULTIPLE: Final = 128
"""Number of which windows are multiples: a copied tile of scales has that many."""

MAX_INT8_RING_BLOCK: Final = 1024
"""Maximum rows of a block in which decode attention reads a ring."""

_TILE: Final = 32
"""Rows of a ring that are copied together: on-chip memory holds whole tiles, in int8 of 32 rows."""


def decode_attention_int8_tpu(
    q: Float[Array, "B N d"],
    k: Int8Vectors,
    v: Int8Vectors,
    ring_k: Int8Vectors,
    ring_v: Int8Vectors,
    positions: Int32[Array, " B"],
    *,
    assumed_fill: float = 1.0,
    interpret: Any = False,
) -> tuple[Float[Array, "B N d"], tuple[Int8Vectors, Int8Vectors]]:
    """Attends with one query per row to the filled part of its ring and to its own key, then writes the key.

    The grid is that of `decode_attention_tpu`. Products take the int8 values as numbers of q's dtype, which holds them
    exactly; keys' scales multiply scores, and values' scales multiply weights. The tiles of values and of scales with
    the new token's ring row are replaced in on-chip memory and copied back, so rings are updated in place.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, `[B, d]`.
      v: Values of the new tokens, likewise.
      ring_k: Keys of the W tokens before them, `[P, W, d]`, in the first B of P ≥ B rings. W is a multiple of
        `INT8_RING_MULTIPLE` unless the kernel is interpreted.
      ring_v: Values of the W tokens before them.
      positions: Positions of the new tokens; negative for idle rows.
      assumed_fill: Filled share of the rings in the cost estimate.
      interpret: See `pallas_call`.

    Returns:
      Outputs of the heads, in the dtype of q, and the rings.
    """
    rows, heads, size = q.shape
    window = ring_k.shape[1]
    walk, scalars = RingWalk.over(window, MAX_INT8_RING_BLOCK), busy_rows_first(positions)
    tile, lanes = (n if window % n == 0 else window for n in (_TILE, INT8_RING_MULTIPLE))
    query, own = (pl.BlockSpec((1, n, size), row_index) for n in (heads, 1))
    ring = pl.BlockSpec((1, walk.block, size), walk.ring_index)
    scale = pl.BlockSpec((1, 1, walk.block), walk.scale_index)
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    column = pltpu.VMEM((heads, 1), jnp.float32)
    arrays = (ring_k.values, ring_v.values, ring_k.scale, ring_v.scale)
    out, keys, values, key_scale, value_scale = pl.pallas_call(
        functools.partial(_kernel, window=window),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *arrays)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(rows, walk.num_blocks),
            in_specs=[query, own, own, ring, ring, scale, scale],
            out_specs=[query, *[in_place] * 4],
            scratch_shapes=[
                column, column, pltpu.VMEM((heads, size), jnp.float32), pltpu.VMEM((2, tile, size), jnp.int8),
                pltpu.VMEM((2, 1, lanes), jnp.float32), pltpu.SemaphoreType.DMA((4,)),
            ],
        ),
        input_output_aliases={8: 1, 9: 2, 10: 3, 11: 4},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        cost_estimate=_cost(q, window, tile, lanes, assumed_fill),
        interpret=interpret,
        name="window_attention_decode",
    )(
        *scalars, k.scale[scalars.order, 0], v.scale[scalars.order, 0],
        q, k.values[:, None], v.values[:, None], *arrays,
    )  # fmt: skip
    return out, (Int8Vectors(keys, key_scale), Int8Vectors(values, value_scale))


def _cost(q: Float[Array, "B N d"], window: int, tile: int, lanes: int, fill: float) -> pl.CostEstimate:
    rows, heads, size = q.shape
    token, written = 2 * (size + 4), 2 * (tile * size + 4 * lanes)
    queries = 2 * q.size * q.dtype.itemsize
    return pl.CostEstimate(
        flops=int(4 * rows * heads * window * size * fill),
        bytes_accessed=int(rows * window * token * fill) + rows * (token + written) + queries,
        transcendentals=int(rows * heads * window * fill),
    )


def _kernel(
    order: Any, position: Any, count: Any, own_key_scale: Any, own_value_scale: Any, q: Any, k: Any, v: Any,
    keys: Any, values: Any, key_scale: Any, value_scale: Any,
    out: Any, ring_k: Any, ring_v: Any, ring_key_scale: Any, ring_value_scale: Any,
    top: Any, total: Any, mixed: Any, tiles: Any, scale_tiles: Any, semaphores: Any, *, window: int,
) -> None:  # fmt: skip
    """Kernel of `decode_attention_int8_tpu`: an online softmax whose state is carried in scratch memory.

    Tiles are copied to their rings while the next blocks are computed. They are free again once that copy is done.
    """
    i, j = pl.program_id(0), pl.program_id(1)
    block, tile, lanes = keys.shape[1], tiles.shape[1], scale_tiles.shape[2]
    factor = q.shape[-1] ** -0.5
    works = i < count[0]
    filled = jnp.minimum(position[i], window)
    slot = jax.lax.rem(jnp.maximum(position[i], 0), jnp.int32(window))

    def copies(row: Any, at: Any, at_lanes: Any) -> list[Any]:
        pairs = [
            *((tiles.at[n], ring.at[row, pl.ds(at, tile)]) for n, ring in enumerate((ring_k, ring_v))),
            *(
                (scale_tiles.at[n], ring.at[row, :, pl.ds(at_lanes, lanes)])
                for n, ring in enumerate((ring_key_scale, ring_value_scale))
            ),
        ]
        return [pltpu.make_async_copy(*pair, semaphores.at[n]) for n, pair in enumerate(pairs)]

    def wait() -> None:
        for copy in copies(0, 0, 0):
            copy.wait()

    @pl.when(works & (j == 0))
    def start() -> None:
        own = jnp.sum(q[0].astype(jnp.float32) * k[0].astype(jnp.float32), axis=-1, keepdims=True)
        top[...] = own * (own_key_scale[i] * factor)
        total[...] = jnp.ones_like(total)
        mixed[...] = jnp.broadcast_to(v[0].astype(jnp.float32) * own_value_scale[i], mixed.shape)

    @pl.when(works & (j * block < filled))
    def step() -> None:
        visible = iota((1, block), 1) < filled - j * block
        products = scores_of(q[0], keys[0].astype(q.dtype))
        scores = jnp.where(visible, products * (key_scale[0] * factor), MASKED)
        highest = jnp.maximum(top[...], jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest)
        shrink = jnp.exp(top[...] - highest)
        scaled = jnp.where(visible, weights * value_scale[0], 0.0)
        top[...] = highest
        total[...] = total[...] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        mixed[...] = mixed[...] * shrink + jnp.dot(
            scaled.astype(q.dtype),
            values[0].astype(q.dtype),
            preferred_element_type=jnp.float32,
            precision=product_precision(q.dtype),
        )

    @pl.when(works & (j == block_of(slot, block)))
    def write() -> None:
        pl.when(i > 0)(wait)
        local = slot - j * block
        at, at_lanes = (pl.multiple_of(block_of(local, n) * n, n) for n in (tile, lanes))
        is_new = iota(tiles.shape[1:], 0) == local - at
        for n, (new, old) in enumerate(((k, keys), (v, values))):
            wide = jnp.where(is_new, new[0].astype(jnp.int32), old[0, pl.ds(at, tile)].astype(jnp.int32))
            tiles[n] = wide.astype(jnp.int8)
        is_new = iota((1, lanes), 1) == local - at_lanes
        for n, (new, old) in enumerate(((own_key_scale, key_scale), (own_value_scale, value_scale))):
            scale_tiles[n] = jnp.where(is_new, new[i], old[0, :, pl.ds(at_lanes, lanes)])
        for copy in copies(order[i], pl.multiple_of(j * block + at, tile), pl.multiple_of(j * block + at_lanes, lanes)):
            copy.start()

    @pl.when(i >= count[0])
    def idle() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when(works & (j == pl.num_programs(1) - 1))
    def finish() -> None:
        out[0] = (mixed[...] / total[...]).astype(out.dtype)

    @pl.when((i == count[0] - 1) & (j == pl.num_programs(1) - 1))
    def wait_for_last() -> None:
        wait()

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
from .softmax import MASKED, scores_of
from .tpu_grid import BusyRows, RingAttention, RingWalk, busy_rows_first, iota, row_index

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

    The walk is that of `decode_attention_tpu`. Products take the int8 values as numbers of q's dtype, which holds them
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
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    column = pltpu.VMEM((heads, 1), jnp.float32)
    arrays = (ring_k.values, ring_v.values, ring_k.scale, ring_v.scale)
    out, keys, values, key_scale, value_scale = pl.pallas_call(
        functools.partial(_kernel, walk=walk),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *arrays)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(rows,),
            in_specs=[query, own, own, *[in_place] * 4],
            out_specs=[query, *[in_place] * 4],
            scratch_shapes=[
                [column, column, pltpu.VMEM((heads, size), jnp.float32)],
                [pltpu.VMEM((2, walk.block, size), jnp.int8)] * 2 + [pltpu.VMEM((2, 1, walk.block), jnp.float32)] * 2,
                [pltpu.VMEM((tile, size), jnp.int8)] * 2 + [pltpu.VMEM((1, lanes), jnp.float32)] * 2,
                pltpu.SemaphoreType.DMA((2, 4)), pltpu.SemaphoreType.DMA((4,)), pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        input_output_aliases={7: 1, 8: 2, 9: 3, 10: 4},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), disable_bounds_checks=True),
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
    order: Any, position: Any, own_key_scale: Any, own_value_scale: Any, q: Any, k: Any, v: Any, *refs: Any,
    walk: RingWalk,
) -> None:  # fmt: skip
    """Kernel of `decode_attention_int8_tpu`: an online softmax whose state is carried in scratch memory."""
    out, *rings = refs[4:9]  # the first four are the rings as inputs, which are the same memory
    (top, total, mixed), blocks, *_ = memory = refs[9:]
    i = pl.program_id(0)
    factor = q.shape[-1] ** -0.5

    def own() -> tuple[Array, Array]:
        product = jnp.sum(q[0].astype(jnp.float32) * k[0].astype(jnp.float32), axis=-1, keepdims=True)
        return product * (own_key_scale[i] * factor), v[0].astype(jnp.float32) * own_value_scale[i]

    def add(half: Any, left: Any, block: int) -> None:
        keys, values, key_scale, value_scale = (array.at[half] for array in blocks)
        visible = iota((1, block), 1) < left
        products = scores_of(q[0], keys[:block].astype(q.dtype))
        scores = jnp.where(visible, products * (key_scale[:, :block] * factor), MASKED)
        highest = jnp.maximum(top[...], jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest)
        shrink = jnp.exp(top[...] - highest)
        scaled = jnp.where(visible, weights * value_scale[:, :block], 0.0)
        top[...] = highest
        total[...] = total[...] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        mixed[...] = mixed[...] * shrink + jnp.dot(
            scaled.astype(q.dtype),
            values[:block].astype(q.dtype),
            preferred_element_type=jnp.float32,
            precision=product_precision(q.dtype),
        )

    attention = RingAttention(walk, BusyRows(order, position), rings, *memory)
    attention.attend(out, own, add, lambda: (k[0], v[0], own_key_scale[i], own_value_scale[i]))

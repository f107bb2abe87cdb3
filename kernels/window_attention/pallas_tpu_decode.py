"""Window attention of decode steps for TPUs: busy rows first and, within a row, the filled blocks of its ring.

A kernel copies blocks to on-chip memory itself, each while it computes with the one before. Of a row's last block it
copies just the tiles up to the new token's. The new token replaces one there, in tiles that are copied back while the
next blocks are computed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..arithmetic import product_precision
from .pallas import MASKED, Softmax, add_keys, block_of, iota, scores_of
from .ring import Int8Vectors, Rings, Vectors

READ_TILE: Final = 128
"""Rows of a ring of which copies read multiples: the lanes of a tile of scales."""

_RING_TILE: Final = 16
"""Rows of a ring that are copied together: on-chip memory holds whole tiles, in bfloat16 of 16 rows."""

_INT8_RING_TILE: Final = 32
"""The same for rings in int8; of their scales, `READ_TILE` are copied together."""

_MAX_BLOCK: Final = 512
"""Maximum rows of a block in which a ring is read."""

_MAX_INT8_BLOCK: Final = 1024
"""The same for rings in int8."""


def takes(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> bool:
    """Returns whether `decode_attention_tpu` supports these rings, which must consist of whole tiles."""
    return rings[0].shape[1] % (READ_TILE if isinstance(k, Int8Vectors) else _RING_TILE) == 0


def decode_attention_tpu(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    ring_k: Float[Array, "P W d"] | Int8Vectors,
    ring_v: Float[Array, "P W d"] | Int8Vectors,
    positions: Int32[Array, " B"],
    *,
    assumed_fill: float = 1.0,
    interpret: Any = False,
) -> tuple[Float[Array, "B N d"], Rings]:
    """Attends with one query per row to the filled part of its ring and to its own key, then writes the key.

    The grid walks over the busy rows, and a loop over the filled blocks of a row's ring; see `RingAttention`. The tiles
    with the new token's ring row are always read: they are replaced in on-chip memory and copied back, so rings are
    updated in place. Idle rows give zeros and write nothing. Products take int8 as numbers of q's dtype, which holds
    them exactly; keys' scales multiply scores, and values' scales multiply weights.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE, in int8 if the rings are.
      v: Values of the new tokens, likewise.
      ring_k: Keys of the W tokens before them, in the first B of P ≥ B rings; see `takes`.
      ring_v: Values of the W tokens before them.
      positions: Positions of the new tokens; negative for idle rows.
      assumed_fill: Filled share of the rings in the cost estimate.
      interpret: See `pallas_call`.

    Returns:
      Outputs of the heads, in the dtype of q, and the rings.
    """
    (rows, heads, size), window = q.shape, ring_k.shape[1]
    is_int8, (scalars, new, arrays) = isinstance(ring_k, Int8Vectors), _arrays(positions, k, v, ring_k, ring_v)
    walk = RingWalk.over(window, _MAX_INT8_BLOCK if is_int8 else _MAX_BLOCK)
    tile, lanes = (n if window % n == 0 else window for n in (_INT8_RING_TILE if is_int8 else _RING_TILE, READ_TILE))
    blocks, tiles = ([pltpu.VMEM(shape, ring_k.dtype)] * 2 for shape in ((2, walk.block, size), (tile, size)))
    if is_int8:
        blocks += [pltpu.VMEM((2, 1, walk.block), jnp.float32)] * 2
        tiles += [pltpu.VMEM((1, lanes), jnp.float32)] * 2
    count, column = len(arrays), pltpu.VMEM((heads, 1), jnp.float32)
    query, own = (pl.BlockSpec((1, n, size), lambda i, order, *_: (order[i], 0, 0)) for n in (heads, 1))
    in_place = [pl.BlockSpec(memory_space=pl.ANY)] * count
    out, *rings = pl.pallas_call(
        partial(_kernel, walk=walk, count=count),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *arrays)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(rows,),
            in_specs=[query, own, own, *in_place],
            out_specs=[query, *in_place],
            scratch_shapes=[
                [column, column, pltpu.VMEM((heads, size), jnp.float32)],
                blocks,
                tiles,
                pltpu.SemaphoreType.DMA((2, count)),
                pltpu.SemaphoreType.DMA((count,)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        input_output_aliases={len(scalars) + 3 + i: 1 + i for i in range(count)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), disable_bounds_checks=True),
        cost_estimate=_cost(q, arrays, tiles, assumed_fill),
        interpret=interpret,
        name="window_attention_decode",
    )(*scalars, q, *(x[:, None] for x in new), *arrays)
    if count == 2:
        return out, tuple(rings)
    return out, (Int8Vectors(*rings[::2]), Int8Vectors(*rings[1::2]))


def _arrays(
    positions: Int32[Array, " B"], k: Vectors, v: Vectors, ring_k: Vectors, ring_v: Vectors
) -> tuple[list[Array], list[Array], list[Array]]:
    """Returns the kernel's scalars, the new keys and values, and the arrays of the rings: in int8, the scales last."""
    new, rings = ([x.values if isinstance(x, Int8Vectors) else x for x in pair] for pair in ((k, v), (ring_k, ring_v)))
    rows = busy_rows_first(positions)
    own_scales = [x.scale[rows.order, 0] for x in (k, v) if isinstance(x, Int8Vectors)]
    return [*rows, *own_scales], new, rings + [x.scale for x in (ring_k, ring_v) if isinstance(x, Int8Vectors)]


def _cost(q: Float[Array, "B N d"], rings: Sequence[Array], tiles: Sequence[Any], fill: float) -> pl.CostEstimate:
    (rows, heads, size), window = q.shape, rings[0].shape[1]
    token = sum(x.nbytes for x in rings) // (len(rings[0]) * window)
    written = sum(math.prod(tile.shape) * jnp.dtype(tile.dtype).itemsize for tile in tiles)
    return pl.CostEstimate(
        flops=int(4 * rows * heads * window * size * fill),
        bytes_accessed=int(rows * window * token * fill) + rows * (token + written) + 2 * q.nbytes,
        transcendentals=int(rows * heads * window * fill),
    )


def _kernel(order: Any, position: Any, *refs: Any, walk: "RingWalk", count: int) -> None:
    """Kernel of `decode_attention_tpu`: an online softmax whose state is carried in scratch memory.

    Args:
      order, position: See `BusyRows`.
      *refs: Scales of the rows' own key and value, if they are in int8; then queries, keys and values, the rings, the
        output, the resulting rings, which share the memory of the input rings, and scratch memory.
      walk: The blocks of a ring.
      count: Number of arrays that rings consist of.
    """
    scales, (q, k, v) = refs[: count - 2], refs[count - 2 : count + 1]
    out, *rings = refs[2 * count + 1 : 3 * count + 2]
    softmax, blocks, *_ = memory = refs[3 * count + 2 :]
    i, factor = pl.program_id(0), q.shape[-1] ** -0.5

    def own() -> tuple[Array, Array]:
        score = jnp.sum(q[0].astype(jnp.float32) * k[0].astype(jnp.float32), axis=-1, keepdims=True)
        if not scales:
            return score * factor, v[0].astype(jnp.float32)
        return score * (scales[0][i] * factor), v[0].astype(jnp.float32) * scales[1][i]

    add = partial(_add_int8 if scales else _add_floats, q, factor, softmax, blocks)
    attention = RingAttention(walk, BusyRows(order, position), rings, *memory)
    attention.attend(out, own, add, lambda: (k[0], v[0], *(scale[i] for scale in scales)))


def _add_floats(
    q: Any, factor: float, softmax: Sequence[Any], blocks: Sequence[Any], half: Any, left: Any, size: int
) -> None:
    """Adds the beginning of a block to the softmax; see `RingAttention.attend`."""
    keys, values = blocks
    scores, values = scores_of(q[0], keys[half, :size]) * factor, values[half, :size]
    known = jnp.where(iota(values.shape, 0) < left, values, jnp.zeros_like(values))
    running = Softmax(*(state[...] for state in softmax))
    for state, new in zip(softmax, add_keys(running, scores, iota(scores.shape, 1) < left, known), strict=True):
        state[...] = new


def _add_int8(
    q: Any, factor: float, softmax: Sequence[Any], blocks: Sequence[Any], half: Any, left: Any, size: int
) -> None:
    """Adds the beginning of a block of keys and values in int8; see `_add_floats`."""
    top, total, mixed = softmax
    keys, values, key_scale, value_scale = (block.at[half] for block in blocks)
    visible = iota((1, size), 1) < left
    products = scores_of(q[0], keys[:size].astype(q.dtype))
    scores = jnp.where(visible, products * (key_scale[:, :size] * factor), MASKED)
    highest = jnp.maximum(top[...], jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    shrink = jnp.exp(top[...] - highest)
    scaled = jnp.where(visible, weights * value_scale[:, :size], 0.0)
    top[...] = highest
    total[...] = total[...] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    mixed[...] = mixed[...] * shrink + jnp.dot(
        scaled.astype(q.dtype),
        values[:size].astype(q.dtype),
        preferred_element_type=jnp.float32,
        precision=product_precision(q.dtype),
    )


class BusyRows(NamedTuple):
    """Scalars that the grid follows.

    Attributes:
      order: Rows, the busy ones first.
      positions: Positions of the rows in this order, negative for idle ones.
    """

    order: Int32[Array, " B"]
    positions: Int32[Array, " B"]


def busy_rows_first(positions: Int32[Array, " B"]) -> BusyRows:
    """Returns the scalars for rows at these positions, which are negative for idle rows."""
    order = jnp.argsort(positions < 0, stable=True).astype(jnp.int32)
    return BusyRows(order, positions[order])


class RingWalk(NamedTuple):
    """Blocks of rings.

    Attributes:
      window: Rows of a ring.
      block: Rows of a block, a divisor of the window.
    """

    window: int
    block: int

    @classmethod
    def over(cls, window: int, most: int) -> "RingWalk":
        """Returns blocks that are large enough to saturate memory.

        Args:
          window: Rows of a ring.
          most: Maximum rows of a block, unless the window has no divisor among the sizes.
        """
        return cls(window, next((n for n in (1024, 512, 256, 128) if n <= most and window % n == 0), window))

    @property
    def tile(self) -> int:
        """Number of rows of which copies read multiples."""
        return READ_TILE if self.block % READ_TILE == 0 else self.block

    def num_read(self, position: Any, j: Any) -> Any:
        """Returns the number of rows of a block that are read: whole tiles up to the new token's."""
        if self.tile == self.block:
            return self.block
        newest = jnp.clip(position, 0, self.window - 1) - j * self.block
        return pl.multiple_of(jnp.minimum((block_of(newest, self.tile) + 1) * self.tile, self.block), self.tile)

    def parts(self, position: Any, j: Any) -> Iterator[tuple[int, Any]]:
        """Yields sizes of the beginning of a block, and whether each is the smallest that holds the rows to read."""
        least, num_read = max(self.block // 4 // self.tile, 1) * self.tile, self.num_read(position, j)
        for part in range(least, self.block + 1, least):
            yield part, (num_read <= part) & (num_read > part - least)

    def last(self, position: Any) -> Any:
        """Returns the last block that is read."""
        return block_of(jnp.clip(position, 0, self.window - 1), self.block)


class RingArray(NamedTuple):
    """Rings of keys or values, or of their scales, and on-chip memory for parts of them.

    Attributes:
      axis: Axis of tokens: 1 of rings `[P, W, d]`, 2 of scales `[P, 1, W]`.
      rings: The kernel's output, which is the memory of its input.
      blocks: Two blocks, `[2, block, d]` or `[2, 1, block]`.
      tile: Tile with the new token, `[tile, d]` or `[1, tile]`. It is free again once it was copied to its ring.
    """

    axis: int
    rings: Any
    blocks: Any
    tile: Any

    def tokens(self, row: Any, at: Any, size: Any) -> tuple[Any, ...]:
        """Returns the index of some tokens of a row."""
        return row, *[slice(None)] * (self.axis - 1), pl.ds(at, size)

    def tile_of(self, row: Any, place: Any) -> tuple[Any, ...]:
        """Returns the index of a token's tile in a row."""
        size = self.tile.shape[self.axis - 1]
        return self.tokens(row, pl.multiple_of(block_of(place, size) * size, size), size)

    def replace(self, half: Any, place: Any, token: Any) -> None:
        """Copies the tile of a token in a block, and replaces the token: by `[1, d]`, or by a scale."""
        size = self.tile.shape[self.axis - 1]
        wide = jnp.int32 if self.tile.dtype == jnp.int8 else self.tile.dtype  # numbers that the mask can select
        is_new = iota(self.tile.shape, self.axis - 1) == place - block_of(place, size) * size
        old = self.blocks[self.tile_of(half, place)]
        self.tile[...] = jnp.where(is_new, token.astype(wide), old.astype(wide)).astype(self.tile.dtype)


class RingAttention(NamedTuple):
    """Attends to rings block by block, and writes the new tokens.

    Attributes:
      walk: The blocks.
      rows: The rows' scalars, as references.
      rings: Keys, values and, if there are any, the scales of both; then, in scratch memory:
      softmax: State of a row's softmax: `top`, `total` and `mixed` of `Softmax`.
      blocks, tiles: Memory for parts of each array; see `RingArray`.
      reads: Semaphores of the copies of blocks, for each half and array.
      writes: Semaphores of the copies of tiles, for each array.
      num_visits: Number of visits to blocks of earlier rows.
    """

    walk: RingWalk
    rows: BusyRows
    rings: Sequence[Any]
    softmax: Sequence[Any]
    blocks: Sequence[Any]
    tiles: Sequence[Any]
    reads: Any
    writes: Any
    num_visits: Any

    @property
    def arrays(self) -> list[RingArray]:
        """The rings with their memory."""
        return list(map(RingArray, (1, 1, 2, 2), self.rings, self.blocks, self.tiles))

    def attend(
        self,
        out: Any,
        own: Callable[[], tuple[Any, Any]],
        add: Callable[[Any, Any, int], None],
        new: Callable[[], Sequence[Any]],
    ) -> None:
        """Computes one row of the grid; an idle one gives zeros.

        Args:
          out: Output of the row.
          own: Returns the scores `[N, 1]` and the value `[1, d]` of the new token.
          add: Called with the half that a block is in, the number of tokens in the ring from that block on, and the
            size of the beginning of the block that has them. Adds it to the softmax.
          new: Returns what replaces a token of each array: `[1, d]`, or a scale.
        """
        i = pl.program_id(0)
        position, (window, block) = self.rows.positions[i], self.walk
        is_busy, filled, slot = position >= 0, jnp.minimum(position, window), jax.lax.rem(position, jnp.int32(window))
        top, total, mixed = self.softmax

        def use(j: Any, half: Any) -> None:
            left = filled - j * block
            for part, is_part in self.walk.parts(position, j):
                pl.when((left > 0) & is_part)(partial(add, half, left, part))
            pl.when(j == block_of(slot, block))(partial(self._write, i, slot, j, half, new))

        @pl.when(is_busy)
        def attend() -> None:
            top[...], value = own()
            total[...] = jnp.ones_like(total)
            mixed[...] = jnp.broadcast_to(value, mixed.shape)
            self._visit(i, use)
            out[0] = (mixed[...] / total[...]).astype(out.dtype)
            pl.when(self._is_last(i))(self._wait_for_tiles)

        @pl.when(~is_busy)
        def idle() -> None:
            out[...] = jnp.zeros_like(out)

    def _visit(self, i: Any, use: Callable[[Any, Any], None]) -> None:
        """Calls `use` with the number and the half of each block of a busy row, while the next block is copied."""
        last, num_visits = self.walk.last(self.rows.positions[i]), self.num_visits

        @pl.when(i == 0)
        def first() -> None:
            num_visits[0] = 0
            self._start(i, 0, 0)

        before = num_visits[0]

        def visit(j: Any, carry: None) -> None:
            half = (before + j) & 1
            is_end = j == last
            follows = ~(is_end & self._is_last(i))
            following = jnp.where(is_end, self._next(i), i)
            pl.when(follows)(lambda: self._start(following, jnp.where(is_end, 0, j + 1), 1 - half))
            for copy in self._block_copies(i, j, half):
                copy.wait()
            use(j, half)

        jax.lax.fori_loop(0, last + 1, visit, None)
        num_visits[0] = before + last + 1

    def _is_last(self, i: Any) -> Any:
        """Returns whether no busy row follows a busy row."""
        return (self._next(i) == i) | (self.rows.positions[self._next(i)] < 0)

    def _next(self, i: Any) -> Any:
        return jnp.minimum(i + 1, self.rows.order.shape[0] - 1)

    def _start(self, i: Any, j: Any, half: Any) -> None:
        for copy in self._block_copies(i, j, half):
            copy.start()

    def _block_copies(self, i: Any, j: Any, half: Any) -> list[Any]:
        walk, row = self.walk, self.rows.order[i]
        num_read = walk.num_read(self.rows.positions[i], j)
        at = pl.multiple_of(j * walk.block, walk.block)
        return [
            pltpu.make_async_copy(
                array.rings.at[array.tokens(row, at, num_read)],
                array.blocks.at[array.tokens(half, 0, num_read)],
                self.reads.at[half, n],
            )
            for n, array in enumerate(self.arrays)
        ]

    def _write(self, i: Any, slot: Any, j: Any, half: Any, new: Callable[[], Sequence[Any]]) -> None:
        """Starts to copy the tiles with a row's new token, which are in a block, to the rings."""
        pl.when(i > 0)(self._wait_for_tiles)
        for array, token in zip(self.arrays, new(), strict=True):
            array.replace(half, slot - j * self.walk.block, token)
        for copy in self._tile_copies(self.rows.order[i], slot):
            copy.start()

    def _wait_for_tiles(self) -> None:
        for copy in self._tile_copies(0, jnp.int32(0)):
            copy.wait()

    def _tile_copies(self, row: Any, slot: Any) -> list[Any]:
        return [
            pltpu.make_async_copy(array.tile, array.rings.at[array.tile_of(row, slot)], self.writes.at[n])
            for n, array in enumerate(self.arrays)
        ]

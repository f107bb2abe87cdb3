"""Choice of a token for each row of a block in a TPU's on-chip memory, tile by tile.

A tile is one vector register: 8 rows of 128 neighbouring tokens, one token per lane. Loops are unrolled by chunks of
tiles, and reduce into several registers in turn, so that no tile waits for the one before.

Logits processors come first: biases, penalties, token masks and stop ids, in this order. Lists of ids are walked one id
after the other: each changes one lane of one tile. Sets of tokens are masks in the order of lanes; see `lane_masks`.

Then follow truncation by top-k, top-p, min-p and typical-p, and the draw. Weights are defined as in
`roost.engine.sampling.sampler`: the most likely token weighs 1. Thresholds are found by bisection over the bits of a
float32, each step of which reads all weights of the block once. A row is settled as soon as one weight is left between
its bounds, and the block when all of its rows are.

A token is drawn by inverting the running sum, which takes the lanes one after the other: first the lane is picked, then
one of its chunks of tiles, then one of the chunk's tiles.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32, UInt32

ROWS: Final = 8
"""Number of rows of a tile."""

LANES: Final = 128
"""Number of tokens of a tile."""

_LONGEST_CHUNK: Final = 80
"""Maximum number of tiles per step of a loop: a longer one runs out of registers."""

_ALIGNMENT: Final = 16
"""Number of tiles that a long row is padded to a multiple of, so that it splits into long chunks."""

_ACCUMULATORS: Final = 4
"""Number of registers that a reduction uses in turn."""

type Tile = Float32[Array, "8 128"]
type Column = Float32[Array, "8 1"]

type Index = Any
"""Number of a row, a tile, a chunk or a place of a list: an int32 scalar, or an int if loops are unrolled."""


class Place(NamedTuple):
    """Place of a tile: its chunk, and its number in the chunk, known when the loop is unrolled."""

    chunk: Index
    offset: int


def padded_size(vocab_size: int) -> int:
    """Returns the number of tokens of a row that splits into tiles and chunks."""
    tiles = -(-vocab_size // LANES)
    if tiles > _LONGEST_CHUNK:
        tiles = -(-tiles // _ALIGNMENT) * _ALIGNMENT
    return tiles * LANES


def num_chunks(size: int) -> int:
    """Returns the number of chunks of a row whose size is a `padded_size`: as few as the longest chunk allows."""
    tiles = size // LANES
    return next(n for n in range(-(-tiles // _LONGEST_CHUNK), tiles + 1) if tiles % n == 0)


def lanes() -> Int32[Array, "8 128"]:
    """Returns the number of each lane."""
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)


def rows() -> Int32[Array, "8 128"]:
    """Returns the number of each row."""
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)


def widened(column: Array) -> Array:
    """Returns a column `[8, 1]` as a tile."""
    return jnp.broadcast_to(column, (ROWS, LANES))


def sum_lanes(tile: Array) -> Array:
    """Returns the sum of each row of a tile."""
    return jnp.sum(tile, axis=1, keepdims=True)


def repeat_for(count: Index, visit: Callable[[Index], None]) -> None:
    """Calls a function with each number below `count`, in a loop of the kernel."""
    jax.lax.fori_loop(0, count, lambda number, _: visit(number), None)


@dataclass(frozen=True, slots=True)
class Tiles:
    """A block of rows, `[8, V]`, where V is a `padded_size`.

    Attributes:
      ref: Reference to the block.
    """

    ref: Any

    @property
    def count(self) -> int:
        """Number of tiles."""
        return int(self.ref.shape[1]) // LANES

    @property
    def chunk(self) -> int:
        """Number of tiles per chunk."""
        return self.count // self.chunks

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return num_chunks(int(self.ref.shape[1]))

    def __getitem__(self, place: Place) -> Array:
        return self._chunk(place)[:, _lanes_of(place.offset)]

    def __setitem__(self, place: Place, value: Array) -> None:
        self._chunk(place)[:, _lanes_of(place.offset)] = value

    def _chunk(self, place: Place) -> Any:
        """Returns a reference to a chunk: the tiles in it then lie at constant distances."""
        size = self.chunk * LANES
        return self.ref.at[:, pl.ds(pl.multiple_of(place.chunk * size, LANES), size)]

    def number(self, place: Place) -> Index:
        """Returns the number of a tile."""
        return place.chunk * self.chunk + place.offset

    def reduce(self, value: Callable[[Place], Any], combine: Callable[[Any, Any], Any], neutral: Any) -> Any:
        """Reduces over tiles, lane by lane.

        Args:
          value: Computes a tile's share of the result.
          combine: Combines two results.
          neutral: Result without tiles.
        """

        def step(chunk: Index, results: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._reduce_into(results, chunk, value, combine)

        return functools.reduce(combine, jax.lax.fori_loop(0, self.chunks, step, (neutral,) * _ACCUMULATORS))

    def reduce_chunk(
        self, chunk: Index, value: Callable[[Place], Any], combine: Callable[[Any, Any], Any], neutral: Any
    ) -> Any:
        """Reduces over the tiles of one chunk, lane by lane; see `reduce`."""
        return functools.reduce(combine, self._reduce_into((neutral,) * _ACCUMULATORS, chunk, value, combine))

    def _reduce_into(
        self,
        results: tuple[Any, ...],
        chunk: Index,
        value: Callable[[Place], Any],
        combine: Callable[[Any, Any], Any],
    ) -> tuple[Any, ...]:
        partial = list(results)
        for tile in range(self.chunk):
            turn = tile % _ACCUMULATORS
            partial[turn] = combine(partial[turn], value(Place(chunk, tile)))
        return tuple(partial)

    def sum(self, value: Callable[[Tile], Tile]) -> Column:
        """Returns the sum of a function of every element, for each row."""
        return sum_lanes(self.reduce(lambda place: value(self[place]), jnp.add, jnp.zeros((ROWS, LANES), jnp.float32)))

    def update(self, change: Callable[[Place, Tile], Tile]) -> None:
        """Replaces every tile by a function of its place and itself."""

        def step(chunk: Index) -> None:
            for tile in range(self.chunk):
                place = Place(chunk, tile)
                self[place] = change(place, self[place])

        repeat_for(self.chunks, step)


def _lanes_of(tile: int) -> slice:
    return slice(tile * LANES, (tile + 1) * LANES)


def tile_at(tile: Index) -> Any:
    """Returns the lanes of a tile that is known only when the kernel runs."""
    return pl.ds(pl.multiple_of(tile * LANES, LANES), LANES)


_BITS: Final = 32
"""Number of tiles that share the words of a lane mask."""

_LANE_BITS: Final = LANES.bit_length() - 1


def lane_masks(words: UInt32[Array, "R W"], vocab_size: int) -> UInt32[Array, "R M"]:
    """Returns token masks in the order of lanes: bit i of word 128 g + l is that of token 128 (32 g + i) + l.

    Args:
      words: Masks with bit i % 32 of word i // 32 for token i.
      vocab_size: Number of tokens.
    """
    groups = -(-padded_size(vocab_size) // (_BITS * LANES))
    words = jnp.pad(words, ((0, 0), (0, groups * LANES - words.shape[1])))
    tiles = words.reshape(-1, groups, _BITS, LANES // _BITS, 1)
    bits = (tiles >> jnp.arange(_BITS, dtype=jnp.uint32)) & 1  # [R, groups, tiles, words of a tile, bits of a word]
    shifted = bits << jnp.arange(_BITS, dtype=jnp.uint32)[:, None, None]
    return jnp.sum(shifted, axis=2, dtype=jnp.uint32).reshape(words.shape)


class IdLists(NamedTuple):
    """Lists of token ids of a block of rows, in scalar memory, and their lengths.

    Attributes:
      bias_ids, biases: Ids and the numbers that are added to their logits. Unused places may lie between.
      stop_ids: Ids that are masked. Unused places may lie between.
      recent: Generated tokens in descending order.
      lengths: Number of places of `bias_ids`, `stop_ids` and `recent` to look at, for each row.
    """

    bias_ids: Any
    biases: Any
    stop_ids: Any
    recent: Any
    lengths: Any


def add_biases(logits: Tiles, lists: IdLists) -> None:
    """Adds biases to logits."""

    def add(row: Index, place: Index) -> None:
        bias = lists.biases[row, place]
        _change(logits, row, lists.bias_ids[row, place], lambda _, tile: tile + bias)

    _each_place(lists.lengths, 0, add)


def penalize(logits: Tiles, lists: IdLists, in_prompt: Any, column: Callable[[str], Column]) -> None:
    """Applies penalties.

    Args:
      logits: Logits, changed in place.
      lists: Lists of ids.
      in_prompt: Reference to the lane masks of the prompts' tokens.
      column: Returns penalties by name.
    """
    repetition = widened(column("repetition_penalty"))
    frequency, presence = widened(column("frequency_penalty")), widened(column("presence_penalty"))

    def repeat(tile: Tile) -> Tile:
        return jnp.where(tile > 0, tile / repetition, tile * repetition)

    def generated(row: Index, token: Index, count: Array) -> None:
        def change(number: Index, tile: Tile) -> Tile:
            repeated = jnp.where(_is_in(in_prompt, number), tile, repeat(tile))
            return repeated - frequency * count.astype(jnp.float32) - presence

        _change(logits, row, token, change)

    def visit(row: Index, place: Index, count: Array) -> Array:
        token, last = lists.recent[row, place], lists.lengths[row, 2] - 1
        is_end = (place == last) | (lists.recent[row, jnp.minimum(place + 1, last)] != token)
        pl.when(is_end)(lambda: generated(row, token, count + 1))
        return jnp.where(is_end, 0, count + 1)

    def visit_row(row: Index) -> None:
        jax.lax.fori_loop(0, lists.lengths[row, 2], lambda place, count: visit(row, place, count), jnp.int32(0))

    logits.update(lambda place, tile: jnp.where(_is_in(in_prompt, logits.number(place)), repeat(tile), tile))
    repeat_for(ROWS, visit_row)


def apply_token_mask(logits: Tiles, allowed: Any) -> None:
    """Sets logits to -inf where the lane masks `allowed` have no bit."""
    logits.update(lambda place, tile: jnp.where(_is_in(allowed, logits.number(place)), tile, -jnp.inf))


def mask_stop_ids(logits: Tiles, lists: IdLists) -> None:
    """Sets the logits of stop ids to -inf."""

    def mask(row: Index, place: Index) -> None:
        _change(logits, row, lists.stop_ids[row, place], lambda _, tile: jnp.full_like(tile, -jnp.inf))

    _each_place(lists.lengths, 1, mask)


def _each_place(lengths: Any, which: int, visit: Callable[[Index, Index], None]) -> None:
    """Calls `visit` with the row and the place of every element of a list."""

    repeat_for(ROWS, lambda row: repeat_for(lengths[row, which], lambda place: visit(row, place)))


def _change(logits: Tiles, row: Index, token: Array, change: Callable[[Index, Tile], Tile]) -> None:
    """Changes the logit of one token of one row; a negative token is skipped."""

    def store() -> None:
        number = token >> _LANE_BITS
        at = tile_at(number)
        tile = logits.ref[:, at]
        is_token = (rows() == row) & (lanes() == (token & (LANES - 1)))
        logits.ref[:, at] = jnp.where(is_token, change(number, tile), tile)

    pl.when(token >= 0)(store)


def _is_in(mask: Any, tile: Index) -> Array:
    """Returns the bits of a tile's tokens."""
    shift = jax.lax.convert_element_type(tile & (_BITS - 1), jnp.uint32)
    bits: Int32[Array, "8 128"] = (mask[:, tile_at(tile >> (_BITS.bit_length() - 1))] >> shift) & 1
    return bits != 0


_NOWHERE: Final = 2**30
"""Number of a tile that does not exist."""

type Tokens = Int32[Array, "8 1"]


_ONE_BITS: Final = 0x3F800000
"""Bits of 1.0, the largest weight. Bits of non-negative floats have the order of the floats."""

_FARTHEST_BITS: Final = 0x43000000
"""Bits of 128.0; the surprises of two weights above 0 differ by less."""

_NEAREST_BITS: Final = 0x30800000
"""Bits of 2⁻³⁰, below the rounding of a surprise."""

_SMALLEST_REST: Final = 2.0**-24
"""Smallest share that a `top_p` below 1 drops, in float32."""

type _Bits = Int32[Array, "8 1"]

type _Measure = Callable[[_Bits], Column]
"""Returns the size of the set of tokens at or above a threshold: their number, or their mass."""


def copy_and_summarize(source: Tiles, target: Tiles) -> tuple[Tile, Tile]:
    """Copies logits, and returns the highest of every lane and a number that is NaN if one of them is NaN.

    The number is a sum, scaled down so that no logits overflow.
    """

    def copy(place: Place) -> tuple[Tile, Tile]:
        target[place] = source[place]
        return source[place], source[place] * 2.0**-40

    def combine(a: tuple[Tile, Tile], b: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        return jnp.maximum(a[0], b[0]), a[1] + b[1]

    nothing = (jnp.full((ROWS, LANES), -jnp.inf, jnp.float32), jnp.zeros((ROWS, LANES), jnp.float32))
    return source.reduce(copy, combine, nothing)


def weigh(logits: Tiles, best: Column, temperature: Column) -> Column:
    """Replaces logits by their weights, exp((logit - best) / temperature), and returns the sum of each row's."""
    highest, scale = widened(best), widened(1.0 / jnp.maximum(temperature, 1e-37))

    def weight(place: Place) -> Tile:
        weights = jnp.exp((logits[place] - highest) * scale)
        logits[place] = weights
        return weights

    return sum_lanes(logits.reduce(weight, jnp.add, jnp.zeros((ROWS, LANES), jnp.float32)))


def most_likely(logits: Tiles, best: Column) -> Tokens:
    """Returns the first token with the highest logit."""
    highest = widened(best)
    first = logits.reduce(
        lambda place: jnp.where(logits[place] == highest, logits.number(place), _NOWHERE),
        jnp.minimum,
        jnp.full((ROWS, LANES), _NOWHERE, jnp.int32),
    )
    tokens = jnp.where(first < _NOWHERE, first * LANES + lanes(), _NOWHERE)
    return jnp.minimum(jnp.min(tokens, axis=1, keepdims=True), logits.count * LANES - 1)


def invert(weights: Tiles, cut: Column, uniform: Column, running: Any) -> Tokens:
    """Returns the token at which the running sum passes `uniform` of the whole; never one of weight 0.

    Args:
      weights: All weights.
      cut: Weights below it count as 0.
      uniform: Numbers from 0, below 1.
      running: Reference to scratch memory, `[chunks, 8, 128]`.
    """
    wide = widened(cut)

    def keep(place: Place) -> Tile:
        return jnp.where(weights[place] >= wide, weights[place], 0.0)

    def add_chunk(chunk: Index, total: Tile) -> Tile:
        total = total + weights.reduce_chunk(chunk, keep, jnp.add, jnp.zeros_like(total))
        running[chunk] = total
        return total

    sums = jax.lax.fori_loop(0, weights.chunks, add_chunk, jnp.zeros((ROWS, LANES), jnp.float32))
    lane, left = _pick_lane(sums, uniform)
    in_lane = lanes() == lane
    chunk, left = _pick_chunk(running, weights.chunks, left, in_lane)
    tile = _pick_tile(weights, wide, chunk, left, in_lane)
    return (chunk * weights.chunk + tile) * LANES + lane


def _pick_lane(sums: Tile, uniform: Column) -> tuple[Tokens, Column]:
    """Returns the lane at which the running sum of lanes passes `uniform` of the whole, and the rest of that."""
    running = sums
    for distance in (1, 2, 4, 8, 16, 32, 64):
        running = running + jnp.where(lanes() >= distance, pltpu.roll(running, distance, 1), 0.0)
    goal = uniform * _at(running, lanes() == LANES - 1)
    last = jnp.max(jnp.where(sums > 0, lanes(), 0), axis=1, keepdims=True)  # if rounding leaves the goal over
    hits = jnp.where((running > goal) & (sums > 0), lanes(), LANES)
    lane = jnp.minimum(jnp.min(hits, axis=1, keepdims=True), last)
    total, before = _at(sums, lanes() == lane), _at(running - sums, lanes() == lane)
    below = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(total, jnp.int32) - 1, jnp.float32)
    return lane, jnp.clip(goal - before, 0.0, jnp.where(total > 0, below, 0.0))


def _pick_chunk(running: Any, chunks: int, left: Column, in_lane: Array) -> tuple[Tokens, Column]:
    """Returns the chunk of the lane at which its running sum passes `left`, and the rest of that."""
    wide = widened(left)

    def pass_over(chunk: Index, state: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        passed, before = state
        is_passed = running[chunk] <= wide
        return jnp.where(is_passed, passed + 1.0, passed), jnp.where(is_passed, running[chunk], before)

    zeros = jnp.zeros((ROWS, LANES), jnp.float32)
    passed, before = jax.lax.fori_loop(0, chunks, pass_over, (zeros, zeros))
    chunk = jnp.minimum(_at(passed, in_lane), chunks - 1.0).astype(jnp.int32)
    return chunk, left - _at(before, in_lane)


def _pick_tile(weights: Tiles, cut: Tile, chunk: Tokens, left: Column, in_lane: Array) -> Tokens:
    """Returns the tile of each row's chunk at which the lane's running sum passes `left`, counted from the chunk."""
    numbers = widened(chunk).astype(jnp.float32)
    starts = [jnp.max(jnp.where(rows() == row, numbers, 0.0)).astype(jnp.int32) * weights.chunk for row in range(ROWS)]
    goal = widened(left)

    def visit(tile: Index, state: tuple[Tile, Tile, Tile]) -> tuple[Tile, Tile, Tile]:
        total, found, last = state
        mixed = jnp.zeros((ROWS, LANES), jnp.float32)
        for row, start in enumerate(starts):
            mixed = jnp.where(rows() == row, weights.ref[:, tile_at(start + tile)], mixed)
        weight, number = jnp.where(mixed >= cut, mixed, 0.0), jax.lax.convert_element_type(tile, jnp.float32)
        total = total + weight
        is_hit = (total > goal) & (weight > 0) & (found < 0)
        return total, jnp.where(is_hit, number, found), jnp.where(weight > 0, number, last)

    zeros = jnp.zeros((ROWS, LANES), jnp.float32)
    _, found, last = jax.lax.fori_loop(0, weights.chunk, visit, (zeros, zeros - 1.0, zeros))
    return _at(jnp.where(found < 0, last, found), in_lane).astype(jnp.int32)


def _at(tile: Tile, place: Array) -> Column:
    """Returns the element of each row that `place` selects."""
    return sum_lanes(jnp.where(place, tile, 0.0))


def top_k_threshold(weights: Tiles, k: Column) -> Column:
    """Returns the weight of the k-th most likely token; 0 where k is 0."""

    def count(threshold: _Bits) -> Column:
        cut = widened(_float(threshold))
        return weights.sum(lambda tile: jnp.where(tile >= cut, 1.0, 0.0))

    lowest = jnp.zeros((ROWS, 1), jnp.int32)
    return _float(_threshold(count, k, lowest, range(_ONE_BITS + 1), lambda _: jnp.ones_like(k), k > 0))


def top_p_threshold(weights: Tiles, p: Column, mass: Column, lowest: Column) -> Column:
    """Returns the lowest of the largest weights whose sum reaches the share p of all; `lowest` where p is 1.

    Args:
      weights: All weights.
      p: Shares.
      mass: Sums of the weights at or above `lowest`.
      lowest: Weights below which tokens are dropped already.
    """
    share = 0.5 / (weights.count * LANES)  # all weights together, each below it, sum to less than 1 - p
    first = jax.lax.bitcast_convert_type(jnp.maximum(lowest, (1.0 - p) * mass * share), jnp.int32)
    bounds = range(_bits(_SMALLEST_REST * share), _ONE_BITS + 1)
    found = _threshold(lambda bits: kept_mass(weights, _float(bits)), p * mass, first, bounds, _float, p < 1)
    return jnp.where(p < 1, jnp.maximum(_float(found), lowest), lowest)


def kept_mass(weights: Tiles, cut: Column) -> Column:
    """Returns the sum of the weights at or above a threshold."""
    wide = widened(cut)
    return weights.sum(lambda tile: jnp.where(tile >= wide, tile, 0.0))


def keep_typical(weights: Tiles, p: Column, cut: Column) -> None:
    """Zeroes the weights whose surprise is not among the nearest to the entropy that reach the share p.

    A surprise that differs from the entropy by d nats is that of a weight of `middle` times exp(d) or exp(-d).

    Args:
      weights: All weights, changed in place.
      p: Shares; rows with share 1 keep their weights.
      cut: Weights below which tokens are dropped already.
    """
    mass, wide = kept_mass(weights, cut), widened(cut)
    information = weights.sum(lambda tile: jnp.where((tile >= wide) & (tile > 0), tile * jnp.log(tile), 0.0))
    middle = jnp.exp(information / mass)

    def bounds(nearness: _Bits) -> tuple[Tile, Tile]:
        factor = jnp.exp(_float(_FARTHEST_BITS - nearness))
        return widened(jnp.maximum(middle / factor, cut)), widened(middle * factor)

    def inside(nearness: _Bits) -> Callable[[Tile], Tile]:
        low, high = bounds(nearness)
        return lambda tile: jnp.where((tile >= low) & (tile <= high), tile, 0.0)

    def lightest(nearness: _Bits) -> Column:
        return bounds(nearness)[0][:, :1]

    lowest = jnp.zeros((ROWS, 1), jnp.int32)
    nearness = range(_FARTHEST_BITS - _NEAREST_BITS + 1)
    found = _threshold(
        lambda bits: weights.sum(inside(bits)), p * mass, lowest, nearness, lightest, p < 1, is_empty_enough=False
    )
    keep, is_cut = inside(found), widened(p) < 1
    weights.update(lambda _, tile: jnp.where(is_cut, keep(tile), tile))


def _threshold(
    measure: _Measure,
    enough: Column,
    low: _Bits,
    bounds: range,
    smallest: Callable[[_Bits], Column],
    rows: Array,
    *,
    is_empty_enough: bool = True,
) -> _Bits:
    """Returns a threshold that separates the smallest set that is large enough from all other tokens.

    Args:
      measure: Size of the set of tokens at or above a threshold.
      enough: Size to reach.
      low: Threshold with a set that is large enough.
      bounds: Thresholds to look at; `low` is one of them.
      smallest: Lower bound of the size of one token at or above a threshold.
      rows: Rows to look at; the result of the others is `low`.
      is_empty_enough: Whether a set of size 0 may be large enough.
    """

    def halve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, size_low, size_high, is_open = state
        middle = low + jax.lax.shift_right_logical(high - low, 1)
        size = measure(middle)
        is_enough = (size >= enough) if is_empty_enough else (size >= enough) & (size > 0)
        up, down = (is_open > 0) & is_enough, (is_open > 0) & ~is_enough
        low, size_low = jnp.where(up, middle, low), jnp.where(up, size, size_low)
        high, size_high = jnp.where(down, middle, high), jnp.where(down, size, size_high)
        is_settled = (high - low <= 1) | (size_low - size_high < 2 * smallest(low))
        return low, high, size_low, size_high, jnp.where(is_settled, 0.0, is_open)

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        any_open = jnp.max(state[-1]) > 0
        return jax.lax.cond(any_open, halve, lambda state: state, state)

    high = jnp.where(rows, jnp.full_like(low, bounds.stop), low + 1)
    unknown, nothing = jnp.full((ROWS, 1), jnp.inf, jnp.float32), jnp.zeros((ROWS, 1), jnp.float32)
    state = (low, high, unknown, nothing, jnp.where(rows, 1.0, 0.0))
    steps = (len(bounds) - 1).bit_length()  # each finds a bit
    found: tuple[Array, ...] = jax.lax.fori_loop(0, steps, step, state)
    return found[0]


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


def _float(bits: _Bits) -> Column:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

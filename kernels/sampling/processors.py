"""Logits processors in a TPU's on-chip memory: biases, penalties, token masks and stop ids, in this order.

Lists of ids are walked one id after the other: each changes one lane of one tile. Sets of tokens are masks in the
order of lanes; see `lane_masks`.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int32, UInt32

from .tiles import LANES, ROWS, Column, Index, Tile, Tiles, lanes, padded_size, repeat_for, rows, tile_at, widened

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

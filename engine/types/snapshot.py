"""Snapshots: copies on the host of one slot's state, from which a request can be restored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Final

import ml_dtypes
import numpy as np

from .arrays import ArrayFormat, HostArray
from .config import PREFILL_BLOCK

SCALE_BYTES: Final = 4
"""Bytes of the float32 scale after each key and value in int8."""


@dataclass(frozen=True, eq=False)
class BlockState:
    """State at a block boundary or at the end of a prompt, as a prefill step returns it.

    Attributes:
      recurrent: Arrays that a state keeps whole, in the order of `SnapshotFormat.recurrent`.
      window: Keys and values of the tokens since the last block boundary, `[n, ...]` with 1 <= n <= `PREFILL_BLOCK`; in
        int8, each has `SCALE_BYTES` more columns with its scale.
      hidden: Activations of the last token, from which logits are computed; only at the end of a prompt.
    """

    recurrent: tuple[HostArray, ...]
    window: HostArray
    hidden: HostArray | None = None

    @cached_property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, (*self.recurrent, self.window, *([] if self.hidden is None else [self.hidden]))))


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One slot's state on the host. Arrays are shared between snapshots and never written to.

    Attributes:
      length: Number of tokens that led to the state.
      recurrent, hidden: See `BlockState`.
      window: Keys and values of the tokens beginning with `first_block`, one array for each block. The last array is
        shorter if `length` is not a block boundary, and the first is if the slot held only part of its block.
    """

    length: int
    recurrent: tuple[HostArray, ...]
    window: tuple[HostArray, ...]
    hidden: HostArray | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, self._arrays))

    @property
    def num_bytes(self) -> int:
        """Size of its arrays, including arrays shared with other snapshots."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def _arrays(self) -> tuple[HostArray, ...]:
        return *self.recurrent, *self.window, *([] if self.hidden is None else [self.hidden])


@dataclass(frozen=True, slots=True)
class SnapshotFormat:
    """Shapes and dtypes of a model's snapshots.

    Attributes:
      window: Number of tokens that attention looks back on.
      recurrent: Arrays that a state keeps whole, by their name in state files.
      token: Keys and values of one token.
      hidden: Activations of the last token.
    """

    window: int
    recurrent: Mapping[str, ArrayFormat]
    token: ArrayFormat
    hidden: ArrayFormat

    @property
    def max_bytes(self) -> int:
        """Size of the largest snapshot."""
        return num_bytes(*self.recurrent.values(), self.hidden, self.blocks(-(-self.window // PREFILL_BLOCK) + 1))

    def blocks(self, count: int) -> ArrayFormat:
        """Returns the format of the keys and values of whole blocks."""
        return self.tokens(count * PREFILL_BLOCK)

    def tokens(self, count: int) -> ArrayFormat:
        """Returns the format of the keys and values of some tokens."""
        shape, dtype = self.token
        return (count, *shape), dtype

    def named(self, snapshot: "Snapshot") -> dict[str, HostArray]:
        """Returns a snapshot's recurrent arrays by name."""
        return dict(zip(self.recurrent, snapshot.recurrent, strict=True))

    def recurrent_of(self, arrays: Mapping[str, HostArray]) -> tuple[HostArray, ...]:
        """Returns a snapshot's recurrent arrays from a file's arrays by name."""
        return tuple(arrays[name] for name in self.recurrent)


def num_bytes(*formats: ArrayFormat) -> int:
    """Returns the size of arrays of these formats."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in formats)


def is_finite(array: HostArray) -> bool:
    """Returns whether an array holds neither NaN nor infinity; for keys and values in int8, whether their scales do
    not.
    """
    if array.dtype == np.int8:
        array = np.ascontiguousarray(array[..., -SCALE_BYTES:]).view(np.float32)
    if array.dtype == ml_dtypes.bfloat16 and array.size:  # by its bits: `np.isfinite` takes ten times as long
        return bool((array.view(np.uint16) & 0x7FFF).max() < 0x7F80)
    return bool(np.isfinite(array).all())


def first_block(length: int, window: int) -> int:
    """Returns the index of the block that holds the oldest of the last `window` tokens."""
    return max(0, length - window) // PREFILL_BLOCK


def chunk_snapshots(last: Snapshot | None, block_states: Sequence[BlockState], window: int) -> list[Snapshot]:
    """Returns one snapshot for each state that prefilling a chunk has produced.

    Args:
      last: Snapshot at the chunk's start; None at the prompt's start. If it is not at a block boundary, the first block
        state is at the next one, or before it.
      block_states: States of the chunk, in order.
      window: Number of tokens that attention looks back on.
    """
    length = 0 if last is None else last.length
    blocks = [] if last is None else list(last.window)
    snapshots = []
    for state in block_states:
        partial = [blocks.pop()] if length % PREFILL_BLOCK else []
        length += len(state.window)
        blocks.append(np.concatenate([*partial, state.window]) if partial else state.window)
        count = -(-length // PREFILL_BLOCK) - first_block(length, window)
        kept = tuple(islice(blocks, len(blocks) - count, None))
        snapshots.append(Snapshot(length, state.recurrent, kept, state.hidden))
    return snapshots


def window_edges(length: int, window: int) -> list[int]:
    """Returns the positions between which a snapshot after `length` tokens has its blocks of keys and values.

    The first is that of the oldest of the last `window` tokens, the last is `length`, and the others are block
    boundaries.
    """
    oldest = max(0, length - window)
    return [oldest, *range(oldest // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK), length]


def snapshot_of(length: int, recurrent: tuple[HostArray, ...], window: HostArray) -> Snapshot:
    """Returns the snapshot of a slot.

    Args:
      length: Number of tokens that led to the state.
      recurrent: See `Snapshot`.
      window: Keys and values as `window_rows` returns them.
    """
    edges = pairwise(window_edges(length, len(window)))
    blocks = tuple(window[np.arange(start, end) % len(window)] for start, end in edges)
    return Snapshot(length, recurrent, blocks)


def window_rows(snapshot: Snapshot, window: int) -> HostArray:
    """Returns a snapshot's keys and values as a slot holds them, `[window, ...]`; see `snapshot_of`.

    Position p is in row p mod `window`; rows without a position are zeros.
    """
    first = snapshot.window[0]
    slot = np.zeros((window, *first.shape[1:]), first.dtype)
    position = snapshot.length - sum(map(len, snapshot.window))
    oldest = max(0, snapshot.length - window)
    for block in snapshot.window:
        rows = block[max(0, oldest - position) :]
        start = max(position, oldest) % window
        fits = min(len(rows), window - start)
        slot[start : start + fits] = rows[:fits]
        slot[: len(rows) - fits] = rows[fits:]
        position += len(block)
    return slot

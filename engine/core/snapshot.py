"""Snapshots: copies on the host of one slot's state, from which a request can be restored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import ml_dtypes
import numpy as np

from .arrays import ArrayFormat, HostArray
from .config import PREFILL_BLOCK

SCALE_BYTES: Final = 4
"""Bytes of the float32 scale behind each key and value in int8."""


@dataclass(frozen=True, eq=False, slots=True)
class BlockState:
    """State at a block boundary or at the end of a prompt, as a prefill step returns it.

    Attributes:
      recurrent: h and the convolutions' last inputs, of all recurrent layers.
      window: Keys and values of the tokens since the last block boundary, `[n, ...]` with 1 <= n <= `PREFILL_BLOCK`;
        in int8, each has `SCALE_BYTES` more columns with its scale.
      hidden: Activations of the last token, from which logits are computed; only at the end of a prompt.
    """

    recurrent: tuple[HostArray, ...]
    window: HostArray
    hidden: HostArray | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, (*self.recurrent, self.window, *([] if self.hidden is None else [self.hidden]))))


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One slot's state on the host. Arrays are shared between snapshots and never written to.

    Attributes:
      length: Number of tokens that led to the state.
      recurrent, hidden: See `BlockState`.
      window: Keys and values of the tokens from `first_block` on, one array for each block. The last array is shorter
        if `length` is no block boundary, and the first is if the ring held only part of its block.
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
        """Size of its arrays, also of those that other snapshots share."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def _arrays(self) -> tuple[HostArray, ...]:
        return *self.recurrent, *self.window, *([] if self.hidden is None else [self.hidden])


@dataclass(frozen=True, slots=True)
class SnapshotFormat:
    """Shapes and dtypes of a model's snapshots.

    Attributes:
      window: Number of tokens that attention looks back on.
      h, conv: Arrays of the recurrent layers.
      token: Keys and values of one token.
      hidden: Activations of the last token.
    """

    window: int
    h: ArrayFormat
    conv: ArrayFormat
    token: ArrayFormat
    hidden: ArrayFormat

    @property
    def max_bytes(self) -> int:
        """Size of the largest snapshot."""
        return num_bytes(self.h, self.conv, self.hidden, self.blocks(-(-self.window // PREFILL_BLOCK) + 1))

    def blocks(self, count: int) -> ArrayFormat:
        """Returns the format of the keys and values of whole blocks."""
        shape, dtype = self.token
        return (count * PREFILL_BLOCK, *shape), dtype


def num_bytes(*formats: ArrayFormat) -> int:
    """Returns the size of arrays of these formats."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in formats)


def is_finite(array: HostArray) -> bool:
    """Returns whether an array holds neither NaN nor infinity; of keys and values in int8, whether their scales do."""
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
      last: Snapshot at the chunk's start; None at the prompt's start. If it is at no block boundary, the first block
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

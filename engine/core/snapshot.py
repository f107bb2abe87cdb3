"""What the model knows after some tokens, as arrays on the host: enough to go on from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import ml_dtypes
import numpy as np

from .arrays import ArrayFormat, HostArray
from .config import PREFILL_BLOCK


@dataclass(frozen=True, eq=False, slots=True)
class Mark:
    """What a prefill step leaves behind at a point of the grid, or at the end of its prompt.

    Attributes:
      recurrent: h and the convolutions' last inputs, of all recurrent layers; see `engine.trail`.
      window: keys and values of the tokens since the grid point before, `[n, ...]` with 1 <= n <= `PREFILL_BLOCK`.
      hidden: the last token's activations, from which logits are computed; only at the end of a prompt.
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
    """A state to resume from. Arrays are shared between snapshots and never written to.

    Attributes:
      length: tokens that were read.
      recurrent, hidden: see `Mark`.
      window: keys and values of the tokens from `first_block` on, one array for each block of the grid; the last is
        shorter where `length` is no point of the grid, and the first where a ring had no more of it.
    """

    length: int
    recurrent: tuple[HostArray, ...]
    window: tuple[HostArray, ...]
    hidden: HostArray | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, (*self.recurrent, *self.window, *([] if self.hidden is None else [self.hidden]))))

    @property
    def own_bytes(self) -> int:
        """Without the window, most of which neighbours share."""
        hidden = 0 if self.hidden is None else self.hidden.nbytes
        return sum(array.nbytes for array in self.recurrent) + hidden


@dataclass(frozen=True, slots=True)
class SnapshotFormat:
    """Shapes and types of a model's snapshots.

    Attributes:
      window: number of tokens that attention looks back on.
      h, conv: the recurrent layers' arrays.
      token: one token's keys and values.
      hidden: the last token's activations.
    """

    window: int
    h: ArrayFormat
    conv: ArrayFormat
    token: ArrayFormat
    hidden: ArrayFormat

    @property
    def max_bytes(self) -> int:
        """Size of the largest snapshot."""
        blocks = -(-self.window // PREFILL_BLOCK) + 1
        shape, dtype = self.token
        window = ((blocks * PREFILL_BLOCK, *shape), dtype)
        arrays = (self.h, self.conv, self.hidden, window)
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)


def is_finite(array: HostArray) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    if array.dtype == ml_dtypes.bfloat16 and array.size:  # by its bits: `np.isfinite` takes ten times as long
        return bool((array.view(np.uint16) & 0x7FFF).max() < 0x7F80)
    return bool(np.isfinite(array).all())


def first_block(length: int, window: int) -> int:
    """The block of the grid in which the oldest of the last `window` tokens lies."""
    return max(0, length - window) // PREFILL_BLOCK


def follow(last: Snapshot | None, marks: Sequence[Mark], window: int) -> list[Snapshot]:
    """The snapshots that a chunk adds to the one before it.

    Args:
      last: where the chunk began; None for a prompt's beginning. Where that is no point of the grid, the first mark
        goes no further than to the next one.
      marks: of the chunk, in order.
      window: tokens that attention looks back on.
    """
    length = 0 if last is None else last.length
    blocks = [] if last is None else list(last.window)
    snapshots = []
    for mark in marks:
        begun = [blocks.pop()] if length % PREFILL_BLOCK else []
        length += len(mark.window)
        blocks.append(np.concatenate([*begun, mark.window]) if begun else mark.window)
        count = -(-length // PREFILL_BLOCK) - first_block(length, window)
        kept = tuple(islice(blocks, len(blocks) - count, None))
        snapshots.append(Snapshot(length, mark.recurrent, kept, mark.hidden))
    return snapshots


def from_ring(length: int, recurrent: tuple[HostArray, ...], ring: HostArray) -> Snapshot:
    """The snapshot of a slot that has read so many tokens; undoes `ring_rows`."""
    oldest = max(0, length - len(ring))
    edges = [oldest, *range(oldest // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK), length]
    blocks = (ring[np.arange(start, end) % len(ring)] for start, end in pairwise(edges))
    return Snapshot(length, recurrent, tuple(blocks))


def ring_rows(snapshot: Snapshot, window: int) -> HostArray:
    """A snapshot's keys and values as a ring `[window, ...]`: those of position p in row p mod `window`; rows that
    are not filled yet are zeros."""
    first = snapshot.window[0]
    ring = np.zeros((window, *first.shape[1:]), first.dtype)
    position = snapshot.length - sum(map(len, snapshot.window))
    oldest = max(0, snapshot.length - window)
    for block in snapshot.window:
        rows = block[max(0, oldest - position) :]
        start = max(position, oldest) % window
        fits = min(len(rows), window - start)
        ring[start : start + fits] = rows[:fits]
        ring[: len(rows) - fits] = rows[fits:]
        position += len(block)
    return ring

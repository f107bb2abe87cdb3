"""What the model knows after some tokens, as arrays on the host: enough to go on from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from .config import PREFILL_BLOCK

type HostArray = np.ndarray[Any, np.dtype[Any]]


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


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """A state to resume from. Arrays are shared between snapshots and never written to.

    Attributes:
      length: tokens that were read.
      recurrent, hidden: see `Mark`.
      window: keys and values of the tokens from `first_block` on, one array for each block of the grid; the last is
        shorter where `length` is no point of the grid.
    """

    length: int
    recurrent: tuple[HostArray, ...]
    window: tuple[HostArray, ...]
    hidden: HostArray | None = None

    @property
    def own_bytes(self) -> int:
        """Without the window, most of which neighbours share."""
        hidden = 0 if self.hidden is None else self.hidden.nbytes
        return sum(array.nbytes for array in self.recurrent) + hidden


def first_block(length: int, window: int) -> int:
    """The block of the grid in which the oldest of the last `window` tokens lies."""
    return max(0, length - window) // PREFILL_BLOCK


def follow(last: Snapshot | None, marks: Sequence[Mark], window: int) -> list[Snapshot]:
    """The snapshots that a chunk adds to the one before it.

    Args:
      last: where the chunk began, on the grid; None for a prompt's beginning.
      marks: of the chunk, in order.
      window: tokens that attention looks back on.
    """
    length = 0 if last is None else last.length
    blocks = [] if last is None else list(last.window)
    snapshots = []
    for mark in marks:
        length += len(mark.window)
        blocks.append(mark.window)
        count = -(-length // PREFILL_BLOCK) - first_block(length, window)
        kept = tuple(islice(blocks, len(blocks) - count, None))
        snapshots.append(Snapshot(length, mark.recurrent, kept, mark.hidden))
    return snapshots


def ring_rows(snapshot: Snapshot, window: int) -> HostArray:
    """A snapshot's keys and values as a ring `[window, ...]`: those of position p in row p mod `window`; rows that
    are not filled yet are zeros."""
    first = snapshot.window[0]
    ring = np.zeros((window, *first.shape[1:]), first.dtype)
    position = first_block(snapshot.length, window) * PREFILL_BLOCK
    oldest = max(0, snapshot.length - window)
    for block in snapshot.window:
        rows = block[max(0, oldest - position) :]
        start = max(position, oldest) % window
        fits = min(len(rows), window - start)
        ring[start : start + fits] = rows[:fits]
        ring[: len(rows) - fits] = rows[fits:]
        position += len(block)
    return ring

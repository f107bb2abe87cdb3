"""Remembered states on their way between the device and the host."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Float

from ..core.arrays import HostArray
from ..core.batch import PrefillChunk
from ..core.config import PREFILL_BLOCK
from ..core.snapshot import Mark, Snapshot, from_ring, ring_rows
from ..model.state import Trail


def read_marks(
    trails: Sequence[Trail],
    last: Float[Array, "Rmax D"],
    chunks: Sequence[PrefillChunk],
    places: Sequence[int],
    ends: Sequence[int],
) -> Iterator[tuple[Mark, ...]]:
    """What each of a batch's chunks has left, once the device is done; copies, since a trail is mostly padding.

    Args:
      trails: of all rows, one for each part of the layers.
      last: activations of rows' last tokens.
      chunks: what was read.
      places, ends: where each chunk stands in `trails` and in `last`.
    """
    h, conv, window = map(_all_layers, zip(*trails, strict=True))
    hidden = np.asarray(last)

    def mark(row: int, end_row: int, block: int, chunk: PrefillChunk) -> Mark:
        start = block * PREFILL_BLOCK
        end = min(start + PREFILL_BLOCK, chunk.length)
        is_end = chunk.is_last and end == chunk.length
        recurrent = (h[row, block].copy(), conv[row, block].copy())
        return Mark(recurrent, window[row, start:end].copy(), hidden[end_row].copy() if is_end else None)

    for row, end_row, chunk in zip(places, ends, chunks, strict=True):
        yield tuple(mark(row, end_row, block, chunk) for block in range(-(-chunk.length // PREFILL_BLOCK)))


def _all_layers(parts: Sequence[Array]) -> HostArray:
    """One kind's arrays, whose third axis is that of layers; a part may have no layer of this kind."""
    arrays = [np.asarray(part) for part in parts]
    some = [array for array in arrays if array.shape[2]] or arrays[:1]
    return some[0] if len(some) == 1 else np.concatenate(some, axis=2)  # which would copy


def read_slot(arrays: tuple[Array, Array, Array], length: int) -> Snapshot:
    """What `read_step` gave, of a slot that has read so many tokens; waits for the device."""
    h, conv, ring = map(np.asarray, arrays)
    return from_ring(length, (h, conv), ring)


def restore_inputs(snapshot: Snapshot, slot: int, window: int) -> tuple[HostArray, ...]:
    """What `restore_step` takes beside the pool."""
    return (np.array([slot], np.int32), *snapshot.recurrent, ring_rows(snapshot, window))


def known_ends(chunks: Sequence[PrefillChunk], rows: int) -> Float[np.ndarray, "Rmax D"]:
    """The remembered activations that the first tokens of prompts are sampled from, filled up to so many rows."""
    ends: list[HostArray] = []
    for chunk in chunks:
        assert chunk.snapshot is not None
        assert chunk.snapshot.hidden is not None
        ends.append(chunk.snapshot.hidden)
    return np.stack(ends + ends[:1] * (rows - len(ends)))

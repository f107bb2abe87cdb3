"""Copies of state between the device and the host."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Float

from ..core.arrays import HostArray
from ..core.batch import PrefillChunk
from ..core.config import PREFILL_BLOCK
from ..core.snapshot import BlockState, Snapshot, from_ring, ring_rows
from ..model.state import BlockStates


def read_block_states(
    block_states: Sequence[BlockStates],
    last: Float[Array, "Rmax D"],
    chunks: Sequence[PrefillChunk],
    places: Sequence[int],
    ends: Sequence[int],
) -> Iterator[tuple[BlockState, ...]]:
    """Waits for the device and yields the states of each of a batch's chunks.

    They are copies without the device arrays' padding, which is most of those.

    Args:
      block_states: States of all rows, one for each layer slice.
      last: Activations of the rows' last tokens.
      chunks: The chunks that were prefilled.
      places, ends: Row of each chunk in `block_states` and in `last`.
    """
    h, conv, window = map(_all_layers, zip(*block_states, strict=True))
    hidden = np.asarray(last)

    def block_state(row: int, end_row: int, block: int, chunk: PrefillChunk) -> BlockState:
        start = block * PREFILL_BLOCK
        end = min(start + PREFILL_BLOCK, chunk.length)
        is_end = chunk.is_last and end == chunk.length
        recurrent = (h[row, block].copy(), conv[row, block].copy())
        return BlockState(recurrent, window[row, start:end].copy(), hidden[end_row].copy() if is_end else None)

    for row, end_row, chunk in zip(places, ends, chunks, strict=True):
        yield tuple(block_state(row, end_row, block, chunk) for block in range(-(-chunk.length // PREFILL_BLOCK)))


def _all_layers(slices: Sequence[Array]) -> HostArray:
    """Returns the layer slices' arrays of one kind, joined along the third axis; a slice may have no layer of it."""
    arrays = [np.asarray(each) for each in slices]
    some = [array for array in arrays if array.shape[2]] or arrays[:1]
    return some[0] if len(some) == 1 else np.concatenate(some, axis=2)  # which would copy


def read_slot(arrays: tuple[Array, Array, Array], length: int) -> Snapshot:
    """Waits for the device and returns the snapshot of a slot.

    Args:
      arrays: Results of `read_step`.
      length: Number of tokens that led to the state.
    """
    h, conv, ring = map(np.asarray, arrays)
    return from_ring(length, (h, conv), ring)


def restore_inputs(snapshot: Snapshot, window: int) -> tuple[HostArray, ...]:
    """Returns a snapshot's arrays as `Executor.restore` takes them."""
    return (*snapshot.recurrent, ring_rows(snapshot, window))


def cached_hidden(chunks: Sequence[PrefillChunk], rows: int) -> Float[np.ndarray, "Rmax D"]:
    """Returns the activations at the ends of prompts that the prefix cache holds whole, padded to `rows` rows."""
    hidden: list[HostArray] = []
    for chunk in chunks:
        assert chunk.snapshot is not None
        assert chunk.snapshot.hidden is not None
        hidden.append(chunk.snapshot.hidden)
    return np.stack(hidden + hidden[:1] * (rows - len(hidden)))

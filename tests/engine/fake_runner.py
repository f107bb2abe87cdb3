"""A runner without a device, whose arithmetic a reader can follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from roost.engine import EngineDeadError
from roost.engine.core.batch import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RowResult
from roost.engine.core.snapshot import Snapshot, from_ring


@dataclass
class FakePending:
    """Results that were known all along."""

    results: Sequence[RowResult]

    def wait(self) -> Sequence[RowResult]:
        return self.results


class FakeRunner:
    """Counts on: the first token is the prompt's last id + 1, each further one the one before it + 1.

    It keeps, per slot, what a device would keep (the last token and how many it has read), and fails on a batch that a
    device would serve wrongly: a slot named twice, a chunk that does not start where the last one ended, parts of a
    batch in another order or with something else in their slots.
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.compiles_since_ready = 0
        self.restore_seconds = 0.0
        self.failure: EngineDeadError | None = None
        self._last: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._begun: PrefillBatch | None = None

    def run(self, batch: Batch) -> FakePending:
        self.batches.append(batch)
        if isinstance(batch, DecodeBatch):
            assert len(set(batch.slots)) == len(batch.slots)
            begun = set() if self._begun is None else {row.slot for row in self._begun.rows}
            assert begun.isdisjoint([*batch.slots, *(slot for move in batch.moves for slot in move)])
            for source, target in batch.moves:
                for kept in (self._last, self._read):  # there is nothing yet in a slot whose prompt waits
                    if source in kept:
                        kept[target] = kept.pop(source)
            return FakePending([self._decode(slot, batch.steps) for slot in batch.slots])
        if batch.layer_slice:
            assert self._begun is not None
            assert (self._begun.layer_slice, self._begun.layer_slices) == (batch.layer_slice - 1, batch.layer_slices)
            assert self._begun.chunks == batch.chunks
        self._begun = None if batch.is_last_slice else batch
        return FakePending([self._prefill(c) if batch.is_last_slice else RowResult() for c in batch.chunks])

    def close(self) -> None:
        pass

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """The slot's last token, which it has not read yet, as its state."""
        return from_ring(length, (np.array([self._last[slot]]),), np.zeros((1, 1), np.int32))

    def _decode(self, slot: int, steps: int = 1) -> RowResult:
        first = self._last[slot] + 1
        self._last[slot] += steps
        return RowResult(tuple(range(first, first + steps)))

    def _prefill(self, chunk: PrefillChunk) -> RowResult:
        slot = chunk.slot
        assert chunk.start in (0, self._read.get(slot))
        self._read[slot] = chunk.start + chunk.length
        if not chunk.is_last:
            return RowResult()
        self._last[slot] = chunk.request.prompt_token_ids[-1]
        return self._decode(slot)

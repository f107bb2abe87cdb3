"""A runner without a device, whose tokens are easy to predict."""

from collections.abc import Sequence

import numpy as np
from roost.engine.types.request import Batch, DecodeBatch, FirstToken, Pending, PrefillBatch, RowResult
from roost.engine.types.snapshot import Snapshot, snapshot_of


def pending(results: Sequence[RowResult]) -> Pending:
    """Returns results that are known at once."""
    return lambda: results


class FakeRunner:
    """Generates consecutive numbers: the first token is the prompt's last id + 1.

    It keeps the last token and the number of prefilled tokens per slot, as a device keeps its state. It fails on a
    batch for which a device would generate wrong tokens: with a slot named twice, a chunk that does not start where the
    last one ended, layer slices in another order or with other work on their slots in between, or a first token before
    the prompt has ended.
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.compiles_since_ready = 0
        self.restore_seconds = 0.0
        self._last: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._in_progress: PrefillBatch | None = None
        self._touched: set[int] = set()  # slots of other work since the first slice

    def run(self, batch: Batch) -> Pending:
        self.batches.append(batch)
        if isinstance(batch, DecodeBatch):
            assert len(set(batch.slots)) == len(batch.slots)
            self._touched |= {*batch.slots, *(slot for move in batch.moves for slot in move)}
            for source, target in batch.moves:
                for kept in (self._last, self._lengths):  # a slot whose prompt waits for prefill is empty
                    if source in kept:
                        kept[target] = kept.pop(source)
            return pending([self._decode(slot, batch.steps) for slot in batch.slots])
        if not batch.num_tokens:
            self._touched |= {row.slot for row in batch.rows}
            return self._end(batch)
        if batch.layer_slice:
            last = self._in_progress
            assert last is not None
            assert last.layer_slice + 1 == batch.layer_slice
            assert last.chunks == batch.chunks
            assert self._touched.isdisjoint(chunk.slot for chunk in batch.chunks)
        else:
            self._touched.clear()
        self._in_progress = None if batch.is_last_slice else batch
        return self._end(batch) if batch.is_last_slice else pending([RowResult() for _ in batch.chunks])

    def close(self) -> None:
        pass

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns the slot's last token, which was not processed yet, as its state."""
        return snapshot_of(length, (np.array([self._last[slot]]),), np.zeros((1, 1), np.int32))

    def _decode(self, slot: int, steps: int = 1) -> RowResult:
        first = self._last[slot] + 1
        self._last[slot] += steps
        return RowResult(tuple(range(first, first + steps)))

    def _end(self, batch: PrefillBatch) -> Pending:
        for chunk in batch.chunks:
            assert chunk.start in (0, self._lengths.get(chunk.slot))
            for slot in (chunk.slot, *chunk.forks):
                self._lengths[slot] = chunk.start + chunk.length
        return pending([*(RowResult() for _ in batch.chunks), *map(self._first_token, batch.first_tokens)])

    def _first_token(self, row: FirstToken) -> RowResult:
        assert self._lengths[row.slot] == len(row.request.prompt_token_ids)
        self._last[row.slot] = row.request.prompt_token_ids[-1]
        return self._decode(row.slot)

"""Runs batches: builds the inputs of device programs and dispatches them."""

import time
from collections.abc import Sequence

import numpy as np

from ..core.batch import Batch, DecodeBatch, PrefillBatch, RestoreBatch
from ..core.config import MAX_PREFILL_ROWS, StepLimits
from ..core.errors import EngineDeadError
from ..core.snapshot import Snapshot
from ..model.state import BlockStates
from ..prefix_cache.saved_state import SavedStateFormat
from ..sampling.logprobs import Logprobs
from ..sampling.sampler import Sampled
from .executor import Executor
from .pending import PendingDecode, PendingPrefill, PendingSlice
from .programs import as_first_token_input, first_token_rows
from .step_inputs import first_token_columns, mask_columns, prefill_columns, score_targets
from .steps import PrefillInput
from .transfer import cached_hidden, read_slot, restore_inputs


class ModelRunner:
    """Runs batches on a model's devices; `load_runner` builds one.

    Args:
      executor: The model's compiled programs.
      limits: Limits of a step.
      state_format: Format of saved states.
      keeps_snapshots: Whether prefill steps return block states for the prefix cache.

    Attributes:
      restore_seconds: Seconds spent on restoring snapshots into slots.
    """

    def __init__(
        self,
        executor: Executor,
        limits: StepLimits,
        state_format: SavedStateFormat,
        *,
        keeps_snapshots: bool = True,
    ) -> None:
        self.executor = executor
        self.limits = limits
        self.state_format = state_format
        self.keeps_snapshots = keeps_snapshots
        self.restore_seconds = 0.0
        self._layout = executor.layout
        self._block_states: tuple[BlockStates, ...] = ()

    @property
    def slots(self) -> int:
        """Number of requests that run at a time."""
        return self._layout.slots

    @property
    def window(self) -> int:
        """Number of tokens that attention looks back on."""
        return self.state_format.snapshot.window

    @property
    def failure(self) -> EngineDeadError | None:
        """Error that ends the engine outside of a step."""
        return self.executor.failure

    @property
    def compiles_since_ready(self) -> int:
        """Number of XLA compilations since every program was compiled."""
        return self.executor.compiles.count

    def close(self) -> None:
        """Stops counting compilations; the device's memory goes with the last reference."""
        self.executor.close()

    def run(self, batch: Batch) -> PendingDecode | PendingPrefill | PendingSlice:
        """Dispatches a batch to the device and returns at once."""
        if isinstance(batch, DecodeBatch):
            return self._run_decode(batch)
        for chunk in batch.chunks:
            if chunk.snapshot is not None and not batch.layer_slice:
                self._restore(chunk.slot, chunk.snapshot)
        if isinstance(batch, RestoreBatch):
            last = self.executor.set_last(cached_hidden(batch.chunks, MAX_PREFILL_ROWS * self._layout.shards.data))
            return PendingPrefill(batch, (), (), last, self._sample_first(batch, range(len(batch.chunks))))
        return self._run_prefill(batch)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns the state of a slot that has processed `length` tokens, after all batches so far; waits for them."""
        return read_slot(self.executor.read_slot(slot), length)

    def _run_decode(self, batch: DecodeBatch) -> PendingDecode:
        for source, target in batch.moves:
            self.executor.copy_slot(source, target)
        for slots, masks in mask_columns(batch.masks, MAX_PREFILL_ROWS, self._layout.rows, self.limits.mask_words):
            self.executor.set_masks(slots, masks)
        active = np.zeros(next(rows for rows in self.limits.decode_rows if rows > max(batch.slots)), np.bool)
        active[list(batch.slots)] = True
        return PendingDecode(batch, self.executor.decode(active, batch.steps))

    def _run_prefill(self, batch: PrefillBatch) -> PendingPrefill | PendingSlice:
        chunks, shards = batch.chunks, self._layout.shards.data
        homes = [chunk.slot // self.limits.shard_rows for chunk in chunks]
        ranks = [homes[:place].count(home) for place, home in enumerate(homes)]
        shape = self._layout.step_shapes.fit(max(ranks) + 1, max(chunk.length for chunk in chunks))
        places = [home * shape.rows + rank for home, rank in zip(homes, ranks, strict=True)]
        ends = [home * MAX_PREFILL_ROWS + rank for home, rank in zip(homes, ranks, strict=True)]
        columns = prefill_columns(chunks, places, shape.rows * shards, shape.length, self._layout.rows)
        result = self.executor.prefill(shape, PrefillInput(**columns), batch.layer_slice)
        block_states = self._block_states = (*(self._block_states if batch.layer_slice else ()), result.block_states)
        if not batch.is_last_slice:
            return PendingSlice(batch, result.last)
        sampled = self._sample_first(batch, ends)
        scores = self._score(batch, places, shape.rows * shards, shape.length)
        kept = block_states if self.keeps_snapshots else ()
        return PendingPrefill(batch, tuple(places), tuple(ends), result.last, sampled, scores, kept)

    def _score(self, batch: PrefillBatch, places: Sequence[int], rows: int, length: int) -> Logprobs | None:
        if all(chunk.request.params.prompt_logprobs is None for chunk in batch.chunks):
            return None
        return self.executor.score(score_targets(batch.chunks, places, rows, length))

    def _sample_first(self, batch: PrefillBatch, ends: Sequence[int]) -> tuple[Sampled, ...]:
        """Samples the first tokens of prompts that end in this batch, and of their forks, some at a time.

        Args:
          batch: The chunks.
          ends: Row of each chunk's last token in `last`.
        """
        source = {end.slot: row for row, chunk in zip(ends, batch.chunks, strict=True) for end in (chunk, *chunk.forks)}
        firsts = [(source[row.slot], row) for row in batch.rows if row.is_last]
        for chunk in batch.chunks:
            for fork in chunk.forks:
                self.executor.copy_slot(chunk.slot, fork.slot)
        rows, mask_words = first_token_rows(self._layout.shards), self.limits.mask_words
        sampled = []
        for start in range(0, len(firsts), MAX_PREFILL_ROWS):
            some = firsts[start : start + MAX_PREFILL_ROWS]
            columns = first_token_columns(some, rows, self._layout.rows, mask_words)
            sampled.append(self.executor.first_token(as_first_token_input(columns)))
        return tuple(sampled)

    def _restore(self, slot: int, snapshot: Snapshot) -> None:
        start = time.perf_counter()
        self.executor.restore(slot, restore_inputs(snapshot, self.window))
        self.restore_seconds += time.perf_counter() - start

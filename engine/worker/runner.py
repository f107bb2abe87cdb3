"""Turns batches into programs' arrays, and what the device gives into results."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Array, Float

from ..checkpoint.identity import model_identity
from ..checkpoint.source import ModelSource
from ..core.arrays import HostArray
from ..core.batch import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RestoreBatch, RowResult
from ..core.config import MAX_PREFILL_ROWS, EngineConfig, StepLimits
from ..core.errors import EngineDeadError
from ..core.host_memory import available_memory
from ..core.mesh import slot_order
from ..core.output_constraint import words_of_mask
from ..core.request import Request, TokenLogprobs
from ..core.snapshot import Snapshot, SnapshotFormat
from ..model.state import Trail
from ..prefix_cache.saved_state import SavedStateFormat
from ..sampling.logprobs import Logprobs
from ..sampling.sampler import Sampled
from .executor import Executor, Progress
from .programs import as_first_token_input, first_token_rows, prefill_names, snapshot_shapes
from .step_inputs import first_token_columns, mask_columns, prefill_columns, score_targets
from .steps import PrefillInput
from .transfer import cached_hidden, read_block_states, read_slot, restore_inputs

_DISPATCH_SECONDS: Final = 0.02
"""How long a dispatch of several tokens may take."""

_CACHE_SHARE: Final = 1 / 8
"""Of the host's memory that is available, for remembered states, unless the config says otherwise."""


@dataclass(frozen=True, slots=True)
class PendingDecode:
    """Decode steps that the device may still be working on."""

    batch: DecodeBatch
    sampled: Sampled

    def wait(self) -> tuple[RowResult, ...]:
        """Reads one result per request."""
        tokens = np.asarray(self.sampled.tokens)[: self.batch.steps].T.tolist()
        return tuple(
            _row_result(
                request, tuple(tokens[slot]), self.sampled.logprobs, [(t, slot) for t in range(self.batch.steps)]
            )
            for request, slot in zip(self.batch.requests, self.batch.slots, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PendingPrefill:
    """A prefill step that the device may still be working on.

    Attributes:
      places: where each chunk stands in the step's rows.
      ends: where the activations of each chunk's last token stand in `last`.
      last: what the step ends with; there is always something to wait for, so that the host stays in step.
      sampled: the first tokens of the prompts that end in this batch and of their forks, `MAX_PREFILL_ROWS` at a time.
      scores: of the token after each of the chunks' tokens, if anybody asked.
      trails: what the chunks add to the state, part by part, if states are remembered.
    """

    batch: PrefillBatch
    places: tuple[int, ...]
    ends: tuple[int, ...]
    last: Float[Array, "R D"]
    sampled: tuple[Sampled, ...]
    scores: Logprobs | None = None
    trails: tuple[Trail, ...] = ()

    def wait(self) -> tuple[RowResult, ...]:
        """Reads one result per chunk and per fork."""
        self.last.block_until_ready()
        firsts = ((sampled, place) for sampled in self.sampled for place in range(len(sampled.tokens)))
        results = [self._row(row, chunk, firsts) for row, chunk in enumerate(self.batch.rows)]
        if self.trails:
            chunks = self.batch.chunks
            for row, states in enumerate(read_block_states(self.trails, self.last, chunks, self.places, self.ends)):
                results[row] = replace(results[row], block_states=states)
        return tuple(results)

    def _row(self, row: int, chunk: PrefillChunk, firsts: Iterator[tuple[Sampled, int]]) -> RowResult:
        result = RowResult()
        if chunk.is_last:
            sampled, place = next(firsts)
            token = int(np.asarray(sampled.tokens)[place])
            result = _row_result(chunk.request, (token,), sampled.logprobs, [(place,)])
        wanted = chunk.request.params.prompt_logprobs
        if wanted is None:
            return result
        assert self.scores is not None
        count = chunk.length - chunk.is_last  # what follows the last prompt token is sampled, not scored
        place = self.places[row]
        return replace(result, prompt_logprobs=tuple(_read(self.scores, (place, t), wanted) for t in range(count)))


@dataclass(frozen=True, slots=True)
class PendingPart:
    """Some of a prefill step's layers, but for the last ones, that the device may still be working on.

    Attributes:
      last: what the part ends with.
    """

    batch: PrefillBatch
    last: Float[Array, "R D"]

    def wait(self) -> tuple[RowResult, ...]:
        """Gives nothing to any row."""
        self.last.block_until_ready()
        return (RowResult(),) * len(self.batch.rows)


class ModelRunner:
    """A model on its devices. All shapes are compiled when this returns.

    Args:
      source: the model.
      config: see `EngineConfig`.
      progress: see `Progress`.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the state of the slots does not fit into memory, or there are too few devices.
    """

    def __init__(self, source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> None:
        self._executor = executor = Executor(source, config, progress)
        self._shapes = executor.step_shapes
        self._trails: tuple[Trail, ...] = ()
        self.slots = executor.slots
        self._shard_rows = executor.rows // executor.shards.data
        self._first_rows = first_token_rows(executor.shards)
        h, conv, ring = ((x.shape, x.dtype.name) for x in snapshot_shapes(source.config, executor.dtype))
        self.window = ring[0][0]
        model = model_identity(source, executor.dtype.name, config.quantize, config.seed)
        token = (ring[0][1:], ring[1])
        hidden = ((source.config.width,), executor.dtype.name)
        snapshot_format = SnapshotFormat(self.window, h, conv, token, hidden)
        self.state_format = SavedStateFormat(model, source.config.vocab_size, snapshot_format)
        self.state_cache_bytes = _state_cache_bytes(config.state_cache_gib)
        self.restore_seconds = 0.0
        self._mask_words = words_of_mask(source.config.vocab_size)
        self.limits = StepLimits(
            prefill_chunk=config.prefill_chunk,
            prefill_beside_decode=executor.platform.prefill_beside_decode or config.prefill_chunk,
            prefill_rows=self._shapes.prefill_rows,
            prefill_layer_slices=len(self._shapes.parts),
            decode_steps=self._affordable_steps() if self._shapes.decode_steps > 1 else 1,
            decode_rows=executor.decode_rows,
            mask_words=self._mask_words,
            slot_order=slot_order(self.slots, executor.rows, executor.shards.data, executor.shards.model),
            shard_rows=self._shard_rows,
        )

    def close(self) -> None:
        """Stops counting compilations; the device's memory goes with the last reference."""
        self._executor.close()

    @property
    def failure(self) -> EngineDeadError | None:
        """Why nothing can go on, if that shows beside the steps."""
        return self._executor.failure

    @property
    def compiles_since_ready(self) -> int:
        """XLA compilations since every shape was compiled."""
        return self._executor.compiles_since_ready

    def run(self, batch: Batch) -> "PendingDecode | PendingPrefill | PendingPart":
        """Hands a batch to the device and returns at once."""
        if isinstance(batch, DecodeBatch):
            return self._run_decode(batch)
        for chunk in batch.chunks:
            if chunk.snapshot is not None and not batch.layer_slice:
                self._restore(chunk.slot, chunk.snapshot)
        if isinstance(batch, RestoreBatch):
            places = range(len(batch.chunks))
            count = MAX_PREFILL_ROWS * self._executor.shards.data
            ends = self._executor.run("ends", cached_hidden(batch.chunks, count))["last"]
            return PendingPrefill(batch, (), (), ends, self._sample_first(batch, places))
        return self._run_prefill(batch)

    def read(self, slot: int, length: int) -> Snapshot:
        """The state of a slot that has read so many tokens, behind all batches so far; waits for them."""
        return read_slot(self._executor.run("read", np.array([slot], np.int32))["state"], length)

    def _run_decode(self, batch: DecodeBatch) -> PendingDecode:
        for source, target in batch.moves:
            self._copy(source, target)
        for slots, masks in mask_columns(batch.masks, MAX_PREFILL_ROWS, self._executor.rows, self._mask_words):
            self._executor.run("mask", slots, masks)
        rows = next(n for n in self._executor.decode_rows if n > max(batch.slots))
        active = np.zeros(rows, np.bool)
        active[list(batch.slots)] = True
        return PendingDecode(batch, self._decode(rows, active, batch.steps))

    def _decode(self, rows: int, active: HostArray, steps: int) -> Sampled:
        sampled: Sampled = self._executor.run(f"decode {rows}", active, np.int32(steps))["sampled"]
        return sampled

    def _run_prefill(self, batch: PrefillBatch) -> "PendingPrefill | PendingPart":
        chunks, shards = batch.chunks, self._executor.shards.data
        homes = [chunk.slot // self._shard_rows for chunk in chunks]
        ranks = [homes[:place].count(home) for place, home in enumerate(homes)]
        most, longest = max(ranks) + 1, max(chunk.length for chunk in chunks)
        rows = min(n for n, _ in self._shapes.prefill if n >= most)
        length = min(n for r, n in self._shapes.prefill if r == rows and n >= longest)
        places = [home * rows + rank for home, rank in zip(homes, ranks, strict=True)]
        ends = [home * MAX_PREFILL_ROWS + rank for home, rank in zip(homes, ranks, strict=True)]
        inputs = PrefillInput(**prefill_columns(chunks, places, rows * shards, length, self._executor.rows))
        name = prefill_names(rows, length, batch.layer_slices)[batch.layer_slice]
        result = self._executor.run(name, inputs)
        trails = self._trails = (*(self._trails if batch.layer_slice else ()), result["trail"])
        if not batch.is_last_slice:
            return PendingPart(batch, result["last"])
        scores = None
        sampled = self._sample_first(batch, ends)
        if any(chunk.request.params.prompt_logprobs is not None for chunk in chunks):
            targets = score_targets(chunks, places, rows * shards, length)
            scores = self._executor.run(f"score {length}", targets)["scores"]
        remembered = trails if self.state_cache_bytes else ()
        return PendingPrefill(batch, tuple(places), tuple(ends), result["last"], sampled, scores, remembered)

    def _sample_first(self, batch: PrefillBatch, ends: Sequence[int]) -> tuple[Sampled, ...]:
        """Samples the first tokens of prompts that end in this batch, and of their forks, so many at a time.

        Args:
          batch: what was read.
          ends: where the activations of each chunk's last token stand.
        """
        source = {end.slot: row for row, chunk in zip(ends, batch.chunks, strict=True) for end in (chunk, *chunk.forks)}
        firsts = [(source[row.slot], row) for row in batch.rows if row.is_last]
        sampled = []
        for chunk in batch.chunks:
            for fork in chunk.forks:
                self._copy(chunk.slot, fork.slot)
        for start in range(0, len(firsts), MAX_PREFILL_ROWS):
            some = firsts[start : start + MAX_PREFILL_ROWS]
            columns = first_token_columns(some, self._first_rows, self._executor.rows, self._mask_words)
            sampled.append(self._executor.run("first token", as_first_token_input(columns))["sampled"])
        return tuple(sampled)

    def _copy(self, source: int, target: int) -> None:
        self._executor.run("copy", np.array([source], np.int32), np.array([target], np.int32))

    def _restore(self, slot: int, snapshot: Snapshot) -> None:
        start = time.perf_counter()
        self._executor.run("restore", *restore_inputs(snapshot, slot, self.window))
        self.restore_seconds += time.perf_counter() - start

    def _affordable_steps(self) -> int:
        """Tokens per dispatch that keep a request from waiting for long; measured on the largest step."""
        rows, times = self._executor.rows, []
        active = np.ones(rows, np.bool)
        for _ in range(3):
            start = time.perf_counter()
            self._decode(rows, active, 1).tokens.block_until_ready()
            times.append(time.perf_counter() - start)
        return max(1, min(int(_DISPATCH_SECONDS / min(times)), self._shapes.decode_steps))


def _state_cache_bytes(gib: float | None) -> int:
    return int(_CACHE_SHARE * available_memory()) if gib is None else int(gib * 2**30)


def _row_result(
    request: Request, tokens: tuple[int, ...], logprobs: Logprobs, places: Sequence[tuple[int, ...]]
) -> RowResult:
    """One row's tokens, and the log-probabilities at their places."""
    wanted, names = request.params.logprobs, request.params.logprob_token_ids
    if wanted is None:
        return RowResult(tokens)
    return RowResult(tokens, tuple(_read(logprobs, place, wanted, names) for place in places))


def _read(logprobs: Logprobs, index: tuple[int, ...], count: int, names: Sequence[int] = ()) -> TokenLogprobs:
    """One place's log-probabilities, cut to as many alternatives and named tokens as were asked for."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:count], values[:count], strict=True))
    named = np.asarray(logprobs.named)[index].tolist() if names else ()
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top, tuple(zip(names, named, strict=False)))

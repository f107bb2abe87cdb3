"""Runs batches: builds the inputs of device programs, dispatches them, and reads their results."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import batched
from typing import Any

import numpy as np

from ..model.state import BlockStates
from ..sampling.sampler import Logprobs, Sampled
from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, DraftCounts
from ..types.host_memory import HostArray
from ..types.request import (
    Batch,
    BlockStatesReader,
    DecodeBatch,
    FirstToken,
    Pending,
    PrefillBatch,
    PrefillChunk,
    ReplayedRow,
    Request,
    RowResult,
    TokenLogprobs,
)
from ..types.snapshot import BlockState, SavedStateFormat, Snapshot, snapshot_of
from .executor import Executor
from .served import Program
from .speculative_steps import Speculated
from .transfer import (
    draft_columns,
    first_token_input,
    mask_columns,
    masks_after_drafts,
    prediction_use,
    prefill_input,
    read_block_states,
    replay_input,
    score_targets,
    window_rows,
)


def _decoded(batch: DecodeBatch, places: Sequence[int], sampled: Sampled) -> list[RowResult]:
    """Waits for decode steps, and returns one result per request.

    Args:
      places: Row of each request in the steps.
      sampled: Tokens of the steps.
    """
    steps, by_row = range(batch.steps), np.asarray(sampled.tokens)[: batch.steps].T.tolist()
    rows = zip(batch.requests, places, strict=True)
    return [
        _row_result(request, tuple(by_row[place]), sampled.logprobs, [(step, place) for step in steps])
        for request, place in rows
    ]


def _drafted(request: Request, place: int, max_drafts: int, result: Speculated) -> RowResult:
    """Returns a request's result of decode steps with drafts, of which it has one row."""
    is_own = np.asarray(result.rows) == place
    tokens, places = np.asarray(result.sampled.tokens)[is_own].tolist(), np.argwhere(is_own).tolist()
    row = _row_result(request, tuple(tokens), result.sampled.logprobs, list(map(tuple, places)))
    by_step = (np.asarray(x)[:, place].tolist() for x in (result.starts, result.drafted, result.accepted))
    drafts = [each for each in zip(*by_step, strict=True) if each[1]]
    if not drafts:
        return row
    accepted = tuple(sum(each[2] > index for each in drafts) for index in range(max_drafts))
    counts = DraftCounts(len(drafts), sum(each[1] for each in drafts), accepted)
    use = prediction_use(request, drafts) if request.predicted_token_ids else None
    return row._replace(drafts=counts, prediction=use)


def _first_tokens(rows: Sequence[FirstToken], sampled: Sequence[Sampled]) -> Iterator[RowResult]:
    """Waits for steps that sample first tokens, `MAX_PREFILL_ROWS` each, and yields one result per request."""
    for some, step in zip(batched(rows, MAX_PREFILL_ROWS), sampled, strict=True):
        for place, (row, token) in enumerate(zip(some, np.asarray(step.tokens).tolist(), strict=False)):
            yield _row_result(row.request, (token,), step.logprobs, [(place,)])


def _prompt_logprobs(chunk: PrefillChunk, place: int, scores: Logprobs) -> tuple[TokenLogprobs, ...]:
    """Returns the log-probabilities of the token after each token of a chunk."""
    num_top = chunk.request.params.prompt_logprobs or 0
    count = chunk.length - chunk.is_last  # the token after the prompt is sampled, not scored
    return tuple(_token_logprobs(scores, (place, step), num_top) for step in range(count))


def _row_result(
    request: Request, tokens: tuple[int, ...], logprobs: Logprobs, places: Sequence[tuple[int, ...]]
) -> RowResult:
    """Returns one row's tokens, with the log-probabilities at their places if the request wants them."""
    num_top = request.params.logprobs
    if num_top is None:
        return RowResult(tokens)
    named = request.params.logprob_token_ids
    return RowResult(tokens, tuple(_token_logprobs(logprobs, place, num_top, named) for place in places))


def _token_logprobs(
    logprobs: Logprobs, index: tuple[int, ...], num_top: int, named: Sequence[int] = ()
) -> TokenLogprobs:
    """Returns the log-probabilities at one index, with the requested number of alternatives and the named tokens."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:num_top], values[:num_top], strict=True))
    of_named = np.asarray(logprobs.named)[index].tolist() if named else ()
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top, tuple(zip(named, of_named, strict=False)))


class ModelRunner:
    """Runs batches on a model's devices; `load_runner` builds one.

    Args:
      executor: The model's compiled programs.
      state_format: Format of saved states.
      decode_steps: Maximum number of tokens per request and dispatch.

    Attributes:
      served: The model on its devices.
      keeps_snapshots: Whether prefill steps return block states for the prefix cache.
      restore_seconds: Seconds spent on restoring snapshots into slots.
    """

    def __init__(self, executor: Executor, state_format: SavedStateFormat, decode_steps: int) -> None:
        self.executor = executor
        self.served = executor.served
        self.limits = self.served.limits(decode_steps)
        self.state_format = state_format
        self.keeps_snapshots = self.served.settings.state_cache_gib != 0
        self.restore_seconds = 0.0
        self._programs = executor.programs
        self._block_states: tuple[BlockStates, ...] = ()
        self._reader = ThreadPoolExecutor(1, "block states")
        settings = self.served.settings.speculation
        self._max_drafts = 0 if settings is None else settings.num_tokens

    @property
    def compiles_since_ready(self) -> int:
        """Number of XLA compilations since every program was compiled."""
        return self.executor.compiles.count

    def close(self) -> None:
        """Stops counting compilations, and reads the last block states.

        The device's memory goes with the last reference.
        """
        self._reader.shutdown()
        self.executor.close()

    def run(self, batch: Batch) -> Pending:
        """Dispatches a batch to the device without waiting for it."""
        if isinstance(batch, DecodeBatch):
            return self._run_decode(batch)
        for chunk in batch.chunks:
            if chunk.snapshot is not None and not batch.layer_slice:
                self._restore(chunk.slot, chunk.snapshot)
        if batch.num_tokens:
            return self._run_prefill(batch)
        sampled = self._fork_and_sample(batch)
        return lambda: [*(RowResult() for _ in batch.chunks), *_first_tokens(batch.first_tokens, sampled)]

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns the state of a slot that has processed `length` tokens, after all batches so far; waits for them."""
        *recurrent, window = map(np.asarray, self.executor.run(self._programs.read_slot, _slot(slot)))
        return snapshot_of(length, tuple(recurrent), window)

    def _run_decode(self, batch: DecodeBatch) -> Pending:
        for source, target in batch.moves:
            self._copy(source, target)
        self._replay(batch.replays)
        served, run = self.served, self.executor.run
        speculate = self._speculate(batch)
        rows, places = served.decode_places(batch.slots)
        if speculate is not None:
            rows = speculate.inputs[0].shape[0]
        masks = batch.masks if speculate is None else masks_after_drafts(batch)
        for slots, words in mask_columns(masks, MAX_PREFILL_ROWS, served.rows, served.mask_words):
            run(self._programs.set_mask, slots, words)
        active = np.zeros(rows, np.bool)
        active[list(places)] = True
        if speculate is None:
            return partial(_decoded, batch, places, run(self._programs.decode[rows], active, np.int32(batch.steps)))
        limits, forced = draft_columns(batch.drafts, places, (rows, self._max_drafts))
        result = run(speculate, active, limits, forced, np.int32(batch.steps))

        def wait() -> list[RowResult]:
            pairs = zip(batch.requests, places, strict=True)
            return [_drafted(request, place, self._max_drafts, result) for request, place in pairs]

        return wait

    def _speculate(self, batch: DecodeBatch) -> Program[Speculated] | None:
        """Returns the smallest program for a batch's drafts; None without drafts."""
        fitting = (each for rows, each in self._programs.speculate.items() if rows > max(batch.slots))
        return next(fitting, None) if batch.drafts else None

    def _replay(self, rows: Sequence[ReplayedRow]) -> None:
        """Sets slots' decoding states, some at a time; restores the snapshots that come with them."""
        for row in rows:
            if row.snapshot is not None:
                self._restore(row.slot, row.snapshot)
        for some in batched(rows, MAX_PREFILL_ROWS):
            sizes = MAX_PREFILL_ROWS, self.served.rows, self.served.mask_words
            self.executor.run(self._programs.replay, replay_input(some, *sizes, drafts=self.served.has_drafts))

    def _run_prefill(self, batch: PrefillBatch) -> Pending:
        chunks = batch.chunks
        shape, homes, ranks = self.served.prefill_places(chunks)
        places = [home * shape.rows + rank for home, rank in zip(homes, ranks, strict=True)]
        inputs = prefill_input(
            chunks, places, shape.rows * self.served.devices.shards.data, shape.length, self.served.rows
        )
        last, states = self.executor.run(self._programs.prefill[shape][batch.layer_slice], inputs)
        block_states = self._block_states = (*(self._block_states if batch.layer_slice else ()), states)
        for array in (*states.recurrent, states.window) if self.keeps_snapshots else ():
            array.copy_to_host_async()
        sampled = self._fork_and_sample(batch) if batch.is_last_slice else ()
        scores = self._score(chunks[0], homes[0]) if batch.is_last_slice else None
        readers: Sequence[BlockStatesReader | None] = [None] * len(chunks)
        if self.keeps_snapshots and batch.is_last_slice:
            ends = [home * MAX_PREFILL_ROWS + rank for home, rank in zip(homes, ranks, strict=True)]
            rows = zip(chunks, places, ends, strict=True)
            readers = [partial(self._begin_read, block_states, last, *row) for row in rows]

        def wait() -> list[RowResult]:
            last.block_until_ready()  # so that the host never runs ahead of the device
            scored = () if scores is None else _prompt_logprobs(chunks[0], homes[0], scores)
            rows = (RowResult(prompt_logprobs=scored, block_states=reader) for reader in readers)
            return [*rows, *_first_tokens(batch.first_tokens, sampled)]

        return wait

    def _begin_read(self, *arguments: Any) -> Callable[[], Sequence[BlockState]]:
        """Lets another thread call `read_block_states`; returns a function that waits for the result."""
        return self._reader.submit(read_block_states, *arguments).result

    def _score(self, chunk: PrefillChunk, home: int) -> Logprobs | None:
        """Scores the tokens of a chunk of a data shard, alone in its batch, if its request wants that."""
        if chunk.request.params.prompt_logprobs is None:
            return None
        program = self._programs.score
        targets = score_targets(chunk, home, program.inputs[0].shape)
        return self.executor.run(program, targets, np.int32(-(-chunk.length // PREFILL_BLOCK)))

    def _fork_and_sample(self, batch: PrefillBatch) -> tuple[Sampled, ...]:
        """Copies slots for forks, then samples first tokens, some at a time."""
        for chunk in batch.chunks:
            for slot in chunk.forks:
                self._copy(chunk.slot, slot)
        sizes = self.served.first_token_rows, self.served.rows, self.served.mask_words
        sampled = []
        for some in batched(batch.first_tokens, MAX_PREFILL_ROWS):
            inputs = first_token_input(some, *sizes, drafts=self.served.has_drafts)
            sampled.append(self.executor.run(self._programs.first_token, inputs))
        return tuple(sampled)

    def _copy(self, source: int, target: int) -> None:
        self.executor.run(self._programs.copy_slot, _slot(source), _slot(target))

    def _restore(self, slot: int, snapshot: Snapshot) -> None:
        start, program = time.perf_counter(), self._programs.restore
        end = program.inputs[1]
        row = np.zeros(end.shape, end.dtype) if snapshot.hidden is None else snapshot.hidden[None]
        state = (*snapshot.recurrent, window_rows(snapshot, self.served.config.window))
        self.executor.run(program, _slot(slot), row, *state)
        self.restore_seconds += time.perf_counter() - start


def _slot(slot: int) -> HostArray:
    return np.array([slot], np.int32)

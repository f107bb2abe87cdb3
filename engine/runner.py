"""Turns batches into tokens on the device: the sole owner of parameters and the state pool."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..kernels import Backend, native
from .config import MAX_PREFILL_ROWS, PREFILL_BLOCK, EngineConfig, StepLimits
from .device import affordable_slots, available_memory, give_back_memory
from .model.checkpoint import open_tensors
from .model.config import ModelConfig
from .model.griffin import Params, abstract_model
from .model.identity import model_identity
from .model.source import ModelSource
from .model.state import Trail
from .model.weights import Checkpoint, load_params, random_params
from .programs import (
    CPU_OPTIONS,
    Lower,
    ModelShapes,
    Programs,
    as_first_token_input,
    compile_all,
    decode_rows,
    keep_programs,
    lower_all,
    new_pool,
    prefill_shapes,
    snapshot_shapes,
)
from .request import TokenLogprobs
from .sampler import Logprobs, Sampled
from .saved_state import StateFormat
from .sequence import Batch, DecodeBatch, PrefillBatch, PrefillChunk, ResumeBatch, RowResult, Sequence
from .snapshot import Snapshot
from .state_cache_transfer import known_ends, read_marks, restore_inputs
from .step_inputs import first_token_columns, mask_columns, prefill_columns, score_targets
from .steps import Graph, PrefillInput

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), how much of it is done, and how much there is; by several threads."""

_MAX_STEPS: Final = 8
"""Tokens per request and dispatch, at most."""

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
        """Reads one result per sequence."""
        tokens = np.asarray(self.sampled.tokens)[: self.batch.steps].T.tolist()
        return tuple(
            _row_result(
                sequence, tuple(tokens[slot]), self.sampled.logprobs, [(t, slot) for t in range(self.batch.steps)]
            )
            for sequence, slot in zip(self.batch.sequences, self.batch.slots, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PendingPrefill:
    """A prefill step that the device may still be working on.

    Attributes:
      hidden: what the step ends with; there is always something to wait for, so that the host stays in step.
      sampled: the first tokens of the prompts that end in this batch and of their forks, `MAX_PREFILL_ROWS` at a time.
      scores: of the token after each of the chunks' tokens, if anybody asked.
      trail: what the chunks add to the state, if states are remembered.
    """

    batch: PrefillBatch
    hidden: Float[Array, "R D"]
    sampled: tuple[Sampled, ...]
    scores: Logprobs | None = None
    trail: Trail | None = None

    def wait(self) -> tuple[RowResult, ...]:
        """Reads one result per chunk and per fork."""
        self.hidden.block_until_ready()
        firsts = ((sampled, place) for sampled in self.sampled for place in range(len(sampled.tokens)))
        results = [self._row(row, chunk, firsts) for row, chunk in enumerate(self.batch.rows)]
        if self.trail is not None:
            for row, marks in enumerate(read_marks(self.trail, self.hidden, self.batch.chunks)):
                results[row] = replace(results[row], marks=marks)
        return tuple(results)

    def _row(self, row: int, chunk: PrefillChunk, firsts: Iterator[tuple[Sampled, int]]) -> RowResult:
        result = RowResult()
        if chunk.is_last:
            sampled, place = next(firsts)
            token = int(np.asarray(sampled.tokens)[place])
            result = _row_result(chunk.sequence, (token,), sampled.logprobs, [(place,)])
        wanted = chunk.sequence.request.params.prompt_logprobs
        if wanted is None:
            return result
        assert self.scores is not None
        count = chunk.length - chunk.is_last  # what follows the last prompt token is sampled, not scored
        return replace(result, prompt_logprobs=tuple(_read(self.scores, (row, t), wanted) for t in range(count)))


class ModelRunner:
    """A model on a device. All shapes are compiled when this returns.

    Args:
      source: the model.
      config: see `EngineConfig`.
      progress: see `Progress`.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the state of the slots does not fit into memory.
    """

    def __init__(self, source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> None:
        report = progress or (lambda stage, done, total: None)
        backend = jax.default_backend()
        if config.compile_cache is not None:
            keep_programs(config.compile_cache)
        self._most_steps = _MAX_STEPS if backend == "cpu" else 1
        self._shapes = prefill_shapes(config.prefill_chunk)
        with _open_weights(source, config, backend) as weights:
            self.dtype = weights.dtype
            self.slot_bytes = source.config.state_bytes(self.dtype.itemsize)
            self.slots = config.slots or affordable_slots(self.slot_bytes, weights.num_bytes, backend)
            self._rows = max(self.slots, 2)  # a step of one row takes another path, slow and with other bits
            self._pool = new_pool(source.config, self._rows, self.dtype, backend)
            hidden = jax.ShapeDtypeStruct((source.config.width,), self.dtype)
            shapes = ModelShapes(weights.graph, weights.abstract, self._pool, hidden)
            programs = lower_all(shapes, config.prefill_chunk, self._most_steps)
            self._params, self._programs = _load_and_compile(weights, programs, backend, report)
        self._decode_rows = decode_rows(self._pool)
        h, conv, ring = ((x.shape, x.dtype.name) for x in snapshot_shapes(self._pool))
        self.window = ring[0][0]
        model = model_identity(source, self.dtype.name, config.quantize, config.seed)
        token = (ring[0][1:], ring[1])
        self.state_format = StateFormat(model, source.config.vocab_size, self.window, h, conv, token)
        self.state_cache_bytes = _state_cache_bytes(config.state_cache_gib)
        self.restore_seconds = 0.0
        self._mask_words = self._pool.slots.memory.allowed.shape[1]
        self._active: tuple[tuple[int, ...], Array] = ((), jnp.zeros(self._rows, jnp.bool))
        self.limits = StepLimits(
            prefill_chunk=config.prefill_chunk,
            prefill_beside_decode=PREFILL_BLOCK if backend == "cpu" else config.prefill_chunk,
            decode_steps=self._affordable_steps() if self._most_steps > 1 else 1,
            decode_rows=self._decode_rows,
            mask_words=self._mask_words,
        )
        self._compiles = 0
        jax.monitoring.register_event_duration_secs_listener(self._count_compile)

    def close(self) -> None:
        """Stops counting compilations; the device's memory goes with the last reference."""
        jax.monitoring.unregister_event_duration_listener(self._count_compile)

    @property
    def compiles_since_ready(self) -> int:
        """XLA compilations since every shape was compiled."""
        return self._compiles

    def run(self, batch: Batch) -> PendingDecode | PendingPrefill:
        """Hands a batch to the device and returns at once."""
        if isinstance(batch, DecodeBatch):
            return self._run_decode(batch)
        for chunk in batch.chunks:
            if chunk.resume is not None:
                self._restore(chunk.slot, chunk.resume)
        if isinstance(batch, ResumeBatch):
            ends = known_ends(batch.chunks, MAX_PREFILL_ROWS)
            return PendingPrefill(batch, ends, self._sample_first(batch, ends))
        return self._run_prefill(batch)

    def _run_decode(self, batch: DecodeBatch) -> PendingDecode:
        for source, target in batch.moves:
            self._copy(source, target)
        for slots, masks in mask_columns(batch.masks, MAX_PREFILL_ROWS, self._rows, self._mask_words):
            self._pool = self._programs["mask"](self._pool, *jax.device_put((slots, masks)))
        rows = next(n for n in self._decode_rows if n > max(batch.slots))
        if self._active[0] != batch.slots or self._active[1].shape[0] != rows:
            mask = np.zeros(rows, np.bool)
            mask[list(batch.slots)] = True
            self._active = (batch.slots, jax.device_put(mask))
        return PendingDecode(batch, self._decode(rows, self._active[1], batch.steps))

    def _decode(self, rows: int, active: Array, steps: int) -> Sampled:
        program = self._programs[f"decode {rows}"]
        sampled: Sampled
        self._pool, sampled = program(self._params, self._pool, active, jax.device_put(np.int32(steps)))
        return sampled

    def _run_prefill(self, batch: PrefillBatch) -> PendingPrefill:
        chunks, rows = batch.chunks, len(batch.chunks)
        length = min(n for r, n in self._shapes if r == rows and n >= max(chunk.length for chunk in chunks))
        inputs = PrefillInput(**jax.device_put(prefill_columns(chunks, rows, length, self._rows)))
        self._pool, hidden, last, trail = self._programs[f"prefill {rows}x{length}"](self._params, self._pool, inputs)
        scores = None
        sampled = self._sample_first(batch, last)
        if any(chunk.sequence.request.params.prompt_logprobs is not None for chunk in chunks):
            targets = jax.device_put(score_targets(chunks, rows, length))
            scores = self._programs[f"score {length}"](self._params, hidden, targets)
        return PendingPrefill(batch, last, sampled, scores, trail if self.state_cache_bytes else None)

    def _sample_first(self, batch: PrefillBatch, last: Array) -> tuple[Sampled, ...]:
        """Samples the first tokens of prompts that end in this batch, and of their forks, so many at a time."""
        source = {end.sequence: row for row, chunk in enumerate(batch.chunks) for end in (chunk, *chunk.forks)}
        ends = [(source[row.sequence], row) for row in batch.rows if row.is_last]
        sampled = []
        for chunk in batch.chunks:
            for fork in chunk.forks:
                self._copy(chunk.slot, fork.slot)
        for start in range(0, len(ends), MAX_PREFILL_ROWS):
            some = ends[start : start + MAX_PREFILL_ROWS]
            columns = first_token_columns(some, MAX_PREFILL_ROWS, self._rows, self._mask_words)
            first = as_first_token_input(jax.device_put(columns))
            self._pool, tokens = self._programs["first token"](self._params, self._pool, last, first)
            sampled.append(tokens)
        return tuple(sampled)

    def _copy(self, source: int, target: int) -> None:
        slots = jax.device_put((np.array([source], np.int32), np.array([target], np.int32)))
        self._pool = self._programs["copy"](self._pool, *slots)

    def _restore(self, slot: int, snapshot: Snapshot) -> None:
        start = time.perf_counter()
        self._pool = self._programs["restore"](self._pool, *restore_inputs(snapshot, slot, self.window))
        self.restore_seconds += time.perf_counter() - start

    def _affordable_steps(self) -> int:
        """Tokens per dispatch that keep a request from waiting for long; measured on the largest step."""
        rows, times = self._rows, []
        active = jnp.ones(rows, jnp.bool)
        for _ in range(3):
            start = time.perf_counter()
            self._decode(rows, active, 1).tokens.block_until_ready()
            times.append(time.perf_counter() - start)
        return max(1, min(int(_DISPATCH_SECONDS / min(times)), self._most_steps))

    def _count_compile(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiles += 1


def _state_cache_bytes(gib: float | None) -> int:
    return int(_CACHE_SHARE * available_memory()) if gib is None else int(gib * 2**30)


class _Weights(NamedTuple):
    """A model whose weights are still where they lie.

    Attributes:
      dtype: of the activations.
      graph, abstract: the model, and its parameters' shapes.
      read: reads or draws the parameters and places them on the device.
    """

    dtype: np.dtype[Any]
    graph: Graph
    abstract: Params
    read: Callable[[Callable[[int, int], None]], Params]

    @property
    def num_bytes(self) -> int:
        """That the parameters will take on the device."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract))


@contextmanager
def _open_weights(source: ModelSource, config: EngineConfig, backend: str) -> Iterator[_Weights]:
    """Checks what can be checked without reading them."""
    if source.is_random:
        dtype, graph, abstract = _abstract(source.config, config, source.config.dtype, backend)
        yield _Weights(dtype, graph, abstract, partial(random_params, abstract, config.seed))
        return
    with open_tensors(source.weights, source.config) as tensors:
        checkpoint = Checkpoint(source.config, tensors)
        config = replace(config, quantize=source.config.quantize or config.quantize)
        dtype, graph, abstract = _abstract(source.config, config, checkpoint.dtype, backend)
        yield _Weights(dtype, graph, abstract, partial(load_params, checkpoint, abstract))


def _abstract(
    model: ModelConfig, config: EngineConfig, stored: str, backend: str
) -> tuple[np.dtype[Any], Graph, Params]:
    dtype = jnp.dtype(stored if config.dtype == "auto" else config.dtype)
    matrix_dtype = None if config.quantize is None else jnp.dtype(config.quantize)
    gate_dtype = jnp.dtype("float32") if backend == "cpu" else dtype  # CPUs have no fast bfloat16 path for them
    return dtype, *abstract_model(model, dtype, gate_dtype, _kernels(backend), matrix_dtype)


def _kernels(backend: str) -> Backend:
    """Which kernels run best there."""
    if backend == "cpu" and native.is_available():
        return "cpu"
    return "tpu" if backend == "tpu" else "xla"


def _load_and_compile(
    weights: _Weights, lowerings: dict[str, Lower], backend: str, report: Progress
) -> tuple[Params, Programs]:
    """Side by side; the first that fails ends both."""
    executor = ThreadPoolExecutor(3, "load")
    try:
        params = executor.submit(weights.read, partial(report, "weights"))
        options = CPU_OPTIONS if backend == "cpu" else {}
        compiled = compile_all(lowerings, options, executor, partial(report, "compile"))
        for done in as_completed([params, *compiled.values()]):
            done.result()
        return params.result(), {name: program.result() for name, program in compiled.items()}
    finally:
        executor.shutdown(cancel_futures=True)
        give_back_memory()


def _row_result(
    sequence: Sequence, tokens: tuple[int, ...], logprobs: Logprobs, places: Rows[tuple[int, ...]]
) -> RowResult:
    """One row's tokens, and the log-probabilities at their places."""
    wanted, names = sequence.request.params.logprobs, sequence.request.params.logprob_token_ids
    if wanted is None:
        return RowResult(tokens)
    return RowResult(tokens, tuple(_read(logprobs, place, wanted, names) for place in places))


def _read(logprobs: Logprobs, index: tuple[int, ...], count: int, names: Rows[int] = ()) -> TokenLogprobs:
    """One place's log-probabilities, cut to as many alternatives and named tokens as were asked for."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:count], values[:count], strict=True))
    named = np.asarray(logprobs.named)[index].tolist() if names else ()
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top, tuple(zip(names, named, strict=False)))

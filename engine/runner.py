"""Turns batches into tokens on the device: the sole owner of devices, parameters and the state pool."""

import os
import re
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..kernels.window_attention import block_sizes
from .config import MAX_PREFILL_ROWS, PREFILL_BLOCK, EngineConfig, StepLimits
from .errors import ConfigError
from .model.config import ModelConfig
from .model.griffin import Griffin, Params, abstract_model
from .model.source import ModelSource
from .model.state import num_rows, zero_state
from .model.weights import Checkpoint, load_params, random_params
from .request import TokenLogprobs
from .sampler import Logprobs, Sampled, SamplingState, zero_sampling_state
from .sequence import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RowResult, Sequence
from .step_inputs import first_token_columns, prefill_columns, score_targets
from .steps import (
    FirstTokenInput,
    PrefillInput,
    SlotState,
    StatePool,
    copy_step,
    decode_step,
    first_token_step,
    prefill_step,
    score_step,
)

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), how much of it is done, and how much there is."""

_CPU_MAX_SLOTS: Final = 32
"""What `slots=None` takes at most on a CPU: more rows gain nothing there and make a lone request slower."""

_CPU_OPTIONS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""Dots alone go to the fast library. Fused with a reduction or an exponential they would round differently at
different numbers of rows, and a request's tokens must not depend on its neighbours."""

_FIRST_GROUP: Final = 4
"""Slots of a CPU's smallest decode step."""

_RING_BLOCK: Final = 512
"""Ring rows that a CPU reads at least."""

_MAX_STEPS: Final = 8
"""Tokens per request and dispatch, at most."""

_DISPATCH_SECONDS: Final = 0.02
"""How long a dispatch of several tokens may take."""


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
      sampled: the tokens of the prompts that end in this batch, if any do.
      scores: of the token after each of the chunks' tokens, if anybody asked.
    """

    batch: PrefillBatch
    hidden: Float[Array, "R D"]
    sampled: Sampled | None
    scores: Logprobs | None

    def wait(self) -> tuple[RowResult, ...]:
        """Reads one result per chunk."""
        self.hidden.block_until_ready()
        return tuple(self._row(row, chunk) for row, chunk in enumerate(self.batch.chunks))

    def _row(self, row: int, chunk: PrefillChunk) -> RowResult:
        result = RowResult()
        if chunk.is_last:
            assert self.sampled is not None
            tokens = np.asarray(self.sampled.tokens).tolist()
            result = _row_result(chunk.sequence, (tokens[row],), self.sampled.logprobs, [(row,)])
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
        self.model_config = source.config
        self.dtype, self._graph, self._params = _load(source, config, backend, report)
        self.slot_bytes = source.config.state_bytes(self.dtype.itemsize)
        self.slots = config.slots or _affordable_slots(self.slot_bytes, backend)
        self._rows = max(self.slots, 2)  # a step of one row takes another path, slow and with other bits
        self._pool = new_pool(source.config, self._rows, self.dtype, backend)
        self._active: tuple[tuple[int, ...], Array] = ((), jnp.zeros(self._rows, jnp.bool))
        self._decode_rows = tuple(accumulate(num_rows(group) for group in self._pool.groups))
        self._most_steps = _MAX_STEPS if backend == "cpu" else 1
        self._shapes = _prefill_shapes(config.prefill_chunk)
        self._programs = self._compile(_CPU_OPTIONS if backend == "cpu" else {}, report)
        self.limits = StepLimits(
            prefill_chunk=config.prefill_chunk,
            prefill_beside_decode=PREFILL_BLOCK if backend == "cpu" else config.prefill_chunk,
            decode_steps=self._affordable_steps() if self._most_steps > 1 else 1,
            decode_rows=self._decode_rows,
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
        return self._run_prefill(batch)

    def _run_decode(self, batch: DecodeBatch) -> PendingDecode:
        for move in batch.moves:
            source, target = (jax.device_put(np.array([slot], np.int32)) for slot in move)
            self._pool = self._programs["copy"](self._pool, source, target)
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
        self._pool, hidden, last = self._programs[f"prefill {rows}x{length}"](self._params, self._pool, inputs)
        sampled = scores = None
        if any(chunk.is_last for chunk in chunks):
            first = _first_token_input(chunks, self._rows)
            self._pool, sampled = self._programs["first token"](self._params, self._pool, last, first)
        if any(chunk.sequence.request.params.prompt_logprobs is not None for chunk in chunks):
            targets = jax.device_put(score_targets(chunks, rows, length))
            scores = self._programs[f"score {length}"](self._params, hidden, targets)
        return PendingPrefill(batch, last, sampled, scores)

    def _compile(self, options: dict[str, Any], report: Progress) -> dict[str, Any]:
        """Compiles every program for every shape, by name."""
        lowered = dict(self._lower_all())
        programs = {}
        with ThreadPoolExecutor(2, "compile") as pool:
            compiled = pool.map(lambda low: low.compile(compiler_options=options), lowered.values())
            for name, program in zip(lowered, compiled, strict=True):
                programs[name] = program
                report("compile", len(programs), len(lowered))
        return programs

    def _lower_all(self) -> Iterator[tuple[str, Any]]:
        """Every program, traced for shapes alone; those that change the pool take it over."""

        def lower(step: Callable[..., Any], *inputs: Any, pool: int | None = 1) -> Any:
            donated = () if pool is None else pool
            return jax.jit(step, donate_argnums=donated).lower(*inputs)

        graph, params, pool = self._graph, self._params, self._pool
        for rows in self._decode_rows:
            active, steps = jnp.zeros(rows, jnp.bool), jnp.zeros((), jnp.int32)
            step = partial(decode_step, graph, self._most_steps)
            yield f"decode {rows}", lower(step, params, pool, active, steps)
        last, first = self._hidden(MAX_PREFILL_ROWS), _first_token_input((), self._rows)
        yield "first token", lower(partial(first_token_step, graph), params, pool, last, first)
        for rows, length in self._shapes:
            inputs = PrefillInput(**jax.device_put(prefill_columns((), rows, length, self._rows)))
            yield f"prefill {rows}x{length}", lower(partial(prefill_step, graph), params, pool, inputs)
            if rows == 1:
                targets = jnp.zeros((1, length), jnp.int32)
                hidden = self._hidden(1, length)
                yield f"score {length}", lower(partial(score_step, graph), params, hidden, targets, pool=None)
        slot = jnp.zeros(1, jnp.int32)
        yield "copy", lower(copy_step, pool, slot, slot, pool=0)

    def _hidden(self, *shape: int) -> Array:
        """Activations of some tokens, to trace with."""
        return jnp.zeros((*shape, self.model_config.width), self.dtype)

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


def _load(
    source: ModelSource, config: EngineConfig, backend: str, report: Progress
) -> tuple[np.dtype[Any], nnx.GraphDef[Griffin], Params]:
    place = partial(report, "weights")
    if source.is_random:
        dtype, graph, abstract = _abstract(source.config, config, source.config.dtype, backend)
        return dtype, graph, random_params(abstract, config.seed, place)
    with Checkpoint(source.config, source.weights) as checkpoint:
        dtype, graph, abstract = _abstract(source.config, config, checkpoint.dtype, backend)
        return dtype, graph, load_params(checkpoint, abstract, place)


def _abstract(
    model: ModelConfig, config: EngineConfig, stored: str, backend: str
) -> tuple[np.dtype[Any], nnx.GraphDef[Griffin], Params]:
    dtype = jnp.dtype(stored if config.dtype == "auto" else config.dtype)
    matrix_dtype = None if config.quantize is None else jnp.dtype(config.quantize)
    gate_dtype = jnp.dtype("float32") if backend == "cpu" else dtype  # CPUs have no fast bfloat16 path for them
    return dtype, *abstract_model(model, dtype, gate_dtype, "tpu" if backend == "tpu" else "xla", matrix_dtype)


def new_pool(model: ModelConfig, rows: int, dtype: np.dtype[Any], backend: str) -> StatePool:
    """All slots, empty. On a CPU in groups, so that a step may read the first few alone, with rings in blocks."""
    groups = _group_sizes(rows) if backend == "cpu" else (rows,)
    blocks = block_sizes(model.window, _RING_BLOCK if backend == "cpu" else model.window)
    tokens, positions = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
    state = SlotState(tokens, positions, jnp.ones(rows, jnp.bool), zero_sampling_state(rows))
    return StatePool(tuple(zero_state(model, size, dtype, blocks) for size in groups), state)


def _group_sizes(rows: int) -> tuple[int, ...]:
    """Groups such that the first so many together have `_FIRST_GROUP` rows, twice as many, and so on."""
    ends = [min(_FIRST_GROUP, rows)]
    while ends[-1] < rows:
        ends.append(min(2 * ends[-1], rows))
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


class DeviceFacts(NamedTuple):
    """Where models run, for reports.

    Attributes:
      kind: as JAX names it, such as "cpu" or "TPU v5 lite".
      num_devices: that this process sees.
      bytes_in_use: of the first device's own memory; None where it has none.
    """

    kind: str
    num_devices: int
    bytes_in_use: int | None


def device_facts() -> DeviceFacts:
    """The devices as they are now."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    return DeviceFacts(devices[0].device_kind, len(devices), stats.get("bytes_in_use"))


def _affordable_slots(slot_bytes: int, backend: str) -> int:
    """As many slots as fit into nine tenths of the memory that is left once the weights are in place.

    Raises:
      ConfigError: not even 8 do.
    """
    if backend == "cpu":
        free = _available_memory()
    else:
        stats = jax.local_devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    slots = int(0.9 * free) // slot_bytes
    if slots < 8:
        raise ConfigError(
            f"memory left for slots is {free / 2**20:.0f} MiB and a slot takes {slot_bytes / 2**20:.1f} MiB, so not "
            "even 8 fit; set slots to the number you want to try"
        )
    return min(slots, _CPU_MAX_SLOTS) if backend == "cpu" else slots


def _available_memory() -> int:
    """Bytes that a process may still take; where the system tells, with the file cache, which it would give up."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (found := re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _prefill_shapes(chunk: int) -> tuple[tuple[int, int], ...]:
    """The compiled (rows, tokens per row) of prefill: the block, doubled up to the chunk, and rows that fit with it."""
    lengths = [PREFILL_BLOCK]
    while lengths[-1] < chunk:
        lengths.append(min(2 * lengths[-1], chunk))
    rows = [2**i for i in range(MAX_PREFILL_ROWS.bit_length())]
    return tuple((n, length) for length in lengths for n in rows if n * length <= chunk)


def _first_token_input(chunks: Rows[PrefillChunk], pool_rows: int) -> FirstTokenInput:
    columns = jax.device_put(first_token_columns(chunks, MAX_PREFILL_ROWS, pool_rows))
    return FirstTokenInput(columns["slots"], columns["lengths"], SamplingState(**columns["sampling"]))


def _row_result(
    sequence: Sequence, tokens: tuple[int, ...], logprobs: Logprobs, places: Rows[tuple[int, ...]]
) -> RowResult:
    """One row's tokens, and the log-probabilities at their places."""
    wanted = sequence.request.params.logprobs
    return RowResult(tokens, None if wanted is None else tuple(_read(logprobs, place, wanted) for place in places))


def _read(logprobs: Logprobs, index: tuple[int, ...], count: int) -> TokenLogprobs:
    """One place's log-probabilities, cut to as many alternatives as were asked for."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:count], values[:count], strict=True))
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top)

"""Turns batches into tokens on the device: the sole owner of devices, parameters and the state pool."""

import os
import re
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from .config import PREFILL_BLOCK, EngineConfig
from .errors import ConfigError
from .model.config import ModelConfig
from .model.griffin import Griffin, Params, abstract_model
from .model.source import ModelSource
from .model.state import ModelState, put_rows, take_rows, zero_state
from .model.weights import Checkpoint, load_params, random_params
from .request import MAX_STOP_IDS, Request, TokenLogprobs
from .sampler import (
    Logprobs,
    Sampled,
    SamplingState,
    needs_logits,
    no_logprobs,
    sample,
    score,
    zero_sampling_state,
)
from .sequence import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RowResult, Sequence

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), how much of it is done, and how much there is."""

_CPU_MAX_SLOTS: Final = 32
"""What `slots=None` takes at most on a CPU: more rows gain nothing there and make a lone request slower."""

_CPU_OPTIONS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""Dots alone go to the fast library. Fused with a reduction or an exponential they would round differently at
different numbers of rows, and a request's tokens must not depend on its neighbours."""


class StatePool(NamedTuple):
    """All slots' state, one row each; donated to every step and updated in place.

    Attributes:
      layers: the model's state.
      tokens: the last token of each slot, which the next decode step reads.
      positions: that token's position.
      sampling: what each slot's request asks for; set when its prompt is read.
    """

    layers: ModelState
    tokens: Int32[Array, " R"]
    positions: Int32[Array, " R"]
    sampling: SamplingState


class PrefillInput(NamedTuple):
    """A prefill batch as arrays, padded to a compiled shape. Rows of padding have length 0 and a slot past the pool.

    Attributes:
      tokens: of the chunk.
      starts, lengths: the chunk's place in the prompt.
      slots: rows of the pool.
    """

    tokens: Int32[Array, "R T"]
    starts: Int32[Array, " R"]
    lengths: Int32[Array, " R"]
    slots: Int32[Array, " R"]


class FirstTokenInput(NamedTuple):
    """The rows of a prefill batch whose prompts end in it; the others have a slot past the pool.

    Attributes:
      slots: rows of the pool.
      lengths: of the prompts, so also the positions of the tokens to be sampled.
      sampling: what the requests ask for.
    """

    slots: Int32[Array, " R"]
    lengths: Int32[Array, " R"]
    sampling: SamplingState


@dataclass(frozen=True, slots=True)
class PendingDecode:
    """A decode step that the device may still be working on."""

    batch: DecodeBatch
    sampled: Sampled

    def wait(self) -> tuple[RowResult, ...]:
        """Reads one result per sequence."""
        tokens = np.asarray(self.sampled.tokens).tolist()
        pairs = zip(self.batch.sequences, self.batch.slots, strict=True)
        return tuple(_token_row(sequence, slot, tokens, self.sampled.logprobs) for sequence, slot in pairs)


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
            result = _token_row(chunk.sequence, row, tokens, self.sampled.logprobs)
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
        self._lengths = _prefill_lengths(config.prefill_chunk)
        self._pool = _new_pool(source.config, self._rows, self.dtype)
        self._active: tuple[tuple[int, ...], Array] = ((), jnp.zeros(self._rows, jnp.bool))
        programs = self._compile(_CPU_OPTIONS if backend == "cpu" else {}, report)
        self._decode, self._first_token = programs.pop(0), programs.pop(0)
        self._prefill = dict(zip(self._lengths, programs, strict=False))
        self._score = dict(zip(self._lengths, programs[len(self._lengths) :], strict=True))
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
        if self._active[0] != batch.slots:
            mask = np.zeros(self._rows, np.bool)
            mask[list(batch.slots)] = True
            self._active = (batch.slots, jax.device_put(mask))
        self._pool, sampled = self._decode(self._params, self._pool, self._active[1])
        return PendingDecode(batch, sampled)

    def _run_prefill(self, batch: PrefillBatch) -> PendingPrefill:
        chunks, rows = batch.chunks, len(batch.chunks)
        length = next(n for n in self._lengths if n >= max(chunk.length for chunk in chunks))
        inputs = _prefill_input(chunks, rows, length, self._rows)
        self._pool, hidden, last = self._prefill[length](self._params, self._pool, inputs)
        sampled = scores = None
        if any(chunk.is_last for chunk in chunks):
            first = _first_token_input(chunks, rows, self._rows)
            self._pool, sampled = self._first_token(self._params, self._pool, last, first)
        if any(chunk.sequence.request.params.prompt_logprobs is not None for chunk in chunks):
            scores = self._score[length](self._params, hidden, _score_targets(chunks, rows, length))
        return PendingPrefill(batch, last, sampled, scores)

    def _compile(self, options: dict[str, Any], report: Progress) -> list[Any]:
        """Compiles the decode and the first-token program, and prefill and score programs for each chunk length."""
        first, last = _first_token_input((), 1, self._rows), self._hidden(1)
        lowered = [
            self._lower(decode_step, self._pool, self._active[1]),
            self._lower(first_token_step, self._pool, last, first),
            *(self._lower(prefill_step, self._pool, _prefill_input((), 1, n, self._rows)) for n in self._lengths),
            *(self._lower(score_step, self._hidden(1, n), _score_targets((), 1, n)) for n in self._lengths),
        ]
        programs = []
        with ThreadPoolExecutor(2, "compile") as pool:
            for program in pool.map(lambda low: low.compile(compiler_options=options), lowered):
                programs.append(program)
                report("compile", len(programs), len(lowered))
        return programs

    def _lower(self, step: Callable[..., Any], *inputs: Any) -> Any:
        """Traces a step for the shapes of these inputs; it takes over the pool, if it is given that."""
        donated = (1,) if inputs[0] is self._pool else ()
        return jax.jit(partial(step, self._graph), donate_argnums=donated).lower(self._params, *inputs)

    def _hidden(self, *shape: int) -> Array:
        """Activations of some tokens, to trace with."""
        return jnp.zeros((*shape, self.model_config.width), self.dtype)

    def _count_compile(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiles += 1


def decode_step(
    graph: nnx.GraphDef[Griffin], params: Params, pool: StatePool, active: Bool[Array, " R"]
) -> tuple[StatePool, Sampled]:
    """One more token for every active slot; the others' state stays as it is, bit for bit."""
    model, hidden, layers = decode_hidden(graph, params, pool, active)
    positions = pool.positions + 1

    def sampled() -> Sampled:
        return sample(model.logits(hidden), pool.sampling, positions, active)

    if model.backend == "tpu":  # its compiler finds the best logit without writing them, a megabyte for each row
        greedy = partial(greedy_sample, model, hidden)
        result = jax.lax.cond(jnp.any(active & needs_logits(pool.sampling, positions)), sampled, greedy)
    else:
        result = sampled()
    tokens = jnp.where(active, result.tokens, pool.tokens)
    return StatePool(layers, tokens, pool.positions + active, pool.sampling), result


def decode_hidden(
    graph: nnx.GraphDef[Griffin], params: Params, pool: StatePool, active: Bool[Array, " R"]
) -> tuple[Griffin, Float[Array, "R D"], ModelState]:
    """The model's part of a decode step: activations after each slot's last token, and the state."""
    model = nnx.merge(graph, params)
    positions = jnp.where(active, pool.positions, -1)
    hidden, layers = model(pool.tokens[:, None], positions[:, None], pool.layers, PREFILL_BLOCK)
    return model, hidden[:, 0], layers


def greedy_sample(model: Griffin, hidden: Float[Array, "R D"]) -> Sampled:
    """The likeliest tokens, and nothing else."""
    tokens = jnp.argmax(model.logits(hidden), axis=-1).astype(jnp.int32)
    return Sampled(tokens, no_logprobs(tokens.shape, model.config.vocab_size))


def prefill_step(
    graph: nnx.GraphDef[Griffin], params: Params, pool: StatePool, inputs: PrefillInput
) -> tuple[StatePool, Float[Array, "R T D"], Float[Array, "R D"]]:
    """Reads a chunk of prompt per row into its slot; gives the activations of all its tokens and of the last one."""
    model = nnx.merge(graph, params)
    steps = jnp.arange(inputs.tokens.shape[1])
    positions = jnp.where(steps < inputs.lengths[:, None], inputs.starts[:, None] + steps, -1)
    state = take_rows(pool.layers, inputs.slots, fresh=inputs.starts == 0)
    hidden, state = model(inputs.tokens, positions, state, PREFILL_BLOCK)
    last = jnp.take_along_axis(hidden, jnp.maximum(inputs.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return pool._replace(layers=put_rows(pool.layers, inputs.slots, state)), hidden, last


def first_token_step(
    graph: nnx.GraphDef[Griffin],
    params: Params,
    pool: StatePool,
    hidden: Float[Array, "R D"],
    inputs: FirstTokenInput,
) -> tuple[StatePool, Sampled]:
    """Samples the token after each prompt and makes its slot ready to decode."""
    model = nnx.merge(graph, params)
    slots = inputs.slots
    active = slots < pool.tokens.shape[0]
    sampled = sample(model.logits(hidden), inputs.sampling, inputs.lengths, active)
    rows = (pool.tokens, pool.positions, pool.sampling)
    new = (sampled.tokens, inputs.lengths, inputs.sampling)
    rows = jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), rows, new)
    return StatePool(pool.layers, *rows), sampled


def score_step(
    graph: nnx.GraphDef[Griffin], params: Params, hidden: Float[Array, "R T D"], targets: Int32[Array, "R T"]
) -> Logprobs:
    """Log-probabilities of the tokens that follow each token of a prefill batch."""
    flat = score(
        nnx.merge(graph, params).logits, hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), PREFILL_BLOCK
    )
    shaped: Logprobs = jax.tree.map(lambda x: x.reshape(*targets.shape, *x.shape[1:]), flat)
    return shaped


def _load(
    source: ModelSource, config: EngineConfig, backend: str, report: Progress
) -> tuple[np.dtype[Any], nnx.GraphDef[Griffin], Params]:
    place = partial(report, "weights")
    if source.is_random:
        dtype, graph, abstract = _abstract(source.config, config.dtype, source.config.dtype, backend)
        return dtype, graph, random_params(abstract, config.seed, place)
    with Checkpoint(source.config, source.weights) as checkpoint:
        dtype, graph, abstract = _abstract(source.config, config.dtype, checkpoint.dtype, backend)
        return dtype, graph, load_params(checkpoint, abstract, place)


def _abstract(
    model: ModelConfig, wanted: str, stored: str, backend: str
) -> tuple[np.dtype[Any], nnx.GraphDef[Griffin], Params]:
    dtype = jnp.dtype(stored if wanted == "auto" else wanted)
    gate_dtype = jnp.dtype("float32") if backend == "cpu" else dtype  # CPUs have no fast bfloat16 path for them
    return dtype, *abstract_model(model, dtype, gate_dtype, "tpu" if backend == "tpu" else "xla")


def _new_pool(model: ModelConfig, rows: int, dtype: np.dtype[Any]) -> StatePool:
    zeros = partial(jnp.zeros, rows, jnp.int32)
    return StatePool(zero_state(model, rows, dtype), zeros(), zeros(), zero_sampling_state(rows))


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


def _prefill_lengths(chunk: int) -> tuple[int, ...]:
    """The compiled lengths of prefill chunks: the block, doubled up to the chunk."""
    lengths = [PREFILL_BLOCK]
    while lengths[-1] < chunk:
        lengths.append(min(2 * lengths[-1], chunk))
    return tuple(lengths)


def _prefill_input(chunks: Rows[PrefillChunk], rows: int, length: int, pool_rows: int) -> PrefillInput:
    """A batch of chunks as arrays of a compiled shape."""
    columns = {
        "tokens": np.zeros((rows, length), np.int32),
        "starts": np.zeros(rows, np.int32),
        "lengths": np.zeros(rows, np.int32),
        "slots": np.full(rows, pool_rows, np.int32),
    }
    for row, chunk in enumerate(chunks):
        request, end = chunk.sequence.request, chunk.start + chunk.length
        columns["tokens"][row, : chunk.length] = request.prompt_token_ids[chunk.start : end]
        columns["starts"][row], columns["lengths"][row] = chunk.start, chunk.length
        columns["slots"][row] = chunk.slot
    return PrefillInput(**jax.device_put(columns))


def _score_targets(chunks: Rows[PrefillChunk], rows: int, length: int) -> Array:
    """`[rows, length]`: the token that follows each of the chunks' tokens in its prompt."""
    targets = np.zeros((rows, length), np.int32)
    for row, chunk in enumerate(chunks):
        following = chunk.sequence.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        targets[row, : len(following)] = following
    return jnp.asarray(targets)


def _first_token_input(chunks: Rows[PrefillChunk], rows: int, pool_rows: int) -> FirstTokenInput:
    """The ends of the prompts that end in these chunks, as arrays."""
    slots, lengths = np.full(rows, pool_rows, np.int32), np.zeros(rows, np.int32)
    for row, chunk in enumerate(chunks):
        if chunk.is_last:
            slots[row], lengths[row] = chunk.slot, chunk.start + chunk.length
    sampling = _sampling_columns([chunk.sequence.request for chunk in chunks], rows)
    slots, lengths, sampling = jax.device_put((slots, lengths, sampling))
    return FirstTokenInput(slots, lengths, SamplingState(**sampling))


def _sampling_columns(requests: Rows[Request], rows: int) -> dict[str, Any]:
    """The fields of `SamplingState`; rows past the requests ask for nothing."""
    columns = {
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "seed": np.zeros((rows, 2), np.uint32),
        "min_position": np.zeros(rows, np.int32),
        "stop_ids": np.full((rows, MAX_STOP_IDS), -1, np.int32),
        "wants_logprobs": np.zeros(rows, np.bool),
    }
    for row, request in enumerate(requests):
        params, stop_ids = request.params, sorted(request.params.stop_ids)
        columns["temperature"][row], columns["top_p"][row] = params.temperature, params.top_p
        columns["top_k"][row], columns["min_p"][row] = min(params.top_k, 2**31 - 1), params.min_p
        columns["seed"][row] = params.seed & 0xFFFFFFFF, params.seed >> 32
        columns["min_position"][row] = min(len(request.prompt_token_ids) + params.min_tokens, 2**31 - 1)
        columns["stop_ids"][row, : len(stop_ids)] = stop_ids
        columns["wants_logprobs"][row] = params.logprobs is not None
    return columns


def _token_row(sequence: Sequence, row: int, tokens: list[int], logprobs: Logprobs) -> RowResult:
    """One row's token."""
    wanted = sequence.request.params.logprobs
    return RowResult(tokens[row], None if wanted is None else _read(logprobs, (row,), wanted))


def _read(logprobs: Logprobs, index: tuple[int, ...], count: int) -> TokenLogprobs:
    """One place's log-probabilities, cut to as many alternatives as were asked for."""
    ids, values = np.asarray(logprobs.top_ids)[index], np.asarray(logprobs.top)[index]
    top = tuple((int(i), float(v)) for i, v in zip(ids[:count], values[:count], strict=True))
    return TokenLogprobs(float(np.asarray(logprobs.chosen)[index]), top)

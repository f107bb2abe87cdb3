"""The device's programs for every shape, compiled before the first request."""

import errno
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.window_attention import block_sizes
from .config import MAX_PREFILL_ROWS, PREFILL_BLOCK
from .errors import ConfigError
from .model.config import ModelConfig
from .model.griffin import Params
from .model.state import RecurrentState, num_rows, zero_state
from .sampling_state import SamplingState, zero_sampling_state, zero_token_memory
from .step_inputs import first_token_columns, prefill_columns
from .steps import (
    FirstTokenInput,
    Graph,
    PrefillInput,
    SlotState,
    StatePool,
    copy_step,
    decode_step,
    first_token_step,
    mask_step,
    prefill_step,
    restore_step,
    score_step,
)

CPU_OPTIONS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""Dots alone go to the fast library. Fused with a reduction or an exponential they would round differently at
different numbers of rows, and a request's tokens must not depend on its neighbours."""

_FIRST_GROUP: Final = 4
"""Slots of a CPU's smallest decode step."""

_RING_BLOCK: Final = 512
"""Ring rows that a CPU reads at least."""

_PROGRAM_BYTES: Final = 2**20
"""Where there is no room for so many, there is none for a program."""

_PASSING: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What may be wrong with a folder that was the right one to name."""

_logger = logging.getLogger(__name__)

type Lower = Callable[[], Any]
"""Traces a program for its shapes, ready to be compiled."""

type Programs = Mapping[str, Any]
"""Compiled programs by name: "decode 8" is for the first 8 slots, "prefill 2x64" for two chunks of 64 tokens."""


def new_pool(model: ModelConfig, rows: int, dtype: np.dtype[Any], backend: str) -> StatePool:
    """All slots, empty. On a CPU in groups, so that a step may read the first few alone, with rings in blocks."""
    groups = group_sizes(rows) if backend == "cpu" else (rows,)
    blocks = block_sizes(model.window, _RING_BLOCK if backend == "cpu" else model.window)
    tokens, positions = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
    memory = zero_token_memory(rows, model.vocab_size)
    state = SlotState(tokens, positions, jnp.ones(rows, jnp.bool), zero_sampling_state(rows), memory)
    return StatePool(tuple(zero_state(model, size, dtype, blocks) for size in groups), state)


def group_sizes(rows: int) -> tuple[int, ...]:
    """Groups such that the first so many together have `_FIRST_GROUP` rows, twice as many, and so on."""
    return block_sizes(rows, _FIRST_GROUP)


def decode_rows(pool: StatePool) -> tuple[int, ...]:
    """The numbers of slots for which there is a decode program, in rising order."""
    return tuple(accumulate(num_rows(group) for group in pool.groups))


def prefill_shapes(chunk: int) -> tuple[tuple[int, int], ...]:
    """The compiled (rows, tokens per row) of prefill: the block, doubled up to the chunk, and rows that fit with it."""
    lengths = [PREFILL_BLOCK]
    while lengths[-1] < chunk:
        lengths.append(min(2 * lengths[-1], chunk))
    rows = [2**i for i in range(MAX_PREFILL_ROWS.bit_length())]
    return tuple((n, length) for length in lengths for n in rows if n * length <= chunk)


class ModelShapes(NamedTuple):
    """A model and its slots, in shapes and types; `hidden` is of one token's activations."""

    graph: Graph
    params: Params
    pool: StatePool
    hidden: jax.ShapeDtypeStruct


def lower_all(model: ModelShapes, chunk: int, most_steps: int) -> dict[str, Lower]:
    """Every program by name, not traced yet; those that change the pool take it over.

    Args:
      model: what they are traced with.
      chunk: the most tokens of a prefill step.
      most_steps: the most tokens per row of a decode dispatch.
    """
    return dict(_each_program(model, chunk, most_steps))


def _each_program(model: ModelShapes, chunk: int, most_steps: int) -> Iterator[tuple[str, Lower]]:
    graph, params, pool, hidden = model
    slots, width, dtype = pool.slots.tokens.shape[0], hidden.shape[0], hidden.dtype
    for rows in decode_rows(pool):
        inputs = (jax.ShapeDtypeStruct((rows,), jnp.bool), _int32())
        yield f"decode {rows}", _later(partial(decode_step, graph, most_steps), params, pool, *inputs, donated=1)
    last = jax.ShapeDtypeStruct((MAX_PREFILL_ROWS, width), dtype)
    words = pool.slots.memory.allowed.shape[1]
    first = as_first_token_input(first_token_columns((), MAX_PREFILL_ROWS, slots, words))
    yield "first token", _later(partial(first_token_step, graph), params, pool, last, first, donated=1)
    for rows, length in prefill_shapes(chunk):
        batch = PrefillInput(**prefill_columns((), rows, length, slots))
        yield f"prefill {rows}x{length}", _later(partial(prefill_step, graph), params, pool, batch, donated=1)
        if rows == 1:
            tokens = jax.ShapeDtypeStruct((1, length, width), dtype)
            yield f"score {length}", _later(partial(score_step, graph), params, tokens, _int32(1, length))
    masks = jax.ShapeDtypeStruct((MAX_PREFILL_ROWS, words), jnp.uint32)
    yield "mask", _later(mask_step, pool, _int32(MAX_PREFILL_ROWS), masks, donated=0)
    yield "copy", _later(copy_step, pool, _int32(1), _int32(1), donated=0)
    yield "restore", _later(restore_step, pool, _int32(1), *snapshot_shapes(pool), donated=0)


def snapshot_shapes(pool: StatePool) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Of h, the convolutions' inputs and the ring of one slot, as `restore_step` takes them."""
    layers = pool.groups[0]
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentState)]
    rings = [layer.rings[0] for layer in layers if not isinstance(layer, RecurrentState)]
    h, conv = (recurrent[0].h, recurrent[0].conv) if recurrent else (jnp.zeros((1, 0)), jnp.zeros((0, 1, 0)))
    window = sum(keys.shape[1] for keys, _ in rings[0]) if rings else 1
    size, dtype = (rings[0][0][0].shape[-1], rings[0][0][0].dtype) if rings else (0, conv.dtype)
    return (
        jax.ShapeDtypeStruct((len(recurrent), h.shape[-1]), h.dtype),
        jax.ShapeDtypeStruct((len(recurrent), conv.shape[0], conv.shape[-1]), conv.dtype),
        jax.ShapeDtypeStruct((window, len(rings), 2, size), dtype),
    )


def as_first_token_input(columns: Mapping[str, Any]) -> FirstTokenInput:
    """From arrays on the host or on the device."""
    return FirstTokenInput(**{**columns, "sampling": SamplingState(**columns["sampling"])})


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _later(step: Callable[..., Any], *inputs: Any, donated: int | None = None) -> Lower:
    """Traces a step when it is called."""
    return partial(jax.jit(step, donate_argnums=() if donated is None else donated).lower, *inputs)


def compile_all(
    programs: Mapping[str, Lower], options: Mapping[str, Any], executor: Executor, report: Callable[[int, int], None]
) -> dict[str, Future[Any]]:
    """Traces one program after the other, while those before are compiled.

    Args:
      programs: see `lower_all`.
      options: the compiler's.
      executor: compiles; what is left is cancelled by whoever shuts it down.
      report: is told how many are done, and how many there are.
    """
    num_done = itertools.count(1)

    def compile_program(lowered: Any) -> Any:
        compiled = lowered.compile(compiler_options=dict(options))
        report(next(num_done), len(programs))
        return compiled

    return {name: executor.submit(compile_program, lower()) for name, lower in programs.items()}


def keep_programs(folder: Path) -> None:
    """From now on, programs that have been compiled are kept in a folder, and found there by later processes.

    Their names tell apart programs, versions, compiler options and kinds of devices (of CPUs: their instructions).
    Where the disk is full or may only be read, programs are found there and none is added; the log says so.

    Raises:
      ConfigError: it can be no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROGRAM_BYTES))
    except OSError as error:
        if error.errno not in _PASSING:
            reason = f"cannot be written to ({error.strerror}); name another folder, or off"
            raise ConfigError(f"compile_cache {folder}: {reason}") from None
        _logger.warning("compile_cache %s: no program will be kept there (%s)", folder, error.strerror)
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # for each of the programs
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

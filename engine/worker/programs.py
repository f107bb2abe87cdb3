"""The device's programs for every shape, compiled before the first request."""

import errno
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ...kernels.window_attention import block_sizes
from ..core.config import MAX_PREFILL_ROWS, PREFILL_BLOCK
from ..core.errors import ConfigError
from ..core.sampling_params import SamplingState
from ..model.collectives import REPLICATED, SLOTS, Collectives
from ..model.config import ModelConfig
from ..model.griffin import Params
from ..model.sharding_rules import padded_lru_width, state_partition_specs
from ..model.state import num_rows, zero_state
from ..platform import Platform
from ..sampling.state import zero_sampling_state, zero_token_memory
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
    later_prefill_step,
    mask_step,
    prefill_step,
    read_step,
    restore_step,
    score_step,
)

_PROGRAM_BYTES: Final = 2**20
"""Where there is no room for so many, there is none for a program."""

_PASSING: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What may be wrong with a folder that was the right one to name."""

_logger = logging.getLogger(__name__)

type Lower = Callable[[], Any]
"""Traces a program for its shapes, ready to be compiled; see `lower`."""

type Compiled = Mapping[str, Any]
"""Compiled programs by name: "decode 8" is for the first 8 slots, "prefill 2x64" for two chunks of 64 tokens, "prefill
1x64 part 2" for the second of the parts in which one chunk is read."""


def new_pool(
    model: ModelConfig, rows: int, dtype: np.dtype[Any], platform: Platform, shards: Collectives | None = None
) -> StatePool:
    """Returns an empty state pool, in the platform's groups of slots and blocks of rings.

    Args:
      model: Shape of the model.
      rows: Number of slots of all shards, a multiple of the number of shards.
      dtype: Dtype of the activations.
      platform: Platform of the devices; several shards take one group with rings in one block.
      shards: Mesh over which the slots are sharded.
    """
    shards = shards or Collectives()
    groups = block_sizes(rows, platform.decode_bucket or rows)
    blocks = block_sizes(model.window, platform.ring_block or model.window)
    width = padded_lru_width(model, shards)
    tokens, positions = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
    memory = zero_token_memory(rows, model.vocab_size)
    state = SlotState(tokens, positions, jnp.ones(rows, jnp.bool), zero_sampling_state(rows), memory)
    return StatePool(tuple(zero_state(model, size, dtype, blocks, width) for size in groups), state)


def decode_rows(pool: StatePool) -> tuple[int, ...]:
    """The numbers of slots for which there is a decode program, in rising order."""
    return tuple(accumulate(num_rows(group) for group in pool.groups))


class StepShapes(NamedTuple):
    """For which steps there are programs.

    Attributes:
      decode_steps: the most tokens per row of a decode dispatch.
      prefill: the (rows, tokens per row) of prefill.
      parts: the layers of each part in which one row of `PREFILL_BLOCK` tokens is read.
    """

    decode_steps: int
    prefill: tuple[tuple[int, int], ...]
    parts: tuple[range, ...]

    @property
    def prefill_rows(self) -> int:
        """The most rows of prefill."""
        return max(rows for rows, _ in self.prefill)


def step_shapes(model: ModelConfig, chunk: int, platform: Platform) -> StepShapes:
    """Returns the shapes that are worth a program on the platform.

    Args:
      model: Shape of the model.
      chunk: Maximum number of tokens of a prefill step, per data shard.
      platform: Platform of the devices.
    """
    shapes = prefill_shapes(chunk, platform.prefill_rows)
    return StepShapes(platform.decode_steps, shapes, layer_slices(model.depth, platform.layers_per_slice))


def prefill_shapes(chunk: int, most_rows: int) -> tuple[tuple[int, int], ...]:
    """The (rows, tokens per row): the block, doubled up to the chunk, and rows that fit with it, a power of two."""
    lengths = [PREFILL_BLOCK]
    while lengths[-1] < chunk:
        lengths.append(min(2 * lengths[-1], chunk))
    rows = [2**i for i in range(most_rows.bit_length())]
    return tuple((n, length) for length in lengths for n in rows if n * length <= chunk)


def layer_slices(depth: int, size: int | None) -> tuple[range, ...]:
    """Returns ranges of `size` layers that cover all of them; one range for None."""
    size = size or depth
    return tuple(range(start, min(start + size, depth)) for start in range(0, depth, size))


def prefill_names(rows: int, length: int, parts: int) -> list[str]:
    """Of the programs that read a batch of this shape, one after the other.

    Args:
      parts: of one row of `PREFILL_BLOCK` tokens.
    """
    name = f"prefill {rows}x{length}"
    is_cut = (rows, length) == (1, PREFILL_BLOCK) and parts > 1
    return [f"{name} part {part + 1}" for part in range(parts)] if is_cut else [name]


class ModelShapes(NamedTuple):
    """A model and its slots, in shapes and types, on its devices.

    Attributes:
      config: the model's shape.
      graph, params: the model, and the parameters of all shards side by side.
      pool: the slots of all shards.
      dtype: of the activations.
      shards: what the model and its slots are cut into.
      specs: how the parameters lie on the mesh.
      mesh: the devices; None for the one that is there anyway.
    """

    config: ModelConfig
    graph: Graph
    params: Params
    pool: StatePool
    dtype: np.dtype[Any]
    shards: Collectives = Collectives()
    specs: Params = None
    mesh: Mesh | None = None


class Program(NamedTuple):
    """What the devices run under one name.

    Attributes:
      step: one shard's function.
      held: the arguments that stay on the devices from call to call, by name; a pool that is a result, too, is donated.
      inputs: the arguments behind them, which come from the host; arrays or their shapes.
      results: the names of what it gives; what has a name of those that are held takes its place.
    """

    step: Callable[..., Any]
    held: tuple[str, ...]
    inputs: tuple[Any, ...]
    results: tuple[str, ...]


HELD: Final = ("params", "pool", "hidden", "last")
"""What stays on the devices: parameters, slots, and activations of the last prefill batch: of all its tokens, and of
each row's last one."""


def all_programs(model: ModelShapes, shapes: StepShapes, *, reads_slots: bool = False) -> dict[str, Program]:
    """Every program by name.

    Args:
      model: what they are traced with.
      shapes: of the steps.
      reads_slots: whether there is one that reads what decoding has left in a slot.
    """
    programs = dict(_each_program(model, shapes))
    read = Program(partial(read_step, model.shards, model.config.lru_width), ("pool",), (_int32(1),), ("state",))
    return programs | {"read": read} if reads_slots else programs


def _each_program(model: ModelShapes, shapes: StepShapes) -> Iterator[tuple[str, Program]]:
    graph, shards, slots = model.graph, model.shards, model.pool.slots.tokens.shape[0]
    words = model.pool.slots.memory.allowed.shape[1]
    for rows in decode_rows(model.pool):
        inputs: tuple[Any, ...] = (jax.ShapeDtypeStruct((rows,), jnp.bool), _int32())
        step: Callable[..., Any] = partial(decode_step, graph, shapes.decode_steps)
        yield f"decode {rows}", Program(step, ("params", "pool"), inputs, ("pool", "sampled"))
    first = as_first_token_input(first_token_columns((), first_token_rows(shards), slots, words))
    step = partial(first_token_step, graph)
    yield "first token", Program(step, ("params", "pool", "last"), (first,), ("pool", "sampled"))
    for rows, length in shapes.prefill:
        inputs = (PrefillInput(**prefill_columns((), (), rows * shards.data, length, slots)),)
        names = prefill_names(rows, length, len(shapes.parts))
        parts = shapes.parts if len(names) > 1 else [range(model.config.depth)]
        yield from zip(names, _prefill_parts(graph, inputs, parts), strict=True)
        if rows == 1:
            inputs = (_int32(shards.data, length),)
            yield f"score {length}", Program(partial(score_step, graph), ("params", "hidden"), inputs, ("scores",))
    masks = jax.ShapeDtypeStruct((MAX_PREFILL_ROWS, words), jnp.uint32)
    for name, change, inputs in (
        ("mask", mask_step, (_int32(MAX_PREFILL_ROWS), masks)),
        ("copy", copy_step, (_int32(1), _int32(1))),
        ("restore", restore_step, (_int32(1), *snapshot_shapes(model.config, model.dtype))),
    ):
        yield name, Program(partial(change, shards), ("pool",), inputs, ("pool",))
    ends = jax.ShapeDtypeStruct((shards.data * MAX_PREFILL_ROWS, model.config.width), model.dtype)
    yield "ends", Program(_take_over, (), (ends,), ("last",))


def _prefill_parts(graph: Graph, inputs: tuple[PrefillInput], parts: Sequence[range]) -> Iterator[Program]:
    results = ("pool", "hidden", "last", "trail")
    yield Program(partial(prefill_step, graph, layers=parts[0]), ("params", "pool"), inputs, results)
    for layers in parts[1:]:
        yield Program(partial(later_prefill_step, graph, layers), ("params", "pool", "hidden"), inputs, results)


def _take_over(x: Array) -> Array:
    return x


def first_token_rows(shards: Collectives) -> int:
    """How many first tokens are sampled at a time: as many for each of the model's shards."""
    return -(-MAX_PREFILL_ROWS // shards.model) * shards.model


def lower(program: Program, model: ModelShapes) -> Any:
    """Traces a program, ready to be compiled.

    Args:
      program: of `all_programs`.
      model: as there.
    """
    donated = tuple(place for place, name in enumerate(program.held) if name == "pool" and name in program.results)
    shapes = (*(_held_shape(name, program, model) for name in program.held), *program.inputs)
    if model.mesh is None:
        return jax.jit(_with_tuple(program), donate_argnums=donated).lower(*shapes)
    takes = (*(_spec(name, model) for name in program.held), *(REPLICATED for _ in program.inputs))
    gives = tuple(_spec(name, model) for name in program.results)
    step = jax.shard_map(_with_tuple(program), mesh=model.mesh, in_specs=takes, out_specs=gives, check_vma=False)
    placed = tuple(as_placed(model.mesh, spec, tree) for spec, tree in zip(takes, shapes, strict=True))
    return jax.jit(step, donate_argnums=donated).lower(*placed)


def _with_tuple(program: Program) -> Callable[..., tuple[Any, ...]]:
    """The step, with its results as a tuple, also if there is one."""
    if len(program.results) > 1:
        return program.step

    def step(*arguments: Any) -> tuple[Any, ...]:
        return (program.step(*arguments),)

    return step


def as_placed(mesh: Mesh, spec: Any, tree: Any) -> Any:
    """Shapes of arrays that lie on a mesh.

    Args:
      mesh: the devices.
      spec: for all arrays below it, as `jax.shard_map` takes it.
      tree: shapes, or arrays that have some.
    """
    return jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), part
        ),
        spec,
        tree,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def pool_spec(pool: StatePool) -> StatePool:
    """How the slots lie on a mesh."""
    return StatePool(tuple(map(state_partition_specs, pool.groups)), SLOTS)  # type: ignore[arg-type]


def _spec(name: str, model: ModelShapes) -> Any:
    if name == "params":
        return model.specs
    return {"pool": pool_spec(model.pool), "hidden": SLOTS}.get(name, REPLICATED)


def _held_shape(name: str, program: Program, model: ModelShapes) -> Any:
    shapes = {"params": model.params, "pool": model.pool}
    if name in shapes:
        return shapes[name]
    width, data = model.config.width, model.shards.data
    shape = (data * MAX_PREFILL_ROWS, width) if name == "last" else (*jax.tree.leaves(program.inputs)[0].shape, width)
    return jax.ShapeDtypeStruct(shape, model.dtype)


def snapshot_shapes(
    model: ModelConfig, dtype: np.dtype[Any]
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Of h, the convolutions' inputs and the ring of one slot, as `restore_step` takes them; the same on all meshes."""
    recurrent, attention = (model.block_types.count(kind) for kind in ("recurrent", "attention"))
    width, taps = (model.lru_width, model.conv_width - 1) if recurrent else (0, 0)
    window, size = (model.window, model.head_dim) if attention else (1, 0)
    return (
        jax.ShapeDtypeStruct((recurrent, width), jnp.float32),
        jax.ShapeDtypeStruct((recurrent, taps, width), dtype),
        jax.ShapeDtypeStruct((window, attention, 2, size), dtype),
    )


def as_first_token_input(columns: Mapping[str, Any]) -> FirstTokenInput:
    """From arrays on the host or on the device."""
    return FirstTokenInput(**{**columns, "sampling": SamplingState(**columns["sampling"])})


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def compile_all(
    lowerings: Mapping[str, Lower], options: Mapping[str, Any], executor: Executor, report: Callable[[int, int], None]
) -> dict[str, Future[Any]]:
    """Traces one program after the other, while those before are compiled.

    Args:
      lowerings: of each program, by name.
      options: the compiler's.
      executor: compiles; what is left is cancelled by whoever shuts it down.
      report: is told how many are done, and how many there are.
    """
    num_done = itertools.count(1)

    def compile_program(lowered: Any) -> Any:
        compiled = lowered.compile(compiler_options=dict(options))
        report(next(num_done), len(lowerings))
        return compiled

    return {name: executor.submit(compile_program, lower()) for name, lower in lowerings.items()}


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

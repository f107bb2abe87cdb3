"""The device programs of a model: which there are for every shape, and what each takes and returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..devices.platform import Platform
from ..model.collectives import Collectives
from ..model.config import ModelConfig
from ..model.griffin import Params
from ..model.slot_states import BlockedStates, ContiguousStates
from ..model.state import RowArrays
from ..model.state_layout import state_layout
from ..sampling.logprobs import Logprobs
from ..sampling.sampler import Sampled
from ..sampling.state import zero_sampling_state, zero_token_memory
from ..speculation.drafter import zero_draft_state
from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK
from ..types.mesh import MeshShape
from ..types.speculation import Speculation
from .leaves import ArrayName, leaf_moves
from .speculative_steps import Speculated, pair_sizes, speculative_step
from .steps import (
    Graph,
    PrefillResult,
    SlotState,
    StatePool,
    copy_step,
    decode_step,
    first_token_step,
    later_prefill_step,
    mask_step,
    prefill_step,
    read_step,
    replay_step,
    restore_step,
    score_step,
)
from .transfer import first_token_input, prefill_input, replay_input


def new_pool(
    model: ModelConfig,
    rows: int,
    dtype: np.dtype[Any],
    platform: Platform,
    shards: Collectives | None = None,
    *,
    drafts: bool = False,
) -> StatePool:
    """Returns an empty state pool in the platform's layout.

    Args:
      rows: Number of slots of all shards, a multiple of the number of shards.
      dtype: Dtype of the activations.
      platform: Platform of the devices.
      shards: Mesh over which the slots are sharded; None for a single device.
      drafts: Whether tokens are drafted.
    """
    tokens, positions = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
    memory = zero_token_memory(rows, model.vocab_size)
    draft_state = zero_draft_state(rows) if drafts else None
    slots = SlotState(tokens, positions, jnp.ones(rows, jnp.bool), zero_sampling_state(rows), memory, draft_state)
    parts = part_rows(platform, rows, shards or Collectives())
    ends = jnp.zeros((rows, model.width), dtype)
    if platform.window_block is None:
        return StatePool(ContiguousStates.zeros(model, rows, dtype, shards, parts), slots, ends)
    return StatePool(BlockedStates.zeros(model, rows, dtype, parts, platform.window_block), slots, ends)


def part_rows(platform: Platform, rows: int, shards: MeshShape) -> tuple[int, ...]:
    """Returns the numbers of slots of the decode steps that take some slots only, in rising order.

    A step takes the same number of first slots of each device, a multiple of the platform's smallest step. Along
    `model` the devices' slots lie one after the other, and the multiple must divide them too.

    Args:
      platform: Platform of the devices.
      rows: Number of slots of all shards.
      shards: Mesh over which the slots are sharded.
    """
    own, least = rows // shards.count, min(platform.decode_rows, default=1)
    if shards.model > 1 and own % least:
        return ()
    sizes = {-(-size // (least * shards.count)) * least for size in platform.decode_rows}
    return tuple(size * shards.count for size in sorted(sizes) if size < own)


def decode_rows(pool: StatePool) -> tuple[int, ...]:
    """Returns the numbers of slots for which there is a decode program, in rising order."""
    return pool.states.decode_rows


class PrefillShape(NamedTuple):
    """Shape of a prefill step on one data shard.

    Attributes:
      rows: Number of chunks.
      length: Number of tokens per chunk.
    """

    rows: int
    length: int


class StepShapes(NamedTuple):
    """Shapes for which programs are compiled.

    Attributes:
      decode_steps: Maximum number of tokens per row of a decode dispatch.
      layer_slices: Layers of each step of a prefill batch.
    """

    decode_steps: int
    prefill: tuple[PrefillShape, ...]
    layer_slices: tuple[range, ...]

    @property
    def prefill_rows(self) -> int:
        """Maximum number of rows of a prefill step."""
        return max(shape.rows for shape in self.prefill)

    def fit(self, rows: int, length: int) -> PrefillShape:
        """Returns the smallest prefill shape with room for `rows` chunks of up to `length` tokens."""
        fitting_rows = min(shape.rows for shape in self.prefill if shape.rows >= rows)
        return min(shape for shape in self.prefill if shape.rows == fitting_rows and shape.length >= length)


def step_shapes(model: ModelConfig, chunk: int, platform: Platform) -> StepShapes:
    """Returns the shapes that are worth a program on the platform.

    Args:
      chunk: Maximum number of tokens of a prefill step, per data shard.
      platform: Platform of the devices.
    """
    shapes = prefill_shapes(chunk, platform.prefill_rows)
    return StepShapes(platform.decode_steps, shapes, layer_slices(model.depth, platform.layers_per_slice))


def prefill_shapes(chunk: int, max_rows: int) -> tuple[PrefillShape, ...]:
    """Returns lengths from `PREFILL_BLOCK`, doubled up to the chunk, with powers of two as rows that fit the chunk."""
    lengths = [PREFILL_BLOCK]
    while lengths[-1] < chunk:
        lengths.append(min(2 * lengths[-1], chunk))
    rows = [2**i for i in range(max_rows.bit_length())]
    return tuple(PrefillShape(n, length) for length in lengths for n in rows if n * length <= chunk)


def layer_slices(depth: int, size: int | None) -> tuple[range, ...]:
    """Returns ranges of `size` layers that cover all of them; one range for None."""
    size = size or depth
    return tuple(range(start, min(start + size, depth)) for start in range(0, depth, size))


def equal_slices(slices: Sequence[range], kinds: Sequence[str]) -> tuple[int, ...]:
    """Returns, for each layer slice, the index of the first one that computes the same with its own layers.

    The first slice embeds tokens, the last one normalizes activations, and the others do what their kinds of layers do.

    Args:
      slices: Layers of each slice.
      kinds: Kind of each layer.
    """
    last = len(slices) - 1
    codes = [(index == 0, index == last, kinds[each.start : each.stop]) for index, each in enumerate(slices)]
    return tuple(map(codes.index, codes))


class ModelShapes(NamedTuple):
    """Shapes and dtypes of a model and its state pool, and their place on a mesh.

    Attributes:
      graph: Code of the model.
      params: Parameters of all shards side by side.
      pool: Slots of all shards.
      dtype: Dtype of the activations.
      shards: Mesh over which the model and its slots are sharded.
      specs: Partition specs of the parameters.
      mesh: Devices; None for a single one.
      device: The single device to compile for, which need not exist here; None for JAX's default device.
    """

    config: ModelConfig
    graph: Graph
    params: Params
    pool: StatePool
    dtype: np.dtype[Any]
    shards: Collectives = Collectives()
    specs: Params = None
    mesh: Mesh | None = None
    device: jax.Device | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Program[Result]:
    """A function that the devices run, compiled for one shape.

    Attributes:
      label: Unique name, used between hosts.
      step: Function of one shard. It takes the arrays of `reads`, then the inputs, and returns the arrays of
        `replaces`, then the result, if there is one.
      inputs: Inputs from the host, as arrays or their shapes.
      reads: Device arrays that the step takes.
      replaces: Device arrays that the step replaces.
      has_result: Whether the step returns a `Result`.
      equal: Program that is compiled in this one's place, and differs in its layers only; None without one.
      moves: Leaf of this program's layers, by that of the layers of `equal`.
    """

    label: str
    step: Callable[..., Any]
    inputs: tuple[Any, ...]
    reads: tuple[ArrayName, ...]
    replaces: tuple[ArrayName, ...] = ()
    has_result: bool = True
    equal: "Program[Result] | None" = None
    moves: Mapping[int, int] = field(default_factory=dict)

    @property
    def traced(self) -> "Program[Result]":
        """The program that is traced and compiled for this one: itself, or `equal`."""
        return self.equal or self


@dataclass(frozen=True, slots=True, eq=False)
class DevicePrograms:
    """All device programs of a model.

    Attributes:
      decode: Generates tokens in the first slots, by the number of slots.
      first_token: Samples the token after each prompt, and makes its slot ready to decode.
      prefill: Prefills chunks, by shape; one program per layer slice.
      score: Log-probabilities of prompt tokens after a prefill step, by the length of its chunks.
      set_mask: Sets token masks of some slots.
      copy_slot: Copies a slot onto another.
      restore: Scatters a snapshot into a slot.
      read_slot: Gathers a slot's state; None if no snapshots are taken after decoding.
      replay: Sets the decoding state of some slots; None if no request continues after tokens generated before.
      speculate: Generates tokens with drafts, by the number of slots; empty without speculation, or past its rows.
    """

    decode: Mapping[int, Program[Sampled]]
    first_token: Program[Sampled]
    prefill: Mapping[PrefillShape, tuple[Program[PrefillResult], ...]]
    score: Mapping[int, Program[Logprobs]]
    set_mask: Program[None]
    copy_slot: Program[None]
    restore: Program[None]
    read_slot: Program[RowArrays] | None = None
    replay: Program[None] | None = None
    speculate: Mapping[int, Program[Speculated]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Program[Any]]:
        """Yields every program."""
        yield from self.decode.values()
        yield self.first_token
        for slices in self.prefill.values():
            yield from slices
        yield from self.score.values()
        yield from (self.set_mask, self.copy_slot, self.restore)
        yield from filter(None, (self.read_slot, self.replay))
        yield from self.speculate.values()

    @property
    def at_start(self) -> tuple[Program[Any], ...]:
        """Programs that are traced and compiled before the engine is ready: none with an equal one or of `later`."""
        return tuple(program for program in self if program.equal is None and program not in self.later)

    @property
    def later(self) -> tuple[Program[Any], ...]:
        """Programs that are compiled while the engine runs, which does without them until then."""
        return tuple(self.speculate.values())


def device_programs(
    model: ModelShapes,
    shapes: StepShapes,
    *,
    reads_slots: bool = False,
    replays: bool = False,
    speculation: Speculation | None = None,
) -> DevicePrograms:
    """Returns all programs of a model.

    Args:
      model: Shapes with which the programs are traced.
      reads_slots: Whether there is a program that reads a slot's state.
      replays: Whether there is a program that sets slots' decoding states.
      speculation: Settings of drafted tokens; None drafts none.
    """
    config, shards, words = model.config, model.shards, model.pool.slots.memory.allowed.shape[1]
    masks = jax.ShapeDtypeStruct((MAX_PREFILL_ROWS, words), jnp.uint32)
    end = jax.ShapeDtypeStruct((1, config.width), model.dtype)
    slot, layout = _int32(1), state_layout(config, model.dtype.name)
    snapshot = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in layout.formats]
    return DevicePrograms(
        decode={rows: _decode_program(model, shapes, rows) for rows in decode_rows(model.pool)},
        first_token=_first_token_program(model),
        prefill={shape: _prefill_programs(model, shapes, shape) for shape in shapes.prefill},
        score={shape.length: _score_program(model, shape.length) for shape in shapes.prefill if shape.rows == 1},
        set_mask=_pool_program("mask", partial(mask_step, shards), _int32(MAX_PREFILL_ROWS), masks),
        copy_slot=_pool_program("copy", partial(copy_step, shards), slot, slot),
        restore=_pool_program("restore", partial(restore_step, layout, shards), slot, end, *snapshot),
        read_slot=Program("read", partial(read_step, layout), (slot,), ("pool",)) if reads_slots else None,
        replay=_replay_program(model) if replays else None,
        speculate={} if speculation is None else _speculative_programs(model, shapes, speculation),
    )


def _decode_program(model: ModelShapes, shapes: StepShapes, rows: int) -> Program[Sampled]:
    step = partial(decode_step, model.graph, shapes.decode_steps)
    inputs = (jax.ShapeDtypeStruct((rows,), jnp.bool), _int32())
    return Program(f"decode {rows}", step, inputs, ("params", "pool"), ("pool",))


def _speculative_programs(
    model: ModelShapes, shapes: StepShapes, settings: Speculation
) -> dict[int, Program[Speculated]]:
    """Returns a program for each number of slots that leaves room for drafts."""

    def program(rows: int) -> Program[Speculated]:
        step = partial(speculative_step, model.graph, settings, shapes.decode_steps)
        inputs = (jax.ShapeDtypeStruct((rows,), jnp.bool), _int32(rows), _int32(rows, settings.num_tokens), _int32())
        return Program(f"speculate {rows}", step, inputs, ("params", "pool"), ("pool",))

    return {rows: program(rows) for rows in decode_rows(model.pool) if pair_sizes(rows, settings)}


def _first_token_program(model: ModelShapes) -> Program[Sampled]:
    slots, words = model.pool.slots.tokens.shape[0], model.pool.slots.memory.allowed.shape[1]
    inputs = first_token_input((), first_token_rows(model.shards), slots, words, drafts=_has_drafts(model))
    step = partial(first_token_step, model.graph)
    return Program("first token", step, (inputs,), ("params", "pool"), ("pool",))


def _prefill_programs(
    model: ModelShapes, shapes: StepShapes, shape: PrefillShape
) -> tuple[Program[PrefillResult], ...]:
    slots, label = model.pool.slots.tokens.shape[0], f"prefill {shape.rows}x{shape.length}"
    inputs = (prefill_input((), (), shape.rows * model.shards.data, shape.length, slots),)
    slices = shapes.layer_slices
    replaces: tuple[ArrayName, ...] = ("pool", "hidden")

    def program(index: int, layers: range) -> Program[PrefillResult]:
        name = label if len(slices) == 1 else f"{label} slice {index + 1}"
        if index:
            step = partial(later_prefill_step, model.graph, layers)
            return Program(name, step, inputs, ("params", "pool", "hidden"), replaces)
        return Program(name, partial(prefill_step, model.graph, layers=layers), inputs, ("params", "pool"), replaces)

    programs = [program(index, layers) for index, layers in enumerate(slices)]
    for index, first in enumerate(equal_slices(slices, model.config.block_types)):
        if first != index:
            moves = leaf_moves(model.params, model.pool, slices[first], slices[index])
            programs[index] = replace(programs[index], equal=programs[first], moves=moves)
    return tuple(programs)


def _score_program(model: ModelShapes, length: int) -> Program[Logprobs]:
    inputs = (_int32(model.shards.data, length),)
    return Program(f"score {length}", partial(score_step, model.graph), inputs, ("params", "hidden"))


def _replay_program(model: ModelShapes) -> Program[None]:
    slots, words = model.pool.slots.tokens.shape[0], model.pool.slots.memory.allowed.shape[1]
    inputs = replay_input((), MAX_PREFILL_ROWS, slots, words, drafts=_has_drafts(model))
    return _pool_program("replay", partial(replay_step, model.shards), inputs)


def _has_drafts(model: ModelShapes) -> bool:
    return model.pool.slots.drafts is not None


def _pool_program(label: str, step: Callable[..., StatePool], *inputs: Any) -> Program[None]:
    return Program(label, step, inputs, ("pool",), ("pool",), has_result=False)


def first_token_rows(shards: Collectives) -> int:
    """Returns the number of first tokens that are sampled in one step, a multiple of the number of model shards."""
    return -(-MAX_PREFILL_ROWS // shards.model) * shards.model


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)

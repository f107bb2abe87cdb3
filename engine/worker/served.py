"""Record of the served model: its facts on its devices, and the table of the programs that they take.

Nothing is allocated or compiled here, and weights are opened, but not read. A start of the server, a simulated device
and a compilation ahead of time all begin with this record, so that the measured programs are the served programs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ...kernels.matrices import pack_param, pack_shapes
from ..checkpoint.source import ModelSource, open_tensors
from ..checkpoint.weights import Checkpoint, HostParam, Put, load_params, random_params, sharded_over
from ..devices.platform import Platform, StepSizes
from ..model.config import ModelConfig, Params
from ..model.griffin import abstract_model
from ..model.sharding import Collectives, bytes_per_device, shard_params
from ..model.slot_states import SlotStates
from ..model.speculation import zero_draft_state
from ..model.state import RowArrays, StateLayout, state_layout, zero_state
from ..sampling.sampler import Logprobs, Sampled, zero_sampling_state, zero_token_memory
from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, EngineConfig, MeshShape, Speculation, StepLimits
from ..types.output_constraint import words_of_mask
from ..types.request import PrefillChunk
from ..types.snapshot import SavedStateFormat, SnapshotFormat
from .speculative_steps import Speculated, speculative_step
from .steps import (
    PrefillResult,
    SlotState,
    StatePool,
    copy_step,
    decode_step,
    first_token_step,
    mask_step,
    prefill_step,
    read_step,
    replay_step,
    restore_step,
    score_step,
)
from .transfer import first_token_input, prefill_input, replay_input

type ArrayName = Literal["params", "pool", "hidden"]
"""Name of arrays that stay on the devices from one program to the next; see `executor.DeviceArrays`."""


class Devices(NamedTuple):
    """Devices to run on, or to compile for.

    Attributes:
      platform: Decisions that depend on their hardware.
      shards: Mesh over which the model and its slots are sharded.
      mesh: The devices; None for a single one.
      device: The single device, which need not exist here; None for JAX's default device, or on a mesh.
    """

    platform: Platform
    shards: Collectives = Collectives()
    mesh: Mesh | None = None
    device: jax.Device | None = None


class PrefillShape(NamedTuple):
    """Shape of a prefill step on one data shard.

    Attributes:
      rows: Number of chunks.
      length: Number of tokens per chunk.
    """

    rows: int
    length: int


@dataclass(frozen=True, eq=False)
class Served:
    """A model on its devices. The state pool, the sizes of steps and all programs follow from these facts.

    Attributes:
      config: Config of the model.
      settings: Settings of the engine; its `slots` is not read.
      devices: Devices that run the model.
      dtype: Dtype of the activations.
      slots: Number of requests that run at a time; 0 until a start has chosen it.
      graph: Code of the model; None for a simulated device, as are `params` and `specs`.
      params: Shapes of the parameters of all shards side by side.
      specs: Partition specs of the parameters.
    """

    config: ModelConfig
    settings: EngineConfig
    devices: Devices
    dtype: np.dtype[Any]
    slots: int = 0
    graph: Any = field(default=None, repr=False)
    params: Params = field(default=None, repr=False)
    specs: Params = field(default=None, repr=False)

    def with_slots(self, slots: int) -> "Served":
        """Returns the same model with this number of slots."""
        return replace(self, slots=slots)

    @cached_property
    def rows(self) -> int:
        """Number of rows of the state pool: the slots, with padding so that every shard has as many."""
        count = self.devices.shards.count
        return -(-max(self.slots, 2) // count) * count  # a step of one row takes another path, slow and with other bits

    @property
    def sizes(self) -> StepSizes:
        """Sizes of the steps that are compiled."""
        platform, is_quantized = self.devices.platform, self.config.quantize or self.settings.quantize
        has_products = is_quantized or self.dtype == jnp.bfloat16  # native ones, which compute padding once
        return platform.padded_sizes if platform.padded_sizes and has_products else platform.sizes

    @cached_property
    def decode_rows(self) -> tuple[int, ...]:
        """Numbers of slots for which there is a decode program, in rising order."""
        return self._with_all(self.sizes.decode_rows)

    def _with_all(self, sizes: Sequence[int]) -> tuple[int, ...]:
        return (*part_rows(sizes, self.rows, self.devices.shards), self.rows)

    @cached_property
    def prefill_shapes(self) -> tuple[PrefillShape, ...]:
        """Shapes for which there are prefill programs."""
        return prefill_shapes(
            self.settings.prefill_chunk, self.devices.platform.prefill_rows, self.sizes.prefill_shapes
        )

    @property
    def prefill_tokens(self) -> int:
        """Number of tokens of the largest prefill step of a data shard."""
        return max(rows * length for rows, length in self.prefill_shapes)

    @property
    def hidden(self) -> jax.ShapeDtypeStruct:
        """Shape of the activations of a prefill step's tokens, of all data shards."""
        return jax.ShapeDtypeStruct((self.devices.shards.data * self.prefill_tokens, self.config.width), self.dtype)

    @cached_property
    def layer_slices(self) -> tuple[range, ...]:
        """Layers of each step of a prefill batch."""
        return layer_slices(self.config.depth, self.devices.platform.layers_per_slice)

    @cached_property
    def first_token_rows(self) -> int:
        """Number of first tokens that are sampled in one step, a multiple of the number of model shards."""
        shards = self.devices.shards.model
        return -(-MAX_PREFILL_ROWS // shards) * shards

    @cached_property
    def mask_words(self) -> int:
        """Number of words of a token mask."""
        return words_of_mask(self.config.vocab_size)

    @cached_property
    def has_drafts(self) -> bool:
        """Whether tokens are drafted."""
        return self.settings.speculation is not None

    @property
    def state_layout(self) -> StateLayout:
        """Arrays of a slot's state."""
        return state_layout(self.config, self.dtype.name)

    def fit(self, rows: int, length: int) -> PrefillShape:
        """Returns the smallest prefill shape with room for `rows` chunks of up to `length` tokens."""
        fitting = (shape for shape in self.prefill_shapes if shape.rows >= rows and shape.length >= length)
        return min(fitting, key=lambda shape: (shape.rows * shape.length, shape.rows))

    def prefill_places(self, chunks: Sequence[PrefillChunk]) -> tuple[PrefillShape, list[int], list[int]]:
        """Returns the shape of the prefill step for some chunks, the data shard of each, and its rank there."""
        homes = [chunk.slot // (self.rows // self.devices.shards.data) for chunk in chunks]
        ranks = [homes[:place].count(home) for place, home in enumerate(homes)]
        return self.fit(max(ranks) + 1, max(chunk.length for chunk in chunks)), homes, ranks

    @property
    def slot_order(self) -> tuple[int, ...]:
        """All slots in the order in which they are claimed, so that slots in use are spread evenly over the devices.

        Rows are in consecutive blocks of equal size, one for each device. Slots are spread over `data` first, then over
        `model`.
        """
        shards, block = self.devices.shards, self.rows // self.devices.shards.count
        devices = [device % shards.data * shards.model + device // shards.data for device in range(shards.count)]
        return tuple(devices[i % shards.count] * block + i // shards.count for i in range(self.slots))

    def decode_places(self, slots: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Returns the number of rows of the smallest decode step that includes the given slots, and their rows in it.

        A step has the same number of first slots of each device, one device after the other.

        Args:
          slots: The slots; at least one.
        """
        devices = self.devices.shards.count
        block = self.rows // devices
        least = devices * (1 + max(slot % block for slot in slots))
        size = next(size for size in self.decode_rows if size >= least)
        return size, tuple(slot // block * (size // devices) + slot % block for slot in slots)

    def limits(self, decode_steps: int = 1) -> StepLimits:
        """Returns the limits of a step, for the scheduler.

        Args:
          decode_steps: Maximum number of tokens per request and dispatch.
        """
        settings, shards = self.settings, self.devices.shards
        return StepLimits(
            prefill_chunk=settings.prefill_chunk,
            prefill_rows=max(shape.rows for shape in self.prefill_shapes),
            prefill_shapes=self.prefill_shapes,
            prefill_layer_slices=len(self.layer_slices),
            decode_steps=decode_steps,
            decode_rows=self._with_all(self.devices.platform.sizes.decode_rows),
            idle_rows_per_move=self.devices.platform.idle_rows_per_move,
            mask_words=self.mask_words,
            slot_order=self.slot_order,
            shard_rows=self.rows // shards.data,
            itl_target_s=None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3,
            speculation=settings.speculation,
        )

    def state_format(self, identity: str) -> SavedStateFormat:
        """Returns the format of saved states.

        Args:
          identity: Identity of the model; see `model_identity`.
        """
        state = self.state_layout
        recurrent = {array.name: (array.shape, array.dtype) for array in state.recurrent}
        (window, *token), window_dtype = state.window
        hidden = (self.config.width,), self.dtype.name
        snapshot = SnapshotFormat(window, recurrent, (tuple(token), window_dtype), hidden)
        return SavedStateFormat(identity, self.config.vocab_size, snapshot)

    def new_pool(self) -> StatePool:
        """Returns an empty state pool of all shards."""
        config, rows, shards = self.config, self.rows, self.devices.shards
        tokens, positions = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
        memory = zero_token_memory(rows, config.vocab_size)
        drafts = zero_draft_state(rows) if self.has_drafts else None
        slots = SlotState(tokens, positions, jnp.ones(rows, jnp.bool), zero_sampling_state(rows), memory, drafts)
        states = SlotStates(zero_state(config, rows, self.dtype, shards.model), shards)
        return StatePool(states, slots, jnp.zeros((rows, config.width), self.dtype))

    @cached_property
    def pool(self) -> StatePool:
        """Shapes of the state pool of all shards."""
        return jax.eval_shape(self.new_pool)

    def with_model(self, step: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
        """Returns a step that takes the model and some settings as a function of the parameters and the rest."""
        return lambda params, *arguments: step(nnx.merge(self.graph, params), *settings, *arguments)

    @cached_property
    def programs(self) -> "DevicePrograms":
        """All programs that the engine runs."""
        return DevicePrograms(self)


class OpenWeights(NamedTuple):
    """Weights that are checked, but not read yet.

    Attributes:
      served: The model, without a number of slots.
      read: Reads or draws the parameters and places them on the devices; takes a callback, which
        receives the numbers of finished and of all parameters.
      num_bytes: Bytes that the parameters will take on each device.
    """

    served: Served
    read: Callable[[Callable[[int, int], None]], Params]
    num_bytes: int


@contextmanager
def open_weights(source: ModelSource, settings: EngineConfig, devices: Devices) -> Iterator[OpenWeights]:
    """Opens a source's weights and checks what can be checked without reading them.

    Args:
      settings: Settings of the engine.
      devices: Devices that will hold the parameters.

    Raises:
      CheckpointError: The weights do not fit the model.
    """
    config, shards, kernels = source.config, devices.shards, devices.platform.kernels
    put: Put | None = _put_packed if kernels.packs_weights else None
    if devices.mesh is not None:
        put = sharded_over(devices.mesh, config, shards)
    with nullcontext() if source.is_random else open_tensors(source.weights, config, source.adapters) as tensors:
        checkpoint = None if tensors is None else Checkpoint(config, tensors)
        stored, quantize = config.dtype, settings.quantize
        if checkpoint is not None:
            stored, quantize = checkpoint.dtype, config.quantize or quantize
        dtype = jnp.dtype(stored if settings.dtype == "auto" else settings.dtype)
        matrix_dtype = None if quantize is None else jnp.dtype(quantize)
        graph, whole = abstract_model(config, dtype, devices.platform, matrix_dtype, shards)
        params, specs = shard_params(whole, config, shards)
        num_bytes = bytes_per_device(params, specs, shards)
        if kernels.packs_weights:
            params = pack_shapes(params)
        served = Served(config, settings, devices, dtype, graph=graph, params=params, specs=specs)
        if checkpoint is None:
            yield OpenWeights(served, partial(random_params, whole, settings.seed, put=put), num_bytes)
        else:
            yield OpenWeights(served, partial(load_params, checkpoint, whole, put=put), num_bytes)


def _put_packed(path: tuple[Any, ...], param: HostParam) -> Any:
    """Places a parameter on the default device, packed if it can be."""
    return jax.device_put(pack_param(param))


def part_rows(sizes: Sequence[int], rows: int, shards: MeshShape) -> tuple[int, ...]:
    """Returns the numbers of slots of the decode steps that take some slots only, in rising order.

    A step takes the same number of first slots of each device, a multiple of the smallest size. Along `model` the
    devices' slots lie one after the other, and the multiple must divide them too.

    Args:
      sizes: Sizes of a platform, in rising order.
      rows: Number of slots of all shards.
      shards: Mesh over which the slots are sharded.
    """
    own, least = rows // shards.count, min(sizes, default=1)
    if shards.model > 1 and own % least:
        return ()
    of_device = {-(-size // (least * shards.count)) * least for size in sizes}
    return tuple(size * shards.count for size in sorted(of_device) if size < own)


def prefill_shapes(
    chunk: int, max_rows: int, shapes: tuple[tuple[int, int], ...] | None = None
) -> tuple[PrefillShape, ...]:
    """Returns shapes of at most a chunk of tokens, with fewer rows than given where these do not fit, and the chunk.

    Args:
      shapes: See `StepSizes.prefill_shapes`.
    """
    if shapes is None:
        lengths = [PREFILL_BLOCK * 2**i for i in range((chunk // PREFILL_BLOCK).bit_length())]
        rows = [2**i for i in range(max_rows.bit_length())]
        shapes = tuple((n, length) for length in (*lengths, chunk) for n in rows if n * length <= chunk)
    fitting = (PrefillShape(min(n, chunk // length), length) for n, length in shapes if length < chunk)
    return tuple(dict.fromkeys((*fitting, PrefillShape(1, chunk))))


def layer_slices(depth: int, size: int | None) -> tuple[range, ...]:
    """Returns ranges of `size` layers that cover all of them; one range for None."""
    size = size or depth
    return tuple(range(start, min(start + size, depth)) for start in range(0, depth, size))


@dataclass(frozen=True, slots=True, eq=False)
class Program[Result]:
    """A function that the devices run, compiled for one shape.

    It donates the leaves of `reads` that it replaces.

    Attributes:
      label: Unique name, used between hosts.
      step: Function of one shard. It takes the arrays of `reads`, then the inputs, and returns the arrays of
        `replaces`, then the result, if there is one.
      inputs: Inputs from the host, as arrays or their shapes.
      reads: Device arrays that the step takes.
      replaces: Device arrays that the step replaces.
      has_result: Whether the step returns a `Result`.
      layers: Layers of a slice of a prefill step; None for other programs.
      equal: Program that is compiled in this one's place, and differs in its layers only; None without one.
    """

    label: str
    step: Callable[..., Any]
    inputs: tuple[Any, ...]
    reads: tuple[ArrayName, ...]
    replaces: tuple[ArrayName, ...] = ()
    has_result: bool = True
    layers: range | None = None
    equal: "Program[Result] | None" = None

    @property
    def traced(self) -> "Program[Result]":
        """The program that is traced and compiled for this one: itself, or `equal`."""
        return self.equal or self


_POOL: Final[tuple[ArrayName, ...]] = ("pool",)
_MODEL: Final[tuple[ArrayName, ...]] = ("params", "pool")
_ACTIVATIONS: Final[tuple[ArrayName, ...]] = ("pool", "hidden")


class DevicePrograms:
    """The table of the programs of a served model; each is named here, and nowhere else.

    Attributes:
      decode: Generates tokens in the first slots, by the number of slots.
      first_token: Samples the token after each prompt, and makes its slot ready to decode.
      prefill: Prefills chunks, by shape; one program per layer slice.
      score: Log-probabilities of prompt tokens after a prefill step of one chunk.
      set_mask: Sets token masks of some slots; a slot past the pool is skipped.
      copy_slot: Copies a slot onto another.
      restore: Scatters a snapshot into a slot, and the activation of its last token.
      read_slot: Gathers a slot's state; None if no snapshots are taken after decoding.
      replay: Sets the decoding state of some slots; None if no request continues after tokens generated before.
      speculate: Generates tokens with drafts, by the number of slots, in rising order; empty without speculation.
    """

    def __init__(self, served: Served) -> None:
        shards, layout, settings = served.devices.shards, served.state_layout, served.settings
        steps, sizes = served.devices.platform.decode_steps, (served.rows, served.mask_words)
        slot, masks = _int32(1), jax.ShapeDtypeStruct((MAX_PREFILL_ROWS, served.mask_words), jnp.uint32)
        end = jax.ShapeDtypeStruct((1, served.config.width), served.dtype)
        snapshot = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in layout.formats]
        firsts = first_token_input((), served.first_token_rows, *sizes, drafts=served.has_drafts)
        replays = replay_input((), MAX_PREFILL_ROWS, *sizes, drafts=served.has_drafts)

        decode = served.with_model(decode_step, steps)
        self.decode: Mapping[int, Program[Sampled]] = {
            rows: Program(f"decode {rows}", decode, (_bools(rows), _int32()), _MODEL, _POOL)
            for rows in served.decode_rows
        }
        self.first_token: Program[Sampled] = Program(
            "first token", served.with_model(first_token_step), (firsts,), _MODEL, replaces=_POOL
        )
        self.prefill = {shape: _prefill_slices(served, shape) for shape in served.prefill_shapes}
        self.score: Program[Logprobs] = Program(
            "score",
            served.with_model(score_step),
            (_int32(shards.data, served.prefill_tokens), _int32()),
            ("params", "hidden"),
        )
        self.set_mask = _pool_program("mask", partial(mask_step, shards), _int32(MAX_PREFILL_ROWS), masks)
        self.copy_slot = _pool_program("copy", partial(copy_step, shards), slot, slot)
        self.restore = _pool_program("restore", partial(restore_step, layout, shards), slot, end, *snapshot)
        self.read_slot: Program[RowArrays] | None = (
            Program("read", partial(read_step, layout), (slot,), _POOL)
            if settings.state_cache_inexact or settings.request_snapshots
            else None
        )
        self.replay = (
            _pool_program("replay", partial(replay_step, shards), replays) if settings.request_snapshots else None
        )
        self.speculate = {} if settings.speculation is None else _speculative_programs(served, settings.speculation)

    def __iter__(self) -> Iterator[Program[Any]]:
        """Yields every program, in the order of the table."""
        return chain.from_iterable(map(_programs_in, vars(self).values()))

    @property
    def compiled(self) -> tuple[Program[Any], ...]:
        """Programs that are traced and compiled: all without an equal one."""
        return tuple(program for program in self if program.equal is None)


def _programs_in(row: Any) -> Iterable[Program[Any]]:
    """Returns the programs of a row of the table: one, none, or some by shape."""
    match row:
        case None:
            return ()
        case Program():
            return (row,)
        case Mapping():
            return chain.from_iterable(map(_programs_in, row.values()))
    return tuple(row)


def _prefill_slices(served: Served, shape: PrefillShape) -> tuple[Program[PrefillResult], ...]:
    """Returns the programs of the layer slices of a prefill batch."""
    label, slices = f"prefill {shape.rows}x{shape.length}", served.layer_slices
    inputs = (prefill_input((), (), shape.rows * served.devices.shards.data, shape.length, served.rows),)

    def program(index: int, layers: range) -> Program[PrefillResult]:
        name = label if len(slices) == 1 else f"{label} slice {index + 1}"
        step = served.with_model(prefill_step, layers)
        return Program(name, step, inputs, ("params", *_ACTIVATIONS), _ACTIVATIONS, layers=layers)

    programs = [program(index, layers) for index, layers in enumerate(slices)]
    firsts = equal_slices(slices, served.config.block_types)
    return tuple(
        each if first == index else replace(each, equal=programs[first])
        for index, (each, first) in enumerate(zip(programs, firsts, strict=True))
    )


def _speculative_programs(served: Served, settings: Speculation) -> dict[int, Program[Speculated]]:
    """Returns a program for each number of slots of the platform's steps with drafts."""
    step = served.with_model(speculative_step, settings, served.devices.platform.decode_steps)

    def program(rows: int) -> Program[Speculated]:
        inputs = _bools(rows), _int32(rows), _int32(rows, settings.num_tokens), _int32()
        return Program(f"speculate {rows}", step, inputs, _MODEL, _POOL)

    return {rows: program(rows) for rows in sorted({min(rows, served.rows) for rows in served.sizes.draft_rows})}


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


def _pool_program(label: str, step: Callable[..., StatePool], *inputs: Any) -> Program[None]:
    return Program(label, step, inputs, _POOL, _POOL, has_result=False)


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bools(rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows,), jnp.bool)

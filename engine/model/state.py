"""States of a batch of rows on the device, a pytree of fixed size at any number of tokens, and its layout on the host.

`docs/explanation/constant-size-state.md` lists its parts and their sizes. `roost.engine.model.slot_states` holds the
states of all slots. Arrays, their order and their sizes follow from `LAYER_KINDS`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ...kernels.window_attention import Int8Vectors, pack
from ..types.host_memory import ArrayFormat
from .config import ModelConfig
from .layer_kinds import GRIFFIN_KINDS, LAYER_KINDS, AttentionState, LayerKind, LayerState, StateArray, kind_of

_NO_TOKEN: Final = 1
"""Rows of the empty window of a model that has no attention layer."""


@dataclass(frozen=True, slots=True)
class StackedArray:
    """Array of a snapshot: one array of the state, of all layers of a kind.

    Attributes:
      name: Name in state files.
      kind: Kind of the layers.
      index: Place of the array in the layer's state.
      slot_axis: Axis of the slots in the pool's array of one layer.
      shape: Shape `[L, ...]` for L layers, the same on all meshes; all sizes are 0 without a layer of the kind.
      dtype: Name of the dtype.
      is_sharded: Whether the last axis is sharded over `model`.
    """

    name: str
    kind: str
    index: int
    slot_axis: int
    shape: tuple[int, ...]
    dtype: str
    is_sharded: bool


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Shapes and dtypes of a model's snapshots.

    Attributes:
      recurrent: Arrays that a snapshot holds whole, in the order in which programs take and return them.
      window: Format `[W, A, ...]` of the keys and values of a full window, for A layers with one.
    """

    recurrent: tuple[StackedArray, ...]
    window: ArrayFormat

    @property
    def formats(self) -> tuple[ArrayFormat, ...]:
        """Formats of one slot's arrays: `recurrent`, then the window."""
        return *((array.shape, array.dtype) for array in self.recurrent), self.window


def state_layout(config: ModelConfig, dtype: str) -> StateLayout:
    """Returns the layout of a model's state.

    Args:
      config: The model's config.
      dtype: Dtype of the activations.
    """
    return StateLayout(tuple(_stacked_arrays(config, dtype)), _window_format(config, dtype))


def _stacked_arrays(config: ModelConfig, dtype: str) -> Iterator[StackedArray]:
    for kind in dict.fromkeys((*GRIFFIN_KINDS, *config.block_types)):
        count = config.block_types.count(kind)
        for index, array in enumerate(LAYER_KINDS[kind].arrays):
            shape, own_dtype = array.format(config)
            shape = (count, *shape) if count else (0,) * (len(shape) + 1)
            is_sharded = array.channels is not None
            yield StackedArray(array.name, kind, index, array.slot_axis, shape, own_dtype or dtype, is_sharded)


def _window_format(config: ModelConfig, dtype: str) -> ArrayFormat:
    if windows := [window for kind in config.block_types if (window := LAYER_KINDS[kind].window) is not None]:
        shape, own_dtype = windows[0].format(config)
        return (config.window, len(windows), *shape), own_dtype or dtype
    return (_NO_TOKEN, 0, 2, 0), dtype


def state_bytes(config: ModelConfig, activation_bytes: int, model_shards: int = 1) -> int:
    """Returns the bytes of one slot's state, with the padding of a mesh.

    With as many slots as the mesh has devices, this is what each device holds: a part of every array, and one whole
    window of each attention layer.

    Args:
      config: The model's config.
      activation_bytes: Itemsize of the activations' dtype.
      model_shards: Number of shards along `model`.
    """
    kinds = (LAYER_KINDS[kind] for kind in config.block_types)
    arrays = (_bytes(array, config, activation_bytes, model_shards) for kind in kinds for array in kind.arrays)
    return sum(arrays) + window_bytes(config, activation_bytes)


def window_bytes(config: ModelConfig, activation_bytes: int) -> int:
    """Returns the bytes of one slot's full windows, scales included; see `state_bytes`."""
    windows = (LAYER_KINDS[kind].window for kind in config.block_types)
    return sum(config.window * _bytes(window, config, activation_bytes) for window in windows if window is not None)


def _bytes(array: StateArray, config: ModelConfig, activation_bytes: int, model_shards: int = 1) -> int:
    shape, dtype = array.format(config)
    if array.channels is not None:
        shape = (*shape[:-1], padded_channels(array, config, model_shards))
    return math.prod(shape) * (activation_bytes if dtype is None else np.dtype(dtype).itemsize)


def padded_channels(array: StateArray, config: ModelConfig, model_shards: int) -> int:
    """Returns the size of the last axis of all shards together, padding included."""
    if array.channels is None:
        return array.format(config)[0][-1]
    return model_shards * array.channels(config).shard_size(model_shards)


class AttentionBlockStates(NamedTuple):
    """Keys and values that an attention layer adds to its window in a chunk.

    Attributes:
      k: Keys, after RoPE, as the window holds them.
      v: Values, likewise.
    """

    k: Float[Array, "B *G T d"] | Int8Vectors
    v: Float[Array, "B *G T d"] | Int8Vectors


class BlockStates(NamedTuple):
    """States of all layers at the block boundaries of a chunk, from which a sequence can be restored.

    Letters: M blocks of a chunk, L layers of a kind, A layers with a window, G key heads if there are several. Without
    layers of a kind, its axes have size 0.

    Attributes:
      recurrent: Arrays `[B, M, L, ...]` after each block, in the order of `StateLayout.recurrent`.
      window: Keys and values of each token; in int8, d + 4 bytes each, of which the last are the scale.
    """

    recurrent: tuple[Shaped[Array, "B M L ..."], ...]
    window: Shaped[Array, "B T A 2 *G d"]


type LayerBlockStates = AttentionBlockStates | tuple[Array, ...]
"""States of one layer at the M block boundaries of a chunk: an array `[B, M, ...]` for each array of its kind, or keys
and values. Padding changes nothing."""

type ModelState = tuple[LayerState, ...]
"""States of consecutive layers."""

type RowArrays = tuple[Shaped[Array, "..."], ...]
"""State of one row, as `StateLayout.formats` lists its arrays."""


def zero_state(config: ModelConfig, rows: int, dtype: jnp.dtype, model_shards: int = 1) -> ModelState:
    """Returns the state before the first token.

    Args:
      config: The model's config.
      dtype: Dtype of the activations.
      model_shards: Number of shards along `model`, whose padding the arrays have.
    """

    def zeros(array: StateArray) -> Array:
        shape, own_dtype = array.format(config)
        shape = (*shape[:-1], padded_channels(array, config, model_shards))
        return jnp.zeros((*shape[: array.slot_axis], rows, *shape[array.slot_axis :]), own_dtype or dtype)

    def layer(kind: LayerKind) -> LayerState:
        if kind.window is not None:
            return AttentionState.zeros(config, rows, dtype)
        return kind.state(*map(zeros, kind.arrays))

    return tuple(layer(LAYER_KINDS[kind]) for kind in config.block_types)


def stack_block_states(
    layout: StateLayout, kinds: Sequence[str], layers: Sequence[LayerBlockStates | None], block: int
) -> BlockStates:
    """Returns the layers' block states, stacked by kind of layer.

    Args:
      layout: Layout of the model's state.
      kinds: Kind of each layer.
      block: Tokens per block.
    """
    windows = [jnp.stack([pack(x.k), pack(x.v)], axis=2) for x in layers if isinstance(x, AttentionBlockStates)]
    first: Any = next(x for x in layers if x is not None)
    rows, steps = windows[0].shape[:2] if windows else (first[0].shape[0], first[0].shape[1] * block)

    def stack(array: StackedArray) -> Array:
        parts: list[Any] = [x[array.index] for kind, x in zip(kinds, layers, strict=True) if x and kind == array.kind]
        empty = (rows, steps // block, *[0] * len(array.shape))
        return jnp.stack(parts, axis=2) if parts else jnp.zeros(empty, array.dtype)

    recurrent = tuple(map(stack, layout.recurrent))
    shape, dtype = layout.window
    empty_window = (rows, steps, 0, *shape[2:-1], 0)
    return BlockStates(recurrent, jnp.stack(windows, axis=2) if windows else jnp.zeros(empty_window, dtype))


def state_of_row(layout: StateLayout, layers: ModelState, arrays: RowArrays) -> ModelState:
    """Returns the state of one row.

    Args:
      layout: Layout of the model's state.
      layers: State of any rows, whose kinds of layers the result has.
    """
    *recurrent, windows = arrays
    of_kind: dict[str, list[tuple[int, Array]]] = {}
    for stacked, array in zip(layout.recurrent, recurrent, strict=True):
        of_kind.setdefault(stacked.kind, []).append((stacked.slot_axis, array))

    def layer(like: LayerState, at: int) -> LayerState:
        if isinstance(like, AttentionState):
            return AttentionState.of_row(windows, at)
        return type(like)(*(x[(at, *[slice(None)] * axis, None)] for axis, x in of_kind[kind_of(like)]))

    return tuple(map(layer, layers, _places(layers)))


def _places(layers: ModelState) -> Iterator[int]:
    """Yields the index of each layer among those whose states are stacked with its own."""
    seen: Counter[type[Any]] = Counter()
    for state in layers:
        yield seen[type(state)]
        seen[type(state)] += 1


def arrays_of_row(layout: StateLayout, state: ModelState) -> RowArrays:
    """Returns the arrays of one row's state, the inverse of `state_of_row`."""

    def stack(array: StackedArray) -> Array:
        first = (*[slice(None)] * array.slot_axis, 0)
        own = LAYER_KINDS[array.kind].state
        rows = [layer[array.index][first] for layer in state if isinstance(layer, own)]
        return jnp.stack(rows) if rows else jnp.zeros(array.shape, array.dtype)

    recurrent = tuple(map(stack, layout.recurrent))
    windows = [layer.row for layer in state if isinstance(layer, AttentionState)]
    return *recurrent, jnp.stack(windows, axis=1) if windows else jnp.zeros(*layout.window)

"""Layout of a model's state on the host: sizes of a slot, and shapes and dtypes of snapshots.

Everything here derives from the declarations in `LAYER_KINDS`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..types.arrays import ArrayFormat
from .config import ModelConfig
from .layer_kinds import GRIFFIN_KINDS, LAYER_KINDS, StateArray

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

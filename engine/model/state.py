"""States of a batch of rows on the device: a pytree of fixed size at any number of tokens.

`docs/explanation/constant-size-state.md` lists its parts and their sizes. `roost.engine.model.slot_states` holds the
states of all slots. Arrays and their order follow from `LAYER_KINDS`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...kernels.window_attention import Int8Vectors, pack
from .config import ModelConfig
from .layer_kinds import LAYER_KINDS, AttentionState, LayerKind, LayerState, StateArray, kind_of
from .state_layout import StackedArray, StateLayout, padded_channels


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


def zero_state(
    config: ModelConfig, rows: int, dtype: jnp.dtype, blocks: Sequence[int] = (), model_shards: int = 1
) -> ModelState:
    """Returns the state before the first token.

    Args:
      config: The model's config.
      dtype: Dtype of the activations.
      blocks: Window rows of each block; empty for windows in one block.
      model_shards: Number of shards along `model`, whose padding the arrays have.
    """

    def zeros(array: StateArray) -> Array:
        shape, own_dtype = array.format(config)
        shape = (*shape[:-1], padded_channels(array, config, model_shards))
        return jnp.zeros((*shape[: array.slot_axis], rows, *shape[array.slot_axis :]), own_dtype or dtype)

    def layer(kind: LayerKind) -> LayerState:
        if kind.window is not None:
            return AttentionState.zeros(config, rows, dtype, blocks)
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
    rows, steps = (windows[0].shape[0], windows[0].shape[1]) if windows else _rows_and_steps(layers, block)

    def stack(array: StackedArray) -> Array:
        parts: list[Any] = [x[array.index] for kind, x in zip(kinds, layers, strict=True) if x and kind == array.kind]
        empty = (rows, steps // block, *[0] * len(array.shape))
        return jnp.stack(parts, axis=2) if parts else jnp.zeros(empty, array.dtype)

    recurrent = tuple(map(stack, layout.recurrent))
    shape, dtype = layout.window
    empty_window = (rows, steps, 0, *shape[2:-1], 0)
    return BlockStates(recurrent, jnp.stack(windows, axis=2) if windows else jnp.zeros(empty_window, dtype))


def _rows_and_steps(layers: Sequence[LayerBlockStates | None], block: int) -> tuple[int, int]:
    """Returns the numbers of rows and tokens of a chunk in layers without a window."""
    first: Any = next(x for x in layers if x is not None)
    return first[0].shape[0], first[0].shape[1] * block


def state_of_row(layout: StateLayout, layers: ModelState, arrays: RowArrays) -> ModelState:
    """Returns the state of one row, with windows in one block.

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

"""Recurrent state of a batch of rows: a pytree of fixed size, whatever the number of tokens behind it.

`docs/explanation/constant-size-state.md` lists its parts and their sizes. `roost.engine.model.slot_states` holds the
states of all slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped

from ...kernels.window_attention import Blocks, Int8Vectors, Vectors, pack, unpack, zero_ring
from .config import ModelConfig


class RecurrentState(NamedTuple):
    """State of a recurrent layer.

    Attributes:
      h: RG-LRU state after the last token.
      conv: Last K - 1 inputs of the convolution, oldest first. Rows are the second axis, so that each tap is one
        contiguous `[B, E]` array on a TPU.
    """

    h: Float32[Array, "B E"]
    conv: Float[Array, "K1 B E"]


class AttentionState(NamedTuple):
    """State of an attention layer.

    Attributes:
      rings: Keys (after RoPE) and values of the last W tokens, for consecutive groups of rows; each group's rings may
        be split into blocks.
    """

    rings: tuple[Blocks, ...]


class RecurrentBlockStates(NamedTuple):
    """States of a recurrent layer at the M block boundaries of a chunk; padding changes nothing.

    Attributes:
      h: RG-LRU states.
      conv: Last K - 1 inputs of the convolution.
    """

    h: Float32[Array, "B M E"]
    conv: Float[Array, "B M K1 E"]


class AttentionBlockStates(NamedTuple):
    """Keys and values that an attention layer adds to its rings in a chunk.

    Attributes:
      k: Keys, after RoPE, as the rings hold them.
      v: Values, likewise.
    """

    k: Float[Array, "B T d"] | Int8Vectors
    v: Float[Array, "B T d"] | Int8Vectors


class BlockStates(NamedTuple):
    """States of all layers at the block boundaries of a chunk, from which a sequence can be restored.

    Letters: M blocks of a chunk, L recurrent layers, A attention layers. Without layers of a kind, its axis has size 0.

    Attributes:
      h: RG-LRU states after each block.
      conv: Convolution inputs after each block.
      window: Keys and values of each token; in int8, d + 4 bytes each, of which the last are the scale.
    """

    h: Float32[Array, "B M L E"]
    conv: Float[Array, "B M L K1 E"]
    window: Shaped[Array, "B T A 2 d"]


type LayerState = RecurrentState | AttentionState
"""State of one layer."""

type LayerBlockStates = RecurrentBlockStates | AttentionBlockStates
"""States of one layer at the block boundaries of a chunk."""

type ModelState = tuple[LayerState, ...]
"""States of consecutive layers."""

type RowArrays = tuple[Float32[Array, "L E"], Float[Array, "L K1 E"], Shaped[Array, "W A 2 d"]]
"""State of one row, stacked by kind of layer: h, convolution inputs, and keys and values as in `BlockStates`."""


def zero_state(
    config: ModelConfig, rows: int, dtype: jnp.dtype, blocks: Sequence[int] = (), lru_width: int | None = None
) -> ModelState:
    """Returns the state before the first token.

    Args:
      config: The model's config.
      rows: Number of rows.
      dtype: Dtype of the activations.
      blocks: Ring rows of each block; empty for rings in one block.
      lru_width: Width of the RG-LRU with the padding of a mesh; None for the config's.
    """
    width = config.lru_width if lru_width is None else lru_width
    kv_dtype = jnp.dtype(config.kv_dtype or dtype)

    def ring(size: int) -> Vectors:
        return zero_ring(rows, size, config.head_dim, kv_dtype)

    def layer(kind: str) -> LayerState:
        if kind == "attention":
            return AttentionState((tuple((ring(size), ring(size)) for size in blocks or [config.window]),))
        h = jnp.zeros((rows, width), jnp.float32)
        return RecurrentState(h, jnp.zeros((config.conv_width - 1, rows, width), dtype))

    return tuple(layer(kind) for kind in config.block_types)


def stack_block_states(layers: Sequence[LayerBlockStates | None], block: int) -> BlockStates:
    """Returns the layers' block states, stacked by kind of layer.

    Args:
      layers: Block states of each layer.
      block: Tokens per block.
    """
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentBlockStates)]
    attention = [layer for layer in layers if isinstance(layer, AttentionBlockStates)]
    windows = [jnp.stack([pack(layer.k), pack(layer.v)], axis=2) for layer in attention]
    if not recurrent:
        rows, steps = windows[0].shape[:2]
        empty = jnp.zeros((rows, steps // block, 0, 0))
        return BlockStates(empty, empty[..., None], jnp.stack(windows, axis=2))
    h, conv = (jnp.stack(parts, axis=2) for parts in zip(*recurrent, strict=True))
    if not attention:
        return BlockStates(h, conv, jnp.zeros((h.shape[0], h.shape[1] * block, 0, 2, 0), conv.dtype))
    return BlockStates(h, conv, jnp.stack(windows, axis=2))


def state_of_row(
    layers: ModelState, h: Float32[Array, "L E"], conv: Float[Array, "L K1 E"], ring: Shaped[Array, "W A 2 d"]
) -> ModelState:
    """Returns the state of one row, with rings in one block.

    Args:
      layers: State of any rows, whose kinds of layers the result has.
      h: RG-LRU states.
      conv: Convolution inputs.
      ring: Keys and values by row of the ring.
    """
    recurrent, attention = iter(range(h.shape[0])), iter(range(ring.shape[1]))

    def layer(kind: LayerState) -> LayerState:
        if isinstance(kind, AttentionState):
            at = next(attention)
            return AttentionState((((unpack(ring[None, :, at, 0]), unpack(ring[None, :, at, 1])),),))
        at = next(recurrent)
        return RecurrentState(h[at, None], conv[at, :, None])

    return tuple(map(layer, layers))


def arrays_of_row(state: ModelState) -> RowArrays:
    """Returns the arrays of one row's state, the inverse of `state_of_row`; axes of missing layers have size 0."""
    recurrent = [layer for layer in state if isinstance(layer, RecurrentState)]
    rings = [layer.rings[0][0] for layer in state if isinstance(layer, AttentionState)]
    h = jnp.stack([layer.h[0] for layer in recurrent]) if recurrent else jnp.zeros((0, 0))
    conv = jnp.stack([layer.conv[:, 0] for layer in recurrent]) if recurrent else jnp.zeros((0, 1, 0))
    pairs = [jnp.stack([pack(keys)[0], pack(values)[0]], axis=1) for keys, values in rings]
    return h, conv, jnp.stack(pairs, axis=1) if pairs else jnp.zeros((1, 0, 2, 0), conv.dtype)

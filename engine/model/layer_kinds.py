"""Kinds of layers: what each keeps between tokens, declared once, and how its parameters are sharded.

`LAYER_KINDS` is the table from which the state pool, snapshots, state files, sharding and memory figures derive.
`layers.TEMPORAL_BLOCKS` has the arithmetic of each kind. `docs/explanation/architecture.md` says how to add a kind.

Letters: B rows, E RG-LRU channels, K taps of the convolution, W window, G key heads, d head size. Arrays have an axis
of key heads if there are several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped

from ...kernels.window_attention import Rings, pack, unpack, zero_ring
from ..types.snapshot import SCALE_BYTES
from .config import ModelConfig


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent rows or columns of a parameter that are sharded together.

    Attributes:
      size: Number of rows or columns.
      unit: Size of a part that is never split, such as a head or a gate block.
      is_padded: False where every shard holds the whole segment if its units do not divide evenly.
    """

    size: int
    unit: int = 1
    is_padded: bool = True

    def is_sharded(self, num_shards: int) -> bool:
        """Returns whether each shard holds a part of the segment, and not the whole."""
        return self.is_padded or self.size // self.unit % num_shards == 0

    def shard_size(self, num_shards: int) -> int:
        """Returns the rows or columns of a shard, padding included."""
        return -(-self.size // self.unit // num_shards) * self.unit if self.is_sharded(num_shards) else self.size


type SegmentOf = Callable[[ModelConfig], Segment]
"""Returns the segment of a model's axis."""

type Rules = Mapping[tuple[str | int, ...], tuple[int, tuple[SegmentOf, ...]]]
"""Sharded axis of parameters and its segments, by path."""


@dataclass(frozen=True, slots=True)
class StateArray:
    """Array of a layer's state, as snapshots hold it for one slot.

    Attributes:
      name: Name in state files, unique among all kinds. "tokens", "hidden" and "window" are taken.
      format: Returns the unsharded shape, and the dtype; None for the dtype of the activations.
      slot_axis: Axis of the slots in the pool's array, which has one axis more than the shape.
      channels: Segment of the last axis that is sharded over `model`; None if each shard holds the whole array.
    """

    name: str
    format: Callable[[ModelConfig], tuple[tuple[int, ...], str | None]]
    slot_axis: int = 0
    channels: SegmentOf | None = None


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Declaration of a kind of layer.

    Attributes:
      state: Class of the layer's state: a NamedTuple of this kind alone with a field per array, or `AttentionState` for
        a kind with a window.
      arrays: Arrays of the state, all of which a snapshot keeps at each block boundary. Slots are sharded along `data`.
      window: Keys and values of one token, if the state has a window: a snapshot keeps them for the tokens since the
        last block boundary. Slots are sharded over the whole mesh. All layers of a model with a window share it.
      rules: Sharded axis of parameters and its segments, by path in the layer; other parameters are replicated.
      matrices: Returns outputs and inputs of each matrix of the temporal block that int8 and int4 quantise.
    """

    state: type[Any]
    arrays: tuple[StateArray, ...] = ()
    window: StateArray | None = None
    rules: Rules = field(default_factory=dict)
    matrices: Callable[[ModelConfig], Sequence[tuple[int, int]]] = lambda config: ()


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
      rings: Keys (after RoPE) and values of the last W tokens of each row.
    """

    rings: Rings

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, dtype: jnp.dtype) -> "AttentionState":
        """Returns empty rings.

        Args:
          config: The model's config.
          dtype: Dtype of the activations.
        """
        kv_dtype = jnp.dtype(config.kv_dtype or dtype)
        keys, values = (zero_ring(rows, config.window, config.head_dim, kv_dtype, config.num_key_heads) for _ in "kv")
        return cls((keys, values))

    @classmethod
    def of_row(cls, windows: Shaped[Array, "W A 2 *G d"], layer: int) -> "AttentionState":
        """Returns the state of one row.

        Args:
          windows: Keys and values of all layers with a window, by row of the ring.
          layer: Index of the layer among them.
        """
        return cls((unpack(windows[None, :, layer, 0]), unpack(windows[None, :, layer, 1])))

    @property
    def row(self) -> Shaped[Array, "W 2 *G d"]:
        """Keys and values of the first row; the inverse of `of_row`."""
        keys, values = self.rings
        return jnp.stack([pack(keys)[0], pack(values)[0]], axis=1)


type LayerState = Any
"""State of one layer, an instance of its kind's `state`."""


def channels(config: ModelConfig) -> Segment:
    """Returns the channels of the RG-LRU, of which gate blocks are never split."""
    return Segment(config.lru_width, config.lru_width // config.num_heads)


def _gate_blocks(config: ModelConfig) -> Segment:
    return Segment(config.num_heads)


def _heads(config: ModelConfig) -> Segment:
    return Segment(config.width, config.head_dim)


def key_heads(config: ModelConfig) -> Segment:
    """Returns the keys of a token, or its values: sharded by heads that divide evenly, or else whole on every shard."""
    return Segment(config.key_width, config.head_dim, is_padded=False)


def _keys_and_values_of_token(config: ModelConfig) -> tuple[tuple[int, ...], str | None]:
    """Returns the format of a token's keys and values; in int8, the last columns of each are the bytes of its scale."""
    heads = () if config.num_key_heads == 1 else (config.num_key_heads,)
    if config.kv_dtype is None:
        return (2, *heads, config.head_dim), None
    return (2, *heads, config.head_dim + SCALE_BYTES), config.kv_dtype


LAYER_KINDS: Final[dict[str, LayerKind]] = {
    "recurrent": LayerKind(
        RecurrentState,
        (
            StateArray("h", lambda config: ((config.lru_width,), "float32"), channels=channels),
            StateArray("conv", lambda config: ((config.conv_width - 1, config.lru_width), None), 1, channels),
        ),
        rules={
            ("temporal", "xy", "weight"): (0, (channels, channels)),
            ("temporal", "xy", "bias"): (0, (channels, channels)),
            ("temporal", "conv_weight"): (1, (channels,)),
            ("temporal", "conv_bias"): (0, (channels,)),
            ("temporal", "rg_lru", "a_param"): (0, (channels,)),
            ("temporal", "rg_lru", "gate_weight"): (0, (_gate_blocks,)),
            ("temporal", "rg_lru", "gate_bias"): (0, (_gate_blocks,)),
            ("temporal", "out", "weight"): (1, (channels,)),
        },
        matrices=lambda config: [(2 * config.lru_width, config.width), (config.width, config.lru_width)],
    ),
    "attention": LayerKind(
        AttentionState,
        window=StateArray("window", _keys_and_values_of_token),
        rules={
            ("temporal", "qkv"): (0, (_heads, key_heads, key_heads)),
            ("temporal", "out", "weight"): (1, (_heads,)),
        },
        matrices=lambda config: [(config.width + 2 * config.key_width, config.width), (config.width, config.width)],
    ),
}
"""Declaration of each kind of layer, by its name in `ModelConfig.block_types`."""

GRIFFIN_KINDS: Final = tuple(LAYER_KINDS)
"""Kinds whose arrays every snapshot and state file has, of size 0 if the model has no layer of the kind."""


def layer_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Returns the outputs and inputs of every matrix of the layers that int8 and int4 quantise."""
    d, f = config.width, config.mlp_width
    mlp = [(2 * f, d), (d, f)]
    return [matrix for kind in config.block_types for matrix in (*LAYER_KINDS[kind].matrices(config), *mlp)]


def kind_of(state: LayerState) -> str:
    """Returns the kind of the layer that a state belongs to."""
    return next(name for name, kind in LAYER_KINDS.items() if kind.state is type(state))


def slot_axes(state: LayerState) -> LayerState:
    """Returns the axis of the rows in each array of a layer's state."""
    if isinstance(state, AttentionState):
        return jax.tree.map(lambda _: 0, state)
    return type(state)(*(array.slot_axis for array in LAYER_KINDS[kind_of(state)].arrays))


def num_rows(state: LayerState) -> int:
    """Returns the number of rows of a layer's state."""
    arrays, axes = jax.tree.leaves(state), jax.tree.leaves(slot_axes(state))
    return arrays[0].shape[axes[0]]

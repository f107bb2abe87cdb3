"""Layers of Griffin (arXiv 2402.19427, section 2) as RecurrentGemma (arXiv 2404.07839) configures them.

Letters in shapes: B rows, T time steps, D width, E RG-LRU width, F MLP width, N heads (and gate blocks), d head size, V
vocabulary, G key heads. On a mesh, E, F, N and V are the sizes of one shard. `docs/reference/model.md` has the
equations.

Weights are stored as [out, in], which CPUs read fastest, and projections that share an input are one array. Vectors
(biases, norm scales, convolution taps, Λ) and all arithmetic of the RG-LRU are float32 in any precision. `dtype` is the
dtype of matrices, quantised if int8; activations keep the dtype of the input.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from ...kernels import Backend
from ...kernels.arithmetic import rounded
from ...kernels.matrices import zero_matrix
from ...kernels.products import gated_mlp, product
from ...kernels.recurrent_block import RecurrentWeights, recurrent_block
from ...kernels.rms_norm import add_rms_norm, rms_norm
from ...kernels.window_attention import (
    Rings,
    Vectors,
    decode_attention,
    for_each_head,
    heads_as_rows,
    prefill_attention,
    quantize,
    rows_as_heads,
    write_window,
)
from ..types.config import PREFILL_BLOCK
from .config import ModelConfig
from .layer_kinds import AttentionState, LayerState, RecurrentState, key_heads
from .sharding import Collectives
from .speculation import AttentionStates, OldRows, Pairs, RecurrentStates, VerifiedStates, no_rows, read_rows
from .state import AttentionBlockStates, LayerBlockStates

type Activations = Float[Array, "B T D"]

type Positions = Int32[Array, "B T"]
"""Position of every token in its document; 0 begins one, negative is padding (see `roost.kernels`)."""


def matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> nnx.Param[Any]:
    """Returns a parameter for `product`, whose `get_value` is a `Matrix`."""
    return nnx.Param(zero_matrix(outputs, inputs, dtype))


def vector(*shape: int) -> nnx.Param[Any]:
    """Returns a parameter of zeros in float32."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class LayerContext(NamedTuple):
    """Facts that all layers of a model share.

    Attributes:
      config: The model's config.
      dtype: Dtype of the matrices except gates.
      gate_dtype: Dtype of the RG-LRU's gate matrices.
      backend: Backend of the kernels.
      collectives: Collectives of the mesh over which the model is sharded.
    """

    config: ModelConfig
    dtype: jnp.dtype
    gate_dtype: jnp.dtype
    backend: Backend
    collectives: Collectives


class Dense(nnx.Module):
    """Linear layer y = x · Kᵀ + b, summed in float32 and rounded to the dtype of x.

    Args:
      inputs: Input width of the unsharded matrix.
      outputs: Output width of the unsharded matrix.
      context: Facts of the model.
      is_summed: Whether inputs are sharded, and partial products are summed over the mesh.
    """

    def __init__(self, inputs: int, outputs: int, context: LayerContext, *, is_summed: bool = False) -> None:
        self.backend = context.backend
        self.psum_over = context.collectives if is_summed else Collectives()
        self.weight = matrix(outputs, inputs, context.dtype)
        self.bias = vector(outputs)

    def __call__(self, x: Float[Array, "*rows I"], dtype: jnp.dtype | None = None) -> Float[Array, "*rows O"]:
        """Returns y in `dtype`; None for that of x."""
        return self.psum_parts(product(x, self.weight.get_value(), self.own_bias, dtype or x.dtype, self.backend))

    @property
    def own_bias(self) -> Float32[Array, " O"] | None:
        """Bias that each shard adds to its product; None if `psum_parts` adds it to the sum."""
        return self.bias[...] if self.psum_over.model == 1 else None

    def psum_parts(self, parts: Float[Array, "*rows O"]) -> Float[Array, "*rows O"]:
        """Returns the sum of the shards' products with `own_bias`, plus the bias if that left it out."""
        if self.psum_over.model == 1:
            return parts
        return (self.psum_over.psum(parts) + self.bias[...]).astype(parts.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm y = x * rsqrt(mean(x²) + eps) * (1 + scale), computed in float32."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        self.scale = vector(config.width)
        self.eps = config.rms_norm_eps
        self.backend = backend

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        return rms_norm(x, self.scale[...], self.eps, self.backend)

    def of_sum(
        self, x: Float[Array, "*rows D"], y: Float[Array, "*rows D"]
    ) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
        """Returns x + y and its norm."""
        return add_rms_norm(x, y, self.scale[...], self.eps, self.backend)


class MLP(nnx.Module):
    """Gated MLP down(gelu(gate(x)) * up(x)) (arXiv 2402.19427, section 2.2)."""

    def __init__(self, context: LayerContext) -> None:
        width, hidden = context.config.width, context.config.mlp_width
        self.backend = context.backend
        self.gate_up = Dense(width, 2 * hidden, context)
        self.down = Dense(hidden, width, context, is_summed=True)

    def __call__(self, x: Activations) -> Activations:
        gate_up, down = self.gate_up, self.down
        weights = gate_up.weight.get_value(), gate_up.bias[...], down.weight.get_value(), down.own_bias
        return down.psum_parts(gated_mlp(x, *weights, self.backend))


class RGLRU(nnx.Module):
    """Parameters of an RG-LRU with block-diagonal gates (arXiv 2402.19427, section 2.4, equations 1 to 4)."""

    def __init__(self, config: ModelConfig, gate_dtype: jnp.dtype) -> None:
        blocks, size = config.num_heads, config.lru_width // config.num_heads
        self.gate_weight: nnx.Param[Any] = nnx.Param(jnp.zeros((blocks, size, 2 * size), gate_dtype))
        self.gate_bias = vector(blocks, 2 * size)
        self.a_param = vector(config.lru_width)


class RecurrentBlock(nnx.Module):
    """Recurrent block out(gelu(y(u)) * RG-LRU(conv(x(u)))) (arXiv 2402.19427, section 2.3); x and y are one array."""

    def __init__(self, context: LayerContext) -> None:
        config = context.config
        self.backend = context.backend
        self.xy = Dense(config.width, 2 * config.lru_width, context)
        self.conv_weight = vector(config.conv_width, config.lru_width)
        self.conv_bias = vector(config.lru_width)
        self.rg_lru = RGLRU(config, context.gate_dtype)
        self.collectives = context.collectives
        self.out = Dense(config.lru_width, config.width, context, is_summed=True)

    def __call__(
        self, u: Activations, state: RecurrentState, positions: Positions, block: int
    ) -> tuple[Activations, RecurrentState, LayerBlockStates | None]:
        project, groups = partial(self.xy, u), self.collectives.model
        new = recurrent_block(project, self._weights, state.conv, state.h, positions, block, groups, self.backend)
        kept = None
        if new.kept_h is not None and new.kept_conv is not None:
            kept = new.kept_h, new.kept_conv
        return self.out(new.mixed).reshape(u.shape), RecurrentState(new.h, new.conv), kept

    def verify(
        self, u: Float[Array, "M 1 D"], state: RecurrentState, positions: Int32[Array, "M 1"], pairs: Pairs, depth: int
    ) -> tuple[Float[Array, "M 1 D"], RecurrentStates]:
        """Computes several steps of each row, with the bits of single steps; returns the states after each."""
        xy, weights = self.xy(u), self._weights

        def step(
            offset: Array, carry: tuple[RecurrentState, RecurrentStates, Array]
        ) -> tuple[RecurrentState, RecurrentStates, Array]:
            state, states, mixed = carry
            own, at = pairs.at(offset, xy), jnp.where(offset < pairs.counts, pairs.at(offset, positions[:, 0]), -1)
            new = recurrent_block(
                lambda dtype: own, weights, state.conv, state.h, at[:, None], PREFILL_BLOCK, 1, self.backend
            )
            state = RecurrentState(new.h, new.conv)
            return state, states.put(offset, state), mixed.at[offset].set(new.mixed.reshape(mixed.shape[1:]))

        rows = pairs.counts.shape[0]
        nothing, mixed = (
            RecurrentStates.zeros(state, rows, depth),
            jnp.zeros((depth, rows, state.h.shape[-1]), xy.dtype),
        )
        carry = nothing.first, nothing, mixed
        _, states, mixed = jax.lax.fori_loop(0, pairs.depth, step, carry)
        return self.out(pairs.of_offsets(mixed)).reshape(u.shape), states

    @property
    def _weights(self) -> RecurrentWeights:
        rg_lru = self.rg_lru
        return RecurrentWeights(
            self.conv_weight[...],
            self.conv_bias[...],
            rg_lru.gate_weight.get_value(),
            rg_lru.gate_bias[...],
            rg_lru.a_param[...],
        )


class AttentionBlock(nnx.Module):
    """Local attention whose projections to queries, keys and values are one array.

    With G > 1 key heads, keys and values have an axis of them. On a mesh, they are sharded by heads if these divide
    evenly among the shards, or else replicated.
    """

    def __init__(self, context: LayerContext) -> None:
        self.config = config = context.config
        self.backend = context.backend
        self.collectives = context.collectives
        self.qkv = matrix(config.width + 2 * config.key_width, config.width, context.dtype)
        self.out = Dense(config.width, config.width, context, is_summed=True)

    def __call__(
        self, u: Activations, state: AttentionState, positions: Positions, block: int
    ) -> tuple[Activations, AttentionState, AttentionBlockStates | None]:
        block_states = None
        if u.shape[1] == 1:  # without a time axis, which would change every array's layout on a TPU
            mixed, rings = self._decode(*self._project(u[:, 0], positions[:, 0]), state.rings, positions)
        else:
            q, k, v = self._project(u, positions)
            held_k, held_v = (self._as_held(self._heads_first(self._all_key_heads(x))) for x in (k, v))
            mixed, rings = self._prefill(q, held_k, held_v, state.rings, positions, block)
            block_states = AttentionBlockStates(held_k, held_v)
        rows = mixed.reshape(*mixed.shape[:-2], -1).astype(u.dtype)
        return self.out(rows).reshape(u.shape), AttentionState(rings), block_states

    def verify(
        self, u: Float[Array, "M 1 D"], state: AttentionState, positions: Int32[Array, "M 1"], pairs: Pairs, depth: int
    ) -> tuple[Float[Array, "M 1 D"], AttentionStates]:
        """Computes several steps of each row, with the bits of single steps; returns rings and overwritten entries."""
        q, k, v = self._project(u[:, 0], positions[:, 0])
        new, heads = (q, self._as_held(k), self._as_held(v)), self.config.num_key_heads

        def step(offset: Array, carry: tuple[Rings, OldRows, Array]) -> tuple[Rings, OldRows, Array]:
            rings, old, mixed = carry
            q, k, v = jax.tree.map(partial(pairs.at, offset), new)
            at = jnp.where(offset < pairs.counts, pairs.at(offset, positions[:, 0]), -1)
            old = read_rows(heads_as_rows(rings, heads), old, for_each_head(at, heads), offset)
            old, q, k, v = jax.lax.optimization_barrier((old, q, k, v))  # reads before writes: no copy of the rings
            out, rings = decode_attention(q, k, v, rings, at, self.backend)
            return rings, old, mixed.at[offset].set(out.reshape(mixed.shape[1:]).astype(u.dtype))

        mixed = jnp.zeros((depth, pairs.counts.shape[0], math.prod(q.shape[1:])), u.dtype)
        nothing = no_rows(heads_as_rows(state.rings, heads), heads * pairs.counts.shape[0], depth)
        rings, old, mixed = jax.lax.fori_loop(0, pairs.depth, step, (state.rings, nothing, mixed))
        return self.out(pairs.of_offsets(mixed)).reshape(u.shape), AttentionStates(AttentionState(rings), old)

    def _project(
        self, u: Float[Array, "*rows D"], positions: Int32[Array, "*rows"]
    ) -> tuple[Float[Array, "*rows N d"], Float[Array, "*rows_and_heads d"], Float[Array, "*rows_and_heads d"]]:
        """Returns queries, keys and values of every token and of this shard's heads, queries and keys after RoPE."""
        size, keys = self.config.head_dim, key_heads(self.config).shard_size(self.collectives.model)
        qkv = product(u, self.qkv.get_value(), None, u.dtype, self.backend)
        width = qkv.shape[-1] - 2 * keys
        q, k, v = jnp.split(qkv, [width, width + keys], axis=-1)
        q = q.reshape(*u.shape[:-1], width // size, size)
        if self.config.num_key_heads > 1:
            k, v = (x.reshape(*u.shape[:-1], keys // size, size) for x in (k, v))
        q, k = apply_rope(q, k, positions, self.config.rope_theta)
        return q, k, v

    def _decode(
        self, q: Array, k: Array, v: Array, rings: Rings, positions: Int32[Array, "B 1"]
    ) -> tuple[Float[Array, "B N d"], Rings]:
        """Attends with all heads of this device's rows, and returns the outputs of this shard's heads of all rows."""
        count = q.shape[1] * self.collectives.model
        q, k, v = self._exchange_heads(q, k, v)
        held_k, held_v = self._as_held(k), self._as_held(v)
        own_positions = self.collectives.local_rows(positions[:, 0])
        mixed, rings = decode_attention(q, held_k, held_v, rings, own_positions, self.backend)
        if missing := count - mixed.shape[1]:
            mixed = jnp.pad(mixed, [(0, 0), (0, missing), (0, 0)])
        return self.collectives.all_to_all(mixed, split_axis=1, concat_axis=0), rings

    def _exchange_heads(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values of all heads of this device's rows.

        Padding behind the queries stays only with one key head, which it may share.
        """
        shards, heads = self.collectives.model, self.config.num_heads
        if not self._shards_keys:
            k, v = self.collectives.local_rows((k, v))
            q = self.collectives.all_to_all(q, split_axis=0, concat_axis=1)
            return q if self.config.num_key_heads == 1 else q[:, :heads], k, v
        ends = (q.shape[1], q.shape[1] + k.shape[1])
        joined = self.collectives.all_to_all(jnp.concatenate([q, k, v], axis=1), split_axis=0, concat_axis=1)
        by_shard = joined.reshape(joined.shape[0], shards, -1, joined.shape[2])
        q, k, v = (x.reshape(x.shape[0], -1, x.shape[3]) for x in jnp.split(by_shard, ends, axis=2))
        return q, k, v

    def _prefill(
        self, q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Positions, block: int
    ) -> tuple[Float[Array, "B T N d"], Rings]:
        """Attends with this shard's heads, and writes the keys and values of all heads."""
        if self.collectives.model == 1 or self.config.num_key_heads == 1:
            return prefill_attention(q, k, v, rings, positions, block, self.backend)
        own_k, own_v, own_rings = self._shared_key_heads(q.shape[2], (k, v, rings))
        mixed, _ = prefill_attention(q, own_k, own_v, own_rings, positions, block, self.backend)
        return mixed, write_window(rings, k, v, positions)

    def _shared_key_heads[Tree](self, queries: int, tree: Tree) -> Tree:
        """Returns the key heads of this shard's query heads, each for as many of them as evenly share one.

        Args:
          queries: Number of query heads of a shard, padding included.
          tree: Arrays with all key heads on their second axis.
        """
        group = self.config.num_heads // self.config.num_key_heads
        together = math.gcd(queries, group)
        first = self.collectives.shard_index * queries + together * jnp.arange(queries // together)
        shared = jnp.minimum(first // group, self.config.num_key_heads - 1)

        def take(x: Array) -> Array:
            taken = jnp.take(x, shared, axis=1)
            return taken[:, 0] if len(shared) == 1 else taken

        return jax.tree.map(take, tree)

    @property
    def _shards_keys(self) -> bool:
        """Whether each shard has the keys and values of some heads only."""
        shards = self.collectives.model
        return shards > 1 and key_heads(self.config).is_sharded(shards)

    def _all_key_heads(self, x: Array) -> Array:
        """Returns keys or values of all heads, given this shard's, in a chunk."""
        if not self._shards_keys:
            return x
        channels = x.reshape(*x.shape[:2], -1)
        gathered = self.collectives.all_gather_channels(channels, self.config.key_width)
        return gathered.reshape(*x.shape[:2], -1, x.shape[-1])

    def _heads_first(self, x: Array) -> Array:
        """Returns a chunk's keys or values with the axis of heads, if there is one, in front of that of tokens."""
        return x if self.config.num_key_heads == 1 else jnp.swapaxes(x, 1, 2)

    def _as_held(self, x: Float[Array, "B ... d"]) -> Vectors:
        """Returns keys or values as rings hold them."""
        if self.config.kv_dtype != "int8":
            return x
        heads = self.config.num_key_heads
        return rows_as_heads(quantize(heads_as_rows(x, heads)), heads)


TEMPORAL_BLOCKS: Final[dict[str, Callable[..., Any]]] = {"recurrent": RecurrentBlock, "attention": AttentionBlock}
"""Temporal block of each kind of layer in `LAYER_KINDS`.

Called as `RecurrentBlock` is, it takes normalised activations `[B, T, D]`, the layer's state, positions and the tokens
per block. It returns the change of the activations, the new state, and the block states if T > 1. For speculation, it
has a method `verify` too, as `RecurrentBlock` has."""


class ResidualBlock(nnx.Module):
    """Residual block (arXiv 2402.19427, section 2.1): pre-norm temporal block, then pre-norm MLP."""

    def __init__(self, context: LayerContext, kind: str) -> None:
        self.temporal_norm = RMSNorm(context.config, context.backend)
        self.temporal = TEMPORAL_BLOCKS[kind](context)
        self.mlp_norm = RMSNorm(context.config, context.backend)
        self.mlp = MLP(context)

    def __call__(
        self, x: Activations, state: LayerState, positions: Positions, block: int
    ) -> tuple[Activations, LayerState, LayerBlockStates | None]:
        mixed, new_state, block_states = self.temporal(self.temporal_norm(x), state, positions, block)
        x, u = self.mlp_norm.of_sum(x, mixed)
        return x + self.mlp(u), new_state, block_states

    def verify(
        self, x: Float[Array, "M 1 D"], state: LayerState, positions: Int32[Array, "M 1"], pairs: Pairs, depth: int
    ) -> tuple[Float[Array, "M 1 D"], VerifiedStates]:
        """Computes several steps of each row; see `Griffin.verify`."""
        mixed, states = self.temporal.verify(self.temporal_norm(x), state, positions, pairs, depth)
        x, u = self.mlp_norm.of_sum(x, mixed)
        return x + self.mlp(u), states


def apply_rope(
    q: Float[Array, "*rows N d"], k: Float[Array, "*rows_and_heads d"], positions: Int32[Array, "*rows"], theta: float
) -> tuple[Float[Array, "*rows N d"], Float[Array, "*rows_and_heads d"]]:
    """Returns queries and keys after RoPE, rotated in float32 and rounded to their dtype.

    Args:
      q: Queries.
      k: Keys `[*rows, d]`; with an axis of key heads, `[*rows, G, d]`.
      positions: Positions of the tokens.
      theta: Base of the frequencies.
    """
    angles = rope_angles(positions, q.shape[-1] // 4, theta)
    new_q = _rotate(q, angles[..., None, :])
    new_k = _rotate(k, angles if k.ndim < q.ndim else angles[..., None, :])
    return new_q.astype(q.dtype), new_k.astype(k.dtype)


def _rotate(x: Float[Array, "*heads d"], angles: Float32[Array, "*angles P"]) -> Float32[Array, "*heads d"]:
    """Applies RoPE to the first half of each head: element j is paired with element j + d/4."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    quarter = x.shape[-1] // 4
    a, b, rest = jnp.split(x, [quarter, 2 * quarter], axis=-1)
    turned = rounded(a * cos) - rounded(b * sin), rounded(b * cos) + rounded(a * sin)
    return jnp.concatenate([*turned, rest], axis=-1)


def rope_angles(positions: Int32[Array, "*rows"], pairs: int, theta: float) -> Float32[Array, "*rows P"]:
    """Returns position * theta^(-j / pairs) modulo 2π for each pair j, in [-π, π), exact to float32 at any position.

    A float32 product is off by 0.02 rad at position 2^20 and by 1 rad past 2^24. Frequencies are therefore 64-bit
    fractions of a turn that are multiplied as integers, whose overflow is the wanted modulo.
    """
    turns = theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
    fraction = [int(t * 2**64) for t in turns]
    high = jnp.array([f >> 32 for f in fraction], jnp.uint32)
    low = jnp.array([f & 0xFFFFFFFF for f in fraction], jnp.uint32)
    p = positions.astype(jnp.uint32)[..., None]
    whole = p * high + _multiply_high(p, low)
    return jax.lax.bitcast_convert_type(whole, jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2**32)


def _multiply_high(a: Array, b: Array) -> Array:
    """Returns the upper 32 bits of the 64-bit product of two uint32 arrays."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((middle & 0xFFFF) + a0 * b1 >> 16)

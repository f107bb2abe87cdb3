"""Layers of Griffin (arXiv 2402.19427, section 2) as RecurrentGemma (arXiv 2404.07839) configures them.

Letters in shapes: B rows, T time steps, D width, E RG-LRU width, F MLP width, N heads (and gate blocks), d head size,
V vocabulary. On a mesh, E, F, N and V are the sizes of one shard. `docs/reference/model.md` has the equations.

Weights are stored as [out, in], which CPUs read fastest, and projections that share an input are one array. Vectors
(biases, norm scales, convolution taps, Λ) and all arithmetic of the RG-LRU are float32 in any precision. `dtype` is the
dtype of matrices, quantised if int8; activations keep the dtype of the input.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from ...kernels import XLA, Backend, gated_mlp, int8_product, native, recurrent_block
from ...kernels.causal_conv1d import causal_conv1d, next_state, states_at_boundaries
from ...kernels.precision import product_precision
from ...kernels.rg_lru import log_decay_of, rg_lru
from ...kernels.window_attention import Vectors, decode_attention, prefill_attention, quantize
from .collectives import Collectives
from .config import BlockType, ModelConfig
from .quantization import Matrix, PackedGates, PackedMatrix, QuantizedMatrix, quantized_dot, zero_matrix
from .state import AttentionBlockStates, AttentionState, LayerBlockStates, RecurrentBlockStates, RecurrentState

_FLOAT32: Final = jnp.dtype("float32")


def matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> nnx.Param[Any]:
    """Returns a parameter for `dot`, whose `get_value` is a `Matrix`."""
    return nnx.Param(zero_matrix(outputs, inputs, dtype))


def _vector(*shape: int) -> nnx.Param[Any]:
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def dot(
    x: Float[Array, "*rows I"],
    weight: Matrix,
    bias: Float32[Array, " O"] | None = None,
    dtype: jnp.dtype = _FLOAT32,
    backend: Backend = XLA,
) -> Float[Array, "*rows O"]:
    """Returns x · weightᵀ + bias in `dtype`, summed in float32, or in int32 if the weight is quantised."""
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, PackedMatrix):
        y = _native_dot(rows, weight, bias, dtype)
    elif isinstance(weight, QuantizedMatrix) and int8_product.has_kernel(backend, weight.shape):
        assert backend.int8_product is not None
        y = backend.int8_product(rows, *weight, bias, dtype)
    else:
        y = _portable_dot(_pad_rows(rows, weight.dtype), weight)[: rows.shape[0]]
        y = (y if bias is None else y + bias).astype(dtype)
    return y.reshape(*x.shape[:-1], y.shape[1])


def _native_dot(
    x: Float[Array, "R I"], weight: PackedMatrix, bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    if weight.scale is None:
        return native.bf16_product(x, weight.values, bias, dtype)
    return native.int8_product(x, weight.values, weight.scale, bias, dtype)


def _portable_dot(x: Float[Array, "R I"], weight: Float[Array, "O I"] | QuantizedMatrix) -> Float32[Array, "R O"]:
    if isinstance(weight, QuantizedMatrix):
        return quantized_dot(x, weight)
    return jax.lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=product_precision(weight.dtype),
        preferred_element_type=jnp.float32,
    )


def _pad_rows(rows: Float[Array, "R *rest"], dtype: jnp.dtype) -> Float[Array, "R2 *rest"]:
    """Repeats rows up to a minimum number: below it XLA for CPUs takes a slower path, with other bits."""
    least = 8 if dtype == jnp.float32 else 2
    return jnp.concatenate([rows] * -(-least // rows.shape[0]))


class Dense(nnx.Module):
    """Linear layer y = x · Kᵀ + b, summed in float32 and rounded to the dtype of x.

    Args:
      inputs: Input width of the unsharded matrix.
      outputs: Output width of the unsharded matrix.
      dtype: Dtype of the matrix.
      backend: Backend of the product.
      psum_over: Mesh over which inputs are sharded and partial products are summed; None for whole inputs.
    """

    def __init__(
        self, inputs: int, outputs: int, dtype: jnp.dtype, backend: Backend, psum_over: Collectives | None = None
    ) -> None:
        self.backend = backend
        self.psum_over = psum_over or Collectives()
        self.weight = matrix(outputs, inputs, dtype)
        self.bias = _vector(outputs)

    def __call__(self, x: Float[Array, "*rows I"], dtype: jnp.dtype | None = None) -> Float[Array, "*rows O"]:
        """Returns y in `dtype`; None for that of x."""
        weight, dtype = self.weight.get_value(), dtype or x.dtype
        if self.psum_over.model == 1:
            return dot(x, weight, self.bias[...], dtype, self.backend)
        return self.psum_parts(dot(x, weight, dtype=dtype, backend=self.backend))

    def psum_parts(self, parts: Float[Array, "*rows O"]) -> Float[Array, "*rows O"]:
        """Returns the sum of the shards' partial products, plus the bias."""
        return (self.psum_over.psum(parts) + self.bias[...]).astype(parts.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm y = x * rsqrt(mean(x²) + eps) * (1 + scale), computed in float32."""

    def __init__(self, width: int, eps: float, backend: Backend) -> None:
        self.scale = _vector(width)
        self.eps = eps
        self.backend = backend

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        if self._is_native(x):
            return native.rms_norm(x.reshape(-1, x.shape[-1]), self.scale[...], self.eps).reshape(x.shape)
        wide = x.astype(jnp.float32)
        variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(variance + self.eps) * (1.0 + self.scale[...])).astype(x.dtype)

    def of_sum(
        self, x: Float[Array, "*rows D"], y: Float[Array, "*rows D"]
    ) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
        """Returns x + y and its norm."""
        if not self._is_native(x):
            return x + y, self(x + y)
        rows, others = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        total, normed = native.add_rms_norm(rows, others, self.scale[...], self.eps)
        return total.reshape(x.shape), normed.reshape(x.shape)

    def _is_native(self, x: Float[Array, "*rows D"]) -> bool:
        return self.backend.is_native and x.dtype == jnp.bfloat16 and x.shape[-1] % 16 == 0


class MLP(nnx.Module):
    """Gated MLP down(gelu(gate(x)) * up(x)) (arXiv 2402.19427, section 2.2)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, backend: Backend, collectives: Collectives) -> None:
        self.backend = backend
        self.gate_up = Dense(config.width, 2 * config.mlp_width, dtype, backend)
        self.down = Dense(config.mlp_width, config.width, dtype, backend, collectives)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        both, down = self.gate_up.weight.get_value(), self.down.weight.get_value()
        if isinstance(both, PackedMatrix) and isinstance(down, PackedMatrix) and both.num_strips % 2 == 0:
            return self._native(x.reshape(-1, x.shape[-1]), both, down).reshape(x.shape)
        if gated_mlp.has_kernel(self.backend, math.prod(x.shape[:-1]), down.dtype):
            return self._fused(x, self.backend.gated_mlp, (both,), (down,))
        if isinstance(down, QuantizedMatrix) and gated_mlp.has_int8_kernel(self.backend, both.shape, down.shape):
            return self._fused(x, self.backend.int8_gated_mlp, both, down)
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down((_gelu(gate) * up).astype(x.dtype))

    def _fused(
        self, x: Float[Array, "B T D"], kernel: Callable[..., Any] | None, gate_up: Any, down: Any
    ) -> Float[Array, "B T D"]:
        """Computes the MLP with one kernel, which takes the arrays of each matrix before its bias."""
        assert kernel is not None
        is_whole = self.down.psum_over.model == 1
        bias = self.down.bias[...] if is_whole else jnp.zeros_like(self.down.bias[...])
        rows = x.reshape(-1, x.shape[-1])
        y: Array = kernel(rows, *gate_up, self.gate_up.bias[...], *down, bias).reshape(x.shape)
        return y if is_whole else self.down.psum_parts(y)

    def _native(self, rows: Float[Array, "R D"], gate_up: PackedMatrix, down: PackedMatrix) -> Float[Array, "R D"]:
        biases = self.gate_up.bias[...], self.down.bias[...]
        if gate_up.scale is None or down.scale is None:
            return native.bf16_gated_mlp(rows, gate_up.values, biases[0], down.values, biases[1])
        return native.int8_gated_mlp(rows, gate_up.values, gate_up.scale, biases[0], down.values, down.scale, biases[1])


class RGLRU(nnx.Module):
    """RG-LRU with block-diagonal gates (arXiv 2402.19427, section 2.4, equations 1 to 4)."""

    def __init__(self, config: ModelConfig, gate_dtype: jnp.dtype, backend: Backend) -> None:
        self.backend = backend
        blocks, size = config.num_heads, config.lru_width // config.num_heads
        self.gate_weight: nnx.Param[Any] = nnx.Param(jnp.zeros((blocks, size, 2 * size), gate_dtype))
        self.gate_bias = _vector(blocks, 2 * size)
        self.a_param = _vector(config.lru_width)

    def __call__(
        self, x: Float32[Array, "B T E"], h0: Float32[Array, "B E"], positions: Int32[Array, "B T"]
    ) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
        input_gate, recurrence_gate = self._gates(x)
        log_decay = log_decay_of(self.a_param[...])
        return rg_lru(x, input_gate, recurrence_gate, log_decay, h0, positions, self.backend)

    def _gates(self, x: Float32[Array, "B T E"]) -> tuple[Float32[Array, "B T E"], Float32[Array, "B T E"]]:
        weight, bias = self.gate_weight.get_value(), self.gate_bias[...]
        blocks, size = bias.shape[0], bias.shape[1] // 2
        rows = _pad_rows(x.reshape(-1, blocks, size).astype(weight.dtype), weight.dtype)
        gates = jnp.einsum(
            "rni,nio->rno",
            rows,
            weight,
            precision=product_precision(weight.dtype),
            preferred_element_type=jnp.float32,
        )[: math.prod(x.shape[:2])]
        gates += bias
        return gates[..., :size].reshape(x.shape), gates[..., size:].reshape(x.shape)


class RecurrentBlock(nnx.Module):
    """Recurrent block out(gelu(y(u)) * RG-LRU(conv(x(u)))) (arXiv 2402.19427, section 2.3); x and y are one array."""

    def __init__(
        self, config: ModelConfig, dtype: jnp.dtype, gate_dtype: jnp.dtype, backend: Backend, collectives: Collectives
    ) -> None:
        self.xy = Dense(config.width, 2 * config.lru_width, dtype, backend)
        self.conv_weight = _vector(config.conv_width, config.lru_width)
        self.conv_bias = _vector(config.lru_width)
        self.rg_lru = RGLRU(config, gate_dtype, backend)
        self.collectives = collectives
        self.out = Dense(config.lru_width, config.width, dtype, backend, collectives)

    def __call__(
        self, u: Float[Array, "B T D"], state: RecurrentState, positions: Int32[Array, "B T"], block: int
    ) -> tuple[Float[Array, "B T D"], RecurrentState, RecurrentBlockStates | None]:
        if recurrent_block.has_kernel(self.rg_lru.backend, u.shape[1], self.rg_lru.gate_bias.shape[1] // 2):
            return self._fused(u, state, positions, block)
        gates = self.rg_lru.gate_weight.get_value()
        if isinstance(gates, PackedGates):
            return self._native(u, state, positions, block, gates)
        x, y = jnp.split(self.xy(u), 2, axis=-1)
        old = self._first_rows(state, u.shape[0])
        c, conv = causal_conv1d(x, self.conv_weight[...], self.conv_bias[...], old.conv, positions)
        h, last = self.rg_lru(c, old.h, positions)
        block_states = None
        if u.shape[1] > 1:
            block_states = RecurrentBlockStates(
                h[:, block - 1 :: block], states_at_boundaries(x, old.conv, positions, block)
            )
        new = self._with_first_rows(state, RecurrentState(last, conv))
        return self.out((h * _gelu(y)).astype(u.dtype)), new, block_states

    def _native(
        self,
        u: Float[Array, "B T D"],
        state: RecurrentState,
        positions: Int32[Array, "B T"],
        block: int,
        gates: PackedGates,
    ) -> tuple[Float[Array, "B T D"], RecurrentState, RecurrentBlockStates | None]:
        rg_lru = self.rg_lru
        taps, bias = self.conv_weight[...], self.conv_bias[...]
        weights = native.RecurrentWeights(taps, bias, gates.values, rg_lru.gate_bias[...], rg_lru.a_param[...])
        xy = self.xy(u)
        if u.shape[1] == 1:
            mixed, conv, h = native.recurrent_step(xy[:, 0], weights, state.conv, state.h, positions[:, 0])
            return self.out(mixed)[:, None], RecurrentState(h, conv), None
        mixed, conv, h, kept_conv, kept_h = native.recurrent_chunk(xy, weights, state.conv, state.h, positions, block)
        return self.out(mixed), RecurrentState(h, conv), RecurrentBlockStates(kept_h, kept_conv)

    def _first_rows(self, state: RecurrentState, rows: int) -> RecurrentState:
        """Returns the rows of a decode step; see `SlotStates.first`."""
        first = self.collectives.first_rows
        return RecurrentState(first(state.h, rows), first(state.conv, rows, axis=1))

    def _with_first_rows(self, state: RecurrentState, new: RecurrentState) -> RecurrentState:
        put = self.collectives.with_first_rows
        return RecurrentState(put(state.h, new.h), put(state.conv, new.conv, axis=1))

    def _fused(
        self, u: Float[Array, "B T D"], state: RecurrentState, positions: Int32[Array, "B T"], block: int
    ) -> tuple[Float[Array, "B T D"], RecurrentState, RecurrentBlockStates | None]:
        """Computes the block with one kernel between its projections; see `__call__`."""
        rg_lru, kernels = self.rg_lru, self.rg_lru.backend
        weights = (self.conv_weight[...], self.conv_bias[...], rg_lru.gate_weight[...], rg_lru.gate_bias[...])
        inputs = (*weights, rg_lru.a_param[...], state.conv, state.h)
        if u.shape[1] == 1:
            assert kernels.recurrent_step is not None
            xy = self.xy(u, _FLOAT32 if kernels.step_takes_sums else None)
            mixed, conv, h = kernels.recurrent_step(xy[:, 0], *inputs, positions[:, 0], groups=self.collectives.model)
            return self.out(mixed)[:, None], RecurrentState(h, conv), None
        assert kernels.recurrent_chunk is not None
        xy = self.xy(u)
        mixed, h, between = kernels.recurrent_chunk(xy, *inputs, positions, every=block)
        x = xy[..., : h.shape[1]]
        block_states = RecurrentBlockStates(between, states_at_boundaries(x, state.conv, positions, block))
        return self.out(mixed), RecurrentState(h, next_state(x, state.conv, positions)), block_states


class AttentionBlock(nnx.Module):
    """Local multi-query attention (arXiv 2402.19427, section 2.3): N query heads share one key and one value head."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, backend: Backend, collectives: Collectives) -> None:
        self.config = config
        self.backend = backend
        self.collectives = collectives
        self.qkv = matrix(config.width + 2 * config.head_dim, config.width, dtype)
        self.out = Dense(config.width, config.width, dtype, backend, collectives)

    def __call__(
        self, u: Float[Array, "B T D"], state: AttentionState, positions: Int32[Array, "B T"], block: int
    ) -> tuple[Float[Array, "B T D"], AttentionState, AttentionBlockStates | None]:
        block_states = None
        if u.shape[1] == 1:  # without a time axis, which would change every array's layout on a TPU
            q, k, v = self._project(u[:, 0], positions[:, 0])
            own_k, own_v, own_positions = self.collectives.local_rows((k, v, positions[:, 0]))
            own_q = self.collectives.all_to_all(q, split_axis=0, concat_axis=1)
            mixed, rings = decode_attention(own_q, own_k, own_v, state.rings, own_positions, self.backend)
            mixed = self.collectives.all_to_all(mixed, split_axis=1, concat_axis=0)
        else:
            ((whole,),) = state.rings
            q, k, v = self._project(u, positions)
            mixed, whole = prefill_attention(q, k, v, whole, positions, block, self.backend)
            rings, block_states = ((whole,),), AttentionBlockStates(k, v)
        rows = mixed.reshape(*mixed.shape[:-2], -1).astype(u.dtype)
        return self.out(rows).reshape(u.shape), AttentionState(rings), block_states

    def _project(
        self, u: Float[Array, "*rows D"], positions: Int32[Array, "*rows"]
    ) -> tuple[Float[Array, "*rows N d"], Vectors, Vectors]:
        """Returns queries of this shard's heads, keys and values of every token, after RoPE and as rings hold them."""
        size = self.config.head_dim
        qkv = dot(u, self.qkv.get_value(), dtype=u.dtype, backend=self.backend)
        width = qkv.shape[-1] - 2 * size
        q, k, v = jnp.split(qkv, [width, width + size], axis=-1)
        q = q.reshape(*u.shape[:-1], width // size, size)
        angles = rope_angles(positions, size // 4, self.config.rope_theta)
        q, k = _rotate(q, angles[..., None, :]), _rotate(k, angles)
        q, k = q.astype(u.dtype), k.astype(u.dtype)
        return (q, quantize(k), quantize(v)) if self.config.kv_dtype == "int8" else (q, k, v)


class ResidualBlock(nnx.Module):
    """Residual block (arXiv 2402.19427, section 2.1): pre-norm temporal block, then pre-norm MLP."""

    def __init__(
        self,
        config: ModelConfig,
        kind: BlockType,
        dtype: jnp.dtype,
        gate_dtype: jnp.dtype,
        backend: Backend,
        collectives: Collectives,
    ) -> None:
        self.temporal_norm = RMSNorm(config.width, config.rms_norm_eps, backend)
        self.temporal: RecurrentBlock | AttentionBlock = (
            AttentionBlock(config, dtype, backend, collectives)
            if kind == "attention"
            else RecurrentBlock(config, dtype, gate_dtype, backend, collectives)
        )
        self.mlp_norm = RMSNorm(config.width, config.rms_norm_eps, backend)
        self.mlp = MLP(config, dtype, backend, collectives)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: RecurrentState | AttentionState,
        positions: Int32[Array, "B T"],
        block: int,
    ) -> tuple[Float[Array, "B T D"], RecurrentState | AttentionState, LayerBlockStates | None]:
        u = self.temporal_norm(x)
        new_state: RecurrentState | AttentionState
        block_states: LayerBlockStates | None
        if isinstance(self.temporal, AttentionBlock):
            assert isinstance(state, AttentionState)
            mixed, new_state, block_states = self.temporal(u, state, positions, block)
        else:
            assert isinstance(state, RecurrentState)
            mixed, new_state, block_states = self.temporal(u, state, positions, block)
        x, u = self.mlp_norm.of_sum(x, mixed)
        return x + self.mlp(u), new_state, block_states


def _gelu(x: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True)


def _rotate(x: Float[Array, "*heads d"], angles: Float32[Array, "*angles P"]) -> Float32[Array, "*heads d"]:
    """Applies RoPE to the first half of each head: element j is paired with element j + d/4."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    quarter = x.shape[-1] // 4
    a, b, rest = jnp.split(x, [quarter, 2 * quarter], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


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

"""Layers of Griffin (arXiv 2402.19427, section 2) as RecurrentGemma (arXiv 2404.07839) configures them.

Letters in shapes: B rows, T time steps, D width, E RG-LRU width, F MLP width, N heads (and gate blocks), d head size,
V vocabulary. On a mesh, E, F, N and V are the sizes of one shard. `docs/reference/model.md` has the equations.

Weights are stored as [out, in], which CPUs read fastest, and projections that share an input are one array. Vectors
(biases, norm scales, convolution taps, Λ) and all arithmetic of the RG-LRU are float32 in any precision. `dtype` is the
dtype of matrices, quantised if int8; activations keep the dtype of the input.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from ...kernels import Backend
from ...kernels.products import gated_mlp
from ...kernels.recurrent_block import RecurrentWeights, recurrent_block
from ...kernels.rms_norm import add_rms_norm, rms_norm
from ..types.config import PREFILL_BLOCK
from .attention import AttentionBlock
from .collectives import Collectives
from .config import ModelConfig
from .dense import Dense, vector
from .layer_kinds import LayerState, RecurrentState
from .state import LayerBlockStates
from .verified_states import Pairs, RecurrentStates, VerifiedStates


class RMSNorm(nnx.Module):
    """RMSNorm y = x * rsqrt(mean(x²) + eps) * (1 + scale), computed in float32."""

    def __init__(self, width: int, eps: float, backend: Backend) -> None:
        self.scale = vector(width)
        self.eps = eps
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

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, backend: Backend, collectives: Collectives) -> None:
        self.backend = backend
        self.gate_up = Dense(config.width, 2 * config.mlp_width, dtype, backend)
        self.down = Dense(config.mlp_width, config.width, dtype, backend, collectives)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
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

    def __init__(
        self, config: ModelConfig, dtype: jnp.dtype, gate_dtype: jnp.dtype, backend: Backend, collectives: Collectives
    ) -> None:
        self.backend = backend
        self.xy = Dense(config.width, 2 * config.lru_width, dtype, backend)
        self.conv_weight = vector(config.conv_width, config.lru_width)
        self.conv_bias = vector(config.lru_width)
        self.rg_lru = RGLRU(config, gate_dtype)
        self.collectives = collectives
        self.out = Dense(config.lru_width, config.width, dtype, backend, collectives)

    def __call__(
        self, u: Float[Array, "B T D"], state: RecurrentState, positions: Int32[Array, "B T"], block: int
    ) -> tuple[Float[Array, "B T D"], RecurrentState, LayerBlockStates | None]:
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

        mixed = jnp.zeros((depth, pairs.counts.shape[0], state.h.shape[-1]), xy.dtype)
        carry = state, RecurrentStates.zeros(state, depth), mixed
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


TEMPORAL_BLOCKS: Final[dict[str, Callable[..., Any]]] = {"recurrent": RecurrentBlock, "attention": AttentionBlock}
"""Temporal block of each kind of layer in `LAYER_KINDS`.

Called as `RecurrentBlock` is, it takes normalised activations `[B, T, D]`, the layer's state, positions and the tokens
per block. It returns the change of the activations, the new state, and the block states if T > 1. For speculation, it
has a method `verify` too, as `RecurrentBlock` has."""


class ResidualBlock(nnx.Module):
    """Residual block (arXiv 2402.19427, section 2.1): pre-norm temporal block, then pre-norm MLP."""

    def __init__(
        self,
        config: ModelConfig,
        kind: str,
        dtype: jnp.dtype,
        gate_dtype: jnp.dtype,
        backend: Backend,
        collectives: Collectives,
    ) -> None:
        self.temporal_norm = RMSNorm(config.width, config.rms_norm_eps, backend)
        self.temporal = TEMPORAL_BLOCKS[kind](config, dtype, gate_dtype, backend, collectives)
        self.mlp_norm = RMSNorm(config.width, config.rms_norm_eps, backend)
        self.mlp = MLP(config, dtype, backend, collectives)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: LayerState,
        positions: Int32[Array, "B T"],
        block: int,
    ) -> tuple[Float[Array, "B T D"], LayerState, LayerBlockStates | None]:
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

"""Griffin model (arXiv 2402.19427): embedding, residual blocks, final norm and tied output."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import Array, Float, Float32, Int32

from ...kernels import native
from ..core.sampling_params import NO_TOKEN
from ..platform import PORTABLE, Platform
from .collectives import Collectives
from .config import ModelConfig
from .layers import ResidualBlock, RMSNorm, dot, matrix
from .quantization import PackedMatrix, gather_rows
from .state import BlockStates, LayerBlockStates, LayerState, ModelState, stack_block_states

type Params = Any
"""Parameters of a model as a pytree of arrays."""


class Griffin(nnx.Module):
    """Griffin model; recurrent state is passed to its methods and returned by them.

    Args:
      config: The model's config.
      dtype: Dtype of the activations and, by default, of the matrices.
      platform: Platform that the model is compiled for.
      matrix_dtype: Dtype of the matrices except gates; None means `dtype`, int8 quantises them.
      collectives: Collectives of the mesh over which the model is sharded. Methods then run under `jax.shard_map`, on
        one shard's parameters and state.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: jnp.dtype,
        platform: Platform = PORTABLE,
        matrix_dtype: jnp.dtype | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        self.config = config
        self.collectives = collectives or Collectives()
        self.dtype = dtype
        self.platform = platform
        matrices, gates = matrix_dtype or dtype, jnp.dtype(platform.gate_dtype or dtype)
        self.embedding = matrix(config.vocab_size, config.width, matrices)
        self.blocks = nnx.List(
            ResidualBlock(config, kind, matrices, gates, platform.kernels, self.collectives)
            for kind in config.block_types
        )
        self.final_norm = RMSNorm(config.width, config.rms_norm_eps, platform.kernels)

    def __call__(
        self, tokens: Int32[Array, "B T"], positions: Int32[Array, "B T"], state: ModelState, block: int
    ) -> tuple[Float[Array, "B T D"], ModelState]:
        """Runs all layers on a chunk of tokens.

        Args:
          tokens: Token ids; anything in padding.
          positions: Position of each token in its document; 0 begins one, negative is padding (see `roost.kernels`).
          state: State after the tokens before this chunk. In a decode step it may have more rows than there are tokens;
            see `SlotStates.first`.
          block: Tokens per block of attention; T is 1 or a multiple of it. Splitting a prompt at any block boundaries
            gives the same bits.

        Returns:
          The activations after the final norm, for `logits`, and the state after the chunk.
        """
        x, new_state, _ = self._run_layers(self.embed(tokens), positions, state, block, range(len(self.blocks)))
        return x, new_state

    def prefill(
        self, x: Float[Array, "B T D"], positions: Int32[Array, "B T"], state: ModelState, block: int, layers: range
    ) -> tuple[Float[Array, "B T D"], ModelState, BlockStates]:
        """Runs some layers on a chunk of several tokens.

        Args:
          x: Activations from `embed` or from the preceding layers.
          positions: Position of each token; see `__call__`.
          state: State of these layers after the tokens before this chunk.
          block: Tokens per block of attention; see `__call__`.
          layers: Indices of the layers.

        Returns:
          The activations for the next layer or, after the last one, after the final norm; the state after the chunk;
          and the states at its block boundaries.
        """
        x, new_state, block_states = self._run_layers(x, positions, state, block, layers)
        return x, new_state, stack_block_states(block_states, block)

    def _run_layers(
        self, x: Float[Array, "B T D"], positions: Int32[Array, "B T"], state: ModelState, block: int, layers: range
    ) -> tuple[Float[Array, "B T D"], ModelState, list[LayerBlockStates | None]]:
        new_state: list[LayerState] = []
        block_states: list[LayerBlockStates | None] = []
        for layer, layer_state in zip(self.blocks[layers.start : layers.stop], state, strict=True):
            if self.platform.jits_layers:
                x, layer_state, layer_block_states = _call_layer(*nnx.split(layer), x, layer_state, positions, block)
            else:
                x, layer_state, layer_block_states = layer(x, layer_state, positions, block)
            if self.platform.has_layer_barrier and x.shape[1] > 1:
                x = jax.lax.optimization_barrier(x)
            new_state.append(layer_state)
            block_states.append(layer_block_states)
        x = self.final_norm(x) if layers.stop == len(self.blocks) else x
        return x, tuple(new_state), block_states

    def embed(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the scaled embeddings, which are the first layer's input."""
        x = self._look_up(tokens)
        if self.config.scale_embeddings:
            x *= jnp.asarray(self.config.width**0.5, jnp.bfloat16).astype(x.dtype)
        return x

    def _look_up(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.embedding.get_value()
        if self.collectives.model == 1:
            return gather_rows(table, tokens, self.dtype)
        count = table.shape[0]
        local = tokens - self.collectives.token_offset(count)
        is_here = (local >= 0) & (local < count)
        x = gather_rows(table, jnp.clip(local, 0, count - 1), self.dtype)
        return self.collectives.psum(jnp.where(is_here[..., None], x, jnp.zeros_like(x)))

    def logits(self, x: Float[Array, "*rows D"]) -> Float32[Array, "*own V"]:
        """Returns next-token logits after the soft cap, for all rows or, on a mesh, for this shard's rows."""
        table, cap = self.embedding.get_value(), self.config.logits_soft_cap
        if isinstance(table, PackedMatrix):
            native_logits = native.logits(x.reshape(-1, x.shape[-1]), table.values, table.scale, cap)
            return native_logits.reshape(*x.shape[:-1], -1)
        logits = self.collectives.all_to_all(dot(x, table), split_axis=0, concat_axis=1)
        logits = logits[..., : self.config.vocab_size]
        return cap * jnp.tanh(logits / cap) if cap else logits

    @property
    def skips_logits(self) -> bool:
        """Whether a step of greedy rows takes `argmax` without materializing the logits."""
        return self.platform.skips_logits or isinstance(self.embedding.get_value(), PackedMatrix)

    def argmax(self, x: Float[Array, "B D"]) -> Int32[Array, " B"]:
        """Returns the token with the largest logit for each of all rows; the lowest id among equals."""
        table = self.embedding.get_value()
        if isinstance(table, PackedMatrix):
            tokens, largest = native.argmax(x, table.values, table.scale, self.config.logits_soft_cap)
            return jnp.where(jnp.isfinite(largest), tokens, NO_TOKEN)  # as the sampler does
        if self.collectives.model == 1:
            return jnp.argmax(self.logits(x), axis=-1).astype(jnp.int32)
        logits = dot(x, self.embedding.get_value())  # the soft cap keeps the order
        first = self.collectives.token_offset(logits.shape[-1])
        is_token = first + jnp.arange(logits.shape[-1]) < self.config.vocab_size
        logits = jnp.where(is_token, logits, -jnp.inf)
        best, token = jnp.max(logits, axis=-1), first + jnp.argmax(logits, axis=-1).astype(jnp.int32)
        each, tokens = self.collectives.all_gather_rows((best[None], token[None]))  # [M, B]
        return jnp.take_along_axis(tokens, jnp.argmax(each, axis=0)[None], axis=0)[0]


@partial(jax.jit, static_argnames=("graph", "block"))
def _call_layer(
    graph: nnx.GraphDef[ResidualBlock],
    params: Params,
    x: Float[Array, "B T D"],
    state: LayerState,
    positions: Int32[Array, "B T"],
    block: int,
) -> tuple[Float[Array, "B T D"], LayerState, LayerBlockStates | None]:
    """Calls a layer as a jitted function, so that layers of the same kind are traced once."""
    layer: ResidualBlock = nnx.merge(graph, params)
    return layer(x, state, positions, block)


def abstract_model(
    config: ModelConfig,
    dtype: jnp.dtype,
    platform: Platform = PORTABLE,
    matrix_dtype: jnp.dtype | None = None,
    collectives: Collectives | None = None,
) -> tuple[nnx.GraphDef[Griffin], Params]:
    """Returns the graph of a model (see `Griffin`) and the shapes of its unsharded parameters; allocates nothing."""
    with use_abstract_mesh(AbstractMesh((), ())):  # within another one, `nnx.eval_shape` drops the scales of matrices
        model = nnx.eval_shape(lambda: Griffin(config, dtype, platform, matrix_dtype, collectives))
    graph, params = nnx.split(model)
    return graph, nnx.to_pure_dict(params)

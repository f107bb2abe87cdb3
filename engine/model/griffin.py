"""Griffin model (arXiv 2402.19427): embedding, residual blocks, final norm and tied output."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import Array, Float, Float32, Int32

from ...kernels import products
from ...kernels.arithmetic import rounded
from ...kernels.matrices import Int4Matrix, gather_rows, is_quantized, table_dtype, takes_inputs
from ...kernels.products import product
from ..devices.platform import PORTABLE, Platform
from ..types.errors import ConfigError
from .config import ModelConfig, Params
from .layer_kinds import LayerState, layer_matrices
from .layers import Activations, LayerContext, Positions, ResidualBlock, RMSNorm, matrix
from .sharding import Collectives
from .speculation import Pairs, VerifiedStates
from .state import BlockStates, LayerBlockStates, ModelState, stack_block_states, state_layout


class Griffin(nnx.Module):
    """Griffin model; recurrent state is passed to its methods and returned by them.

    Args:
      config: The model's config.
      dtype: Dtype of the activations and, by default, of the matrices.
      platform: Platform that the model is compiled for.
      matrix_dtype: Dtype of the matrices except gates; None means `dtype`, int8 and int4 quantise them. The
        embedding is int8 if the matrices are int4.
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
        self.embedding = matrix(config.vocab_size, config.width, table_dtype(matrices))
        context = LayerContext(config, matrices, gates, platform.kernels, self.collectives)
        self.blocks = nnx.List(ResidualBlock(context, kind) for kind in config.block_types)
        self.final_norm = RMSNorm(config, platform.kernels)

    def __call__(
        self, tokens: Int32[Array, "B T"], positions: Positions, state: ModelState, block: int
    ) -> tuple[Activations, ModelState]:
        """Runs all layers on a chunk of tokens.

        Args:
          tokens: Token ids; anything in padding.
          positions: Position of each token in its document; 0 begins one, negative is padding (see `roost.kernels`).
          state: State after the tokens before this chunk. In a decode step it may have more rows than there are tokens;
            see `SlotStates`.
          block: Tokens per block of attention; T is 1 or a multiple of it. Splitting a prompt at any block boundaries
            gives the same bits.

        Returns:
          The activations after the final norm, for `logits`, and the state after the chunk.
        """
        x, new_state, _ = self._run_layers(self.embed(tokens), positions, state, block, range(len(self.blocks)))
        return x, new_state

    def prefill(
        self, x: Activations, positions: Positions, state: ModelState, block: int, layers: range
    ) -> tuple[Activations, ModelState, BlockStates]:
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
        layout, kinds = state_layout(self.config, self.dtype.name), self.config.block_types[layers.start : layers.stop]
        return x, new_state, stack_block_states(layout, kinds, block_states, block)

    def verify(
        self, tokens: Int32[Array, " M"], positions: Int32[Array, " M"], state: ModelState, pairs: Pairs, depth: int
    ) -> tuple[Float[Array, "M D"], tuple[VerifiedStates, ...]]:
        """Runs all layers on several tokens of each row, with the bits of as many decode steps.

        Matrices are read once for all tokens; only what depends on a row's earlier tokens is computed token by token.
        A single device is assumed.

        Args:
          tokens: Token of each pair.
          positions: Position of each pair; negative in padding.
          state: State of the rows before their first token; see `__call__`.
          pairs: Rows and positions of the tokens.
          depth: Maximum number of tokens of a row, at most the window.

        Returns:
          The activations after the final norm, and the states from which `keep` takes the ones of accepted tokens.
        """
        x, states = self.embed(tokens[:, None]), []
        for layer, layer_state in zip(self.blocks, state, strict=True):
            x, verified = _verify_layer(*nnx.split(layer), x, layer_state, positions[:, None], pairs, depth)
            states.append(verified)
        return self.final_norm(x)[:, 0], tuple(states)

    def _run_layers(
        self, x: Activations, positions: Positions, state: ModelState, block: int, layers: range
    ) -> tuple[Activations, ModelState, list[LayerBlockStates | None]]:
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

    def embed(self, tokens: Int32[Array, "B T"]) -> Activations:
        """Returns the scaled embeddings, which are the first layer's input."""
        return scaled_embeddings(self.config, self._look_up(tokens))

    def _look_up(self, tokens: Int32[Array, "B T"]) -> Activations:
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
        if self.collectives.model == 1:
            return products.logits(x, table, cap, self.platform.kernels)
        own = self.collectives.all_to_all(product(x, table), split_axis=0, concat_axis=1)
        return products.soft_cap(own[..., : self.config.vocab_size], cap)

    @property
    def skips_logits(self) -> bool:
        """Whether a step of greedy rows takes `argmax` without materializing the logits."""
        return self.platform.skips_logits or products.has_argmax_without_logits(self.embedding.get_value())

    def argmax(self, x: Float[Array, "B D"]) -> Int32[Array, " B"]:
        """Returns the token with the largest logit for every row of all shards; the lowest id among equals."""
        table = self.embedding.get_value()
        if self.collectives.model == 1:
            return products.argmax(x, table, self.config.logits_soft_cap, self.platform.kernels)
        logits = product(x, table)  # the soft cap keeps the order
        first = self.collectives.token_offset(logits.shape[-1])
        is_token = first + jnp.arange(logits.shape[-1]) < self.config.vocab_size
        logits = jnp.where(is_token, logits, -jnp.inf)
        best, token = jnp.max(logits, axis=-1), first + jnp.argmax(logits, axis=-1).astype(jnp.int32)
        each, tokens = self.collectives.all_gather_rows((best[None], token[None]))  # [M, B]
        return jnp.take_along_axis(tokens, jnp.argmax(each, axis=0)[None], axis=0)[0]


def scaled_embeddings(config: ModelConfig, x: Activations) -> Activations:
    """Returns the first layer's input, given rows of the embedding."""
    return rounded(x * jnp.asarray(config.width**0.5, jnp.bfloat16).astype(x.dtype)) if config.scale_embeddings else x


@partial(jax.jit, static_argnames=("graph", "block"))
def _call_layer(
    graph: nnx.GraphDef[ResidualBlock],
    params: Params,
    x: Activations,
    state: LayerState,
    positions: Positions,
    block: int,
) -> tuple[Activations, LayerState, LayerBlockStates | None]:
    """Calls a layer as a jitted function, so that layers of the same kind are traced once."""
    layer: ResidualBlock = nnx.merge(graph, params)
    return layer(x, state, positions, block)


@partial(jax.jit, static_argnames=("graph", "depth"))
def _verify_layer(
    graph: nnx.GraphDef[ResidualBlock],
    params: Params,
    x: Float[Array, "M 1 D"],
    state: LayerState,
    positions: Int32[Array, "M 1"],
    pairs: Pairs,
    depth: int,
) -> tuple[Float[Array, "M 1 D"], VerifiedStates]:
    """Calls `ResidualBlock.verify` as a jitted function, so that layers of the same kind are traced once."""
    layer: ResidualBlock = nnx.merge(graph, params)
    return layer.verify(x, state, positions, pairs, depth)


def check_int4_inputs(config: ModelConfig) -> None:
    """Checks that int4 takes the sizes of the model's matrices.

    Raises:
      ConfigError: It does not take the inputs of a matrix.
    """
    odd = next((inputs for _, inputs in layer_matrices(config) if not takes_inputs(inputs)), None)
    if odd is not None:
        raise ConfigError(f"quantize int4 takes widths that are multiples of 32, and the model has {odd}; use int8")


def abstract_model(
    config: ModelConfig,
    dtype: jnp.dtype,
    platform: Platform = PORTABLE,
    matrix_dtype: jnp.dtype | None = None,
    collectives: Collectives | None = None,
) -> tuple[nnx.GraphDef[Griffin], Params]:
    """Returns the graph of a model (see `Griffin`) and the shapes of its unsharded parameters; allocates nothing.

    Raises:
      ConfigError: Int4 does not take the sizes of the model's matrices.
    """
    if matrix_dtype is not None and matrix_dtype.name == "int4":
        check_int4_inputs(config)
    with use_abstract_mesh(AbstractMesh((), ())):  # within another one, `nnx.eval_shape` drops the scales of matrices
        model = nnx.eval_shape(lambda: Griffin(config, dtype, platform, matrix_dtype, collectives))
    graph, params = nnx.split(model)

    def in_groups(leaf: Any) -> Any:
        return leaf.in_groups(config.int4_group_size) if isinstance(leaf, Int4Matrix) else leaf

    return graph, jax.tree.map(in_groups, nnx.to_pure_dict(params), is_leaf=is_quantized)

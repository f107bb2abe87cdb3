"""Depthwise causal convolution of the recurrent block (arXiv 2402.19427, section 2.3), with carried inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..arithmetic import rounded


def causal_conv1d(
    x: Float[Array, "B T E"],
    weight: Float32[Array, "K E"],
    bias: Float32[Array, " E"],
    state: Float[Array, "K1 B E"],
    positions: Int32[Array, "B T"],
) -> tuple[Float32[Array, "B T E"], Float[Array, "K1 B E"]]:
    """Computes y[t] = bias + Σₛ weight[K-1-s] * x[t-s] for s in 0 … K-1, summed in float32.

    Args:
      x: Inputs.
      weight: Taps; the last one multiplies the current token.
      bias: Bias of each channel.
      state: The K - 1 inputs before this chunk, oldest first.
      positions: Position of each token in its document; see `roost.kernels`. Inputs of an earlier document count as 0.

    Returns:
      The outputs, and the K - 1 inputs before the next chunk.
    """
    steps, taps = x.shape[1], weight.shape[0]
    history = jnp.concatenate([jnp.moveaxis(state, 0, 1).astype(x.dtype), x], axis=1)
    terms = []
    for s in range(taps):
        shifted = history[:, taps - 1 - s : taps - 1 - s + steps].astype(jnp.float32)
        terms.append(jnp.where((positions >= s)[..., None], rounded(shifted * weight[taps - 1 - s]), 0.0))
    y = jnp.zeros(x.shape, jnp.float32)
    for term in terms:
        y += term
    return y + bias, next_state(x, state, positions)


def next_state(
    x: Float[Array, "B T E"], state: Float[Array, "K1 B E"], positions: Int32[Array, "B T"]
) -> Float[Array, "K1 B E"]:
    """Returns the last K - 1 inputs of each row before its padding; see `causal_conv1d`."""
    history = jnp.concatenate([jnp.moveaxis(state, 0, 1).astype(x.dtype), x], axis=1)
    return _last_inputs(history, positions, state.shape[0]).astype(state.dtype)


def states_at_boundaries(
    x: Float[Array, "B T E"], state: Float[Array, "K1 B E"], positions: Int32[Array, "B T"], every: int
) -> Float[Array, "B M K1 E"]:
    """Returns the state after every `every` steps, as `next_state` would for a chunk that ends there."""
    history = jnp.concatenate([jnp.moveaxis(state, 0, 1).astype(x.dtype), x], axis=1)
    steps, lengths = jnp.arange(every, x.shape[1] + 1, every), jnp.sum(positions >= 0, axis=1)

    def take(row: Float[Array, "H E"], length: Int32[Array, ""]) -> Float[Array, "M K1 E"]:
        ends = jnp.minimum(steps, length)
        return row[ends[:, None] + jnp.arange(state.shape[0])]

    return jax.vmap(take)(history, lengths).astype(state.dtype)


def _last_inputs(history: Float[Array, "B H E"], positions: Int32[Array, "B T"], count: int) -> Float[Array, "K1 B E"]:
    """Returns the last `count` inputs of each row before its padding."""
    if positions.shape[1] == 1:
        return jnp.moveaxis(jnp.where(positions[..., None] >= 0, history[:, 1:], history[:, :-1]), 1, 0)
    lengths = jnp.sum(positions >= 0, axis=1)
    last = jax.vmap(lambda row, n: jax.lax.dynamic_slice_in_dim(row, n, count))(history, lengths)
    return jnp.moveaxis(last, 1, 0)

"""Recurrent block as separate operations, for every backend, and the arguments and results of all its implementations.

The operations are the depthwise causal convolution (arXiv 2402.19427, section 2.3), the gates, and the real-gated
linear recurrent unit (section 2.4). The RG-LRU is a loop over time: the fastest form measured on CPUs, with bits that
no split of a sequence changes. It alone has gradients, with which tools/train_demo.py trains.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..arithmetic import first_rows, gelu, product_precision, rounded, with_first_rows
from ..backend import XLA, Backend
from ..matrices import PackedGates
from ..products import pad_rows


class RecurrentWeights(NamedTuple):
    """Weights of a recurrent block between its projections.

    Attributes:
      conv_weight: Taps; see `causal_conv1d`.
      conv_bias: Bias of the convolution.
      gate_weight: Weights of the N diagonal gate blocks, the input gate's columns first; or these, packed.
      gate_bias: Biases of the gates.
      a_param: Λ of the RG-LRU.
    """

    conv_weight: Float32[Array, "K E"]
    conv_bias: Float32[Array, " E"]
    gate_weight: Float[Array, "N e e2"] | PackedGates
    gate_bias: Float32[Array, "N e2"]
    a_param: Float32[Array, " E"]

    @property
    def gate_block(self) -> int:
        """Number of channels of a gate block."""
        return self.gate_bias.shape[1] // 2


class RecurrentInputs(NamedTuple):
    """Everything that a recurrent block reads but its input projections; see `recurrent_block`.

    Attributes:
      weights: Weights of the block.
      conv: State of the convolution.
      h: State of the RG-LRU.
      positions: Positions of the tokens, `[B, T]`; `[B]` for kernels of a single step.
    """

    weights: RecurrentWeights
    conv: Float[Array, "K1 P E"]
    h: Float32[Array, "P E"]
    positions: Int32[Array, "*tokens"]

    @property
    def of_step(self) -> "RecurrentInputs":
        """The inputs of a single step without the axis of time."""
        return self._replace(positions=self.positions[:, 0])


class Recurrence(NamedTuple):
    """Results of a recurrent block between its projections.

    Attributes:
      mixed: Inputs of the output projection, `[B, T, E]`; without the axis of time from kernels of a single step.
      conv: New state of the convolution.
      h: New state of the RG-LRU.
      kept_conv: State of the convolution after every `every` steps, of which there are M; None for a single step.
      kept_h: State of the RG-LRU likewise.
    """

    mixed: Float[Array, "*tokens E"]
    conv: Float[Array, "K1 P E"]
    h: Float32[Array, "P E"]
    kept_conv: Float[Array, "B M K1 E"] | None = None
    kept_h: Float32[Array, "B M E"] | None = None


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


MAX_SQRT_GRADIENT: Final = 1000.0
"""Maximum derivative of the square root in training; the exact one diverges as a approaches 1."""


def rg_lru(
    x: Float32[Array, "B T E"],
    input_gate: Float32[Array, "B T E"],
    recurrence_gate: Float32[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    backend: Backend = XLA,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Computes h[t] = a[t] * h[t-1] + sqrt(1 - a[t]²) * i[t] * x[t]; at position 0, h[t] = i[t] * x[t].

    Here i = sigmoid(input_gate), r = sigmoid(recurrence_gate) and a = exp(log_decay * r).

    Args:
      x: Inputs.
      input_gate: Pre-activations of the input gate.
      recurrence_gate: Pre-activations of the recurrence gate.
      log_decay: Result of `log_decay_of`, at most 0.
      h0: State before this chunk.
      positions: Position of each token in its document; see `roost.kernels`.
      backend: Backend of the scan. A single step is elementwise and left to XLA on every backend.

    Returns:
      h of every step, and the last h of each row.
    """
    inputs = (x, input_gate, recurrence_gate, log_decay, h0, positions)
    if x.shape[1] == 1:
        return rg_lru_sequential(*inputs)
    return backend.dispatch("rg_lru", rg_lru_sequential, *inputs)


def rg_lru_sequential(
    x: Float32[Array, "B T E"],
    input_gate: Float32[Array, "B T E"],
    recurrence_gate: Float32[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Returns h of every step and the last h; see `rg_lru`."""
    a, gated = decay_and_input(x, input_gate, recurrence_gate, log_decay, positions)
    if x.shape[1] == 1:
        h = rounded(a[:, 0] * h0) + gated[:, 0]
        return h[:, None], h

    def step(
        h: Float32[Array, "B E"], inputs: tuple[Float32[Array, "B E"], Float32[Array, "B E"]]
    ) -> tuple[Float32[Array, "B E"], Float32[Array, "B E"]]:
        h = rounded(inputs[0] * h) + inputs[1]
        return h, h

    last, y = jax.lax.scan(step, h0, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(gated, 1, 0)))
    return jnp.moveaxis(y, 0, 1), last


def decay_and_input(
    x: Float32[Array, "*rows E"],
    input_gate: Float32[Array, "*rows E"],
    recurrence_gate: Float32[Array, "*rows E"],
    log_decay: Float32[Array, " E"],
    positions: Int32[Array, "*rows"],
) -> tuple[Float32[Array, "*rows E"], Float32[Array, "*rows E"]]:
    """Returns a and b of the linear recurrence h[t] = a[t] * h[t-1] + b[t]: (0, i * x) at resets, (1, 0) in padding."""
    reset, padding = (positions == 0)[..., None], (positions < 0)[..., None]
    log_a = log_decay * jax.nn.sigmoid(recurrence_gate)
    a = jnp.where(reset, 0.0, jnp.where(padding, 1.0, jnp.exp(log_a)))
    scale = jnp.where(reset, 1.0, bounded_sqrt(-jnp.expm1(2.0 * log_a)))
    b = jnp.where(padding, 0.0, rounded(scale * jax.nn.sigmoid(input_gate) * x))
    return a, b


def log_decay_of(a_param: Float32[Array, " E"]) -> Float32[Array, " E"]:
    """Returns -8 * softplus(Λ), which is log a at a recurrence gate of 1."""
    return -8.0 * jax.nn.softplus(a_param)


@jax.custom_jvp
def bounded_sqrt(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns sqrt(x), with a derivative of at most `MAX_SQRT_GRADIENT`."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(
    primals: tuple[Float32[Array, "..."]], tangents: tuple[Float32[Array, "..."]]
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    (x,), (dx,) = primals, tangents
    root = jnp.sqrt(x)
    return root, dx * (0.5 / jnp.maximum(root, 0.5 / MAX_SQRT_GRADIENT))


_PIECE: Final = 32
"""Maximum number of rows of one product with gates in float32."""


def recurrent_block_separate(
    project: Callable[[jnp.dtype | None], Float[Array, "B T E2"]],
    inputs: RecurrentInputs,
    every: int,
    groups: int,
    backend: Backend,
) -> Recurrence:
    """Computes a step or a chunk per row; see `recurrent_block`."""
    xy, (weights, conv, h, positions) = project(None), inputs
    x, y = jnp.split(xy, 2, axis=-1)
    rows, steps, _ = x.shape
    old_h, old_conv = first_rows(h, rows, groups), first_rows(conv, rows, groups, axis=1)
    c, new_conv = causal_conv1d(x, weights.conv_weight, weights.conv_bias, old_conv, positions)
    gates = _gates(c, weights)
    states, last = rg_lru(c, *gates, log_decay_of(weights.a_param), old_h, positions, backend)
    kept_conv = kept_h = None
    if steps > 1:
        kept_h, kept_conv = states[:, every - 1 :: every], states_at_boundaries(x, old_conv, positions, every)
    whole_h, whole_conv = with_first_rows(h, last, groups), with_first_rows(conv, new_conv, groups, axis=1)
    return Recurrence((states * gelu(y)).astype(xy.dtype), whole_conv, whole_h, kept_conv, kept_h)


def _gates(
    x: Float32[Array, "B T E"], weights: RecurrentWeights
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B T E"]]:
    """Returns the pre-activations of the input gate and of the recurrence gate."""
    weight, bias, size = weights.gate_weight, weights.gate_bias, weights.gate_block
    assert not isinstance(weight, PackedGates), "only native kernels read packed gates"
    rows = x.reshape(-1, len(bias), size).astype(weight.dtype)
    gates = _product(rows, weight) + bias
    return gates[..., :size].reshape(x.shape), gates[..., size:].reshape(x.shape)


def _product(rows: Float[Array, "R N i"], weight: Float[Array, "N i o"]) -> Float32[Array, "R N o"]:
    """Returns the products of rows with the blocks of a block-diagonal matrix.

    In float32, XLA for CPUs adds in an order that depends on the number of rows and on the processor, unless rows come
    first and there are at most `_PIECE` of them.
    """
    precision = product_precision(weight.dtype)
    if weight.dtype != jnp.float32:
        rows, count = pad_rows(rows, weight.dtype), len(rows)
        product = jnp.einsum("rni,nio->rno", rows, weight, precision=precision, preferred_element_type=jnp.float32)
        return product[:count]

    def multiply(piece: Float32[Array, "P N i"]) -> Float32[Array, "P N o"]:
        product = jax.lax.dot_general(piece, weight, (((2,), (1,)), ((1,), (0,))), precision=precision)
        return jnp.moveaxis(product, 0, 1)

    if len(rows) <= _PIECE:
        return multiply(pad_rows(rows, weight.dtype))[: len(rows)]
    padded = jnp.pad(rows, ((0, -len(rows) % _PIECE), (0, 0), (0, 0)))
    products: Array = jax.lax.map(multiply, padded.reshape(-1, _PIECE, *rows.shape[1:]))
    return products.reshape(-1, *products.shape[2:])[: len(rows)]

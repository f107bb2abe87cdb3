"""Real-gated linear recurrent unit (arXiv 2402.19427, section 2.4), from its gates' pre-activations on.

XLA's implementation is a loop over time: the fastest form measured on CPUs, with bits that no split of a sequence
changes. It alone has gradients, with which tools/train_demo.py trains.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ..arithmetic import rounded
from ..backend import XLA, Backend

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

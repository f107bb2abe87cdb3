"""Gradients of the RG-LRU where a kernel computes it, by a second kernel that walks back along time.

With h[t] = a[t] * h[t-1] + b[t], and dh[t] the derivative by h[t] over all that follows:

    dh[t] = dy[t] + a[t+1] * dh[t+1],    da[t] = dh[t] * h[t-1],    db[t] = dh[t].

What leads from the gates to a and b is elementwise; it is computed anew, and JAX derives it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from .sequential import decay_and_input

type Scan = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array]]
"""`rg_lru` on one backend."""

type ReverseScan = Callable[[Array, Array, Array], tuple[Array, Array]]
"""Of a and dy, `[B, T, E]`, and dlast, `[B, E]`, which stands behind the last step: all dh, and a[0] * dh[0]."""

type _Arguments = tuple[Array, Array, Array, Array, Array, Array]


def with_gradient(scan: Scan, reverse_scan: ReverseScan) -> Scan:
    """The kernel with a derivative: that of `rg_lru_sequential`, but what padding holds or is given never counts."""

    @jax.custom_vjp
    def differentiable(
        x: Array, input_gate: Array, recurrence_gate: Array, log_decay: Array, h0: Array, positions: Array
    ) -> tuple[Array, Array]:
        return scan(x, input_gate, recurrence_gate, log_decay, h0, positions)

    def forward(
        x: Array, input_gate: Array, recurrence_gate: Array, log_decay: Array, h0: Array, positions: Array
    ) -> tuple[tuple[Array, Array], tuple[_Arguments, Array]]:
        y, last = scan(x, input_gate, recurrence_gate, log_decay, h0, positions)
        return (y, last), ((x, input_gate, recurrence_gate, log_decay, h0, positions), y)

    def backward(
        saved: tuple[_Arguments, Array], cotangents: tuple[Array, Array]
    ) -> tuple[Array, Array, Array, Array, Array, None]:
        (x, input_gate, recurrence_gate, log_decay, h0, positions), y = saved
        coefficients = functools.partial(_coefficients, positions=positions)
        (a, _), pull_back = jax.vjp(coefficients, x, input_gate, recurrence_gate, log_decay)
        dy = jnp.where((positions >= 0)[..., None], cotangents[0], 0.0)
        dh, dh0 = reverse_scan(a, dy, cotangents[1])
        before = jnp.concatenate([h0[:, None], y[:, :-1]], axis=1)
        return (*pull_back((dh * before, dh)), dh0, None)

    differentiable.defvjp(forward, backward)
    return differentiable


def _coefficients(
    x: Float[Array, "B T E"],
    input_gate: Float[Array, "B T E"],
    recurrence_gate: Float[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    positions: Int32[Array, "B T"],
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B T E"]]:
    """As the kernels have them: in float32, of zeros where there is padding, so that no NaN there has a derivative."""

    def known(values: Float[Array, "B T E"]) -> Float32[Array, "B T E"]:
        return jnp.where((positions >= 0)[..., None], values, 0).astype(jnp.float32)

    return decay_and_input(known(x), known(input_gate), known(recurrence_gate), log_decay, positions)

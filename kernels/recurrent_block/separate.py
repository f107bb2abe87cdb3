"""Recurrent block as separate operations, for every backend."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..backend import Backend
from ..causal_conv1d import causal_conv1d, states_at_boundaries
from ..gelu import gelu
from ..matrices import PackedGates
from ..precision import product_precision
from ..product.xla import pad_rows
from ..rg_lru import log_decay_of, rg_lru
from ..row_groups import first_rows, with_first_rows
from .weights import Recurrence, RecurrentWeights


def recurrent_block_separate(
    project: Callable[[jnp.dtype | None], Float[Array, "B T E2"]],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 P E"],
    h: Float32[Array, "P E"],
    positions: Int32[Array, "B T"],
    every: int,
    groups: int,
    backend: Backend,
) -> Recurrence:
    """Computes a step or a chunk per row; see `recurrent_block`."""
    xy = project(None)
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
    rows = pad_rows(x.reshape(-1, len(bias), size).astype(weight.dtype), weight.dtype)
    gates = jnp.einsum(
        "rni,nio->rno",
        rows,
        weight,
        precision=product_precision(weight.dtype),
        preferred_element_type=jnp.float32,
    )[: math.prod(x.shape[:2])]
    gates += bias
    return gates[..., :size].reshape(x.shape), gates[..., size:].reshape(x.shape)

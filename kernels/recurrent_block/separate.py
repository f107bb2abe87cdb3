"""Recurrent block as separate operations, for every backend."""

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..arithmetic import gelu, product_precision
from ..backend import Backend
from ..matrices import PackedGates
from ..products import pad_rows
from ..row_groups import first_rows, with_first_rows
from .arguments import Recurrence, RecurrentInputs, RecurrentWeights
from .causal_conv1d import causal_conv1d, states_at_boundaries
from .rg_lru import log_decay_of, rg_lru

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

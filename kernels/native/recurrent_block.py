"""Recurrent block (arXiv 2402.19427, section 2.3) between its projections: convolution, gates, RG-LRU, gelu product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from ..matrices import PackedGates
from ..recurrent_block.arguments import Recurrence, RecurrentInputs
from ..recurrent_block.rg_lru import log_decay_of


def takes(project: Callable[..., Array], inputs: RecurrentInputs, *others: int) -> bool:
    """Returns whether `recurrent_block` supports these weights: packed gates."""
    return isinstance(inputs.weights.gate_weight, PackedGates)


def recurrent_block(
    project: Callable[[jnp.dtype | None], Float[Array, "B T E2"]], inputs: RecurrentInputs, every: int, groups: int
) -> Recurrence:
    """Computes a step or a chunk per row; see `roost.kernels.recurrent_block`."""
    xy = project(None)
    if xy.shape[1] == 1:
        return Recurrence(*recurrent_step(xy[:, 0], inputs.of_step))
    return Recurrence(*recurrent_chunk(xy, inputs, every))


def recurrent_step(
    xy: Float[Array, "B E2"], inputs: RecurrentInputs
) -> tuple[Float[Array, "B E"], Float[Array, "K1 B E"], Float32[Array, "B E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row.

    Args:
      xy: Input projections of the block, x first, in float32 or bfloat16.
      inputs: The others, with packed gates and the state of the convolution in the dtype of xy. Rows with a negative
        position keep their state, and their output is 0.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h.
    """
    _, conv, h, _ = inputs
    results = tuple(jax.ShapeDtypeStruct(x.shape, kind) for x, kind in ((h, xy.dtype), (conv, xy.dtype), (h, h.dtype)))
    out, new_conv, new_h = jax.ffi.ffi_call("roost_recurrent_step", results)(xy, *_arrays(inputs))
    return out, new_conv, new_h


def recurrent_chunk(
    xy: Float[Array, "B T E2"], inputs: RecurrentInputs, every: int
) -> tuple[
    Float[Array, "B T E"],
    Float[Array, "K1 B E"],
    Float32[Array, "B E"],
    Float[Array, "B M K1 E"],
    Float32[Array, "B M E"],
]:
    """Computes `recurrent_step` for a chunk of tokens per row, with the bits of steps one after the other.

    Args:
      xy: Input projections of the block, x first, in float32 or bfloat16.
      inputs: The others, as in `recurrent_step`; padding, with negative positions, comes last.
      every: Number of tokens between states that are kept.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h; the conv and the h after every
      `every` tokens, of which there are M = T // every.
    """
    weights, conv, h, _ = inputs
    (rows, steps, _), (taps, width), kind = xy.shape, weights.conv_weight.shape, xy.dtype
    results = (
        jax.ShapeDtypeStruct((rows, steps, width), kind),
        jax.ShapeDtypeStruct(conv.shape, kind),
        jax.ShapeDtypeStruct(h.shape, h.dtype),
        jax.ShapeDtypeStruct((rows, steps // every, taps - 1, width), kind),
        jax.ShapeDtypeStruct((rows, steps // every, width), h.dtype),
    )
    call: Any = jax.ffi.ffi_call("roost_recurrent_chunk", results)
    out, new_conv, new_h, kept_conv, kept_h = call(xy, *_arrays(inputs), every=np.int64(every))
    return out, new_conv, new_h, kept_conv, kept_h


def _arrays(inputs: RecurrentInputs) -> tuple[Array, ...]:
    (conv_weight, conv_bias, gates, gate_bias, a_param), conv, h, positions = inputs
    assert isinstance(gates, PackedGates)
    return conv_weight, conv_bias, gates.values, gate_bias, log_decay_of(a_param), conv, h, positions

"""Recurrent block (arXiv 2402.19427, section 2.3) between its projections: convolution, gates, RG-LRU, gelu product."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from ..rg_lru.sequential import log_decay_of


class RecurrentWeights(NamedTuple):
    """Weights of a recurrent block between its projections.

    Attributes:
      conv_weight: Taps; see `causal_conv1d`.
      conv_bias: Bias of the convolution.
      gates: Packed weights of the gates; see `pack_gates`.
      gate_bias: Biases of the gates.
      a_param: Λ of the RG-LRU.
    """

    conv_weight: Float32[Array, "K E"]
    conv_bias: Float32[Array, " E"]
    gates: Float32[Array, "N S e 32"]
    gate_bias: Float32[Array, "N e2"]
    a_param: Float32[Array, " E"]


def recurrent_step(
    xy: Float[Array, "B E2"],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 B E"],
    h: Float32[Array, "B E"],
    positions: Int32[Array, " B"],
) -> tuple[Float[Array, "B E"], Float[Array, "K1 B E"], Float32[Array, "B E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row.

    Args:
      xy: Input projections of the block, x first, in float32 or bfloat16.
      weights: Weights of the block.
      conv: State of the convolution, in the dtype of xy.
      h: State of the RG-LRU.
      positions: Positions of the tokens; rows with a negative position keep their state, and their output is 0.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h.
    """
    results = tuple(jax.ShapeDtypeStruct(x.shape, kind) for x, kind in ((h, xy.dtype), (conv, xy.dtype), (h, h.dtype)))
    inputs = _inputs(xy, weights, conv, h, positions)
    out, new_conv, new_h = jax.ffi.ffi_call("roost_recurrent_step", results)(*inputs)
    return out, new_conv, new_h


def recurrent_chunk(
    xy: Float[Array, "B T E2"],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 B E"],
    h: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    every: int,
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
      weights: Weights of the block.
      conv: State of the convolution before the chunk, in the dtype of xy.
      h: State of the RG-LRU before the chunk.
      positions: Positions of the tokens; padding, with negative positions, comes last.
      every: Number of tokens between states that are kept.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h; the conv and the h after every
      `every` tokens, of which there are M = T // every.
    """
    (rows, steps, _), (taps, width), kind = xy.shape, weights.conv_weight.shape, xy.dtype
    results = (
        jax.ShapeDtypeStruct((rows, steps, width), kind),
        jax.ShapeDtypeStruct(conv.shape, kind),
        jax.ShapeDtypeStruct(h.shape, h.dtype),
        jax.ShapeDtypeStruct((rows, steps // every, taps - 1, width), kind),
        jax.ShapeDtypeStruct((rows, steps // every, width), h.dtype),
    )
    inputs = _inputs(xy, weights, conv, h, positions)
    call: Any = jax.ffi.ffi_call("roost_recurrent_chunk", results)
    out, new_conv, new_h, kept_conv, kept_h = call(*inputs, every=np.int64(every))
    return out, new_conv, new_h, kept_conv, kept_h


def _inputs(
    xy: Float[Array, "*tokens E2"],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 B E"],
    h: Float32[Array, "B E"],
    positions: Int32[Array, "*tokens"],
) -> tuple[Array, ...]:
    *others, a_param = weights
    return (xy, *others, log_decay_of(a_param), conv, h, positions)

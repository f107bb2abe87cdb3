"""Native kernels of layers other than products: norms, the recurrent block, and attention over rings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Float32, Int32

from ..matrices import PackedGates
from ..recurrent_block.xla import Recurrence, RecurrentInputs, log_decay_of
from ..window_attention.ring import Int8Vectors, Rings, Vectors, write_ring
from .library import Products, call, in_pairs


def takes_norm(x: Array, *others: Array | float) -> bool:
    """Returns whether the norms support these activations: bfloat16, with a width that is a multiple of 16."""
    return x.dtype == jnp.bfloat16 and x.shape[-1] % 16 == 0


def rms_norm(x: BFloat16[Array, "*rows D"], scale: Float32[Array, " D"], eps: float) -> BFloat16[Array, "*rows D"]:
    """Computes x * rsqrt(mean(x²) + eps) * (1 + scale) in float32; D is a multiple of 16."""
    rows = x.reshape(-1, x.shape[-1])
    return call("roost_rms_norm", rows.shape, x.dtype, rows, scale, eps=np.float32(eps)).reshape(x.shape)


def add_rms_norm(
    x: BFloat16[Array, "*rows D"], y: BFloat16[Array, "*rows D"], scale: Float32[Array, " D"], eps: float
) -> tuple[BFloat16[Array, "*rows D"], BFloat16[Array, "*rows D"]]:
    """Returns x + y, rounded to bfloat16, and the `rms_norm` of that."""
    rows, others = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    run: Any = jax.ffi.ffi_call("roost_add_rms_norm", [jax.ShapeDtypeStruct(rows.shape, x.dtype)] * 2)
    total, normed = run(rows, others, scale, eps=np.float32(eps))
    return total.reshape(x.shape), normed.reshape(x.shape)


def takes_block(project: Callable[..., Array], inputs: RecurrentInputs, *others: int) -> bool:
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
) -> tuple[Float[Array, "B E"], Float[Array, "K1 P E"], Float32[Array, "P E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row.

    Args:
      xy: Input projections of the block, x first, in float32 or bfloat16.
      inputs: The others, with packed gates and the state of the convolution in the dtype of xy. The state, which may
        have more rows, is updated in place if it is donated. Rows with a negative position keep theirs, and their
        output is 0.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h.
    """
    _, conv, h, _ = inputs
    mixed = jax.ShapeDtypeStruct((xy.shape[0], h.shape[1]), xy.dtype)
    results = mixed, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (conv, h))
    call: Any = jax.ffi.ffi_call("roost_recurrent_step", results, input_output_aliases={6: 1, 7: 2})
    out, new_conv, new_h = call(xy, *_arrays(inputs))
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


def takes_attention(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> bool:
    """Returns whether attention supports these: bfloat16, with a head size that is a multiple of 16."""
    return {q.dtype, rings[0].dtype} == {jnp.dtype(jnp.bfloat16)} and q.shape[-1] % 16 == 0


def decode_attention(
    q: BFloat16[Array, "B N d"],
    k: BFloat16[Array, "B d"],
    v: BFloat16[Array, "B d"],
    rings: Rings,
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], Rings]:
    """Attends with one query per row and head to the filled part of a ring and to the token's own key, then writes it.

    Args:
      q: Queries of the new tokens; d is a multiple of 16.
      k: Keys of the new tokens.
      v: Values of the new tokens.
      rings: Keys and values of the tokens before them, of these rows and maybe of others behind them. They are updated
        in place if they are donated.
      positions: Positions of the new tokens; rows with a negative position give zeros and write nothing.

    Returns:
      Outputs of the heads, and the rings.
    """
    results = jax.ShapeDtypeStruct(q.shape, jnp.float32), *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in rings)
    call: Any = jax.ffi.ffi_call("roost_decode_attention", results, input_output_aliases={4: 1, 5: 2})
    mixed, *written = call(q, k, v, positions, *rings)
    return mixed, (written[0], written[1])


def prefill_attention(
    q: BFloat16[Array, "B T N d"],
    k: BFloat16[Array, "B T d"],
    v: BFloat16[Array, "B T d"],
    ring_k: BFloat16[Array, "B W d"],
    ring_v: BFloat16[Array, "B W d"],
    positions: Int32[Array, "B T"],
    products: Products | None = None,
) -> BFloat16[Array, "B T N d"]:
    """Attends with a chunk of queries per row to a ring, which is only read, and to the chunk.

    A query's bits do not depend on the chunk that it is in.

    Args:
      q: Queries of the chunk; d is a multiple of 16.
      k: Keys of the chunk.
      v: Values of the chunk.
      ring_k: Keys of the W tokens before the chunk.
      ring_v: Values of those tokens.
      positions: Positions of the tokens, consecutive within a row; padding, with negative positions, comes last.
      products: Way to compute products; None for the faster one here.

    Returns:
      Outputs of the heads, zeros in padding.
    """
    inputs = (q, k, v, ring_k, ring_v, positions)
    return call("roost_prefill_attention", q.shape, q.dtype, *inputs, in_pairs=in_pairs(products))


def prefill_and_write(
    q: BFloat16[Array, "B T N d"],
    k: BFloat16[Array, "B T d"],
    v: BFloat16[Array, "B T d"],
    rings: Rings,
    positions: Int32[Array, "B T"],
) -> tuple[BFloat16[Array, "B T N d"], Rings]:
    """Attends as `prefill_attention` does, then writes the chunk into the rings."""
    ring_k, ring_v = rings
    assert not isinstance(ring_k, Int8Vectors)
    assert not isinstance(ring_v, Int8Vectors)
    mixed = prefill_attention(q, k, v, ring_k, ring_v, positions)
    mixed, k, v = jax.lax.optimization_barrier((mixed, k, v))  # reads before writes: no copy of the rings
    return mixed, write_ring(rings, k, v, positions, positions[:, 0])

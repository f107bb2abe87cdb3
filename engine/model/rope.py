"""Rotary position embedding of the first half of each head (arXiv 2402.19427, section 2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from ...kernels.arithmetic import rounded


def apply_rope(
    q: Float[Array, "*rows N d"], k: Float[Array, "*rows_and_heads d"], positions: Int32[Array, "*rows"], theta: float
) -> tuple[Float[Array, "*rows N d"], Float[Array, "*rows_and_heads d"]]:
    """Returns queries and keys after RoPE, rotated in float32 and rounded to their dtype.

    Args:
      q: Queries.
      k: Keys `[*rows, d]`; with an axis of key heads, `[*rows, G, d]`.
      positions: Positions of the tokens.
      theta: Base of the frequencies.
    """
    angles = rope_angles(positions, q.shape[-1] // 4, theta)
    new_q = _rotate(q, angles[..., None, :])
    new_k = _rotate(k, angles if k.ndim < q.ndim else angles[..., None, :])
    return new_q.astype(q.dtype), new_k.astype(k.dtype)


def _rotate(x: Float[Array, "*heads d"], angles: Float32[Array, "*angles P"]) -> Float32[Array, "*heads d"]:
    """Applies RoPE to the first half of each head: element j is paired with element j + d/4."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    quarter = x.shape[-1] // 4
    a, b, rest = jnp.split(x, [quarter, 2 * quarter], axis=-1)
    turned = rounded(a * cos) - rounded(b * sin), rounded(b * cos) + rounded(a * sin)
    return jnp.concatenate([*turned, rest], axis=-1)


def rope_angles(positions: Int32[Array, "*rows"], pairs: int, theta: float) -> Float32[Array, "*rows P"]:
    """Returns position * theta^(-j / pairs) modulo 2π for each pair j, in [-π, π), exact to float32 at any position.

    A float32 product is off by 0.02 rad at position 2^20 and by 1 rad past 2^24. Frequencies are therefore 64-bit
    fractions of a turn that are multiplied as integers, whose overflow is the wanted modulo.
    """
    turns = theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
    fraction = [int(t * 2**64) for t in turns]
    high = jnp.array([f >> 32 for f in fraction], jnp.uint32)
    low = jnp.array([f & 0xFFFFFFFF for f in fraction], jnp.uint32)
    p = positions.astype(jnp.uint32)[..., None]
    whole = p * high + _multiply_high(p, low)
    return jax.lax.bitcast_convert_type(whole, jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2**32)


def _multiply_high(a: Array, b: Array) -> Array:
    """Returns the upper 32 bits of the 64-bit product of two uint32 arrays."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((middle & 0xFFFF) + a0 * b1 >> 16)

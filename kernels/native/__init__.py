"""Kernels for x86 CPUs with AVX-512 VNNI and BF16, run by XLA as custom calls if the installation compiled them.

Decoding is bound by memory bandwidth. XLA's products of a few rows reach a third to a half of a CPU's bandwidth, these
kernels most of it. A row's result depends neither on the other rows nor on the number of threads. Products in int8 have
the same bits as XLA's; products in bfloat16 differ from XLA's in rounding.
"""

import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, Int8, Int32

from ..backend import Backend

_CALLS: Final = ("roost_int8_product", "roost_bf16_product", "roost_block_product", "roost_decode_attention")


def is_available() -> bool:
    """Returns whether the kernels can be used, and registers them with XLA if so."""
    return why_unavailable() is None


@cache
def why_unavailable() -> str | None:
    """Returns why the kernels cannot be used; None if they can, after registering them with XLA."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for x86-64 processors, not {platform.machine()}"
    path = next(iter(sorted(Path(__file__).parent.glob("_cpu*.so"))), None)
    if path is None:
        return "they were not compiled by the installation, which needs a C++ compiler"
    library = ctypes.CDLL(str(path))
    if not library.roost_supported():
        return "this processor lacks AVX-512 VNNI or BF16"
    for name in _CALLS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def has_product(backend: Backend, dtype: jnp.dtype, *, is_step: bool) -> bool:
    """Returns whether a native kernel computes products with a matrix of this dtype.

    Int8 products always use it, because their sums are exact. Bfloat16 products use it in steps of one token per row;
    for prefill chunks XLA is faster. The choice never depends on the number of rows, because a row's bits must not.
    """
    return backend.is_native and (dtype == jnp.int8 or (is_step and dtype == jnp.bfloat16))


def has_block_product(backend: Backend, dtype: jnp.dtype) -> bool:
    """Returns whether `block_product` computes block-diagonal products with weights of this dtype."""
    return backend.is_native and dtype == jnp.float32


def int8_product(
    x: Float[Array, "R I"],
    values: Int8[Array, "O I"],
    scale: Float32[Array, " O"],
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "R O"]:
    """Computes x · (values * scale)ᵀ + bias, with each row of x quantised to int8.

    Args:
      x: Activations in float32 or bfloat16.
      values: Int8 values of the matrix.
      scale: Scale of each of the matrix's rows.
      bias: Bias of each output, or None.
      dtype: Dtype of the result, float32 or bfloat16.
    """
    return _call("roost_int8_product", (x.shape[0], values.shape[0]), dtype, x, values, scale, _or_empty(bias))


def bf16_product(
    x: BFloat16[Array, "R I"], weight: BFloat16[Array, "O I"], bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias, summed in float32 and rounded to `dtype`."""
    return _call("roost_bf16_product", (x.shape[0], weight.shape[0]), dtype, x, weight, _or_empty(bias))


def block_product(
    x: Float32[Array, "R N I"], weight: Float32[Array, "N I O"], bias: Float32[Array, "N O"]
) -> Float32[Array, "R N O"]:
    """Computes y[r, n] = x[r, n] · weight[n] + bias[n], a block-diagonal product."""
    return _call("roost_block_product", (*x.shape[:2], weight.shape[2]), jnp.dtype("float32"), x, weight, bias)


def decode_attention(
    q: BFloat16[Array, "B N d"],
    k: BFloat16[Array, "B d"],
    v: BFloat16[Array, "B d"],
    blocks: tuple[tuple[BFloat16[Array, "B _ d"], BFloat16[Array, "B _ d"]], ...],
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """Attends with one query per row and head to the filled part of a ring and to the token's own key.

    Args:
      q: Queries of the new tokens; d is a multiple of 16.
      k: Keys of the new tokens.
      v: Values of the new tokens.
      blocks: Keys and values of the tokens before them, as a ring split along its rows.
      positions: Positions of the new tokens; rows with a negative position give zeros.
    """
    rings = (ring for block in blocks for ring in block)
    return _call("roost_decode_attention", q.shape, jnp.dtype("float32"), q, k, v, positions, *rings)


def _or_empty(bias: Float32[Array, " O"] | None) -> Float32[Array, " _"]:
    return jnp.zeros(0, jnp.float32) if bias is None else bias


def _call(name: str, shape: tuple[int, ...], dtype: jnp.dtype, *inputs: Array) -> Array:
    result: Array = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype))(*inputs)
    return result

"""Kernels for x86 CPUs with AVX-512 VNNI and BF16, which XLA calls as custom calls; compiled ahead, or absent.

Decoding is bound by how fast weights are read. XLA's products of a few rows reach a third to a half of what memory
gives on a CPU, these most of it. A row's result does not depend on the rows beside it nor on the number of threads:
products in int8 give the bits that XLA's give, those in bfloat16 their own.
"""

import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, Int8, Int32

_CALLS: Final = ("roost_int8_product", "roost_bf16_product", "roost_block_product", "roost_decode_attention")


def is_available() -> bool:
    """Whether they have been compiled and this processor can run them; then XLA knows them from now on."""
    return why_unavailable() is None


@cache
def why_unavailable() -> str | None:
    """Why they cannot be used here, in a few words; None where they can, and XLA knows them from now on."""
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


def int8_product(
    x: Float[Array, "R I"],
    values: Int8[Array, "O I"],
    scale: Float32[Array, " O"],
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "R O"]:
    """x · (values * scale)ᵀ + bias, with each row of x rounded to int8 on the way.

    Args:
      x: in float32 or bfloat16.
      values, scale: the matrix.
      bias: if there is one.
      dtype: of the result, float32 or bfloat16.
    """
    return _call("roost_int8_product", (x.shape[0], values.shape[0]), dtype, x, values, scale, _or_empty(bias))


def bf16_product(
    x: BFloat16[Array, "R I"], weight: BFloat16[Array, "O I"], bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """x · weightᵀ + bias, summed in float32; `dtype` is of the result."""
    return _call("roost_bf16_product", (x.shape[0], weight.shape[0]), dtype, x, weight, _or_empty(bias))


def block_product(
    x: Float32[Array, "R N I"], weight: Float32[Array, "N I O"], bias: Float32[Array, "N O"]
) -> Float32[Array, "R N O"]:
    """Each row's N parts with a matrix of its own, plus bias."""
    return _call("roost_block_product", (*x.shape[:2], weight.shape[2]), jnp.dtype("float32"), x, weight, bias)


def decode_attention(
    q: BFloat16[Array, "B N d"],
    k: BFloat16[Array, "B d"],
    v: BFloat16[Array, "B d"],
    blocks: tuple[tuple[BFloat16[Array, "B _ d"], BFloat16[Array, "B _ d"]], ...],
    positions: Int32[Array, " B"],
) -> Float32[Array, "B N d"]:
    """One query per head and row against the filled part of a ring and its own key; d is a multiple of 16.

    Args:
      q, k, v: of the new token.
      blocks: keys and values of the tokens before it, as a ring that is cut along its rows.
      positions: of the new token; the output of negative rows is zero.
    """
    rings = (ring for block in blocks for ring in block)
    return _call("roost_decode_attention", q.shape, jnp.dtype("float32"), q, k, v, positions, *rings)


def _or_empty(bias: Float32[Array, " O"] | None) -> Float32[Array, " _"]:
    return jnp.zeros(0, jnp.float32) if bias is None else bias


def _call(name: str, shape: tuple[int, ...], dtype: jnp.dtype, *inputs: Array) -> Array:
    result: Array = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype))(*inputs)
    return result

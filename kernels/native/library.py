"""The compiled library: whether it can be used here, its custom calls, and how this processor computes products."""

import ctypes
import os
import platform
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

CALLS: Final = (
    "roost_int8_product",
    "roost_int4_product",
    "roost_bf16_product",
    "roost_int8_logits",
    "roost_int8_argmax",
    "roost_bf16_logits",
    "roost_bf16_argmax",
    "roost_int8_gated_mlp",
    "roost_int4_gated_mlp",
    "roost_bf16_gated_mlp",
    "roost_rms_norm",
    "roost_add_rms_norm",
    "roost_recurrent_step",
    "roost_recurrent_chunk",
    "roost_decode_attention",
    "roost_prefill_attention",
)
"""Names of the custom calls."""

CALLS_VERSION: Final = 8
"""Version of the calls' arguments and of their results' bits, raised together with that in csrc/handlers.cc.

An editable install keeps the library that it compiled.
"""

_AVX2_ALONE: Final = "--xla_cpu_max_isa=AVX2"
"""Flag in XLA_FLAGS with which XLA's code for CPUs, and these kernels, do not use AVX-512."""

_CPUINFO: Final = Path("/proc/cpuinfo")

_INSTRUCTION_SETS: Final = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets, as Linux names them, whose sums are rounded in different places."""


def is_available() -> bool:
    """Returns whether the kernels can be used, and registers them with XLA if so."""
    return why_unavailable() is None


@cache
def why_unavailable() -> str | None:
    """Returns why the kernels cannot be used; None if they can, after registering them with XLA."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for x86-64 processors, not {platform.machine()}"
    if _path() is None:
        return "this installation has none; the wheel for Linux on x86-64 has, and so has one built with a C++ compiler"
    library = _library()
    version = getattr(library, "roost_calls_version", None)
    if version is None or version() != CALLS_VERSION:
        return "they were compiled from other sources; `pip install --no-deps -e .` compiles them again"
    if library.roost_has_avx512() and not _is_avx2_alone():
        prefix = "roost_avx512_"
    elif library.roost_has_avx2():
        prefix = "roost_avx2_"
    else:
        return "this processor lacks AVX2"
    for name in CALLS:
        function = getattr(library, name.replace("roost_", prefix))
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return None


def _path() -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob("_cpu*.so"))), None)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_path()))


def _is_avx2_alone() -> bool:
    return _AVX2_ALONE in os.environ.get("XLA_FLAGS", "").split()


@cache
def instruction_sets() -> tuple[str, ...]:
    """Returns the instruction sets of this x86 processor that XLA's code and these kernels choose from."""
    found = named_instruction_sets(_CPUINFO.read_text() if _CPUINFO.is_file() else "")
    return tuple(name for name in found if name in ("avx2", "fma")) if _is_avx2_alone() else found


def named_instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Returns the instruction sets that Linux's description of the processors names for the first of them."""
    flags = next((line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


class Products(StrEnum):
    """Ways to compute products in bfloat16, whose results differ in the last bits."""

    PAIRS = "pairs"
    """The instruction of AVX-512 BF16 for pairs is the faster way on AMD's processors."""

    WIDE = "wide"
    """Products in float32 are the faster way on Intel's processors, and the only one without that instruction."""


@cache
def possible_products() -> tuple[Products, ...]:
    """Returns the ways to compute products in bfloat16 here, the faster one first; none without native kernels."""
    if not is_available():
        return ()
    if not _library().roost_has_pairs() or _is_avx2_alone():
        return (Products.WIDE,)
    return (Products.PAIRS, Products.WIDE) if _library().roost_is_pair_fast() else (Products.WIDE, Products.PAIRS)


def chosen_products() -> Products | None:
    """Returns how this processor computes products in bfloat16; None without native kernels."""
    return next(iter(possible_products()), None)


def in_pairs(products: Products | None) -> bool:
    """Returns whether products in bfloat16 are computed in pairs; None stands for the faster way here.

    Raises:
      ValueError: This processor cannot compute products in this way.
    """
    if products is not None and products not in possible_products():
        raise ValueError(f"this processor has no {products.value} products")
    return (products or chosen_products()) is Products.PAIRS


def call(name: str, shape: tuple[int, ...], dtype: jnp.dtype, *inputs: Array, **attributes: bool | np.float32) -> Array:
    """Returns the array of this shape and dtype that a custom call computes from its inputs."""
    return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype))(*inputs, **attributes)

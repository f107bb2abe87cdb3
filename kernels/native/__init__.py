"""Kernels for x86 CPUs with AVX-512 VNNI and BF16, run by XLA as custom calls if the installation compiled them.

Matrices are packed when they are loaded, in the order in which products read them. Products of few rows are bound by
memory bandwidth, and those of many rows by the processor's multipliers. A row's result depends neither on the other
rows nor on the number of threads. Products in int8 have the same bits as XLA's; products in bfloat16 differ from XLA's
in rounding.
"""

import ctypes
import platform
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Float32, Int32, UInt8

from ..rg_lru.sequential import log_decay_of

CALLS: Final = (
    "roost_int8_product",
    "roost_bf16_product",
    "roost_int8_logits",
    "roost_int8_argmax",
    "roost_bf16_logits",
    "roost_bf16_argmax",
    "roost_int8_gated_mlp",
    "roost_bf16_gated_mlp",
    "roost_rms_norm",
    "roost_add_rms_norm",
    "roost_recurrent_step",
    "roost_recurrent_chunk",
    "roost_decode_attention",
    "roost_prefill_attention",
)
"""Names of the custom calls."""

CALLS_VERSION: Final = 3
"""Version of the calls' arguments and of their results' bits, raised together with that in csrc/handlers.cc.

An editable install keeps what it compiled.
"""

_CPUINFO: Final = Path("/proc/cpuinfo")

_INSTRUCTION_SETS: Final = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets, as Linux names them, whose sums are rounded in different places."""

STRIP_OUTPUTS: Final = 16
"""Number of outputs in a strip of a packed matrix."""

_GROUP_BYTES: Final = 4
"""Bytes of each output in a group of inputs."""

_PIECE_WORDS: Final = 2**18
"""Words that are packed at a time, which bounds the memory beside the matrix."""


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
    if not library.roost_supported():
        return "this processor lacks AVX-512 VNNI or BF16"
    for name in CALLS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def _path() -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob("_cpu*.so"))), None)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_path()))


@cache
def instruction_sets() -> tuple[str, ...]:
    """Returns the instruction sets of this x86 processor that XLA's code and these kernels choose from."""
    return named_instruction_sets(_CPUINFO.read_text() if _CPUINFO.is_file() else "")


def named_instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Returns the instruction sets that Linux's description of the processors names for the first of them."""
    flags = next((line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


class Products(StrEnum):
    """Ways to compute products in bfloat16, whose results differ in the last bits."""

    PAIRS = "pairs"
    """The instruction for pairs is the faster way on AMD's processors."""

    WIDE = "wide"
    """Products in float32 are the faster way on Intel's processors."""


@cache
def chosen_products() -> Products | None:
    """Returns how this processor computes products in bfloat16; None without native kernels."""
    if not is_available():
        return None
    return Products.PAIRS if _library().roost_is_pair_fast() else Products.WIDE


def can_pack(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether a matrix of this shape and dtype can be packed: int8 and bfloat16 of whole strips and groups."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    return dtype in (jnp.int8, jnp.bfloat16) and outputs % STRIP_OUTPUTS == 0 and inputs % group == 0


def pack(matrix: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs a contiguous matrix in place, in the layout that products read.

    A strip of 16 outputs has, for each group of 4 bytes of inputs, that group of every output, so that a register of
    the processor holds a group and its lanes are outputs. Int8 values have 128 added.

    Args:
      matrix: Matrix `[O, I]` in int8 or bfloat16; see `can_pack`.

    Returns:
      The same memory as `[O / 16, I / group, 16, group]`, in uint8 for int8.
    """
    outputs, inputs = matrix.shape
    group = _GROUP_BYTES // matrix.itemsize
    words = matrix.view(np.uint32).reshape(outputs // STRIP_OUTPUTS, STRIP_OUTPUTS, inputs // group)
    packed = words.reshape(len(words), inputs // group, STRIP_OUTPUTS)
    flipped = np.uint32(0x80808080 if matrix.dtype == np.int8 else 0)
    step = max(1, _PIECE_WORDS // (STRIP_OUTPUTS * words.shape[2]))
    for start in range(0, len(words), step):
        some = slice(start, start + step)
        packed[some] = words[some].transpose(0, 2, 1) ^ flipped
    dtype = np.dtype("uint8") if matrix.dtype == np.int8 else matrix.dtype
    return packed.view(dtype).reshape(*packed.shape, group)


def packed_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a packed matrix; see `pack`."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    packed = (outputs // STRIP_OUTPUTS, inputs // group, STRIP_OUTPUTS, group)
    return jax.ShapeDtypeStruct(packed, jnp.dtype("uint8") if dtype == jnp.int8 else dtype)


def int8_product(
    x: Float[Array, "R I"],
    values: UInt8[Array, "S G 16 4"],
    scale: Float32[Array, " O"],
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "R O"]:
    """Computes x · (values * scale)ᵀ + bias, with each row of x quantised to int8.

    Args:
      x: Activations in float32 or bfloat16.
      values: Packed int8 values of the matrix.
      scale: Scale of each of the matrix's rows.
      bias: Bias of each output, or None.
      dtype: Dtype of the result, float32 or bfloat16.
    """
    return _call("roost_int8_product", (x.shape[0], scale.shape[0]), dtype, x, values, scale, _or_empty(bias))


def bf16_product(
    x: BFloat16[Array, "R I"],
    weight: BFloat16[Array, "S G 16 2"],
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
    products: Products | None = None,
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias, summed in float32.

    Args:
      x: Activations.
      weight: Packed matrix.
      bias: Bias of each output, or None.
      dtype: Dtype of the result, float32 or bfloat16.
      products: Way to compute products; None for the faster one here.
    """
    shape = (x.shape[0], weight.shape[0] * STRIP_OUTPUTS)
    return _call("roost_bf16_product", shape, dtype, x, weight, _or_empty(bias), in_pairs=_in_pairs(products))


def int8_gated_mlp(
    x: Float[Array, "R D"],
    gate_up: UInt8[Array, "S G 16 4"],
    gate_up_scale: Float32[Array, " F2"],
    gate_up_bias: Float32[Array, " F2"],
    down: UInt8[Array, "S2 G2 16 4"],
    down_scale: Float32[Array, " D"],
    down_bias: Float32[Array, " D"],
) -> Float[Array, "R D"]:
    """Computes down(gelu(gate(x)) * up(x)) with packed int8 matrices; F is a multiple of 16.

    Rows are quantised before each product; the product of gate and up is rounded to the dtype of x before that.
    """
    weights = (gate_up, gate_up_scale, gate_up_bias, down, down_scale, down_bias)
    return _call("roost_int8_gated_mlp", x.shape, x.dtype, x, *weights)


def bf16_gated_mlp(
    x: BFloat16[Array, "R D"],
    gate_up: BFloat16[Array, "S G 16 2"],
    gate_up_bias: Float32[Array, " F2"],
    down: BFloat16[Array, "S2 G2 16 2"],
    down_bias: Float32[Array, " D"],
    products: Products | None = None,
) -> BFloat16[Array, "R D"]:
    """Computes down(gelu(gate(x)) * up(x)) with packed bfloat16 matrices; see `int8_gated_mlp` and `bf16_product`."""
    weights = (gate_up, gate_up_bias, down, down_bias)
    return _call("roost_bf16_gated_mlp", x.shape, x.dtype, x, *weights, in_pairs=_in_pairs(products))


def logits(
    x: Float[Array, "R D"],
    values: UInt8[Array, "S G 16 4"] | BFloat16[Array, "S G 16 2"],
    scale: Float32[Array, " V"] | None,
    cap: float | None,
    products: Products | None = None,
) -> Float32[Array, "R V"]:
    """Computes a model's logits, cap * tanh(x · weightᵀ / cap).

    Args:
      x: Activations, in bfloat16 if the matrix is.
      values: Packed matrix, in int8 or bfloat16.
      scale: Scale of each of the matrix's rows in int8; None in bfloat16.
      cap: Soft cap; None for the products themselves.
      products: Way to compute products in bfloat16; None for the faster one here.
    """
    shape = (x.shape[0], values.shape[0] * STRIP_OUTPUTS)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    y: Array = _output_layer("logits", result, x, values, scale, cap, products)
    return y


def argmax(
    x: Float[Array, "R D"],
    values: UInt8[Array, "S G 16 4"] | BFloat16[Array, "S G 16 2"],
    scale: Float32[Array, " V"] | None,
    cap: float | None,
    products: Products | None = None,
) -> tuple[Int32[Array, " R"], Float32[Array, " R"]]:
    """Returns the token with the largest logit of each row, and that logit, without storing the logits.

    The logits have the bits of `logits`, and are ordered as in `jax.lax.top_k`: NaN is the largest, and of equal ones
    the lowest token is taken.
    """
    results = tuple(jax.ShapeDtypeStruct(x.shape[:1], dtype) for dtype in (jnp.int32, jnp.float32))
    tokens, largest = _output_layer("argmax", results, x, values, scale, cap, products)
    return tokens, largest


def _output_layer(
    call: str, results: Any, x: Array, values: Array, scale: Array | None, cap: float | None, products: Products | None
) -> Any:
    run: Any = jax.ffi.ffi_call(f"roost_{'bf16' if scale is None else 'int8'}_{call}", results)
    factor = np.float32(cap or 0.0)
    if scale is None:
        return run(x, values, in_pairs=_in_pairs(products), cap=factor)
    return run(x, values, scale, cap=factor)


def _in_pairs(products: Products | None) -> bool:
    return (products or chosen_products()) is Products.PAIRS


def rms_norm(x: BFloat16[Array, "R D"], scale: Float32[Array, " D"], eps: float) -> BFloat16[Array, "R D"]:
    """Computes x * rsqrt(mean(x²) + eps) * (1 + scale) in float32; D is a multiple of 16."""
    run: Any = jax.ffi.ffi_call("roost_rms_norm", jax.ShapeDtypeStruct(x.shape, x.dtype))
    y: Array = run(x, scale, eps=np.float32(eps))
    return y


def add_rms_norm(
    x: BFloat16[Array, "R D"], y: BFloat16[Array, "R D"], scale: Float32[Array, " D"], eps: float
) -> tuple[BFloat16[Array, "R D"], BFloat16[Array, "R D"]]:
    """Returns x + y, rounded to bfloat16, and the `rms_norm` of that."""
    run: Any = jax.ffi.ffi_call("roost_add_rms_norm", [jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2)
    total, normed = run(x, y, scale, eps=np.float32(eps))
    return total, normed


def can_pack_gates(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether weights of gates can be packed: float32, with blocks of whole strips."""
    _, inputs, outputs = shape
    return dtype == jnp.float32 and outputs == 2 * inputs and inputs % STRIP_OUTPUTS == 0


def pack_gates(weight: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs block-diagonal weights of two gates in place, in the layout that `recurrent_step` reads.

    Args:
      weight: Weights `[N, e, 2 e]`, the input gate's columns first; see `can_pack_gates`.

    Returns:
      The same memory as `[N, e / 16, e, 32]`: strips with 16 columns of each gate.
    """
    packed = weight.reshape(packed_gates_shape(weight.shape))
    for block, strips in zip(weight, packed, strict=True):
        columns = block.reshape(len(block), 2, len(strips), STRIP_OUTPUTS).transpose(2, 0, 1, 3)
        strips[:] = columns.reshape(strips.shape)  # a copy
    return packed


def packed_gates_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of packed gates; see `pack_gates`."""
    blocks, inputs, _ = shape
    return blocks, inputs // STRIP_OUTPUTS, inputs, 2 * STRIP_OUTPUTS


def recurrent_step(
    xy: Float[Array, "B E2"],
    conv_weight: Float32[Array, "K E"],
    conv_bias: Float32[Array, " E"],
    gates: Float32[Array, "N S e 32"],
    gate_bias: Float32[Array, "N e2"],
    a_param: Float32[Array, " E"],
    conv: Float[Array, "K1 B E"],
    h: Float32[Array, "B E"],
    positions: Int32[Array, " B"],
) -> tuple[Float[Array, "B E"], Float[Array, "K1 B E"], Float32[Array, "B E"]]:
    """Computes gelu(y) * RG-LRU(conv(x)) for one token per row.

    Args:
      xy: Input projections of the block, x first, in float32 or bfloat16.
      conv_weight: Taps; see `causal_conv1d`.
      conv_bias: Bias of the convolution.
      gates: Packed weights of the gates.
      gate_bias: Biases of the gates.
      a_param: Λ of the RG-LRU.
      conv: State of the convolution, in the dtype of xy.
      h: State of the RG-LRU.
      positions: Positions of the tokens; rows with a negative position keep their state, and their output is 0.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h.
    """
    results = tuple(jax.ShapeDtypeStruct(x.shape, kind) for x, kind in ((h, xy.dtype), (conv, xy.dtype), (h, h.dtype)))
    inputs = (xy, conv_weight, conv_bias, gates, gate_bias, log_decay_of(a_param), conv, h, positions)
    out, new_conv, new_h = jax.ffi.ffi_call("roost_recurrent_step", results)(*inputs)
    return out, new_conv, new_h


def recurrent_chunk(
    xy: Float[Array, "B T E2"],
    conv_weight: Float32[Array, "K E"],
    conv_bias: Float32[Array, " E"],
    gates: Float32[Array, "N S e 32"],
    gate_bias: Float32[Array, "N e2"],
    a_param: Float32[Array, " E"],
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
      conv_weight, conv_bias, gates, gate_bias, a_param: See `recurrent_step`.
      conv: State of the convolution before the chunk, in the dtype of xy.
      h: State of the RG-LRU before the chunk.
      positions: Positions of the tokens; padding, with negative positions, comes last.
      every: Number of tokens between states that are kept.

    Returns:
      Inputs of the output projection, in the dtype of xy; the new conv; the new h; the conv and the h after every
      `every` tokens, of which there are M = T // every.
    """
    (rows, steps, _), (taps, width), kind = xy.shape, conv_weight.shape, xy.dtype
    results = (
        jax.ShapeDtypeStruct((rows, steps, width), kind),
        jax.ShapeDtypeStruct(conv.shape, kind),
        jax.ShapeDtypeStruct(h.shape, h.dtype),
        jax.ShapeDtypeStruct((rows, steps // every, taps - 1, width), kind),
        jax.ShapeDtypeStruct((rows, steps // every, width), h.dtype),
    )
    inputs = (xy, conv_weight, conv_bias, gates, gate_bias, log_decay_of(a_param), conv, h, positions)
    call: Any = jax.ffi.ffi_call("roost_recurrent_chunk", results)
    out, new_conv, new_h, kept_conv, kept_h = call(*inputs, every=np.int64(every))
    return out, new_conv, new_h, kept_conv, kept_h


def decode_attention(
    q: BFloat16[Array, "B N d"],
    k: BFloat16[Array, "B d"],
    v: BFloat16[Array, "B d"],
    rings: tuple[tuple[tuple[BFloat16[Array, "_ _ d"], BFloat16[Array, "_ _ d"]], ...], ...],
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], Any]:
    """Attends with one query per row and head to the filled part of a ring and to the token's own key, then writes it.

    Args:
      q: Queries of the new tokens; d is a multiple of 16.
      k: Keys of the new tokens.
      v: Values of the new tokens.
      rings: Keys and values of the tokens before them, for consecutive groups of rows: the blocks of rings that are
        split along their rows. They are updated in place if they are donated. The last group may have more rings than
        rows are left.
      positions: Positions of the new tokens; rows with a negative position give zeros and write nothing.

    Returns:
      Outputs of the heads, and the rings.
    """
    arrays, structure = jax.tree.flatten(rings)
    out = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    results = (out, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
    inputs = (q, k, v, positions, *arrays)
    aliases = {len(inputs) - len(arrays) + i: 1 + i for i in range(len(arrays))}
    call: Any = jax.ffi.ffi_call("roost_decode_attention", results, input_output_aliases=aliases)
    window = sum(keys.shape[1] for keys, _ in rings[0])
    mixed, *written = call(*inputs, window=np.int64(window))
    return mixed, jax.tree.unflatten(structure, written)


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
    return _call("roost_prefill_attention", q.shape, q.dtype, *inputs, in_pairs=_in_pairs(products))


def _or_empty(bias: Float32[Array, " O"] | None) -> Float32[Array, " _"]:
    return jnp.zeros(0, jnp.float32) if bias is None else bias


def _call(name: str, shape: tuple[int, ...], dtype: jnp.dtype, *inputs: Array, **attributes: bool) -> Array:
    result: Array = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype))(*inputs, **attributes)
    return result

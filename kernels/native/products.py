"""Products of activations with packed matrices: alone, in a gated MLP, and in the output layer with its argmax."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Float32, Int32, UInt8

from ..matrices import Matrix, PackedInt4Matrix, PackedMatrix
from ..matrices.packed import STRIP_OUTPUTS
from .library import Products, call, in_pairs

_NO_TOKEN: Final = -1
"""Token of a row whose largest logit is not finite."""


def takes_product(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether `product` supports the matrix: a packed one."""
    return isinstance(weight, PackedMatrix)


def product(
    x: Float[Array, "R I"], weight: PackedMatrix, bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias; see `roost.kernels.products`."""
    if weight.scale is None:
        return bf16_product(x, weight.values, bias, dtype)
    return int8_product(x, weight.values, weight.scale, bias, dtype)


def takes_gated_mlp(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
    """Returns whether `gated_mlp` supports the matrices: packed, with whole strips of the gate and of the value."""
    is_packed = any(isinstance(gate_up, kind) and isinstance(down, kind) for kind in (PackedMatrix, PackedInt4Matrix))
    return is_packed and gate_up_bias.size % (2 * STRIP_OUTPUTS) == 0


def gated_mlp[M: (PackedMatrix, PackedInt4Matrix)](
    x: Float[Array, "*rows D"],
    gate_up: M,
    gate_up_bias: Float32[Array, " F2"],
    down: M,
    down_bias: Float32[Array, " D"],
) -> Float[Array, "*rows D"]:
    """Computes down(gelu(gate(x)) * up(x)); see `roost.kernels.products`."""
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(gate_up, PackedInt4Matrix):
        y = int4_gated_mlp(rows, gate_up, gate_up_bias, down, down_bias)
    elif gate_up.scale is None or down.scale is None:
        y = bf16_gated_mlp(rows, gate_up.values, gate_up_bias, down.values, down_bias)
    else:
        scales = gate_up.scale, down.scale
        y = int8_gated_mlp(rows, gate_up.values, scales[0], gate_up_bias, down.values, scales[1], down_bias)
    return y.reshape(x.shape)


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
      scale: Scale of each row of the matrix.
      bias: Bias of each output, or None.
      dtype: Dtype of the result, float32 or bfloat16.
    """
    return call("roost_int8_product", (x.shape[0], scale.shape[0]), dtype, x, values, scale, _or_empty(bias))


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
    return call("roost_bf16_product", shape, dtype, x, weight, _or_empty(bias), in_pairs=in_pairs(products))


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
    return call("roost_int8_gated_mlp", x.shape, x.dtype, x, *weights)


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
    return call("roost_bf16_gated_mlp", x.shape, x.dtype, x, *weights, in_pairs=in_pairs(products))


def _or_empty(bias: Float32[Array, " O"] | None) -> Float32[Array, " _"]:
    return jnp.zeros(0, jnp.float32) if bias is None else bias


def takes_int4(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether `int4_product` supports the matrix: a packed one in 4 bits."""
    return isinstance(weight, PackedInt4Matrix)


def int4_product(
    x: Float[Array, "R I"], weight: PackedInt4Matrix, bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias with the bits of `Int4Matrix.dot`; see `roost.kernels.products`."""
    shape = (x.shape[0], weight.values.shape[0] * STRIP_OUTPUTS)
    return call("roost_int4_product", shape, dtype, x, weight.values, weight.scale, _or_empty(bias))


def int4_gated_mlp(
    x: Float[Array, "R D"],
    gate_up: PackedInt4Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: PackedInt4Matrix,
    down_bias: Float32[Array, " D"],
) -> Float[Array, "R D"]:
    """Computes down(gelu(gate(x)) * up(x)) with packed matrices in 4 bits; see `int8_gated_mlp` and `int4_product`."""
    return call("roost_int4_gated_mlp", x.shape, x.dtype, x, *gate_up, gate_up_bias, *down, down_bias)


def takes_output_layer(x: Array, weight: Matrix, cap: float | None) -> bool:
    """Returns whether the output layer supports the matrix: a packed one."""
    return isinstance(weight, PackedMatrix)


def logits_of_rows(x: Float[Array, "*rows D"], weight: PackedMatrix, cap: float | None) -> Float32[Array, "*rows V"]:
    """Computes the logits of any rows; see `roost.kernels.products`."""
    y = logits(x.reshape(-1, x.shape[-1]), weight.values, weight.scale, cap)
    return y.reshape(*x.shape[:-1], -1)


def finite_argmax(x: Float[Array, "R D"], weight: PackedMatrix, cap: float | None) -> Int32[Array, " R"]:
    """Returns the argmax of each row, -1 if its largest logit is not finite; see `roost.kernels.products`."""
    tokens, largest = argmax(x, weight.values, weight.scale, cap)
    return jnp.where(jnp.isfinite(largest), tokens, _NO_TOKEN)


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
      scale: Scale of each row of the matrix in int8; None in bfloat16.
      cap: Soft cap; None for the products themselves.
      products: Way to compute products in bfloat16; None for the faster one here.
    """
    shape = (x.shape[0], values.shape[0] * STRIP_OUTPUTS)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _output_layer("logits", result, x, values, scale, cap, products)


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
        return run(x, values, in_pairs=in_pairs(products), cap=factor)
    return run(x, values, scale, cap=factor)

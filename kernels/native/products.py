"""Products of activations with packed matrices, alone and in a gated MLP."""

import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, UInt8

from ..matrices import Matrix, PackedMatrix
from ..matrices.packed import STRIP_OUTPUTS
from .library import Products, call, in_pairs


def takes_product(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether `product` supports the matrix: a packed one."""
    return isinstance(weight, PackedMatrix)


def product(
    x: Float[Array, "R I"], weight: PackedMatrix, bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias; see `roost.kernels.product`."""
    if weight.scale is None:
        return bf16_product(x, weight.values, bias, dtype)
    return int8_product(x, weight.values, weight.scale, bias, dtype)


def takes_gated_mlp(x: Array, gate_up: Matrix, gate_up_bias: Array, down: Matrix, down_bias: Array | None) -> bool:
    """Returns whether `gated_mlp` supports the matrices: packed, with whole strips of the gate and of the value."""
    return isinstance(gate_up, PackedMatrix) and isinstance(down, PackedMatrix) and gate_up.num_strips % 2 == 0


def gated_mlp(
    x: Float[Array, "*rows D"],
    gate_up: PackedMatrix,
    gate_up_bias: Float32[Array, " F2"],
    down: PackedMatrix,
    down_bias: Float32[Array, " D"],
) -> Float[Array, "*rows D"]:
    """Computes down(gelu(gate(x)) * up(x)); see `roost.kernels.gated_mlp`."""
    rows = x.reshape(-1, x.shape[-1])
    if gate_up.scale is None or down.scale is None:
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

"""Output layer with a packed matrix: logits, or only their argmax."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Float32, Int32, UInt8

from ..matrices import Matrix, PackedMatrix
from ..matrices.packed import STRIP_OUTPUTS
from .library import Products, in_pairs

_NO_TOKEN: Final = -1
"""Token of a row whose largest logit is not finite."""


def takes(x: Array, weight: Matrix, cap: float | None) -> bool:
    """Returns whether the output layer supports the matrix: a packed one."""
    return isinstance(weight, PackedMatrix)


def logits_of_rows(x: Float[Array, "*rows D"], weight: PackedMatrix, cap: float | None) -> Float32[Array, "*rows V"]:
    """Computes the logits of any rows; see `roost.kernels.output_layer`."""
    y = logits(x.reshape(-1, x.shape[-1]), weight.values, weight.scale, cap)
    return y.reshape(*x.shape[:-1], -1)


def finite_argmax(x: Float[Array, "R D"], weight: PackedMatrix, cap: float | None) -> Int32[Array, " R"]:
    """Returns the argmax of each row, -1 if its largest logit is not finite; see `roost.kernels.output_layer`."""
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
        return run(x, values, in_pairs=in_pairs(products), cap=factor)
    return run(x, values, scale, cap=factor)

"""Arithmetic that ops share, with bits that don't depend on the number of rows or on the processor.

XLA for CPUs rounds and adds in an order that depends on its fusions. The functions here fix where products are
rounded, in which precision they are summed, and how vectors become int8. The last ones take the first rows of every
group, in arrays that have more rows than a step has tokens.
"""

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, Shaped

_LOWEST: Final = {"float32": -(2.0 - 2.0**-23) * 2.0**127, "bfloat16": -(2.0 - 2.0**-7) * 2.0**127}
"""Lowest finite number of each dtype."""


_LEAF_SIZE: Final = 32
"""Size below which XLA's own reduction is as fast as a tree, above which it reduces one number at a time on CPUs."""

INT8_LARGEST: Final = 127.0
"""Largest absolute value of an element; -128 is not used, so that rounding is symmetric."""

INT8_STEP: Final = 1.0 / INT8_LARGEST
"""Scale of a vector whose largest absolute value is 1."""

INT8_FLOOR: Final = 1e-30
"""Least absolute maximum of a vector in computing its scale, by which elements are divided."""


def rounded(product: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns finite products of elements, rounded before anything is added to them.

    XLA for CPUs otherwise fuses a product with a sum, which rounds once: whether it does, and which of two products
    it takes, depends on the number of rows and on the processor. The maximum has no effect but to stand between them.
    """
    return jnp.maximum(product, _LOWEST[product.dtype.name])


def before_sum(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns numbers whose products are to be summed, computed before the sum begins.

    XLA for CPUs adds in an order that depends on the ops fused into a sum, and these depend on the number of rows.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of products with weights or keys of this dtype: no rounding of float32 on TPUs and GPUs."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def float_dot(x: Float[Array, "R I"], weight: Float[Array, "O I"]) -> Float32[Array, "R O"]:
    """Returns x · weightᵀ, summed in float32."""
    return jax.lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=product_precision(weight.dtype),
        preferred_element_type=jnp.float32,
    )


def gelu(x: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Returns the GELU in float32, in the approximation by tanh that Griffin's weights were trained with."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True)


def sum_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """Returns the sum over the last axis, added in an order that depends on its length only.

    It is not for sums of products: the compiler fuses those multiplications with the additions in some shapes only.
    """
    return jnp.sum(_reduce_tree(x, jnp.add), axis=-1, keepdims=True)


def max_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """Returns the maximum over the last axis."""
    return jnp.max(_reduce_tree(x, jnp.maximum), axis=-1, keepdims=True)


def _reduce_tree(x: Array, join: Callable[[Array, Array], Array]) -> Array:
    while x.shape[-1] > _LEAF_SIZE and x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = join(x[..., :half], x[..., half:])
    return x


def round_to_int8(x: Float[Array, "*rows n"]) -> tuple[Int8[Array, "*rows n"], Float32[Array, "*rows 1"]]:
    """Returns the rounded elements of each vector, and its scale: element * scale is close to x.

    A vector with a NaN or an infinity gets a scale that is not finite.
    """
    wide = x.astype(jnp.float32)
    largest = jnp.maximum(max_last(jnp.abs(wide)), INT8_FLOOR)
    return jnp.round(wide * (INT8_LARGEST / largest)).astype(jnp.int8), largest * INT8_STEP


def first_rows(x: Shaped[Array, "*slots"], count: int, groups: int, axis: int = 0) -> Shaped[Array, "*rows"]:
    """Returns the first rows of each group.

    Args:
      x: Array with a row for each slot.
      count: Number of rows to return, a multiple of the number of groups.
      groups: Number of groups, which lie one after the other.
      axis: Axis of the rows.
    """
    if count == x.shape[axis]:
        return x
    first = jax.lax.slice_in_dim(_by_group(x, groups, axis), 0, count // groups, axis=axis + 1)
    return first.reshape(*x.shape[:axis], count, *x.shape[axis + 1 :])


def with_first_rows(
    x: Shaped[Array, "*slots"], new: Shaped[Array, "*rows"], groups: int, axis: int = 0
) -> Shaped[Array, "*slots"]:
    """Returns an array with the rows that `first_rows` returns replaced by others; the rest is not copied."""
    if new.shape == x.shape:
        return new
    whole = _by_group(x, groups, axis)
    written: Array = jax.lax.dynamic_update_slice(whole, _by_group(new, groups, axis), (0,) * whole.ndim)
    return written.reshape(x.shape)


def _by_group(x: Array, groups: int, axis: int) -> Array:
    """Returns rows `[G * n, …]` as `[G, n, …]`."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])

"""Small operations on arrays that the modules of sampling share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from ...kernels import XLA, Backend


def when[Result](condition: Bool[Array, ""], yes: Callable[[], Result], no: Callable[[], Result]) -> Result:
    """Returns `jax.lax.cond(condition, yes, no)` with the branches' type."""
    result: Result = jax.lax.cond(condition, yes, no)
    return result


def top_k(
    x: Float32[Array, "*rows C"], k: int, backend: Backend = XLA
) -> tuple[Float32[Array, "*rows k"], Int32[Array, "*rows k"]]:
    """Returns the k largest elements and their places; of equal ones, the first.

    The barrier hides what the result is used for. Otherwise XLA for TPUs merges it with a following slice, and then
    sorts whole rows.
    """
    largest, places = jax.lax.optimization_barrier(tuple((backend.top_k or jax.lax.top_k)(x, k)))
    return largest, places


def column_of(x: Shaped[Array, "R C"], column: Int32[Array, " R"]) -> Shaped[Array, " R"]:
    """Returns one element of every row."""
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]

"""Small operations on arrays that the modules of sampling share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped


def when[Result](condition: Bool[Array, ""], yes: Callable[[], Result], no: Callable[[], Result]) -> Result:
    """Returns `jax.lax.cond(condition, yes, no)` with the branches' type."""
    result: Result = jax.lax.cond(condition, yes, no)
    return result


def column_of(x: Shaped[Array, "R C"], column: Int32[Array, " R"]) -> Shaped[Array, " R"]:
    """Returns one element of every row."""
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]

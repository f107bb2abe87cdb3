"""The first rows of every group, in arrays that have more rows than a step has tokens, in groups of equal size."""

import jax
from jaxtyping import Array, Shaped


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

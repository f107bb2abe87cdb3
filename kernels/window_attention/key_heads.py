"""Several key heads: kernels compute each as rows of its own, with the query heads that share it.

With G > 1 key heads, arrays have an axis of G after that of the rows: rings are `[P, G, W, d]`, and kernels get them as
`[P * G, W, d]`. With one key head there is no such axis, and each function returns its argument.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .int8 import Vectors


def num_key_heads(ring: Vectors) -> int:
    """Returns the number of key heads of rings `[P, W, d]` or `[P, G, W, d]`."""
    count: int = ring.shape[1] if len(ring.shape) == 4 else 1
    return count


def heads_as_rows[Tree](tree: Tree, heads: int) -> Tree:
    """Merges the axes of rows and of key heads in all arrays."""
    if heads == 1:
        return tree
    merged: Tree = jax.tree.map(lambda x: x.reshape(x.shape[0] * heads, *x.shape[2:]), tree)
    return merged


def rows_as_heads[Tree](tree: Tree, heads: int) -> Tree:
    """Splits the rows of all arrays into rows and key heads, the inverse of `heads_as_rows`."""
    if heads == 1:
        return tree
    split: Tree = jax.tree.map(lambda x: x.reshape(x.shape[0] // heads, heads, *x.shape[1:]), tree)
    return split


def for_each_head(positions: Shaped[Array, "B ..."], heads: int) -> Shaped[Array, "BG ..."]:
    """Returns positions repeated for each key head of a row."""
    return positions if heads == 1 else jnp.repeat(positions, heads, axis=0)


def queries_by_key_head(q: Float[Array, "B ... d"], heads: int) -> Float[Array, "BG ... d"]:
    """Returns queries `[B, N, d]` or `[B, T, N, d]` as rows of the N / G heads that share a key head."""
    if heads == 1:
        return q
    grouped = q.reshape(*q.shape[:-2], heads, q.shape[-2] // heads, q.shape[-1])
    return heads_as_rows(jnp.moveaxis(grouped, -3, 1), heads)


def outputs_of_rows(mixed: Float[Array, "BG ... d"], heads: int) -> Float[Array, "B ... d"]:
    """Returns the outputs of all query heads of each row, the inverse of `queries_by_key_head`."""
    if heads == 1:
        return mixed
    grouped = jnp.moveaxis(rows_as_heads(mixed, heads), 1, -3)
    return grouped.reshape(*grouped.shape[:-3], heads * grouped.shape[-2], grouped.shape[-1])

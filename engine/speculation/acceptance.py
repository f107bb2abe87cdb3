"""Which drafted tokens are accepted. Letters in shapes: R rows, T maximum number of drafted tokens, S = T + 1."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from .drafter import Drafts


class Accepted(NamedTuple):
    """Tokens that a round adds to each row.

    Attributes:
      counts: Number of accepted drafts of each row, one that ends the request included.
      last: Index of the last sampled token that is kept: the first that differs from the draft or ends the request, or
        the one after the whole draft.
    """

    counts: Int32[Array, " R"]
    last: Int32[Array, " R"]


def accept(drafts: Drafts, sampled: Int32[Array, "R S"], ends: Bool[Array, "R S"]) -> Accepted:
    """Returns how far the sampled tokens equal the drafts, and where the request ends.

    A token is sampled from the true distribution if all drafts before it were. So the first one that differs is the
    next token, and there is nothing to correct.

    Args:
      drafts: Drafted tokens.
      sampled: Tokens sampled at each position: the one at index i follows the first i drafts.
      ends: Whether the request ends with each token.
    """
    is_draft = jnp.arange(drafts.tokens.shape[1]) < drafts.counts[:, None]
    is_same = (sampled[:, :-1] == drafts.tokens) & is_draft
    goes_on = jnp.cumprod((is_same & ~ends[:, :-1]).astype(jnp.int32), axis=1)
    last = jnp.sum(goes_on, axis=1)
    return Accepted(jnp.sum(jnp.cumprod(is_same.astype(jnp.int32), axis=1) * _before(goes_on), axis=1), last)


def _before(goes_on: Int32[Array, "R T"]) -> Int32[Array, "R T"]:
    """Returns whether each token comes before or with the one that ends the row's round."""
    return jnp.pad(goes_on[:, :-1], ((0, 0), (1, 0)), constant_values=1)

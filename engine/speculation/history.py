"""Last tokens of every slot on the device, in which drafts are looked up.

Letters in shapes: R rows, T tokens of a row, H = `HISTORY`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from ..types.sampling_params import NO_TOKEN
from ..types.speculation import HISTORY


def no_history(rows: int) -> Int32[Array, "R H"]:
    """Returns the histories of rows without tokens."""
    return jnp.full((rows, HISTORY), NO_TOKEN, jnp.int32)


def record(
    history: Int32[Array, "R H"], tokens: Int32[Array, "R T"], positions: Int32[Array, " R"], counts: Int32[Array, " R"]
) -> Int32[Array, "R H"]:
    """Returns the histories with new tokens. The token at position p is in column p mod H.

    Every column is written, with its old value if it gets no new token: CPUs scatter much more slowly.

    Args:
      history: Tokens so far.
      tokens: New tokens of each row.
      positions: Position of each row's first new token.
      counts: Number of new tokens of each row.
    """
    ahead = (jnp.arange(HISTORY) - positions[:, None]) % HISTORY
    for place in range(tokens.shape[1]):
        history = jnp.where((ahead == place) & (place < counts[:, None]), tokens[:, place, None], history)
    return history


def tokens_at(history: Int32[Array, "R H"], positions: Int32[Array, "R N"]) -> Int32[Array, "R N"]:
    """Returns the tokens at some positions."""
    return jnp.take_along_axis(history, positions % HISTORY, axis=1)

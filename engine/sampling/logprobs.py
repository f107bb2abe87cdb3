"""Log-probabilities of generated tokens and of a prompt's tokens.

Letters in shapes: V vocabulary, A alternatives, B named tokens, T positions of a prompt chunk, D model width.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ...kernels import XLA, Backend
from ...kernels.sampling.top_k import top_k
from ..types.sampling_params import MAX_LOGPROBS

_BLOCK: Final = 64
"""Maximum number of rows whose log-probabilities are computed together if memory is scarce."""


class Logprobs(NamedTuple):
    """Natural log-probabilities under the model's logits; zeros if no row wants them.

    Attributes:
      chosen: Log-probabilities of the chosen tokens.
      top_ids: The most likely tokens, best first.
      top: Log-probabilities of `top_ids`.
      named: Log-probabilities of the tokens that the row names.
    """

    chosen: Float32[Array, "*rows"]
    top_ids: Int32[Array, "*rows A"]
    top: Float32[Array, "*rows A"]
    named: Float32[Array, "*rows B"]


def logprobs(
    logits: Float32[Array, "*rows V"],
    chosen: Int32[Array, "*rows"],
    named: Int32[Array, "*rows B"],
    backend: Backend = XLA,
) -> Logprobs:
    """Returns log softmax at the chosen, the most likely and the named tokens.

    Args:
      logits: The model's logits.
      chosen: Chosen tokens.
      named: Named tokens; the result is arbitrary at unused places of the list.
      backend: Backend of the kernels.
    """
    count = min(MAX_LOGPROBS, logits.shape[-1])
    top, top_ids = top_k(logits, count, backend)
    norm = top[..., :1] + jnp.log(jnp.sum(jnp.exp(logits - top[..., :1]), axis=-1, keepdims=True))
    own, others = (jnp.take_along_axis(logits, ids, axis=-1) - norm for ids in (chosen[..., None], named))
    return Logprobs(own[..., 0], top_ids, top - norm, others)


def logprobs_by_block(
    logits: Float32[Array, "R V"], chosen: Int32[Array, " R"], named: Int32[Array, "R B"]
) -> Logprobs:
    """Returns the same as `logprobs`, computed by blocks of rows, since a copy of all logits would be large."""
    size = block_size(logits.shape[0])
    result: Logprobs = jax.lax.map(lambda row: logprobs(*row), (logits, chosen, named), batch_size=size)
    return result


def block_size(rows: int) -> int:
    """Returns the size of equal blocks, a multiple of 8 if there is one: a shorter last block would copy all logits."""
    sizes = [size for size in range(1, _BLOCK + 1) if rows % size == 0]
    return max(sizes, key=lambda size: (size % 8 == 0, size))


def no_logprobs(rows: tuple[int, ...], vocab_size: int, num_named: int) -> Logprobs:
    """Returns zeros in the shapes of `logprobs`, for a step in which no row wants them."""
    alternatives = (*rows, min(MAX_LOGPROBS, vocab_size))
    return Logprobs(
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(alternatives, jnp.int32),
        jnp.zeros(alternatives, jnp.float32),
        jnp.zeros((*rows, num_named), jnp.float32),
    )


def score(
    logprobs_of: Callable[[Array, Array], Logprobs],
    hidden: Float[Array, "T D"],
    targets: Int32[Array, " T"],
    block: int,
) -> Logprobs:
    """Returns log-probabilities of a chunk's next tokens, computed by block, since logits of a chunk would be large.

    Args:
      logprobs_of: Computes log-probabilities of `[block]` targets from `[block, D]` activations.
      hidden: Activations after the final norm.
      targets: Token after each position.
      block: Positions per block; T is a multiple of it.
    """
    blocks = (hidden.reshape(-1, block, hidden.shape[-1]), targets.reshape(-1, block))
    scored: Logprobs = jax.lax.map(lambda item: logprobs_of(*item), blocks)
    flat: Logprobs = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), scored)
    return flat

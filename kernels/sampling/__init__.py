"""Choice of a token per row from its logits: logits processors, truncation and the draw.

On a TPU one kernel reads the logits once and holds the rows that it works on in on-chip memory. On other devices XLA
does the same; see `roost.engine.sampling`, whose float64 reference is the kernel's too.

Letters in shapes: R rows, V vocabulary, W words of a token mask (32 tokens each), K places for generated tokens, S
places of a list, k largest elements of C columns.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from ..backend import XLA, Backend

NUMBERS: Final = frozenset(
    {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    }
)
"""Names of the sampling fields that the kernel reads. While there is another one, XLA chooses all tokens."""

type Choice = tuple[Int32[Array, " R"], Float32[Array, " R"]]
"""The tokens; and the highest logits after the logits processors, which are not finite if one of a row is NaN or
infinity, and -inf if no token may be chosen. Both are arbitrary in rows that are not active."""


class SamplingInputs(NamedTuple):
    """Everything but logits that decides which token a row gets. Unused places of lists hold negative ids.

    Attributes:
      is_active: Rows whose result is read.
      is_random: Rows that are drawn; the other ones get their most likely token.
      numbers: Temperatures, thresholds and penalties, by the names of the sampling fields; neutral in rows that are not
        drawn or not penalized.
      uniform: Uniform random numbers from 0, below 1.
      bias_ids, biases: Tokens and the numbers that are added to their logits.
      stop_ids: Tokens that must not be chosen.
      is_penalized: Rows with penalties.
      recent: Generated tokens of penalized rows, in any order and places.
      in_prompt: Masks of the tokens in the prompts of penalized rows.
      is_masked: Rows with a token mask.
      allowed: Masks of the tokens that may be chosen, of rows with a token mask.
    """

    is_active: Bool[Array, " R"]
    is_random: Bool[Array, " R"]
    numbers: Mapping[str, Float32[Array, " R"]]
    uniform: Float32[Array, " R"]
    bias_ids: Int32[Array, "R S"]
    biases: Float32[Array, "R S"]
    stop_ids: Int32[Array, "R S"]
    is_penalized: Bool[Array, " R"]
    recent: Int32[Array, "R K"]
    in_prompt: UInt32[Array, "R W"]
    is_masked: Bool[Array, " R"]
    allowed: UInt32[Array, "R W"]


def choose_tokens(
    logits: Float32[Array, "R V"],
    fields: Collection[str],
    inputs: Callable[[], SamplingInputs],
    xla: Callable[[], Choice],
    backend: Backend,
) -> Choice:
    """Chooses a token for every row.

    Args:
      logits: The model's own.
      fields: Names of the sampling fields that decide about tokens.
      inputs: Returns everything but logits that decides which token a row gets.
      xla: Chooses with XLA.
      backend: Backend of the kernels.
    """
    return backend.dispatch("sample", lambda *_: xla(), logits, fields, inputs)


def reads_logits_once(backend: Backend) -> bool:
    """Returns whether a kernel chooses the tokens, so that the step keeps no copies of the logits."""
    return "sample" in backend.names


_BLOCK: Final = 64
"""Elements of a block: with as many as k, a vocabulary of 256,000 has about as many blocks as candidates."""


def top_k(
    x: Float32[Array, "*rows C"], k: int, backend: Backend = XLA
) -> tuple[Float32[Array, "*rows k"], Int32[Array, "*rows k"]]:
    """Returns the k largest elements and their places; of equal ones, the first.

    The barrier hides the use of the result. Otherwise XLA for TPUs merges it with a following slice, and then
    sorts whole rows.
    """
    largest, places = jax.lax.optimization_barrier(tuple(backend.dispatch("top_k", jax.lax.top_k, x, k)))
    return largest, places


def top_k_by_blocks(x: Float32[Array, "*rows C"], k: int) -> tuple[Float32[Array, "*rows k"], Int32[Array, "*rows k"]]:
    """Returns the k largest elements and their places; of equal ones, the first.

    With k = 1, NaN is the largest; with more, the result is arbitrary in rows with NaN.

    The k blocks with the largest maxima, of equal ones the first, hold all of them: for an element of another block,
    every one of these blocks has one that is larger, or equal and before it.

    Args:
      x: Rows.
      k: Number of elements, at most C.
    """
    if k == 1:
        place = jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
        return jnp.take_along_axis(x, place, axis=-1), place
    if x.shape[-1] <= k * _BLOCK:
        largest, places = jax.lax.top_k(x, k)
        return largest, places
    missing = -x.shape[-1] % _BLOCK
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=-jnp.inf) if missing else x
    blocks = padded.reshape(*x.shape[:-1], -1, _BLOCK)
    _, best = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    best = jnp.sort(best, axis=-1)  # equal elements keep their order
    candidates = jnp.take_along_axis(blocks, best[..., None], axis=-2).reshape(*x.shape[:-1], k * _BLOCK)
    largest, among = jax.lax.top_k(candidates, k)
    return largest, jnp.take_along_axis(best, among // _BLOCK, axis=-1) * _BLOCK + among % _BLOCK

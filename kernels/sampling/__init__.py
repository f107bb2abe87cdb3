"""Choice of a token per row from its logits: logits processors, truncation and the draw.

On a TPU one kernel reads the logits once and holds the rows that it works on in on-chip memory. On other devices XLA
does the same; see `roost.engine.sampling`, whose float64 reference is the kernel's too.

Letters in shapes: R rows, V vocabulary, W words of a token mask (32 tokens each), K places for generated tokens, S
places of a list.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from jaxtyping import Array, Bool, Float32, Int32, UInt32

from ..backend import Backend

__all__ = ["NUMBERS", "Choice", "SamplingInputs", "choose_tokens", "reads_logits_once"]

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

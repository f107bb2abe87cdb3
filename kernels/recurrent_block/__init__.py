"""Recurrent block (arXiv 2402.19427, section 2.3) between its projections: convolution, gates, RG-LRU, gelu product.

On a TPU this is one kernel, for a decode step and for a chunk of a prompt, because the block is bound by memory between
its projections: separate operations would write each result to memory for the next one to read. On a GPU it is one
kernel for a decode step, whose separate operations take longer to launch than to run. CPUs have native kernels for
packed gates. Other backends, and gate blocks that do not fill whole vector registers, use separate operations.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..backend import Backend
from .xla import Recurrence, RecurrentInputs, RecurrentWeights, recurrent_block_separate

__all__ = ["Recurrence", "RecurrentInputs", "RecurrentWeights", "recurrent_block"]


def recurrent_block(
    project: Callable[[jnp.dtype | None], Float[Array, "B T E2"]],
    weights: RecurrentWeights,
    conv: Float[Array, "K1 P E"],
    h: Float32[Array, "P E"],
    positions: Int32[Array, "B T"],
    every: int,
    groups: int,
    backend: Backend,
) -> Recurrence:
    """Computes gelu(y) * RG-LRU(conv(x)) for a step or a chunk per row.

    The state of a single step may have P > B rows, in G groups of P / G rows. The block then reads and writes the first
    B / G rows of every group, which belong to the tokens.

    Args:
      project: Returns the input projections, x first, in a dtype; None stands for that of the activations. A kernel may
        take float32 sums and round them itself, where XLA would do so in another operation.
      weights: Weights of the block.
      conv: State of the convolution, in the dtype of the activations.
      h: State of the RG-LRU.
      positions: Positions of the tokens; see `roost.kernels`.
      every: Interval in steps at which states are kept, a multiple of 8 that divides 256 if the chunk is longer.
      groups: G, the number of groups of rows of the state.
      backend: Backend of the kernels.
    """
    separate = partial(recurrent_block_separate, backend=backend)
    inputs = RecurrentInputs(weights, conv, h, positions)
    return backend.dispatch("recurrent_block", separate, project, inputs, every, groups)

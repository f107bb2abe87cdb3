"""Gated MLP (arXiv 2402.19427, section 2.2): down(gelu(gate(x)) * up(x)).

On a TPU one kernel reads the weights once and keeps intermediate results in on-chip memory, as long as the rows fit
there too. On other devices separate matrix products are as fast. The kernel for int8 matrices takes any number of rows,
because it also quantises them on the chip. CPUs have native kernels for packed matrices.
"""

from functools import partial

from jaxtyping import Array, Float, Float32

from ..backend import Backend
from ..matrices import Matrix
from .separate import gated_mlp_separate

__all__ = ["gated_mlp"]


def gated_mlp(
    x: Float[Array, "*rows D"],
    gate_up: Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: Matrix,
    down_bias: Float32[Array, " D"] | None,
    backend: Backend,
) -> Float[Array, "*rows D"]:
    """Returns down(gelu(gate(x)) * up(x)), in the dtype of x.

    Args:
      x: Inputs.
      gate_up: Weights of the gate, then of the value.
      gate_up_bias: Biases of both.
      down: Weights of the output projection.
      down_bias: Bias of the output projection; None for none, as in partial sums over shards.
      backend: Backend of the kernels.
    """
    separate = partial(gated_mlp_separate, backend=backend)
    return backend.dispatch("gated_mlp", separate, x, gate_up, gate_up_bias, down, down_bias)

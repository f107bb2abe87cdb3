"""The real-gated linear recurrent unit, from its gates' pre-activations on (Griffin, arXiv 2402.19427, section 2.4)."""

from jaxtyping import Array, Float32, Int32

from .. import Backend
from .pallas_tpu import rg_lru_tpu
from .sequential import rg_lru_sequential

__all__ = ["rg_lru"]


def rg_lru(
    x: Float32[Array, "B T E"],
    input_gate: Float32[Array, "B T E"],
    recurrence_gate: Float32[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    backend: Backend = "xla",
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """h[t] = a[t] * h[t-1] + sqrt(1 - a[t]^2) * i[t] * x[t]; at position 0, h[t] = i[t] * x[t].

    i = sigmoid(input_gate), r = sigmoid(recurrence_gate), a = exp(log_decay * r).

    Args:
      x: inputs.
      input_gate, recurrence_gate: the gates before their sigmoid.
      log_decay: -8 * softplus(Lambda), at most 0.
      h0: the state before this chunk.
      positions: see `roost.kernels`.
      backend: see `roost.kernels`; a single step is elementwise, and left to XLA on every backend.

    Returns:
      h of every step, and the last h of each row.
    """
    if backend == "tpu" and x.shape[1] > 1:
        return rg_lru_tpu(x, input_gate, recurrence_gate, log_decay, h0, positions)
    return rg_lru_sequential(x, input_gate, recurrence_gate, log_decay, h0, positions)

"""Real-gated linear recurrent unit (arXiv 2402.19427, section 2.4), from its gates' pre-activations on.

Only XLA's implementation has gradients, with which tools/train_demo.py trains.
"""

from jaxtyping import Array, Float32, Int32

from ..backend import XLA, Backend
from .sequential import log_decay_of, rg_lru_sequential

__all__ = ["log_decay_of", "rg_lru"]


def rg_lru(
    x: Float32[Array, "B T E"],
    input_gate: Float32[Array, "B T E"],
    recurrence_gate: Float32[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    backend: Backend = XLA,
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Computes h[t] = a[t] * h[t-1] + sqrt(1 - a[t]²) * i[t] * x[t]; at position 0, h[t] = i[t] * x[t].

    Here i = sigmoid(input_gate), r = sigmoid(recurrence_gate) and a = exp(log_decay * r).

    Args:
      x: Inputs.
      input_gate: Pre-activations of the input gate.
      recurrence_gate: Pre-activations of the recurrence gate.
      log_decay: Result of `log_decay_of`, at most 0.
      h0: State before this chunk.
      positions: Position of each token in its document; see `roost.kernels`.
      backend: Backend of the scan. A single step is elementwise and left to XLA on every backend.

    Returns:
      h of every step, and the last h of each row.
    """
    inputs = (x, input_gate, recurrence_gate, log_decay, h0, positions)
    if x.shape[1] == 1:
        return rg_lru_sequential(*inputs)
    return backend.dispatch("rg_lru", rg_lru_sequential, *inputs)

"""Real-gated linear recurrent unit (arXiv 2402.19427, section 2.4), from its gates' pre-activations on.

Only the backends "xla" and "cpu" have gradients; tools/train_demo.py trains with "xla".
"""

from collections.abc import Callable
from typing import Final

from jaxtyping import Array, Float32, Int32

from .. import Backend
from .pallas_gpu import rg_lru_gpu
from .pallas_tpu import rg_lru_tpu
from .sequential import rg_lru_sequential

__all__ = ["rg_lru"]

_KERNELS: Final[dict[Backend, Callable[..., tuple[Array, Array]]]] = {"tpu": rg_lru_tpu, "gpu": rg_lru_gpu}


def rg_lru(
    x: Float32[Array, "B T E"],
    input_gate: Float32[Array, "B T E"],
    recurrence_gate: Float32[Array, "B T E"],
    log_decay: Float32[Array, " E"],
    h0: Float32[Array, "B E"],
    positions: Int32[Array, "B T"],
    backend: Backend = "xla",
) -> tuple[Float32[Array, "B T E"], Float32[Array, "B E"]]:
    """Computes h[t] = a[t] * h[t-1] + sqrt(1 - a[t]²) * i[t] * x[t]; at position 0, h[t] = i[t] * x[t].

    Here i = sigmoid(input_gate), r = sigmoid(recurrence_gate) and a = exp(log_decay * r).

    Args:
      x: Inputs.
      input_gate: Pre-activations of the input gate.
      recurrence_gate: Pre-activations of the recurrence gate.
      log_decay: -8 * softplus(Λ), at most 0.
      h0: State before this chunk.
      positions: Position of each token in its document; see `roost.kernels`.
      backend: See `roost.kernels`. A single step is elementwise and left to XLA on every backend.

    Returns:
      h of every step, and the last h of each row.
    """
    scan = _KERNELS.get(backend, rg_lru_sequential) if x.shape[1] > 1 else rg_lru_sequential
    return scan(x, input_gate, recurrence_gate, log_decay, h0, positions)

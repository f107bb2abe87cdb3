"""The real-gated linear recurrent unit, from its gates' pre-activations on (Griffin, arXiv 2402.19427, section 2.4)."""

from typing import Final

from jaxtyping import Array, Float32, Int32

from .. import Backend
from .gradient import Scan, with_gradient
from .pallas_gpu import reverse_scan_gpu, rg_lru_gpu
from .pallas_tpu import reverse_scan_tpu, rg_lru_tpu
from .sequential import rg_lru_sequential

__all__ = ["rg_lru"]

_KERNELS: Final[dict[Backend, Scan]] = {
    "tpu": with_gradient(rg_lru_tpu, reverse_scan_tpu),
    "gpu": with_gradient(rg_lru_gpu, reverse_scan_gpu),
}


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

    i = sigmoid(input_gate), r = sigmoid(recurrence_gate), a = exp(log_decay * r). It has gradients on every backend.

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
    scan = _KERNELS.get(backend, rg_lru_sequential) if x.shape[1] > 1 else rg_lru_sequential
    return scan(x, input_gate, recurrence_gate, log_decay, h0, positions)

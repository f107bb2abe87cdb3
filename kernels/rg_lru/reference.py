"""Float64 reference of the RG-LRU: the recurrence one step at a time."""

import numpy as np
from jaxtyping import Float, Int


def rg_lru_reference(
    x: Float[np.ndarray, "B T E"],
    input_gate: Float[np.ndarray, "B T E"],
    recurrence_gate: Float[np.ndarray, "B T E"],
    log_decay: Float[np.ndarray, " E"],
    h0: Float[np.ndarray, "B E"],
    positions: Int[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T E"], Float[np.ndarray, "B E"]]:
    """Returns h of every step and the last h; see `rg_lru`."""
    x, input_gate, recurrence_gate, log_decay, h0 = (
        np.asarray(v, np.float64) for v in (x, input_gate, recurrence_gate, log_decay, h0)
    )
    y, h = np.zeros(x.shape), h0.copy()
    for row in range(x.shape[0]):
        for t in np.flatnonzero(positions[row] >= 0):
            gated = x[row, t] * _sigmoid(input_gate[row, t])
            if positions[row, t] == 0:
                h[row] = gated
            else:
                a = np.exp(log_decay * _sigmoid(recurrence_gate[row, t]))
                h[row] = a * h[row] + np.sqrt(1.0 - a * a) * gated
            y[row, t] = h[row]
    return y, h


def _sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 0.5 * (1.0 + np.tanh(0.5 * x))

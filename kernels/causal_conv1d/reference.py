"""Float64 reference of the causal convolution: one loop over rows, time and taps."""

import numpy as np
from jaxtyping import Float, Int


def causal_conv1d_reference(
    x: Float[np.ndarray, "B T E"],
    weight: Float[np.ndarray, "K E"],
    bias: Float[np.ndarray, " E"],
    state: Float[np.ndarray, "K1 B E"],
    positions: Int[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T E"], Float[np.ndarray, "K1 B E"]]:
    """Returns the outputs and the new state; see `causal_conv1d`."""
    taps = weight.shape[0]
    y, new_state = np.zeros(x.shape, np.float64), np.array(state, np.float64)
    for row in range(x.shape[0]):
        history = [new_state[k, row] for k in range(taps - 1)]
        for t in np.flatnonzero(positions[row] >= 0):
            history.append(np.asarray(x[row, t], np.float64))
            seen = min(taps, positions[row, t] + 1)
            y[row, t] = bias + sum(weight[taps - 1 - s] * history[-1 - s] for s in range(seen))
        new_state[:, row] = history[len(history) - taps + 1 :]
    return y, new_state

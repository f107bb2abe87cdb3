"""Float64 reference of the gated MLP."""

import numpy as np
from jaxtyping import Float


def gated_mlp_reference(
    x: Float[np.ndarray, "B D"],
    gate_up: Float[np.ndarray, "F2 D"],
    gate_up_bias: Float[np.ndarray, " F2"],
    down: Float[np.ndarray, "D F"],
    down_bias: Float[np.ndarray, " D"],
) -> Float[np.ndarray, "B D"]:
    """Returns down(gelu(gate(x)) * up(x)); see `gated_mlp_tpu`."""
    gate, up = np.split(np.asarray(x, np.float64) @ np.asarray(gate_up, np.float64).T + gate_up_bias, 2, axis=1)
    gelu = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
    return np.asarray((gelu * up) @ np.asarray(down, np.float64).T + down_bias)

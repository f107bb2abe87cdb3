"""Float64 reference of the recurrent block, composed of the references of its parts."""

import numpy as np
from jaxtyping import Float, Int

from ..causal_conv1d.reference import causal_conv1d_reference
from ..rg_lru.reference import rg_lru_reference


def recurrent_block_reference(
    xy: Float[np.ndarray, "B T E2"],
    conv_weight: Float[np.ndarray, "K E"],
    conv_bias: Float[np.ndarray, " E"],
    gate_weight: Float[np.ndarray, "N e e2"],
    gate_bias: Float[np.ndarray, "N e2"],
    a_param: Float[np.ndarray, " E"],
    conv: Float[np.ndarray, "K1 B E"],
    h: Float[np.ndarray, "B E"],
    positions: Int[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T E"], Float[np.ndarray, "K1 B E"], Float[np.ndarray, "B E"]]:
    """Returns outputs, the new conv and the new h; see `recurrent_chunk_tpu`. A step is a chunk of length 1."""
    x, y = np.split(np.asarray(xy, np.float64), 2, axis=2)
    c, conv = causal_conv1d_reference(x, conv_weight, conv_bias, conv, positions)
    blocks, size = gate_weight.shape[:2]
    gates = np.einsum("rni,nio->rno", c.reshape(-1, blocks, size), np.asarray(gate_weight, np.float64)) + gate_bias
    input_gate, recurrence_gate = (g.reshape(c.shape) for g in np.split(gates, 2, axis=2))
    log_decay = -8.0 * np.log1p(np.exp(np.asarray(a_param, np.float64)))
    states, h = rg_lru_reference(c, input_gate, recurrence_gate, log_decay, h, positions)
    gelu = 0.5 * y * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (y + 0.044715 * y**3)))
    return gelu * states, conv, h

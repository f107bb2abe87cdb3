"""Float64 references of the ops in NumPy, written as the equations are: one row, one token and one key at a time.

Each kernel must agree with its reference on the cases that its tests share.
"""

import numpy as np
from jaxtyping import Float, Int, Int8


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
    return _gelu(y) * states, conv, h


def window_attention_reference(
    q: Float[np.ndarray, "B T N d"],
    k: Float[np.ndarray, "B T d"],
    v: Float[np.ndarray, "B T d"],
    ring_k: Float[np.ndarray, "B W d"],
    ring_v: Float[np.ndarray, "B W d"],
    positions: Int[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T N d"], Float[np.ndarray, "B W d"], Float[np.ndarray, "B W d"]]:
    """Returns outputs and rings of attending and writing one token at a time.

    Positions are consecutive within a row, and padding comes last.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    ring_k, ring_v = np.array(ring_k, np.float64), np.array(ring_v, np.float64)
    window, out = ring_k.shape[1], np.zeros(q.shape)
    for row in range(q.shape[0]):
        for t in np.flatnonzero(positions[row] >= 0):
            p = positions[row, t]
            slots = [j % window for j in range(max(0, p - window), p)]
            keys = np.stack([*ring_k[row, slots], k[row, t]])
            values = np.stack([*ring_v[row, slots], v[row, t]])
            scores = q[row, t] @ keys.T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[row, t] = weights @ values / weights.sum(axis=-1, keepdims=True)
            ring_k[row, p % window], ring_v[row, p % window] = k[row, t], v[row, t]
    return out, ring_k, ring_v


def quantize_reference(x: Float[np.ndarray, "R I"]) -> tuple[Float[np.ndarray, "R I"], Float[np.ndarray, "R 1"]]:
    """Returns each row in steps of a 127th of its largest absolute value, rounded to whole ones, and its step."""
    wide = np.asarray(x, np.float64)
    step = np.maximum(np.abs(wide).max(axis=1, keepdims=True), 1e-30) / 127
    return np.rint(wide / step), step


def int8_product_reference(
    x: Float[np.ndarray, "R I"],
    values: Int8[np.ndarray, "O I"],
    scale: Float[np.ndarray, " O"],
    bias: Float[np.ndarray, " O"],
) -> Float[np.ndarray, "R O"]:
    """Returns x · (values * scale)ᵀ + bias with quantised rows; see `int8_product_tpu`."""
    rows, step = quantize_reference(x)
    return np.asarray(rows @ np.asarray(values, np.float64).T * step * np.asarray(scale, np.float64) + bias)


def gated_mlp_reference(
    x: Float[np.ndarray, "B D"],
    gate_up: Float[np.ndarray, "F2 D"],
    gate_up_bias: Float[np.ndarray, " F2"],
    down: Float[np.ndarray, "D F"],
    down_bias: Float[np.ndarray, " D"],
) -> Float[np.ndarray, "B D"]:
    """Returns down(gelu(gate(x)) * up(x)); see `gated_mlp_tpu`."""
    both = np.asarray(x, np.float64) @ np.asarray(gate_up, np.float64).T + gate_up_bias
    return np.asarray(_gated(both) @ np.asarray(down, np.float64).T + down_bias)


def int8_gated_mlp_reference(
    x: Float[np.ndarray, "B D"],
    gate_up: Int8[np.ndarray, "F2 D"],
    gate_up_scale: Float[np.ndarray, " F2"],
    gate_up_bias: Float[np.ndarray, " F2"],
    down: Int8[np.ndarray, "D F"],
    down_scale: Float[np.ndarray, " D"],
    down_bias: Float[np.ndarray, " D"],
) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B F"]]:
    """Returns down(gelu(gate(x)) * up(x)) with rows quantised before each product, and the products in between."""
    products = _gated(int8_product_reference(x, gate_up, gate_up_scale, gate_up_bias))
    return int8_product_reference(products, down, down_scale, down_bias), products


def _gated(both: Float[np.ndarray, "B F2"]) -> Float[np.ndarray, "B F"]:
    gate, up = np.split(both, 2, axis=1)
    return np.asarray(_gelu(gate) * up)


def _gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))

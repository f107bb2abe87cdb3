"""Float64 reference of window attention: each query against the list of keys that it sees."""

import numpy as np
from jaxtyping import Float, Int


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

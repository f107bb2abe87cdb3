"""Float64 references of the gated MLP."""

import numpy as np
from jaxtyping import Float, Int8

from ..product.reference import int8_product_reference


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
    gelu = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
    return np.asarray(gelu * up)

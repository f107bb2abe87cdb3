"""Float64 reference of products in int8."""

import numpy as np
from jaxtyping import Float, Int8


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

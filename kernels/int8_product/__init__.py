"""Products of int8 matrices with activations that are quantised to int8 row by row (W8A8).

On a TPU one kernel quantises the activations on the chip, where they stay while the matrix streams past them. Separate
operations would move the activations between quantising, multiplying and scaling.
"""

from ..backend import Backend

__all__ = ["fills_registers", "has_kernel"]


def has_kernel(backend: Backend, shape: tuple[int, ...]) -> bool:
    """Returns whether the backend has a kernel for products with an int8 matrix of this shape."""
    return backend.int8_product is not None and fills_registers(shape)


def fills_registers(*shapes: tuple[int, ...]) -> bool:
    """Returns whether matrices of these shapes consist of whole vector registers."""
    return all(size % 128 == 0 for shape in shapes for size in shape)

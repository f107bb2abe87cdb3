"""Output layer: a model's logits after the soft cap, or their argmax alone.

CPUs have native kernels for packed matrices, and TPUs one for the argmax; neither argmax stores the logits.
"""

from jaxtyping import Array, Float, Float32, Int32

from ..backend import Backend
from ..matrices import Matrix, PackedMatrix
from .xla import argmax_xla, logits_xla, soft_cap

__all__ = ["argmax", "has_argmax_without_logits", "logits", "soft_cap"]


def logits(
    x: Float[Array, "*rows D"], weight: Matrix, cap: float | None, backend: Backend
) -> Float32[Array, "*rows V"]:
    """Returns cap * tanh(x · weightᵀ / cap).

    Args:
      x: Activations after the final norm.
      weight: Matrix with a row for each token.
      cap: Soft cap; None for the products themselves.
      backend: Backend of the kernels.
    """
    return backend.dispatch("logits", logits_xla, x, weight, cap)


def argmax(x: Float[Array, "R D"], weight: Matrix, cap: float | None, backend: Backend) -> Int32[Array, " R"]:
    """Returns the token with the largest logit of each row; the lowest id among equals.

    A row whose largest logit is not finite gets any token, or a negative one.
    """
    return backend.dispatch("argmax", argmax_xla, x, weight, cap)


def has_argmax_without_logits(weight: Matrix) -> bool:
    """Returns whether `argmax` with this matrix has a kernel that does not store the logits."""
    return isinstance(weight, PackedMatrix)

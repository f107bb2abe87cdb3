"""Gated MLP (arXiv 2402.19427, section 2.2): down(gelu(gate(x)) * up(x)).

On a TPU one kernel reads the weights once and keeps intermediate results in on-chip memory. On other devices, and for
the many rows of a prefill, separate matrix products are as fast. The kernel for int8 matrices takes any number of rows,
because it also quantises them on the chip.
"""

import jax.numpy as jnp

from ..backend import Backend
from ..int8_product import fills_registers

__all__ = ["has_int8_kernel", "has_kernel"]


def has_kernel(backend: Backend, rows: int, dtype: jnp.dtype) -> bool:
    """Returns whether the backend has a kernel for this number of rows and dtype of the weights."""
    return rows <= backend.gated_mlp_rows and jnp.issubdtype(dtype, jnp.floating)


def has_int8_kernel(backend: Backend, gate_up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Returns whether the backend has a kernel for int8 matrices of these shapes."""
    return backend.int8_gated_mlp is not None and fills_registers(gate_up, down)

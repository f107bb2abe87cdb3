"""Gated MLP (arXiv 2402.19427, section 2.2) of a decode step's rows: down(gelu(gate(x)) * up(x)).

On a TPU one kernel reads the weights once and keeps intermediate results in on-chip memory. On other devices, and for
the many rows of a prefill, separate matrix products are as fast.
"""

import jax.numpy as jnp

from ..backend import Backend

__all__ = ["has_kernel"]


def has_kernel(backend: Backend, rows: int, dtype: jnp.dtype) -> bool:
    """Returns whether the backend has a kernel for this number of rows and dtype of the weights."""
    return rows <= backend.gated_mlp_rows and jnp.issubdtype(dtype, jnp.floating)

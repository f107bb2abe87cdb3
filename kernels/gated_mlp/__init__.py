"""The gated MLP for the few rows of a decode step: down(gelu(gate(x)) * up(x)) without writing what is in between.

On a TPU one kernel reads the weights once and keeps everything else on the chip. Elsewhere, and for the many rows of
a prefill, plain products are as good.
"""

import jax.numpy as jnp

from .. import Backend
from .pallas_tpu import MAX_ROWS, gated_mlp_tpu

__all__ = ["gated_mlp_tpu", "has_kernel"]


def has_kernel(backend: Backend, rows: int, dtype: jnp.dtype) -> bool:
    """Whether there is a kernel for this many rows and weights of this type."""
    return backend == "tpu" and rows <= MAX_ROWS and jnp.issubdtype(dtype, jnp.floating)

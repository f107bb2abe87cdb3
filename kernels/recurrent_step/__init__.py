"""One decode step of a whole recurrent block between its projections: convolution, gates, RG-LRU and gating product.

On a TPU everything between the two projections is one kernel, because between them a decode step only moves bytes:
each of its parts alone would write its result to memory for the next to read. Elsewhere the block's own parts do it,
and so they do where a gate block does not fill whole vector registers.
"""

from .. import Backend
from .pallas_tpu import recurrent_step_tpu

__all__ = ["has_kernel", "recurrent_step_tpu"]


def has_kernel(backend: Backend, gate_block: int) -> bool:
    """Whether there is a kernel for gate blocks of this many channels."""
    return backend == "tpu" and gate_block % 128 == 0

"""A whole recurrent block between its projections: convolution, gates, RG-LRU and gating product.

On a TPU all of that is one kernel, for a decode step and for a chunk of a prompt, because between its projections the
block only moves bytes: each of its parts alone would write its result to memory for the next to read. Elsewhere the
parts are called one by one, and so they are where a gate block does not fill whole vector registers.
"""

from .. import Backend
from .pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu

__all__ = ["has_kernel", "recurrent_chunk_tpu", "recurrent_step_tpu"]


def has_kernel(backend: Backend, gate_block: int) -> bool:
    """Whether there are kernels for gate blocks of this many channels."""
    return backend == "tpu" and gate_block % 128 == 0

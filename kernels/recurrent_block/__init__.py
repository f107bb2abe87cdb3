"""Recurrent block (arXiv 2402.19427, section 2.3) between its projections: convolution, gates, RG-LRU, gelu product.

On a TPU this is one kernel, for a decode step and for a chunk of a prompt, because the block is bound by memory between
its projections: separate operations would write each result to memory for the next one to read. Other backends, and
gate blocks that do not fill whole vector registers, use separate operations.
"""

from .. import Backend
from .pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu

__all__ = ["has_kernel", "recurrent_chunk_tpu", "recurrent_step_tpu"]


def has_kernel(backend: Backend, gate_block: int) -> bool:
    """Returns whether the backend has kernels for gate blocks of this many channels."""
    return backend == "tpu" and gate_block % 128 == 0

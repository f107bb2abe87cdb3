"""Recurrent block (arXiv 2402.19427, section 2.3) between its projections: convolution, gates, RG-LRU, gelu product.

On a TPU this is one kernel, for a decode step and for a chunk of a prompt, because the block is bound by memory between
its projections: separate operations would write each result to memory for the next one to read. On a GPU it is one
kernel for a decode step, whose separate operations take longer to launch than to run. Other backends, and gate blocks
that do not fill whole vector registers, use separate operations.
"""

from ..backend import Backend

__all__ = ["has_kernel"]


def has_kernel(backend: Backend, steps: int, gate_block: int) -> bool:
    """Returns whether the backend has a kernel for this many steps and gate blocks of this many channels."""
    kernel = backend.recurrent_step if steps == 1 else backend.recurrent_chunk
    return kernel is not None and gate_block % 128 == 0

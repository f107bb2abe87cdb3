"""Kernels on arrays, without knowledge of a model or a request.

Letters in shapes: B rows, T time steps of a chunk, E RG-LRU width, N heads, d head size, W window, K conv taps.

Every kernel that walks along a chunk takes `positions: int32[B, T]`, each token's position in its own document.
Position 0 begins a document: nothing before it has an effect. A negative position is padding: it changes no state, and
its output is undefined. The tokens of a row come before its padding.

The caller chooses the backend, because JAX reports the machine that compiles, not the one that programs are compiled
for:

- "xla" runs everywhere. On CPUs its results have the same bits however a batch or a prompt is split.
- "cpu" uses the native kernels for CPUs (`roost.kernels.native`), with the same guarantee for batches.
- "tpu" uses Pallas kernels for TPUs, and "gpu" Pallas kernels for NVIDIA GPUs.

A backend without a kernel for an operation uses XLA's.

Kernels for GPUs use Pallas' Triton backend, which JAX 0.11 deprecated without a date. Its successor, Mosaic GPU, has no
exact float32 product and an interface declared unstable. On a GPU without Triton, use "xla".
"""

from typing import Final, Literal

type Backend = Literal["xla", "cpu", "tpu", "gpu"]

PORTABLE: Final[frozenset[Backend]] = frozenset(("xla", "cpu"))
"""Backends whose programs are written so that XLA's CPU compiler makes no copies of the state."""

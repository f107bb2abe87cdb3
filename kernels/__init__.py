"""Arrays in, arrays out: nothing here knows a model or a request.

Letters in shapes: B rows, T time steps of a chunk, E RG-LRU width, N heads, d head size, W window, K conv taps.

Every kernel that walks along a chunk takes `positions: int32[B, T]`, which says all there is to say about a row:
a token's place in its own document, where 0 begins a document (nothing before it counts) and a negative number
is padding (it changes no state, and its output means nothing). The tokens of a row stand left of its padding.

The backend is the caller's choice, because JAX names the machine that compiles, not the one compiled for: "xla" runs
everywhere and gives the same bits however a batch or a prompt is cut (on CPU); "cpu" takes native kernels for CPUs
(`roost.kernels.native`), and gives the same bits however a batch is cut too; "tpu" takes Pallas kernels for TPUs, and
"gpu" those for NVIDIA GPUs. A backend without a kernel of its own for something takes XLA's.

Kernels for GPUs go through Pallas' Triton backend, which JAX 0.11 deprecated without a date. It is what `pallas_call`
knows of GPUs; Mosaic GPU, its successor, has no exact float32 product and calls its own interface unstable. Where
Triton is missing, "xla" does the same on a GPU.
"""

from typing import Final, Literal

type Backend = Literal["xla", "cpu", "tpu", "gpu"]

PORTABLE: Final[frozenset[Backend]] = frozenset(("xla", "cpu"))
"""Backends for which programs are written so that XLA's compiler for CPUs makes no copies."""

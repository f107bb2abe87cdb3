"""Kernels on arrays, without knowledge of a model or a request.

Letters in shapes: B rows, T time steps of a chunk, E RG-LRU width, N heads, d head size, W window, K conv taps.

Every kernel that walks along a chunk takes `positions: int32[B, T]`, each token's position in its own document.
Position 0 begins a document: nothing before it has an effect. A negative position is padding: it changes no state, and
its output is undefined. The tokens of a row come before its padding.

Each package is an op, or a few that belong together. An op's entry is a function that dispatches to an implementation:
`Backend.dispatch` chooses the first kernel that takes the arguments, or XLA. `roost.kernels.backends` has a record of
each backend's kernels, and `roost.kernels.references` the ops in float64.

The caller passes a `Backend`, because JAX reports the machine that compiles, not the one that programs are compiled
for.
"""

from .backend import XLA, Backend, GpuSizes, Kernel

__all__ = ["XLA", "Backend", "GpuSizes", "Kernel"]

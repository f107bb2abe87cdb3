"""Local multi-query attention (arXiv 2402.19427, section 2.3) over a ring of keys and values.

A ring is `[B, W, d]`: the key of position p is in row p mod W. A query at position p sees the W + 1 keys of positions
p - W … p, both included. A decode step therefore attends first, and then writes its own key over that of p - W.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from .. import native
from ..backend import XLA, Backend
from .int8 import Int8Vectors, Vectors, pack, quantize, unpack, with_token_axis
from .ring import Blocks, Rings, block_sizes, first_rings, join_ring, split_ring, write_blocks, write_ring, zero_ring
from .xla import decode_attention_xla, prefill_attention_xla

__all__ = [
    "Blocks",
    "Int8Vectors",
    "Rings",
    "Vectors",
    "block_sizes",
    "decode_attention",
    "join_ring",
    "pack",
    "prefill_attention",
    "quantize",
    "split_ring",
    "unpack",
    "zero_ring",
]


def decode_attention(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"] | Int8Vectors,
    v: Float[Array, "B d"] | Int8Vectors,
    rings: tuple[Blocks, ...],
    positions: Int32[Array, " B"],
    backend: Backend = XLA,
) -> tuple[Float[Array, "B N d"], tuple[Blocks, ...]]:
    """Attends with one query per row to its ring and its own key, then writes the key into the ring.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE, in int8 if the rings are.
      v: Values of the new tokens, likewise.
      rings: Keys and values of the W tokens before them, for consecutive groups of rows; the last group may have more
        rings than rows are left. XLA and native kernels take any groups, with rings split into any blocks; other
        kernels take one group of unsplit rings.
      positions: Positions of the new tokens. Rows with a negative position are idle: nothing is written there, and
        their output is undefined.
      backend: Backend of the kernels.

    Returns:
      Outputs of the heads, in float32 or the dtype of q, and the rings.
    """
    kernel, multiple = backend.decode_attention, backend.ring_multiple
    if isinstance(k, Int8Vectors):
        kernel, multiple = backend.decode_attention_int8, backend.ring_multiple_int8
    if kernel is not None and rings[0][0][0].shape[1] % multiple == 0:
        ((whole,),) = rings
        out, whole = kernel(q, k, v, *whole, positions)
        return out, ((whole,),)
    if _has_native_kernel(backend, q, rings[0][0][0]):
        attend: Callable[..., tuple[Array, tuple[Blocks, ...]]] = native.decode_attention
        return attend(q, k, v, rings, positions)
    sizes = [blocks[0][0].shape[0] for blocks in rings]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    parts = [
        decode_attention_xla(q[r], _rows(k, r), _rows(v, r), first_rings(blocks, q[r].shape[0]), positions[r])
        for r, blocks in zip(rows, rings, strict=True)
    ]
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    out, k, v = jax.lax.optimization_barrier((out, k, v))  # reads before writes: no copy of the rings
    new_k, new_v = with_token_axis(k), with_token_axis(v)
    written = [
        write_blocks(blocks, _rows(new_k, r), _rows(new_v, r), positions[r, None], positions[r])
        for r, blocks in zip(rows, rings, strict=True)
    ]
    return out, tuple(written)


def _rows[Tree](tree: Tree, rows: slice) -> Tree:
    taken: Tree = jax.tree.map(lambda x: x[rows], tree)
    return taken


def _has_native_kernel(backend: Backend, q: Float[Array, "*rows N d"], keys: Vectors) -> bool:
    return backend.is_native and {q.dtype, keys.dtype} == {jnp.dtype(jnp.bfloat16)} and q.shape[-1] % 16 == 0


def prefill_attention(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"] | Int8Vectors,
    v: Float[Array, "B T d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, "B T"],
    block: int,
    backend: Backend = XLA,
) -> tuple[Float[Array, "B T N d"], Rings]:
    """Attends with a chunk of queries per row to the ring and the chunk, then writes the chunk into the ring.

    Args:
      q: Queries of the chunk, after RoPE.
      k: Keys of the chunk, after RoPE, in int8 if the rings are.
      v: Values of the chunk, likewise.
      rings: Keys and values of the W tokens before the chunk.
      positions: Positions of the tokens; see `roost.kernels`. They are consecutive within a row, except that XLA
        supports documents that begin inside a row, for training.
      block: Queries per block of XLA's implementation; T is a multiple of it.
      backend: Backend of the kernels.

    Returns:
      Outputs of the heads, in float32 or the dtype of q, and the rings.
    """
    if _has_native_kernel(backend, q, rings[0]):
        attend: Callable[..., Array] = native.prefill_attention
        mixed = attend(q, k, v, *rings, positions)
        mixed, k, v = jax.lax.optimization_barrier((mixed, k, v))  # reads before writes: no copy of the rings
        return mixed, write_ring(rings, k, v, positions, positions[:, 0])
    if backend.prefill_attention is None or (isinstance(k, Int8Vectors) and not backend.prefills_int8):
        return prefill_attention_xla(q, k, v, rings, positions, block)
    out = backend.prefill_attention(q, k, v, *rings, positions)
    return out, write_ring(rings, k, v, positions, positions[:, 0])

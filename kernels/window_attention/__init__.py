"""Multi-query attention over the last W tokens, whose keys and values stand in a ring (spec section 2.6).

A ring is `[B, W, d]`: the key of position p lies in row p mod W. A query at p sees the keys of p - W ... p, both
included: W + 1 of them. So a step attends before it writes its own key over that of p - W.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from .. import PORTABLE, Backend, native
from .pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from .pallas_tpu import decode_attention_tpu, prefill_attention_tpu
from .ring import Blocks, Rings, block_sizes, cut_ring, whole_ring, write_blocks, write_ring
from .xla import decode_attention_xla, prefill_attention_xla

__all__ = ["Blocks", "Rings", "block_sizes", "cut_ring", "decode_attention", "prefill_attention", "whole_ring"]

_DECODE: Final = {"tpu": decode_attention_tpu, "gpu": decode_attention_gpu}
_PREFILL: Final = {"tpu": prefill_attention_tpu, "gpu": prefill_attention_gpu}


def decode_attention(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    rings: tuple[Blocks, ...],
    positions: Int32[Array, " B"],
    backend: Backend = "xla",
) -> tuple[Float[Array, "B N d"], tuple[Blocks, ...]]:
    """One query per row against its ring and its own key, then the key is written into the ring.

    Args:
      q, k, v: of the new token, after RoPE.
      rings: keys and values of the W tokens before it, of groups of rows that follow one another. "xla" and
        "cpu" take any groups, each ring cut into any blocks; the others take one group of whole rings.
      positions: of the new token; negative rows are idle: nothing is written there, and their output means nothing.
      backend: see `roost.kernels`.

    Returns:
      The heads' outputs, in float32 or the type of q, and the rings.
    """
    sizes = [blocks[0][0].shape[0] for blocks in rings]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    if backend in PORTABLE:
        attend = native.decode_attention if _has_native_kernel(backend, q, rings) else decode_attention_xla
        parts = [attend(q[r], k[r], v[r], blocks, positions[r]) for r, blocks in zip(rows, rings, strict=True)]
        out = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    else:
        (((ring_k, ring_v),),) = rings
        out = _DECODE[backend](q, k, v, ring_k, ring_v, positions)
    out, k, v = jax.lax.optimization_barrier((out, k, v))  # rings are read before they are written: no copy is needed
    written = [
        write_blocks(blocks, k[r, None], v[r, None], positions[r, None], positions[r])
        for r, blocks in zip(rows, rings, strict=True)
    ]
    return out, tuple(written)


def _has_native_kernel(backend: Backend, q: Float[Array, "B N d"], rings: tuple[Blocks, ...]) -> bool:
    types = {q.dtype, rings[0][0][0].dtype}
    return backend == "cpu" and types == {jnp.dtype(jnp.bfloat16)} and q.shape[-1] % 16 == 0


def prefill_attention(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B T d"],
    v: Float[Array, "B T d"],
    rings: Rings,
    positions: Int32[Array, "B T"],
    block: int,
    backend: Backend = "xla",
) -> tuple[Float[Array, "B T N d"], Rings]:
    """A chunk of queries per row against the ring and the chunk; then the chunk is written into the ring.

    Args:
      q, k, v: of the chunk, after RoPE.
      rings: keys and values of the W tokens before it.
      positions: see `roost.kernels`; those of a row's tokens follow one another (documents that begin inside a row
        are understood by "xla" and "cpu" only, for training).
      block: queries per block of "xla" and "cpu"; T is a multiple of it.
      backend: see `roost.kernels`.
    """
    if backend in PORTABLE:
        return prefill_attention_xla(q, k, v, rings, positions, block)
    out = _PREFILL[backend](q, k, v, *rings, positions)
    return out, write_ring(rings, k, v, positions, positions[:, 0])

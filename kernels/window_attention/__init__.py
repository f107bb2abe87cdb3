"""Multi-query attention over the last W tokens, whose keys and values stand in a ring (spec section 2.6).

A ring is `[B, W, d]`: the key of position p lies in row p mod W. A query at p sees the keys of p - W ... p, both
included: W + 1 of them. So a step attends before it writes its own key over that of p - W.
"""

from jaxtyping import Array, Float, Int32

from .. import Backend
from .pallas_tpu import decode_attention_tpu, prefill_attention_tpu
from .ring import Rings, write_ring
from .xla import decode_attention_xla, prefill_attention_xla

__all__ = ["Rings", "decode_attention", "prefill_attention"]


def decode_attention(
    q: Float[Array, "B N d"],
    k: Float[Array, "B d"],
    v: Float[Array, "B d"],
    rings: Rings,
    positions: Int32[Array, " B"],
    backend: Backend = "xla",
) -> tuple[Float[Array, "B N d"], Rings]:
    """One query per row against its ring and its own key, then the key is written into the ring.

    Args:
      q, k, v: of the new token, after RoPE.
      rings: keys and values of the W tokens before it.
      positions: of the new token; negative rows are idle: nothing is written there, and their output means nothing.
      backend: see `roost.kernels`.

    Returns:
      The heads' outputs, in float32 or the type of q, and the rings.
    """
    attend = decode_attention_tpu if backend == "tpu" else decode_attention_xla
    out = attend(q, k, v, *rings, positions)
    return out, write_ring(rings, k[:, None], v[:, None], positions[:, None], positions)


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
        are understood by the "xla" backend only, for training).
      block: queries per block of the "xla" backend; T is a multiple of it.
      backend: see `roost.kernels`.
    """
    if backend == "tpu":
        out = prefill_attention_tpu(q, k, v, *rings, positions)
        return out, write_ring(rings, k, v, positions, positions[:, 0])
    return prefill_attention_xla(q, k, v, rings, positions, block)

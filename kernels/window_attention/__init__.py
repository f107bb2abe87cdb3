"""Local attention (arXiv 2402.19427, section 2.3) over a ring of keys and values, with one key head or several.

A ring is `[B, W, d]`: the key of position p is in row p mod W. A query at position p sees the W + 1 keys of positions
p - W … p, both included. A decode step therefore attends first, and then writes its own key over that of p - W.

With G > 1 key heads, keys, values and rings have an axis of G after that of the rows, and query heads n N / G to
(n + 1) N / G - 1 share key head n. Kernels get the key heads as rows; see `ring.py`.
"""

from functools import partial

from jaxtyping import Array, Float, Int32

from ..backend import XLA, Backend
from .ring import (
    Int8Vectors,
    Rings,
    Vectors,
    for_each_head,
    heads_as_rows,
    num_key_heads,
    outputs_of_rows,
    pack,
    put_tokens,
    quantize,
    queries_by_key_head,
    read_ring,
    rows_as_heads,
    unpack,
    write_ring,
    zero_ring,
)
from .xla import decode_attention_xla, prefill_attention_xla


def decode_attention(
    q: Float[Array, "B N d"],
    k: Float[Array, "B *G d"] | Int8Vectors,
    v: Float[Array, "B *G d"] | Int8Vectors,
    rings: Rings,
    positions: Int32[Array, " B"],
    backend: Backend = XLA,
) -> tuple[Float[Array, "B N d"], Rings]:
    """Attends with one query per row to its ring and its own key, then writes the key into the ring.

    Args:
      q: Queries of the new tokens, after RoPE.
      k: Keys of the new tokens, after RoPE, in int8 if the rings are.
      v: Values of the new tokens, likewise.
      rings: Keys and values of the W tokens before them, of these rows and maybe of others behind them.
      positions: Positions of the new tokens. Rows with a negative position are idle: nothing is written there, and
        their output is undefined.
      backend: Backend of the kernels.

    Returns:
      Outputs of the heads, in float32 or the dtype of q, and the rings.
    """
    heads = num_key_heads(rings[0])
    k, v, rings = heads_as_rows((k, v, rings), heads)
    rows = queries_by_key_head(q, heads), k, v, rings, for_each_head(positions, heads)
    mixed, written = backend.dispatch("decode_attention", decode_attention_xla, *rows)
    return outputs_of_rows(mixed, heads), rows_as_heads(written, heads)


def prefill_attention(
    q: Float[Array, "B T N d"],
    k: Float[Array, "B *G T d"] | Int8Vectors,
    v: Float[Array, "B *G T d"] | Int8Vectors,
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
    xla = partial(prefill_attention_xla, block=block)
    heads = num_key_heads(rings[0])
    k, v, rings = heads_as_rows((k, v, rings), heads)
    rows = queries_by_key_head(q, heads), k, v, rings, for_each_head(positions, heads)
    mixed, written = backend.dispatch("prefill_attention", xla, *rows)
    return outputs_of_rows(mixed, heads), rows_as_heads(written, heads)


def write_window(rings: Rings, k: Vectors, v: Vectors, positions: Int32[Array, "B T"]) -> Rings:
    """Writes a chunk into the rings as `prefill_attention` does, without attending."""
    heads = num_key_heads(rings[0])
    rings, k, v = heads_as_rows((rings, k, v), heads)
    each = for_each_head(positions, heads)
    return rows_as_heads(write_ring(rings, k, v, each, each[:, 0]), heads)

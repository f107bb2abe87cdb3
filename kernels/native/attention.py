"""Local multi-query attention over rings of keys and values in bfloat16; see `roost.kernels.window_attention`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32, Int32

from ..window_attention.int8 import Int8Vectors, Vectors
from ..window_attention.ring import Blocks, Rings, write_ring
from .library import Products, call, in_pairs


def takes_decode(q: Array, k: Vectors, v: Vectors, rings: tuple[Blocks, ...], positions: Array) -> bool:
    """Returns whether `decode_attention` supports these: bfloat16, with a head size that is a multiple of 16."""
    return _takes(q, rings[0][0][0])


def takes_prefill(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> bool:
    """Returns whether `prefill_attention` supports these, as `takes_decode` does."""
    return _takes(q, rings[0])


def _takes(q: Array, keys: Vectors) -> bool:
    return {q.dtype, keys.dtype} == {jnp.dtype(jnp.bfloat16)} and q.shape[-1] % 16 == 0


def decode_attention(
    q: BFloat16[Array, "B N d"],
    k: BFloat16[Array, "B d"],
    v: BFloat16[Array, "B d"],
    rings: tuple[tuple[tuple[BFloat16[Array, "_ _ d"], BFloat16[Array, "_ _ d"]], ...], ...],
    positions: Int32[Array, " B"],
) -> tuple[Float32[Array, "B N d"], Any]:
    """Attends with one query per row and head to the filled part of a ring and to the token's own key, then writes it.

    Args:
      q: Queries of the new tokens; d is a multiple of 16.
      k: Keys of the new tokens.
      v: Values of the new tokens.
      rings: Keys and values of the tokens before them, for consecutive groups of rows: the blocks of rings that are
        split along their rows. They are updated in place if they are donated. The last group may have more rings than
        rows are left.
      positions: Positions of the new tokens; rows with a negative position give zeros and write nothing.

    Returns:
      Outputs of the heads, and the rings.
    """
    arrays, structure = jax.tree.flatten(rings)
    out = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    results = (out, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
    inputs = (q, k, v, positions, *arrays)
    aliases = {len(inputs) - len(arrays) + i: 1 + i for i in range(len(arrays))}
    call: Any = jax.ffi.ffi_call("roost_decode_attention", results, input_output_aliases=aliases)
    window = sum(keys.shape[1] for keys, _ in rings[0])
    mixed, *written = call(*inputs, window=np.int64(window))
    return mixed, jax.tree.unflatten(structure, written)


def prefill_attention(
    q: BFloat16[Array, "B T N d"],
    k: BFloat16[Array, "B T d"],
    v: BFloat16[Array, "B T d"],
    ring_k: BFloat16[Array, "B W d"],
    ring_v: BFloat16[Array, "B W d"],
    positions: Int32[Array, "B T"],
    products: Products | None = None,
) -> BFloat16[Array, "B T N d"]:
    """Attends with a chunk of queries per row to a ring, which is only read, and to the chunk.

    A query's bits do not depend on the chunk that it is in.

    Args:
      q: Queries of the chunk; d is a multiple of 16.
      k: Keys of the chunk.
      v: Values of the chunk.
      ring_k: Keys of the W tokens before the chunk.
      ring_v: Values of those tokens.
      positions: Positions of the tokens, consecutive within a row; padding, with negative positions, comes last.
      products: Way to compute products; None for the faster one here.

    Returns:
      Outputs of the heads, zeros in padding.
    """
    inputs = (q, k, v, ring_k, ring_v, positions)
    return call("roost_prefill_attention", q.shape, q.dtype, *inputs, in_pairs=in_pairs(products))


def prefill_and_write(
    q: BFloat16[Array, "B T N d"],
    k: BFloat16[Array, "B T d"],
    v: BFloat16[Array, "B T d"],
    rings: Rings,
    positions: Int32[Array, "B T"],
) -> tuple[BFloat16[Array, "B T N d"], Rings]:
    """Attends as `prefill_attention` does, then writes the chunk into the rings."""
    ring_k, ring_v = rings
    assert not isinstance(ring_k, Int8Vectors)
    assert not isinstance(ring_v, Int8Vectors)
    mixed = prefill_attention(q, k, v, ring_k, ring_v, positions)
    mixed, k, v = jax.lax.optimization_barrier((mixed, k, v))  # reads before writes: no copy of the rings
    return mixed, write_ring(rings, k, v, positions, positions[:, 0])

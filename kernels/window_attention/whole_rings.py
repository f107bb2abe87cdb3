"""Pallas kernels as implementations of the ops: they take rows of one group, whose rings are not split."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from .int8 import Int8Vectors, Vectors
from .ring import Blocks, Rings, write_ring


def decode_with(kernel: Callable[..., Any]) -> Callable[..., tuple[Array, tuple[Blocks, ...]]]:
    """Returns an implementation of `decode_attention` that calls a kernel with whole rings."""

    def decode(
        q: Array, k: Vectors, v: Vectors, rings: tuple[Blocks, ...], positions: Array
    ) -> tuple[Array, tuple[Blocks, ...]]:
        ((whole,),) = rings
        out, whole = kernel(q, k, v, *whole, positions)
        return out, ((whole,),)

    return decode


def prefill_with(kernel: Callable[..., Array]) -> Callable[..., tuple[Array, Rings]]:
    """Returns an implementation of `prefill_attention` that calls a kernel, which only reads rings, and writes them."""

    def prefill(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> tuple[Array, Rings]:
        out = kernel(q, k, v, *rings, positions)
        return out, write_ring(rings, k, v, positions, positions[:, 0])

    return prefill


def takes_decode(
    q: Array, k: Vectors, v: Vectors, rings: tuple[Blocks, ...], positions: Array, *, is_int8: bool, multiple: int = 1
) -> bool:
    """Returns whether rings are in int8 or not, as the kernel reads them, with a length that is such a multiple."""
    return isinstance(k, Int8Vectors) == is_int8 and rings[0][0][0].shape[1] % multiple == 0


def takes_float_prefill(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> bool:
    """Returns whether keys are in a floating-point dtype."""
    return not isinstance(k, Int8Vectors)

"""Pallas kernels interpreted on a CPU; what lies beyond an array is NaN there."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from roost.kernels.rg_lru.gradient import Scan, with_gradient
from roost.kernels.rg_lru.pallas_gpu import reverse_scan_gpu, rg_lru_gpu
from roost.kernels.rg_lru.pallas_tpu import reverse_scan_tpu, rg_lru_tpu
from roost.kernels.window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from roost.kernels.window_attention.pallas_tpu import decode_attention_tpu, prefill_attention_tpu

__all__ = ["KERNELS", "Kernels", "compiled", "interpreted"]

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Quickly: what an interpreter is made of is long, and hardly runs."""


def interpreted(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return compiled(partial(kernel, interpret=True))


class Kernels(NamedTuple):
    """One of each kind, for one backend."""

    scan: Callable[..., Any]
    reverse_scan: Callable[..., Any]
    decode: Callable[..., Any]
    prefill: Callable[..., Any]
    scan_with_gradient: Scan
    """Not compiled."""

    @classmethod
    def of(cls, *kernels: Callable[..., Any]) -> "Kernels":
        scan, reverse_scan, *_ = (partial(kernel, interpret=True) for kernel in kernels)
        return cls(*map(interpreted, kernels), with_gradient(scan, reverse_scan))


KERNELS = {
    "tpu": Kernels.of(rg_lru_tpu, reverse_scan_tpu, decode_attention_tpu, prefill_attention_tpu),
    "gpu": Kernels.of(rg_lru_gpu, reverse_scan_gpu, decode_attention_gpu, prefill_attention_gpu),
}

"""Backends that have kernels of their own: one record each."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Final

from .backend import XLA, Backend, GpuSizes
from .gated_mlp.pallas_tpu import MAX_ROWS, gated_mlp_tpu
from .gated_mlp.pallas_tpu_int8 import int8_gated_mlp_tpu
from .int8_product.pallas_tpu import int8_product_tpu
from .recurrent_block.pallas_gpu import recurrent_step_gpu
from .recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from .rg_lru.pallas_gpu import rg_lru_gpu
from .rg_lru.pallas_tpu import rg_lru_tpu
from .sampling.pallas_tpu import sample_tpu
from .sampling.top_k import top_k_by_blocks
from .window_attention.int8_pallas_tpu import INT8_RING_MULTIPLE, decode_attention_int8_tpu
from .window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from .window_attention.pallas_tpu import RING_TILE, decode_attention_tpu, prefill_attention_tpu

CPU: Final = Backend("cpu", is_native=True)
"""Native kernels for x86 CPUs. Results have the same bits however a batch is split."""

TPU: Final = Backend(
    "tpu",
    rg_lru=rg_lru_tpu,
    decode_attention=decode_attention_tpu,
    ring_multiple=RING_TILE,
    decode_attention_int8=decode_attention_int8_tpu,
    ring_multiple_int8=INT8_RING_MULTIPLE,
    prefill_attention=prefill_attention_tpu,
    prefills_int8=True,
    recurrent_step=recurrent_step_tpu,
    recurrent_chunk=recurrent_chunk_tpu,
    gated_mlp=gated_mlp_tpu,
    gated_mlp_rows=MAX_ROWS,
    int8_product=int8_product_tpu,
    int8_gated_mlp=int8_gated_mlp_tpu,
    sample=sample_tpu,
)
"""Pallas kernels for TPUs."""


@cache
def gpu_backend(sizes: GpuSizes) -> Backend:
    """Returns the Pallas kernels for NVIDIA GPUs of compute capability 8.0 or above, with blocks for these sizes.

    They use Pallas' Triton backend, which JAX 0.11 deprecated without a date. Moving to its successor, Mosaic GPU,
    would take another kernel for each generation's tensor cores, which its products name, and an exact float32
    product, which it lacks. On a GPU without Triton, use `XLA`.
    """
    kernels = (rg_lru_gpu, decode_attention_gpu, prefill_attention_gpu)
    scan, decode, prefill = (partial(kernel, gpu=sizes) for kernel in kernels)
    return Backend(
        "gpu",
        rg_lru=scan,
        decode_attention=decode,
        prefill_attention=prefill,
        recurrent_step=recurrent_step_gpu,
        step_takes_sums=True,
        top_k=top_k_by_blocks,
        sampled_rows=64,
    )


BACKENDS: Final[Mapping[str, Backend]] = {backend.name: backend for backend in (XLA, CPU, TPU)}
"""Backends by name, except those of GPUs."""

"""Backends that have kernels of their own: one record each."""

from collections.abc import Mapping
from typing import Final

from .backend import XLA, Backend
from .gated_mlp.pallas_tpu import MAX_ROWS, gated_mlp_tpu
from .recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from .rg_lru.pallas_gpu import rg_lru_gpu
from .rg_lru.pallas_tpu import rg_lru_tpu
from .sampling.pallas_tpu import sample_tpu
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
    sample=sample_tpu,
)
"""Pallas kernels for TPUs."""

GPU: Final = Backend(
    "gpu", rg_lru=rg_lru_gpu, decode_attention=decode_attention_gpu, prefill_attention=prefill_attention_gpu
)
"""Pallas kernels for NVIDIA GPUs.

They use Pallas' Triton backend, which JAX 0.11 deprecated without a date. Its successor, Mosaic GPU, has no exact
float32 product and an interface declared unstable. On a GPU without Triton, use `XLA`.
"""

BACKENDS: Final[Mapping[str, Backend]] = {backend.name: backend for backend in (XLA, CPU, TPU, GPU)}
"""All backends by name."""

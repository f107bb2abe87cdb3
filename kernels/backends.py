"""Backends other than XLA: one record each."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Final

from .backend import NATIVE, XLA, Backend, GpuSizes, Kernel
from .gated_mlp import pallas_tpu as float_mlp_tpu
from .gated_mlp import pallas_tpu_int8 as int8_mlp_tpu
from .native import attention, int4, norms, products
from .native import output_layer as native_output_layer
from .native import recurrent_block as native_recurrent_block
from .output_layer import pallas_tpu as output_layer_tpu
from .product import takes_int8
from .product.int8_pallas_tpu import int8_product_tpu
from .recurrent_block import pallas_gpu as recurrent_gpu
from .recurrent_block import pallas_tpu as recurrent_tpu
from .rg_lru.pallas_gpu import rg_lru_gpu
from .rg_lru.pallas_tpu import rg_lru_tpu
from .sampling.pallas_tpu import choose_tokens_tpu, takes_fields
from .sampling.top_k import top_k_by_blocks
from .window_attention.int8_pallas_tpu import INT8_RING_MULTIPLE, decode_attention_int8_tpu
from .window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from .window_attention.pallas_tpu import RING_TILE, decode_attention_tpu, prefill_attention_tpu
from .window_attention.whole_rings import decode_with, prefill_with, takes_decode, takes_float_prefill

_RG_LRU: Final = ("rg_lru",)
_DECODE: Final = ("window_attention_decode",)
_PREFILL: Final = ("window_attention_prefill",)

CPU: Final = Backend(
    "cpu",
    tuple(
        Kernel(op, (NATIVE,), run, takes)
        for op, run, takes in (
            ("product", products.product, products.takes_product),
            ("product", int4.int4_product, int4.takes),
            ("gated_mlp", products.gated_mlp, products.takes_gated_mlp),
            ("rms_norm", norms.rms_norm, norms.takes),
            ("add_rms_norm", norms.add_rms_norm, norms.takes),
            ("recurrent_block", native_recurrent_block.recurrent_block, native_recurrent_block.takes),
            ("decode_attention", attention.decode_attention, attention.takes_decode),
            ("prefill_attention", attention.prefill_and_write, attention.takes_prefill),
            ("logits", native_output_layer.logits_of_rows, native_output_layer.takes),
            ("argmax", native_output_layer.finite_argmax, native_output_layer.takes),
        )
    ),
)
"""Native kernels for x86 CPUs. The split of a batch changes no bit of the results."""

TPU: Final = Backend(
    "tpu",
    (
        Kernel("product", ("int8_product",), int8_product_tpu, takes_int8),
        Kernel("gated_mlp", ("gated_mlp",), float_mlp_tpu.gated_mlp_tpu, float_mlp_tpu.takes),
        Kernel("gated_mlp", ("int8_gated_mlp",), int8_mlp_tpu.int8_gated_mlp_tpu, int8_mlp_tpu.takes_int8),
        Kernel(
            "recurrent_block",
            ("recurrent_step", "recurrent_chunk"),
            recurrent_tpu.recurrent_block_tpu,
            recurrent_tpu.takes,
        ),
        Kernel("rg_lru", _RG_LRU, rg_lru_tpu),
        Kernel(
            "decode_attention",
            _DECODE,
            decode_with(decode_attention_tpu),
            partial(takes_decode, is_int8=False, multiple=RING_TILE),
        ),
        Kernel(
            "decode_attention",
            _DECODE,
            decode_with(decode_attention_int8_tpu),
            partial(takes_decode, is_int8=True, multiple=INT8_RING_MULTIPLE),
        ),
        Kernel("prefill_attention", _PREFILL, prefill_with(prefill_attention_tpu)),
        Kernel("sample", ("sample",), choose_tokens_tpu, takes_fields),
        Kernel("argmax", ("argmax",), output_layer_tpu.argmax_tpu, output_layer_tpu.takes),
    ),
)
"""Pallas kernels for TPUs."""


@cache
def gpu_backend(sizes: GpuSizes) -> Backend:
    """Returns the Pallas kernels for NVIDIA GPUs of compute capability 8.0 or above, with blocks for these sizes.

    They use Pallas' Triton backend, which JAX 0.11 deprecated without a date. Moving to its successor, Mosaic GPU,
    would take another kernel for each generation's tensor cores, which its products name, and an exact float32
    product, which it lacks. On a GPU without Triton, use `XLA`.
    """
    decode = decode_with(partial(decode_attention_gpu, gpu=sizes))
    prefill = prefill_with(partial(prefill_attention_gpu, gpu=sizes))
    return Backend(
        "gpu",
        (
            Kernel("recurrent_block", ("recurrent_step",), recurrent_gpu.recurrent_block_gpu, recurrent_gpu.takes),
            Kernel("rg_lru", _RG_LRU, partial(rg_lru_gpu, gpu=sizes)),
            Kernel("decode_attention", _DECODE, decode, partial(takes_decode, is_int8=False)),
            Kernel("prefill_attention", _PREFILL, prefill, takes_float_prefill),
            Kernel("top_k", (), top_k_by_blocks),
        ),
        sampled_rows=64,
    )


BACKENDS: Final[Mapping[str, Backend]] = {backend.name: backend for backend in (XLA, CPU, TPU)}
"""Backends by name. A GPU's backend depends on its sizes, and comes from `gpu_backend`."""


def kernel_names() -> tuple[str, ...]:
    """Returns the names of the kernels of all backends."""
    backends = (*BACKENDS.values(), gpu_backend(GpuSizes(0, 0)))
    return tuple(dict.fromkeys(name for backend in backends for name in backend.names))

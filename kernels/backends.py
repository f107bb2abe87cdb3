"""Backends other than XLA: one record each."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Final

from .backend import NATIVE, XLA, Backend, GpuSizes, Kernel
from .native import layers as native_layers
from .native import products as native_products
from .products import pallas_tpu as products_tpu
from .recurrent_block import pallas_gpu as recurrent_gpu
from .recurrent_block import pallas_tpu as recurrent_tpu
from .sampling import top_k_by_blocks
from .sampling.pallas_tpu import choose_tokens_tpu, takes_fields
from .window_attention import pallas_tpu_decode as decode_tpu
from .window_attention.pallas import decode_with, prefill_with, takes_floats
from .window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from .window_attention.pallas_tpu_prefill import prefill_attention_tpu
from .window_attention.xla import decode_attention_by_row

_DECODE: Final = ("window_attention_decode",)
_PREFILL: Final = ("window_attention_prefill",)

_BY_ROW: Final = Kernel("decode_attention", (), decode_attention_by_row)

CPU_XLA: Final = Backend("cpu-xla", (_BY_ROW,))
"""XLA, with what suits CPUs alone."""

CPU: Final = Backend(
    "cpu",
    (
        *(
            Kernel(op, (NATIVE,), run, takes)
            for op, run, takes in (
                ("product", native_products.product, native_products.takes_product),
                ("product", native_products.int4_product, native_products.takes_int4),
                ("gated_mlp", native_products.gated_mlp, native_products.takes_gated_mlp),
                ("rms_norm", native_layers.rms_norm, native_layers.takes_norm),
                ("add_rms_norm", native_layers.add_rms_norm, native_layers.takes_norm),
                ("recurrent_block", native_layers.recurrent_block, native_layers.takes_block),
                ("decode_attention", native_layers.decode_attention, native_layers.takes_attention),
                ("prefill_attention", native_layers.prefill_and_write, native_layers.takes_attention),
                ("logits", native_products.logits_of_rows, native_products.takes_output_layer),
                ("argmax", native_products.finite_argmax, native_products.takes_output_layer),
            )
        ),
        _BY_ROW,
    ),
    sampled_rows=4,  # idle ones at the end cost nothing
)
"""Native kernels for x86 CPUs. The split of a batch changes no bit of the results."""

TPU: Final = Backend(
    "tpu",
    (
        Kernel("product", ("int8_product",), products_tpu.int8_product_tpu, products_tpu.takes_int8_product),
        Kernel("gated_mlp", ("gated_mlp",), products_tpu.gated_mlp_tpu, products_tpu.takes_gated_mlp),
        Kernel("gated_mlp", ("int8_gated_mlp",), products_tpu.int8_gated_mlp_tpu, products_tpu.takes_int8_gated_mlp),
        Kernel(
            "recurrent_block",
            ("recurrent_step", "recurrent_chunk"),
            recurrent_tpu.recurrent_block_tpu,
            recurrent_tpu.takes,
        ),
        Kernel("decode_attention", _DECODE, decode_with(decode_tpu.decode_attention_tpu), decode_tpu.takes),
        Kernel("prefill_attention", _PREFILL, prefill_with(prefill_attention_tpu)),
        Kernel("sample", ("sample",), choose_tokens_tpu, takes_fields),
        Kernel("argmax", ("argmax",), products_tpu.argmax_tpu, products_tpu.takes_argmax),
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
            Kernel(
                "recurrent_block", ("recurrent_step",), recurrent_gpu.recurrent_block_gpu, recurrent_gpu.takes_block
            ),
            Kernel("rg_lru", ("rg_lru",), partial(recurrent_gpu.rg_lru_gpu, gpu=sizes)),
            Kernel("decode_attention", _DECODE, decode, takes_floats),
            Kernel("prefill_attention", _PREFILL, prefill, takes_floats),
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

"""Kernels for x86 CPUs with AVX-512 VNNI and BF16, run by XLA as custom calls if the installation compiled them.

Matrices are packed when they are loaded, in the order in which products read them. Products of few rows are bound by
memory bandwidth, and those of many rows by the processor's multipliers. A row's result depends neither on the other
rows nor on the number of threads. Products in int8 have the same bits as XLA's; products in bfloat16 differ from XLA's
in rounding.
"""

from .attention import decode_attention, prefill_attention
from .library import (
    CALLS,
    CALLS_VERSION,
    Products,
    chosen_products,
    instruction_sets,
    is_available,
    named_instruction_sets,
    why_unavailable,
)
from .norms import add_rms_norm, rms_norm
from .output_layer import argmax, logits
from .packing import STRIP_OUTPUTS, can_pack, can_pack_gates, pack, pack_gates, packed_gates_shape, packed_shape
from .products import bf16_gated_mlp, bf16_product, int8_gated_mlp, int8_product
from .recurrent_block import RecurrentWeights, recurrent_chunk, recurrent_step

__all__ = [
    "CALLS",
    "CALLS_VERSION",
    "STRIP_OUTPUTS",
    "Products",
    "RecurrentWeights",
    "add_rms_norm",
    "argmax",
    "bf16_gated_mlp",
    "bf16_product",
    "can_pack",
    "can_pack_gates",
    "chosen_products",
    "decode_attention",
    "instruction_sets",
    "int8_gated_mlp",
    "int8_product",
    "is_available",
    "logits",
    "named_instruction_sets",
    "pack",
    "pack_gates",
    "packed_gates_shape",
    "packed_shape",
    "prefill_attention",
    "recurrent_chunk",
    "recurrent_step",
    "rms_norm",
    "why_unavailable",
]

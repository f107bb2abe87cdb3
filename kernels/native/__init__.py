"""Kernels for x86 CPUs with AVX2 or AVX-512 VNNI, run by XLA as custom calls if the installation compiled them.

Matrices are packed when they are loaded, in the order in which products read them. Products of few rows are bound by
memory bandwidth, products of many rows by the processor's multipliers. A row's result depends neither on the other
rows nor on the number of threads. Products in int8 have the same bits as XLA's; products in bfloat16 differ from XLA's
in rounding.
"""

from .layers import add_rms_norm, decode_attention, prefill_attention, recurrent_chunk, recurrent_step, rms_norm
from .library import (
    CALLS,
    CALLS_VERSION,
    Products,
    chosen_products,
    instruction_sets,
    is_available,
    named_instruction_sets,
    possible_products,
    why_unavailable,
)
from .products import argmax, bf16_gated_mlp, bf16_product, int4_product, int8_gated_mlp, int8_product, logits

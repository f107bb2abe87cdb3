"""Record of a backend's kernels."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "rg_lru": ("rg_lru",),
    "window_attention_decode": ("decode_attention", "decode_attention_int8"),
    "window_attention_prefill": ("prefill_attention",),
    "recurrent_step": ("recurrent_step", "recurrent_chunk"),
    "recurrent_chunk": ("recurrent_step", "recurrent_chunk"),
    "gated_mlp": ("gated_mlp", "gated_mlp_rows"),
    "int8_product": ("int8_product",),
    "int8_gated_mlp": ("int8_gated_mlp",),
    "sample": ("sample",),
}
"""Fields of a backend by the name that a kernel has in compiled programs; those of one block go together."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Kernels of a backend, one row of `roost.kernels.backends`; XLA computes operations without a kernel.

    Attributes:
      name: Name of the backend.
      rg_lru: Scan of several steps; see `roost.kernels.rg_lru.rg_lru`.
      decode_attention: Attention of one query per row to rings in one block, and the write of its key; see
        `decode_attention_tpu`.
      ring_multiple: Number of which the windows of `decode_attention` are multiples.
      decode_attention_int8, ring_multiple_int8: The same for rings in int8; see `decode_attention_int8_tpu`.
      prefill_attention: Attention of a chunk per row to rings in one block, which are only read; see
        `prefill_attention_tpu`.
      prefills_int8: Whether `prefill_attention` takes rings in int8.
      recurrent_step: Recurrent block of a decode step; see `recurrent_step_tpu`.
      step_takes_sums: Whether `recurrent_step` takes its projections as float32 sums and rounds them itself, where XLA
        would do so in an operation of its own.
      recurrent_chunk: Recurrent block of a prefill chunk; see `recurrent_chunk_tpu`.
      gated_mlp: Gated MLP of a decode step; see `gated_mlp_tpu`.
      gated_mlp_rows: Maximum number of rows of `gated_mlp`.
      int8_product: Product of rows, quantised to int8, and an int8 matrix; see `int8_product_tpu`.
      int8_gated_mlp: Gated MLP with int8 matrices; see `int8_gated_mlp_tpu`.
      sample: Choice of a token per row, from a whole vocabulary's logits; see `sample_tpu`.
      top_k: The k largest elements of each row; see `top_k_by_blocks`.
      sampled_rows: Maximum number of rows that XLA samples at a time, since it keeps several copies of their logits;
        None for all rows.
      is_native: Whether matrix products and decode attention use `roost.kernels.native`.
    """

    name: str
    rg_lru: Callable[..., Any] | None = None
    decode_attention: Callable[..., Any] | None = None
    ring_multiple: int = 1
    decode_attention_int8: Callable[..., Any] | None = None
    ring_multiple_int8: int = 1
    prefill_attention: Callable[..., Any] | None = None
    prefills_int8: bool = False
    recurrent_step: Callable[..., Any] | None = None
    step_takes_sums: bool = False
    recurrent_chunk: Callable[..., Any] | None = None
    gated_mlp: Callable[..., Any] | None = None
    gated_mlp_rows: int = 0
    int8_product: Callable[..., Any] | None = None
    int8_gated_mlp: Callable[..., Any] | None = None
    sample: Callable[..., Any] | None = None
    top_k: Callable[..., Any] | None = None
    sampled_rows: int | None = None
    is_native: bool = False

    def without(self, kernels: Collection[str]) -> "Backend":
        """Returns the backend with XLA in the place of some kernels, and of all if one of them is not known.

        Args:
          kernels: Names of the kernels in compiled programs.
        """
        if not set(kernels) <= _FIELDS.keys():
            return XLA
        fields = {field for kernel in kernels for field in _FIELDS[kernel]}
        return replace(self, **{field: getattr(XLA, field) for field in fields})


class GpuSizes(NamedTuple):
    """Sizes of a GPU that decide on the blocks of its kernels.

    Attributes:
      block_memory: Bytes of shared memory that a block of threads may have.
      multiprocessors: Number of multiprocessors.
    """

    block_memory: int
    multiprocessors: int


XLA: Final = Backend("xla")
"""XLA on every platform. On CPUs its results have the same bits however a batch or a prompt is split."""

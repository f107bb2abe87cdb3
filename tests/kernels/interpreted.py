"""Pallas kernels interpreted on a CPU, where numbers beyond an array's end are NaN."""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import jax
from jax.experimental.pallas import tpu as pltpu
from roost.kernels import GpuSizes
from roost.kernels.window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu
from roost.kernels.window_attention.pallas_tpu_decode import decode_attention_tpu
from roost.kernels.window_attention.pallas_tpu_prefill import prefill_attention_tpu

__all__ = ["GPU_SIZES", "KERNELS", "Kernels", "compiled", "interpreted", "interpreted_copies"]

GPU_SIZES = GpuSizes(101_376, 58)
"""Sizes of an L4, whose blocks are the smallest."""

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles without optimisation: interpreted kernels are large programs that run only briefly."""


def interpreted(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return compiled(partial(kernel, interpret=True))


def interpreted_copies(kernel: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Interprets a TPU kernel that makes copies itself, and demands that all semaphores are 0 after its last grid step.

    A copy that is started and never awaited leaves its semaphore signalled, which neither races nor changes a result.
    The interpreter prints that, if copies happen at once: one that is late signals only when it is awaited.
    """
    params = pltpu.InterpretParams(**{"dma_execution_mode": "eager", **options})
    run = compiled(partial(kernel, interpret=params))

    def checked(*arguments: Any) -> Any:
        with redirect_stdout(StringIO()) as printed:
            results = jax.block_until_ready(run(*arguments))
        assert "Semaphore" not in printed.getvalue(), printed.getvalue()
        return results

    return checked


class Kernels(NamedTuple):
    """The attention kernels of one backend."""

    decode: Callable[..., Any]
    prefill: Callable[..., Any]


KERNELS = {
    "tpu": Kernels(interpreted_copies(decode_attention_tpu), interpreted(prefill_attention_tpu)),
    "gpu": Kernels(*(interpreted(partial(f, gpu=GPU_SIZES)) for f in (decode_attention_gpu, prefill_attention_gpu))),
}

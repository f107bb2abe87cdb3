"""Every kernel for GPUs lowers to a Triton program for an H100, at the models' shapes and at odd ones."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import triton as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from roost.kernels import GpuSizes
from roost.kernels.backends import gpu_backend
from roost.kernels.products import gated_mlp
from roost.kernels.recurrent_block import RecurrentWeights, recurrent_block
from roost.kernels.recurrent_block.pallas_gpu import rg_lru_gpu
from roost.kernels.recurrent_block.xla import rg_lru
from roost.kernels.window_attention import decode_attention, prefill_attention
from roost.kernels.window_attention.pallas_gpu import decode_attention_gpu, prefill_attention_gpu

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

F32, BF16, INT = jnp.dtype("float32"), jnp.dtype("bfloat16"), jnp.dtype("int32")
H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
SIZES = GpuSizes(block_memory=232_448, multiprocessors=132)
GPU = gpu_backend(SIZES)

SCANS = [(F32, 1, 2048, 2560), (F32, 8, 512, 4096), (BF16, 2, 70, 100), (F32, 3, 2, 24)]
"""2B, 9B, then lengths and widths that fill no block."""

ATTENTION = [(1, 2048, 10, 256, 2048), (64, 512, 16, 256, 2048), (4, 70, 4, 48, 50), (3, 33, 1, 16, 16)]
"""(rows, steps, heads, size, window): 2B, 9B, then heads, sizes and windows that fill no block."""


@pytest.fixture(autouse=True)
def _on_an_h100() -> Iterator[None]:
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
        yield


def kernels_in(function: Callable[..., Any], *shapes: tuple[Any, ...]) -> list[str]:
    """Returns the names of the Triton kernels in a function; arguments are given as (dtype, *shape)."""
    return kernels_for(function, *(jax.ShapeDtypeStruct(shape, dtype) for dtype, *shape in shapes))


def kernels_for(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Returns the names of the Triton kernels in a function of arguments of these shapes."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = text.split(f"@{plgpu.CUSTOM_CALL_TARGET_NAME}(")[1:]
    return [call.split(' name = "')[1].split('"')[0] for call in calls]


def scan_shapes(dtype: Any, rows: int, steps: int, width: int) -> list[tuple[Any, ...]]:
    sequence = (dtype, rows, steps, width)
    return [sequence, sequence, sequence, (F32, width), (F32, rows, width), (INT, rows, steps)]


@pytest.mark.parametrize(("dtype", "rows", "steps", "width"), SCANS)
def test_rg_lru(dtype: Any, rows: int, steps: int, width: int) -> None:
    assert kernels_in(partial(rg_lru_gpu, gpu=SIZES), *scan_shapes(dtype, rows, steps, width)) == ["rg_lru"]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("rows", "steps", "heads", "size", "window"), ATTENTION)
def test_attention(dtype: Any, rows: int, steps: int, heads: int, size: int, window: int) -> None:
    token, chunk, ring = (dtype, rows, size), (dtype, rows, steps, size), (dtype, rows, window, size)
    decode, prefill = partial(decode_attention_gpu, gpu=SIZES), partial(prefill_attention_gpu, gpu=SIZES)
    assert kernels_in(decode, (dtype, rows, heads, size), token, token, ring, ring, (INT, rows)) == [
        "window_attention_decode"
    ]
    assert kernels_in(prefill, (dtype, rows, steps, heads, size), chunk, chunk, ring, ring, (INT, rows, steps)) == [
        "window_attention_prefill"
    ]


def test_the_backend_takes_them() -> None:
    """A chunk's scan and attention run kernels on GPUs; a single step of the scan is XLA's."""

    def scan(*arguments: jax.Array) -> Any:
        return rg_lru(*arguments, GPU)

    assert kernels_in(scan, *scan_shapes(F32, 2, 1, 24)) == []
    assert kernels_in(scan, *scan_shapes(F32, 2, 8, 24)) == ["rg_lru"]

    def decode(q: jax.Array, k: jax.Array, ring: jax.Array, positions: jax.Array) -> Any:
        return decode_attention(q, k, k, (ring, ring), positions, GPU)

    def prefill(q: jax.Array, k: jax.Array, ring: jax.Array, positions: jax.Array) -> Any:
        return prefill_attention(q, k, k, (ring, ring), positions, 8, GPU)

    ring = (F32, 2, 16, 48)
    assert kernels_in(decode, (F32, 2, 4, 48), (F32, 2, 48), ring, (INT, 2)) == ["window_attention_decode"]
    assert kernels_in(prefill, (F32, 2, 8, 4, 48), (F32, 2, 8, 48), ring, (INT, 2, 8)) == ["window_attention_prefill"]


def test_gpus_have_a_kernel_of_the_block_for_single_steps() -> None:
    def block(xy: jax.Array, weights: RecurrentWeights, conv: jax.Array, h: jax.Array, positions: jax.Array) -> Any:
        return recurrent_block(lambda dtype: xy, weights, conv, h, positions, 64, 1, GPU)

    def kernels(steps: int) -> list[str]:
        weights = RecurrentWeights(*map(float32, ((4, 128), (128,), (1, 128, 256), (1, 256), (128,))))
        state = float32((3, 8, 128)), float32((8, 128))
        return kernels_for(block, float32((8, steps, 256)), weights, *state, jax.ShapeDtypeStruct((8, steps), INT))

    assert kernels(1) == ["recurrent_step"]
    assert kernels(64) == ["rg_lru"]


def float32(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, F32)


def test_gpus_have_no_kernel_of_the_mlp() -> None:
    weights = ((BF16, 256, 128), (F32, 256), (BF16, 128, 128), (F32, 128))
    assert kernels_in(partial(gated_mlp, backend=GPU), (BF16, 8, 128), *weights) == []

"""Every Pallas kernel compiles for real TPUs at common and at odd shapes, and states its cost."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from roost.kernels.matrices import Int8Matrix
from roost.kernels.products.pallas_tpu import argmax_tpu, gated_mlp_tpu, int8_gated_mlp_tpu, int8_product_tpu
from roost.kernels.recurrent_block import RecurrentInputs, RecurrentWeights
from roost.kernels.recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from roost.kernels.window_attention import Int8Vectors
from roost.kernels.window_attention.pallas_tpu_decode import decode_attention_tpu
from roost.kernels.window_attention.pallas_tpu_prefill import prefill_attention_tpu

pytestmark = pytest.mark.tpu_compile

F32, BF16, INT, INT8 = map(jnp.dtype, ("float32", "bfloat16", "int32", "int8"))


def compile_kernel(chip: SingleDeviceSharding, kernel: Callable[..., Any], *shapes: tuple[Any, ...]) -> Any:
    """Compiles a kernel for arguments given as (dtype, *shape), and returns the bytes that the compiler counts."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=chip) for dtype, *shape in shapes]
    lowered = jax.jit(kernel).trace(*arguments).lower(lowering_platforms=("tpu",))
    compiled = lowered.compile(compiler_options={"xla_vf_vmem_memory_space_assignment": "false"})
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
    return compiled.cost_analysis()["bytes accessed"]


def with_weights(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel of the recurrent block as a function of the arrays of its weights, after its first argument."""
    return lambda xy, *arrays: kernel(xy, RecurrentInputs(RecurrentWeights(*arrays[:5]), *arrays[5:]))


@pytest.mark.parametrize(
    ("dtype", "rows", "heads", "size", "window"),
    [(BF16, 512, 10, 256, 2048), (BF16, 64, 16, 256, 2048), (F32, 32, 4, 48, 128), (BF16, 4, 4, 16, 48)],
)
def test_decode_attention(
    chip: SingleDeviceSharding, dtype: Any, rows: int, heads: int, size: int, window: int
) -> None:
    """Rings of a larger pool, of which only the first are read and written."""
    token, ring = (dtype, rows, size), (dtype, 2 * rows, window, size)
    counted = compile_kernel(
        chip, decode_attention_tpu, (dtype, rows, heads, size), token, token, ring, ring, (INT, rows)
    )
    assert counted >= 2 * rows * window * size * dtype.itemsize, "both rings"


@pytest.mark.parametrize(
    ("dtype", "rows", "heads", "size", "window"),
    [(BF16, 512, 10, 256, 2048), (BF16, 224, 16, 256, 2048), (F32, 32, 4, 48, 128)],
)
def test_decode_attention_over_rings_in_int8(
    chip: SingleDeviceSharding, dtype: Any, rows: int, heads: int, size: int, window: int
) -> None:
    """Rings of a larger pool, of which only the first are read and written, in place."""
    token = ((INT8, rows, size), (F32, rows, 1))
    ring = ((INT8, 2 * rows, window, size), (F32, 2 * rows, 1, window))

    def kernel(q: Any, *arrays: Any) -> Any:
        *parts, positions = arrays
        vectors = [Int8Vectors(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
        return decode_attention_tpu(q, *vectors, positions)

    counted = compile_kernel(chip, kernel, (dtype, rows, heads, size), *token, *token, *ring, *ring, (INT, rows))
    assert counted >= 2 * rows * window * (size + 4), "both rings"


@pytest.mark.parametrize(
    ("rows", "steps", "heads", "size", "window"), [(1, 512, 10, 256, 2048), (8, 64, 16, 256, 2048)]
)
def test_prefill_attention_over_rings_in_int8(
    chip: SingleDeviceSharding, rows: int, steps: int, heads: int, size: int, window: int
) -> None:
    chunk = ((INT8, rows, steps, size), (F32, rows, 1, steps))
    ring = ((INT8, rows, window, size), (F32, rows, 1, window))

    def kernel(q: Any, *arrays: Any) -> Any:
        *parts, positions = arrays
        vectors = [Int8Vectors(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
        return prefill_attention_tpu(q, *vectors, positions)

    query = (BF16, rows, steps, heads, size)
    counted = compile_kernel(chip, kernel, query, *chunk, *chunk, *ring, *ring, (INT, rows, steps))
    assert counted >= 2 * rows * (window + steps) * (size + 4), "rings and chunk"


@pytest.mark.parametrize(
    ("dtype", "rows", "steps", "heads", "size", "window"),
    [
        (BF16, 1, 2048, 10, 256, 2048),
        (BF16, 1, 512, 16, 256, 2048),
        (BF16, 1, 64, 16, 256, 2048),
        (F32, 2, 512, 10, 256, 2048),
        (F32, 2, 64, 4, 48, 128),
        (F32, 2, 70, 1, 16, 50),
    ],
)
def test_prefill_attention(
    chip: SingleDeviceSharding, dtype: Any, rows: int, steps: int, heads: int, size: int, window: int
) -> None:
    tokens, ring = (dtype, rows, steps, size), (dtype, rows, window, size)
    query = (dtype, rows, steps, heads, size)
    counted = compile_kernel(chip, prefill_attention_tpu, query, tokens, tokens, ring, ring, (INT, rows, steps))
    assert counted >= 2 * rows * (window + steps) * size * dtype.itemsize, "rings and chunk"


@pytest.mark.parametrize(
    ("dtype", "rows", "blocks", "size"),
    [
        (BF16, 608, 10, 256),
        (BF16, 3000, 10, 256),
        (BF16, 8, 16, 256),
        (F32, 512, 2, 256),
        (F32, 1112, 2, 128),
        (BF16, 6, 1, 128),
    ],
)
def test_recurrent_step(chip: SingleDeviceSharding, dtype: Any, rows: int, blocks: int, size: int) -> None:
    """Rows of 2B: a v5e's slots, and a v6e's with windows in int8; and others, which may fill no whole blocks."""
    width = blocks * size
    counted = compile_kernel(
        chip,
        with_weights(recurrent_step_tpu),
        (dtype, rows, 2 * width),
        (F32, 4, width),
        (F32, width),
        (dtype, blocks, size, 2 * size),
        (F32, blocks, 2 * size),
        (F32, width),
        (dtype, 3, rows, width),
        (F32, rows, width),
        (INT, rows),
    )
    assert counted >= rows * width * (2 * 4 + 9 * dtype.itemsize), "the state in and out, two inputs, one output"


@pytest.mark.parametrize(
    ("dtype", "rows", "steps", "blocks", "size"),
    [(BF16, 1, 2048, 10, 256), (BF16, 2, 64, 16, 256), (F32, 2, 70, 1, 128)],
)
def test_recurrent_chunk(chip: SingleDeviceSharding, dtype: Any, rows: int, steps: int, blocks: int, size: int) -> None:
    width = blocks * size
    counted = compile_kernel(
        chip,
        with_weights(partial(recurrent_chunk_tpu, every=64)),
        (dtype, rows, steps, 2 * width),
        (F32, 4, width),
        (F32, width),
        (dtype, blocks, size, 2 * size),
        (F32, blocks, 2 * size),
        (F32, width),
        (dtype, 3, rows, width),
        (F32, rows, width),
        (INT, rows, steps),
    )
    assert counted >= 3 * rows * steps * width * dtype.itemsize, "two inputs, one output"


@pytest.mark.parametrize(
    ("dtype", "rows", "width", "hidden"),
    [(BF16, 1638, 2560, 7680), (BF16, 896, 4096, 12288), (BF16, 8, 4096, 12288), (F32, 32, 192, 576)],
)
def test_gated_mlp(chip: SingleDeviceSharding, dtype: Any, rows: int, width: int, hidden: int) -> None:
    weights = ((dtype, 2 * hidden, width), (F32, 2 * hidden), (dtype, width, hidden), (F32, width))
    counted = compile_kernel(chip, gated_mlp_tpu, (dtype, rows, width), *weights)
    assert counted >= 3 * width * hidden * dtype.itemsize, "the weights"


@pytest.mark.parametrize(
    ("dtype", "rows", "inputs", "outputs"),
    [(BF16, 608, 2560, 5120), (BF16, 2048, 4096, 4608), (BF16, 8, 4096, 256000), (F32, 32, 256, 384)],
)
def test_int8_product(chip: SingleDeviceSharding, dtype: Any, rows: int, inputs: int, outputs: int) -> None:
    """Projections of a decode step and of a long prefill, and logits."""

    def kernel(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return int8_product_tpu(x, Int8Matrix(values, scale), bias, dtype)

    weights = ((INT8, outputs, inputs), (F32, outputs), (F32, outputs))
    counted = compile_kernel(chip, kernel, (dtype, rows, inputs), *weights)
    assert counted >= outputs * inputs + rows * (inputs + outputs) * dtype.itemsize, "the matrix, inputs and outputs"


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(3456, 2560), (8, 4096)])
def test_argmax(chip: SingleDeviceSharding, rows: int, width: int, is_int8: bool) -> None:
    def kernel(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        return argmax_tpu(x, Int8Matrix(values, scale) if is_int8 else values, 30.0)

    weights = (INT8 if is_int8 else BF16, 256000, width), (F32, 256000)
    counted = compile_kernel(chip, kernel, (BF16, rows, width), *weights)
    assert counted >= 256000 * width * (1 if is_int8 else 2), "the matrix"


@pytest.mark.parametrize(
    ("dtype", "rows", "width", "hidden"),
    [(BF16, 608, 2560, 7680), (BF16, 8, 4096, 12288), (BF16, 2048, 4096, 12288), (F32, 32, 256, 384)],
)
def test_int8_gated_mlp(chip: SingleDeviceSharding, dtype: Any, rows: int, width: int, hidden: int) -> None:
    gate_up = ((INT8, 2 * hidden, width), (F32, 2 * hidden), (F32, 2 * hidden))
    down = ((INT8, width, hidden), (F32, width), (F32, width))

    def kernel(x: jax.Array, *arrays: jax.Array) -> jax.Array:
        return int8_gated_mlp_tpu(x, Int8Matrix(*arrays[:2]), arrays[2], Int8Matrix(*arrays[3:5]), arrays[5])

    counted = compile_kernel(chip, kernel, (dtype, rows, width), *gate_up, *down)
    assert counted >= 3 * width * hidden, "the weights"

"""Int8 products: their error, exact sums, and bits that depend on the row alone."""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis.extra import numpy as hnp
from roost.engine.capacity.chips import tracing_for
from roost.engine.checkpoint.source import open_model
from roost.engine.checkpoint.weights import checkpoint_tensors, random_params
from roost.engine.devices import platform
from roost.engine.devices.platform import PORTABLE
from roost.engine.model.config import ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.state import zero_state
from roost.engine.types.errors import CheckpointError
from roost.kernels import XLA, Backend, Kernel, native
from roost.kernels.backends import CPU
from roost.kernels.matrices import Int8Matrix, gather_rows, is_quantized, pack_param, pack_shapes
from roost.kernels.matrices.int8 import quantize_on_host, quantize_rows
from roost.kernels.products import pallas_tpu
from roost.kernels.products import product as dot
from roost.kernels.products.pallas_tpu import int8_product_tpu
from small_models import CPU_OPTIONS, TINY_A, SmallModel, counting, tiny_a
from sweeps import full, swept

INT8 = jnp.dtype("int8")
CONFIG = ModelConfig(
    vocab_size=96,
    width=32,
    mlp_width=48,
    num_heads=2,
    lru_width=48,
    block_types=cycle(("recurrent", "attention"), 3),
    window=7,
)

jit = partial(jax.jit, compiler_options=CPU_OPTIONS)
jit_dot, jit_rows, jit_gather = jit(dot), jit(quantize_rows), jit(gather_rows, static_argnums=2)

jit_dots = jit(lambda several, weight: [dot(x, weight) for x in several])
jit_packed_dot = jit(partial(dot, backend=CPU))

MATRICES = hnp.arrays(np.float32, (3, 40), elements=st.floats(-(2.0**20), 2.0**20, width=32))


def product(rows: int, inputs: int, outputs: int, dtype: str = "float32") -> tuple[np.ndarray, Int8Matrix]:
    """Draws activations with a few large channels, as models have them, and a weight."""
    rng = np.random.default_rng([rows, inputs])
    x = rng.normal(size=(rows, inputs)) * np.exp(rng.normal(size=inputs))
    weight = quantize_on_host(rng.normal(size=(outputs, inputs)).astype(np.float32))
    return x.astype(dtype), weight


@given(MATRICES)
def test_a_number_is_off_by_half_a_step_at_most(matrix: np.ndarray) -> None:
    values, scale = quantize_on_host(matrix)
    step = scale.astype(np.float64)[:, None]
    assert (np.abs(values * step - matrix) <= 0.5001 * step).all()
    assert (np.abs(values.astype(int)).max(axis=1) == np.where((np.abs(matrix) > 1e-30).any(axis=1), 127, 0)).all()


@given(MATRICES)
def test_the_device_rounds_as_the_host_does(matrix: np.ndarray) -> None:
    for one, other in zip(jit_rows(matrix), quantize_on_host(matrix), strict=True):
        np.testing.assert_array_equal(one, other)


def test_halves_go_to_the_even_number() -> None:
    row = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]], np.float32)
    for values, scale in (quantize_on_host(row), jit_rows(row)):
        np.testing.assert_array_equal(values, [[127, 0, 2, 2, 0, -2, -2, -127]])
        np.testing.assert_array_equal(scale, [np.float32(127) * np.float32(1 / 127)])


def test_rows_of_zeros_stay_zeros() -> None:
    x, weight = np.zeros((2, 16), np.float32), quantize_on_host(np.zeros((3, 16), np.float32))
    np.testing.assert_array_equal(jit_dot(x, weight), np.zeros((2, 3)))
    rows = jit_gather(weight, np.array([1], np.int32), jnp.dtype("bfloat16"))
    np.testing.assert_array_equal(rows, np.zeros((1, 16)))


def test_a_matrix_is_quantised_in_pieces_of_any_size() -> None:
    """A matrix larger than a piece, whose last piece is smaller than the others."""
    matrix = np.random.default_rng(0).normal(size=(1500, 1000)).astype(jnp.bfloat16)
    whole = matrix.astype(np.float32)
    largest = np.abs(whole).max(axis=1)
    values, scale = quantize_on_host(matrix)
    np.testing.assert_array_equal(scale, largest * np.float32(1 / 127))
    np.testing.assert_array_equal(values, np.rint(whole * (np.float32(127) / largest)[:, None]))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((8, 768, 96), "float32"),
        ((3, 80, 7), "bfloat16"),
        ((2, 33, 16), "float32"),
        *full(((8, 768, 96), "bfloat16"), ((3, 80, 7), "float32"), ((2, 33, 16), "bfloat16")),
        *full(((64, 2304, 64), "float32"), ((64, 2304, 64), "bfloat16")),
    ],
)
def test_dot_equals_exact_integer_arithmetic(shape: tuple[int, int, int], dtype: str) -> None:
    x, weight = product(*shape, dtype)
    wide = np.asarray(x, np.float32)
    largest = np.abs(wide).max(axis=1)
    rows = np.rint(wide * (np.float32(127) / largest)[:, None]).astype(np.int64)
    sums = rows @ np.asarray(weight.values, np.int64).T
    np.testing.assert_array_equal(jit_rows(x).values, rows)
    scales = (largest * np.float32(1 / 127))[:, None] * np.asarray(weight.scale)
    np.testing.assert_array_equal(jit_dot(x, weight), sums.astype(np.float32) * scales)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", [*swept(768), 80])
def test_a_row_of_dot_has_the_same_bits_in_any_batch(inputs: int, dtype: str) -> None:
    """Batches of all sizes, a single row, and a token in a prefill chunk."""
    x, weight = product(64, inputs, 96, dtype)
    expected = np.asarray(jit_dot(x, weight))
    several = [x[-size:] for size in (1, 2, 3, 8, 32)]
    several += [x.reshape(1, 64, inputs), x.reshape(4, 16, inputs), x[:, None]]
    for some, found in zip(several, jit_dots(several, weight), strict=True):
        rows = np.asarray(found).reshape(-1, 96)
        np.testing.assert_array_equal(rows, expected[-len(rows) :], err_msg=str(some.shape))


@pytest.mark.skipif(not native.is_available(), reason="the native kernels are not there, or this processor lacks AVX2")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [5, *full(1, 64)])
def test_a_packed_matrix_has_the_products_and_rows_of_the_matrix(rows: int, dtype: str) -> None:
    x, weight = product(rows, 768, 96, dtype)
    packed = pack_param(jax.tree.map(np.copy, weight))
    np.testing.assert_array_equal(jit_packed_dot(x, packed), jit_dot(x, weight))
    tokens = np.array([[0, 95, 17], [16, 15, 95]], np.int32)
    kind = jnp.dtype(dtype)
    np.testing.assert_array_equal(jit_gather(packed, tokens, kind), jit_gather(weight, tokens, kind))


def test_the_shapes_of_packed_parameters_are_told_before_they_are_read() -> None:
    params = {
        "matrix": quantize_on_host(np.ones((32, 8), np.float32)),
        "plain": np.ones((16, 6), np.float32).astype("bfloat16"),
        "odd": np.ones((15, 6), np.float32).astype("bfloat16"),
        "gates": np.ones((2, 16, 32), np.float32),
        "vector": np.ones(16, np.float32),
    }
    shapes = pack_shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    packed = jax.tree.map(pack_param, params, is_leaf=is_quantized)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), packed) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_dot_is_close_to_that_of_floats() -> None:
    x, weight = product(32, 768, 256)
    exact = np.asarray(x, np.float64) @ (np.asarray(weight.values) * np.asarray(weight.scale)[:, None]).T
    assert np.abs(np.asarray(jit_dot(x, weight)) - exact).mean() < 0.05 * np.abs(exact).mean()


def two_layers(config: ModelConfig) -> SmallModel:
    """Returns a model with a layer of each kind and random weights, whose programs compile soon."""
    config, kind = replace(config, block_types=("recurrent", "attention")), jnp.dtype("float32")
    graph, abstract = abstract_model(config, kind, platform.CPU, matrix_dtype=INT8)
    return SmallModel(config, graph, random_params(abstract, 0), kind, block=16)


@pytest.mark.parametrize("config", [CONFIG, *full(open_model(str(TINY_A / "hf")).config)], ids=["narrow", "tiny-a"])
def test_decode_steps_and_chunks_of_any_batch_give_a_row_the_same_bits(config: ModelConfig) -> None:
    """XLA fuses the last product with the final norm in one row of the narrow model, and not in five."""
    quantized, rng, rows, steps = two_layers(config), np.random.default_rng(0), 5, 16
    tokens = rng.integers(0, quantized.config.vocab_size, (rows, steps), np.int32)
    positions = counting([steps] * rows, steps)
    logits, state = quantized.run(tokens, positions, quantized.zero(rows))
    alone, state_alone = quantized.run(tokens[3:4], positions[3:4], quantized.zero(1))
    np.testing.assert_array_equal(alone[0], logits[3])
    pair = jax.tree.map(lambda x: np.concatenate([x, x], axis=_row_axis(x, 1)), state_alone)
    step, at = np.full((rows, 1), 7, np.int32), np.full((rows, 1), steps, np.int32)
    logits, _ = quantized.run(step, at, state)
    few, _ = quantized.run(step[:2], at[:2], pair)
    np.testing.assert_array_equal(few[0], logits[3])


def _row_axis(x: jax.Array, rows: int) -> int:
    """Returns the axis of the rows in an array of the state: the first, except for convolution inputs."""
    return x.shape.index(rows)


def test_matrices_are_int8_and_nothing_else_is() -> None:
    quantized = tiny_a("bfloat16", matrices="int8")
    kinds = {
        str(jax.tree_util.keystr(path[-1:])): leaf.dtype.name
        for path, leaf in jax.tree_util.tree_flatten_with_path(quantized.params)[0]
    }
    assert kinds.pop(".values") == "int8"
    assert set(kinds.values()) == {"float32"}


def quantized_abstract(config: ModelConfig) -> Any:
    return abstract_model(config, jnp.dtype("bfloat16"), matrix_dtype=INT8)[1]


def test_matrices_have_scales_in_programs_that_are_compiled_for_a_card() -> None:
    """Without them, their products are not in int8, in programs that nobody serves."""
    expected = quantized_abstract(CONFIG)
    with tracing_for("h100"):
        assert quantized_abstract(CONFIG) == expected
    assert isinstance(expected["embedding"], Int8Matrix)


def test_kernels_for_tpus_compute_projections_and_mlps() -> None:
    """Outputs are XLA's, except for products that are halfway between two steps of int8."""
    config = ModelConfig(128, 128, 256, 1, 128, cycle(("recurrent", "attention"), 2), window=16)
    names = []

    def interpreted(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            names.append(kernel.__name__)
            return kernel(*arguments, interpret=True)

        return run

    mlp = pallas_tpu.int8_gated_mlp_tpu
    kernels = Backend(
        "tpu",
        (
            Kernel("product", ("int8_product",), interpreted(int8_product_tpu), pallas_tpu.takes_int8_product),
            Kernel("gated_mlp", ("int8_gated_mlp",), interpreted(mlp), pallas_tpu.takes_int8_gated_mlp),
        ),
    )
    tokens = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
    positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), tokens.shape)

    def logits(backend: Backend) -> np.ndarray:
        on = replace(PORTABLE, kernels=backend, jits_layers=False)
        graph, abstract = abstract_model(config, jnp.dtype("float32"), on, INT8)
        params = random_params(abstract, 0)

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def run(params: Any) -> jax.Array:
            model = nnx.merge(graph, params)
            x, _ = model(tokens, positions, zero_state(config, 2, jnp.dtype("float32")), 12)
            return model.logits(x)

        return np.asarray(run(params))

    expected = logits(XLA)
    assert not names
    np.testing.assert_allclose(logits(kernels), expected, atol=0.02 * np.abs(expected).max())
    assert Counter(names) == {"int8_product_tpu": 4, "int8_gated_mlp_tpu": 2}


def test_random_parameters_are_those_of_float32_quantised() -> None:
    plain = random_params(abstract_model(CONFIG, jnp.dtype("float32"))[1], 3)
    quantised = random_params(quantized_abstract(CONFIG), 3)
    for matrix, weight in (
        (quantised["embedding"], plain["embedding"]),
        (quantised["blocks"][0]["temporal"]["xy"]["weight"], plain["blocks"][0]["temporal"]["xy"]["weight"]),
        (quantised["blocks"][1]["temporal"]["qkv"], plain["blocks"][1]["temporal"]["qkv"]),
    ):
        for one, other in zip(matrix, quantize_on_host(np.asarray(weight)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_copy_in_full_precision_is_made() -> None:
    """Host memory stays far below a quarter of sixteen layers in float32."""
    config = ModelConfig(1024, 256, 512, 4, 256, ("recurrent",) * 16)
    abstract = quantized_abstract(config)
    tracemalloc.start()
    params = random_params(abstract, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = 4 * 2 * config.mlp_width * config.width
    assert 4 * config.num_parameters > 3 * size
    assert peak < size + 6 * largest  # two threads, each with a tensor, a piece of it and its result


def test_a_quantised_model_is_not_exported() -> None:
    with pytest.raises(CheckpointError, match="quantised model cannot be written"):
        checkpoint_tensors(random_params(quantized_abstract(CONFIG), 0), CONFIG)

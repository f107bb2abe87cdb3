"""The device steps compile for a real TPU, contain the Pallas kernels and update the state pool in place.

libtpu contains the TPU compiler, which needs no TPU. The model has one layer of each kind, of 2B's widths.
The pool's arrays are aliased from input to output, and all temporaries are smaller than one of them, so no step copies
a slot that it does not change.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding
from roost.engine.capacity.roofline import DEVICES, compute_roofline
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import Griffin, abstract_model
from roost.engine.model.sharding import Collectives
from roost.engine.model.state import state_bytes
from roost.engine.types.config import MAX_PREFILL_ROWS, EngineConfig
from roost.engine.types.output_constraint import words_of_mask
from roost.engine.worker import steps
from roost.engine.worker.served import Devices, Served
from roost.engine.worker.transfer import first_token_input, prefill_input
from sweeps import swept

pytestmark = pytest.mark.tpu_compile

ROWS = 128
BF16 = jnp.dtype("bfloat16")
LARGE = PRESETS["2b"]
LAYERS = ModelConfig(
    1024, LARGE.width, LARGE.mlp_width, LARGE.num_heads, LARGE.lru_width, cycle(("recurrent", "attention"), 2)
)


@pytest.fixture(scope="module", params=[None, "int8"], ids=["bfloat16", "int8"])
def model(request: pytest.FixtureRequest) -> ModelConfig:
    """The model, with windows of either dtype."""
    return replace(LAYERS, kv_dtype=request.param)


@pytest.fixture(scope="module")
def pool(model: ModelConfig) -> Any:
    return pool_of(model)


def pool_of(model: ModelConfig) -> Any:
    return Served(model, EngineConfig(), Devices(TPU), BF16, ROWS).pool


def compile_step(
    chip: SingleDeviceSharding, model: ModelConfig, step: Callable[..., Any], pool: Any, *inputs: Any
) -> Any:
    """Compiles a step for shapes of arguments, with the pool donated."""
    graph, params = abstract_model(model, BF16, TPU)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), (params, pool, *inputs))

    def run(params: Any, *rest: Any) -> Any:
        return step(nnx.merge(graph, params), *rest)

    lowered = jax.jit(run, donate_argnums=1).trace(*arguments).lower(lowering_platforms=("tpu",))
    return lowered.compile(compiler_options={"xla_vf_vmem_memory_space_assignment": "false"})


def decode_one(model: Griffin, *inputs: Any) -> Any:
    """Decodes one token, as accelerators do in a dispatch."""
    return steps.decode_step(model, 1, *inputs)


def compile_prefill(chip: SingleDeviceSharding, model: ModelConfig, pool: Any, length: int) -> Any:
    def prefill(griffin: Griffin, *inputs: Any) -> Any:
        return steps.prefill_step(griffin, range(model.depth), *inputs)

    hidden = jax.ShapeDtypeStruct((512, model.width), BF16)
    return compile_step(chip, model, prefill, pool, hidden, prefill_input((), (), 1, length, ROWS))


def check(compiled: Any, pool: Any, *kernels: str) -> None:
    """Checks that the pool is updated in place, and that the program calls exactly these kernels."""
    memory = compiled.memory_analysis()
    layers = [x.size * x.dtype.itemsize for x in jax.tree.leaves(pool.states)]
    assert memory.alias_size_in_bytes >= sum(layers), "the pool is not aliased"
    assert memory.temp_size_in_bytes < max(layers), "a temporary is as large as an array of the pool"
    calls = [line for line in compiled.as_text().splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert len(calls) == len(kernels), f"expected {kernels}, found {calls}"
    for kernel in kernels:
        assert any(kernel in call for call in calls), f"{kernel} is not in the program"


@pytest.mark.parametrize("rows", [8, ROWS])
def test_decode(chip: SingleDeviceSharding, model: ModelConfig, pool: Any, rows: int) -> None:
    """A step of the first slots reads and writes their states only."""
    active = jax.ShapeDtypeStruct((rows,), jnp.bool)
    compiled = compile_step(chip, model, decode_one, pool, active, jax.ShapeDtypeStruct((), jnp.int32))
    check(compiled, pool, "recurrent_step", "window_attention_decode", "gated_mlp", "gated_mlp", "argmax", "sample")


@pytest.mark.parametrize("length", [64, 512])
def test_prefill(chip: SingleDeviceSharding, model: ModelConfig, pool: Any, length: int) -> None:
    kernels = ["recurrent_chunk", "window_attention_prefill", "gated_mlp", "gated_mlp"]
    check(compile_prefill(chip, model, pool, length), pool, *kernels)


@pytest.mark.parametrize(("heads", "kv_dtype"), [(2, None), (10, "int8"), *swept((2, "int8"), (10, None))])
def test_several_key_heads(chip: SingleDeviceSharding, heads: int, kv_dtype: str | None) -> None:
    """Some query heads share a key head, or each has its own; rings are updated in place all the same."""
    model = replace(LAYERS, block_types=("attention",), num_key_heads=heads, kv_dtype=kv_dtype)
    pool = pool_of(model)
    active = jax.ShapeDtypeStruct((ROWS,), jnp.bool)
    compiled = compile_step(chip, model, decode_one, pool, active, jax.ShapeDtypeStruct((), jnp.int32))
    check(compiled, pool, "window_attention_decode", "gated_mlp", "argmax", "sample")
    check(compile_prefill(chip, model, pool, 512), pool, "window_attention_prefill", "gated_mlp")


def test_first_token(chip: SingleDeviceSharding, model: ModelConfig, pool: Any) -> None:
    inputs = first_token_input((), MAX_PREFILL_ROWS, ROWS, words_of_mask(LAYERS.vocab_size))
    check(compile_step(chip, model, steps.first_token_step, pool, inputs), pool, "sample")


def test_slots_are_copied_in_place(chip: SingleDeviceSharding, model: ModelConfig, pool: Any) -> None:
    """A fork moves the bytes of its slot, whatever the size of the pool."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), pool)
    slots = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=chip)
    lowered = (
        jax.jit(partial(steps.copy_step, Collectives()), donate_argnums=0)
        .trace(shapes, slots, slots)
        .lower(lowering_platforms=("tpu",))
    )
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool.states))
    assert memory.temp_size_in_bytes < 4 * state_bytes(model, 2)


def test_the_roofline_knows_the_memory_of_a_step(chip: SingleDeviceSharding, model: ModelConfig, pool: Any) -> None:
    """The roofline adds up weights and slots; the compiler adds the program's own memory."""
    active = jax.ShapeDtypeStruct((ROWS,), jnp.bool)
    memory = compile_step(chip, model, decode_one, pool, active, jax.ShapeDtypeStruct((), jnp.int32)).memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    taken += memory.temp_size_in_bytes
    assert compute_roofline(model, DEVICES["v5e"], 2).memory_bytes(ROWS) == pytest.approx(taken, rel=0.05)

"""The engine's steps compile for a real TPU, with the state pool updated in place.

libtpu holds the whole TPU compiler and needs no TPU to compile. One recurrent and one attention layer of 2B's widths
say all there is to say about layouts: the pool's arrays are aliased from input to output, and nothing as large as one
of them stands among the temporaries, so no step copies a slot that it does not touch.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
}

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from roost.engine import runner
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model

pytestmark = pytest.mark.tpu_compile

ROWS = 128
BF16 = jnp.dtype("bfloat16")
LAYERS = ModelConfig(
    1024, PRESETS["2b"].width, PRESETS["2b"].mlp_width, 10, PRESETS["2b"].lru_width, cycle(("recurrent", "attention"), 2)
)


@pytest.fixture(scope="module")
def chip() -> SingleDeviceSharding:
    """One chip of a v5e host."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=(2, 2, 1)
    )
    return SingleDeviceSharding(topology.devices[0])


def compile_step(chip: SingleDeviceSharding, step: Callable[..., Any], pool: Any, *inputs: Any) -> Any:
    """Compiles a step with the pool donated; arguments are shapes only."""
    graph, params = abstract_model(LAYERS, BF16)
    on_chip = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip)  # noqa: E731
    arguments = jax.tree.map(on_chip, (params, pool, *inputs))
    lowered = jax.jit(partial(step, graph), donate_argnums=1).trace(*arguments).lower(lowering_platforms=("tpu",))
    return lowered.compile(compiler_options={"xla_vf_vmem_memory_space_assignment": "false"})


@pytest.fixture(scope="module")
def pool() -> Any:
    return jax.eval_shape(lambda: runner._new_pool(LAYERS, ROWS, BF16))


def check_in_place(compiled: Any, pool: Any) -> None:
    memory = compiled.memory_analysis()
    layers = [x.size * x.dtype.itemsize for x in jax.tree.leaves(pool.layers)]
    assert memory.alias_size_in_bytes >= sum(layers), "the pool is not aliased"
    assert memory.temp_size_in_bytes < max(layers), "a temporary is as large as an array of the pool"


def test_decode(chip: SingleDeviceSharding, pool: Any) -> None:
    active = jax.ShapeDtypeStruct((ROWS,), jnp.bool)
    check_in_place(compile_step(chip, runner.decode_step, pool, active), pool)


@pytest.mark.parametrize("length", [64, 512])
def test_prefill(chip: SingleDeviceSharding, pool: Any, length: int) -> None:
    inputs = runner._prefill_input((), 1, length, ROWS)
    check_in_place(compile_step(chip, runner.prefill_step, pool, inputs), pool)


def test_first_token(chip: SingleDeviceSharding, pool: Any) -> None:
    hidden = jax.ShapeDtypeStruct((1, LAYERS.width), BF16)
    inputs = runner._first_token_input((), 1, ROWS)
    check_in_place(compile_step(chip, runner.first_token_step, pool, hidden, inputs), pool)

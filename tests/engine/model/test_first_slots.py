"""A model's step on the first slots of a pool, with XLA and with interpreted TPU kernels."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from roost.engine.checkpoint.weights import random_params
from roost.engine.devices.platform import TPU
from roost.engine.model.config import ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.model.layer_kinds import RecurrentState
from roost.engine.model.sharding import Collectives
from roost.engine.model.state import ModelState, zero_state
from roost.kernels import XLA, Backend, Kernel
from roost.kernels.recurrent_block import Recurrence, RecurrentInputs
from roost.kernels.recurrent_block.pallas_tpu import recurrent_step_tpu
from roost.kernels.window_attention.pallas import decode_with
from roost.kernels.window_attention.pallas_tpu_decode import decode_attention_tpu

FLOAT32 = jnp.dtype("float32")
POOL, FIRST, IDLE = 24, 8, 3
CONFIG = ModelConfig(64, 128, 128, 1, 128, ("recurrent", "attention"), window=16)  # gate blocks that have a kernel


def interpreted_block(project: Any, inputs: RecurrentInputs, every: int, groups: int) -> Recurrence:
    return Recurrence(*recurrent_step_tpu(project(None)[:, 0], inputs.of_step, groups=groups, interpret=True))


INTERPRETED = Backend(
    "tpu",
    (
        Kernel("decode_attention", (), decode_with(partial(decode_attention_tpu, interpret=True))),
        Kernel("recurrent_block", (), interpreted_block),
    ),
)


def rows_of(state: ModelState, rows: slice) -> ModelState:
    return tuple(
        RecurrentState(layer.h[rows], layer.conv[:, rows])
        if isinstance(layer, RecurrentState)
        else jax.tree.map(lambda x: x[rows], layer)
        for layer in state
    )


@pytest.mark.parametrize("kernels", [XLA, INTERPRETED], ids=["xla", "tpu"])
def test_a_step_of_the_first_slots_is_that_of_a_pool_of_them(kernels: Any) -> None:
    """Positions lie before, at and after the first time around the ring.

    Slots behind the first, and an idle one among them, stay as they are, bit for bit. XLA compiles an array's last
    elements differently, depending on the array's size, so that other results are only close.
    """
    graph, abstract = abstract_model(CONFIG, FLOAT32, replace(TPU, kernels=kernels))
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: zero_state(CONFIG, POOL, FLOAT32))
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    positions = np.array([0, 1, 15, -1, 16, 17, 40, 32], np.int32)
    assert positions[IDLE] < 0
    assert len(positions) == FIRST

    params = random_params(abstract, 0)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(params: Any, state: ModelState) -> tuple[jax.Array, ModelState]:
        return nnx.merge(graph, params)(jnp.arange(FIRST)[:, None], jnp.asarray(positions)[:, None], state, 1)

    run = partial(step, params)
    (hidden, found), (expected, alone) = jax.tree.map(np.asarray, (run(state), run(rows_of(state, slice(FIRST)))))
    busy = positions >= 0
    np.testing.assert_allclose(hidden[busy], expected[busy], rtol=1e-5, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), rows_of(found, slice(FIRST)), alone)
    for untouched in (slice(FIRST, None), slice(IDLE, IDLE + 1)):
        jax.tree.map(np.testing.assert_array_equal, rows_of(found, untouched), rows_of(state, untouched))


def test_rows_of_each_device() -> None:
    """Two devices along `model` hold three slots each, of which the first two are taken and put back."""
    shards, slots = Collectives(1, 2), np.arange(12, dtype=np.float32).reshape(2, 6)

    @jax.jit
    def negated(slots: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = shards.first_rows(slots, 4, axis=1)
        return first, shards.with_first_rows(slots, -first, axis=1)

    first, written = negated(slots)
    np.testing.assert_array_equal(first, slots[:, [0, 1, 3, 4]])
    np.testing.assert_array_equal(written, slots * np.array([-1, -1, 1, -1, -1, 1], np.float32))

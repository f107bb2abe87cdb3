"""The plan's arithmetic, against figures worked out elsewhere."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.weights import random_params
from roost.engine.plan import DEVICES, plan

SMALL = ModelConfig(96, 32, 48, 2, 64, cycle(("recurrent", "recurrent", "attention"), 5), window=7)


@pytest.mark.parametrize(
    ("model", "device", "slots", "limit"),
    [("2b", "v5e", 542, 29_675), ("2b", "v6e", 1396, 76_129), ("9b", "v6e", 468, 25_640), ("9b", "v5e", 0, 0)],
)
def test_slots_and_decode_limit(model: str, device: str, slots: int, limit: int) -> None:
    """As a roofline on paper has them, within a hundredth."""
    planned = plan(PRESETS[model], DEVICES[device], 2)
    assert planned.slots == pytest.approx(slots, rel=0.01)
    if slots:
        assert planned.decode_tokens_per_second(planned.slots) == pytest.approx(limit, rel=0.01)


def test_one_slot_is_bound_by_the_weights() -> None:
    planned = plan(PRESETS["2b"], DEVICES["v5e"], 2)
    assert planned.decode_tokens_per_second(1) == pytest.approx(152, rel=0.01)


@pytest.mark.parametrize(("model", "limit"), [("2b", 47_597), ("9b", 12_906)])
def test_prefill_limit(model: str, limit: int) -> None:
    assert plan(PRESETS[model], DEVICES["v5e"], 2).prefill_tokens_per_second() == pytest.approx(limit, rel=0.02)


def test_memory_grows_by_a_slot_at_a_time() -> None:
    planned = plan(PRESETS["9b"], DEVICES["v6e"], 2)
    assert planned.memory_bytes(3) - planned.memory_bytes(2) == planned.slot_bytes == 26_230_784
    assert planned.memory_bytes(planned.slots) <= 0.92 * DEVICES["v6e"].memory_bytes


@pytest.mark.parametrize("matrices", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_bytes_that_are_planned(dtype: str, matrices: str | None) -> None:
    """To the byte, scales and vectors included."""
    kind = jnp.dtype(dtype)
    matrix_dtype = None if matrices is None else jnp.dtype(matrices)
    for config in (SMALL, replace(SMALL, lru_width=16), replace(SMALL, num_heads=1)):
        params = random_params(abstract_model(config, kind, matrix_dtype=matrix_dtype)[1], 0)
        planned = plan(config, DEVICES["v5e"], kind.itemsize, is_quantized=matrices is not None)
        assert planned.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "device", "slots", "limit"),
    [("2b", "v5e", 698, 21_185), ("9b", "v6e", 795, 17_386), ("9b", "v5e", 234, 8_683)],
)
def test_int8_makes_room(model: str, device: str, slots: int, limit: int) -> None:
    """As a roofline on paper has it, which takes every parameter for one byte; the limit is that of 128 slots."""
    planned = plan(PRESETS[model], DEVICES[device], 2, is_quantized=True)
    assert planned.slots == pytest.approx(slots, rel=0.015)
    assert planned.decode_tokens_per_second(128) == pytest.approx(limit, rel=0.01)


def test_int8_products_are_quicker_where_the_chip_says_so() -> None:
    plain, quantised = (plan(PRESETS["2b"], DEVICES["v5e"], 2, is_quantized=q) for q in (False, True))
    assert 1.8 < quantised.prefill_tokens_per_second() / plain.prefill_tokens_per_second() < 2.0

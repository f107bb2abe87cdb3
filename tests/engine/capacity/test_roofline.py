"""Rooflines, against figures worked out elsewhere."""

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.capacity.roofline import (
    DEVICES,
    Device,
    compute_roofline,
    device_named,
    find_device,
    setups_that_fit,
)
from roost.engine.checkpoint.weights import random_params
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.sharding import Collectives, leaf_rules
from roost.engine.types.config import EngineConfig, MeshShape
from roost.engine.types.errors import ConfigError
from roost.engine.types.host_memory import available_memory
from roost.engine.worker.served import Devices, Served
from roost.kernels.matrices import Int8Matrix

SMALL = ModelConfig(96, 32, 48, 2, 64, cycle(("recurrent", "recurrent", "attention"), 5), window=7)

DEPLOY = Path(__file__).parents[3] / "deploy"
PRESET_LINE = re.compile(
    r"^\| `tpu-(?P<chip>v\d\w)-[\w-]+` \| (?P<model>\d)B .*?(?P<slots>[\d,]+) requests"
    r"(?:.*`--mesh data=(?P<data>\d),model=(?P<shards>\d)`)?",
    re.MULTILINE,
)
"""Line of a TPU in the table of presets."""


@pytest.mark.parametrize(
    ("model", "device", "slots", "limit"),
    [("2b", "v5e", 542, 29_675), ("2b", "v6e", 1396, 76_129), ("9b", "v6e", 468, 25_640)],
)
def test_decode_limit(model: str, device: str, slots: int, limit: int) -> None:
    """As a roofline on paper has it, within a hundredth."""
    roofline = compute_roofline(PRESETS[model], DEVICES[device], 2)
    assert roofline.decode_tokens_per_second(slots) == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize(
    ("model", "device", "quantize", "slots"),
    [("2b", "v5e", None, 608), ("2b", "v6e", None, 1512), ("9b", "v5e", "int8", 280), ("9b", "v5e", None, 0)],
)
def test_slots_are_those_of_a_start(model: str, device: str, quantize: str | None, slots: int) -> None:
    """Slots leave room for the programs, as `roost plan --verify` compiles them."""
    assert compute_roofline(PRESETS[model], DEVICES[device], 2, quantize=quantize).slots == slots


def test_one_slot_is_bound_by_the_weights() -> None:
    roofline = compute_roofline(PRESETS["2b"], DEVICES["v5e"], 2)
    assert roofline.decode_tokens_per_second(1) == pytest.approx(152, rel=0.01)


@pytest.mark.parametrize(("model", "limit"), [("2b", 47_597), ("9b", 12_906)])
def test_prefill_limit(model: str, limit: int) -> None:
    assert compute_roofline(PRESETS[model], DEVICES["v5e"], 2).prefill_tokens_per_second() == pytest.approx(
        limit, rel=0.02
    )


def test_memory_grows_by_a_slot_at_a_time() -> None:
    roofline = compute_roofline(PRESETS["9b"], DEVICES["v6e"], 2)
    assert roofline.memory_bytes(3) - roofline.memory_bytes(2) == roofline.slot_bytes == 26_230_784
    assert roofline.memory_bytes(roofline.slots) < DEVICES["v6e"].hbm_bytes


@pytest.mark.parametrize("matrices", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_bytes_that_are_planned(dtype: str, matrices: str | None) -> None:
    """To the byte, scales and vectors included."""
    kind = jnp.dtype(dtype)
    matrix_dtype = None if matrices is None else jnp.dtype(matrices)
    for config in (SMALL, replace(SMALL, lru_width=16), replace(SMALL, num_heads=1)):
        params = random_params(abstract_model(config, kind, matrix_dtype=matrix_dtype)[1], 0)
        roofline = compute_roofline(config, DEVICES["v5e"], kind.itemsize, quantize=matrices)
        assert roofline.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "device", "limit"), [("2b", "v5e", 21_185), ("9b", "v6e", 17_386), ("9b", "v5e", 8_683)]
)
def test_int8_makes_room(model: str, device: str, limit: int) -> None:
    """As a roofline on paper has it, which takes every parameter for one byte; the limit is that of 128 slots."""
    plain, roofline = (compute_roofline(PRESETS[model], DEVICES[device], 2, quantize=q) for q in (None, "int8"))
    assert roofline.slots > plain.slots + 100
    assert roofline.decode_tokens_per_second(128) == pytest.approx(limit, rel=0.01)


def test_int4_has_the_bytes_that_are_planned() -> None:
    config = ModelConfig(96, 64, 96, 2, 64, cycle(("recurrent", "attention"), 3), window=16)
    params = random_params(abstract_model(config, jnp.dtype("float32"), matrix_dtype=jnp.dtype("int4"))[1], 0)
    roofline = compute_roofline(config, find_device("cpu"), 4, quantize="int4")
    assert roofline.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(params))


def test_int4_of_2b_takes_a_little_more_than_half_of_int8() -> None:
    """By hand: 2.0 billion weights of matrices in half a byte each, and a float16 scale for each 64 of them."""
    eight, four = (compute_roofline(PRESETS["2b"], find_device("cpu"), 2, quantize=q) for q in ("int8", "int4"))
    assert eight.weight_bytes - four.weight_bytes == pytest.approx(2.0e9 * (1 - 1 / 2 - 2 / 64), rel=0.01)


def test_int4_is_refused_where_it_has_no_use_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"\Aquantize int4 is for CPUs alone; use int8\Z"):
        compute_roofline(PRESETS["2b"], DEVICES["v5e"], 2, quantize="int4")
    with pytest.raises(
        ConfigError, match=r"\Aquantize int4 takes widths that are multiples of 32, and the model has 48; use int8"
    ):
        compute_roofline(SMALL, find_device("cpu"), 2, quantize="int4")


def test_int8_products_are_quicker_where_the_chip_says_so() -> None:
    plain, quantised = (compute_roofline(PRESETS["2b"], DEVICES["v5e"], 2, quantize=q) for q in (None, "int8"))
    assert 1.8 < quantised.prefill_tokens_per_second() / plain.prefill_tokens_per_second() < 2.0


def test_chips_of_two_cores_reach_a_share_of_their_rates() -> None:
    two = compute_roofline(PRESETS["2b"], DEVICES["v5p"], 2)
    one = replace(two, device=replace(two.device, reach=1.0))
    assert two.decode_seconds(64) == pytest.approx(one.decode_seconds(64) / 0.58)
    assert two.prefill_tokens_per_second() == pytest.approx(0.58 * one.prefill_tokens_per_second())
    assert DEVICES["v5e"].reach == DEVICES["v6e"].reach == DEVICES["h100"].reach == 1


# --- over a mesh

HEADS = ModelConfig(97, 48, 60, 6, 66, cycle(("recurrent", "recurrent", "attention"), 5), window=7)
"""Six heads and blocks, which four shards fill up to eight; and a vocabulary that divides by nothing."""


@pytest.mark.parametrize("matrices", [None, "int8"])
@pytest.mark.parametrize("shards", [MeshShape(1, 4), MeshShape(2, 3), MeshShape(3, 1)], ids=str)
def test_each_device_has_the_bytes_that_are_planned(shards: MeshShape, matrices: str | None) -> None:
    """Planned bytes equal the bytes of the shards that loading places."""
    kind = jnp.dtype("bfloat16")
    matrix_dtype = None if matrices is None else jnp.dtype(matrices)
    params = random_params(abstract_model(HEADS, kind, matrix_dtype=matrix_dtype)[1], 0)
    rules = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_rules(path, leaf, HEADS), params, is_leaf=lambda node: isinstance(node, Int8Matrix)
    )
    last = jax.tree.map(lambda rule, x: rule.shard(np.asarray(x), shards.model - 1, shards.model).nbytes, rules, params)
    roofline = compute_roofline(HEADS, DEVICES["v5e"], 2, quantize=matrices, shards=shards)
    assert roofline.weight_bytes == sum(jax.tree.leaves(last))


@pytest.mark.parametrize("shards", [MeshShape(1, 4), MeshShape(2, 3), MeshShape(3, 1)], ids=str)
def test_a_slot_has_the_bytes_of_the_pool(shards: MeshShape) -> None:
    """Of all devices together; they have equal parts."""
    devices = Devices(TPU, Collectives(shards.data, shards.model))
    pool = Served(HEADS, EngineConfig(), devices, jnp.dtype("bfloat16"), 2 * shards.count).pool
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool.states))
    assert num_bytes == 2 * shards.count * compute_roofline(HEADS, DEVICES["v5e"], 2, shards=shards).slot_bytes


@pytest.mark.parametrize(
    ("device", "shards", "weights", "slots"),
    [("v5e", MeshShape(1, 4), 4.33, 1664), ("v5e", MeshShape(2, 4), 4.33, 3328), ("v6e", MeshShape(2, 2), 8.61, 3392)],
    ids=str,
)
def test_9b_over_a_mesh(device: str, shards: MeshShape, weights: float, slots: int) -> None:
    """By hand: 16 heads divide by all of these, so a device has its part of 17.17 GB, and all norms and biases."""
    roofline = compute_roofline(PRESETS["9b"], DEVICES[device], 2, shards=shards)
    assert roofline.weight_bytes / 1e9 == pytest.approx(weights, abs=0.005)
    assert roofline.slot_bytes == 26_230_784
    assert roofline.slots == slots
    assert roofline.memory_bytes(slots) < DEVICES[device].hbm_bytes


def test_heads_that_do_not_divide_cost_memory() -> None:
    """2B has ten heads: four shards have three each, so h and three rows before it have 3072 channels, not 2560."""
    alone, cut = (
        compute_roofline(PRESETS["2b"], DEVICES["v5e"], 2, shards=shards).slot_bytes
        for shards in (MeshShape(), MeshShape(1, 4))
    )
    recurrent = PRESETS["2b"].block_types.count("recurrent")
    assert cut - alone == recurrent * 512 * (4 + 3 * 2)


def test_limits_grow_with_the_devices() -> None:
    """Four copies do four times the work of one; four parts of one do more of it, as the weights are read once."""
    alone, copies, parts = (
        compute_roofline(PRESETS["2b"], DEVICES["v5e"], 2, shards=shards)
        for shards in (MeshShape(), MeshShape(4, 1), MeshShape(1, 4))
    )
    assert copies.slots == 4 * alone.slots
    assert copies.decode_tokens_per_second(copies.slots) == pytest.approx(
        4 * alone.decode_tokens_per_second(alone.slots)
    )
    assert copies.prefill_tokens_per_second() == pytest.approx(4 * alone.prefill_tokens_per_second())
    assert parts.decode_tokens_per_second(128) > copies.decode_tokens_per_second(128)


def test_shards_wait_for_the_sums_of_each_block() -> None:
    """By hand: 9B sums 1,664 rows of 4,096 numbers 2 x 38 + 1 times; a ring of four sends 3/2 of that at 100 GB/s."""
    alone, parts = (compute_roofline(PRESETS["9b"], DEVICES["v5e"], 2, shards=MeshShape(1, n)) for n in (1, 4))
    seconds = 1.5 * 77 * 1664 * 4096 * 2 / 100e9
    assert alone.all_reduce_seconds(1664) == 0
    assert parts.all_reduce_seconds(1664) == pytest.approx(seconds)
    assert parts.decode_tokens_per_second(1664) == pytest.approx(31_500, rel=0.01), "45,000 without the sums"
    assert parts.device.peak is not None
    without = replace(parts.device, peak=replace(parts.device.peak, link_bytes_per_second=math.inf))
    assert parts.prefill_seconds(512) - replace(parts, device=without).prefill_seconds(512) == pytest.approx(
        parts.all_reduce_seconds(512)
    )


def test_data_shards_sum_their_own_rows() -> None:
    two, four = (compute_roofline(PRESETS["9b"], DEVICES["v5e"], 2, shards=MeshShape(n, 4)) for n in (1, 2))
    assert four.all_reduce_seconds(256) == pytest.approx(two.all_reduce_seconds(128))
    assert four.prefill_tokens_per_second() == pytest.approx(2 * two.prefill_tokens_per_second())


# --- what would fit


def test_a_model_that_does_not_fit_would_with_one_change() -> None:
    """By hand: 22.08 GB of an L4 or an RTX 4090, and 29.44 of a v4, leave 187 and 467 slots beside 9B's 17.17 GB."""
    model, chip = PRESETS["9b"], DEVICES["v5e"]
    found = setups_that_fit(compute_roofline(model, chip, 2))
    assert found[:2] == [
        compute_roofline(model, chip, 2, quantize="int8"),
        compute_roofline(model, chip, 2, shards=MeshShape(1, 2)),
    ]
    assert found[2:] == [compute_roofline(model, DEVICES[name], 2) for name in ("l4", "rtx4090", "v4")]
    assert [each.slots for each in found[2:]] == [187, 187, 467]


def test_float32_has_one_way_more() -> None:
    found = setups_that_fit(compute_roofline(PRESETS["9b"], DEVICES["l4"], 4))
    assert (found[0], found[0].slots) == (compute_roofline(PRESETS["9b"], DEVICES["l4"], 2), 187)


def test_what_is_proposed_differs_in_one_thing_and_fits() -> None:
    """Also where the options of a user are unusual."""
    given = compute_roofline(PRESETS["9b"], DEVICES["v5e"], 4, shards=MeshShape(2, 1))
    for other in setups_that_fit(given):
        names = ("device", "dtype_bytes", "quantize", "shards")
        assert sum(getattr(other, name) != getattr(given, name) for name in names) == 1
        assert other.shards.data == 2
        assert other.slots > 0


def test_nothing_is_proposed_for_a_model_that_is_too_large_for_everything() -> None:
    huge = replace(PRESETS["9b"], width=2**16, lru_width=2**16, mlp_width=2**24, block_types=("attention",) * 3)
    assert setups_that_fit(compute_roofline(huge, DEVICES["v5e"], 2, quantize="int8")) == []


def test_a_cpu_has_the_memory_of_this_machine_and_no_limits() -> None:
    cpu = find_device("cpu")
    assert cpu.memory_bytes == pytest.approx(available_memory(), rel=0.2)
    roofline = compute_roofline(SMALL, Device("cpu", 10**9), 2)
    assert roofline.slots == int((0.92 * 10**9 - roofline.weight_bytes) // roofline.slot_bytes)
    with pytest.raises(ValueError, match="unknown"):
        roofline.decode_tokens_per_second(1)


@pytest.mark.parametrize(
    ("device", "model", "slots", "limit"),
    [("a100", "2b", 3958, 379), ("h200", "9b", 4291, 280), ("l4", "2b", 970, 55.8), ("rtx4090", "9b", 187, 58.6)],
)
def test_gpus(device: str, model: str, slots: int, limit: int) -> None:
    """By hand: (0.92 x memory - weights) / state, and bandwidth / (weights + state) for a single slot, where weights
    are 5.366 GB and 17.17 GB, and states 17.24 MB and 26.23 MB."""
    roofline = compute_roofline(PRESETS[model], DEVICES[device], 2)
    assert roofline.slots == pytest.approx(slots, rel=0.005)
    assert roofline.decode_tokens_per_second(1) == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA T4", None),
    ],
)
def test_names_of_jax_are_of_devices_with_rates_of_their_own(kind: str, name: str | None) -> None:
    assert device_named(kind) == name
    assert name is None or [each.peak for each in DEVICES.values()].count(DEVICES[name].peak) == 1


def test_the_deployments_promise_what_plan_gives() -> None:
    """`roost plan --verify` has compiled the programs of each preset with this number (benchmarks/tpu-programs.md)."""
    promises = list(PRESET_LINE.finditer((DEPLOY / "README.md").read_text()))
    assert len(promises) == len(list((DEPLOY / "presets").glob("tpu-*.yaml")))
    for found in promises:
        shards = MeshShape(int(found["data"] or 1), int(found["shards"] or 1))
        roofline = compute_roofline(PRESETS[f"{found['model']}b"], DEVICES[found["chip"]], 2, shards=shards)
        assert f"{roofline.slots:,}" == found["slots"], found[0]

"""Sharding rules: the shards of a parameter together hold all of it, and zeros."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import PartitionSpec
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.layer_kinds import LAYER_KINDS, Segment
from roost.engine.model.sharding import (
    Collectives,
    ShardingRule,
    quantized_rule,
    shard_params,
    sharding_rule,
)
from roost.engine.model.state import padded_channels
from roost.engine.types.errors import ConfigError
from roost.kernels.matrices import Int4Matrix, Int8Matrix

SMALL = ModelConfig(50, 24, 36, 6, 30, cycle(("recurrent", "attention"), 2))


@pytest.mark.parametrize(
    ("segment", "shards", "local"),
    [
        (Segment(10), 4, 3),
        (Segment(2560, 256), 4, 768),  # 10 heads become 12
        (Segment(2560, 256), 8, 512),  # 16
        (Segment(2560, 256), 16, 256),  # 16 heads, of which 6 are padding
        (Segment(512, 512, is_padded=False), 4, 512),
    ],
)
def test_units_stay_whole(segment: Segment, shards: int, local: int) -> None:
    assert segment.shard_size(shards) == local


def test_shards_by_hand() -> None:
    """Two heads of two rows, and a row that all shards need; the third shard's head is padding."""
    rule = ShardingRule(0, (Segment(4, 2), Segment(1, is_padded=False)))
    whole = np.arange(1, 6)[:, None]
    assert [rule.shard(whole, i, 3).ravel().tolist() for i in range(3)] == [[1, 2, 5], [3, 4, 5], [0, 0, 5]]
    assert rule.global_shape((5, 1), 3) == (9, 1)
    assert rule.partition_spec == PartitionSpec("model")


@given(data=st.data(), axis=st.integers(0, 1), shards=st.integers(1, 9))
def test_nothing_is_lost(data: st.DataObject, axis: int, shards: int) -> None:
    """The shards of each segment, joined, are the segment with zeros behind it."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3))
    segments = tuple(Segment(unit * count, unit) for unit, count in shapes)
    rule, size = ShardingRule(axis, segments), sum(segment.size for segment in segments)
    whole = np.moveaxis(np.arange(1, 2 * size + 1).reshape(size, 2), 0, axis)
    parts = [np.moveaxis(rule.shard(whole, i, shards), axis, 0) for i in range(shards)]
    assert len({part.shape for part in parts}) == 1
    assert rule.global_shape(whole.shape, shards)[axis] == sum(map(len, parts))
    start, first = 0, 0
    for segment in segments:
        local = segment.shard_size(shards)
        joined = np.concatenate([part[start : start + local] for part in parts])
        np.testing.assert_array_equal(joined[: segment.size], np.moveaxis(whole, axis, 0)[first : first + segment.size])
        assert not joined[segment.size :].any()
        start, first = start + local, first + segment.size


@pytest.mark.parametrize("kind", [None, "int8"])
def test_every_parameter_lies_on_the_mesh(kind: str | None) -> None:
    """Replicated parameters are small: norms and biases."""
    matrices = None if kind is None else jnp.dtype(kind)
    _, whole = abstract_model(SMALL, jnp.dtype("bfloat16"), matrix_dtype=matrices)
    shapes, specs = shard_params(whole, SMALL, Collectives(2, 4))
    names = {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(specs)}
    everywhere = {name.rpartition("]['")[2] for name, spec in names.items() if spec == PartitionSpec()}
    assert everywhere <= {"scale']", "bias']", "weight'].scale"}
    for (path, shape), before in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(whole), strict=True):
        spec = names[jax.tree_util.keystr(path)]
        for axis, (size, was) in enumerate(zip(shape.shape, before.shape, strict=True)):
            along_model = axis < len(spec) and spec[axis] == "model"
            assert size >= was if along_model else size == was
            assert size % 4 == 0 or not along_model


def test_scales_go_with_their_outputs() -> None:
    matrix = Int8Matrix(np.zeros((8, 8), np.int8), np.zeros(8, np.float32))
    by_outputs, by_inputs = (quantized_rule(ShardingRule(axis, (Segment(8),)), matrix) for axis in (0, 1))
    assert by_outputs.scale == by_outputs.values
    assert by_inputs.scale == ShardingRule()


WIDE = ModelConfig(96, 128, 256, 2, 128, cycle(("recurrent", "attention"), 2), window=16)
"""A model whose hidden widths are whole groups of 64 on each of two shards."""


def test_int4_is_sharded_between_groups() -> None:
    """The parts of a row's values and scales, side by side, are the whole row's."""
    _, abstract = abstract_model(WIDE, jnp.dtype("float32"), matrix_dtype=jnp.dtype("int4"))
    for name, shape in (("down", (128, 256)), ("out", (128, 128))):
        where = ("temporal", name, "weight") if name == "out" else ("mlp", name, "weight")
        matrix = Int4Matrix.quantize(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        rules = quantized_rule(sharding_rule(("blocks", 0, *where), WIDE), matrix)
        for rule, whole in zip(rules, matrix, strict=True):
            parts = [rule.shard(whole, index, 2) for index in range(2)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
            assert rule.global_shape(whole.shape, 2) == whole.shape
    shapes, _ = shard_params(abstract, WIDE, Collectives(1, 2))
    assert shapes["blocks"][0]["mlp"]["down"]["weight"].scale.shape == (128, 4)


def test_a_mesh_that_splits_groups_is_refused_in_one_line() -> None:
    _, abstract = abstract_model(WIDE, jnp.dtype("float32"), matrix_dtype=jnp.dtype("int4"))
    with pytest.raises(
        ConfigError,
        match=r"\Amesh model=4 splits groups of 64 inputs, .* in int4, in blocks\.0\.[a-z.]+; .* or quantize int8\Z",
    ):
        shard_params(abstract, replace(WIDE, num_heads=4), Collectives(1, 4))


@pytest.mark.parametrize(
    ("model", "shards", "wide"), [("2b", 4, 3072), ("2b", 8, 4096), ("9b", 8, 4096), ("2b", 1, 2560)]
)
def test_channels_of_states_are_padded(model: str, shards: int, wide: int) -> None:
    arrays = LAYER_KINDS["recurrent"].arrays
    assert [padded_channels(array, PRESETS[model], shards) for array in arrays] == [wide, wide]


def test_queries_are_sharded_by_heads_and_their_key_and_value_are_replicated() -> None:
    rule: Any = sharding_rule(("blocks", 1, "temporal", "qkv"), SMALL)
    assert rule == ShardingRule(0, (Segment(24, 4), Segment(4, 4, is_padded=False), Segment(4, 4, is_padded=False)))

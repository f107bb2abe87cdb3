"""Each shard has its part of every parameter: together they have all of it, and zeros."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import PartitionSpec
from roost.engine.model.collectives import Shards
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.sharding_rules import Cut, Section, channels, cut_of, cut_params, quantized_cut

SMALL = ModelConfig(50, 24, 36, 6, 30, cycle(("recurrent", "attention"), 2))


@pytest.mark.parametrize(
    ("section", "shards", "local"),
    [
        (Section(10), 4, 3),
        (Section(2560, 256), 4, 768),  # 10 heads become 12
        (Section(2560, 256), 8, 512),  # 16
        (Section(2560, 256), 16, 256),  # 16, of which 6 shards have none that counts
        (Section(512, is_cut=False), 4, 512),
    ],
)
def test_units_stay_whole(section: Section, shards: int, local: int) -> None:
    assert section.local(shards) == local


def test_a_part_by_hand() -> None:
    """Two heads of two rows, and a row that all shards need; the third shard's head is filled up."""
    cut = Cut(0, (Section(4, 2), Section(1, is_cut=False)))
    whole = np.arange(1, 6)[:, None]
    assert [cut.part(whole, i, 3).ravel().tolist() for i in range(3)] == [[1, 2, 5], [3, 4, 5], [0, 0, 5]]
    assert cut.shape((5, 1), 3) == (9, 1)
    assert cut.spec == PartitionSpec("model")


@given(data=st.data(), axis=st.integers(0, 1), shards=st.integers(1, 9))
def test_nothing_is_lost(data: st.DataObject, axis: int, shards: int) -> None:
    """Whatever the sections, putting the parts of each together gives it, with zeros behind."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3))
    sections = tuple(Section(unit * count, unit) for unit, count in shapes)
    cut, size = Cut(axis, sections), sum(section.size for section in sections)
    whole = np.moveaxis(np.arange(1, 2 * size + 1).reshape(size, 2), 0, axis)
    parts = [np.moveaxis(cut.part(whole, i, shards), axis, 0) for i in range(shards)]
    assert len({part.shape for part in parts}) == 1
    assert cut.shape(whole.shape, shards)[axis] == sum(map(len, parts))
    start, first = 0, 0
    for section in sections:
        local = section.local(shards)
        joined = np.concatenate([part[start : start + local] for part in parts])
        np.testing.assert_array_equal(joined[: section.size], np.moveaxis(whole, axis, 0)[first : first + section.size])
        assert not joined[section.size :].any()
        start, first = start + local, first + section.size


@pytest.mark.parametrize("kind", [None, "int8"])
def test_every_parameter_lies_on_the_mesh(kind: str | None) -> None:
    """What is not cut is small: norms and biases."""
    matrices = None if kind is None else jnp.dtype(kind)
    _, whole = abstract_model(SMALL, jnp.dtype("bfloat16"), matrix_dtype=matrices)
    shapes, specs = cut_params(whole, SMALL, Shards(2, 4))
    names = {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(specs)}
    everywhere = {name.rpartition("]['")[2] for name, spec in names.items() if spec == PartitionSpec()}
    assert everywhere <= {"scale']", "bias']", "weight'].scale"}
    for (path, shape), before in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(whole), strict=True):
        spec = names[jax.tree_util.keystr(path)]
        for axis, (size, was) in enumerate(zip(shape.shape, before.shape, strict=True)):
            is_cut = axis < len(spec) and spec[axis] == "model"
            assert size >= was if is_cut else size == was
            assert size % 4 == 0 or not is_cut


def test_scales_go_with_their_outputs() -> None:
    by_outputs, by_inputs = (quantized_cut(Cut(axis, (Section(8),))) for axis in (0, 1))
    assert by_outputs.scale == by_outputs.values
    assert by_inputs.scale == Cut()


@pytest.mark.parametrize(
    ("model", "shards", "wide"), [("2b", 4, 3072), ("2b", 8, 4096), ("9b", 8, 4096), ("2b", 1, 2560)]
)
def test_channels(model: str, shards: int, wide: int) -> None:
    assert channels(PRESETS[model], Shards(1, shards)) == wide


def test_queries_are_cut_by_heads_and_their_key_and_value_are_not() -> None:
    cut: Any = cut_of(("blocks", 1, "temporal", "qkv"), SMALL)
    assert cut == Cut(0, (Section(24, 4), Section(8, is_cut=False)))

"""A model on several devices gives the results of a single device."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_answers import answers, wide, with_key_heads
from roost.engine import ConfigError, EngineConfig, MeshShape, load_runner, open_model
from test_resume import TINY_MODEL

pytestmark = pytest.mark.mesh

SCRIPT = Path(__file__).with_name("mesh_answers.py")


def on_mesh(data: int, model: int, chunk: int, *more: str) -> dict[str, Any]:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[:2]))}
    command = [sys.executable, str(SCRIPT), *map(str, (data, model, chunk)), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return json.loads(json.dumps(answers(MeshShape(), 128)))


def difference(one: Any, other: Any) -> float:
    """Returns the largest difference of floats in nested lists; infinity if anything else differs."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(difference, one, other), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else math.inf


@pytest.mark.parametrize(("data", "model", "chunk"), [(2, 4, 128), (1, 3, 64), (3, 1, 128), (1, 8, 64)])
def test_answers_are_those_of_one_device(alone: dict[str, Any], data: int, model: int, chunk: int) -> None:
    """The model has four heads, which do not divide evenly or are fewer than the shards in some cases."""
    found = on_mesh(data, model, chunk)
    assert found["cached"] == alone["cached"]
    assert found["compiles"] == 0
    for name, told in alone["answers"].items():
        assert difference(found["answers"][name], told) < 1e-4, name


@pytest.mark.parametrize(("data", "model"), [(2, 2), (3, 1), (1, 2)])
def test_steps_of_some_slots_of_each_device(alone: dict[str, Any], data: int, model: int) -> None:
    """Few requests at a time take small steps, and more of them the step of all slots."""
    found = on_mesh(data, model, 128, "parts")
    assert found["decode"] == [data * model, -(-5 // (data * model)) * data * model]
    assert found["compiles"] == 0
    for name, told in alone["answers"].items():
        assert difference(found["answers"][name], told) < 1e-4, name


@pytest.mark.parametrize(("heads", "meshes"), [(2, [(1, 2), (2, 4), (1, 3)]), (4, [(2, 2), (1, 3)])])
def test_with_several_key_heads(heads: int, meshes: list[tuple[int, int]]) -> None:
    """The key heads of four heads divide evenly among the shards, or are whole on each of them."""
    alone = json.loads(json.dumps(answers(MeshShape(), 64, source=with_key_heads(heads))))
    for data, model in meshes:
        found = on_mesh(data, model, 64, "heads", str(heads))
        assert found["cached"] == alone["cached"]
        assert found["compiles"] == 0
        for name, told in alone["answers"].items():
            assert difference(found["answers"][name], told) < 1e-4, (data, model, name)


def test_in_int8_they_are_as_near_as_rounding_allows(alone: dict[str, Any]) -> None:
    """Each shard rounds its part of a row by itself, which gives other numbers of the same accuracy."""
    runs = answers(MeshShape(), 64, "int8"), on_mesh(2, 2, 64, "int8")
    on_one, on_four = (errors(run, alone) for run in runs)
    assert 0 < on_four.mean() < 1.25 * on_one.mean()
    assert (on_one != on_four).any()


def test_in_int4_two_devices_cut_between_groups() -> None:
    """Their parts of the matrices have the bits of one device's, and only activations are rounded otherwise."""
    exact = answers(MeshShape(), 64, source=wide())
    on_one = errors(answers(MeshShape(), 64, "int4", source=wide()), exact)
    on_two = errors(on_mesh(1, 2, 64, "int4"), exact)
    assert 0 < on_two.mean() < 1.25 * on_one.mean()
    assert np.abs(on_two - on_one).mean() < 0.25 * on_one.mean()


def errors(quantized: dict[str, Any], exact: dict[str, Any]) -> np.ndarray:
    """Returns the error of each prompt token's log-probability."""
    pairs = zip(quantized["answers"]["scored"][1], exact["answers"]["scored"][1], strict=True)
    return np.array([abs(found[0] - right[0]) for found, right in pairs if right])


def test_with_a_window_in_int8_answers_are_those_of_one_device() -> None:
    """Each device holds scales beside its rings; keys are quantised once, whole, so no rounding differs."""
    alone = json.loads(json.dumps(answers(MeshShape(), 128, kv_dtype="int8")))
    found = on_mesh(2, 2, 128, "window")
    assert found["cached"] == alone["cached"]
    assert found["compiles"] == 0
    differences = [difference(found["answers"][name], told) for name, told in alone["answers"].items()]
    assert sum(each < 0.05 for each in differences) >= 0.9 * len(differences), differences


def test_too_few_devices() -> None:
    config = EngineConfig(2, prefill_chunk=64, shards=MeshShape(4, 2))
    with pytest.raises(ConfigError, match=r"mesh data=4,model=2 takes 8 devices, but there are 1"):
        load_runner(open_model(str(TINY_MODEL)), config)

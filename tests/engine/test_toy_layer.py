"""A kind of layer with another state is served from its declaration alone; `toy_layer.py` is all of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_layer
from roost.engine import MeshShape, state_bytes
from roost.engine.model import layers
from roost.engine.model.layer_kinds import LAYER_KINDS

SCRIPT = Path(toy_layer.__file__)


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYER_KINDS, "toy", toy_layer.TOY)
        patch.setitem(layers.TEMPORAL_BLOCKS, "toy", toy_layer.ToyBlock)
        runner = toy_layer.toy_runner(MeshShape())
        yield json.loads(json.dumps(toy_layer.answers(runner)))
        assert state_bytes(toy_layer.CONFIG, 4) == 64 * 4 * (2 + 1 + 3) + 96 * 2 * 16 * 4
        runner.close()


def test_a_prefix_is_restored(answers: dict[str, Any]) -> None:
    (first, uncached), (again, cached) = answers["first"], answers["again"]
    assert (uncached, cached) == (0, len(toy_layer.PROMPT))
    assert first == again


def test_an_exported_state_is_resumed_as_if_prefilled(answers: dict[str, Any]) -> None:
    assert answers["sums"][:2] == [[2, 64], "float32"]
    assert answers["sums"][2] > 0
    (resumed, cached), (whole, uncached) = answers["resumed"], answers["whole"]
    assert (cached, uncached) == (128, 0)
    assert resumed == whole


def test_a_slot_is_read_with_the_arrays_of_all_kinds(answers: dict[str, Any]) -> None:
    assert answers["slot"] == [[1, 64], [1, 3, 64], [2, 64]]


@pytest.mark.mesh
def test_on_a_mesh_it_gives_the_same_tokens_and_files(answers: dict[str, Any]) -> None:
    """Four blocks of channels over three shards are padded."""
    paths = os.pathsep.join(map(str, SCRIPT.parents[:2]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2", "3"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "6", "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["sums"][2] == pytest.approx(answers["sums"][2], rel=1e-4)
    assert {**found, "sums": found["sums"][:2]} == {**answers, "sums": answers["sums"][:2]}

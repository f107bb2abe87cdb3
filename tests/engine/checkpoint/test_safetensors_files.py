"""Sharded safetensors files and their index."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.engine.checkpoint.safetensors_files import INDEX
from roost.engine.checkpoint.source import open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint
from roost.engine.types.errors import CheckpointError
from safetensors.numpy import load_file, save_file
from small_models import TINY_A

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
NORM = "model.final_norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_A / "hf", tmp_path / "it"))


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / INDEX).read_text())
    change(content)
    (folder / INDEX).write_text(json.dumps(content))


def read_all(folder: Path) -> None:
    source = open_model(str(folder))
    with open_tensors(source.weights, source.config) as tensors:
        Checkpoint(source.config, tensors)
        for tensor in tensors.values():
            tensor.whole()


def refusal(folder: Path) -> str:
    """Returns the error of opening a model and reading all of it."""
    with pytest.raises(CheckpointError) as error:
        read_all(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_the_index_does_not_name_are_left_alone(folder: Path) -> None:
    """Some repositories hold the same weights a second time, as one file."""
    save_file({"other": np.zeros(3)}, folder / "consolidated.safetensors")
    assert [p.name for p in open_model(str(folder)).weights] == [FIRST, SECOND]


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    (folder / SECOND).unlink()
    assert refusal(folder).startswith(f"{folder / SECOND}: is missing, but {INDEX} names it; download it")


def test_a_shard_that_is_cut_short_is_named(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-100])
    assert refusal(folder).startswith(f"{folder / FIRST}: is not a whole safetensors file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": "../b"}}'])
def test_what_is_no_index_is_named(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert refusal(folder).startswith(f"{folder / INDEX}: must be JSON with a weight_map from tensors to files")


@pytest.mark.parametrize("name", [300 * "a" + ".safetensors", "a\0.safetensors", "missing.safetensors"])
def test_a_file_that_cannot_be_there_is_named(folder: Path, name: str) -> None:
    change_index(folder, lambda content: content["weight_map"].update({NORM: name}))
    assert refusal(folder) == f"{folder / name}: is missing, but {INDEX} names it; download it as well"


def test_two_files_with_the_same_tensor_are_refused(folder: Path) -> None:
    (folder / INDEX).unlink()
    shutil.copy(folder / FIRST, folder / "model-00003.safetensors")
    assert "is in model-00001-of-00002.safetensors too; remove one file" in refusal(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(folder: Path, dtype: str, bad: float) -> None:
    tensors = {name: t.astype(dtype) for file in (FIRST, SECOND) for name, t in load_file(folder / file).items()}
    tensors["model.layers.2.temporal_block.k_proj.weight"][-1, -1] = bad
    for file in (FIRST, SECOND, INDEX):
        (folder / file).unlink()
    save_file(tensors, folder / "model.safetensors")
    expected = f"{folder / 'model.safetensors'}: tensor model.layers.2.temporal_block.k_proj.weight holds NaN or an inf"
    assert refusal(folder).startswith(expected)

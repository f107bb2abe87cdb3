"""Official checkpoints in both of Orbax's layouts equal Hugging Face's files, and damage is reported."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint
import pytest
from roost.engine.checkpoint.format import Tensors
from roost.engine.checkpoint.official import open_arrays
from roost.engine.checkpoint.safetensors_files import find_files
from roost.engine.checkpoint.source import ModelSource, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint
from roost.engine.types.errors import CheckpointError
from small_models import TINY_A, counting, ragged, read_model

ORBAX = TINY_A / "orbax"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Returns the golden arrays by their official names."""
    return {name: array.read().result() for name, array in open_arrays(ORBAX).items()}


def save(arrays: dict[str, np.ndarray], folder: Path, *, use_ocdbt: bool, under: str | None = None) -> Path:
    """Writes a checkpoint with Orbax itself, as a tree whose keys `blocks.0` hold a dot."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        head, *rest = name.replace("blocks.", "blocks/").split(".")
        branch = tree
        for key in (path := [head.replace("/", "."), *rest])[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = array
    logging.getLogger("absl").setLevel(logging.ERROR)
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
    with orbax.checkpoint.Checkpointer(handler) as saver:
        saver.save(folder, tree if under is None else {under: tree})
    (folder / "griffin_config.json").write_text((TINY_A / "griffin_config.json").read_text())
    return folder


@contextmanager
def opened(source: ModelSource) -> Iterator[Tensors]:
    with open_tensors(source.weights, source.config) as tensors:
        Checkpoint(source.config, tensors)  # which checks names and shapes
        yield tensors


def assert_holds_tiny_a(source: ModelSource) -> None:
    files = find_files(TINY_A / "hf")
    with opened(source) as tensors, open_tensors(files, source.config) as expected:
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.whole(), expected[name].whole(), name)


def test_the_official_checkpoint_is_hugging_faces() -> None:
    source = open_model(str(ORBAX))
    hf = open_model(str(TINY_A / "hf"))
    assert (source.name, source.config) == ("orbax", hf.config)
    assert_holds_tiny_a(source)


@pytest.mark.parametrize("use_ocdbt", [False, True])
@pytest.mark.parametrize("under", [None, "params"])
def test_both_layouts_and_both_roots(
    arrays: dict[str, np.ndarray], tmp_path: Path, use_ocdbt: bool, under: str | None
) -> None:
    folder = save(arrays, tmp_path / "2b-it", use_ocdbt=use_ocdbt, under=under)
    assert (folder / "manifest.ocdbt").is_file() == use_ocdbt
    assert_holds_tiny_a(open_model(str(folder)))


def test_log_probabilities_are_equal_to_the_last_bit() -> None:
    tokens = np.load(TINY_A / "golden.npz")["full_tokens"]

    def logits(folder: str) -> np.ndarray:
        model = read_model(open_model(str(TINY_A / folder)), "float32", 16)
        return model.run(ragged(tokens, 112), counting([100], 112), model.zero(1))[0]

    np.testing.assert_array_equal(logits("orbax"), logits("hf"))


def test_large_arrays_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.engine.checkpoint.format._PIECE", 100)
    assert_holds_tiny_a(open_model(str(ORBAX)))


def test_a_folder_around_it_will_do_with_a_tokenizer_beside_it(tmp_path: Path) -> None:
    """The layout of Kaggle's and Hugging Face's `-flax` repositories is opened."""
    shutil.copytree(ORBAX, tmp_path / "2b-it")
    shutil.copy(TINY_A / "griffin_config.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "2b-it"):
        source = open_model(str(folder))
        assert (source.name, source.weights) == (folder.name, (tmp_path / "2b-it",))
        assert source.directory is not None
        assert source.directory.samefile(tmp_path)


def test_several_in_a_folder_are_a_choice(tmp_path: Path) -> None:
    for name in ("2b", "2b-it"):
        shutil.copytree(ORBAX, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds several checkpoints; choose one of .*2b, .*2b-it"):
        open_model(str(tmp_path))


def read_all(folder: Path) -> None:
    with opened(open_model(str(folder))) as tensors:
        for tensor in tensors.values():
            tensor.whole()


def refusal(folder: Path) -> str:
    """Returns the error of opening and reading every tensor."""
    with pytest.raises(CheckpointError) as error:
        read_all(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_a_chunk_that_is_cut_short_or_missing_is_named(
    arrays: dict[str, np.ndarray], tmp_path: Path, use_ocdbt: bool
) -> None:
    folder = save(arrays, tmp_path / "it", use_ocdbt=use_ocdbt)
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[: len(whole) // 2])
    assert f"{folder}: is no whole Orbax checkpoint (" in (cut := refusal(folder))
    assert "download it again" in cut
    largest.unlink()
    assert f"{folder}: is no whole Orbax checkpoint (" in refusal(folder)


def test_an_array_that_is_missing_or_too_many_is_named(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    lacks = {name: array for name, array in arrays.items() if name != "blocks.1.mlp_block.ffw_down.bias"}
    assert "tensor model.layers.1.mlp_block.down_proj.bias [64] is missing" in refusal(
        save(lacks, tmp_path / "lacks", use_ocdbt=True)
    )
    more = arrays | {"blocks.7.what": np.zeros(3, np.float32)}
    assert "tensor blocks.7.what does not belong to this model" in refusal(
        save(more, tmp_path / "more", use_ocdbt=False)
    )
    shapes = arrays | {"blocks.1.mlp_block.ffw_up.b": np.zeros(3, np.float32)}
    assert "tensor model.layers.1.mlp_block.gate_proj.bias has shape [3]" in refusal(
        save(shapes, tmp_path / "shapes", use_ocdbt=True)
    )


def test_another_model_is_no_griffin(tmp_path: Path) -> None:
    folder = save({"layers.w": np.zeros((2, 2), np.float32)}, tmp_path / "it", use_ocdbt=True)
    assert refusal(folder).startswith(f"{folder}: is no RecurrentGemma checkpoint: it has no array embedder.input_emb")


def test_numbers_that_are_not_finite_are_named(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    bias = arrays["final_norm.scale"].copy()
    bias[3] = np.nan
    text = refusal(save(arrays | {"final_norm.scale": bias}, tmp_path / "it", use_ocdbt=True))
    assert "tensor model.final_norm.weight holds NaN or an infinite number" in text


def test_a_folder_with_metadata_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_METADATA").write_text("{}")
    assert "holds no arrays" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"attention_window_size": None}, "attention_window_size must be of type int, got None"),
        ({"logits_soft_cap": "30"}, "logits_soft_cap must be of type float, got '30'"),
        ({"embeddings_scale_by_sqrt_dim": 1}, "embeddings_scale_by_sqrt_dim must be of type bool, got 1"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    shutil.copytree(ORBAX, tmp_path / "it")
    file = tmp_path / "griffin_config.json"
    file.write_text(json.dumps(json.loads((TINY_A / "griffin_config.json").read_text()) | change))
    assert refusal(tmp_path / "it").startswith(f"{file}: {expected}")


def test_without_a_config_only_presets_are_known(tmp_path: Path) -> None:
    shutil.copytree(ORBAX, tmp_path / "it")
    text = refusal(tmp_path / "it")
    assert "its sizes are those of no preset (2b, 9b), so put a griffin_config.json there" in text
    assert "attention_window_size, logits_soft_cap, embeddings_scale_by_sqrt_dim" in text

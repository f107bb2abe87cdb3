"""Model references (directories, random models and the bundled demo), and a model's identity by its content."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from roost.engine import ModelSource
from roost.engine.checkpoint.source import DEMO_DIRECTORY, model_identity, open_model
from roost.engine.model.config import PRESETS
from roost.engine.types.errors import CheckpointError
from small_models import TINY_A

TINY_HF = TINY_A / "hf"


def test_a_directory_is_named_after_itself_and_gives_its_files_in_order() -> None:
    source = open_model(str(TINY_HF))
    assert (source.name, source.directory, source.is_random) == ("hf", TINY_HF, False)
    assert [p.name for p in source.weights] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert source.config.width == 64


def test_the_name_is_never_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TINY_HF)
    assert open_model(".").name == "hf"
    assert open_model("../hf/").name == "hf"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_random_presets_need_no_file(preset: str) -> None:
    source = open_model(f"random:{preset}")
    assert (source.config, source.directory, source.is_random) == (PRESETS[preset], None, True)
    assert source.name == f"recurrentgemma-{preset}-random"


def test_random_takes_any_json_file_of_that_format(tmp_path: Path) -> None:
    """A tokenizer beside the config is found; weights beside it are not read."""
    folder = tmp_path / "my-model"
    shutil.copytree(TINY_HF, folder)
    shutil.copy(folder / "config.json", folder / "small.json")
    for name, expected in (("config.json", "my-model-random"), ("small.json", "small-random")):
        source = open_model(f"random:{folder / name}")
        assert (source.name, source.directory, source.weights) == (expected, folder, ())
        assert source.config == open_model(str(folder)).config


def test_demo_is_the_bundled_directory() -> None:
    source = open_model("demo")
    assert (source.name, source.directory) == ("demo", DEMO_DIRECTORY)
    assert source.is_random == (not list(DEMO_DIRECTORY.glob("*.safetensors")))


@pytest.mark.parametrize("reference", ["no-such-model", "google/recurrentgemma-2b"])
def test_what_is_no_directory_is_refused_with_all_that_would_do(reference: str) -> None:
    with pytest.raises(CheckpointError) as error:
        open_model(reference)
    text = str(error.value)
    assert text.startswith(f"{reference}: ")
    for choice in ("config.json", "random:2b", "random:9b", "demo"):
        assert choice in text
    assert "\n" not in text


def test_a_directory_without_weights_is_refused_with_the_way_to_draw_some(tmp_path: Path) -> None:
    shutil.copy(TINY_HF / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file \(random:.*/config\.json draws weights\)"):
        open_model(str(tmp_path))


def test_an_empty_directory_is_refused_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r": is empty; put config\.json and the \.safetensors files there"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("name", ["2b-it.pt", "model.ckpt", "pytorch_model.bin"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    """Pickles are refused, alone or in a folder."""
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "tokenizer.model").touch()
    for reference in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError) as error:
            open_model(str(reference))
        assert str(error.value).startswith(f"{tmp_path / name}: is a pickle, which could run any program")
        assert "safetensors" in str(error.value)


def test_a_file_is_no_directory() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: is a file; give its folder, or random:"):
        open_model(str(TINY_HF / "config.json"))


def test_a_directory_without_a_config_is_refused_with_the_file_missed(tmp_path: Path) -> None:
    shutil.copy(TINY_HF / "model-00001-of-00002.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("reference", ["random:", "random:7b", "random:no/such/config.json"])
def test_an_unknown_random_model_is_refused_with_the_known_ones(reference: str) -> None:
    with pytest.raises(CheckpointError) as error:
        open_model(reference)
    message = "is no size and no file; give 2b or 9b, or the path of a config.json"
    assert str(error.value) == f"{reference}: {message}"


SHAPE = PRESETS["2b"]


def source(*files: Path) -> ModelSource:
    return ModelSource("m", SHAPE, None, files)


def identity(model: ModelSource, dtype: str = "bfloat16", quantize: str | None = None, seed: int = 0) -> str:
    return model_identity(model, dtype, quantize, seed)


def test_content_counts_and_nothing_else(tmp_path: Path) -> None:
    one, moved, changed = (tmp_path / name / "model.safetensors" for name in ("one", "moved", "changed"))
    for path in (one, moved, changed):
        path.parent.mkdir()
        path.write_bytes(b"weights" if path is not changed else b"weighty")
    assert identity(source(one)) == identity(source(moved)) == identity(source(one), seed=7)
    different = [source(changed), source(one, changed), replace(source(one), config=PRESETS["9b"])]
    names = {identity(model) for model in [source(one), *different]}
    names |= {identity(source(one), "float32"), identity(source(one), quantize="int8")}
    assert len(names) == 6


def test_official_checkpoints_are_known_by_their_files(tmp_path: Path) -> None:
    one, other = (Path(shutil.copytree(TINY_A / "orbax", tmp_path / name / "2b-it")) for name in ("one", "other"))
    assert identity(source(one)) == identity(source(other))
    largest = max(other.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    assert identity(source(one)) != identity(source(other))


def test_random_weights_are_known_by_their_seed() -> None:
    assert identity(source()) != identity(source(), seed=1)


def test_large_files_are_sampled_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(80 * 2**20))
    before, seen = identity(source(path)), 0
    rng = np.random.default_rng(0)
    for start in [0, 79 * 2**20, *rng.integers(0, 79 * 2**20, 5).tolist()]:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(bytes([1]) * 2**20)
        after = identity(source(path))
        seen += after != before
        before = after
    assert seen == 7, "a tensor of a megabyte is met wherever it lies"

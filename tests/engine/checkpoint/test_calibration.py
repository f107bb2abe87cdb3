"""Conversion to int4 for the activations of texts: closer to the original model, and the same each time."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint.conversion import TEXT_TOKENS, convert
from roost.engine.checkpoint.source import open_model
from roost.engine.checkpoint.weights import checkpoint_tensors, random_params
from roost.engine.model.config import ModelConfig, config_to_hf
from roost.engine.model.griffin import abstract_model
from safetensors.numpy import load_file, save_file
from small_models import counting, read_model

CONFIG = ModelConfig(96, 64, 128, 2, 64, ("recurrent", "attention"), window=64)


def random_texts(seed: int, count: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(2, CONFIG.vocab_size, (count, TEXT_TOKENS)).tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float32, and converted to int4 without and with texts."""
    folder = tmp_path_factory.mktemp("models")
    params = random_params(abstract_model(CONFIG, jnp.dtype("float32"))[1], 0)
    (folder / "float32").mkdir()
    save_file(checkpoint_tensors(params, CONFIG), folder / "float32" / "model.safetensors")
    (folder / "float32" / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    source = open_model(str(folder / "float32"))
    convert(source, folder / "searched", quantize="int4")
    convert(source, folder / "calibrated", quantize="int4", texts=random_texts(0, 8))
    return folder


def test_logits_are_closer_to_the_original_on_another_text(models: Path) -> None:
    tokens, positions = np.asarray(random_texts(1, 1), np.int32), counting([TEXT_TOKENS], TEXT_TOKENS)

    def logits(name: str, matrices: str | None) -> np.ndarray:
        model = read_model(open_model(str(models / name)), "float32", 64, matrices=matrices)
        return model.run(tokens, positions, model.zero(1))[0]

    exact = logits("float32", None)
    searched, calibrated = (np.square(logits(name, "int4") - exact).mean() for name in ("searched", "calibrated"))
    assert calibrated <= 0.8 * searched


def test_all_but_the_matrices_of_layers_is_as_without_texts(models: Path) -> None:
    one, other = (load_file(models / name / "model.safetensors") for name in ("searched", "calibrated"))
    assert one.keys() == other.keys()
    changed = {name for name, x in one.items() if not np.array_equal(x, other[name])}
    layers = {name for name in one if name.endswith(("weight_packed", "weight_scale")) and "embed" not in name}
    assert changed == layers


def test_the_same_texts_give_the_same_bytes(models: Path, tmp_path: Path) -> None:
    again = convert(open_model(str(models / "float32")), tmp_path / "it", quantize="int4", texts=random_texts(0, 8))
    file = "model.safetensors"
    assert (tmp_path / "it" / file).read_bytes() == (models / "calibrated" / file).read_bytes()
    assert again.num_bytes > 0

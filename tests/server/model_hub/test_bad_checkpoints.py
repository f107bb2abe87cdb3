"""Invalid checkpoints end `roost serve` with an exit status and one line that names the file and the fix."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.engine.checkpoint.source import DEMO_DIRECTORY
from roost.server.commands.main import app
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a"
FIRST, INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_in_nan(folder: Path) -> None:
    """The only fault that is found while programs are compiled, so all layers but one are left out."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {
        name: t for file in files for name, t in load_file(file).items() if ".layers." not in name or ".0." in name
    }
    tensors["model.embed_tokens.weight"][3, 5] = np.nan
    for file in (*files, folder / INDEX):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
    change_json(folder / "config.json", num_hidden_layers=1)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def only_a_pickle(folder: Path) -> None:
    empty(folder)
    (folder / "2b-it.pt").write_bytes(pickle.dumps({"w": 1}))


def move_a_tensor(folder: Path) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], FIRST)
    (folder / INDEX).write_text(json.dumps(content))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated shard": (
        lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-9]),
        f"{FIRST}: is not a whole safetensors file (",
    ),
    "a shard that is missing": (
        lambda f: (f / FIRST).unlink(),
        f"{FIRST}: is missing, but {INDEX} names it; download",
    ),
    "a wrong index": (move_a_tensor, "temporal_pre_norm.weight [64] is missing; download every file of the checkpoint"),
    "a broken index": (lambda f: (f / INDEX).write_text("{"), f"{INDEX}: must be JSON with a weight_map"),
    "NaN": (put_in_nan, "tensor model.embed_tokens.weight holds NaN or an infinite number, so every output would be"),
    "another vocabulary": (
        lambda f: change_json(f / "config.json", vocab_size=300),
        "but the config asks for [300, 64]",
    ),
    "another depth": (lambda f: change_json(f / "config.json", num_hidden_layers=5), "does not belong to this model ("),
    "another architecture": (
        lambda f: change_json(f / "config.json", model_type="gemma2"),
        "config.json: model_type must be 'recurrent_gemma', got 'gemma2'",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read (No such file or directory)"),
    "an empty directory": (empty, ": is empty; put config.json and the .safetensors files there"),
    "a pickle": (only_a_pickle, "2b-it.pt: is a pickle, which could run any program when opened"),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.model").write_bytes(b"no"),
        "tokenizer.model is not a SentencePiece model: download it again",
    ),
    "a tokenizer that is too large": (
        lambda f: shutil.copy(DEMO_DIRECTORY / "tokenizer.model", f),
        "has 3072 pieces, but the model's vocabulary only 320: replace it by the tokenizer that the model",
    ),
}


def refusal(folder: Path) -> str:
    """Returns what `roost serve` prints before it exits."""
    few = ["--compile-cache", "off", "--slots", "2", "--prefill-chunk", "64"]  # programs to be compiled meanwhile
    result = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", *few])
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("loading weights", "compiling"))]
    assert len(lines) == 1
    assert lines[0].startswith(f"roost: {folder}")
    return lines[0]


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c == "NaN" else []) for c in CASES])
def test_bad_input(tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(TINY_A / "hf", tmp_path / "it"))
    spoil, expected = CASES[case]
    spoil(folder)
    assert expected in refusal(folder)


def test_an_official_checkpoint_whose_config_is_wrong(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_A / "orbax", tmp_path / "it"))
    shutil.copy(TINY_A / "griffin_config.json", folder)
    change_json(folder / "griffin_config.json", attention_window_size="16")
    assert "griffin_config.json: attention_window_size must be of type int, got '16'" in refusal(folder)

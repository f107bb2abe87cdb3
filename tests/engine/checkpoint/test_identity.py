"""Identity of a model by its content."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from roost.engine import ModelSource
from roost.engine.checkpoint.source import model_identity
from roost.engine.model.config import PRESETS
from small_models import TINY_A

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

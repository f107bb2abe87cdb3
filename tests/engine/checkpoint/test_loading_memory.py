"""Host memory of loading, as `roost plan` computes it; benchmarks/loading.py measures it at full size."""

import json
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from loading import write_official
from roost.engine.capacity.roofline import DEVICES, compute_roofline
from roost.engine.checkpoint import format
from roost.engine.checkpoint.conversion import convert
from roost.engine.checkpoint.source import ModelSource, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint, checkpoint_tensors, load_params, random_params
from roost.engine.model.config import ModelConfig, config_to_hf, cycle
from roost.engine.model.griffin import abstract_model
from roost.kernels.matrices import int8
from safetensors.numpy import save_file

CONFIG = ModelConfig(4096, 128, 384, 2, 128, cycle(("recurrent", "recurrent", "attention"), 6), dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes random weights in both formats, about a third of them embedding."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "hf").mkdir()
    params = random_params(abstract_model(CONFIG, jnp.dtype("bfloat16"))[1], 0)
    save_file(checkpoint_tensors(params, CONFIG), folder / "hf" / "model.safetensors")
    (folder / "hf" / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    write_official(CONFIG, folder / "orbax")
    convert(open_model(str(folder / "hf")), folder / "int8", quantize="int8")
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pieces as small, relative to this model, as they are for a large one."""
    monkeypatch.setattr(format, "_PIECE", 2**12)
    monkeypatch.setattr(int8, "_PIECE", 2**12)


def peak_of_loading(source: ModelSource, dtype: str, matrices: str | None) -> int:
    """Returns the bytes that Python and NumPy allocate; device arrays are NumPy's memory here."""
    kind = None if matrices is None else jnp.dtype(matrices)
    _, abstract = abstract_model(source.config, jnp.dtype(dtype), matrix_dtype=kind)
    with open_tensors(source.weights, source.config) as stored:
        checkpoint = Checkpoint(source.config, stored)
        tracemalloc.start()
        params = load_params(checkpoint, abstract)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del params
        return peak


PRECISIONS = [("float32", None), ("bfloat16", None), ("bfloat16", "int8")]


@pytest.mark.parametrize(
    ("name", "dtype", "matrices"),
    [*((name, *precision) for name in ("hf", "orbax") for precision in PRECISIONS), ("int8", "bfloat16", "int8")],
)
def test_loading_keeps_to_the_plan(folder: Path, name: str, dtype: str, matrices: str | None) -> None:
    roofline = compute_roofline(CONFIG, DEVICES["v5e"], np.dtype(jnp.dtype(dtype)).itemsize, quantize=matrices)
    peak = roofline.loading_bytes
    for _ in range(3):  # other threads of this process and caches that are filled once only add to it
        if peak >= roofline.loading_bytes:
            peak = min(peak, peak_of_loading(open_model(str(folder / name)), dtype, matrices))
    assert roofline.weight_bytes < peak < roofline.loading_bytes

"""Where a model comes from: a name on the command line becomes a config and, perhaps, a directory. No JAX here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..core.errors import CheckpointError
from ..model.config import PRESETS, ModelConfig, read_config
from .griffin_config import config_of_arrays
from .orbax import is_orbax, open_arrays
from .safetensors_files import find_files

DEMO_DIRECTORY: Final = Path(__file__).parents[2] / "configs" / "demo"
"""The bundled model."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """
    Attributes:
      name: the model's id where the operator gives none; never a path.
      config: its shape.
      directory: where its tokenizer, chat template and generation defaults may lie; None where there is none.
      weights: the safetensors files, in the order of their names, or one folder of Orbax's; none means random weights.
    """

    name: str
    config: ModelConfig
    directory: Path | None
    weights: tuple[Path, ...]

    @property
    def is_random(self) -> bool:
        """Whether the weights are drawn, not read: such a model says nothing that means anything."""
        return not self.weights

    @property
    def files(self) -> Iterator[Path]:
        """Every file that the weights lie in, in the order of their names."""
        for path in self.weights:
            yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def open_model(reference: str, name: str | None = None) -> ModelSource:
    """Finds a model on this machine: `demo`, a directory, `random:2b`, `random:9b` or `random:CONFIG.json`.

    A directory is in the Hugging Face layout, or an official checkpoint as Orbax writes it, or holds one such.

    Args:
      name: for a directory whose own name says nothing.

    Raises:
      CheckpointError: there is no such model, or its config is wrong; the text names the file and the fix.
    """
    if reference.startswith("random:"):
        return _open_random(reference.removeprefix("random:"))
    directory = DEMO_DIRECTORY if reference == "demo" else Path(reference)
    if directory.is_file():
        raise CheckpointError(_why_no_file(directory))
    if not directory.is_dir():
        raise CheckpointError(f"{reference}: no such directory; MODEL is {CHOICES}")
    name = name or directory.resolve().name
    if weights := find_files(directory):
        return ModelSource(name, read_config(directory / "config.json"), directory, weights)
    if reference == "demo":
        return ModelSource(name, read_config(directory / "config.json"), directory, ())
    return _open_official(directory, name)


CHOICES: Final = (
    "a directory with config.json and .safetensors files, or an official (Flax) checkpoint; random:2b, random:9b, "
    "random:CONFIG.json, or demo"
)


def _open_official(directory: Path, name: str) -> ModelSource:
    """A checkpoint of Orbax's: the folder itself, or the only such folder in it. A tokenizer may lie beside it."""
    inside = (
        [directory] if is_orbax(directory) else sorted(p for p in directory.iterdir() if p.is_dir() and is_orbax(p))
    )
    if len(inside) > 1:
        raise CheckpointError(f"{directory}: holds several checkpoints; take one of {', '.join(map(str, inside))}")
    if not inside:
        raise CheckpointError(_why_not(directory))
    arrays = open_arrays(inside[0])
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    embedding = arrays.get("embedder.input_embedding")
    config = config_of_arrays(inside[0], shapes, "float32" if embedding is None else embedding.dtype.name)
    around = (inside[0], inside[0].resolve().parent)
    texts = next((d for d in around for file in _TEXT_FILES if (d / file).is_file()), inside[0])
    return ModelSource(name, config, texts, (inside[0],))


_TEXT_FILES: Final = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")

_PICKLES: Final = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def _why_no_file(file: Path) -> str:
    """What is wrong with a file in the place of a folder."""
    if file.name.endswith(_PICKLES):
        return (
            f"{file}: is a pickle, which may run any program when it is opened, so it is not; take the same model's "
            "safetensors (Hugging Face) or Flax checkpoint (Kaggle)"
        )
    return f"{file}: is a file; give the folder that it lies in, or random:{file} if it is a config"


def _why_not(directory: Path) -> str:
    """What is wrong with a folder without a checkpoint, and what would help."""
    files = sorted(p.name for p in directory.iterdir())
    if pickles := [name for name in files if name.endswith(_PICKLES)]:
        return _why_no_file(directory / pickles[0])
    if not files:
        return f"{directory}: is empty; put config.json and the .safetensors files there, or an official checkpoint"
    hint = f" (random:{directory}/config.json draws weights)" if "config.json" in files else ""
    return f"{directory}: holds no .safetensors file{hint}, and is no Orbax checkpoint"


def _open_random(reference: str) -> ModelSource:
    if reference in PRESETS:
        return ModelSource(f"recurrentgemma-{reference}-random", PRESETS[reference], None, ())
    path = Path(reference)
    if not path.is_file():
        raise CheckpointError(f"random:{reference}: give {' or '.join(PRESETS)}, or the path of a config.json")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return ModelSource(f"{name}-random", read_config(path), path.parent, ())

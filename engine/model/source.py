"""Where a model comes from: a name on the command line becomes a config and, perhaps, a directory. No JAX here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import CheckpointError
from .config import PRESETS, ModelConfig, read_config

DEMO_DIRECTORY: Final = Path(__file__).parents[2] / "configs" / "demo"
"""The bundled model."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """
    Attributes:
      name: the model's id where the operator gives none; never a path.
      config: its shape.
      directory: where its tokenizer, chat template and generation defaults may lie; None where there is none.
      weights: the safetensors files, in the order of their names; none means random weights.
    """

    name: str
    config: ModelConfig
    directory: Path | None
    weights: tuple[Path, ...]

    @property
    def is_random(self) -> bool:
        """Whether the weights are drawn, not read: such a model says nothing that means anything."""
        return not self.weights


def open_model(reference: str) -> ModelSource:
    """Finds a model: `demo`, a directory in the Hugging Face layout, `random:2b`, `random:9b` or `random:CONFIG.json`.

    Raises:
      CheckpointError: there is no such model, or its config is wrong; the text names the file and the fix.
    """
    if reference.startswith("random:"):
        return _open_random(reference.removeprefix("random:"))
    directory = DEMO_DIRECTORY if reference == "demo" else Path(reference)
    if not directory.is_dir():
        raise CheckpointError(
            f"{reference}: no such directory; MODEL is a directory with config.json and .safetensors files, "
            "random:2b, random:9b, random:CONFIG.json, or demo"
        )
    weights = tuple(sorted(directory.glob("*.safetensors")))
    if not weights and reference != "demo":
        raise CheckpointError(f"{directory}: holds no .safetensors file (random:{directory}/config.json draws weights)")
    return ModelSource(directory.resolve().name, read_config(directory / "config.json"), directory, weights)


def _open_random(reference: str) -> ModelSource:
    if reference in PRESETS:
        return ModelSource(f"recurrentgemma-{reference}-random", PRESETS[reference], None, ())
    path = Path(reference)
    if not path.is_file():
        raise CheckpointError(f"random:{reference}: give {' or '.join(PRESETS)}, or the path of a config.json")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return ModelSource(f"{name}-random", read_config(path), path.parent, ())

"""Model references: `open_model` finds the config and files of the model that a command line names.

`model_identity` distinguishes models by the content of their files. Saved states are only restored into the same model.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..model.config import INT4_GROUP_SIZE, PRESETS, ModelConfig, read_config
from ..types.errors import CheckpointError
from .flax_msgpack import FLAX_MSGPACK
from .format import Tensors, content_pieces
from .lora import Adapter, merged
from .official import ORBAX
from .safetensors_files import SAFETENSORS

FORMATS: Final = (SAFETENSORS, ORBAX, FLAX_MSGPACK)
"""Supported formats. The first one that finds a checkpoint in a folder opens it."""

DEMO_DIRECTORY: Final = Path(__file__).parents[2] / "configs" / "demo"
"""Folder of the bundled model."""

CHOICES: Final = (
    "a directory with config.json and .safetensors files, or an official (Flax) checkpoint; random:2b, random:9b, "
    "random:CONFIG.json, or demo"
)
_PICKLES: Final = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_GGUF: Final = ".gguf"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Config and files of a model on this machine.

    Attributes:
      name: Default id of the model in the API; never a path.
      config: The model's config.
      directory: Folder of the tokenizer, the chat template and the generation defaults, if there are any; None without
        a folder.
      weights: Files or folders with the weights, ordered by name; empty for random weights.
      adapters: Adapters that are merged into the weights, in order.
    """

    name: str
    config: ModelConfig
    directory: Path | None
    weights: tuple[Path, ...]
    adapters: tuple[Adapter, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether the weights are drawn at random instead of read."""
        return not self.weights

    def with_kv_dtype(self, kv_dtype: str | None) -> "ModelSource":
        """Returns the model with the given dtype of its window's keys and values; None uses the activations' dtype."""
        return replace(self, config=replace(self.config, kv_dtype=kv_dtype))

    def with_adapters(self, adapters: Sequence[Adapter]) -> "ModelSource":
        """Returns the model with adapters merged into its weights, in order.

        Raises:
          CheckpointError: The weights are random.
        """
        if adapters and self.is_random:
            raise CheckpointError(f"{self.name}: random weights take no adapter; give a checkpoint")
        return replace(self, adapters=(*self.adapters, *adapters))

    @property
    def merged(self) -> tuple[str, ...]:
        """Content and scale of each adapter; part of all identities of the model."""
        return tuple(f"{adapter.digest}*{adapter.scale}" for adapter in self.adapters)

    @property
    def files(self) -> Iterator[Path]:
        """Files of the weights, ordered by name."""
        for path in self.weights:
            yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def open_model(reference: str, name: str | None = None) -> ModelSource:
    """Finds a model on this machine.

    Args:
      reference: `demo`, `random:2b`, `random:9b`, `random:CONFIG.json`, or a folder with a checkpoint in one of
        `FORMATS`.
      name: Name of the model if the folder's name is not a model's name.

    Raises:
      CheckpointError: The model does not exist, or its config is invalid; the message names the file and the fix.
    """
    if reference.startswith("random:"):
        return _open_random(reference.removeprefix("random:"))
    directory = DEMO_DIRECTORY if reference == "demo" else Path(reference)
    if directory.is_file():
        raise CheckpointError(_why_no_file(directory))
    if not directory.is_dir():
        raise CheckpointError(f"{reference}: no such directory; MODEL is {CHOICES}")
    name = name or directory.resolve().name
    for kind in FORMATS:
        if (found := kind.find(directory)) is not None:
            return ModelSource(name, *found)
    if reference == "demo":
        return ModelSource(name, read_config(directory / "config.json"), directory, ())
    raise CheckpointError(_why_not(directory))


def _why_no_file(file: Path) -> str:
    """Returns why a file cannot be opened as a model, for an error message."""
    if file.name.endswith(_PICKLES):
        return (
            f"{file}: is a pickle, which could run any program when opened; use the same model's safetensors "
            "(Hugging Face) or Flax checkpoint (Kaggle)"
        )
    if file.name.lower().endswith(_GGUF):
        return (
            f"{file}: is a GGUF file, which only llama.cpp and its like read; use the model that it was made from, "
            "such as google/recurrentgemma-2b-it"
        )
    return f"{file}: is a file; give its folder, or random:{file} if it is a config"


def _why_not(directory: Path) -> str:
    """Returns why a folder holds no checkpoint and what to do, for an error message."""
    files = sorted(p.name for p in directory.iterdir())
    if others := [name for name in files if name.endswith((*_PICKLES, _GGUF))]:
        return _why_no_file(directory / others[0])
    if not files:
        return f"{directory}: is empty; put config.json and the .safetensors files there, or an official checkpoint"
    hint = f" (random:{directory}/config.json draws weights)" if "config.json" in files else ""
    return f"{directory}: holds no .safetensors file{hint}, and is no Orbax checkpoint"


def _open_random(reference: str) -> ModelSource:
    if reference in PRESETS:
        return ModelSource(f"recurrentgemma-{reference}-random", PRESETS[reference], None, ())
    path = Path(reference)
    if not path.is_file():
        sizes = " or ".join(PRESETS)
        raise CheckpointError(f"random:{reference}: is no size and no file; give {sizes}, or the path of a config.json")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    config = replace(read_config(path), int4_group_size=INT4_GROUP_SIZE)  # weights are quantised as they are drawn
    return ModelSource(f"{name}-random", config, path.parent, ())


@contextmanager
def open_tensors(weights: Sequence[Path], config: ModelConfig, adapters: Sequence[Adapter] = ()) -> Iterator[Tensors]:
    """Yields the tensors of a checkpoint in any format, which are read on demand.

    Args:
      weights: The checkpoint's files or folders, from `ModelSource`.
      config: The model's config.
      adapters: Adapters that are merged into the tensors, in order.

    Raises:
      CheckpointError: A file is broken, or an adapter does not fit the checkpoint.
    """
    kind = next(kind for kind in FORMATS if kind.owns(weights))
    with kind.open(weights, config) as tensors, merged(tensors, config, adapters) as sums:
        yield sums


def model_identity(source: ModelSource, dtype: str, quantize: str | None, seed: int) -> str:
    """Returns 32 hexadecimal digits that identify the weights and dtypes, independent of the location of the files.

    Args:
      source: The model's config and files. An int8 window, or a merged adapter, makes another model.
      dtype: Dtype of the activations.
      quantize: "int8" if matrices are quantised, or None.
      seed: Seed of random weights.
    """
    drawn = seed if source.is_random else None
    facts: tuple[object, ...] = (source.config, dtype, quantize, drawn)
    if source.config.kv_dtype is not None:
        facts += (source.config.kv_dtype,)
    digest = hashlib.sha256(repr((*facts, *source.merged)).encode())
    for path in source.files:
        for piece in content_pieces(path):
            digest.update(piece)
    return digest.hexdigest()[:32]

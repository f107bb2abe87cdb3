"""Record of a checkpoint format: how to find, open and write its checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..model.config import ModelConfig
from .tensors import Tensors

TOKENIZER_FILES: Final = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
"""Files that identify the folder of a model's tokenizer; one is sufficient."""


def tokenizer_directory(directory: Path) -> Path:
    """Returns the folder of the tokenizer: the checkpoint's folder, or its parent if only that has a tokenizer."""
    places = (directory, directory.resolve().parent)
    return next((place for place in places for file in TOKENIZER_FILES if (place / file).is_file()), directory)


class FoundCheckpoint(NamedTuple):
    """Checkpoint on this machine, not opened yet.

    Attributes:
      config: The model's config.
      directory: Folder of the tokenizer, the chat template and the generation defaults, if there are any.
      weights: Files or folders with the tensors.
    """

    config: ModelConfig
    directory: Path
    weights: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """Checkpoint format: one row of `roost.engine.checkpoint.FORMATS`.

    Attributes:
      name: Name for `roost convert --format`.
      title: Name for messages.
      find: Returns the checkpoint in a folder; None if the folder has none of this format. Raises `CheckpointError` if
        the checkpoint is broken.
      owns: Returns whether `FoundCheckpoint.weights` are of this format.
      open: Opens weights; the tensors have Hugging Face's names and shapes.
    """

    name: str
    title: str
    find: Callable[[Path], FoundCheckpoint | None]
    owns: Callable[[Sequence[Path]], bool]
    open: Callable[[Sequence[Path], ModelConfig], AbstractContextManager[Tensors]]


@dataclass(frozen=True, slots=True)
class WritableFormat(CheckpointFormat):
    """Checkpoint format that `roost convert` writes.

    Attributes:
      write: Writes tensors with Hugging Face's names and shapes into an empty folder, and calls its last argument after
        each tensor.
      config_file: Name of the file with the model's config.
      config_fields: Returns the content of that file.
      has_quantized: Whether matrices can be stored in int8 and int4.
      has_key_heads: Whether there can be more than one key head.
    """

    write: Callable[[Path, Tensors, ModelConfig, Callable[[], object]], None]
    config_file: str
    config_fields: Callable[[ModelConfig], Mapping[str, Any]]
    has_quantized: bool = False
    has_key_heads: bool = False

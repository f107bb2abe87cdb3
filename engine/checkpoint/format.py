"""Record that describes a checkpoint format: how to find, open and write its checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..model.config import ModelConfig
from .tensors import Tensors

TOKENIZER_FILES: Final = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
"""Files of which one marks the folder of a model's tokenizer."""


class FoundCheckpoint(NamedTuple):
    """Checkpoint on this machine, not opened yet.

    Attributes:
      config: The model's config.
      directory: Folder of the tokenizer, the chat template and the generation defaults, as far as there are any.
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
      find: Returns the checkpoint in a folder; None if the folder holds none of this format. Raises `CheckpointError`
        if the checkpoint is broken.
      owns: Returns whether `FoundCheckpoint.weights` are of this format.
      open: Opens weights; the tensors have Hugging Face's names and shapes.
      write: Writes tensors with Hugging Face's names and shapes into an empty folder, and calls its last argument after
        each tensor.
      config_file: Name of the file with the model's config.
      config_fields: Returns the content of that file.
      has_int8: Whether matrices can be stored in int8.
    """

    name: str
    title: str
    find: Callable[[Path], FoundCheckpoint | None]
    owns: Callable[[Sequence[Path]], bool]
    open: Callable[[Sequence[Path], ModelConfig], AbstractContextManager[Tensors]]
    write: Callable[[Path, Tensors, ModelConfig, Callable[[], object]], None]
    config_file: str
    config_fields: Callable[[ModelConfig], Mapping[str, Any]]
    has_int8: bool = False

"""Checkpoints: their formats and layouts on disk, and loading, placing and converting them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from ..model.config import ModelConfig
from .format import CheckpointFormat
from .orbax import ORBAX
from .safetensors_files import SAFETENSORS
from .tensors import Tensors

__all__ = ["FORMATS", "Tensors", "open_tensors"]

FORMATS: Final[Mapping[str, CheckpointFormat]] = {kind.name: kind for kind in (SAFETENSORS, ORBAX)}
"""Supported formats by name. The first one that finds a checkpoint in a folder opens it."""


def open_tensors(weights: Sequence[Path], config: ModelConfig) -> AbstractContextManager[Tensors]:
    """Opens the tensors of a checkpoint in any format.

    Args:
      weights: The checkpoint's files or folders, from `ModelSource`.
      config: The model's config.

    Raises:
      CheckpointError: On entering the context, if a file is broken.
    """
    kind = next(kind for kind in FORMATS.values() if kind.owns(weights))
    return kind.open(weights, config)

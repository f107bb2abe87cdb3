"""Checkpoints on disk: what lies where, in which format, and how one becomes another. Numbers only, no JAX."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..model.config import ModelConfig
from .orbax import open_orbax
from .safetensors_files import open_files
from .tensors import Tensors

__all__ = ["Tensors", "open_tensors"]


def open_tensors(weights: Sequence[Path], config: ModelConfig) -> AbstractContextManager[Tensors]:
    """The tensors of a checkpoint: safetensors files, or one folder of Orbax's.

    Raises:
      CheckpointError: on entering, if a file is broken.
    """
    if len(weights) == 1 and weights[0].is_dir():
        return open_orbax(weights[0], config)
    return open_files(weights)

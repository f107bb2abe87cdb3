"""Checkpoints: their formats and layouts on disk, and loading, placing and converting them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..model.config import ModelConfig
from .flax_msgpack import FLAX_MSGPACK
from .format import CheckpointFormat, Tensors, WritableFormat
from .lora import Adapter, merged
from .official import ORBAX
from .safetensors_files import SAFETENSORS

__all__ = ["FORMATS", "WRITABLE_FORMATS", "Tensors", "open_tensors"]

WRITABLE_FORMATS: Final[Mapping[str, WritableFormat]] = {kind.name: kind for kind in (SAFETENSORS, ORBAX)}
"""Formats of `roost convert`, by name."""

FORMATS: Final[Mapping[str, CheckpointFormat]] = {**WRITABLE_FORMATS, FLAX_MSGPACK.name: FLAX_MSGPACK}
"""Supported formats by name. The first one that finds a checkpoint in a folder opens it."""


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
    kind = next(kind for kind in FORMATS.values() if kind.owns(weights))
    with kind.open(weights, config) as tensors, merged(tensors, config, adapters) as sums:
        yield sums

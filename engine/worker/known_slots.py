"""Numbers of slots that earlier starts found to fit, kept beside the compiled programs."""

import hashlib
from pathlib import Path

from ..core.config import EngineConfig
from ..core.mesh import MeshShape
from ..model.config import ModelConfig
from .kept_file import keep_file


def slots_key(
    numerics: str, model: ModelConfig, settings: EngineConfig, dtype: str, shards: MeshShape, limit_bytes: int
) -> str:
    """Returns a name for everything that decides the number of slots.

    Args:
      numerics: Digest of the versions and of the device; see `roost.engine.platform.numerics`.
      model: Shape of the model.
      settings: Settings of the engine.
      dtype: Dtype of the activations.
      shards: Shape of the mesh.
      limit_bytes: Memory of a device.
    """
    chosen = (settings.quantize, settings.kv_dtype, settings.prefill_chunk, settings.state_cache_inexact)
    facts = repr((numerics, model, chosen, dtype, shards.data, shards.model, limit_bytes))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def read_slots(folder: Path | None, key: str) -> int | None:
    """Returns the number of slots that an earlier start found; None if there is none."""
    if folder is None:
        return None
    try:
        slots = int(_file(folder, key).read_text())
    except (OSError, ValueError):
        return None
    return slots if slots > 0 else None


def write_slots(folder: Path | None, key: str, slots: int) -> None:
    """Keeps a number of slots for later starts, unless the folder takes no files."""
    if folder is not None:
        keep_file(_file(folder, key), f"{slots}\n".encode())


def _file(folder: Path, key: str) -> Path:
    return folder / f"slots-{key}"

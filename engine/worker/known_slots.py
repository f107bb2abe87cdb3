"""Numbers of slots that earlier starts found to fit, kept in the folder of compiled programs."""

import hashlib
from pathlib import Path

from ..model.config import ModelConfig
from ..types.config import EngineConfig
from ..types.mesh import MeshShape
from .kept_file import keep_file


def slots_key(
    numerics: str, model: ModelConfig, settings: EngineConfig, dtype: str, shards: MeshShape, limit_bytes: int
) -> str:
    """Returns a name for everything that decides the number of slots.

    Args:
      numerics: Digest of the versions and of the device; see `roost.engine.devices.platform.numerics`.
      dtype: Dtype of the activations.
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
    """Keeps a number of slots for later starts, if the folder is writable."""
    if folder is not None:
        keep_file(_file(folder, key), f"{slots}\n".encode())


def _file(folder: Path, key: str) -> Path:
    return folder / f"slots-{key}"

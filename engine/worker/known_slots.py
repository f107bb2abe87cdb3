"""Numbers of slots that earlier starts found to fit, kept in the folder of compiled programs."""

import hashlib
from pathlib import Path

from .kept_file import keep_file
from .served import Served


def slots_key(numerics: str, served: Served, limit_bytes: int) -> str:
    """Returns a name for everything that decides the number of slots.

    Args:
      numerics: Digest of the versions and of the device; see `roost.engine.devices.platform.numerics`.
      limit_bytes: Memory of a device.
    """
    settings, shards = served.settings, served.devices.shards
    chosen = (settings.quantize, settings.kv_dtype, settings.prefill_chunk, settings.state_cache_inexact)
    facts = repr((numerics, served.config, chosen, served.dtype.name, shards.data, shards.model, limit_bytes))
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

"""The devices of this process: what they are, and how many slots their memory holds."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Final, NamedTuple

import jax

from .errors import ConfigError

CPU_MAX_SLOTS: Final = 32
"""What `slots=None` takes at most on a CPU: more rows gain nothing there and make a lone request slower."""

_FEWEST: Final = 8
"""Slots that `slots=None` takes at least."""


class DeviceFacts(NamedTuple):
    """Where models run, for reports.

    Attributes:
      kind: as JAX names it, such as "cpu" or "TPU v5 lite".
      num_devices: that this process sees.
      bytes_in_use: of the first device's own memory; None where it has none.
    """

    kind: str
    num_devices: int
    bytes_in_use: int | None


def device_facts() -> DeviceFacts:
    """The devices as they are now."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    return DeviceFacts(devices[0].device_kind, len(devices), stats.get("bytes_in_use"))


def numerics() -> str:
    """What else than the model decides the last bits of a state: 8 hexadecimal digits for versions and device."""
    versions = [importlib.metadata.version(package) for package in ("roost", "jaxlib")]
    facts = repr((versions, jax.local_devices()[0].device_kind, platform.machine(), platform.processor()))
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def affordable_slots(slot_bytes: int, weight_bytes: int, backend: str) -> int:
    """As many slots as fit into nine tenths of the memory that the weights will leave.

    Raises:
      ConfigError: not even 8 do.
    """
    free = (available_memory() if backend == "cpu" else _available_on_device()) - weight_bytes
    slots = int(0.9 * free) // slot_bytes
    if slots < _FEWEST:
        raise ConfigError(
            f"memory left for slots is {max(free, 0) / 2**20:.0f} MiB and a slot takes {slot_bytes / 2**20:.1f} MiB, "
            f"so not even {_FEWEST} fit; set slots to the number you want to try"
        )
    return min(slots, CPU_MAX_SLOTS) if backend == "cpu" else slots


def available_memory() -> int:
    """Bytes that a process may still take; where the system tells, with the file cache, which it would give up."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (found := re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _available_on_device() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))


def give_back_memory() -> None:
    """Lets the system have what the compiler has freed; where the C library cannot do that, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

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
import numpy as np
from jax.sharding import Mesh

from ..kernels import native
from .core.errors import ConfigError
from .core.mesh import DATA, MODEL, MeshShape
from .core.units import shown_bytes

CPU_MAX_SLOTS: Final = 32
"""What `slots=None` takes at most on a CPU: more rows gain nothing there and make a lone request slower."""

_CGROUPS: Final = (
    ("sys/fs/cgroup", ("memory.max", "memory.current")),
    ("sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
)
"""Where a container finds its limit of memory and what it uses of it, in bytes."""

_FEWEST: Final = 8
"""Slots that `slots=None` takes at least."""


class DeviceFacts(NamedTuple):
    """Where models run, for reports.

    Attributes:
      kind: as JAX names it, such as "cpu" or "TPU v5 lite".
      num_devices: that this process sees.
      bytes_in_use: of the first device's own memory; None where it has none.
      platform: as JAX names it: "cpu", "gpu" or "tpu".
      why_no_native_kernels: why the kernels for CPUs cannot be used; None where they can, or on other devices.
    """

    kind: str
    num_devices: int
    bytes_in_use: int | None
    platform: str = "cpu"
    why_no_native_kernels: str | None = None


def device_facts() -> DeviceFacts:
    """The devices as they are now."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    on, in_use = devices[0].platform, stats.get("bytes_in_use")
    why_not = native.why_unavailable() if on == "cpu" else None
    return DeviceFacts(devices[0].device_kind, len(devices), in_use, on, why_not)


def numerics() -> str:
    """What else than the model decides the last bits of a state: 8 hexadecimal digits for versions and device."""
    versions = [importlib.metadata.version(package) for package in ("roost", "jaxlib")]
    facts = repr((versions, jax.local_devices()[0].device_kind, platform.machine(), platform.processor()))
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def open_mesh(shards: MeshShape) -> Mesh | None:
    """The first devices as a mesh; None where there is one shard, which any device will do for.

    Raises:
      ConfigError: there are too few.
    """
    if shards.count == 1:
        return None
    devices = jax.devices()
    if len(devices) < shards.count:
        raise ConfigError(
            f"mesh data={shards.data},model={shards.model} takes {shards.count} devices, but there are {len(devices)}"
        )
    return Mesh(np.array(devices[: shards.count]).reshape(shards.data, shards.model), (DATA, MODEL))


def chosen_shards(weight_bytes: int) -> MeshShape:
    """All devices; the model is cut no further than until its weights take half of a device's memory."""
    devices, model = jax.devices(), 1
    memory = (devices[0].memory_stats() or {}).get("bytes_limit", 0) if devices[0].platform != "cpu" else 0
    while memory and weight_bytes / model > memory / 2 and len(devices) % (2 * model) == 0:
        model *= 2
    return MeshShape(len(devices) // model, model)


def affordable_slots(slot_bytes: int, weight_bytes: int, backend: str) -> int:
    """As many slots as fit into nine tenths of the memory that the weights will leave.

    Raises:
      ConfigError: not even 8 do.
    """
    free = (available_memory() if backend == "cpu" else _available_on_device()) - weight_bytes
    slots = int(0.9 * free) // slot_bytes
    if slots < _FEWEST:
        raise ConfigError(
            f"memory left for slots is {shown_bytes(max(free, 0))} and a slot takes {shown_bytes(slot_bytes)}, "
            f"so not even {_FEWEST} fit; set slots to the number you want to try"
        )
    return min(slots, CPU_MAX_SLOTS) if backend == "cpu" else slots


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that a process may still take, of the machine and of its container; with the file cache, which the system
    would give up.

    Args:
      root: of the file system that tells.
    """
    left = _left_in_container(root)
    return _left_on_machine(root) if left is None else min(_left_on_machine(root), left)


def _left_on_machine(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    if meminfo.is_file() and (found := re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_container(root: Path) -> int | None:
    """By control groups of version 2 or 1, as a container sees its own; None where there is no limit."""
    for folder, names in _CGROUPS:
        limit, used = (root / folder / name for name in names)
        try:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / folder / "memory.stat").read_text(), re.M)
            return int(limit.read_text()) - int(used.read_text()) + (int(cached[1]) if cached else 0)
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _available_on_device() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))


def give_back_memory() -> None:
    """Lets the system have what the compiler has freed; where the C library cannot do that, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

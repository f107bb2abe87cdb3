"""The machine, the versions and the memory that a result depends on."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("roost", "jax", "jaxlib", "numpy", "flax")


def machine() -> Mapping[str, Any]:
    """Returns facts about this machine, and its load average."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average": os.getloadavg()[0],
    }


def versions() -> Mapping[str, str]:
    """Returns the versions of Python and of installed packages."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def now() -> str:
    """Returns the time of day in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def resident_bytes() -> int:
    """Returns the bytes of this process in RAM, or their peak if the system does not report the current number."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()

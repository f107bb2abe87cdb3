"""Facts about the machine: devices, drivers, versions and the tree."""

import importlib.metadata
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .....engine import device_facts, device_limit_bytes
from ...bench.environment import machine, now, versions
from ..options import ReportOptions

_PACKAGES: Final = re.compile(r"(jax|libtpu|nvidia-|rocm)", re.IGNORECASE)
_NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
_ROOT: Final = Path(__file__).resolve().parents[4]


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Returns facts about the machine."""
    facts = device_facts()
    return {
        "time": now(),
        "device": facts._asdict(),
        "device_memory_bytes": device_limit_bytes(),
        "driver": _driver(),
        "machine": machine(),
        "versions": versions(),
        "accelerator_packages": _accelerator_packages(),
        "tree": _tree(),
        "model": options.settings.get("model"),
        "problems": [],
    }


def _driver() -> str | None:
    """Returns the version of NVIDIA's driver, if there is one."""
    if not _NVIDIA_DRIVER.is_file():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _NVIDIA_DRIVER.read_text())
    return found and found[1]


def _accelerator_packages() -> Mapping[str, str]:
    found = {each.name: each.version for each in importlib.metadata.distributions() if _PACKAGES.match(each.name or "")}
    return dict(sorted(found.items()))


def _tree() -> str | None:
    """Returns the commit that is checked out; None outside a clone."""
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None

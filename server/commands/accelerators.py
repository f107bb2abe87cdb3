"""Finds accelerators that JAX does not use, by the device files of their drivers. Does not import JAX."""

import re
from pathlib import Path
from typing import Final

_GOOGLE: Final = "0x1ae0"
"""PCI vendor id of TPUs."""

_CUDA13_DRIVER: Final = 580
"""Minimum version of NVIDIA's driver for CUDA 13."""


def unused_accelerator(platform: str, chosen: str, root: Path = Path("/")) -> str | None:
    """Returns a warning if the model runs on the CPU of a machine with an accelerator, unless that was chosen.

    Args:
      platform: JAX's name of the platform that the model runs on.
      chosen: Value of JAX_PLATFORMS: platforms separated by commas; empty leaves the choice to JAX.
      root: Root of the file system.
    """
    if platform != "cpu" or "cpu" in chosen.split(","):
        return None
    if found := _first(root / "dev", r"nvidia\d+"):
        return _warning(f"an NVIDIA GPU (/dev/{found})", "cuda13") + _old_driver(root)
    if found := _first(root / "dev", r"accel\d+"):
        return _warning(f"a TPU (/dev/{found})", "tpu")
    if _has_google_device(root) and (found := _first(root / "dev/vfio", r"\d+")):
        return _warning(f"a TPU (/dev/vfio/{found})", "tpu")
    return None


def _warning(device: str, extra: str) -> str:
    return (
        f"running on the CPU, though this machine has {device}: the model will be many times slower. Install JAX for "
        f"it with pip install '.[{extra}]' and check its driver, or set JAX_PLATFORMS=cpu if the CPU is meant"
    )


def _old_driver(root: Path) -> str:
    """Returns a remark if the driver of NVIDIA GPUs is too old for the newest CUDA that JAX supports."""
    file = root / "proc/driver/nvidia/version"
    found = re.search(r"Kernel Module.*?\s(\d+)\.\d+", file.read_text()) if file.is_file() else None
    if found is None or int(found[1]) >= _CUDA13_DRIVER:
        return ""
    needed = f"CUDA 13, which needs {_CUDA13_DRIVER}"
    return f". Its driver {found[1]} is too old for {needed}: update it, or install '.[cuda12]'"


def _first(folder: Path, pattern: str) -> str | None:
    """Returns the first file whose name matches, if any."""
    if not folder.is_dir():
        return None
    return next((name for name in sorted(path.name for path in folder.iterdir()) if re.fullmatch(pattern, name)), None)


def _has_google_device(root: Path) -> bool:
    """Returns whether the machine has a TPU: /dev/vfio also holds other devices passed to a virtual machine."""
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)

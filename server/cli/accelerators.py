"""Finds accelerators that a machine has and JAX does not use, by the device files of their drivers. No JAX here."""

import re
from pathlib import Path
from typing import Final

_GOOGLE: Final = "0x1ae0"
"""Vendor of TPUs on the PCI bus."""


def unused_accelerator(platform: str, chosen: str, root: Path = Path("/")) -> str | None:
    """Returns a warning where the model runs on the CPU of a machine with an accelerator, unless that was chosen.

    Args:
      platform: that the model runs on, as JAX names it.
      chosen: the platforms that JAX_PLATFORMS chooses, separated by commas; empty leaves the choice to JAX.
      root: of the file system.
    """
    if platform != "cpu" or "cpu" in chosen.split(","):
        return None
    if found := _first(root / "dev", r"nvidia\d+"):
        return _warning(f"an NVIDIA GPU (/dev/{found})", "cuda13")
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


def _first(folder: Path, pattern: str) -> str | None:
    """The first file of that name, if any; a folder that is missing has none."""
    if not folder.is_dir():
        return None
    return next((name for name in sorted(path.name for path in folder.iterdir()) if re.fullmatch(pattern, name)), None)


def _has_google_device(root: Path) -> bool:
    """Files in /dev/vfio may be of any device that a virtual machine was given."""
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)

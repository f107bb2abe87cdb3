"""A machine's accelerators that are not used, by the files of their drivers."""

import re
from pathlib import Path

import pytest
from roost.server.run.startup_message import unused_accelerator


def machine(root: Path, *files: str, vendor: str = "0x8086") -> Path:
    """A file system with these files in /dev, and one device on the PCI bus."""
    for file in files:
        path = root / "dev" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    device = root / "sys/bus/pci/devices/0000:00:05.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    return root


@pytest.mark.parametrize(
    ("files", "vendor", "names"),
    [
        (["nvidia0", "nvidiactl"], "0x10de", r"NVIDIA GPU \(/dev/nvidia0\).*cuda13"),
        (["nvidia3"], "0x10de", "NVIDIA GPU"),  # a container that was given one GPU of several
        (["accel0", "accel1"], "0x1ae0", r"TPU \(/dev/accel0\).*\[tpu\]"),
        (["vfio/0", "vfio/vfio"], "0x1ae0", r"TPU \(/dev/vfio/0\)"),
    ],
)
def test_it_is_named_with_what_to_do(tmp_path: Path, files: list[str], vendor: str, names: str) -> None:
    warning = unused_accelerator("cpu", "", machine(tmp_path, *files, vendor=vendor))
    assert warning is not None
    assert re.search(names, warning)


@pytest.mark.parametrize(("version", "is_old"), [("535.183.01", True), ("580.65.06", False)])
@pytest.mark.parametrize("module", ["x86_64 Kernel Module ", "Open Kernel Module for x86_64 "])
def test_an_old_driver_is_named(tmp_path: Path, module: str, version: str, is_old: bool) -> None:
    root = machine(tmp_path, "nvidia0")
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(f"NVRM version: NVIDIA UNIX {module} {version}  Release\n")
    warning = unused_accelerator("cpu", "", root)
    assert warning is not None
    assert ("535 is too old for CUDA 13, which needs 580" in warning) == is_old


@pytest.mark.parametrize(
    ("files", "vendor"),
    [
        ([], "0x1ae0"),  # a virtual machine of Google's without a TPU
        (["nvidiactl", "nvidia-uvm"], "0x10de"),  # a driver without a GPU
        (["vfio/vfio"], "0x1ae0"),
        (["vfio/0"], "0x10de"),  # a device for a virtual machine
        (["accel/accel0"], "0x8086"),  # a laptop's NPU
    ],
)
def test_other_files_are_none(tmp_path: Path, files: list[str], vendor: str) -> None:
    assert unused_accelerator("cpu", "", machine(tmp_path, *files, vendor=vendor)) is None


def test_a_choice_is_no_fallback(tmp_path: Path) -> None:
    root = machine(tmp_path, "nvidia0")
    assert unused_accelerator("cpu", "cpu", root) is None
    assert unused_accelerator("gpu", "", root) is None
    assert unused_accelerator("cpu", "cuda", root) is not None


def test_a_system_without_these_folders_has_none(tmp_path: Path) -> None:
    assert unused_accelerator("cpu", "", tmp_path) is None
